"""Charts with one mark per example or per group: the volatility map, intervals side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.findings import ExampleFinding, GroupFinding, Interval
from intaglio.report.charts.base import WIDTH, axis, colour, data, group_scales, svg
from intaglio.report.view import View

Reading = Callable[[ExampleFinding], float | None]


# kind of map -> what stands on its two axes: reading and title of each
MAPS: dict[str, tuple[Reading, str, Reading, str]] = {
    "volatility": (lambda e: e.level, "axis.level", lambda e: e.dispersion, "axis.dispersion"),
    "volatility_moved": (lambda e: e.level, "axis.level", lambda e: e.shift_abs_u, "axis.moved_u"),
    "volatility_learnt": (lambda e: e.level, "axis.level", lambda e: e.learnt_nats, "axis.learnt"),
    "volatility_loss": (lambda e: e.level, "axis.level", lambda e: e.first_loss_nats, "axis.first_loss"),
}
_FEWEST = 3  # examples that make a map


def map_kind(*views: View) -> str:
    """The first map that every run has the numbers for; dispersion needs five visits, movement needs shifts."""
    for kind, (x, _, y, _) in MAPS.items():
        if all(sum(x(e) is not None and y(e) is not None for e in v.findings.examples) >= _FEWEST for v in views):
            return kind
    return "volatility_loss"


def example_map(kind: str, *views: View) -> Markup | None:
    """One mark per example, in a map of `MAPS`; two runs beside each other on the same axes."""
    x, x_title, y, y_title = MAPS[kind]
    return _map(views, "volatility", x, y, x_title, y_title)


def loss_baseline(kind: str, *views: View) -> Markup | None:
    """The same map with the loss in the place of the gradient: what needs no instrument at all."""
    _, _, y, y_title = MAPS[kind]
    return _map(views, "baseline", lambda e: e.csl_nats, y, "axis.csl", y_title)


def _map(views: tuple[View, ...], name: str, x: Reading, y: Reading, x_title: str, y_title: str) -> Markup | None:
    found = [(v, _map_rows(v, x, y)) for v in views]
    drawn = [(v, rows) for v, rows in found if len(rows) >= _FEWEST]
    if not drawn:
        return None
    scales = [_shared_scale([row[field] for _, rows in drawn for row in rows], len(drawn) > 1) for field in "xy"]
    titles = [str(views[0].t(key)) for key in (x_title, y_title)]
    panels = [_map_panel(v, rows, scales, (titles[0], None if i else titles[1]), len(views))
              for i, (v, rows) in enumerate(drawn)]  # fmt: skip
    chart = alt.hconcat(*panels, spacing=24) if len(panels) > 1 else panels[0]
    return svg(chart, name=name, label=str(views[0].t(f"figure.{name}")), lang=views[0].lang)


def _map_rows(view: View, x: Reading, y: Reading) -> list[dict[str, Any]]:
    return [
        {"x": x(e), "y": y(e), "group": e.group or "", "tip": example_tip(view, e), "href": f"#e-{e.example}"}
        for e in view.findings.examples if x(e) is not None and y(e) is not None
    ]  # fmt: skip


def _shared_scale(values: list[float], shared: bool) -> alt.Scale:
    if not shared or min(values) == max(values):
        return alt.Scale(zero=False, nice=True)
    if min(values) > 0 and max(values) > 300 * min(values):  # one run would lie flat on the axis
        return alt.Scale(domain=[0.8 * min(values), 1.25 * max(values)], type="log", nice=False)
    return alt.Scale(domain=[min(values), max(values)], zero=False, nice=True)


def _ticks(scale: alt.Scale) -> dict[str, Any]:
    if scale.to_dict().get("type") != "log":
        return {"tickCount": 6}
    return {"values": decades(*scale.to_dict()["domain"])}


def _map_panel(
    view: View, rows: list[dict[str, Any]], scales: list[alt.Scale], titles: tuple[str, str | None], n: int
) -> alt.LayerChart:
    size = (58 if len(rows) < 300 else 30) // n
    dots = alt.Chart(data(rows)).mark_point(filled=True, size=max(size, 22), opacity=0.78).encode(
        x=alt.X("x:Q", axis=axis(titles[0], view.lang, tickCount=8 // n), scale=scales[0]),
        y=alt.Y("y:Q", axis=axis(titles[1], view.lang, **_ticks(scales[1])), scale=scales[1]),
        description="tip:N", href="href:N", **group_scales(view.group_names or [""]))  # fmt: skip
    chart = (_median_rule(rows, "x") + _median_rule(rows, "y") + dots).properties(
        width=(WIDTH - 60 - 30 * n) / n, height=400 if n == 1 else 330
    )
    return chart.properties(title=view.label) if view.mark else chart


def _median_rule(rows: list[dict], field: str) -> alt.Chart:
    middle = data([{field: median(row[field] for row in rows)}])
    return alt.Chart(middle).mark_rule(color=colour("soft"), strokeDash=[2, 4]).encode(**{field: f"{field}:Q"})


def example_tip(view: View, e: ExampleFinding) -> str:
    """Hover text of one example."""
    lines = [
        e.preview[:90],
        f"{view.t('word.group')}: {e.group or view.t('word.none')} · {view.t('verdict_name.' + e.verdict)}",
        f"{view.t('word.movement')}: {view.u(e.shift_abs_u)}",
        f"{view.t('word.loss')}: {view.n(e.first_loss_nats)} → {view.n(e.last_loss_nats)}",
        f"{view.t('word.level')}: {view.n(e.level)} · {view.t('word.dispersion')}: {view.n(e.dispersion)}",
    ]
    return "\n".join(lines)


def intervals(
    views: Sequence[View], name: str, panels: list[tuple[str, Callable[[GroupFinding], Interval | None]]], *, of: str = ""
) -> Markup | None:
    """Groups under each other, one panel per measure, a mark with its 95 % interval each; per run where there are two.

    Args:
        of: "scan." on the page of a scan, whose figures have titles of their own.
    """
    drawn: list[alt.LayerChart] = []
    for title, read in panels:
        panel = _panel(views, str(title), read, len(panels), labels=not drawn)
        drawn += [panel] if panel else []
    if not drawn:
        return None
    chart = alt.hconcat(*drawn, spacing=26)
    return svg(chart, name=name, label=str(views[0].t(f"{of}figure.{name}")), lang=views[0].lang)


def _panel(
    views: Sequence[View], title: str, read: Callable[[GroupFinding], Interval | None], n_panels: int, *, labels: bool
) -> alt.LayerChart | None:
    rows = [row for v in views for row in _interval_rows(v, title, read)]
    if not rows:
        return None
    names, lang = views[0].group_names, views[0].lang
    y = alt.Y(
        "group:N",
        sort=names,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(title=None, ticks=False, domain=False, labelLimit=120, labels=labels, labelPadding=8),
    )
    x = alt.X("value:Q", axis=axis(None, lang, tickCount=4), scale=alt.Scale(zero=True, nice=True))
    inks = _inks(views)
    base = alt.Chart(data(rows), title=title)
    zero = alt.Chart(data([{"zero": 0}])).mark_rule(color=colour("soft")).encode(
        x=alt.X("zero:Q", axis=axis(None, lang)))  # fmt: skip
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q"), x2="high:Q", y=y, **{k: v for k, v in inks.items() if k != "shape"})  # fmt: skip
    dots = base.mark_point(filled=True, size=90 if len(views) == 1 else 60, opacity=1).encode(
        x=x, y=y, description="tip:N", **inks)  # fmt: skip
    width = min(420, (WIDTH - 130 - 26 * (n_panels - 1)) / n_panels)
    return (zero + bars + dots).properties(width=max(width, 150), height=30 * len(names))


def _interval_rows(view: View, title: str, read: Callable[[GroupFinding], Interval | None]) -> list[dict[str, Any]]:
    rows, run = [], f"{view.mark} · " if view.mark else ""
    for group in view.groups:
        found = read(group)
        if found and found.value is not None:
            tip = f"{run}{group.group}\n{title}: {view.n(found.value)} ({view.span(found)})"
            rows.append({"group": group.group, "run": view.mark, "value": found.value, "low": found.low,
                         "high": found.high, "tip": tip})  # fmt: skip
    return rows


def _inks(views: Sequence[View]) -> dict[str, Any]:
    """By group in one run; by run, one under the other within the group's row, in two."""
    if len(views) == 1:
        return group_scales(views[0].group_names)
    marks = [v.mark for v in views]
    return {
        "color": alt.Color("run:N", scale=alt.Scale(domain=marks, range=[colour(v.ink) for v in views])),
        "shape": alt.Shape("run:N", scale=alt.Scale(domain=marks, range=["circle", "square"])),
        "yOffset": alt.YOffset("run:N", scale=alt.Scale(domain=marks)),
    }


Pair = tuple[ExampleFinding, ExampleFinding]


def same_examples(a: View, b: View, pairs: Sequence[Pair]) -> Markup | None:
    """Every shared example by its movement in A and in B, and by its last loss; on the diagonal both runs agree."""
    panels = [_pair_panel(a, b, pairs, lambda e: e.shift_abs_u, "axis.moved_u"),
              _pair_panel(a, b, pairs, lambda e: e.last_loss_nats, "axis.last_loss")]  # fmt: skip
    drawn = [p for p in panels if p is not None]
    if not drawn:
        return None
    return svg(alt.hconcat(*drawn, spacing=40), name="same", label=str(a.t("compare.figure.same")), lang=a.lang)


def _pair_panel(a: View, b: View, pairs: Sequence[Pair], read: Reading, title: str):
    """On logarithmic axes: both measures are positive and spread over decades; an exact 0 has no place there."""
    kept = [(x, y) for x, y in pairs if (read(x) or 0) > 0 and (read(y) or 0) > 0]
    if len(kept) < _FEWEST:
        return None
    rows = [{"x": read(x), "y": read(y), "group": x.group or "", "tip": pair_tip(a, x, y), "href": f"#e-{x.example}"}
            for x, y in kept]  # fmt: skip
    ends = [v for row in rows for v in (row["x"], row["y"])]
    low, high = min(ends) * 0.85, max(ends) * 1.15
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axes = [axis(f"{v.mark}: {a.t(title)}", a.lang, labelOverlap="greedy", values=decades(low, high)) for v in (a, b)]
    dots = alt.Chart(data(rows)).mark_point(filled=True, size=44 if len(rows) < 300 else 24, opacity=0.78).encode(
        x=alt.X("x:Q", axis=axes[0], scale=scale), y=alt.Y("y:Q", axis=axes[1], scale=scale), description="tip:N",
        href="href:N", **group_scales(a.group_names or [""]))  # fmt: skip
    even = alt.Chart(data([{"x": low, "y": low}, {"x": high, "y": high}])).mark_line(
        color=colour("soft"), strokeDash=[3, 3], strokeWidth=1).encode(x="x:Q", y="y:Q")  # fmt: skip
    side = (WIDTH - 170) / 2
    return (even + dots).properties(width=side, height=side)


def decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with 2 and 5 between where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = len(powers) > 4
    found = [m * 10.0**p for p in powers for m in ((1,) if wide else (1, 2, 5))]
    return [v for v in found if low <= v <= high]


def pair_tip(view: View, x: ExampleFinding, y: ExampleFinding) -> str:
    """Hover text of one example in two runs."""
    n, t = view.n, view.t
    return "\n".join((
        x.preview[:90],
        f"{t('word.movement')}: A {view.u(x.shift_abs_u)} · B {view.u(y.shift_abs_u)}",
        f"{t('axis.last_loss')}: A {n(x.last_loss_nats)} · B {n(y.last_loss_nats)}",
        f"A {t('verdict_name.' + x.verdict)} · B {t('verdict_name.' + y.verdict)}",
    ))  # fmt: skip
