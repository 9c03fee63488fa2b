"""Lines over layers, several panels in a row: Altair to inline SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.choice.words import Words

NAME = 96  # room for a line's name at its end


@dataclass(frozen=True)
class Line:
    """One line: (x, y, hover text) for each point; `name` stands at its end, `ink` is a colour of the page."""

    name: str
    points: Sequence[tuple[float, float, str]]
    ink: str = "accent"
    dash: tuple[int, int] = (1, 0)


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes.

    Attributes:
        top: end of the vertical axis.
        rule: a level to compare with; band: a stretch (x, low, high) to compare with.
        log, log_x: logarithmic axes, vertical and horizontal.
    """

    title: str
    lines: Sequence[Line]
    log: bool = False
    top: float | None = None
    rule: float | None = None
    log_x: bool = False
    band: Sequence[tuple[float, float, float]] = ()


def panels(t: Words, name: str, label: str, x_title: str, drawn: Sequence[Panel]) -> Markup:
    """Panels side by side as one picture."""
    width = (WIDTH - 40 - len(drawn) * (NAME + 46)) / len(drawn)
    charts = [_panel(t, panel, x_title, width) for panel in drawn]
    row = alt.hconcat(*charts, spacing=14).resolve_scale(color="independent", strokeDash="independent")
    return svg(row, name=name, label=label, lang=t.lang)


def _panel(t: Words, panel: Panel, x_title: str, width: float) -> alt.LayerChart:
    rows = [{"line": line.name, "x": x, "y": y, "tip": tip} for line in panel.lines for x, y, tip in line.points]
    names = [line.name for line in panel.lines]
    ink = alt.Color("line:N", scale=alt.Scale(domain=names, range=[colour(line.ink) for line in panel.lines]))
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=[list(line.dash) for line in panel.lines]))
    scale = alt.Scale(type="log") if panel.log else alt.Scale(zero=True)
    if panel.top is not None:
        scale = alt.Scale(domain=[0, panel.top])
    steps = {"values": _few(rows)} if panel.log_x else {"tickCount": 6, "tickMinStep": 1}
    base = alt.Chart(data(rows)).encode(
        x=alt.X("x:Q", axis=axis(x_title, t.lang, grid=False, **steps),
                scale=alt.Scale(type="log" if panel.log_x else "linear", nice=False)),
        y=alt.Y("y:Q", axis=axis(None, t.lang, **(_decades(rows) if panel.log else {"tickCount": 5})), scale=scale), color=ink,
    )  # fmt: skip
    ends = _apart(panel, [line for line in panel.lines if line.points])
    named = alt.Chart(data(ends)).mark_text(align="left", dx=6, fontSize=12, limit=NAME).encode(
        x="x:Q", y="y:Q", text="line:N", color=ink)  # fmt: skip
    layers = [base.mark_line(strokeWidth=1.8).encode(strokeDash=dash),
              base.mark_point(filled=True, size=24, opacity=1).encode(description="tip:N"), named]  # fmt: skip
    if panel.band:
        rows = [{"x": x, "low": low, "high": high} for x, low, high in panel.band]
        band = alt.Chart(alt.Data(values=rows)).mark_area(color=colour("rule"), opacity=0.35)
        layers.insert(0, band.encode(x="x:Q", y="low:Q", y2="high:Q"))
    if panel.rule is not None:
        level = alt.Chart(alt.Data(values=[{"y": panel.rule}])).mark_rule(color=colour("soft"), strokeDash=[2, 3])
        layers.insert(0, level.encode(y="y:Q"))
    return alt.layer(*layers).properties(width=width, height=190, title=panel.title)


def _few(rows: Sequence[dict[str, object]]) -> list[float]:
    """At most eight of the points' own x, the last among them."""
    values = sorted({float(r["x"]) for r in rows})
    return values[:: -max(1, math.ceil(len(values) / 8))][::-1]


def _decades(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """Few lines for a logarithmic axis: whole powers of ten, or 1, 2, 5 of each where there are not many."""
    values = [float(r["y"]) for r in rows]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    step = max(1, (high - low) // 5)
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    return {"values": [k * 10.0**i for i in range(low, high + 1, step) for k in steps]}


def _apart(panel: Panel, lines: Sequence[Line]) -> list[dict[str, object]]:
    """Names at the ends of their lines, moved apart where they would overlap."""
    there, back = (math.log10, lambda v: 10.0**v) if panel.log else (float, float)
    ends = [{"line": line.name, "x": line.points[-1][0], "y": there(line.points[-1][1])} for line in lines]
    values = [there(y) for line in lines for _, y, _ in line.points]
    low = min(values) if panel.log else min(0.0, *values)
    high = panel.top if panel.top is not None else max(values)
    gap = 0.08 * ((high - low) or 1.0)
    ends.sort(key=lambda e: e["y"])
    for below, above in itertools.pairwise(ends):
        above["y"] = max(above["y"], below["y"] + gap)
    over = max(0.0, ends[-1]["y"] - high)
    return [{**e, "y": back(e["y"] - over)} for e in ends]
