"""What several models say of the same bytes."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, measured, num, pct, plain, tok, unknown, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, (this, *others) = lens["numbers"], lens["tables"]["models"]
    far = max(others, key=lambda r: r["letter_divergence"])
    first = {"first": tok(this["first"]), "p": pct(this["p"]), "second": tok(far["first"]), "p2": pct(far["p"])}
    found = [measured(f"first_{far['alike']}", **first, name=plain(this["name"]), other=plain(far["name"]),
                      apart=num(far["letter_divergence"]))]  # fmt: skip
    found += _bits(n, [this, *others], lens["tables"]["segments"])
    found.append(measured("along", other=plain(far["name"]), offsets=whole(n["offsets"]), mean=num(far["mean_byte_divergence"])))
    if len(others) > 1:
        found.append(measured("agree", same=whole(sum(r["alike"] == "same" for r in others)), others=whole(len(others)),
                              first=tok(this["first"])))  # fmt: skip
    for row in [r for r in others if r["by_token"] is not None][:1]:
        seen = row["by_token"]
        found.append(measured("by_token", other=plain(row["name"]), kl=num(seen["mean_kl_nats"]), same=whole(seen["same_first"]),
                              positions=whole(seen["positions"])))  # fmt: skip
    if n["left_out"]:
        found.append(measured("left_out", names=plain(", ".join(n["left_out"]))))
    return [*found, unknown("why")]


def _bits(n: dict[str, Any], rows: list[dict[str, Any]], segments: list[dict[str, Any]]) -> list[Sentence]:
    """Who needs fewest bits for the same bytes, and where that shows most."""
    if not n["bytes"]:
        return [unknown("no_bytes")]
    best, worst = (choose(rows, key=lambda r: r["bits"]) for choose in (min, max))
    values = {"bytes": whole(n["bytes"]), "least": num(best["bits_per_byte"])}
    if worst["bits"] - best["bits"] < 1e-6 * worst["bits"]:
        return [measured("same_bits", **values)]
    found = [measured("bits", **values, best=plain(best["name"]), worst=plain(worst["name"]), most=num(worst["bits_per_byte"]))]
    i, j = rows.index(best), rows.index(worst)
    apart = max(segments, key=lambda s: abs(s["bits"][i] - s["bits"][j]))
    found.append(measured("apart_at", text=tok(apart["text"]), best=plain(best["name"]), worst=plain(worst["name"]),
                          a=num(apart["bits"][i]), b=num(apart["bits"][j])))  # fmt: skip
    return found
