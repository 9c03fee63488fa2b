"""One momentum buffer per group, so that what is carried over is split by group exactly.  [torch]

Momentum is linear in the gradients, so the buffers of the groups add up to the optimizer's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intaglio.errors import UnmeasurableError
from intaglio.measure.books import StepBooks
from intaglio.measure.collect import Record
from intaglio.measure.exact import slabs
from intaglio.measure.settle import Snapshot, canonical
from intaglio.model.layout import Layout, Weight


class GroupCarry:
    """Buffers by group; costs one copy of the momentum per group and one weight gradient per step."""

    def __init__(self, layout: Layout) -> None:
        if layout.lora:
            raise UnmeasurableError("--group-momentum is not measured under LoRA", expected="full fine-tuning")
        self.layout = layout
        self.buffers: dict[str, dict[int, Tensor]] = {}

    def step(
        self, records: list[Record], groups: list[str], books: StepBooks, scales: dict[int, float],
        snapshot: Snapshot, optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:  # fmt: skip
        """Carry of every group in this step (parameter length), then the step's gradients join the buffers."""
        names = sorted(set(groups) | set(self.buffers))
        carried = {name: self._carried(name, books) for name in names}
        membership = torch.zeros(len(names), len(groups))
        for i, group in enumerate(groups):
            membership[names.index(group), i] = 1.0
        by_param = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        for weight in self.layout.weights:
            key = id(weight.param)
            if key not in snapshot.moved or key not in books.param_books:
                continue
            keep, take = _momentum(by_param[key], key in snapshot.had_buffer)
            self._absorb(weight, records, names, membership, keep, take * scales.get(key, 1.0))
        return carried

    def _carried(self, name: str, books: StepBooks) -> float:
        total = 0.0
        for key, buffer in self.buffers.get(name, {}).items():
            book = books.param_books.get(key)
            if book is not None and book.rule.carry:
                total += book.rule.carry * float((buffer * book.direction).double().sum())
        return total / books.update_l2 if books.update_l2 else 0.0

    def _absorb(
        self, weight: Weight, records: list[Record], names: list[str], membership: Tensor, keep: float, take: float
    ) -> None:
        key = id(weight.param)
        for name in names:
            buffer = self.buffers.setdefault(name, {}).setdefault(key, torch.zeros_like(weight.param.detach()))
            buffer.mul_(keep)
        for rows, g_NRC in slabs(self.layout, weight, records, membership.shape[1]):
            by_group = torch.einsum("gn,nrc->grc", membership.to(g_NRC.device), g_NRC)
            for name, total in zip(names, by_group):
                buffer = self.buffers[name][key]
                target = canonical(buffer, weight)[rows] if buffer.ndim == 2 else buffer.view(1, -1)
                target.add_(total, alpha=take)


def _momentum(group: dict, had_buffer: bool) -> tuple[float, float]:
    """(how much of the buffer stays, how much of the gradient enters), torch's own formulas."""
    sign = -1.0 if group.get("maximize") else 1.0
    if "betas" in group:
        b1 = float(group["betas"][0])
        return b1, sign * (1 - b1)
    mu = float(group.get("momentum", 0.0))
    return mu, sign * (1 - float(group.get("dampening", 0.0)) if had_buffer else 1.0)
