"""A scheme: boxes in a row with an arrow between them, each with the model's own sizes.  Plain markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from intaglio.report.choice.blocks import Figure
from intaglio.report.choice.words import Words

Step = tuple[str, str]  # a box: its text's key below `LENS.scheme.` and its size as it is written


@dataclass(frozen=True)
class Lanes:
    """Rows of boxes below each other, for what runs side by side; `names` stand before them."""

    rows: Sequence[Sequence[Step | Lanes]]
    names: Sequence[str] = ()


def scheme(t: Words, lens: str, steps: Sequence[Step | Lanes]) -> Figure:
    """The figure `scheme` of a lens: boxes from left to right, and lanes where the way forks."""
    return Figure("scheme", Markup('<div class="scheme">{}</div>').format(_row(t, lens, steps)))


def sizes(t: Words, *counts: int) -> str:
    """Sizes of an array: 9 × 14 × 64."""
    return " × ".join(t.numbers.whole(n) for n in counts)


def _row(t: Words, lens: str, steps: Sequence[Step | Lanes]) -> Markup:
    """An arrow stays with the box it points at, so that a broken row still reads."""
    first, *rest = (_drawn(t, lens, step) for step in steps)
    return first + Markup("").join(Markup('<span class="on"><span class="then">→</span>{}</span>').format(s) for s in rest)


def _drawn(t: Words, lens: str, step: Step | Lanes) -> Markup:
    if not isinstance(step, Lanes):
        return Markup('<span class="step"><b>{}</b><i>{}</i></span>').format(t(f"{lens}.scheme.{step[0]}"), step[1])
    names = [Markup('<span class="name">{}</span>').format(name) for name in step.names] or [Markup("")] * len(step.rows)
    lane = Markup('<span class="way">{}{}</span>')
    return Markup('<span class="fork">{}</span>').format(
        Markup("").join(lane.format(name, _row(t, lens, row)) for name, row in zip(names, step.rows))
    )
