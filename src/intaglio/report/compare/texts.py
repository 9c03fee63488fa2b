"""The examples that differ most between the runs, token by token, A over B."""

from __future__ import annotations

from typing import Any

from intaglio.findings import ExampleFinding
from intaglio.report.compare.two import Two
from intaglio.report.shift.texts import left_out, strongest, tokens, why
from intaglio.report.view import View

OPEN = 2  # of each list; the rest unfold
LISTS = ("moved", "taught", "forgot", "verdict")


def texts(two: Two) -> dict[str, Any]:
    """Lists of cards; an example's texts stand once, in the first list that names it."""
    different, seen = two.comparison["different"], set()
    lists = [_list(two, name, different.get(name, [])) for name in LISTS] if two.pairs else [
        _strongest(two, side, different.get(f"strongest_{'ab'[side]}", [])) for side in (0, 1)]  # fmt: skip
    for card in (card for found in lists for card in found["cards"]):
        card["again"] = card["id"] in seen
        seen.add(card["id"])
    return {"lists": lists, "open": OPEN, "shared": bool(two.pairs), "scale": two.same_length}


def _list(two: Two, name: str, chosen: list[str]) -> dict[str, Any]:
    sides = [v.by_id for v in two.views]
    cards = [_card(two, name, sides[0][e], sides[1][e]) for e in chosen if e in sides[0] and e in sides[1]]
    roles = {"taught": "target", "forgot": "anchor"}
    probed = name not in roles or all(any(p.role == roles[name] for p in v.findings.probes) for v in two.views)
    note = f"compare.text.{name}_note" if probed or name != "taught" else "compare.text.taught_own_note"
    empty = f"compare.text.{name}_none" if probed or name != "forgot" else "compare.text.forgot_no_anchor"
    return {"title": two.t(f"compare.text.{name}"), "note": two.t(note), "empty": two.t(empty), "cards": cards}


def _strongest(two: Two, side: int, chosen: list[str]) -> dict[str, Any]:
    """Where nothing is shared: what moved this run most, alone."""
    view = two.views[side]
    cards = [_card(two, "moved", *((e, None) if side == 0 else (None, e))) for e in map(view.by_id.get, chosen) if e]
    return {"title": two.t("compare.text.strongest", run=two.run(side)), "note": two.t("texts.moved_note"),
            "empty": two.t("texts.moved_none"), "cards": cards}  # fmt: skip


def _card(two: Two, name: str, a: ExampleFinding | None, b: ExampleFinding | None) -> dict[str, Any]:
    e = a or b
    assert e is not None
    sides = [(v, x) for v, x in zip(two.views, (a, b)) if x is not None]
    found = [v.findings.texts.get(x.example) for v, x in sides]
    top = max((strongest(text) for text in found if text), default=0.0) if two.same_length else None
    return {
        "id": e.example, "group": e.group, "colour": two.views[0].group_colour(e.group), "preview": e.preview,
        "keyname": two.t(f"compare.text.{name}_key"),
        "sides": [_side(v, x, name, top) for v, x in sides],
        "darkest": two.views[0].u(top) if top else "",
    }  # fmt: skip


def _side(view: View, e: ExampleFinding, name: str, top: float | None) -> dict[str, Any]:
    text = view.findings.texts.get(e.example)
    total = view.whole.shift_abs_u.value if view.whole else None
    share = view.n.percent(e.shift_abs_u / total) if e.shift_abs_u is not None and total else view.n.missing
    numbers = [
        (view.t("word.movement"), f"{view.u_within(e.shift_abs_u, e.shift_half_u)} ({share})"),
        (view.t("word.loss"), f"{view.n(e.first_loss_nats)} → {view.n(e.last_loss_nats)}"),
    ] + [(view.t("column.credit", probe=p), view.n.signed(v, 2)) for p, v in e.credits_nats.items()]  # fmt: skip
    return {
        "mark": view.mark, "key": _key(view, e, name, share), "numbers": numbers, "why": why(view, e),
        "verdict": view.t(f"verdict_name.{e.verdict}"), "code": e.verdict.replace(" ", "-"),
        "darkest": view.u(strongest(text)) if text and top is None else "",
        "tokens": tokens(view, text, top) if text else [],
        "cut": left_out(view, text) if text else "", "step": view.n.whole(text.step) if text else "",
    }  # fmt: skip


def _key(view: View, e: ExampleFinding, name: str, share: str) -> str:
    """The number that put the example into this list."""
    if name == "moved":
        return share
    if name == "verdict":
        return view.n(e.last_loss_nats)
    role = "anchor" if name == "forgot" else "target"
    probe = next((p.probe for p in view.findings.probes if p.role == role and p.probe in e.credits_nats), None)
    return view.n.signed(e.credits_nats[probe] if probe else e.learnt_nats, 2)
