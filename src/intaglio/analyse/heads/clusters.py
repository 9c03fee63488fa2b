"""Heads grouped by what their patterns look like; groups named by the roles in them. Pure: no torch.

Features, their mean over texts, are standardised over heads and joined by Ward's method (1963); how many groups there are is
the number from 4 to 16 with the largest mean silhouette (Rousseeuw 1987). A group's stability is the mean Jaccard overlap
with its best match when texts are resampled (Hennig 2007), less what chance gives, as a share of what is left above chance.
Chance: the same, resampling too, with heads exchanged at random within every text, which leaves each text's features and
their relations as they are but no head alike from text to text.

Legend: N texts, M heads, F features, C groups.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intaglio.atlas import UNRESOLVED

FEWEST, MOST = 4, 16
RESAMPLES, EXCHANGES = 40, 8
LEVEL = 0.05  # of a name, corrected for all roles and groups tried


@dataclass(frozen=True, eq=False)
class Grouping:
    """Heads in groups, the largest first.

    Attributes:
        labels_M: int, group of each head.
        stability_C: 1 the same group every time, 0 chance.
        silhouette: mean over heads, of the number of groups chosen.
        silhouettes: by number of groups tried.
        centres_CF: mean of each feature over the group's heads, in its own unit.
        names: of the features.
    """

    labels_M: np.ndarray
    stability_C: np.ndarray
    silhouette: float
    silhouettes: dict[int, float]
    centres_CF: np.ndarray
    names: tuple[str, ...]


def cluster_heads(
    values_NMF: np.ndarray, names: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES, exchanges: int = EXCHANGES
) -> Grouping | None:
    """Heads grouped by their features on N independent texts; None where too few heads differ to be grouped.

    Args:
        values_NMF: float, one row of features per text and head.
        seed: of the resampled texts and of the exchanged heads.
        exchanges: how often chance is tried.
    """
    values_NMF = np.asarray(values_NMF, dtype=float)
    mean_MF = values_NMF.mean(0)
    if len(np.unique(mean_MF.round(12), axis=0)) < 2 * FEWEST:
        return None
    tried = _by_number(mean_MF)
    silhouettes = {k: silhouette(_standard(mean_MF), labels) for k, labels in tried.items()}
    number = max(silhouettes, key=silhouettes.__getitem__)
    labels_M = _largest_first(tried[number])
    rng = np.random.default_rng(seed)
    found_C = _overlap(values_NMF, labels_M, rng, resamples)
    chance = np.mean([_chance(values_NMF, number, rng, max(4, resamples // 4)) for _ in range(exchanges)])
    centres_CF = np.stack([mean_MF[labels_M == c].mean(0) for c in range(labels_M.max() + 1)])
    stability_C = np.clip((found_C - chance) / max(1 - chance, 1e-9), -1, 1)
    return Grouping(labels_M, stability_C, silhouettes[number], silhouettes, centres_CF, tuple(names))


def cluster_rows(grouping: Grouping, addresses: Sequence[str], heads: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the atlas table `clusters`.

    Args:
        addresses: of the heads, as `grouping.labels_M` has them.
        heads: rows of the table `heads`, of which `address` and `roles` are used.
    """
    roles = {row["address"]: set(row["roles"]) for row in heads}
    named = names_of(grouping.labels_M, [roles.get(a, set()) for a in addresses])
    return [
        {"cluster": c, "name": named[c], "heads": int((grouping.labels_M == c).sum()),
         "stability": float(grouping.stability_C[c]),
         "features": json.dumps(dict(zip(grouping.names, np.round(grouping.centres_CF[c], 4).tolist())))}
        for c in range(len(grouping.stability_C))
    ]  # fmt: skip


def names_of(labels_M: np.ndarray, roles: Sequence[set[str]]) -> list[str]:
    """For each group the role most over-represented among its heads, or unresolved.

    Over-represented: so many heads of the role or more, drawn from all heads without putting back, by the hypergeometric
    law; corrected for all pairs of group and role (Bonferroni). Two heads at least: one names no group.
    """
    groups, totals = int(labels_M.max()) + 1, Counter(role for own in roles for role in own)
    pairs = groups * max(len(totals), 1)
    found = []
    for c in range(groups):
        inside = [own for own, label in zip(roles, labels_M) if label == c]
        counts = Counter(role for own in inside for role in own)
        chances = {r: hypergeometric(n, len(roles), totals[r], len(inside)) for r, n in counts.items() if n > 1}
        best = min(chances, key=lambda r: (chances[r], r), default=None)
        found.append(best if best is not None and chances[best] * pairs <= LEVEL else UNRESOLVED)
    return found


def hypergeometric(seen: int, population: int, marked: int, drawn: int) -> float:
    """Chance of `seen` or more marked ones among `drawn` of `population`, of which `marked` are."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(seen - 1, population, marked, drawn))


# --- grouping ------------------------------------------------------------------------------


def _standard(mean_MF: np.ndarray) -> np.ndarray:
    spread = mean_MF.std(0)
    return (mean_MF - mean_MF.mean(0)) / np.where(spread > 1e-12, spread, 1.0)


def _joined(mean_MF: np.ndarray) -> np.ndarray:
    from scipy.cluster.hierarchy import linkage

    return linkage(_standard(mean_MF), "ward")


def _cut(tree: np.ndarray, number: int) -> np.ndarray:
    from scipy.cluster.hierarchy import fcluster

    return np.unique(fcluster(tree, number, "maxclust"), return_inverse=True)[1]


def _by_number(mean_MF: np.ndarray) -> dict[int, np.ndarray]:
    tree = _joined(mean_MF)
    return {k: _cut(tree, k) for k in range(FEWEST, min(MOST, len(mean_MF) // 2) + 1)}


def _largest_first(labels_M: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.bincount(labels_M), kind="stable")
    return np.argsort(order)[labels_M]


def silhouette(x_MF: np.ndarray, labels_M: np.ndarray) -> float:
    """Mean over heads of (b - a) / max(a, b): a the mean distance within the group, b to the nearest other; 0 when alone."""
    from scipy.spatial.distance import cdist

    member_MC = np.eye(labels_M.max() + 1)[labels_M]
    sizes_C = member_MC.sum(0)
    sums_MC = cdist(x_MF, x_MF) @ member_MC
    own = np.arange(len(labels_M)), labels_M
    within = sums_MC[own] / np.maximum(sizes_C[labels_M] - 1, 1)
    others_MC = sums_MC / sizes_C
    others_MC[own] = np.inf
    nearest = others_MC.min(1)
    score = (nearest - within) / np.maximum(np.maximum(nearest, within), 1e-300)
    return float(np.where(sizes_C[labels_M] > 1, score, 0.0).mean())


# --- stability -----------------------------------------------------------------------------


def _overlap(values_NMF: np.ndarray, labels_M: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """(C,) mean over resampled texts of each group's Jaccard overlap with its best match."""
    number, texts = int(labels_M.max()) + 1, len(values_NMF)
    found = []
    for _ in range(resamples):
        drawn = values_NMF[rng.integers(0, texts, texts)].mean(0)
        found.append(jaccard(labels_M, _cut(_joined(drawn), number)).max(1))
    return np.mean(found, axis=0)


def _chance(values_NMF: np.ndarray, number: int, rng: np.random.Generator, resamples: int) -> float:
    """Mean overlap where no head is alike from text to text."""
    exchanged = np.stack([text_MF[rng.permutation(len(text_MF))] for text_MF in values_NMF])
    labels_M = _cut(_joined(exchanged.mean(0)), number)
    return float(_overlap(exchanged, labels_M, rng, resamples).mean())


def jaccard(ours_M: np.ndarray, theirs_M: np.ndarray) -> np.ndarray:
    """(C, C') heads in both groups over heads in either, of every pair of groups."""
    ours, theirs = (np.eye(labels.max() + 1)[labels] for labels in (ours_M, theirs_M))
    both = ours.T @ theirs
    return both / (ours.sum(0)[:, None] + theirs.sum(0) - both)
