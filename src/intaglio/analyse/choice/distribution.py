"""What the distribution at the decision says."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, measured, num, pct, tok, unknown, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, candidates = lens["numbers"], lens["tables"]["candidates"]
    target, first = about["target"], candidates[0]
    found = []
    if n["rank"] == 0:
        found.append(measured("likeliest", token=tok(target["text"]), p=pct(n["probability"]), second=tok(candidates[1]["text"]),
                              p2=pct(candidates[1]["probability"]), margin=num(n["margin_logits"])))  # fmt: skip
    else:
        found.append(measured("not_likeliest", token=tok(target["text"]), p=pct(n["probability"]), rank=whole(n["rank"] + 1),
                              first=tok(first["text"]), p1=pct(first["probability"])))  # fmt: skip
    found.append(measured("entropy", surprise=num(n["surprise_nats"]), entropy=num(n["entropy_nats"]),
                          alive=num(n["candidates_alive"])))  # fmt: skip
    found.append(measured("half", half=whole(n["half_at"]), nine=whole(n["nine_tenths_at"]), vocabulary=whole(n["vocabulary"])))
    for row in reversed(lens["tables"].get("company", [])):
        if row["times"]:
            word = row["followed_by"][0]
            found.append(measured("company", ending=tok(row["ending"]), times=whole(row["times"]), word=tok(word["word"]),
                                  most=whole(word["times"])))  # fmt: skip
            break
    else:
        found.append(unknown("no_company" if "company" in lens["tables"] else "no_corpus"))
    return found
