"""Which heads of a role are removed together in its causal check. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from intaglio.analyse.heads.naming import evidence

MOST = 5  # heads of a role that are removed together, the strongest first


def strongest(scores: Iterable[Mapping[str, Any]], *, most: int = MOST) -> dict[str, tuple[list[str], list[str]]]:
    """By role: its heads with the most evidence, and all its other named heads.

    Args:
        scores: rows of the table `scores`.
        most: how many at most come first.
    """
    named: dict[str, dict[str, float]] = defaultdict(dict)
    for row in scores:
        if row["named"]:
            mine = named[row["role"]]
            mine[row["address"]] = max(evidence(row), mine.get(row["address"], 0.0))
    found = {}
    for role, by_head in named.items():
        order = sorted(by_head, key=by_head.__getitem__, reverse=True)
        found[role] = order[:most], order[most:]
    return found
