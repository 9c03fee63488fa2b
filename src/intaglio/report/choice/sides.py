"""Several bars to a row, side by side on one scale: the same thing in several models or by several counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 8  # the page's g0 to g7


@dataclass(frozen=True)
class Side:
    """One row: `values` and their `labels`, one for every series; None where there is nothing to draw."""

    name: str
    values: Sequence[float | None]
    labels: Sequence[str]
    strong: bool = False
    tip: str = ""


def sides(series: Sequence[str], rows: Sequence[Side], *, top: float | None = None) -> Markup:
    """Bars from 0 to `top` (the longest if None), one row for every thing and one bar in it for every series."""
    top = top or max((v for r in rows for v in r.values if v is not None), default=0.0) or 1.0
    keys = Markup("").join(
        Markup('<span><i class="boxkey g{}"></i>{}</span>').format(i % COLOURS, name) for i, name in enumerate(series)
    )
    drawn = Markup("").join(
        Markup('<div class="siderow"{}><span class="tk{}">{}</span><span class="track">{}</span></div>').format(
            Markup(' data-tip="{}"').format(row.tip) if row.tip else "", " strong" if row.strong else "", row.name,
            Markup("").join(_bar(i, v, label, top) for i, (v, label) in enumerate(zip(row.values, row.labels)) if v is not None),
        )
        for row in rows
    )  # fmt: skip
    return Markup('<div class="inlinekey">{}</div><div class="sides">{}</div>').format(keys, drawn)


def _bar(i: int, value: float, label: str, top: float) -> Markup:
    return Markup('<span class="side"><i class="g{}" style="width:{:.2f}%"></i><b class="num">{}</b></span>').format(
        i % COLOURS, 88 * min(1.0, max(0.0, value / top)), label
    )
