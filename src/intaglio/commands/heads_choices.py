"""`intaglio heads --choice`: decisions that `intaglio why` took apart, for the cards of the heads that voted in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.commands.options import text_of
from intaglio.errors import InputError

if TYPE_CHECKING:
    from intaglio.model.subject import Subject


def choices_of(
    paths: list[Path], subjects: tuple[str, ...], series: bool, out: Path | None
) -> tuple[list[dict[str, Any]], Subject | None]:
    """Decisions as cards tell them, held against the model before it is measured; the subject, where it was loaded for that.

    A series ends with the weights of its last state, which are loaded for this alone.

    Raises:
        InputError: a file is no decision, or one of a model of another shape or with other weights.
    """
    if not paths:
        return [], None
    from intaglio.model.anatomy import anatomy_of
    from intaglio.model.subject import load_subject

    traces = [(path, _trace(path)) for path in paths]
    if series:
        from intaglio.history import states_of

        loaded = load_subject(states_of(subjects)[1][-1][1])
    else:
        loaded = load_subject(subjects[0])
    sizes = anatomy_of(loaded.model)
    about = {"n_layers": sizes.n_layers, "n_heads": sizes.n_heads, "fingerprint": loaded.fingerprint}
    return [_choice(path, trace, out, about) for path, trace in traces], None if series else loaded


def _trace(path: Path) -> Any:
    """What `intaglio why --json` wrote, read before the work; its own sizes must hold it together.

    Raises:
        InputError: no such file, no JSON, or no decision.
    """
    from intaglio.analyse.heads.choices import choice_of

    try:
        trace = json.loads(text_of(path, "trace"))
    except (ValueError, RecursionError):
        raise InputError("the trace is no JSON", got=str(path), expected="what intaglio why --json writes") from None
    sizes = {name: trace.get(name) if isinstance(trace, dict) else None for name in ("layers", "heads")}
    choice_of(trace, **sizes, name=path.name)
    return trace


def _choice(path: Path, trace: Any, out: Path | None, about: dict[str, Any]) -> dict[str, Any]:
    """A decision as cards tell it; its page is linked where it lies beside, by the same name."""
    from os.path import relpath
    from urllib.parse import quote

    from intaglio.analyse.heads.choices import choice_of

    page = path.absolute().with_suffix(".html")
    link = "./" + quote(Path(relpath(page, out.absolute().parent)).as_posix()) if out and page.is_file() else None
    return choice_of(trace, layers=about["n_layers"], heads=about["n_heads"], name=path.name, page=link,
                     fingerprint=about.get("fingerprint"))  # fmt: skip
