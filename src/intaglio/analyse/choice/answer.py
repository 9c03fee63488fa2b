"""The answer to "why this token?" in three sentences, from the votes and the measured effects."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, measured, part, pct, plain, signed, tok, unknown, whole
from intaglio.trace import TraceData


def whole_parts(votes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per part: its vote, its effect, the source that gave most of it; strongest vote first."""
    found: dict[str, dict[str, Any]] = {}
    for row in votes:
        known = found.setdefault(row["address"], {**row, "vote_logits": row["part_logits"], "best": None})
        if row["source"] is not None and (known["best"] is None or abs(row["vote_logits"]) > abs(known["best"]["vote_logits"])):
            known["best"] = row
    return sorted(found.values(), key=lambda r: -abs(r["part_logits"]))


def half_of(rows: list[dict[str, Any]]) -> int:
    """How many parts, strongest first, carry half of all that was put on the scales, whichever side."""
    total, running = sum(abs(r["part_logits"]) for r in rows), 0.0
    for count, row in enumerate(rows, 1):
        running += abs(row["part_logits"])
        if running >= total / 2:
            return count
    return len(rows)


def answer(trace: TraceData) -> list[Sentence]:
    """Three sentences: what was chosen, who voted for it, what happens without them."""
    about, rows = trace.about, whole_parts(trace.rows["votes"])
    return [_chosen(trace), _voted(about, rows), _without(trace, rows)]


def _chosen(trace: TraceData) -> Sentence:
    target, second = trace.about["target"], trace.rows["candidates"][1]
    if target["rank"] == 0:
        return measured("chosen", token=tok(target["text"]), p=pct(target["probability"]), second=tok(second["text"]),
                        p2=pct(second["probability"]))  # fmt: skip
    first = trace.rows["candidates"][0]
    return measured("asked", token=tok(target["text"]), p=pct(target["probability"]), rank=whole(target["rank"] + 1),
                    first=tok(first["text"]), p1=pct(first["probability"]))  # fmt: skip


def _voted(about: dict[str, Any], rows: list[dict[str, Any]]) -> Sentence:
    lead, half = about["difference_logits"], half_of(rows)
    voters = [r for r in rows if r["part_logits"] * lead > 0] or rows
    best = voters[0]
    values = dict(
        difference=signed(lead), address=part(best["address"]), vote=signed(best["part_logits"]), half=whole(half),
        parts=whole(len(rows)),
    )  # fmt: skip
    if about["against"] is not None:
        values["other"] = tok(about["against"]["text"])
    key = ("voted" if best["best"] is None else "voted_reading") + ("" if about["against"] is not None else "_mean")
    if best["best"] is not None:
        values["source"] = tok(best["best"]["token"])
    return measured(key, **values)


def _without(trace: TraceData, rows: list[dict[str, Any]]) -> Sentence:
    effects = [r for r in trace.rows.get("effects", []) if r["ablation"] == "mean"]
    if not effects:
        return unknown("not_replaced")
    metric = trace.about.get("metric")
    if metric is not None:
        strongest = max(effects, key=lambda r: abs(r["metric"]))
        return measured("without_metric", address=part(strongest["address"]), metric=plain(metric["name"]),
                        effect=signed(strongest["metric"]), value=signed(metric["value"]), run=whole(len(effects)),
                        logits=signed(strongest["effect_logits"]))  # fmt: skip
    strongest = max(effects, key=lambda r: abs(r["effect_logits"]))
    votes = {r["address"]: r["part_logits"] for r in rows}
    loud = [r for r in effects if abs(r["effect_logits"]) > 2 * abs(votes.get(r["address"], 0.0)) + 0.1]
    return measured(
        "without", address=part(strongest["address"]), effect=signed(strongest["effect_logits"]),
        own=signed(strongest["own_logits"]), others=signed(strongest["others_logits"]), quiet=whole(len(loud)),
        run=whole(len(effects)),
    )  # fmt: skip


