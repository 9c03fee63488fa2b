"""What a second model does otherwise."""

from __future__ import annotations

from typing import Any

from intaglio.analyse.choice.pairs import find_pair
from intaglio.sentences import Sentence, measured, num, tok, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    rows = lens["tables"]["tokens"]
    apart = max(rows, key=lambda r: r["kl_nats"])
    moved = max(rows, key=lambda r: abs(r["rank_a"] - r["rank_b"]))
    found = find_pair(lens, about)
    found.insert(1, measured("along", mean=num(lens["numbers"]["mean_kl_nats"]), tokens=whole(len(rows)),
                             most=num(apart["kl_nats"]), after=tok(apart["text"])))  # fmt: skip
    if moved["rank_a"] != moved["rank_b"]:
        found.append(measured("rank", token=tok(moved["next"]), after=tok(moved["text"]), a=whole(moved["rank_a"]),
                              b=whole(moved["rank_b"])))  # fmt: skip
    return found
