"""What self-attention at the decision says."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, heuristic, known, measured, num, part, pct, signed, tok, unknown, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, heads, matched = lens["numbers"], lens["tables"]["heads"], lens["tables"]["matched"]
    first = heads[0]
    read = first["read"][0]
    found = [measured("strongest", address=part(first["address"]), vote=signed(first["vote_logits"]), source=tok(read["text"]),
                      position=whole(read["position"]), read=signed(read["vote_logits"]))]  # fmt: skip
    found.append(measured("sums", plus=signed(n["for_logits"]), minus=signed(n["against_logits"]), half=whole(n["half"]),
                          heads=whole(n["heads"])))  # fmt: skip
    if matched:
        found.append(_matched(matched[0]))
    else:
        found.append(unknown("not_traced", family=tok(about["family"])))
    if n["copying"]:
        target = tok(about["target"]["text"])
        found.append(heuristic("copying", copying=whole(n["copying"]), voting=whole(n["voting_for"]), token=target))
    found += _sink(n)
    found.append(measured("elsewhere", elsewhere=whole(n["elsewhere"]), heads=whole(n["heads"])))
    if n["nowhere_mean"] is not None:
        found.append(measured("nowhere", share=pct(n["nowhere_mean"])))
    return found


def _matched(row: dict[str, Any]) -> Sentence:
    query, key = row["query"]["parts"][0], row["key"]["parts"][0]
    more = row["difference"] > 0
    return measured(
        "matched" if more else "matched_less", address=part(row["address"]), source=tok(row["source"]["text"]),
        rival=tok(row["rival"]["text"]), position=whole(row["source"]["position"]),
        other=whole(row["rival"]["position"]), ratio=num(row["ratio"] if more else 1 / max(row["ratio"], 1e-12)),
        difference=signed(row["difference"]),
        by_query=part(query["address"]), query_score=signed(query["score"]), by_key=part(key["address"]),
        key_score=signed(key["score"]),
    )  # fmt: skip


def _sink(n: dict[str, Any]) -> list[Sentence]:
    values = dict(most=whole(n["first_most"]), heads=whole(n["heads"]), mean=pct(n["first_mean"]), even=pct(n["even"]),
                  share=pct(n["first_vote_share"]))  # fmt: skip
    if 2 * n["first_most"] > n["heads"]:
        return [measured("sink", **values), known("sink_known")]
    return [measured("no_sink", **values)]
