"""Rotary embedding: what distance alone asks of each head, which pairs carry a score, what other angles do.  [torch]

    expected(D) = scaling * sum over pairs of  cos(D f) (q1 k1 + q2 k2) + sin(D f) (q1 k2 - q2 k1)  + what is not turned
    with q, k the means over this prompt before the turn;  positions * c: angles p c f;  base * c: f[j] * c ** (-j / P)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.pair import kl_nats
from intaglio.measure.choice.rotation import COARSE, LIMIT, Rotation, rotations_of, run_turned
from intaglio.model.attention import Attention

POSITIONS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
BASES = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0)
SHOWN = 5  # heads with the strongest votes
NEAR = 4  # nearest tokens, the deciding one among them
FEWEST = 4  # distances that a correlation needs


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Distance profiles, the parts of the strongest scores, and the choice with scaled positions and bases.

    Raises:
        Skip: positions of another kind, or a rotation that cannot be seen or proved.
    """
    rotations = rotations_of(found)
    scales, unscaled = _scales(found, rotations)
    heads = [(i, h) for i, r in enumerate(rotations) if r is not None for h in range(found.anatomy.n_heads)]
    profiles = {at: _Profile(found, *at, rotations[at[0]]) for at in heads}
    votes = found.ledger.source_votes(found.base, found.votes)
    strongest = sorted(heads, key=lambda at: -abs(float(votes[at].sum())))[:SHOWN]
    edges = [_edge(found, *at, rotations[at[0]], votes[at]) for at in strongest]
    numbers = {
        "first": found.written(int(found.logits_V.argmax())), "probability": float(found.logits_V.softmax(-1)[found.target]),
        "difference_logits": float(found.question.of(found.logits_V[None])), "layers": len(rotations),
        "turning": sum(r is not None for r in rotations), "tokens": len(found.ids), "heads": len(heads),
        "score_error": max(r.error for r in rotations if r is not None), "unscaled_error_logits": unscaled,
        "query_size": rotations[heads[0][0]].q_Hd.shape[-1], **_sums(profiles),
    }  # fmt: skip
    tables = {
        "scales": scales, "kinds": _kinds(rotations), "edges": edges, "distances": _mean(profiles),
        "profiles": [
            {"address": f"L{i}.attn.H{h}", "correlation": profiles[i, h].correlation, **row}
            for i, h in strongest for row in profiles[i, h].rows()
        ],
        "heads": [
            {"address": f"L{i}.attn.H{h}", "correlation": p.correlation, "near_measured": p.near(p.measured),
             "near_alone": p.near(p.alone)}
            for (i, h), p in profiles.items()
        ],
    }  # fmt: skip
    return Measured(numbers, tables)


class _Profile:
    """What distance alone asks of one head, and what it did at the decision, for tokens other than the first.

    Attributes:
        distances: how far back each token lies, nearest first; those that the head may see.
        expected: score at each distance from the mean query and key.
        alone, measured: attention among these tokens, from the expected scores and as it was.
        correlation: of expected and real scores; None where there are too few.
    """

    def __init__(self, found: Decision, layer: int, head: int, rotation: Rotation) -> None:
        seen = found.base.layers[layer]
        met, last = seen.attention, len(found.ids) - 1
        weights_T = seen.pattern_BHTT[0, head, -1].double()
        keys = [t for t in range(last, 0, -1) if float(weights_T[t]) > 0] or [last]
        self.distances = [last - t for t in keys]
        expected = expected_scores(rotation, rotation.q_Hd[head], rotation.k_Hd[head], self.distances)
        self.expected = capped(met, expected * met.scaling)
        real = capped(met, met.k_BHTd[0, head, keys].double() @ met.q_BHTd[0, head, -1].double() * met.scaling)
        self.alone = self.expected.softmax(0)
        self.measured = weights_T[keys] / weights_T[keys].sum().clamp_min(1e-30)
        self.correlation = _correlation(self.expected, real)

    def near(self, shares: Tensor) -> float:
        """The share of the nearest tokens."""
        return float(shares[[d < NEAR for d in self.distances]].sum())

    def rows(self) -> list[dict[str, Any]]:
        columns = zip(self.distances, self.expected.tolist(), self.alone.tolist(), self.measured.tolist())
        return [dict(zip(("distance", "expected", "alone", "measured"), row)) for row in columns]


def expected_scores(rotation: Rotation, q_d: Tensor, k_d: Tensor, distances: Sequence[int]) -> Tensor:
    """q turned by each distance times k, before scaling; exact."""
    (q1, q2, q_rest), (k1, k2, k_rest) = rotation.pairs(q_d), rotation.pairs(k_d)
    angles = q_d.new_tensor(distances)[:, None] * rotation.frequencies_P
    return angles.cos() @ (q1 * k1 + q2 * k2) + angles.sin() @ (q1 * k2 - q2 * k1) + q_rest @ k_rest


def capped(met: Attention, scores: Tensor) -> Tensor:
    """Scores as the softmax gets them (Gemma 2 caps)."""
    return scores if met.softcap is None else torch.tanh(scores / met.softcap) * met.softcap


def _correlation(a: Tensor, b: Tensor) -> float | None:
    if len(a) < FEWEST:
        return None
    a, b = a - a.mean(), b - b.mean()
    size = a.norm() * b.norm()
    return float(a @ b / size) if float(size) > 0 else None


def _sums(profiles: dict[tuple[int, int], _Profile]) -> dict[str, Any]:
    """Over all heads: how well distance alone orders the scores, and how much attention goes to the nearest tokens."""
    known = {at: p.correlation for at, p in profiles.items() if p.correlation is not None}
    best = max(known, key=known.get) if known else None

    def nearest(name: str) -> float:
        return sum(p.near(getattr(p, name)) for p in profiles.values()) / len(profiles)

    return {
        "median_correlation": float(torch.tensor(list(known.values())).median()) if known else None,
        "best": None if best is None else f"L{best[0]}.attn.H{best[1]}",
        "best_correlation": None if best is None else known[best],
        "near": NEAR, "near_measured": nearest("measured"), "near_alone": nearest("alone"),
    }  # fmt: skip


def _mean(profiles: dict[tuple[int, int], _Profile]) -> list[dict[str, Any]]:
    """Attention by distance, mean over all heads; a token that a head does not see counts 0."""
    total: dict[int, list[float]] = {}
    for profile in profiles.values():
        for row in profile.rows():
            sums = total.setdefault(row["distance"], [0.0, 0.0])
            sums[0] += row["measured"] / len(profiles)
            sums[1] += row["alone"] / len(profiles)
    return [{"distance": d, "measured": m, "alone": a} for d, (m, a) in sorted(total.items())]


def _edge(found: Decision, layer: int, head: int, rotation: Rotation, votes_T: Tensor) -> dict[str, Any]:
    """The score between the deciding token and the one whose vote this head carried most, pair by pair.

    `over` is what it has above the mean of the other tokens, the first left out: what all share moves no attention.
    """
    met, at, last = found.base.layers[layer].attention, int(votes_T.abs().argmax()), len(found.ids) - 1
    weights_T = found.base.layers[layer].pattern_BHTT[0, head, -1]
    pairs_TP, rest_T = pair_scores(rotation, met.q_BHTd[0, head, last], met.k_BHTd[0, head], met.scaling)
    others = [t for t in range(1, last + 1) if t != at and float(weights_T[t]) > 0] or [at]
    over_P, over = pairs_TP[at] - pairs_TP[others].mean(0), float(rest_T[at] - rest_T[others].mean())
    turns_P = 2 * math.pi / rotation.frequencies_P
    fast_P = turns_P <= len(found.ids)
    return {
        "address": f"L{layer}.attn.H{head}", "vote_logits": float(votes_T.sum()), "position": at,
        "token": found.letters()[at] or found.written(found.ids[at]),
        "distance": last - at, "attention": float(weights_T[at]), "score": float(pairs_TP[at].sum() + rest_T[at]),
        "over": float(over_P.sum()) + over, "fast": float(over_P[fast_P].sum()), "slow": float(over_P[~fast_P].sum()),
        "unturned": over,
        "pairs": [
            {"tokens_per_turn": turn if math.isfinite(turn) else None, "score": score, "over": more}
            for turn, score, more in sorted(zip(turns_P.tolist(), pairs_TP[at].tolist(), over_P.tolist()))
        ],
    }  # fmt: skip


def pair_scores(rotation: Rotation, q_d: Tensor, k_Td: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """(T, P) what every pair gives to the scores as query and keys met, (T,) what is not turned; they sum to the score."""
    (q1, q2, q_rest), (k1, k2, k_rest) = rotation.pairs(q_d.double()), rotation.pairs(k_Td.double())
    return (k1 * q1 + k2 * q2) * scaling, (k_rest @ q_rest) * scaling


def _kinds(rotations: Sequence[Rotation | None]) -> list[dict[str, Any]]:
    """The different rotations of the model's layers."""
    rows: list[dict[str, Any]] = []
    seen: list[Tensor] = []
    for i, rotation in enumerate(rotations):
        if rotation is None:
            continue
        f = rotation.frequencies_P
        same = next((k for k, other in enumerate(seen) if len(other) == len(f) and torch.equal(other, f)), None)
        if same is not None:
            rows[same]["layers"].append(i)
            continue
        seen.append(f)
        moving = f[f > 0]
        rows.append({
            "layers": [i], "pairs": len(f), "shortest_tokens": 2 * math.pi / float(moving.max()),
            "longest_tokens": 2 * math.pi / float(moving.min()), "base": _base(f),
        })  # fmt: skip
    return rows


def _base(frequencies_P: Tensor) -> float | None:
    """The base, where every frequency is a power of it: base ** (-j / P)."""
    count = len(frequencies_P)
    if count < 2 or not bool((frequencies_P > 0).all()):
        return None
    logs = frequencies_P.log()
    base = float((logs[0] - logs[-1]) * count / (count - 1))
    wanted = -torch.arange(count, dtype=logs.dtype, device=logs.device) / count * base
    return math.exp(base) if float((logs - wanted).abs().max()) < LIMIT else None


def _scales(found: Decision, rotations: Sequence[Rotation | None]) -> tuple[list[dict[str, Any]], float]:
    """The choice at every scale; and how far our own unscaled angles are from the model's, logits."""
    asked = [(c, 1.0) for c in POSITIONS] + [(1.0, c) for c in BASES if c != 1.0]
    logits_NV = run_turned(found, rotations, asked)
    off = float((logits_NV[POSITIONS.index(1.0)] - found.logits_V).abs().max())
    limit = LIMIT if found.base.logits_BTV.dtype in (torch.float32, torch.float64) else COARSE
    if off > limit * max(1.0, float(found.logits_V.abs().max())):
        raise Skip("unproved", layer="logits", error=f"{off:.1e}")
    log_p, base = logits_NV.log_softmax(-1), found.logits_V.log_softmax(-1)
    by_scale = {scale: i for i, scale in enumerate(asked)}
    rows = []
    for way, factors in (("positions", POSITIONS), ("base", BASES)):
        for factor in factors:
            i = by_scale[(factor, 1.0) if way == "positions" else (1.0, factor)]
            first = int(logits_NV[i].argmax())
            rows.append({
                "way": way, "factor": factor, "difference_logits": float(found.question.of(logits_NV[i : i + 1])),
                "probability": float(log_p[i, found.target].exp()), "first": found.written(first),
                "first_changed": first != int(found.logits_V.argmax()), "kl_nats": float(kl_nats(base, log_p[i])),
            })  # fmt: skip
    return rows, off
