"""What the vote ledger says beyond its lines."""

from __future__ import annotations

import math
from typing import Any

from intaglio.sentences import Sentence, heuristic, measured, num, part, pct, signed, tok, unknown, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n = lens["numbers"]
    found = [measured("kinds", attn=signed(n["attn_logits"]), mlp=signed(n["mlp_logits"]), embed=signed(n["embed_logits"]),
                      bias=signed(n["bias_logits"]), difference=signed(n["difference_logits"]))]  # fmt: skip
    found.append(measured("cancels", plus=signed(n["for_logits"]), minus=signed(n["against_logits"]),
                          left=pct(abs(n["difference_logits"]) / (n["for_logits"] - n["against_logits"]))))  # fmt: skip
    if about["against"] is not None:
        odds = math.exp(min(abs(n["difference_logits"]), 700))
        ahead, behind = about["target"]["text"], about["against"]["text"]
        if n["difference_logits"] < 0:
            ahead, behind = behind, ahead
        found.append(measured("odds", ahead=tok(ahead), behind=tok(behind), odds=num(odds)))
    last = max(lens["tables"]["layers"], key=lambda r: abs(r["attn_logits"] + r["mlp_logits"]))
    found.append(measured("layer", layer=whole(last["layer"]), vote=signed(last["attn_logits"] + last["mlp_logits"])))
    if "booked" not in lens["tables"]:
        return [*found, unknown("no_effects")]
    if n["agreement"] is not None:
        found.append(measured("agreement", correlation=num(n["agreement"]), effects=whole(n["effects"])))
    if n["repaired_logits"] is not None:
        repaired = n["repaired_logits"]
        found.append(heuristic("repaired" if repaired > 0 else "amplified", share=pct(abs(repaired))))
    top = lens["tables"]["booked"][0]
    if top["terms"]:
        found.append(measured("through", address=part(top["address"]), through=part(top["terms"][0]["part"]),
                              change=signed(top["terms"][0]["change_logits"])))  # fmt: skip
    return found
