"""Files that are asked for: refused before the work where they cannot be written, else whole under their name, or not there.

The one place where a file gets its name. Pure: whoever writes, at whatever stage, may use it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from intaglio.errors import InputError, StoreError

LONGEST_NAME = 240  # bytes, with room for the name that a file has until it is whole


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before the work; nothing is left and what stands there is not touched.

    An empty file beside it tells more than permissions do. Pipes and devices are taken as they are.

    Raises:
        InputError: no such folder, a folder in the file's place, no room for its name, or nothing can be written there.
    """
    if os.path.isdir(path):
        raise InputError("a file is to be written, and this is a folder", got=str(path))
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InputError("no such folder to write into", got=str(path))
    if _is_device(path):
        return
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."[:100]):
            pass
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror or error}", got=str(path)) from None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file aside and rename it; whatever stops that, the aside is gone and what stood there before still stands.

    What is no plain file (a pipe, /dev/null) is written to and stays what it is; a link goes on pointing where it did.

    Args:
        write: told where to write.

    Raises:
        StoreError: it cannot be written.
    """
    real = Path(os.path.realpath(path))
    aside = real.with_name(f".{real.name}.tmp")
    try:
        if _is_device(path):
            write(path)
            return
        write(aside)
        os.replace(aside, real)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Neither file nor folder; asked of the path as it was given, for /dev/stdout leads to a pipe that has no name."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all; what JSON has no word for (a date) is written as text.

    Raises:
        StoreError: it cannot be written.
    """

    def write(place: Path) -> None:
        with place.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

    write_whole(path, write)
