"""What two decisions beside each other say; the lenses `instruction` and `tuning` share it."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, heuristic, measured, num, part, pct, signed, tok, unknown, whole

PARTED_NATS = 0.1  # the layer where two lenses part is the first from which on they never come closer than this


def find_pair(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    """Distance, the change of the choice, the layer where they part, the parts whose votes changed."""
    n, tables = lens["numbers"], lens["tables"]
    target = tok(about["target"]["text"])
    same = n["first_a"] == n["first_b"]
    found = [measured("same_first" if same else "other_first", kl=num(n["kl_nats"]), first=tok(n["first_a"]),
                      second=tok(n["first_b"]), token=target, p=pct(n["p_a"]), p2=pct(n["p_b"]))]  # fmt: skip
    found.append(measured("entropies", a=num(n["entropy_a_nats"]), b=num(n["entropy_b_nats"]),
                          difference=signed(n["difference_a_logits"]), difference2=signed(n["difference_b_logits"])))  # fmt: skip
    if "layers" in tables:
        parted = parted_at(tables["layers"])
        found.append(heuristic("never_part") if parted is None else heuristic("part_at", layer=whole(parted)))
    if "votes" not in tables:
        return [*found, unknown("other_parts")]
    top = tables["votes"][0]
    if not n["changed_logits"]:
        return [*found, measured("same_votes")]
    found.append(measured("vote", address=part(top["address"]), a=signed(top["a_logits"]), b=signed(top["b_logits"]),
                          share=pct(abs(top["change_logits"]) / n["changed_logits"])))  # fmt: skip
    return found


def parted_at(layers: list[dict[str, Any]]) -> int | None:
    """The first state from which on the two logit lenses stay apart; None if they never do for good."""
    parted = None
    for row in reversed(layers):
        if row["kl_nats"] < PARTED_NATS:
            break
        parted = row["layer"]
    return parted
