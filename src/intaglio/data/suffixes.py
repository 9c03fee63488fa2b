"""All suffixes of a sequence in sorted order: where a run of items occurs in it, and what follows there.

Pure: numpy. Sources: Manber and Myers 1990 (suffix arrays); Larsson and Sadakane 2007 (only ties are sorted again);
Liu et al. 2024, arXiv 2401.17377 (longest match as a language model).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np


def suffix_array(ids: np.ndarray, depth: int) -> np.ndarray:
    """Starts of all suffixes, sorted by their first `depth` items at least; a suffix that ends comes first.

    Prefix doubling: once sorted by h items, the rank of the suffix h further on sorts by 2h. A rank is the place
    where the group of equal suffixes begins, so only groups of more than one are sorted again.
    """
    n = len(ids)
    _, rank = np.unique(ids, return_inverse=True)
    order, places, known = np.argsort(rank, kind="stable"), np.arange(n), 0
    key = rank.astype(np.int64)[order]
    rank = np.zeros(n, np.int64)
    while True:
        first = np.r_[True, key[1:] != key[:-1]][: len(key)]
        begin = np.maximum.accumulate(np.where(first, np.arange(len(key)), 0))
        rank[order[places]] = places[begin] + 1  # 0 is left for what lies beyond the end
        known = max(1, 2 * known)
        places = places[~(first & np.r_[first[1:], True][: len(first)])]
        if known >= depth or not len(places):
            return order
        starts = order[places]
        ahead = np.where(starts + known < n, rank[np.minimum(starts + known, n - 1)], 0)
        key = rank[starts] * (n + 1) + ahead
        sort = np.argsort(key)
        key, order[places] = key[sort], starts[sort]


class Suffixes:
    """A sequence whose runs can be looked up.

    Args:
        ids: the sequence.
        depth: the longest run that will be asked for.
    """

    def __init__(self, ids: Sequence[int] | np.ndarray, depth: int) -> None:
        self.ids = np.asarray(ids, np.int64)
        self.order = suffix_array(self.ids, depth) if len(self.ids) else np.arange(0)

    def following(self, run: Sequence[int]) -> np.ndarray:
        """Where something follows `run`: the position of what follows, for every occurrence, in the sequence's order."""
        wanted, size = list(run), len(run)

        def prefix(start: int) -> list[int]:
            return self.ids[start : start + size].tolist()

        low = bisect_left(self.order, wanted, key=prefix)
        high = bisect_right(self.order, wanted, lo=low, key=prefix)
        after = np.sort(self.order[low:high]) + size
        return after[after < len(self.ids)]

    def longest(self, ids: Sequence[int]) -> int:
        """How many of the last `ids` occur in the sequence with something behind them; 0 if not even the last one."""
        size = 0
        while size < len(ids) and len(self.following(ids[len(ids) - size - 1 :])):
            size += 1
        return size
