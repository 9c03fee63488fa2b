"""A scheme: boxes in a row with an arrow between them, each with the model's own sizes.  Plain markup."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from intaglio.report.choice.blocks import Figure
from intaglio.report.choice.words import Words


def scheme(t: Words, lens: str, steps: Sequence[tuple[str, str]]) -> Figure:
    """The figure `scheme` of a lens.

    Args:
        steps: for each box its text's key below `LENS.scheme.` and its size as it is written.
    """
    box = Markup('<span class="step"><b>{}</b><i>{}</i></span>')
    boxes = Markup('<span class="then">→</span>').join(box.format(t(f"{lens}.scheme.{key}"), size) for key, size in steps)
    return Figure("scheme", Markup('<div class="scheme">{}</div>').format(boxes))


def sizes(t: Words, *counts: int) -> str:
    """Sizes of an array: 9 × 14 × 64."""
    return " × ".join(t.numbers.whole(n) for n in counts)
