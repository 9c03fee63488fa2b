"""Which rows to look at first: evidence against each example, combined plainly, beside what loss alone says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intaglio.analyse.stats import ranks
from intaglio.findings import ExampleFinding, Findings

FLOORS = {  # evidence nearer to nothing than this is no reason, whatever the example's place
    "against_share": 0.05, "level_residual": 0.05, "anchor_credit": 5e-5, "anchor_cosine": 0.005,
    "confident_conflict": 0.005,
}  # fmt: skip
FALL_TELLS = 0.02  # a fall is only little where others fell: the median fall is at least this share
REASON_SHARE = 0.1  # evidence is named as a reason where the example stands in the worst tenth by it

REASONS: dict[str, str] = {
    "against_share": "{value:.0%} of its visits pushed against the step taken",
    "alignment": "its gradient has least in common with the others' (mean cosine {value:+.2f})",
    "level_residual": "its gradient is long for its length (log push^2 {value:+.2f} above expectation)",
    "anchor_credit": "its part of the steps is predicted to have cost the anchor {value:.4f} nats",
    "anchor_cosine": "a small step on it alone is predicted to raise the anchor's loss (cosine {value:+.2f})",
    "not_learnt": "its loss fell by only {value:.0%}",
    "confident_conflict": "{value:.0%} of its tokens contradict what the model is sure of",
}
_RELATIVE = ("alignment", "not_learnt")  # low is worse, and low is said of any sign; the others speak of a cost
_NEGATED = (*_RELATIVE, "anchor_cosine")  # turned round to order by


@dataclass(frozen=True)
class WorstExample:
    """One example with its rank (1 is worst), the evidence, and its rank by loss alone."""

    example: ExampleFinding
    rank: int
    rank_by_loss: int | None
    score: float  # mean over the kinds of evidence of the share of examples that are better, 0 to 1
    reasons: tuple[str, ...]
    evidence: dict[str, float]


def rank_examples(findings: Findings) -> list[WorstExample]:
    """All examples, worst first.

    Each kind of evidence that the run has orders the examples; the score is the mean of an
    example's places (Borda count: no weights to choose, no scale to trust). The rank by loss
    is by the sum of losses over visits (CSL, ICML 2025), or by first loss where nothing was
    visited: hard to beat, so it always stands beside.
    """
    examples = findings.examples
    anchors = [p.probe for p in findings.probes if p.role == "anchor"]
    evidence = {name: values for name, values in _evidence(examples, anchors).items() if _tells(values)}
    places = {name: _places(values) for name, values in evidence.items()}
    if not examples:
        return []
    known = np.array(list(places.values())) if places else np.zeros((1, len(examples)))
    score = np.nanmean(np.where(np.isnan(known), 0.5, known), axis=0)
    by_loss = _ranks(_loss(examples))
    order = np.argsort(-score, kind="stable")
    return [_worst(examples[i], rank, by_loss[i], score[i], i, evidence, places) for rank, i in enumerate(order, 1)]


def _evidence(examples: Sequence[ExampleFinding], anchors: Sequence[str]) -> dict[str, np.ndarray]:
    """Kinds of evidence as in `REASONS`, each larger for worse; NaN where unknown."""
    anchor = [[e.credits_nats[p] for p in anchors if p in e.credits_nats] for e in examples]
    return {
        "against_share": _array([e.against_share for e in examples]),
        "alignment": -_array([e.alignment_mean for e in examples]),
        "level_residual": _array([e.level_residual for e in examples]),
        "anchor_credit": -_array([sum(credits) if credits else None for credits in anchor]),
        "anchor_cosine": -_array([_mean([e.credit_cosines.get(p) for p in anchors]) for e in examples]),
        "not_learnt": -_array([_fall_share(e) for e in examples]),
        "confident_conflict": _array([e.confident_conflict_share for e in examples]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _fall_share(example: ExampleFinding) -> float | None:
    if example.observations < 2 or not example.first_loss_nats or example.last_loss_nats is None:
        return None
    return 1 - example.last_loss_nats / example.first_loss_nats


def _loss(examples: Sequence[ExampleFinding]) -> np.ndarray:
    csl = _array([e.csl_nats for e in examples])
    return csl if np.isfinite(csl).any() else _array([e.first_loss_nats for e in examples])


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _tells(values: np.ndarray) -> bool:
    """Whether the evidence tells at least two examples apart."""
    known = values[np.isfinite(values)]
    return known.size > 1 and bool(np.ptp(known) > 0)


def _places(values: np.ndarray) -> np.ndarray:
    """Share of the known examples that are better, 0 to 1; ties share their mean place."""
    out = np.full(len(values), np.nan)
    known = np.isfinite(values)
    out[known] = (ranks(values[known]) - 1) / max(known.sum() - 1, 1)
    return out


def _ranks(values: np.ndarray) -> list[int | None]:
    """1 for the largest known value."""
    order = [i for i in np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable") if np.isfinite(values[i])]
    place = {i: rank for rank, i in enumerate(order, 1)}
    return [place.get(i) for i in range(len(values))]


def _worst(example: ExampleFinding, rank: int, by_loss: int | None, score: float, i: int,
           evidence: dict[str, np.ndarray], places: dict[str, np.ndarray]) -> WorstExample:  # fmt: skip
    own = {name: _as_said(name, values[i]) for name, values in evidence.items() if np.isfinite(values[i])}
    standing = [n for n in own if places[n][i] >= 1 - REASON_SHARE and _is_reason(n, own[n], evidence[n])]
    named = sorted(standing, key=lambda n: -places[n][i])
    reasons = tuple(REASONS[n].format(value=own[n]) for n in named)
    return WorstExample(example, rank, by_loss, float(score), reasons or ("no single reason stands out",), own)


def _is_reason(name: str, value: float, everyone: np.ndarray) -> bool:
    """Whether a number is worth a sentence; what is low is held against the others', and must differ from them."""
    if name not in _RELATIVE:
        return (-value if name in _NEGATED else value) >= FLOORS[name]
    median = -float(np.nanmedian(everyone))
    return median - value >= 0.01 and (name != "not_learnt" or median >= FALL_TELLS)


def _as_said(name: str, value: float) -> float:
    """The number as its sentence says it: some were negated only to order by."""
    return float(-value if name in _NEGATED else value)
