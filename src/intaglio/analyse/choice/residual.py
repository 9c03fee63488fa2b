"""What the residual stream at the decision says."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, known, measured, num, part, pct, signed, tok, whole

LARGE = 0.05  # share of the squared length in one coordinate that is worth a sentence


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, rows, pairs = lens["numbers"], lens["tables"]["writes"], lens["tables"]["pairs"]
    gross = n["plus_logits"] - n["minus_logits"]
    longest = max(rows, key=lambda r: r["length"])
    loudest = max(rows, key=lambda r: abs(r["vote_logits"]))
    found = [
        measured("votes_cancel", plus=signed(n["plus_logits"]), minus=signed(n["minus_logits"]),
                 left=pct(abs(n["plus_logits"] + n["minus_logits"]) / gross if gross else 0.0)),
        measured("longest" if longest["address"] != loudest["address"] else "longest_loudest", address=part(longest["address"]),
                 length=num(longest["length"]), share=pct(longest["share"]), vote=signed(longest["vote_logits"]),
                 loudest=part(loudest["address"]), loud=signed(loudest["vote_logits"]), loud_length=num(loudest["length"])),
        measured("lengths", written=num(n["written"]), length=num(n["length"]), orthogonal=num(n["orthogonal"])),
    ]  # fmt: skip
    against, together = min(pairs, key=lambda p: p["share"]), max(pairs, key=lambda p: p["share"])
    if together["share"] > 0:
        found.append(measured("together", first=part(together["first"]), second=part(together["second"]),
                              cosine=signed(together["cosine"]), share=pct(together["share"])))  # fmt: skip
    if against["share"] < 0:
        found.append(measured("opposed", first=part(against["first"]), second=part(against["second"]),
                              cosine=signed(against["cosine"]), share=pct(-against["share"])))  # fmt: skip
    erasers = [r for r in rows if r["cos_before"] is not None and r["cos_before"] < -0.3]
    if erasers:
        most = min(erasers, key=lambda r: r["cos_before"])
        found.append(measured("erases", count=whole(len(erasers)), writes=whole(len(rows) - 1), address=part(most["address"]),
                              cosine=signed(most["cos_before"])))  # fmt: skip
    return found + _gain(n)


def _gain(n: dict[str, Any]) -> list[Sentence]:
    found = [
        measured("gain", least=num(n["gain_least"]), median=num(n["gain_median"]), most=num(n["gain_most"]),
                 turn=num(n["turn_degrees"]), negative=whole(n["gain_negative"]), coordinates=whole(n["coordinates"])),
        measured("even_same" if n["even_same"] else "even_other", top=tok(n["even_top"]), even=signed(n["even_difference"]),
                 difference=signed(n["difference"])),
        measured("spread", half=whole(n["half"]), coordinates=whole(n["coordinates"])),
    ]  # fmt: skip
    if n["largest_before"] > LARGE:
        found += [measured("large", coordinate=whole(n["largest"]), before=pct(n["largest_before"]),
                           after=pct(n["largest_after"]), gain=signed(n["largest_gain"])),
                  known("large_known")]  # fmt: skip
    return found
