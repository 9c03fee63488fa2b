"""Scores of the six basic roles, query by query and target by target, from patterns that were kept."""

from __future__ import annotations

import numpy as np


def target_of(role: str, query: int, *, first: int, length: int, back: int = 0) -> int | None:
    """Where a head with the role looks from this query; None where the query does not test the role."""
    second = first + length
    match role:
        case "previous_token":
            target = query - 1
        case "fixed_offset":
            target = query - back
        case "self":
            return query if query > 0 else None
        case "first_token":
            return 0 if query > 0 else None
        case "duplicate_token":
            target = query - length if query >= second else -1
        case "induction":
            target = query - length + 1 if query >= second else -1
    return target if target > 0 else None  # the first token is a sink


def score(pattern_TT: np.ndarray, role: str, *, window: int | None = None, **where: int) -> tuple[float, float]:
    """The role's score on one text and its null, averaged over every other target one by one."""
    values, nulls = [], []
    for query in range(len(pattern_TT)):
        target = target_of(role, query, **where)
        if target is None:
            continue
        lowest = 0 if window is None else max(0, query - window + 1)
        values.append(pattern_TT[query, target])
        others = [pattern_TT[query, key] for key in range(lowest, query + 1) if key != target]
        nulls.append(sum(others) / len(others) if target >= lowest else sum(others) / (len(others) - 1))
    return float(np.mean(values)), float(np.mean(nulls))
