"""Charts with one mark per example or per group: the volatility map, intervals side by side."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import altair as alt
from markupsafe import Markup

from intaglio.findings import ExampleFinding, GroupFinding, Interval
from intaglio.report.charts.base import WIDTH, axis, colour, data, group_scales, svg
from intaglio.report.view import View

Reading = Callable[[ExampleFinding], float | None]


def volatility(view: View) -> Markup | None:
    """Level of the gradient against its dispersion, a mark per example."""
    return _map(view, "volatility", lambda e: e.level, lambda e: e.dispersion)


def volatility_without_dispersion(view: View) -> Markup | None:
    """Level against movement: what is left when examples were visited fewer than five times."""
    return _map(view, "volatility", lambda e: e.level, lambda e: e.shift_abs_u, y_title="axis.moved_u")


def loss_baseline(view: View, *, dispersion: bool) -> Markup | None:
    """The same map with the loss in the place of the gradient: what needs no instrument at all."""
    y = (lambda e: e.dispersion) if dispersion else (lambda e: e.shift_abs_u)
    return _map(
        view,
        "baseline",
        lambda e: e.csl_nats,
        y,
        x_title="axis.csl",
        y_title="axis.dispersion" if dispersion else "axis.moved_u",
    )


def _map(
    view: View, name: str, x: Reading, y: Reading, *, x_title: str = "axis.level", y_title: str = "axis.dispersion"
) -> Markup | None:
    rows = [
        {"x": x(e), "y": y(e), "group": e.group or "", "tip": example_tip(view, e), "href": f"#e-{e.example}"}
        for e in view.findings.examples if x(e) is not None and y(e) is not None
    ]  # fmt: skip
    if len(rows) < 3:
        return None
    titles = [str(view.t(key)) for key in (x_title, y_title)]
    nice = alt.Scale(zero=False, nice=True)
    dots = alt.Chart(data(rows)).mark_point(filled=True, size=58 if len(rows) < 300 else 30, opacity=0.78).encode(
        x=alt.X("x:Q", axis=axis(titles[0], view.lang, tickCount=8), scale=nice),
        y=alt.Y("y:Q", axis=axis(titles[1], view.lang, tickCount=6), scale=nice),
        description="tip:N", href="href:N", **group_scales([g.group for g in view.groups] or [""]))  # fmt: skip
    rules = _median_rule(rows, "x") + _median_rule(rows, "y")
    chart = (rules + dots).properties(width=WIDTH - 90, height=400)
    return svg(chart, name=name, label=str(view.t(f"figure.{name}")), lang=view.lang)


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
    view: View, name: str, panels: list[tuple[str, Callable[[GroupFinding], Interval | None]]]
) -> Markup | None:
    """Groups under each other, one panel per measure, a mark with its 95 % interval each."""
    drawn: list[alt.LayerChart] = []
    for title, read in panels:
        panel = _panel(view, str(title), read, len(panels), labels=not drawn)
        drawn += [panel] if panel else []
    if not drawn:
        return None
    chart = alt.hconcat(*drawn, spacing=26)
    return svg(chart, name=name, label=str(view.t(f"figure.{name}")), lang=view.lang)


def _panel(
    view: View, title: str, read: Callable[[GroupFinding], Interval | None], n_panels: int, *, labels: bool
) -> alt.LayerChart | None:
    rows = []
    for group in view.groups:
        found = read(group)
        if found and found.value is not None:
            tip = f"{group.group}\n{title}: {view.n(found.value)} ({view.span(found)})"
            rows.append({"group": group.group, "value": found.value, "low": found.low, "high": found.high, "tip": tip})
    if not rows:
        return None
    names = [g.group for g in view.groups]
    y = alt.Y(
        "group:N",
        sort=names,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(title=None, ticks=False, domain=False, labelLimit=120, labels=labels, labelPadding=8),
    )
    x = alt.X("value:Q", axis=axis(None, view.lang, tickCount=4), scale=alt.Scale(zero=True, nice=True))
    base = alt.Chart(data(rows), title=title)
    zero = (
        alt.Chart(data([{"zero": 0}]))
        .mark_rule(color=colour("soft"))
        .encode(x=alt.X("zero:Q", axis=axis(None, view.lang)))
    )
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=group_scales(names)["color"])
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, description="tip:N", **group_scales(names))
    width = min(420, (WIDTH - 130 - 26 * (n_panels - 1)) / n_panels)
    return (zero + bars + dots).properties(width=max(width, 150), height=30 * len(names))
