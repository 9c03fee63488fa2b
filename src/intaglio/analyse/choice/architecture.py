"""How many heads, layers and coordinates this choice needs, and what other models say."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, measured, part, pct, plain, signed, tok, unknown, whole
from intaglio.trace import by_order

Row = dict[str, Any]


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    lines = by_order(tables["heads"])
    return [
        _groups(n, lines), *_random(n, lines), _together(n, lines["strong"]), _skipped(n, tables["layers"]),
        _exit(n, tables["layers"]), *_narrow(n, tables), _models(n, tables["models"]),
    ]  # fmt: skip


def broken_at(rows: list[Row]) -> int | None:
    """Index of the first row with another first choice."""
    return next((i for i, r in enumerate(rows) if r["first_changed"]), None)


def enough_from(rows: list[Row]) -> Row | None:
    """The first row from which on the first choice is what it was; rows go from few to many."""
    found = None
    for row in reversed(rows):
        if row["first_changed"]:
            break
        found = row
    return found


def _groups(n: Row, lines: dict[str, list[Row]]) -> Sentence:
    weak, strong = (broken_at(lines[name]) for name in ("weak", "strong"))
    heads, first = whole(n["heads"]), tok(n["first"])
    if weak is None or strong is None:  # then the last row, without any head, still holds
        return measured("heads_never", heads=heads, first=first)
    last, broken = lines["weak"][weak], lines["strong"][strong]
    strongest = dict(broken=whole(broken["removed"]), other=tok(broken["first"]), heads=heads, first=first)
    if weak == 0:
        return measured("heads_fragile", weak=whole(last["removed"]), turned=tok(last["first"]), **strongest)
    held = lines["weak"][weak - 1]
    return measured("heads", held=whole(held["removed"]), p=pct(held["probability"]), weak=whole(last["removed"]), **strongest)


def _random(n: Row, lines: dict[str, list[Row]]) -> list[Sentence]:
    held = []
    for name, rows in lines.items():
        if name.startswith("random"):
            at = broken_at(rows)
            held.append(rows[-1]["removed"] if at is None else rows[at - 1]["removed"] if at else 0)
    return [measured("random", draws=whole(len(held)), least=whole(min(held)), most=whole(max(held)))] if held else []


def _together(n: Row, strong: list[Row]) -> Sentence:
    if n["order_by"] != "measured":
        return unknown("estimated")
    row = strong[broken_at(strong) or 0]
    row = strong[1] if row["removed"] == 1 and len(strong) > 1 else row  # one head alone is its own sum
    joint = n["difference_logits"] - row["difference_logits"]
    key = "covered" if abs(joint) > abs(row["singles_logits"]) else "redundant"
    return measured(key, k=whole(row["removed"]), singles=signed(row["singles_logits"]), joint=signed(joint))


def _skipped(n: Row, layers: list[Row]) -> Sentence:
    worst = min(layers, key=lambda r: r["probability"])
    spared = sum(not r["first_changed"] for r in layers)
    return measured("layers", layer=part(f"L{worst['layer']}"), p=pct(worst["probability"]), was=pct(n["probability"]),
                    other=tok(worst["first"]), spared=whole(spared), layers=whole(n["layers"]))  # fmt: skip


def _exit(n: Row, layers: list[Row]) -> Sentence:
    needed = n["exit"]
    if needed < 2:
        return measured("exit_soon", first=tok(n["first"]), needed=whole(needed), layers=whole(n["layers"]))
    before = layers[needed - 2]
    key = "exit_last" if needed == n["layers"] else "exit"
    return measured(key, first=tok(n["first"]), needed=whole(needed), layers=whole(n["layers"]), other=tok(before["exit_first"]),
                    cut=whole(n["layers"] - needed))  # fmt: skip


def _narrow(n: Row, tables: dict[str, list[Row]]) -> list[Sentence]:
    kept = enough_from([r for r in tables["width"] if r["order"] == "strong"])
    count = whole(n["coordinates"] if kept is None else kept["kept"])
    values = dict(kept=count, coordinates=whole(n["coordinates"]), first=tok(n["first"]))
    if n["neurons"] is None:
        return [measured("width", **values)]
    neurons = enough_from(tables["neurons"])
    return [measured("width_neurons", **values, few=whole(n["neurons"] if neurons is None else neurons["kept"]),
                     neurons=whole(n["neurons"]))]  # fmt: skip


def _models(n: Row, models: list[Row]) -> Sentence:
    if not models:
        return unknown("no_models")
    own, others = models[0], models[1:]
    same = sum(m["first"] == own["first"] for m in others)
    surest = max(models, key=lambda m: m["probability"] or 0.0)
    return measured("models", count=whole(len(others)), same=whole(same), first=tok(own["first"]), name=plain(surest["name"]),
                    p=pct(surest["probability"]))  # fmt: skip
