"""Charts of where in the model it happened: layers against steps, heads, groups against layers."""

from __future__ import annotations

import re

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import WIDTH, axis, colour, data, heat, levels, svg
from intaglio.report.charts.steps import bins, mean
from intaglio.report.view import View

_LAYER = re.compile(r"L(\d+)\.(attn|mlp)$")
_HEAD = re.compile(r"L(\d+)\.attn\.H(\d+)$")


def layers_by_steps(view: View) -> tuple[Markup, float] | None:
    """Attention and MLP of every layer against steps, by the length of their own step; and the colour scale's top."""
    rows = [row for address, line in view.findings.layer_series.items() if _LAYER.match(address)
            for row in _layer_rows(view, address, line)]  # fmt: skip
    if not rows:
        return None
    found, top = levels([row["value"] for row in rows])
    for row, level in zip(rows, found):
        row["level"] = level
    panels = [_layer_panel(view, [r for r in rows if r["part"] == part], part) for part in ("attn", "mlp")]
    chart = alt.hconcat(*panels, spacing=30)
    return svg(chart, name="layers", label=str(view.t("figure.layers")), lang=view.lang), top


def _layer_rows(view: View, address: str, line: list[float | None]):
    layer, part = _LAYER.match(address).groups()  # type: ignore[union-attr]
    for run in bins(len(line), 48):
        value = mean([line[i] for i in run])
        if value is None:
            continue
        where = f"{view.t('axis.step')} {view.step(run[0])}" + (f"–{view.step(run[-1])}" if len(run) > 1 else "")
        yield {"layer": int(layer), "next": int(layer) + 1, "part": part, "value": value, "x0": view.step(run[0]),
               "x1": view.step(run[-1]) + 1, "tip": f"{address}\n{where}: {view.u(value)}"}  # fmt: skip


def _layer_panel(view: View, rows: list[dict], part: str) -> alt.Chart:
    n_layers = 1 + max((row["layer"] for row in rows), default=0)
    y = alt.Y(
        "layer:Q",
        scale=alt.Scale(domain=[0, n_layers], nice=False),
        axis=axis(str(view.t("axis.layer")) if part == "attn" else None, view.lang, grid=False, tickCount=6),
    )
    x = alt.X(
        "x0:Q", scale=alt.Scale(nice=False), axis=axis(str(view.t("axis.step")), view.lang, grid=False, tickCount=6)
    )
    return alt.Chart(data(rows), title=str(view.t(f"part.{part}"))).mark_rect(stroke=None).encode(
        x=x, x2="x1:Q", y=y, y2="next:Q", color=heat("level"), description="tip:N",
    ).properties(width=(WIDTH - 120) / 2, height=max(120, min(330, 11 * n_layers)))  # fmt: skip


def heads(view: View) -> tuple[Markup, float] | None:
    """Every head as a cell, layers from left to right; and the colour scale's top."""
    total, rows = sum(view.findings.head_totals.values()), []
    for address, value in view.findings.head_totals.items():
        found = _HEAD.match(address)
        if found:
            share = view.n.percent(value / total) if total else view.n.missing
            rows.append({"layer": int(found[1]), "head": int(found[2]), "value": value,
                         "tip": f"{address}\n{view.u(value)} ({share})"})  # fmt: skip
    if not rows:
        return None
    for row, level in zip(rows, levels([row["value"] for row in rows])[0]):
        row["level"] = level
    n_heads, top = 1 + max(row["head"] for row in rows), levels([row["value"] for row in rows])[1]
    plain = dict(grid=False, ticks=False, domain=False, labelAngle=0, labelOverlap=True)
    chart = alt.Chart(data(rows)).mark_rect(stroke=colour("paper"), strokeWidth=1.5).encode(
        x=alt.X("layer:O", axis=alt.Axis(title=str(view.t("axis.layer")), **plain)),
        y=alt.Y("head:O", axis=alt.Axis(title=str(view.t("axis.head")), **plain)),
        color=heat("level"), description="tip:N",
    ).properties(width=WIDTH - 90, height=max(80, min(420, 21 * n_heads)))  # fmt: skip
    return svg(chart, name="heads", label=str(view.t("figure.heads")), lang=view.lang), top


def groups_by_layers(view: View) -> tuple[Markup, float] | None:
    """Which share of each group's movement lies in which layer; and the colour scale's top."""
    rows = []
    for group in [g.group for g in view.groups]:
        by_layer = _by_layer(view.findings.visit_part_totals.get(group, {}))
        total = sum(by_layer.values())
        rows += [
            {
                "group": group,
                "layer": layer,
                "value": value / total,
                "tip": f"{group} · L{layer}\n{view.n.percent(value / total)}",
            }
            for layer, value in by_layer.items()
            if total
        ]
    if not rows:
        return None
    found, top = levels([row["value"] for row in rows])
    for row, level in zip(rows, found):
        row["level"] = level
    plain = dict(grid=False, ticks=False, domain=False, labelAngle=0, labelOverlap=True)
    chart = alt.Chart(data(rows)).mark_rect(stroke=colour("paper"), strokeWidth=1).encode(
        x=alt.X("layer:O", axis=alt.Axis(title=str(view.t("axis.layer")), **plain)),
        y=alt.Y("group:N", sort=[g.group for g in view.groups], axis=alt.Axis(title=None, **plain)),
        color=heat("level"), description="tip:N",
    ).properties(width=WIDTH - 110, height=26 * len(view.groups))  # fmt: skip
    return svg(chart, name="groupsbylayers", label=str(view.t("figure.groups_by_layers")), lang=view.lang), top


def _by_layer(totals: dict[str, float]) -> dict[int, float]:
    """Movement by layer; addresses outside the layers (embedding, last norm) are left out."""
    found: dict[int, float] = {}
    for address, value in totals.items():
        if address.startswith("L"):
            layer = int(address[1:].split(".")[0])
            found[layer] = found.get(layer, 0.0) + value
    return dict(sorted(found.items()))
