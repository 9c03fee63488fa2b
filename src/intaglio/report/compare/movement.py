"""Movement over steps of both runs on the same axes, with the measures of the whole run and the spikes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from intaglio.findings import Findings
from intaglio.report.charts import steps as charts
from intaglio.report.compare.two import Two
from intaglio.report.shift import movement as single
from intaglio.report.view import View

_IN_U = ("moved", "per_1000", "rate", "path", "net")  # u is each model's own


def movement(two: Two) -> dict[str, Any]:
    first = max(two.views, key=lambda v: v.unsettled_steps)
    return {
        "chart": charts.movement_of_two(*two.views),
        "agreement_chart": charts.agreement(*two.views),
        "rows": _measures(two),
        "missing": two.missing(lambda v: any(x is not None for x in v.series("data_shift")), "compare.no_shift"),
        "unsettled": two.t("movement.unsettled", steps=two.t.count("steps", first.unsettled_steps)),
        "spikes": [(side, spike) for side in (0, 1) for spike in single.spikes(two.views[side])],
    }


# Sums over the run, which carry their interval where a run was measured in part.
_WITHIN: dict[str, Callable[[View, Any], str]] = {
    "moved": lambda view, value: view.u_sum(view.whole.shift_abs_u) if view.whole else view.u(value),
    "path": lambda view, value: view.u_within(value, view.findings.path_half_u),
}


def _measures(two: Two) -> list[dict[str, Any]]:
    """One row per measure of a whole run: both values, and the ratio or difference where it says something."""
    n, view = two.n, two.views[0]
    whole: Callable[[Callable[[Any], Any]], Callable[[Findings], Any]] = lambda read: (  # noqa: E731
        lambda f: read(g) if (g := next((g for g in f.groups if not g.group), None)) else None
    )
    table: list[tuple[str, Callable[[Findings], Any], Callable[[Any], Any], str]] = [
        ("moved", whole(lambda g: g.shift_abs_u.value), view.u, "ratio"),
        ("per_1000", whole(lambda g: g.shift_abs_u_per_1000_tokens.value), view.u, "ratio"),
        ("learnt", whole(lambda g: g.learnt_nats.value), n, "ratio"),
        ("rate", whole(lambda g: g.nats_per_ku), n, "ratio"),
        ("path", lambda f: f.path_u, view.u, "ratio"),
        ("net", lambda f: f.net_u, view.u, "ratio"),
        ("tortuosity", lambda f: f.tortuosity, n, ""),
        ("agreement", lambda f: f.agreement.value, n, "difference"),
        ("noise", lambda f: f.noise_scale.value, n, "ratio"),
        ("conflict", lambda f: f.conflict_share.value, n.percent, ""),
        ("gap", lambda f: f.imitation_gap, n.percent, ""),
        ("spikes", lambda f: len(f.spikes), n.whole, ""),
    ]
    rows = [_measure(two, *row) for row in table]
    return [row for row in rows if row["known"]]


def _measure(
    two: Two, key: str, read: Callable[[Findings], Any], show: Callable[[Any], Any], relation: str
) -> dict[str, Any]:
    a, b = two.each(lambda v: read(v.findings))
    relation = relation if two.same_subject or key not in _IN_U else ""
    name, means = two.t(f"compare.row.{key}"), two.t(f"compare.row_means.{key}")
    within = _WITHIN.get(key, lambda view, value: show(value))
    shown = [two.n.missing if value is None else within(view, value) for view, value in zip(two.views, (a, b))]
    return {"name": name, "means": means, "a": shown[0], "b": shown[1], "known": a is not None or b is not None,
            "relation": relate(two, a, b, relation)}  # fmt: skip


def relate(two: Two, a: float | None, b: float | None, relation: str) -> str:
    """B against A: times, or a signed difference; nothing where either is unknown or it would mislead."""
    if a is None or b is None or not relation:
        return ""
    if relation == "difference":
        return two.n.signed(b - a)
    return f"× {two.n(b / a, 2)}" if a > 0 and b > 0 else ""
