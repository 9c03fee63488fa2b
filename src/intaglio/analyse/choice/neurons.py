"""What the strongest neurons at the decision say."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from intaglio.sentences import Sentence, heuristic, known, measured, part, pct, signed, tok, toks, unknown, whole

RARE = 0.02  # share of the reference text on which a neuron fires as strongly as here
NAMED = 3
BYTE = re.compile("(<[0-9a-f]{2}>)+")


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, rows, contexts = lens["numbers"], lens["tables"]["neurons"], lens["tables"]["contexts"]
    first = rows[0]
    up, down = ([x["text"] for x in first[key][:NAMED]] for key in ("promotes", "demotes"))
    found = [
        measured("strongest", address=part(first["address"]), vote=signed(first["vote_logits"]), up=toks(up), down=toks(down)),
        measured("sums", plus=signed(n["for_logits"]), minus=signed(n["against_logits"]), half=whole(n["half"]),
                 neurons=whole(n["neurons"]), share=pct(n["strongest_share"])),
        measured("effect", address=part(first["address"]), effect=signed(first["effect_logits"]),
                 vote=signed(first["vote_logits"])),
    ]  # fmt: skip
    named = [r for r in rows if r["target_rank"] < 10]
    if named:
        found.append(measured("names_target", count=whole(len(named)), neurons=whole(len(rows)),
                              token=tok(about["target"]["text"])))  # fmt: skip
    rare = [r for r in rows if r["as_strong"] <= RARE]
    found.append(measured("rare", count=whole(len(rare)), neurons=whole(len(rows)), share=pct(RARE),
                          reference=whole(n["reference"])))  # fmt: skip
    found += _pattern(rows, contexts)
    return [*found, known("memories"), unknown("more_text", reference=whole(n["reference"]))]


def _is_word(text: str) -> bool:
    """Whether it has a letter; a token that is part of a letter is written as its byte, <d0>."""
    return any(c.isalpha() for c in text) and not BYTE.fullmatch(text)


def _pattern(rows: list[dict[str, Any]], contexts: list[dict[str, Any]]) -> list[Sentence]:
    """The first neuron that fires most often on one token."""
    for row in rows:
        own = [c for c in contexts if c["address"] == row["address"]]
        for key, field in (("fires_on", "token"), ("fires_before", "next")):
            word, times = Counter(c[field].strip().lower() for c in own).most_common(1)[0] if own else ("", 0)
            if times >= 3 and _is_word(word):
                return [heuristic(key, address=part(row["address"]), token=tok(word), times=whole(times), places=whole(len(own)))]
    return []
