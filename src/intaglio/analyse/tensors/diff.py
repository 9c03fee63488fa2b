"""What the difference of two checkpoints says: how far, where, of what rank, and what stayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from intaglio.sentences import (
    Sentence,
    fine,
    heuristic,
    known,
    measured,
    num,
    part,
    parts,
    pct,
    plain,
    toks,
    unknown,
    whole,
)

Row = Mapping[str, Any]
FEW = 0.1  # an effective rank below this share of the largest possible is worth a sentence
STAND_OUT = 6.0  # robust deviations (1.48 times the median's own) above the median, and a quarter of it: a head stands out
NAMED = 6
CHANCE = 0.05  # of naming a token for a random direction: the null is a 95th percentile


def find(about: Row, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Sentence]]:
    """Sentences by section: answer (how far, where, what stayed), rank, tokens, limits.

    Args:
        about, rows: of a `Difference`.
    """
    tensors = rows["tensors"]
    return {
        "answer": [_how_far(about), _where(about, rows), _still(about, tensors)],
        "rank": _rank(about, tensors) + _turned(tensors) + _directions(rows.get("directions", ())),
        "tokens": _tokens(rows["tokens"]),
        "limits": _limits(about, rows),
    }


def _how_far(about: Row) -> Sentence:
    if not about["changed"]:
        return measured("same", tensors=whole(about["n_tensors"]), numbers=num(about["numbers"]))
    return measured(
        "how_far", changed=num(about["changed"]), numbers=num(about["numbers"]), share=fine(about["changed"] / about["numbers"]),
        relative=fine(about["relative"]), angle=num(about["angle_deg"]),
    )  # fmt: skip


def _where(about: Row, rows: Mapping[str, Sequence[Row]]) -> Sentence:
    if not about["changed"]:
        return measured("nowhere")
    tensors = [r for r in rows["tensors"] if r["relative"]]
    total = sum(r["moved_l2"] ** 2 for r in rows["tensors"] if r["moved_l2"] is not None) or 1.0
    far = max(tensors, key=lambda r: r["relative"], default=None)
    if far is None:
        return measured("from_zero")
    half = _half([r["moved_l2"] ** 2 for r in tensors])
    values = dict(tensor=part(far["tensor"]), relative=fine(far["relative"]), share=pct(far["moved_l2"] ** 2 / total),
                  middle=fine(median(r["relative"] for r in tensors)), half=whole(half), tensors=whole(len(tensors)))  # fmt: skip
    heads = [r for r in rows["heads"] if r["relative"]]
    if not heads:
        return measured("where", **values)
    head = max(heads, key=lambda r: r["relative"])
    usual = median(r["relative"] for r in heads)
    spread = 1.48 * median(abs(r["relative"] - usual) for r in heads)
    out = sum(r["relative"] > max(1.25 * usual, usual + STAND_OUT * spread) for r in heads)
    values |= dict(head=part(head["address"]), moved=fine(head["relative"]), usual=fine(usual))
    if out == 0 or len(heads) < 3:
        return measured("where_heads", **values)
    return measured("where_head", **values, out=whole(out), heads=whole(len(heads)))


def _half(squares: Sequence[float]) -> int:
    """How few of them make up half of the sum."""
    total, held = sum(squares), 0.0
    for count, value in enumerate(sorted(squares, reverse=True), 1):
        held += value
        if held >= total / 2:
            return count
    return len(squares)


def _still(about: Row, tensors: Sequence[Row]) -> Sentence:
    still = [r for r in tensors if r["changed"] == 0]
    if len(still) == len(tensors):
        return measured("still_all", tensors=whole(len(tensors)))
    if not still:
        return measured("still_none", tensors=whole(len(tensors)))
    layers = whole_layers(tensors)
    numbers = sum(r["numbers"] for r in still)
    values = dict(still=whole(len(still)), tensors=whole(len(tensors)), share=pct(numbers / about["numbers"]))
    if layers:
        return measured("still_layers", **values, layers=plain(ranges(layers)))
    return measured("still", **values, names=parts([r["tensor"] for r in still[:3]]))


def whole_layers(tensors: Sequence[Row]) -> list[int]:
    """Layers of which no number moved."""
    moved = {r["layer"] for r in tensors if r["changed"]}
    return sorted({r["layer"] for r in tensors if r["layer"] is not None} - moved)


def ranges(numbers: Sequence[int]) -> str:
    """0-3, 7, 9-12."""
    found: list[list[int]] = []
    for n in numbers:
        if found and found[-1][1] == n - 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ", ".join(f"{a}–{b}" if b > a else str(a) for a, b in found)


def _rank(about: Row, tensors: Sequence[Row]) -> list[Sentence]:
    ranked = [r for r in tensors if r.get("rank") is not None]
    if not about["spectra"]:
        return [unknown("rank_not_asked")]
    if not ranked:
        return []
    shares = [r["rank"] / min(r["shape"]) for r in ranked]
    low = min(ranked, key=lambda r: r["rank"] / min(r["shape"]))
    values = dict(tensor=part(low["tensor"]), rank=num(low["rank"]), full=whole(min(low["shape"])), middle=pct(median(shares)),
                  tensors=whole(len(ranked)), top=pct(low["top_share"]))  # fmt: skip
    few = sum(s < FEW for s in shares)
    found = [measured("rank_few" if few else "rank_full", **values, few=whole(few))]
    if few == 0 and median(shares) > 0.5:
        found.append(heuristic("rank_noise"))
    sampled = sum(not r["exact"] for r in ranked)
    if sampled:
        found.append(measured("rank_sampled", sampled=whole(sampled)))
    return found


def _turned(tensors: Sequence[Row]) -> list[Sentence]:
    turned = [r for r in tensors if r.get("shared_left") is not None]
    if not turned:
        return []
    far = min(turned, key=lambda r: min(r["shared_left"], r["shared_right"]))
    k = far["turned_k"]
    return [measured(
        "turned", tensor=part(far["tensor"]), k=whole(k), left=num(far["turned_left_deg"]), right=num(far["turned_right_deg"]),
        shared=pct(min(far["shared_left"], far["shared_right"])), gap=pct(far["gap"]),
        middle=pct(median(min(r["shared_left"], r["shared_right"]) for r in turned)),
    )]  # fmt: skip


def _directions(rows: Sequence[Row]) -> list[Sentence]:
    if not rows:
        return []
    named = [r for r in rows if r["towards"] or r["away"]]
    values = dict(named=whole(len(named)), looked=whole(len(rows)), expected=num(CHANCE * len(rows)))
    if not named:
        return [measured("directions_none", **values)]
    best = max(named, key=lambda r: max((x["cosine"] for x in r["towards"]), default=0))
    words = toks([x["text"] for x in best["towards"][:4]])
    return [measured(f"directions_{best['side']}", **values, tensor=part(best["tensor"]), share=pct(best["share"]), words=words,
                     null=num(best["null"]))]  # fmt: skip


def _tokens(rows: Sequence[Row]) -> list[Sentence]:
    found = []
    for name in dict.fromkeys(r["tensor"] for r in rows):
        mine = [r for r in rows if r["tensor"] == name]
        words = toks([r["text"] if r["text"] is not None else f"#{r['token']}" for r in mine[:NAMED]])
        found.append(measured("tokens", tensor=part(name), moved=whole(mine[0]["rows_moved"]), rows=whole(mine[0]["rows"]),
                              share=pct(mine[0]["rows_moved"] / mine[0]["rows"]), words=words))  # fmt: skip
    return found or [measured("tokens_none")]


def _limits(about: Row, rows: Mapping[str, Sequence[Row]]) -> list[Sentence]:
    found = []
    if about["dtypes"] != about["other_dtypes"] and not about["adapter"]:
        found.append(known("dtypes", before=plain(", ".join(about["dtypes"])), after=plain(", ".join(about["other_dtypes"]))))
    if about["adapter"]:
        found.append(measured("adapter"))
    if about["nonfinite"]:
        found.append(measured("nonfinite", tensors=whole(len(about["nonfinite"])), name=part(about["nonfinite"][0])))
    if about["heads_unknown"]:
        found.append(unknown("heads_unknown", why=plain(about["heads_unknown"])))
    if any(r["shared_with"] for r in rows["heads"]):
        found.append(known("shared"))
    return found


def levels(values: Sequence[float | None], count: int = 7) -> tuple[list[int | None], list[float]]:
    """Steps of a logarithmic scale: 0 for what did not move, 1 to `count` for the rest, and the steps' lower ends.

    Args:
        values: relative movements; None where there is none (a part that was all zero before).
    """
    moved = sorted(v for v in values if v)
    if not moved:
        return [None if v is None else 0 for v in values], []
    high = moved[-1]
    low = max(moved[0], high * 1e-4)  # what is far smaller falls into the first step
    span = math.log(high / low)
    if span < 1e-6:
        return [None if v is None else (count if v else 0) for v in values], [high]

    def level(v: float) -> int:
        return 1 + min(count - 1, max(0, int(count * math.log(v / low) / span))) if v > low else 1

    ends = [low * math.exp(span * i / count) for i in range(count)]
    return [None if v is None else (level(v) if v else 0) for v in values], ends
