"""Options that several commands share: their types, and what --help says of them.

Imported before any command runs, so nothing heavy is imported here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from intaglio.bounds import check_bounds
from intaglio.errors import InputError, RecipeError
from intaglio.files import check_file

Several = Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)]  # the option is repeated
Probes = Several
Level = Literal["norms", "full", "exact"]
Lang = Literal["en", "ru"]

HELP: dict[str, str] = {
    "subject": "smollm2 (built in), a Hugging Face id, a folder with safetensors, or a .gguf file.",
    "data": "A .jsonl, .json, .csv, .parquet or .txt file, or a Hub data set.",
    "out": "Folder of the run; it must not exist (see --force, --resume).",
    "batch_size": "Examples per forward.",
    "max_tokens": "Longest example (1024, or the model's context); a longer one is refused by its row number.",
    "truncate": "Cut longer examples instead.",
    "level": "norms, full or exact: how much is measured.",
    "plan": "Print time, memory and disk, and stop.",
    "force": "Replace an existing run at --out.",
    "lang": "Language of the report: en or ru.",
}

_MARK = "Parameters\n----------\n"
_NAME = re.compile(r"^(\w+)\n((?:    .*\n?)+)", re.MULTILINE)


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """Complete a command's docstring: a parameter that it does not explain itself is explained by `HELP`."""
    text, _, own = (inspect.getdoc(command) or "").partition(_MARK)
    said = {name: meaning.rstrip() for name, meaning in _NAME.findall(own)}
    lines = [f"{name}\n{said.get(name) or '    ' + HELP[name]}" for name in inspect.signature(command).parameters]
    command.__doc__ = f"{text.rstrip()}\n\n{_MARK}" + "\n".join(lines)
    return command


def check_options(*, steps: int | None = None, epochs: float | None = None, **settings: Any) -> None:
    """Refuse settings of a training that cannot be carried out, before a model is loaded.

    Args:
        settings: by their names in `BOUNDS`; None where an option was not given.

    Raises:
        RecipeError: what, with the option's name; got, expected.
    """
    if steps is not None and epochs is not None:
        raise RecipeError("--epochs and --steps exclude each other")
    check_bounds({"steps": steps, "epochs": epochs, **settings}, named=_flag)


def _flag(name: str) -> str:
    return "--lora" if name == "lora_rank" else f"--{name.replace('_', '-')}"


def text_of(path: Path, what: str) -> str:
    """A text file that a user named.

    Raises:
        InputError: it is not there, or not text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"no such {what}", got=str(path), expected="a text file") from None
    except UnicodeDecodeError:
        raise InputError(f"the {what} is not text in UTF-8", got=str(path)) from None


def check_files(out: Path | None, json: Path | None) -> None:
    """Refuse files that cannot be written, before the work.

    Raises:
        InputError: no such folder, a folder in a file's place, or one file for two things.
    """
    for path in (out, json):
        if path is not None:
            check_file(path)
    if out is not None and json is not None and out.resolve() == json.resolve():
        raise InputError("--out and --json name the same file", got=str(out), expected="two files")
