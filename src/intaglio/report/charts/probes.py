"""Charts of the probes: their loss, how far predictions went from the start, drift by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.findings import ProbeFinding
from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.view import View

_INK = {"target": "accent", "anchor": "against"}
_DASH = {"target": [1, 0], "anchor": [6, 3]}
Line = Callable[[ProbeFinding], list[float | None]]
Along = Callable[[ProbeFinding], list[int]]


def learning(*views: View) -> Markup | None:
    """Loss of each probe and KL from the initial model, over steps."""
    steps: Along = lambda p: p.steps  # noqa: E731
    panels = [_lines(views, steps, lambda p: p.loss_nats, "axis.step", "axis.probe_loss"),
              _lines(views, steps, lambda p: p.kl_nats, "axis.step", "axis.kl")]  # fmt: skip
    return _beside(views[0], panels, "learning")


def drift(*views: View) -> Markup | None:
    """How far each layer's output moved at the last measured step, and CKA with the start."""
    layers: Along = lambda p: p.drift_layers  # noqa: E731
    panels = [_lines(views, layers, lambda p: p.drift_relative_l2, "axis.layer", "axis.drift"),
              _lines(views, layers, lambda p: p.drift_cka, "axis.layer", "axis.cka")]  # fmt: skip
    return _beside(views[0], panels, "drift")


def _beside(view: View, panels: list[alt.LayerChart | None], name: str) -> Markup | None:
    drawn = [p for p in panels if p is not None]
    if not drawn:
        return None
    return svg(alt.hconcat(*drawn, spacing=36), name=name, label=str(view.t(f"figure.{name}")), lang=view.lang)


def _lines(views: tuple[View, ...], along: Along, read: Line, x_title: str, y_title: str) -> alt.LayerChart | None:
    """A line per probe (and run): dashes by the probe's role, colour by role or, of two runs, by run."""
    lines = [
        (v, p, rows) for v in views for p in v.findings.probes if (rows := _points(v, p, along, read, x_title, y_title))
    ]
    if not lines:
        return None
    t, lang = views[0].t, views[0].lang
    rows = [row for _, _, own in lines for row in own]
    names = [own[0]["line"] for _, _, own in lines]
    inks = [colour(v.ink if v.mark else _INK.get(p.role, "soft")) for v, p, _ in lines]
    ink = alt.Color("line:N", scale=alt.Scale(domain=names, range=inks))
    dash = alt.StrokeDash(
        "line:N", scale=alt.Scale(domain=names, range=[_DASH.get(p.role, [2, 2]) for _, p, _ in lines])
    )
    base = alt.Chart(data(rows)).encode(
        x=alt.X("x:Q", axis=axis(str(t(x_title)), lang, grid=False, tickCount=6, tickMinStep=1),
                scale=alt.Scale(nice=False)),
        y=alt.Y("y:Q", axis=axis(None, lang, tickCount=5), scale=alt.Scale(zero=False)),
        color=ink,
    )  # fmt: skip
    last = _apart([own[-1] for _, _, own in lines], rows)
    name = alt.Chart(data(last)).mark_text(align="left", dx=7, fontSize=12, limit=80).encode(
        x="x:Q", y="label:Q", text="line:N", color=ink)  # fmt: skip
    line = base.mark_line(strokeWidth=1.8).encode(strokeDash=dash)
    dots = base.mark_point(filled=True, size=26, opacity=1).encode(description="tip:N")
    return (line + dots + name).properties(width=(WIDTH - 250) / 2, height=180, title=str(t(y_title)))


def _points(view: View, p: ProbeFinding, along: Along, read: Line, x_title: str, y_title: str) -> list[dict[str, Any]]:
    name = f"{view.mark} · {p.probe}" if view.mark else p.probe
    return [
        {"line": name, "x": place, "y": value,
         "tip": f"{name} · {view.t(x_title)} {place}\n{view.t(y_title)}: {view.n(value)}"}
        for place, value in zip(along(p), read(p)) if value is not None
    ]  # fmt: skip


def _apart(last: list[dict], rows: list[dict]) -> list[dict]:
    """Places for the names at the lines' ends, so that no name covers another."""
    values = [row["y"] for row in rows]
    gap, below = 0.09 * (max(values) - min(values)), None
    placed = []
    for row in sorted(last, key=lambda r: r["y"]):
        below = row["y"] if below is None else max(row["y"], below + gap)
        placed.append({**row, "label": below})
    return placed
