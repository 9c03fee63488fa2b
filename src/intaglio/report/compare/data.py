"""The data in both runs: the volatility map, the same examples, groups side by side, the table."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.findings import VERDICTS, ExampleFinding, GroupFinding
from intaglio.report.charts import examples as charts
from intaglio.report.compare.movement import relate
from intaglio.report.compare.two import Two
from intaglio.report.shift.data import carrier, group_panels, seen, verdict_stack
from intaglio.report.view import View

MAX_ROWS = 2500


def volatility(two: Two) -> dict[str, Any]:
    """The map of both on the same axes; the shared examples by what they did in A and in B."""
    kind = charts.map_kind(*two.views)
    having = two.each(lambda v: two.n.whole(sum(e.dispersion is not None for e in v.findings.examples)))
    of = two.each(lambda v: v.t.count("examples_of", len(v.findings.examples)))
    drawn = {k: charts.MAPS[k][2] for k in charts.MAPS}[kind]
    return {
        "kind": kind, "chart": charts.example_map(kind, *two.views),
        "note": two.t("compare.dispersion" if kind == "volatility" else "compare.no_dispersion", a=two.run(0),
                      b=two.run(1), having_a=having[0], having_b=having[1], of_a=of[0], of_b=of[1]),
        "missing": two.missing(
            lambda v: any(e.level is not None and drawn(e) is not None for e in v.findings.examples), "compare.no_map"),
        "shared": _shared(two), "same": charts.same_examples(*two.views, two.pairs) if two.pairs else None,
        "matrix": _matrix(two), "ranks": _ranks(two),
    }  # fmt: skip


def _shared(two: Two) -> Markup:
    only = [two.n.whole(len(v.findings.examples) - len(two.pairs)) for v in two.views]
    key = "compare.shared" if two.pairs else "compare.none_shared"
    return two.t(key, shared=two.t.count("examples", len(two.pairs)), a=two.run(0), b=two.run(1), only_a=only[0],
                 only_b=only[1])  # fmt: skip


def _matrix(two: Two) -> dict[str, Any] | None:
    """Verdict in A against verdict in B, counts of shared examples; verdicts that do not occur are left out."""
    present = [[v for v in VERDICTS if any(pair[side].verdict == v for pair in two.pairs)] for side in (0, 1)]
    if not two.pairs:
        return None
    count = lambda x, y: sum(a.verdict == x and b.verdict == y for a, b in two.pairs)  # noqa: E731
    name = lambda v: (two.t(f"verdict_name.{v}"), v.replace(" ", "-"))  # noqa: E731
    rows = [
        {"name": name(x), "cells": [{"count": count(x, y), "same": x == y} for y in present[1]]} for x in present[0]
    ]
    same = sum(a.verdict == b.verdict for a, b in two.pairs)
    return {"columns": [name(v) for v in present[1]], "rows": rows,
            "said": two.t("compare.matrix", same=two.views[0].strong(two.n.whole(same)),
                          of=two.t.count("examples_of", len(two.pairs)))}  # fmt: skip


_RANKED = ("shift_abs_u", "level", "dispersion", "csl_nats")
_MEASURE = {"shift_abs_u": "shift_abs", "csl_nats": "csl"}


def _ranks(two: Two) -> list[tuple[Markup, str]]:
    """How alike both runs order the shared examples, by each measure."""
    found = two.comparison["correlations"]
    return [(two.t(f"measure.{_MEASURE.get(k, k)}"), two.n.signed(found[k], 2)) for k in _RANKED if k in found]


def groups(two: Two) -> dict[str, Any]:
    """Every group of either run with the numbers and verdicts of both."""
    found = [{g.group: g for g in v.groups} for v in two.views]
    shown = [(two.t("word.all"), "", [v.whole for v in two.views])]
    shown += [(name, name, [own.get(name) for own in found]) for name in two.group_names]
    return {
        "any": bool(two.group_names),
        "chart": charts.intervals(two.views, "groups", group_panels(two.views[0])) if two.group_names else None,
        "rows": [_group_row(two, name, key, sides) for name, key, sides in shown],
        "missing": two.missing(lambda v: v.groups, "compare.no_groups"),
        "carried": carried(two),
        "carried_missing": two.missing(lambda v: v.findings.group_carry, "compare.no_carry"),
        "carried_unsettled": [two.t("compare.carried_unsettled", run=two.run(i))
                              for i, v in enumerate(two.views) if not v.findings.group_carry_settled],
    }  # fmt: skip


def carried(two: Two) -> list[dict[str, Any]]:
    """Whose earlier gradients the steps of each run carried, bars on one scale; then the sums. None unless both split."""
    splits = [(line["group"], [line["a"], line["b"]]) for line in two.comparison["group_carry"]]
    shown = [(name, shares) for name, shares in splits
             if name in two.group_names or any(v is not None and seen(v) for v in shares)]  # fmt: skip
    top = max((abs(v) for _, shares in shown for v in shares if v is not None), default=0)
    if not top:
        return []
    side = lambda v: None if v is None else {"share": two.n.percent(v), "negative": v < 0,  # noqa: E731
                                             "width": round(100 * abs(v) / top, 1)}  # fmt: skip
    lines = [{"name": carrier(two.views[0], name), "sides": [side(v) for v in shares],
              "colour": two.views[0].group_colour(name) if name in two.group_names else None}
             for name, shares in shown]  # fmt: skip
    sums = [two.n.percent(sum(v.findings.group_carry.values())) for v in two.views]
    return [*lines, {"name": two.t("groups.carried_sum"), "colour": None, "sums": sums}]


def _group_row(two: Two, name: Any, key: str, sides: list[GroupFinding | None]) -> dict[str, Any]:
    per_1000, rates = ([read(g) if g else None for g in sides] for read in (
        lambda g: g.shift_abs_u_per_1000_tokens.value, lambda g: g.nats_per_ku))  # fmt: skip
    return {
        "name": name, "key": key, "colour": two.views[0].group_colour(key),
        "sides": [_group_side(v, g) if g else None for v, g in zip(two.views, sides)],
        "ratio": relate(two, *per_1000, "ratio") if two.same_subject else "", "rate": relate(two, *rates, "ratio"),
    }  # fmt: skip


def _group_side(view: View, g: GroupFinding) -> dict[str, Any]:
    n = view.n
    return {
        "examples": n.whole(g.examples), "per_1000": n(g.shift_abs_u_per_1000_tokens.value),
        "span": view.span(g.shift_abs_u_per_1000_tokens), "rate": n(g.nats_per_ku),
        "loss": f"{n(g.first_loss_nats)} → {n(g.last_loss_nats)}", "stack": verdict_stack(view, g)["parts"],
    }  # fmt: skip


def table(two: Two) -> dict[str, Any]:
    """Every example of either run as a row, the shared ones first."""
    shared = {a.example for a, _ in two.pairs}
    rows: list[tuple[ExampleFinding | None, ExampleFinding | None]] = list(two.pairs)
    rows += [(e, None) for e in two.views[0].findings.examples if e.example not in shared]
    rows += [(None, e) for e in two.views[1].findings.examples if e.example not in shared]
    return {"columns": _columns(two), "rows": [_row(two, *pair) for pair in rows[:MAX_ROWS]],
            "left_out": max(0, len(rows) - MAX_ROWS), "shared": _shared(two)}  # fmt: skip


_PLAIN = ("group", "preview", "verdict a", "verdict b", "moved a", "moved b", "ratio", "first", "last a", "last b",
          "learnt a", "learnt b")  # fmt: skip


def _columns(two: Two) -> list[dict[str, Any]]:
    columns = []
    for key in _PLAIN:
        name, _, side = key.partition(" ")
        columns.append({"key": key, "name": two.t(f"column.{name}"), "means": two.t(f"column_means.{name}"),
                        "side": side, "text": name in ("group", "preview", "verdict")})  # fmt: skip
    return columns


def _row(two: Two, a: ExampleFinding | None, b: ExampleFinding | None) -> dict[str, Any]:
    view, e = two.views[0], a or b
    assert e is not None
    moved, last, learnt = ([read(x) if x else None for x in (a, b)] for read in (
        lambda x: x.shift_abs_u, lambda x: x.last_loss_nats, lambda x: x.learnt_nats))  # fmt: skip
    ratio = moved[1] / moved[0] if all(moved) else None
    numbers = [*moved, ratio, e.first_loss_nats, *last, *learnt]
    return {
        "id": e.example, "group": e.group or "", "colour": view.group_colour(e.group), "preview": e.preview[:100],
        "verdicts": [(view.t(f"verdict_name.{x.verdict}"), x.verdict.replace(" ", "-")) if x else None for x in (a, b)],
        "cells": [{"raw": f"{v:.4g}" if v is not None else "",
                   "text": "" if v is None else f"× {view.n(v, 2)}" if i == 2 else view.n(v)}
                  for i, v in enumerate(numbers)],
    }  # fmt: skip
