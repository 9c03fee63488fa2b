"""Votes and effects over a set of prompts: means with bootstrap intervals over the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intaglio.analyse.choice.answer import whole_parts
from intaglio.analyse.stats import mean_interval, resamples
from intaglio.trace import TraceData


def over_set(traces: Sequence[TraceData], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row per part, strongest mean vote first.

    Args:
        traces: decisions of one model.
        seed: of the resamples.

    Returns:
        address; vote_logits and effect_logits with `_low` and `_high`, the ends of a 95 % interval over prompts (None
        under two); prompts: how many; for_share: in how many of them the part voted for the target.
    """
    tables = [{r["address"]: r for r in whole_parts(t.rows["votes"])} for t in traces]
    counts = resamples(len(traces), seed=seed)
    rows = []
    for address in dict.fromkeys(a for table in tables for a in table):
        seen = [table.get(address, {}) for table in tables]
        row: dict[str, Any] = {"address": address}
        for name, key in (("vote", "part_logits"), ("effect", "effect_logits")):
            values = np.array([r.get(key) if r.get(key) is not None else np.nan for r in seen], dtype=float)
            found = mean_interval(values, counts)
            row |= {f"{name}_logits": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        votes = [r["part_logits"] for r in seen if r]
        rows.append(row | {"prompts": len(votes), "for_share": sum(v > 0 for v in votes) / len(votes)})
    return sorted(rows, key=lambda r: -abs(r["vote_logits"] or 0.0))
