"""Charts of where in the model it happened: layers and heads against steps, heads, groups against layers."""

from __future__ import annotations

import math
import re
from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import (
    WIDTH,
    axis,
    colour,
    data,
    heat,
    levels,
    signed_heat,
    signed_levels,
    svg,
)
from intaglio.report.charts.steps import bins, mean
from intaglio.report.view import View

_LAYER = re.compile(r"L(\d+)\.(attn|mlp)$")
_HEAD = re.compile(r"L(\d+)\.attn\.H(\d+)$")
_PLAIN = dict(grid=False, ticks=False, domain=False, labelAngle=0, labelOverlap=True)
_HEADS_SHOWN = 14
Ends = tuple[float, float]
Drawn = tuple[Markup, Ends]


def _level(drawn: list[tuple[View, list[dict[str, Any]]]]) -> Ends:
    """Give every row the heat level of its value, all on one scale; returns the scale's ends.

    In u for one run. Two runs may differ in length by any factor, so there each value is taken against the
    mean of its own run, and the colours say where and when a run moved more than it did on average.
    """
    for view, rows in drawn:
        middle = mean([row["value"] for row in rows]) or 1.0
        for row in rows:
            row["seen"] = row["value"] / middle if view.mark else row["value"]
    every = [row for _, rows in drawn for row in rows]
    found, ends = levels([row["seen"] for row in every])
    for row, level in zip(every, found):
        row["level"] = level
    return ends


def _titled(view: View, rows: list[dict[str, Any]], what: str = "") -> str:
    """A panel's title; of two runs also what their mean, the 1 of the colour scale, is in u."""
    if not view.mark:
        return what
    middle = view.t("compare.mean", u=view.u(mean([row["value"] for row in rows])))
    return f"{view.mark} · {what + ' · ' if what else ''}{middle}"


def layers_by_steps(*views: View) -> Drawn | None:
    """Attention and MLP of every layer against steps, by the length of their own step; and the colour scale's top."""
    found = [(v, [row for address, line in v.findings.layer_series.items() if _LAYER.match(address)
                  for row in _layer_rows(v, address, line)]) for v in views]  # fmt: skip
    drawn = [(v, rows) for v, rows in found if rows]
    if not drawn:
        return None
    parts = [(v, [r for r in rows if r["part"] == part]) for v, rows in drawn for part in ("attn", "mlp")]
    top, span = _level(parts if views[0].mark else drawn), _span(drawn)
    panels = [_layer_panel(v, rows, ("attn", "mlp")[i % 2], span) for i, (v, rows) in enumerate(parts)]
    lines = [alt.hconcat(*panels[i : i + 2], spacing=30) for i in range(0, len(panels), 2)]
    chart = alt.vconcat(*lines, spacing=18) if len(lines) > 1 else lines[0]
    return svg(chart, name="layers", label=str(views[0].t("figure.layers")), lang=views[0].lang), top


def _count(drawn: list[tuple[View, list[dict[str, Any]]]], field: str) -> int:
    """How many layers, or heads, the largest of the runs has."""
    return 1 + max((row[field] for _, rows in drawn for row in rows), default=0)


def _span(drawn: list[tuple[View, list[dict[str, Any]]]]) -> tuple[int, int]:
    """From the first layer that was trained in any run to after the last."""
    layers = [row["layer"] for _, rows in drawn for row in rows]
    return min(layers), 1 + max(layers)


def _layer_rows(view: View, address: str, line: list[float | None]):
    layer, part = _LAYER.match(address).groups()  # type: ignore[union-attr]
    for run in bins(len(line), 48):
        value = mean([line[i] for i in run])
        if value is None:
            continue
        where = f"{view.t('axis.step')} {view.step(run[0])}" + (f"–{view.step(run[-1])}" if len(run) > 1 else "")
        yield {"layer": int(layer), "next": int(layer) + 1, "part": part, "value": value, "x0": view.step(run[0]),
               "x1": view.step(run[-1]) + 1, "tip": f"{_mark(view)}{address}\n{where}: {view.u(value)}"}  # fmt: skip


def _mark(view: View) -> str:
    return f"{view.mark} · " if view.mark else ""


def _layer_panel(view: View, rows: list[dict], part: str, span: tuple[int, int]) -> alt.Chart:
    y = alt.Y(
        "layer:Q",
        scale=alt.Scale(domain=list(span), nice=False),
        axis=axis(
            str(view.t("axis.layer")) if part == "attn" else None, view.lang, grid=False, tickCount=6, tickMinStep=1
        ),
    )
    x = alt.X(
        "x0:Q",
        scale=alt.Scale(nice=False),
        axis=axis(str(view.t("axis.step")), view.lang, grid=False, tickCount=6, tickMinStep=1),
    )
    tall = 11 if not view.mark else 7
    return alt.Chart(data(rows), title=_titled(view, rows, str(view.t(f"part.{part}")))).mark_rect(stroke=None).encode(
        x=x, x2="x1:Q", y=y, y2="next:Q", color=heat("level"), description="tip:N",
    ).properties(width=(WIDTH - 120) / 2, height=max(60, min(330, tall * (span[1] - span[0]))))  # fmt: skip


def heads(*views: View) -> Drawn | None:
    """Every head as a cell, layers from left to right; and the colour scale's top."""
    drawn = [(v, rows) for v in views if (rows := _head_rows(v))]
    if not drawn:
        return None
    top, n_heads = _level(drawn), _count(drawn, "head")
    panels = [_head_panel(v, rows, heat("level"), _titled(v, rows), n_heads, len(views), labels=not i)
              for i, (v, rows) in enumerate(drawn)]  # fmt: skip
    chart = alt.hconcat(*panels, spacing=24) if len(panels) > 1 else panels[0]
    return svg(chart, name="heads", label=str(views[0].t("figure.heads")), lang=views[0].lang), top


def _head_rows(view: View) -> list[dict[str, Any]]:
    shares, half = head_shares(view), view.findings.head_half_u
    return [
        {"layer": layer, "head": head, "value": value,
         "tip": f"{_mark(view)}L{layer}.attn.H{head}\n{view.u_within(value, half.get(f'L{layer}.attn.H{head}'))} "
                f"({view.n.percent(shares[layer, head])})"}
        for (layer, head), value in _heads_of(view).items()
    ]  # fmt: skip


def _heads_of(view: View) -> dict[tuple[int, int], float]:
    found = ((_HEAD.match(address), value) for address, value in view.findings.head_totals.items())
    return {(int(m[1]), int(m[2])): value for m, value in found if m}


def head_shares(view: View) -> dict[tuple[int, int], float | None]:
    """Each head's share of the movement of all heads."""
    heads_ = _heads_of(view)
    total = sum(heads_.values())
    return {place: value / total if total else None for place, value in heads_.items()}


def _head_panel(
    view: View, rows: list[dict], ink: alt.Color, title: str, n_heads: int, n: int, *, labels: bool
) -> alt.Chart:
    chart = alt.Chart(data(rows)).mark_rect(stroke=colour("paper"), strokeWidth=1.5 if n == 1 else 0.7).encode(
        x=alt.X("layer:O", axis=alt.Axis(title=str(view.t("axis.layer")), **_PLAIN)),
        y=alt.Y("head:O", axis=alt.Axis(title=str(view.t("axis.head")) if labels else None, **_PLAIN)),
        color=ink, description="tip:N",
    ).properties(width=(WIDTH - 50 - 40 * n) / n, height=max(80, min(420, (21 if n == 1 else 17) * n_heads)))  # fmt: skip
    return chart.properties(title=title) if title else chart


def head_differences(a: View, b: View) -> tuple[Markup, float] | None:
    """By how much each head's share of all heads' movement is larger in B than in A, as log(B / A); and the top."""
    shares = head_shares(a), head_shares(b)
    if not shares[0] or shares[0].keys() != shares[1].keys():
        return None
    known = {p: (x, y) for p, x in shares[0].items() if x and (y := shares[1][p])}
    rows = [
        {"layer": layer, "head": head, "value": math.log(y / x),
         "tip": f"L{layer}.attn.H{head}\nA {a.n.percent(x)} · B {a.n.percent(y)} ({a.n.signed_percent(y / x - 1)})"}
        for (layer, head), (x, y) in known.items()
    ]  # fmt: skip
    if not rows:
        return None
    found, top = signed_levels([row["value"] for row in rows])
    for row, level in zip(rows, found):
        row["level"] = level
    panel = _head_panel(a, rows, signed_heat("level"), "", 1 + max(r["head"] for r in rows), 1, labels=True)
    return svg(panel, name="headdiff", label=str(a.t("compare.figure.head_differences")), lang=a.lang), top


def heads_by_steps(*views: View) -> Drawn | None:
    """The heads that moved most, against steps; of two runs those that did so in either, on one scale."""
    chosen = _leading_heads(views)
    drawn = [(v, rows) for v in views if (rows := _head_series_rows(v, chosen))]
    if not drawn:
        return None
    top = _level(drawn)
    names = [f"L{layer}.H{head}" for layer, head in chosen]
    panels = [_head_series_panel(v, rows, names, len(views), labels=not i) for i, (v, rows) in enumerate(drawn)]
    chart = alt.hconcat(*panels, spacing=24) if len(panels) > 1 else panels[0]
    return svg(chart, name="headsteps", label=str(views[0].t("figure.heads_by_steps")), lang=views[0].lang), top


def _leading_heads(views: tuple[View, ...]) -> list[tuple[int, int]]:
    """The heads with the largest shares in any of the runs, in the order of the model."""
    best: dict[tuple[int, int], float] = {}
    for view in views:
        for place, share in head_shares(view).items():
            best[place] = max(best.get(place, 0.0), share or 0.0)
    return sorted(sorted(best, key=lambda p: -best[p])[:_HEADS_SHOWN])


def _head_series_rows(view: View, chosen: list[tuple[int, int]]) -> list[dict[str, Any]]:
    starts = view.findings.head_series_steps
    ends = [*starts[1:], view.step(max(view.findings.steps_total - 1, 0)) + 1]
    rows = []
    for layer, head in chosen:
        line = view.findings.head_series.get(f"L{layer}.attn.H{head}", [])
        for start, end, value in zip(starts, ends, line):
            if value is not None:
                tip = f"{_mark(view)}L{layer}.attn.H{head}\n{view.t('axis.step')} {start}: {view.u(value)}"
                rows.append({"name": f"L{layer}.H{head}", "x0": start, "x1": end, "value": value, "tip": tip})
    return rows


def _head_series_panel(view: View, rows: list[dict], names: list[str], n: int, *, labels: bool) -> alt.Chart:
    chart = alt.Chart(data(rows)).mark_rect().encode(
        x=alt.X("x0:Q", scale=alt.Scale(nice=False),
                axis=axis(str(view.t("axis.step")), view.lang, grid=False, tickCount=10 // n, tickMinStep=1)),
        x2="x1:Q",
        y=alt.Y("name:N", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(title=None, labels=labels, **_PLAIN)),
        color=heat("level"), description="tip:N",
    ).properties(width=(WIDTH - 70 - 30 * n) / n, height=18 * len(names))  # fmt: skip
    return chart.properties(title=_titled(view, rows)) if view.mark else chart


def groups_by_layers(*views: View) -> Drawn | None:
    """Which share of each group's movement lies in which layer; and the colour scale's top."""
    rows = [row for v in views for row in _group_layer_rows(v)]
    if not rows:
        return None
    (found, top), view = levels([row["value"] for row in rows]), views[0]
    for row, level in zip(rows, found):
        row["level"] = level
    names = [f"{group}{' · ' + v.mark if v.mark else ''}" for group in view.group_names for v in views]
    present = {row["line"] for row in rows}
    names = [name for name in names if name in present]
    chart = alt.Chart(data(rows)).mark_rect(stroke=colour("paper"), strokeWidth=1).encode(
        x=alt.X("layer:O", axis=alt.Axis(title=str(view.t("axis.layer")), **_PLAIN)),
        y=alt.Y("line:N", sort=names, axis=alt.Axis(title=None, **_PLAIN)),
        color=heat("level"), description="tip:N",
    ).properties(width=WIDTH - 110, height=(26 if len(views) == 1 else 19) * len(names))  # fmt: skip
    return svg(chart, name="groupsbylayers", label=str(view.t("figure.groups_by_layers")), lang=view.lang), top


def _group_layer_rows(view: View) -> list[dict[str, Any]]:
    rows = []
    for group in [g.group for g in view.groups]:
        by_layer = _by_layer(view.findings.visit_part_totals.get(group, {}))
        total = sum(by_layer.values())
        rows += [
            {"line": f"{group}{' · ' + view.mark if view.mark else ''}", "layer": layer, "value": value / total,
             "tip": f"{_mark(view)}{group} · L{layer}\n{view.n.percent(value / total)}"}
            for layer, value in by_layer.items() if total
        ]  # fmt: skip
    return rows


def _by_layer(totals: dict[str, float]) -> dict[int, float]:
    """Movement by layer; addresses outside the layers (embedding, last norm) are left out."""
    found: dict[int, float] = {}
    for address, value in totals.items():
        if address.startswith("L"):
            layer = int(address[1:].split(".")[0])
            found[layer] = found.get(layer, 0.0) + value
    return dict(sorted(found.items()))
