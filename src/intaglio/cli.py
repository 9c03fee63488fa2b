"""argv to commands. Nothing heavy is imported until a command is chosen."""

from __future__ import annotations

import sys

from cyclopts import App

from intaglio import __version__
from intaglio.errors import IntaglioError

COMMANDS = ("train", "scan", "rows", "steps", "report", "compare", "query", "doctor")

app = App(
    name="intaglio",
    help="How data is engraved into a language model: a closing ledger of training, per example and per token.",
    version=__version__,
    help_format="markdown",
)
for _name in COMMANDS:
    app.command(f"intaglio.commands.{_name}:{_name}", name=_name)


def main(argv: list[str] | None = None) -> None:
    """Run one command; a user's fault is one line on stderr and exit code 2."""
    try:
        app(argv if argv is not None else sys.argv[1:], exit_on_error=False)
    except IntaglioError as error:
        print(f"intaglio: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("intaglio: stopped; what was written is kept", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        from cyclopts import CycloptsError

        if isinstance(error, CycloptsError):
            raise SystemExit(2) from None  # cyclopts has printed what, got and expected
        raise


if __name__ == "__main__":
    main()
