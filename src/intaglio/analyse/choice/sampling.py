"""What the setting of the sampler decides here."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, Shown, known, measured, num, pct, plain, tok, unknown, whole

NEARLY = 0.99  # top-p


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    by = {(r["name"], r["top_k"], r["top_p"], r["min_p"]): r for r in tables["survivors"]}
    nine, small = by["top_p", 0, 0.9, 0.0], by["min_p", 0, 1.0, 0.1]
    found = [measured("kept", nine=whole(nine["kept"]), small=whole(small["kept"]), vocabulary=whole(n["vocabulary"]),
                      fifty=pct(by["top_k", 50, 1.0, 0.0]["mass"]))]  # fmt: skip
    target = next(r for r in tables["thresholds"] if r["token"] == about["target"]["token"])
    found.append(_survives(target))
    found += _penalty(n)
    if "texts" not in tables:
        return [*found, unknown("no_room")]
    drawn = [r for r in tables["texts"] if r["draw"]]
    same = sum(r["tokens"][0] == about["target"]["token"] for r in drawn)
    found.append(measured("drawn", texts=whole(len(drawn)), same=whole(same), token=tok(about["target"]["text"]),
                          distinct=whole(len({tuple(r["tokens"]) for r in drawn})), steps=whole(n["steps"])))  # fmt: skip
    key = "beam_same" if n["beam_same"] else "beam_other"
    found.append(measured(key, width=whole(n["width"]), steps=whole(n["beam_steps"]), text=text(n["beam_text"]),
                          nats=num(n["beam_nats"]), greedy=text(n["greedy_text"]),
                          greedy_nats=num(n["greedy_nats"])))  # fmt: skip
    found.append(measured("contrast_same" if n["contrast_same"] else "contrast_other", token=tok(n["contrast_first"]),
                          first=tok(n["first"]), k=whole(n["k"]), alpha=num(n["alpha"]),
                          text=text(n["contrast_text"])))  # fmt: skip
    own = [r for r in tables["survivors"] if r["name"] == "shipped"]
    found += [measured("shipped", kept=whole(r["kept"]), token=tok(r["first_text"])) for r in own]
    return [*found, unknown("better")]


def _survives(target: dict[str, Any]) -> Sentence:
    """The weakest cuts that leave the token out; a top-p so near 1 that three digits would round it is told by what it lacks."""
    if target["top_k"] == 1:
        return measured("survives_first", token=tok(target["text"]))
    values = {"token": tok(target["text"]), "k": whole(target["top_k"]), "m": num(target["min_p"])}
    if target["top_p"] > NEARLY:
        return measured("survives_tail", **values, left=num(1 - target["top_p"]))
    return measured("survives", **values, p=num(target["top_p"]))


def _penalty(n: dict[str, Any]) -> list[Sentence]:
    if not n["first_seen"]:
        return [measured("penalty_none", token=tok(n["first"]))]
    if n["flip_penalty"] is None:
        return [measured("penalty_never", token=tok(n["first"]))]
    return [
        measured("penalty_flip", token=tok(n["first"]), penalty=num(n["flip_penalty"]), other=tok(n["flip_text"])),
        known("penalty_sign"),
    ]


def text(written: str) -> Shown:
    """Several tokens as a reader would see them."""
    return plain(written.strip().replace("\n", "⏎"))
