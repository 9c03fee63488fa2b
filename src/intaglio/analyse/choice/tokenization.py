"""What the ways to write a word do to the choice, where its pieces become one word, what writing costs."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, Shown, known, measured, num, part, pct, tok, unknown, whole

SLIGHT = 0.01  # nats: a swap that changes less does nothing


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    return [
        _ways(n, tables["ways"], about), *_likely(n, tables["ways"]), *_merged(n["merging"], tables),
        *_swap(n["merging"], tables["swap"]), *_writing(tables["writing"]), known("detokenization"),
    ]  # fmt: skip


def _way(tokens: list[str]) -> Shown:
    """Tokens in a row, a bar between them."""
    return tok("|".join(tokens))


def _ways(n: dict[str, Any], rows: list[dict[str, Any]], about: dict[str, Any]) -> Sentence:
    own = next(r for r in rows if r["own"])
    values = {"word": tok(n["word"].strip()), "own": _way(own["tokens"])}
    if len(rows) < 2:
        return measured("one_way", **values)
    low, high = (pick(rows, key=lambda r: r["p"]) for pick in (min, max))
    changed = sum(r["first_changed"] for r in rows)
    return measured("ways", **values, ways=whole(n["ways"]), run=whole(n["run"]), token=tok(about["target"]["text"]),
                    p=pct(own["p"]), low=pct(low["p"]), low_way=_way(low["tokens"]), high=pct(high["p"]),
                    high_way=_way(high["tokens"]), changed=whole(changed))  # fmt: skip


def _likely(n: dict[str, Any], rows: list[dict[str, Any]]) -> list[Sentence]:
    if len(rows) < 2:
        return []
    if n["own_rank"] is None:
        return [unknown("no_before")]
    if n["own_rank"] == 0:
        return [measured("likeliest", share=pct(n["own_share"]), run=whole(n["run"]))]
    best = max(rows, key=lambda r: r["log_p"])
    return [measured("likelier", share=pct(n["own_share"]), best=_way(best["tokens"]), best_share=pct(best["share"]),
                     before=whole(n["own_rank"]))]  # fmt: skip


def _merged(merging: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> list[Sentence]:
    if "why_not" in merging:
        return [unknown(merging["why_not"])]
    if merging["whole"] is None:
        row = tables["attention"][merging["most"]]
        return [measured("looks", pieces=_way(merging["tokens"]), layer=part(f"L{row['layer']}"), share=pct(row["attention"]),
                         even=pct(merging["even"]))]  # fmt: skip
    rows = tables["merging"]
    best = rows[merging["best"]]
    values = {"pieces": _way(merging["tokens"]), "whole": tok(merging["whole"]), "best": part(best["after"]),
              "cosine": num(best["pieces"]), "alone": num(best["alone"])}  # fmt: skip
    if merging["one_word"] is None:
        return [measured("not_merged", **values)]
    return [measured("merged", **values, after=part(rows[merging["one_word"]]["after"]))]


def _swap(merging: dict[str, Any], rows: list[dict[str, Any]]) -> list[Sentence]:
    if "why_not" in merging:
        return []
    swap = merging["swap"]
    if "why_not" in swap:
        return [unknown(swap["why_not"])]
    values = {"earlier": _way(merging["tokens"][:-1]), "kl": num(rows[0]["kl_nats"])}
    if rows[0]["kl_nats"] < SLIGHT:
        return [measured("no_matter", **values)]
    if swap["over"] is None:
        return [measured("to_the_end", **values, last=part(f"L{swap['last_tested']}"))]
    return [measured("over", **values, layer=part(f"L{swap['over']}"))]


def _writing(rows: list[dict[str, Any]]) -> list[Sentence]:
    by = {r["text"]: r["tokens"] / r["words"] for r in rows if r["words"]}
    prompt = next(r for r in rows if r["text"] == "prompt")
    values = {"prompt": num(by.get("prompt")), "parts": whole(prompt["parts"]), "tokens": whole(prompt["tokens"])}
    if {"english", "russian"} <= by.keys():
        return [measured("writing", **values, english=num(by["english"]), russian=num(by["russian"]))]
    return [measured("writing_here", **values)]
