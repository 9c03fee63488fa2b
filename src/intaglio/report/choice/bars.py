"""Horizontal bars with a name and a number each: plain markup, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Bar:
    """One bar; `strong` sets it apart, a negative value is drawn in the other colour."""

    name: str
    value: float
    label: str
    strong: bool = False
    tip: str = ""


def bars(rows: Sequence[Bar], *, top: float | None = None) -> Markup:
    """Bars on one scale from 0 to `top` (the longest if None)."""
    top = top or max((abs(r.value) for r in rows), default=0.0) or 1.0
    line = Markup(
        '<div class="lane2"{}><span class="tk">{}</span><span class="track"><i class="{}" style="width:{:.2f}%"></i></span>'
        '<b class="num">{}</b></div>'
    )
    return Markup('<div class="bars">{}</div>').format(Markup("").join(
        line.format(
            Markup(' data-tip="{}"').format(r.tip) if r.tip else "", r.name,
            ("anti" if r.value < 0 else "for") + (" strong" if r.strong else ""), 100 * min(1.0, abs(r.value) / top), r.label,
        )
        for r in rows
    ))  # fmt: skip
