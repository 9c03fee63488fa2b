"""From scores on texts to names: a head has a role only beyond the role's null, and most have none.

A role is named where both hold:

    p < 0.05      one-sided t-test that the score exceeds the same score on shuffled targets of the same texts,
                  corrected by Holm for all heads and roles tested together
    excess        score - null is at least the smallest effect, which is printed: with many texts any difference is
                  sure, and even random weights attend a little unevenly

N texts, L layers, H heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from intaglio.atlas import BASIC, UNRESOLVED, Sampled

SMALLEST = 0.1  # a tenth of what a head can give
SMALLEST_BASIC = 0.3  # of attention: less on the token before does not make a previous-token head
RULES = dict.fromkeys(BASIC, SMALLEST_BASIC)
LEVEL = 0.05
RESTING = "first_token"
_ROUNDING = 1e-6  # spread below it is the rounding of attention: every text says the same


def score_rows(sampled: Sequence[Sampled], *, smallest: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Rows of the table `scores`: every role of every head with its null, interval, p and whether it is named.

    All roles that are to be judged together must be given together: p is corrected for all of them.

    Args:
        sampled: values and nulls by text; nan where a text does not test the role. A head without any value has no row.
        smallest: the smallest effect by role, where it is neither that of `RULES` nor `SMALLEST`.
    """
    tested = [(one, *_paired(one)) for one in sampled]
    p = np.concatenate([p_LH.ravel() for _, p_LH, _ in tested]) if tested else np.empty(0)
    corrected = holm(p)
    rows, at = [], 0
    for one, p_LH, count_LH in tested:
        mine_LH = corrected[at : at + p_LH.size].reshape(p_LH.shape)
        at += p_LH.size
        least = least_of(one.role, smallest)
        rows += _rows(one, count_LH, mine_LH, least)
    return rows


def least_of(role: str, smallest: Mapping[str, float] | None = None) -> float:
    """The smallest effect by which a role is named."""
    return {**RULES, **(smallest or {})}.get(role, SMALLEST)


def _paired(one: Sampled) -> tuple[np.ndarray, np.ndarray]:
    """(L, H) p of the paired difference, and how many texts test the role; p is nan under two."""
    from scipy.special import stdtr  # scipy.stats costs a second to import

    mean_LH, half_LH, count_LH = _mean_and_error(one.values_NLH - one.null_NLH)
    with np.errstate(invalid="ignore", divide="ignore"):
        t_LH = np.where(half_LH > _ROUNDING, mean_LH / half_LH, np.sign(mean_LH) * np.inf)
        t_LH = np.where((half_LH <= _ROUNDING) & (np.abs(mean_LH) <= _ROUNDING), 0.0, t_LH)
        p_LH = stdtr(np.maximum(count_LH - 1, 1), -t_LH)
    return np.where(count_LH > 1, p_LH, np.nan), count_LH


def _mean_and_error(values_NLH: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L, H) mean, its standard error and the number of values; texts with nan are left out."""
    known_NLH = np.isfinite(values_NLH)
    count_LH = known_NLH.sum(0)
    filled_NLH = np.where(known_NLH, values_NLH, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_LH = filled_NLH.sum(0) / count_LH
        square_LH = np.where(known_NLH, (filled_NLH - mean_LH) ** 2, 0.0).sum(0)
        error_LH = np.sqrt(square_LH / (count_LH - 1) / count_LH)
    return mean_LH, error_LH, count_LH


def holm(p: np.ndarray) -> np.ndarray:
    """p corrected for all tests made (Holm 1979); nan, where nothing was tested, stays and does not count."""
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    found = np.full(p.shape, np.nan)
    found[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return found


def _rows(one: Sampled, count_LH: np.ndarray, p_LH: np.ndarray, least: float) -> list[dict[str, Any]]:
    from scipy.special import stdtrit

    mean_LH, error_LH, _ = _mean_and_error(one.values_NLH)
    null_LH, _, _ = _mean_and_error(np.where(np.isfinite(one.values_NLH), one.null_NLH, np.nan))
    half_LH = stdtrit(np.maximum(count_LH - 1, 1), 0.975) * error_LH
    rows = []
    for layer, head in zip(*np.nonzero(count_LH)):
        score, null, half, p = (float(a[layer, head]) for a in (mean_LH, null_LH, half_LH, p_LH))
        sure = bool(count_LH[layer, head] > 1)
        rows.append({
            "address": f"L{layer}.attn.H{head}", "role": one.role, "detail": one.detail, "score": score,
            "low": score - half if sure else None, "high": score + half if sure else None, "null": null,
            "p": p if sure else None, "samples": int(count_LH[layer, head]),
            "named": sure and p < LEVEL and score - null >= least,
        })  # fmt: skip
    return rows


def evidence(row: Mapping[str, Any]) -> float:
    """How far a score lies between its null and the best possible."""
    return (row["score"] - row["null"]) / (1 - row["null"]) if row["null"] < 1 else 0.0


def head_rows(
    scores: Iterable[Mapping[str, Any]], *, layers: int, heads: int, features: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Rows of the table `heads`: the named role with the most evidence, or unresolved, whose score is left empty.

    The first-token sink comes behind all other roles: it is where a head rests when its own work does not call, and on
    random tokens little work calls.

    Args:
        scores: rows of the table `scores`.
        features: by address, what else is known of a head, by its column (entropy_nats, sink, cluster, ...).
    """
    named: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in scores:
        if row["named"]:
            named[row["address"]].append(row)
    found = []
    for layer in range(layers):
        for head in range(heads):
            address = f"L{layer}.attn.H{head}"
            mine = sorted(named[address], key=lambda row: (row["role"] == RESTING, -evidence(row)))
            found.append({
                "address": address, "layer": layer, "head": head, **_best(mine), **_EMPTY, **((features or {}).get(address, {})),
            })  # fmt: skip
    return found


_EMPTY = dict.fromkeys(("entropy_nats", "distance_tokens", "sink", "cluster", "template_share", "content_share"))


def _best(mine: list[Mapping[str, Any]]) -> dict[str, Any]:
    if not mine:
        return {"role": UNRESOLVED, "roles": [], **dict.fromkeys(("score", "low", "high", "null")), "evidence": 0.0}
    best = mine[0]
    roles = list(dict.fromkeys(row["role"] for row in mine))
    return {"role": best["role"], "roles": roles, **{k: best[k] for k in ("score", "low", "high", "null")},
            "evidence": evidence(best)}  # fmt: skip
