"""How the gradients of a step's examples agree: with their sum, and their sum with autograd's.  [torch]"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.measure import rows as make
from intaglio.measure.books import gradient_match
from intaglio.measure.collect import Projections, Record
from intaglio.measure.exact import ExactProducts
from intaglio.measure.ranks import Ranks
from intaglio.model.layout import Layout


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the examples' parts of the actual gradient, in the order of the visits.

    `squared_N` are their squared lengths; `own_N` the same and `along_N` their inner products with the sum over all
    processes, both in sketches unless made exact. `grad_l2` is the length of autograd's gradient before clipping.
    """

    sketches_NS: Tensor
    squared_N: np.ndarray
    own_N: np.ndarray
    along_N: np.ndarray
    gradient_match: float
    grad_l2: float

    def exactly(self, exact: ExactProducts, *, lora: bool, alone: bool) -> Agreement:
        """The same from exact products, as far as they reach."""
        own_N = exact.products_NN.diagonal()
        if alone:
            match = self.gradient_match if lora else exact.gradient_match
            return replace(self, own_N=own_N, along_N=exact.products_NN.sum(1), gradient_match=match)
        if lora:
            return self
        # Of the other processes' examples only their sum is here, as the gradient.
        return replace(self, own_N=own_N, along_N=exact.along_N)

    def sums(self, visits: dict[str, Any]) -> dict[str, float | int]:
        """What the processes add up of a step's visits: counts, loss, and squared lengths of all and of their sum."""
        targets = np.array(visits["targets"])
        trained = targets > 0
        return {
            "examples": len(targets), "targets": int(targets.sum()), "trained": int(trained.sum()),
            "nats": make.summed_nats(visits), "squared": float(self.squared_N[trained].sum()),
            "along": float(self.along_N.sum()), "total2": float((self.squared_N + self.along_N - self.own_N).sum()),
        }  # fmt: skip


def agreement_of(
    layout: Layout, records: list[Record], projections: Projections, scales: dict[int, float], ranks: Ranks
) -> Agreement:
    """The agreement in sketches; every process must come here."""
    sketches = torch.cat([r.sketch_NS for r in records])
    total_S = ranks.sum(sketches.double().sum(0))
    match, grad_l2 = gradient_match(layout, records, total_S, projections, scales, ranks)
    own, along = (x.cpu().numpy() for x in (sketches.double().square().sum(1), sketches.double() @ total_S))
    return Agreement(sketches, np.concatenate([make.squared_push(r) for r in records]), own, along, match, grad_l2)
