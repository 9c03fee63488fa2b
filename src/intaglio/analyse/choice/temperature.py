"""What temperature does to this choice, and what it cannot do."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, known, measured, num, pct, tok, unknown, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, odds = lens["numbers"], lens["tables"]["odds"]
    cold, hot = lens["tables"]["grid"][0], lens["tables"]["grid"][-1]
    found = []
    if n["rest_overtakes"] is None:
        found.append(measured("no_rest", token=tok(n["first"]), second=tok(n["second"])))
    elif n["rest_overtakes"] < 1:
        found.append(measured("rest_already", token=tok(n["first"]), t=num(n["rest_overtakes"])))
    else:
        found.append(measured("rest", token=tok(n["first"]), t=num(n["rest_overtakes"])))
    for pair in odds:
        if not pair["gap_logits"]:
            found.append(measured("even", behind=tok(pair["behind"]), ahead=tok(pair["ahead"])))
            continue
        levels = {round(100 * r["level"]): r["temperature"] for r in pair["levels"]}
        found.append(measured("odds", behind=tok(pair["behind"]), ahead=tok(pair["ahead"]), odds=pct(pair["odds"]),
                              tenth=num(levels[10]), half=num(levels[50])))  # fmt: skip
    if n["same_order"]:
        found.append(measured("order"))
    if about["target"]["rank"]:
        found.append(known("never_first", token=tok(about["target"]["text"]), first=tok(n["first"])))
    found.append(measured("entropy", entropy=num(n["entropy_nats"]), most=num(n["most_entropy_nats"]),
                          cold=num(cold["entropy_nats"]), tcold=num(cold["temperature"]), hot=num(hot["entropy_nats"]),
                          thot=num(hot["temperature"])))  # fmt: skip
    found.append(measured("steepest", t=num(n["steepest"])))
    if n["tail_overtakes"] is not None:
        found.append(measured("tail", few=whole(n["few"]), t=num(n["tail_overtakes"])))
    found.append(unknown("trained"))
    return found
