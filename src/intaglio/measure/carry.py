"""One momentum buffer per group, so that what is carried over is split by group exactly.  [torch]

Momentum is linear in the gradients, so the buffers of the groups add up to the optimizer's,
once what belongs to no group has buffers too: momentum that stood before the run (EARLIER),
weight decay that enters the momentum (DECAY: SGD, and Adam without decoupling), and
gradients that were changed beyond a factor before the step (CHANGED).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from intaglio.errors import InputError, RecipeError, UnmeasurableError
from intaglio.measure.books import StepBooks
from intaglio.measure.collect import Record
from intaglio.measure.exact import slabs
from intaglio.measure.ranks import Ranks
from intaglio.measure.settle import Snapshot, canonical
from intaglio.model.layout import Layout, Weight

EARLIER, DECAY, CHANGED = "(earlier)", "(decay)", "(changed)"


def check_groups(groups: Iterable[str | None]) -> None:
    """Refuse to split momentum by group where nothing has a group: all of it would be of one nameless group.

    Args:
        groups: of the examples; None or "" where one has none.

    Raises:
        RecipeError: none has one.
    """
    if not any(groups):
        raise RecipeError(
            "group momentum splits the momentum by the data's `group` column, and this data has none",
            expected="a `group` in the rows (in the `sources` of a Ledger), or no group momentum",
        )


def check_group_momentum(
    layout: Layout, ranks: Ranks, *, level: str, every: int, rule_name: str, groups: Iterable[str | None]
) -> None:
    """Refuse runs whose momentum cannot be split.

    Raises:
        UnmeasurableError: adapters are trained.
        InputError: other processes have a part in the momentum, some step would not be seen, or nothing has a group.
    """
    if layout.lora:
        raise UnmeasurableError("group momentum is not measured under LoRA", expected="full fine-tuning")
    if not ranks.alone:
        raise InputError("group momentum is measured in one process only", got=f"{ranks.world} of them")
    if every > 1 or level == "norms" or rule_name == "other":
        raise InputError("group momentum follows every step of SGD, Adam or AdamW", expected="full, every=1")
    check_groups(groups)


class GroupCarry:
    """Buffers by group; costs one copy of the momentum per group and one weight gradient per step."""

    def __init__(self, layout: Layout, optimizer: torch.optim.Optimizer) -> None:
        self.layout = layout
        self.buffers: dict[str, dict[int, Tensor]] = {}
        for weight in layout.weights:
            state = optimizer.state.get(weight.param, {})
            buffer = state.get("exp_avg", state.get("momentum_buffer"))
            if buffer is not None:
                self._buffer(EARLIER, weight).copy_(buffer)

    def _buffer(self, name: str, weight: Weight) -> Tensor:
        like = weight.param.detach()
        return self.buffers.setdefault(name, {}).setdefault(
            id(weight.param), torch.zeros_like(like, dtype=torch.float32, memory_format=torch.contiguous_format)
        )

    def step(
        self, records: list[Record], groups: list[str], books: StepBooks, scales: dict[int, float],
        snapshot: Snapshot, optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:  # fmt: skip
        """Carry of every group in this step (parameter length), then the step's gradients join the buffers."""
        names = sorted(set(groups) | set(self.buffers))
        carried = {name: self._carried(name, books) for name in names}
        membership = torch.zeros(len(names), len(groups), dtype=torch.float32)
        for i, group in enumerate(groups):
            membership[names.index(group), i] = 1.0
        by_param = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        for weight in self.layout.weights:
            key = id(weight.param)
            if key not in snapshot.moved:
                continue
            keep, take, decay = _momentum(by_param[key], key in snapshot.had_buffer)
            for buffers in self.buffers.values():
                if key in buffers:
                    buffers[key].mul_(keep)
            if decay:
                self._buffer(DECAY, weight).add_(snapshot.theta[key].float(), alpha=decay)
            if not books.param_books[key].foreign:
                self._absorb(weight, records, names, membership, take * scales.get(key, 1.0))
            else:
                self._buffer(CHANGED, weight).add_(weight.param.grad.float(), alpha=take)
        return carried

    def _carried(self, name: str, books: StepBooks) -> float:
        total = 0.0
        for key, buffer in self.buffers.get(name, {}).items():
            book = books.param_books.get(key)
            if book is not None and book.rule.carry:
                total += book.rule.carry * float((buffer * book.direction).double().sum())
        return total / books.update_l2 if books.update_l2 else 0.0

    def _absorb(self, weight: Weight, records: list[Record], names: list[str], membership: Tensor, take: float) -> None:
        for rows, g_NRC in slabs(weight, records, membership.shape[1]):
            by_group = torch.einsum("gn,nrc->grc", membership.to(g_NRC.device), g_NRC)
            for i in membership.any(1).nonzero()[:, 0].tolist():
                buffer = self._buffer(names[i], weight)
                target = canonical(buffer, weight)[rows] if buffer.ndim == 2 else buffer.view(1, -1)
                target.add_(by_group[i], alpha=take)


def _momentum(group: dict, had_buffer: bool) -> tuple[float, float, float]:
    """How much of the buffer stays, of the gradient enters, and of the weights: torch's own formulas."""
    sign = -1.0 if group.get("maximize") else 1.0
    decay = 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
    if "betas" in group:
        b1 = float(group["betas"][0])
        return b1, sign * (1 - b1), decay * (1 - b1)
    fresh = 1 - float(group["dampening"]) if had_buffer else 1.0
    return float(group["momentum"]), sign * fresh, decay * fresh
