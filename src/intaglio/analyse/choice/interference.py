"""Who spoke for either token, how much of it cancelled, and what the order of two statements did."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, heuristic, measured, num, part, pct, plain, signed, tok, unknown, whole

LITTLE = 0.1  # logits: an order that changes less is said to change little


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    sides = {"target": tok(n["target"]), "against": tok(n["against"])}
    heads = next(r for r in tables["conflicts"] if r["over"] == "heads")
    cancel = measured("cancel", plus=signed(n["heads_for"]), minus=signed(n["heads_against"]), share=pct(heads["conflict"]),
                      difference=signed(n["difference_logits"]), **sides)  # fmt: skip
    spoke = _strongest(tables["heads"], sides)
    if n["pair"] is None:
        none = measured("no_pair", sentences=whole(n["sentences"]), first=whole(n["name_target"]),
                        second=whole(n["name_against"]), **sides)  # fmt: skip
        return [cancel, *spoke, *_settled(n, tables["layers"], sides), none, unknown("meaning")]
    return [*_order(n, tables, sides), cancel, *spoke, heuristic("contradict", one=plain(n["pair"]["target_text"].strip()),
            other=plain(n["pair"]["against_text"].strip()), **sides)]  # fmt: skip


def _strongest(heads: list[dict[str, Any]], sides: dict[str, Any]) -> list[Sentence]:
    """The strongest head of either side; one side alone where nobody speaks for the other."""
    first = [next((r for r in heads if r["side"] == side), None) for side in sides]
    said = {
        f"{name}_{side}": value for side, r in zip(sides, first) if r is not None
        for name, value in (("address", part(r["address"])), ("vote", signed(r["vote_logits"])), ("source", tok(r["text"])),
                            ("position", whole(r["position"])))
    }  # fmt: skip
    if all(first):
        return [measured("heads_both", **said, **sides)]
    return [measured(f"heads_{side}", **said, **sides) for side, r in zip(sides, first) if r is not None]


def _order(n: dict[str, Any], tables: dict[str, Any], sides: dict[str, Any]) -> list[Sentence]:
    """What exchanging, leaving out and reading the two statements did."""
    pair, runs = n["pair"], {r["run"]: r["difference_logits"] for r in tables["orders"]}
    same = (runs["as_is"] > 0) == (runs["swapped"] > 0)
    size = abs(pair["recency_logits"])
    key = "order_little" if size < LITTLE else "order_later" if pair["recency_logits"] > 0 else "order_earlier"
    turned = sum(r["vote_logits"] * r["swapped_logits"] < 0 for r in tables["heads"])
    heads = measured("heads_follow", shown=whole(len(tables["heads"])), turned=whole(turned), ranks=num(pair["same_heads"]))
    return [
        measured("order_same" if same else "order_turns", now=signed(runs["as_is"]), swapped=signed(runs["swapped"]),
                 winner=sides["target" if runs["as_is"] > 0 else "against"], **sides),
        measured(key, size=num(size), content=signed(pair["content_logits"]), **sides),
        measured("without", now=signed(runs["as_is"]), no_target=signed(runs["no_target"]),
                 no_against=signed(runs["no_against"]), neither=signed(runs["neither"]), **sides),
        measured("read", first=signed(pair["read_target"]), second=signed(pair["read_against"]),
                 elsewhere=signed(pair["read_elsewhere"]), **sides),
        *([heads] if pair["same_heads"] is not None else []),
    ]  # fmt: skip


def _settled(n: dict[str, Any], layers: list[dict[str, Any]], sides: dict[str, Any]) -> list[Sentence]:
    """From which layer on the running sum stays on the side that wins."""
    wins = n["difference_logits"] > 0
    late = [r["layer"] for r in layers if (r["running_logits"] > 0) != wins]
    begin = late[-1] + 1 if late else 0
    if begin >= len(layers):
        return []
    strife = max(layers, key=lambda r: min(r["heads_for"] + max(r["mlp"], 0), -r["heads_against"] - min(r["mlp"], 0)))
    return [measured("settled", layer=whole(begin), winner=sides["target" if wins else "against"],
                     strife=whole(strife["layer"]), up=signed(strife["heads_for"] + max(strife["mlp"], 0.0)),
                     down=signed(strife["heads_against"] + min(strife["mlp"], 0.0)))]  # fmt: skip
