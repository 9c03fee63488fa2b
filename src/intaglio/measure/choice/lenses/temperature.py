"""Entropy and temperature: what dividing all logits by T does, exactly.  [torch]

    p_T(y) = exp(logit y / T) / sum exp(logit / T),   odds p_T(b) / p_T(a) = exp(-(logit a - logit b) / T)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured

GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
LEVELS = (0.01, 0.1, 0.5, 0.9)  # odds of the less likely to the more likely of two tokens
CURVES = 5
FEW = 10
COLDEST, HOTTEST = 1e-3, 1e3


def measure(found: Decision, given: Given) -> Measured:
    """The distribution over T, and the temperatures at which odds and sums cross given levels."""
    logits = found.logits_V
    order = logits.sort(descending=True, stable=True)
    first, second = order.indices[:2].tolist()
    shown = [*order.indices[:CURVES].tolist()]
    shown += [t for t in (found.target, found.against) if t is not None and t not in shown]
    pairs = [(first, second)]
    if found.against is not None:
        pair = tuple(sorted((found.target, found.against), key=lambda t: -float(logits[t])))
        pairs += [pair] if pair != pairs[0] else []
    elif found.target not in (first, second):
        pairs.append((first, found.target))
    few = min(FEW, len(logits) - 1)
    numbers = {
        "first": found.written(first), "second": found.written(second), "few": few,
        "entropy_nats": entropy(logits, 1.0), "most_entropy_nats": math.log(len(logits)),
        "rest_overtakes": crossing(lambda t: 0.5 - mass(order.values, t, 1)),
        "tail_overtakes": crossing(lambda t: 0.5 - mass(order.values, t, few)),
        "half_entropy": crossing(lambda t: entropy(logits, t) - 0.5 * math.log(len(logits))),
        "steepest": steepest(logits), "same_order": same_order(logits),
    }  # fmt: skip
    rows = [{
        "temperature": t, "entropy_nats": entropy(logits, t), "alive": math.exp(entropy(logits, t)),
        "first": mass(order.values, t, 1), "target": float((logits / t).softmax(0)[found.target]),
        "nine_tenths_at": int(((order.values / t).softmax(0).cumsum(0) < 0.9).sum()) + 1,
    } for t in GRID]  # fmt: skip
    curves = [
        {"token": k, "text": found.written(k), "p": [float((logits / t).softmax(0)[k]) for t in GRID]} for k in shown
    ]
    curves.append({"token": None, "text": "", "p": [float((logits / t).softmax(0)[_others(logits, shown)].sum()) for t in GRID]})
    return Measured(numbers, {"grid": rows, "curves": curves, "odds": [_odds(found, a, b) for a, b in pairs]})


def entropy(logits_V: Tensor, temperature: float) -> float:
    """Entropy at T, nats."""
    log_p = (logits_V / temperature).log_softmax(0)
    return round(float(-(log_p.exp() * log_p).nan_to_num(0.0).sum()), 12)  # below lies rounding


def mass(ordered_V: Tensor, temperature: float, count: int) -> float:
    """Probability at T of the first `count` of logits in falling order."""
    return float((ordered_V / temperature).softmax(0)[:count].sum())


def odds_temperature(gap_logits: float, level: float) -> float:
    """The T at which a token `gap_logits` behind has `level` times the probability of the one ahead."""
    return gap_logits / -math.log(level)


def crossing(rising: Callable[[float], float]) -> float | None:
    """Where a function that rises with T crosses 0, by bisection on log T; None if it does not do so in the range."""
    low, high = math.log(COLDEST), math.log(HOTTEST)
    if rising(math.exp(low)) >= 0 or rising(math.exp(high)) < 0:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(math.exp(middle)) >= 0 else (middle, high)
    return math.exp((low + high) / 2)


def steepest(logits_V: Tensor) -> float:
    """The T at which entropy rises fastest: the largest dH/dT = Var_T(logit) / T^3 on a grid of 5 %."""
    best = (0.0, 1.0)
    for step in range(-70, 71):
        t = math.exp(step / 20)
        p = (logits_V / t).softmax(0)
        mean = (p * logits_V).sum()
        best = max(best, (float((p * (logits_V - mean).square()).sum()) / t**3, t))
    return best[1]


def same_order(logits_V: Tensor) -> bool:
    """Whether the order of all tokens is the same at the coldest, the hottest and every T between."""
    order = logits_V.argsort(descending=True, stable=True)
    return all(bool(((logits_V / t)[order].diff() <= 0).all()) for t in GRID)


def _odds(found: Decision, ahead: int, behind: int) -> dict[str, Any]:
    gap = float(found.logits_V[ahead] - found.logits_V[behind])
    return {
        "ahead": found.written(ahead), "behind": found.written(behind), "gap_logits": gap, "odds": math.exp(-gap),
        "levels": [{"level": level, "temperature": odds_temperature(gap, level)} for level in LEVELS],
    }  # fmt: skip


def _others(logits_V: Tensor, shown: list[int]) -> Tensor:
    others = torch.ones_like(logits_V, dtype=torch.bool)
    others[shown] = False
    return others
