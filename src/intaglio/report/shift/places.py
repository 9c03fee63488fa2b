"""Where in the model: layers and heads against steps, groups against layers, parts beyond the rule of thumb."""

from __future__ import annotations

from typing import Any

from intaglio.report.charts import parts as charts
from intaglio.report.charts.base import HEAT_LEVELS
from intaglio.report.view import View


def places(view: View) -> dict[str, Any]:
    by_layer = charts.groups_by_layers(view) if view.groups else None
    return {
        "layers": with_scale(view, charts.layers_by_steps(view)),
        "heads": with_scale(view, charts.heads(view)),
        "heads_by_steps": with_scale(view, charts.heads_by_steps(view)),
        "groups": with_scale(view, by_layer, percent=True),
        "relative": _relative(view),
    }


def with_scale(view: View, drawn: Any, *, percent: bool = False) -> dict[str, Any] | None:
    """A chart with the ends of its colour scale."""
    if drawn is None:
        return None
    chart, (low, top) = drawn
    show = view.n.percent if percent else view.u if not view.mark else lambda v: f"{view.n(v, 2)} ×"
    return {
        "chart": chart,
        "levels": range(HEAT_LEVELS),
        "zero": f"≤ {show(low)}" if low else "0",
        "top": show(top),
    }


def _relative(view: View) -> list[dict[str, Any]]:
    """The parts that moved most against their own length."""
    ranked = sorted(view.findings.relative_update.items(), key=lambda item: -item[1])[:8]
    top = ranked[0][1] if ranked else 0
    return [{"part": a, "share": view.n.fine_percent(v), "width": round(100 * v / top, 1)} for a, v in ranked if top]
