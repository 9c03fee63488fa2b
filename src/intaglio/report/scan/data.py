"""The rows of a scan: the map, their agreement, their credit at probes, the groups, the lists, the table of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from intaglio.findings import ExampleFinding, GroupFinding, Interval
from intaglio.report.charts import examples as charts
from intaglio.report.charts import scan as scan_charts
from intaglio.report.scan.answer import counts, scored_probes
from intaglio.report.shift.data import MAX_ROWS
from intaglio.report.view import View

LISTED = 8  # rows per list
_PANELS = 4  # groups are compared side by side by so many measures; the table has the rest


def surprise_map(view: View) -> dict[str, Any]:
    return {"chart": scan_charts.surprise_and_push(view)}


def agreement(view: View) -> dict[str, Any]:
    panel = (str(view.t("scan.axis.agreement")), lambda e: e.alignment_mean)
    return {"chart": scan_charts.strips(view, "agreement", [panel])}


def probes(view: View) -> dict[str, Any]:
    """Who would help and who would harm each probe."""
    found = scored_probes(view)
    panels = [(str(view.t("scan.axis.cosine", probe=p.probe)), lambda e, name=p.probe: e.credit_cosines.get(name))
              for p in found]  # fmt: skip
    return {"chart": scan_charts.strips(view, "cosines", panels), "rows": [_probe_row(view, p) for p in found]}


def _probe_row(view: View, p: Any) -> dict[str, Any]:
    helping, harming, cosine = counts(view, p.probe)
    rate = view.whole.credit_rates.get(p.probe) if view.whole else None
    return {"name": p.probe, "role": view.t(f"role.{p.role or 'none'}"), "loss": view.n(p.first_loss_nats),
            "helping": view.n.whole(helping), "harming": view.n.whole(harming),
            "cosine": view.n.cosine(cosine.value if cosine else None),
            "span": view.cosine_span(cosine) if cosine else "",
            "rate": view.n.signed(rate.value if rate else None, 2)}  # fmt: skip


def groups(view: View) -> dict[str, Any]:
    """Groups side by side: intervals, then a table."""
    whole = [view.whole] if view.whole else []
    return {
        "chart": charts.intervals([view], "groups", _panels(view), of="scan.") if view.groups else None,
        "rows": [_group_row(view, g) for g in (*whole, *view.groups)],
        "probes": [p.probe for p in scored_probes(view)],
    }


def _panels(view: View) -> list[tuple[str, Callable[[GroupFinding], Interval | None]]]:
    plain = [(view.t("scan.panel.surprise"), lambda g: g.surprise), (view.t("scan.panel.agreement"), lambda g: g.alignment)]
    cosines = [(view.t("scan.panel.cosine", probe=p.probe), lambda g, name=p.probe: g.credit_cosines.get(name))
               for p in scored_probes(view)]  # fmt: skip
    return [*plain, *cosines][:_PANELS]


def _group_row(view: View, g: GroupFinding) -> dict[str, Any]:
    cosines = [g.credit_cosines.get(p.probe, Interval(None)) for p in scored_probes(view)]
    shown = [(view.n(g.surprise.value), view.span(g.surprise)), (view.n(g.push.value), ""),
             (view.n.cosine(g.alignment.value), view.cosine_span(g.alignment)),
             *((view.n.cosine(c.value), view.cosine_span(c)) for c in cosines)]  # fmt: skip
    return {"name": g.group or view.t("word.all"), "whole": not g.group, "colour": view.group_colour(g.group),
            "examples": view.n.whole(g.examples), "tokens": view.n.whole(g.target_tokens), "numbers": shown}  # fmt: skip


def rows(view: View) -> dict[str, Any]:
    """The lists one would look at first: who teaches, who costs, who stands against the rest, who pushes hardest."""
    examples = view.findings.examples
    lists = []
    for p in scored_probes(view):
        cosine = lambda e, name=p.probe: e.credit_cosines.get(name)  # noqa: E731
        if p.role != "anchor":
            lists.append(_list(view, "taught", [e for e in examples if (cosine(e) or 0) > 0], cosine, -1, p.probe))
        if p.role != "target":
            lists.append(_list(view, "cost", [e for e in examples if (cosine(e) or 0) < 0], cosine, 1, p.probe))
    apart = [e for e in examples if (e.alignment_mean or 0) < 0]
    lists.append(_list(view, "against", apart, lambda e: e.alignment_mean, 1))
    lists.append(_list(view, "hardest", [e for e in examples if e.push_mean], lambda e: e.push_mean, -1))
    return {"lists": lists, "columns": _short(columns(view)[2:])}


def _list(view: View, name: str, chosen: list[ExampleFinding], by: Callable[[ExampleFinding], float | None], sign: int,
          probe: str = "") -> dict[str, Any]:  # fmt: skip
    ranked = sorted(chosen, key=lambda e: sign * (by(e) or 0))[:LISTED]
    return {"title": view.t(f"scan.rows.{name}", probe=probe), "note": view.t(f"scan.rows.{name}_note", probe=probe),
            "empty": view.t(f"scan.rows.{name}_none", probe=probe),
            "rows": [{"example": e, "cells": _short(cells(view, e))} for e in ranked]}  # fmt: skip


def _short(found: list[Any]) -> list[Any]:
    """Without the credits per unit, which order the rows as the cosines do."""
    return found[:4] + found[4::2]


def columns(view: View) -> list[dict[str, Any]]:
    """Headings of the lists and of the table of all rows."""
    named = ("group", "preview", "targets", "loss_nats", "push", "alignment")
    found = [{"key": k, "name": view.t(f"scan.column.{k}"), "means": view.t(f"scan.column_means.{k}"),
              "text": k in ("group", "preview")} for k in named]  # fmt: skip
    for p in scored_probes(view):
        found += [{"key": f"{kind} {p.probe}", "name": view.t(f"scan.column.{kind}", probe=p.probe),
                   "means": view.t(f"scan.column_means.{kind}", probe=p.probe), "text": False}
                  for kind in ("cosine", "credit")]  # fmt: skip
    return found


def cells(view: View, e: ExampleFinding) -> list[dict[str, str]]:
    """An example's numbers, as in `columns`."""
    plain = [(e.targets, view.n(e.targets)), (e.first_loss_nats, view.n(e.first_loss_nats)), (e.push_mean, view.n(e.push_mean)),
             (e.alignment_mean, view.n.cosine(e.alignment_mean))]  # fmt: skip
    for p in scored_probes(view):
        cosine, rate = e.credit_cosines.get(p.probe), e.credit_rates.get(p.probe)
        plain += [(cosine, view.n.cosine(cosine)), (rate, view.n.signed(rate, 2))]
    return [{"raw": "" if v is None else f"{v:.5g}", "text": text} for v, text in plain]


def table(view: View) -> dict[str, Any]:
    """Every example as a row; on very large data the ones that push hardest."""
    examples = view.findings.examples
    left_out = max(0, len(examples) - MAX_ROWS)
    return {
        "columns": columns(view),
        "left_out": view.t("scan.table.left_out", n=view.n.whole(left_out)) if left_out else "",
        "rows": [{"id": e.example, "group": e.group or "", "colour": view.group_colour(e.group), "preview": e.preview[:110],
                  "rows": ", ".join(map(str, e.rows[:6])), "cells": cells(view, e)} for e in examples[:MAX_ROWS]],
    }  # fmt: skip
