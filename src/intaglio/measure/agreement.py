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
from intaglio.measure.settle import Scaling
from intaglio.model.layout import Layout


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the examples' parts of the actual gradient, in the order of the visits.

    `squared_N` are their squared lengths; `own_N` the same and `along_N` their inner products with the sum over all
    processes, both in sketches unless made exact. `total2` is the squared length of the sum over all processes, before
    clipping: of autograd's own gradient, where there is one; None where that was changed on the way to the step.
    """

    sketches_NS: Tensor
    squared_N: np.ndarray
    own_N: np.ndarray
    along_N: np.ndarray
    gradient_match: float
    total2: float | None

    def exactly(self, exact: ExactProducts, *, lora: bool, alone: bool) -> Agreement:
        """The same from exact products, as far as they reach."""
        own_N = exact.products_NN.diagonal()
        if alone:
            match = self.gradient_match if lora else exact.gradient_match
            total2 = float(exact.products_NN.sum()) if lora or self.total2 is None else self.total2
            along_N = exact.products_NN.sum(1)
            return replace(self, own_N=own_N, along_N=along_N, gradient_match=match, total2=total2)
        if lora:
            return self
        # Of the other processes' examples only their sum is here, as the gradient.
        return replace(self, own_N=own_N, along_N=exact.along_N)

    def sums(self, visits: dict[str, Any]) -> dict[str, float | int]:
        """What the processes add up of a step's visits: counts, loss, and squared lengths."""
        targets = np.array(visits["targets"])
        trained = targets > 0
        return {
            "examples": len(targets), "targets": int(targets.sum()), "trained": int(trained.sum()),
            "nats": make.summed_nats(visits), "squared": float(self.squared_N[trained].sum()),
            "along": float(self.along_N.sum()),
        }  # fmt: skip


def agreement_of(
    layout: Layout, records: list[Record], projections: Projections, scaling: Scaling, ranks: Ranks
) -> Agreement:
    """The agreement in sketches; every process must come here."""
    sketches = torch.cat([r.sketch_NS for r in records])
    total_S = ranks.sum(sketches.double().sum(0))
    match = gradient_match(layout, records, total_S, projections, scaling.scales, ranks)
    own, along = (x.cpu().numpy() for x in (sketches.double().square().sum(1), sketches.double() @ total_S))
    squared_N = np.concatenate([make.squared_push(r) for r in records])
    total2 = _autograd2(layout, scaling)
    if layout.lora:
        at_products = _products2(layout, records, ranks)
        total2 = None if total2 is None else total2 + at_products
    return Agreement(sketches, squared_N, own, along, match, total2)


def _autograd2(layout: Layout, scaling: Scaling) -> float | None:
    """Squared length of autograd's gradient of all that is no adapter; None where it was changed beyond a factor."""
    plain = {id(w.param): w.param for w in layout.weights if not w.kind.startswith("lora")}
    if scaling.foreign & plain.keys():
        return None
    grads = {key: p.grad.detach().float() for key, p in plain.items() if p.grad is not None}
    if not grads:
        return 0.0
    norms = torch.stack(torch._foreach_norm(list(grads.values()))).double()
    scales = torch.tensor([scaling.scales.get(key, 1.0) or 1.0 for key in grads], dtype=torch.float64, device=norms.device)
    return float((norms / scales).square().sum())


def _products2(layout: Layout, records: list[Record], ranks: Ranks) -> float:
    """Squared length of the summed gradient at the frozen matrices under the adapters, estimated."""
    own, totals = [], []
    for site in layout.sites:
        if summed := [r.summed[site.index] for r in records if site.index in r.summed]:
            own.append(torch.stack([sum(s.exact for s in summed), sum(s.squared for s in summed)]))
            totals.append(sum(s.total_KQ for s in summed).double().flatten())
    if not own:
        return 0.0
    lengths = [len(t) for t in totals]
    *totals, own = ranks.sum(torch.cat([*totals, torch.cat(own)])).split([*lengths, 2 * len(own)])
    estimates = (t.square().sum() * exact / squared for t, (exact, squared) in zip(totals, own.view(-1, 2)) if squared)
    return float(sum(estimates))
