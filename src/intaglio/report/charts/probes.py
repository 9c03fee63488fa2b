"""Charts of the probes: their loss, how far predictions went from the start, drift by layer."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
from markupsafe import Markup

from intaglio.findings import ProbeFinding
from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.view import View

_INK = {"target": "accent", "anchor": "against"}
_DASH = {"target": [1, 0], "anchor": [6, 3]}
Line = Callable[[ProbeFinding], list[float | None]]


def learning(view: View) -> Markup | None:
    """Loss of each probe and KL from the initial model, over steps."""
    steps: Callable[[ProbeFinding], list[int]] = lambda p: p.steps  # noqa: E731
    panels = [_lines(view, steps, lambda p: p.loss_nats, "axis.step", "axis.probe_loss"),
              _lines(view, steps, lambda p: p.kl_nats, "axis.step", "axis.kl")]  # fmt: skip
    return _beside(view, panels, "learning")


def drift(view: View) -> Markup | None:
    """How far each layer's output moved at the last measured step, and CKA with the start."""
    layers: Callable[[ProbeFinding], list[int]] = lambda p: p.drift_layers  # noqa: E731
    panels = [_lines(view, layers, lambda p: p.drift_relative_l2, "axis.layer", "axis.drift"),
              _lines(view, layers, lambda p: p.drift_cka, "axis.layer", "axis.cka")]  # fmt: skip
    return _beside(view, panels, "drift")


def _beside(view: View, panels: list[alt.LayerChart | None], name: str) -> Markup | None:
    drawn = [p for p in panels if p is not None]
    if not drawn:
        return None
    return svg(alt.hconcat(*drawn, spacing=36), name=name, label=str(view.t(f"figure.{name}")), lang=view.lang)


def _lines(
    view: View, along: Callable[[ProbeFinding], list[int]], read: Line, x_title: str, y_title: str
) -> alt.LayerChart | None:
    rows = []
    for probe in view.findings.probes:
        for place, value in zip(along(probe), read(probe)):
            if value is not None:
                tip = f"{probe.probe} · {view.t(x_title)} {place}\n{view.t(y_title)}: {view.n(value)}"
                rows.append({"probe": probe.probe, "x": place, "y": value, "tip": tip, "ink": probe.role})
    if not rows:
        return None
    names = [p.probe for p in view.findings.probes]
    roles = [p.role for p in view.findings.probes]
    ink = alt.Color("probe:N", scale=alt.Scale(domain=names, range=[colour(_INK.get(r, "soft")) for r in roles]))
    dash = alt.StrokeDash("probe:N", scale=alt.Scale(domain=names, range=[_DASH.get(r, [2, 2]) for r in roles]))
    base = alt.Chart(data(rows)).encode(
        x=alt.X(
            "x:Q", axis=axis(str(view.t(x_title)), view.lang, grid=False, tickCount=6), scale=alt.Scale(nice=False)
        ),
        y=alt.Y("y:Q", axis=axis(None, view.lang, tickCount=5), scale=alt.Scale(zero=False)),
        color=ink,
    )
    last = [row for i, row in enumerate(rows) if i + 1 == len(rows) or rows[i + 1]["probe"] != row["probe"]]
    name = alt.Chart(data(_apart(last, rows))).mark_text(align="left", dx=7, fontSize=12, limit=70).encode(
        x="x:Q", y="label:Q", text="probe:N", color=ink)  # fmt: skip
    line = base.mark_line(strokeWidth=1.8).encode(strokeDash=dash)
    dots = base.mark_point(filled=True, size=26, opacity=1).encode(description="tip:N")
    return (line + dots + name).properties(width=(WIDTH - 240) / 2, height=180, title=str(view.t(y_title)))


def _apart(last: list[dict], rows: list[dict]) -> list[dict]:
    """Places for the names at the lines' ends, so that no name covers another."""
    values = [row["y"] for row in rows]
    gap, below = 0.09 * (max(values) - min(values)), None
    placed = []
    for row in sorted(last, key=lambda r: r["y"]):
        below = row["y"] if below is None else max(row["y"], below + gap)
        placed.append({**row, "label": below})
    return placed
