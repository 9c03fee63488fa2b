"""Where a word's two states part, and what lies near the tokens asked about."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, known, measured, num, part, plain, tok, toks, unknown, whole

NAMED = 3


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    way = lens["numbers"]["contexts"]
    parted = _parted(way, lens["tables"]["path"]) if lens["tables"]["path"] else [unknown(way["kind"])]
    return [*parted, _near(lens), *([known("cone"), unknown("senses")] if lens["tables"]["path"] else [])]


def _parted(way: dict[str, Any], rows: list[dict[str, Any]]) -> list[Sentence]:
    lowest, word = rows[way["lowest"]], tok(way["text"].strip())
    values = {"word": word, "start": num(rows[0]["likeness"]), "low": num(lowest["likeness"]), "lowest": part(lowest["after"]),
              "cosine": num(lowest["cosine"]), "null": num(lowest["null"])}  # fmt: skip
    if way["half"] is None:
        said = measured("parts_little", **values)
    else:
        said = measured("parts", **values, half=part(rows[way["half"]]["after"]))
    a, b = (plain((c["before"] + c["word"]).strip()) for c in (way["a"], way["b"]))
    return [
        said, measured(way["kind"], word=word, a=a, b=b),
        measured("goes_on", a=toks(way["goes_on_a"][:NAMED]), b=toks(way["goes_on_b"][:NAMED])),
    ]  # fmt: skip


def _near(lens: dict[str, Any]) -> Sentence:
    n, asked = lens["numbers"], lens["tables"]["asked"][0]
    near = {name: [r for r in lens["tables"]["neighbours"] if r["role"] == asked["role"] and r["matrix"] == name]
            for name in n["null"]}  # fmt: skip
    values = {
        "token": tok(asked["text"]), "near": toks([r["text"] for r in near["input"][:NAMED]]),
        "cosine": num(near["input"][0]["cosine"]), "mean": num(asked["mean_input"]), "null": num(n["null"]["input"]),
    }  # fmt: skip
    if n["tied"]:
        return measured("near_tied", **values)
    out, common = near["output"], whole(asked["common"])
    return measured("near_two", **values, out=toks([r["text"] for r in out[:NAMED]]), out_cosine=num(out[0]["cosine"]),
                    common=common, count=whole(n["neighbours"]))  # fmt: skip
