"""Files that are asked for: whole under their name, or not there.

The one place where a file gets its name. Pure: whoever writes, at whatever stage, may use it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from intaglio.errors import StoreError


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
        if real.exists() and not (real.is_file() or real.is_dir()):
            write(real)
            return
        write(aside)
        os.replace(aside, real)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


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
