"""The residual stream at the decision: every write's size and direction, who cancels whom, the final norm's gain.  [torch]

    x = sum of writes w;  share of w = w . x / |x|^2, sums to 1;  |x|^2 = sum of |w|^2 + 2 sum of w . w' over pairs
    logit difference = sum over coordinates of scale * gain * x * (W_U[target] - W_U[against]) + biases
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured
from intaglio.model.proof import raw_logits, shaped

PAIRS = 6  # strongest pairs either way
SHOWN = 20  # longest writes whose directions are compared
COORDINATES = 10


@dataclass(frozen=True, eq=False)
class Writes:
    """What was added at one position: W vectors, the embedding first, then attention and MLP of every layer."""

    names: list[str]
    writes_WD: Tensor

    @property
    def total_D(self) -> Tensor:
        return self.writes_WD.sum(0)


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Every write's length, direction, share and vote; pairs; the final norm's gain."""
    writes = writes_of(found)
    votes_W = writes.writes_WD @ _asked(found) * float(found.votes.scale_B[0])
    gram_WW = writes.writes_WD @ writes.writes_WD.T
    pairs = _pairs(writes, gram_WW, votes_W)
    gain, coordinates = _gain(found, writes.total_D)
    numbers = {**_sums(writes, votes_W), **gain, "norm_scale": float(found.votes.scale_B[0])}
    tables = {"writes": _rows(writes, votes_W), "pairs": pairs, "cosines": _cosines(writes, gram_WW), "coordinates": coordinates}
    return Measured(numbers, tables)


def writes_of(found: Decision, position: int = -1) -> Writes:
    """All writes into one position's residual, in double precision."""
    seen, residual = found.base, found.anatomy.residual_scale
    names, vectors = ["embed"], [seen.embed_BTD[0, position]]
    for i, layer in enumerate(seen.layers):
        names += [f"L{i}.attn", f"L{i}.mlp"]
        vectors += [residual * layer.attn_BTD[0, position], residual * layer.mlp_BTD[0, position]]
    return Writes(names, torch.stack(vectors).double())


def _asked(found: Decision) -> Tensor:
    """(D,) the direction before the final norm, at scale 1, that tells target from against."""
    return found.anatomy.kinds[found.anatomy.norm].pull_back(found.question.direction_D(found.anatomy).double())


def _rows(writes: Writes, votes_W: Tensor) -> list[dict[str, Any]]:
    total, before, rows = writes.total_D, torch.zeros_like(writes.total_D), []
    for i, (name, write) in enumerate(zip(writes.names, writes.writes_WD)):
        rows.append({
            "address": name, "length": float(write.norm()), "relative": float(write.norm() / before.norm()) if i else None,
            "cos_before": _cos(write, before) if i else None, "cos_end": _cos(write, total),
            "share": float(write @ total / total.square().sum().clamp_min(1e-30)), "vote_logits": float(votes_W[i]),
        })  # fmt: skip
        before = before + write
    return rows


def _cos(a_D: Tensor, b_D: Tensor) -> float:
    return float(a_D @ b_D / (a_D.norm() * b_D.norm()).clamp_min(1e-30))


def _sums(writes: Writes, votes_W: Tensor) -> dict[str, Any]:
    """How much of what was written is left: of length, and of votes."""
    lengths = writes.writes_WD.norm(dim=1)
    return {
        "length": float(writes.total_D.norm()), "written": float(lengths.sum()),
        "orthogonal": float(lengths.square().sum().sqrt()),
        "plus_logits": float(votes_W.clamp_min(0).sum()), "minus_logits": float(votes_W.clamp_max(0).sum()),
    }  # fmt: skip


def _pairs(writes: Writes, gram_WW: Tensor, votes_W: Tensor) -> list[dict[str, Any]]:
    """The pairs that lengthen the state most and those that shorten it most; 2 w . w' is their part of its squared length."""
    upper = torch.triu_indices(len(gram_WW), len(gram_WW), 1)
    both = 2 * gram_WW[upper[0], upper[1]] / writes.total_D.square().sum().clamp_min(1e-30)
    order = both.argsort().tolist()
    picked = [*reversed(order[-PAIRS:]), *(i for i in order[:PAIRS] if i not in order[-PAIRS:])]
    return [
        {"first": writes.names[a], "second": writes.names[b], "share": float(both[i]),
         "cosine": _cos(writes.writes_WD[a], writes.writes_WD[b]),
         "first_vote_logits": float(votes_W[a]), "second_vote_logits": float(votes_W[b])}
        for i in picked for a, b in [(int(upper[0, i]), int(upper[1, i]))]
    ]  # fmt: skip


def _cosines(writes: Writes, gram_WW: Tensor) -> list[dict[str, Any]]:
    """For the longest writes, in the order of the data's way: each one's cosine with all others."""
    lengths = gram_WW.diagonal().sqrt()
    longest = sorted(lengths.argsort(descending=True)[:SHOWN].tolist())
    cosine = gram_WW / (lengths[:, None] * lengths[None]).clamp_min(1e-30)
    return [{"address": writes.names[i], "with": [round(float(cosine[i, j]), 3) for j in longest]} for i in longest]


def _gain(found: Decision, total_D: Tensor) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The final norm's gain: its spread, what it does to large coordinates, and the choice with all gains equal."""
    kind, scale = found.anatomy.kinds[found.anatomy.norm], float(found.votes.scale_B[0])
    gain_D, asked_D = kind.gain_D.double(), found.question.direction_D(found.anatomy).double()
    inside_D = total_D - total_D.mean() if kind.centred else total_D
    shaped_D = gain_D * inside_D
    even = gain_D.square().mul(inside_D.square()).sum().div(inside_D.square().sum().clamp_min(1e-30)).sqrt()
    equal_D = (scale * even * inside_D + kind.bias_D.double()).to(kind.gain_D.dtype)
    logits = shaped(found.anatomy, raw_logits(found.anatomy, equal_D))
    votes_D = scale * shaped_D * asked_D
    sizes = gain_D.abs()
    numbers = {
        "gain_least": float(sizes.min()), "gain_median": float(sizes.median()), "gain_most": float(sizes.max()),
        "turn_degrees": float(torch.rad2deg(torch.tensor(_cos(inside_D, shaped_D)).clamp(-1, 1).acos())),
        "largest_before": _largest(inside_D), "largest_after": _largest(shaped_D), "largest": int(inside_D.abs().argmax()),
        "largest_gain": float(gain_D[inside_D.abs().argmax()]), "gain_negative": int((gain_D < 0).sum()),
        "even_top": found.written(int(logits.argmax())), "even_same": int(logits.argmax()) == int(found.logits_V.argmax()),
        "even_difference": float(found.question.of(logits[None])[0]), "difference": float(found.votes.difference_B[0]),
        "coordinates": len(gain_D), "half": _half(votes_D), "coordinates_logits": float(votes_D.sum()),
    }  # fmt: skip
    rows = [
        {"coordinate": i, "value": float(inside_D[i]), "gain": float(gain_D[i]), "asked": float(asked_D[i]),
         "vote_logits": float(votes_D[i])}
        for i in votes_D.abs().argsort(descending=True)[:COORDINATES].tolist()
    ]  # fmt: skip
    return numbers, rows


def _largest(x_D: Tensor) -> float:
    """Share of the squared length that lies in the largest coordinate."""
    return float(x_D.square().max() / x_D.square().sum().clamp_min(1e-30))


def _half(votes_D: Tensor) -> int:
    """How many coordinates, strongest first, carry half of all that coordinates put on the scales."""
    sizes = votes_D.abs().sort(descending=True).values
    return int((sizes.cumsum(0) < sizes.sum() / 2).sum()) + 1
