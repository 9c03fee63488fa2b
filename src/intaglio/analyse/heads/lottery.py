"""Which head is it, and when: births in trainings that were only looked at, and whether it is the same head every time. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intaglio.analyse.heads.naming import SMALLEST_BASIC


@dataclass(frozen=True)
class Birth:
    """A head and the first step from which on it has its role at every look."""

    address: str
    step: int
    excess: float

    @staticmethod
    def named(layer: int, head: int) -> str:
        """The address of a head."""
        return f"L{layer}.attn.H{head}"


def births_of(steps: Sequence[int], excess_CLH: np.ndarray, *, least: float = SMALLEST_BASIC) -> list[Birth]:
    """Births, the first first; heads of one step by how far they are beyond.

    Args:
        excess_CLH: score less null, look by layer by head.
        least: the smallest effect that names a head.
    """
    found = []
    _, layers, heads = excess_CLH.shape
    for layer in range(layers):
        for head in range(heads):
            has_C = excess_CLH[:, layer, head] >= least
            if has_C[-1] and not has_C.all():
                at = int(np.flatnonzero(~has_C)[-1]) + 1
                found.append(Birth(Birth.named(layer, head), int(steps[at]), float(excess_CLH[at, layer, head])))
    return sorted(found, key=lambda b: (b.step, -b.excess))


def first_below(steps: Sequence[int], losses: Sequence[float], below: float) -> int | None:
    """The first look from which on the loss stays under a line; None where it does not."""
    over = np.flatnonzero(~(np.asarray(losses) < below))
    at = int(over[-1]) + 1 if len(over) else 0
    return int(steps[at]) if at < len(steps) else None


def lottery(firsts: Sequence[str | None], heads: Sequence[str]) -> dict[str, Any]:
    """Is it the same head from every seed? Counts by head, and the chance that drawing evenly gives one head so often.

    Args:
        firsts: the head that came first from each seed; None where none came.
        heads: those among which it is drawn evenly under the null.

    Returns:
        counts by head, seeds in which one came, the most frequent head with its count, and p: the probability under even draws
        that some head comes at least so often (None without any birth).
    """
    came = [head for head in firsts if head is not None]
    counts = {head: came.count(head) for head in heads}
    if not came:
        return {"counts": counts, "seeds": 0, "most": None, "count": 0, "p": None}
    most = max(counts, key=counts.__getitem__)
    p = some_so_often(counts[most], len(came), len(heads))
    return {"counts": counts, "seeds": len(came), "most": most, "count": counts[most], "p": p}


def some_so_often(count: int, draws: int, sides: int) -> float:
    """Probability that in so many even draws among `sides` some side comes at least `count` times.

    The rest is the coefficient of x^draws in (sum of x^k / k! for k below count)^sides, times draws! / sides^draws.
    """
    one = np.array([1.0 / math.factorial(k) for k in range(min(count, draws + 1))])
    whole = np.ones(1)
    for _ in range(sides):
        whole = np.convolve(whole, one)[: draws + 1]
    never = whole[draws] * math.factorial(draws) / sides**draws if len(whole) > draws else 0.0
    return float(min(1.0, max(0.0, 1.0 - never)))
