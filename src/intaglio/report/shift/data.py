"""The data: the volatility map, the groups side by side, the table of all examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from intaglio.findings import VERDICTS, ExampleFinding, GroupFinding, Interval
from intaglio.report.charts import examples as charts
from intaglio.report.view import View

MAX_ROWS = 2000


def volatility(view: View) -> dict[str, Any]:
    """The map in its two views; without enough visits, level against movement, or against what was learnt."""
    examples = view.findings.examples
    having = sum(e.dispersion is not None for e in examples)
    kind = charts.map_kind(view)
    return {
        "chart": charts.example_map(kind, view), "baseline": charts.loss_baseline(kind, view), "kind": kind,
        "note": view.t("volatility.some" if kind == "volatility" else "volatility.none", having=view.n.whole(having),
                       examples=view.t.count("examples_of", len(examples))),
        "correlations": _correlations(view),
        "tokens": [_token(view, t) for t in view.findings.token_volatility[:12]],
        "positions": _positions(view),
    }  # fmt: skip


def _correlations(view: View) -> dict[str, Any]:
    """Rank correlations of gradient measures (rows) with what needs no gradient (columns)."""
    found = {tuple(pair.split("~")): value for pair, value in view.findings.correlations.items()}
    rows, columns = (list(dict.fromkeys(pair[i] for pair in found if len(pair) == 2)) for i in (0, 1))
    name = lambda key: view.t(f"measure.{key}") if f"measure.{key}" in view.t else key  # noqa: E731
    cells = [{"name": name(r), "values": [view.n.signed(found.get((r, c)), 2) for c in columns]} for r in rows]
    return {"columns": [name(c) for c in columns], "rows": cells}


def _token(view: View, token: dict[str, Any]) -> dict[str, Any]:
    return {"text": show_piece(token.get("text", "")), "count": view.n.whole(int(token.get("count") or 0)),
            "shift": view.u(token.get("shift_abs_u")),
            "surprise": "—" if token.get("surprise_nats") is None else view.n(token["surprise_nats"])}  # fmt: skip


def _positions(view: View) -> list[dict[str, Any]]:
    bins = view.findings.position_volatility
    top = max((b.get("shift_abs_u") or 0 for b in bins), default=0)
    return [{"bin": _stretch(b), "shift": view.u(b.get("shift_abs_u")), "surprise": view.n(b.get("surprise_nats")),
             "width": round(100 * (b.get("shift_abs_u") or 0) / top, 1)} for b in bins] if top else []  # fmt: skip


def _stretch(entry: dict[str, Any]) -> str:
    first, last = entry.get("position_from"), entry.get("position_to")
    return f"{first}" if first == last else f"{first}–{last}"


def show_piece(text: str) -> str:
    """A token's letters with what cannot be seen made visible."""
    return (
        text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣", 1)
        if text.startswith(" ")
        else text.replace("\n", "↵").replace("\t", "⇥")
    )


def groups(view: View) -> dict[str, Any]:
    """Groups side by side: intervals, verdict counts, a table."""
    shown = view.groups or ([view.whole] if view.whole else [])
    return {
        "chart": charts.intervals([view], "groups", group_panels(view)) if view.groups else None,
        "rows": [_group_row(view, g) for g in ([view.whole] if view.whole and view.groups else []) + shown if g],
        "verdicts": [verdict_stack(view, g) for g in shown],
        "starved": _starved(view),
        "carried": carried(view),
    }


def carried(view: View) -> list[dict[str, Any]]:
    """Whose earlier gradients the steps carried: a line per group with --group-momentum, largest first; then the sum."""
    shares = {name: v for name, v in view.findings.group_carry.items() if name in view.group_names or seen(v)}
    top = max((abs(v) for v in shares.values()), default=0)
    if not top:
        return []
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    lines = [{"name": carrier(view, name), "colour": view.group_colour(name) if name in view.group_names else None,
              "share": view.n.percent(v), "negative": v < 0, "width": round(100 * abs(v) / top, 1)}
             for name, v in ranked]  # fmt: skip
    total = sum(view.findings.group_carry.values())
    return [*lines, {"name": view.t("groups.carried_sum"), "colour": None, "share": view.n.percent(total),
                     "negative": False, "width": 0}]  # fmt: skip


def seen(share: float) -> bool:
    """Whether a share of the momentum that belongs to no group is worth a line."""
    return abs(share) >= 5e-4


def carrier(view: View, name: str) -> str:
    """A group's name, or words for what is carried without belonging to one."""
    named = {"(earlier)": "groups.carried_earlier", "(decay)": "groups.carried_decay", "(changed)": "groups.carried_changed",
             "": "word.none"}  # fmt: skip
    return view.t(named[name]) if name in named else name


def group_panels(view: View) -> list[tuple[str, Callable[[GroupFinding], Interval]]]:
    """What the groups are compared by: title and reading."""
    return [
        (view.t("panel.per_1000"), lambda g: g.shift_abs_u_per_1000_tokens),
        (view.t("panel.learnt"), lambda g: g.learnt_nats),
        (view.t("panel.alignment"), lambda g: g.alignment),
    ]


def _group_row(view: View, g: GroupFinding) -> dict[str, Any]:
    return {
        "name": g.group or view.t("word.all"),
        "whole": not g.group,
        "colour": view.group_colour(g.group),
        "examples": view.n.whole(g.examples),
        "tokens": view.n.whole(g.target_tokens),
        "moved": view.u_sum(g.shift_abs_u),
        "net": view.u_sum(g.shift_net_u),
        "per_1000": view.u(g.shift_abs_u_per_1000_tokens.value),
        "span": view.span(g.shift_abs_u_per_1000_tokens),
        "learnt": view.n(g.learnt_nats.value),
        "rate": view.n(g.nats_per_ku),
        "loss": f"{view.n(g.first_loss_nats)} → {view.n(g.last_loss_nats)}",
        "level": view.n(g.level.value),
        "dispersion": view.n(g.dispersion.value),
        "alignment": view.n.signed(g.alignment.value, 2),
        "fall": " · ".join(f"{p}: {view.n.signed_percent(-fall)}" for p, fall in g.probe_fall.items()) or "—",
    }


def verdict_stack(view: View, g: GroupFinding) -> dict[str, Any]:
    total = sum(g.verdicts.values()) or 1
    parts = [
        {
            "code": name.replace(" ", "-"),
            "name": view.t(f"verdict_name.{name}"),
            "count": view.n.whole(g.verdicts[name]),
            "width": round(100 * g.verdicts[name] / total, 2),
        }
        for name in VERDICTS
        if g.verdicts.get(name)
    ]
    return {"name": g.group or view.t("word.all"), "colour": view.group_colour(g.group), "parts": parts}


def _starved(view: View):
    share = view.findings.starved_examples
    if share.value is None:
        return view.t("groups.starved_unknown")
    parts = view.findings.starved_parts
    null = "" if share.null is None else " " + view.t("groups.starved_null", null=view.n.percent(share.null))
    text = view.t("groups.starved", share=view.strong(view.n.percent(share.value)), null=null)
    return (
        text
        + " "
        + (view.t("groups.starved_parts", parts=", ".join(parts[:8])) if parts else view.t("groups.no_starved_parts"))
    )


def table(view: View) -> dict[str, Any]:
    """Every example as a row; on very large data the ones that moved most."""
    examples = view.findings.examples
    probes = [p.probe for p in view.findings.probes]
    return {
        "columns": _columns(view, probes),
        "rows": [_row(view, e, probes) for e in examples[:MAX_ROWS]],
        "left_out": max(0, len(examples) - MAX_ROWS),
    }


def _columns(view: View, probes: list[str]) -> list[dict[str, Any]]:
    plain = (
        "group",
        "preview",
        "verdict",
        "targets",
        "visits",
        "moved",
        "net",
        "first",
        "last",
        "learnt",
        "level",
        "dispersion",
        "against",
    )
    text = ("group", "preview", "verdict")
    named = [
        {"key": k, "name": view.t(f"column.{k}"), "means": view.t(f"column_means.{k}"), "text": k in text}
        for k in plain
    ]
    credit = [
        {
            "key": f"credit {p}",
            "name": view.t("column.credit", probe=p),
            "means": view.t("column_means.credit", probe=p),
            "text": False,
        }
        for p in probes
    ]
    return named + credit


def _row(view: View, e: ExampleFinding, probes: list[str]) -> dict[str, Any]:
    numbers = [
        e.targets,
        e.visits,
        e.shift_abs_u,
        e.shift_net_u,
        e.first_loss_nats,
        e.last_loss_nats,
        e.learnt_nats,
        e.level,
        e.dispersion,
    ]
    cells = [{"raw": f"{v:.5g}" if v is not None else "", "text": view.n(v)} for v in numbers]
    if e.shift_half_u and e.shift_abs_u is not None:  # scaled up from the steps that were measured
        cells[2]["text"] += f" ± {view.n(e.shift_half_u)}"
    cells.append(
        {"raw": "" if e.against_share is None else f"{e.against_share:.4g}", "text": view.n.percent(e.against_share)}
    )
    for probe in probes:
        value = e.credits_nats.get(probe)
        cells.append({"raw": "" if value is None else f"{value:.4g}", "text": view.n.signed(value, 2)})
    return {
        "id": e.example,
        "group": e.group or "",
        "colour": view.group_colour(e.group),
        "preview": e.preview[:110],
        "rows": ", ".join(map(str, e.rows[:6])),
        "verdict": view.t(f"verdict_name.{e.verdict}"),
        "code": e.verdict.replace(" ", "-"),
        "cells": cells,
    }
