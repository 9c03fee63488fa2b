"""Charts of a scan: a dot per row by surprise and push, and rows in lines by one measure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.findings import ExampleFinding
from intaglio.report.charts.base import WIDTH, axis, colour, data, group_scales, svg
from intaglio.report.charts.examples import Reading, decades
from intaglio.report.view import View

_FEWEST = 3  # rows that make a map
_GOLDEN = 0.618  # spreads dots over a line evenly, the same at each drawing


def surprise_and_push(view: View) -> Markup | None:
    """A dot per row: how little the model expects it, and how hard it alone would pull."""
    known = [e for e in view.findings.examples if e.first_loss_nats is not None and (e.push_mean or 0) > 0]
    if len(known) < _FEWEST:
        return None
    rows = [_row(view, e, x=e.first_loss_nats, y=e.push_mean) for e in known]
    pushes = [row["y"] for row in rows]
    low, high = min(pushes) * 0.85, max(pushes) * 1.15
    x = alt.X("x:Q", axis=axis(str(view.t("scan.axis.surprise")), view.lang, tickCount=8), scale=alt.Scale(zero=False))
    ticks = decades(low, high)
    y = alt.Y("y:Q", axis=axis(str(view.t("scan.axis.push")), view.lang, **({"values": ticks} if len(ticks) > 1 else {})),
              scale=alt.Scale(type="log", domain=[low, high], nice=False))  # fmt: skip
    chart = alt.layer(*_medians(rows), _dots(view, rows, x, y)).properties(width=WIDTH - 90, height=380)
    return svg(chart, name="map", label=str(view.t("scan.figure.map")), lang=view.lang)


def _medians(rows: list[dict[str, Any]]) -> list[alt.Chart]:
    rule = {"color": colour("soft"), "strokeDash": [2, 4]}
    return [alt.Chart(data([{f: median(row[f] for row in rows)}])).mark_rule(**rule).encode(**{f: f"{f}:Q"}) for f in "xy"]


def strips(view: View, name: str, panels: Sequence[tuple[str, Reading]]) -> Markup | None:
    """A panel per measure, a line per group in it, a dot per row; left of zero is against."""
    found = [(title, [_row(view, e, x=read(e), jitter=i * _GOLDEN % 1) for i, e in enumerate(view.findings.examples)
                      if read(e) is not None]) for title, read in panels]  # fmt: skip
    drawn = [(title, rows) for title, rows in found if rows]
    if not drawn:
        return None
    ends = [0.0, *(row["x"] for _, rows in drawn for row in rows)]
    scale = alt.Scale(domain=[min(ends), max(ends)], nice=True)
    charts = [_strip(view, title, rows, scale) for title, rows in drawn]
    chart = alt.vconcat(*charts, spacing=18) if len(charts) > 1 else charts[0]
    return svg(chart, name=name, label=str(view.t(f"scan.figure.{name}")), lang=view.lang)


def _strip(view: View, title: str, rows: list[dict[str, Any]], scale: alt.Scale) -> alt.LayerChart:
    names = view.group_names or [""]
    x = alt.X("x:Q", axis=axis(title, view.lang, tickCount=8), scale=scale)
    y = alt.Y("group:N", sort=names, scale=alt.Scale(domain=names),
              axis=alt.Axis(title=None, ticks=False, domain=False, labelLimit=120, labelPadding=8))  # fmt: skip
    zero = alt.Chart(data([{"x": 0}])).mark_rule(color=colour("soft")).encode(x="x:Q")
    dots = _dots(view, rows, x, y).encode(yOffset=alt.YOffset("jitter:Q", scale=alt.Scale(domain=[-0.4, 1.4])))
    return (zero + dots).properties(width=WIDTH - 190, height=max(46, 34 * len(names)))


def _dots(view: View, rows: list[dict[str, Any]], x: alt.X, y: alt.Y) -> alt.Chart:
    return alt.Chart(data(rows)).mark_point(filled=True, size=58 if len(rows) < 300 else 30, opacity=0.78).encode(
        x=x, y=y, description="tip:N", href="href:N", **group_scales(view.group_names or [""]))  # fmt: skip


def _row(view: View, e: ExampleFinding, **place: Any) -> dict[str, Any]:
    return {**place, "group": e.group or "", "tip": tip(view, e), "href": f"#e-{e.example}"}


def tip(view: View, e: ExampleFinding) -> str:
    """Hover text of one row."""
    t, n = view.t, view.n
    return "\n".join((
        e.preview[:90], f"{t('word.group')}: {e.group or t('word.none')}",
        f"{t('scan.column.loss_nats')}: {n(e.first_loss_nats)} · {t('scan.column.push')}: {n(e.push_mean)}",
        f"{t('scan.column.alignment')}: {n.cosine(e.alignment_mean)}",
        *(f"{t('scan.column.cosine', probe=p)}: {n.cosine(c)}" for p, c in e.credit_cosines.items()),
    ))  # fmt: skip
