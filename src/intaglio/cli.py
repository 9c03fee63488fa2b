"""argv to commands. Nothing heavy is imported until a command is chosen."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any, NoReturn, get_args

from cyclopts import App, CycloptsError, Parameter, convert

from intaglio import __version__
from intaglio.errors import InputError, IntaglioError

# what the machine refuses, wherever it is met: no space, no permission, a read-only file system, a name too long
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}

COMMANDS = (
    "train", "scan", "rows", "steps", "report", "compare", "query", "doctor", "why", "lens train", "heads", "tensors", "born",
    "taught", "replay",
)  # fmt: skip

WRITTEN = ("out", "json", "drop")  # options that name what is written
GROUPS = {"lens": "Train what the choice study reads states with."}


def _converted(kind: Any, tokens: Any) -> Any:
    """As cyclopts converts, but a count is a whole number: 1.5 steps are not silently rounded to 2."""
    if int in (kind, *get_args(kind)):
        for token in tokens:
            if "." in token.value:
                raise ValueError(f"got {token.value}; expected a whole number")
    return convert(kind, tokens)


app = App(
    name="intaglio",
    help="How data is engraved into a language model: a closing ledger of training, per example and per token.",
    version=__version__,
    default_parameter=Parameter(converter=_converted),
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # else cyclopts leaves without a word
)
for _place, _command in enumerate(COMMANDS):
    _group, _, _name = _command.rpartition(" ")
    if _group:
        _under = App(name=_group, help=GROUPS[_group], sort_key=_place)
        app.command(_under)
        _under.command(f"intaglio.commands.{_group}:{_name}", name=_name)
    else:
        app.command(f"intaglio.commands.{_name}:{_name}", name=_name, sort_key=_place)


def function_of(command: str) -> Callable[..., None]:
    """The function behind a command, such as "why" or "lens train"."""
    words = command.split()
    return getattr(importlib.import_module(f"intaglio.commands.{words[0]}"), words[-1])


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit; a user's fault is one line on stderr and exit code 2.

    Raises:
        SystemExit: always; 0 when the command did its work, 2 for bad input, 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-") or argv[0] in GROUPS:
        for command in COMMANDS:
            functools.reduce(getitem, command.split(), app)  # imports it, so that the list shows the first line of each
    warnings.formatwarning = _one_line
    try:
        command, bound, _ = app.parse_args(argv, exit_on_error=False, print_error=False)
        _check_apart(bound.arguments)
        command(*bound.args, **bound.kwargs)
        raise SystemExit(0)
    except (IntaglioError, CycloptsError) as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop("stopped; what was written is kept", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again as it leaves
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        _stop(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error), 2)


def _check_apart(arguments: Mapping[str, Any]) -> None:
    """Refuse a file to write that is also one to read: it would be replaced by what was found in it.

    Raises:
        InputError: it is.
    """
    written = {name: arguments[name] for name in WRITTEN if arguments.get(name) is not None}
    for name, value in arguments.items():
        for text in [] if name in WRITTEN else value if isinstance(value, list | tuple) else [value]:
            for path in {str(text), str(text).partition("=")[2]} if isinstance(text, str | os.PathLike) else ():
                same = [out for out, place in written.items() if os.path.isfile(path) and _is_file(place, path)]
                if same:
                    raise InputError("a file that is read would be replaced", got=f"--{same[0]} {path}",
                                     expected="a file of another name")  # fmt: skip


def _is_file(place: Any, path: str) -> bool:
    return os.path.isfile(place) and os.path.samefile(place, path)


_usual = warnings.formatwarning


def _one_line(message: Warning | str, *place: Any, **line: Any) -> str:
    """A warning of ours as one line: which line of the source it comes from helps nobody."""
    text = str(message)
    return f"{_printable(text)}\n" if text.startswith("intaglio: ") else _usual(message, *place, **line)


def _printable(text: str) -> str:
    """On one line, and nothing steers the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))


def _stop(text: str, code: int) -> NoReturn:
    print(f"intaglio: {_printable(text)}", file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
