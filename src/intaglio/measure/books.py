"""The books of one optimizer step, from records (data's side) and accounts (the optimizer's side).  [torch]"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from intaglio.measure import writes
from intaglio.measure.collect import Factor, Projections, Record
from intaglio.measure.lora import LoraBooks, lora_token_dots, settle_lora
from intaglio.measure.products import times
from intaglio.measure.ranks import Ranks
from intaglio.measure.settle import ParamBooks, Snapshot, canonical, settle_parameter
from intaglio.model.layout import Layout, Site, Weight


@dataclass(eq=False)
class Directions:
    """What the examples' gradients are held against: per parameter a tensor and a factor."""

    plain: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    lora: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by site index


@dataclass(eq=False)
class StepBooks:
    """Everything settled about one step; lengths are parameter lengths, tensors per address are (A,)."""

    update_l2: float
    data: float
    carry: float
    decay: float
    unmeasured: float
    unexplained: float
    interaction: float
    rounding: float
    part_update2: Tensor
    part_weight2: Tensor
    part_data: Tensor
    part_carry: Tensor
    part_decay: Tensor
    shift_NA: list[Tensor]  # per record
    token_shift_BT: list[Tensor]  # per record
    directions: Directions = field(default_factory=Directions)  # good until the next step's snapshot is taken
    param_books: dict[int, ParamBooks] = field(default_factory=dict)

    @property
    def closure(self) -> float | None:
        """abs(sum of all accounts / length of the step - 1)."""
        if self.update_l2 == 0:
            return None
        total = self.data + self.carry + self.decay + self.unmeasured + self.unexplained + self.interaction
        return abs((total + self.rounding) / self.update_l2 - 1)


def groups_of(optimizer: torch.optim.Optimizer) -> dict[int, dict]:
    """Parameter id to its group."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def settle(
    layout: Layout,
    records: list[Record],
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    *,
    rule_name: str,
    scales: dict[int, float],
    foreign: set[int],
    lora_weight2: dict[int, Tensor],
) -> StepBooks:
    """Split the step that was just taken among examples, momentum, decay and rounding.

    Args:
        scales: factor between backward and step, per parameter.
        foreign: parameters whose gradient was changed in another way: what came of it is no example's and enters as
            unmeasured, by formula from the gradient as the optimizer got it; adapters both or neither.
        lora_weight2: squared length per unit of the frozen matrix under each adapter, by site index.
    """
    groups = groups_of(optimizer)
    total = _Totals(layout)
    directions, books = Directions(), {}
    lora_sites = [s for s in layout.sites if s.kind == "lora"]
    adapters = {id(w.param) for s in lora_sites for w in s.weights}
    for weight in layout.weights:
        key = id(weight.param)
        if key in adapters or key not in snapshot.moved:
            continue
        found = settle_parameter(
            weight, group=groups[key], state=optimizer.state.get(weight.param, {}), snapshot=snapshot,
            rule_name=rule_name, scale=scales.get(key, 1.0),
        )  # fmt: skip
        found.foreign = key in foreign
        books[key] = found
        total.add_plain(weight, found)
        if found.foreign:
            total.changed += found.from_gradient(weight.param.grad)
        else:
            directions.plain[key] = (found.direction, found.factor)
    moved = [s for s in lora_sites if any(id(w.param) in snapshot.moved for w in (s.weight, s.lora_b))]
    for site, found in settle_lora(moved, optimizer, snapshot, rule_name, scales, groups):
        total.add_lora(site, found, lora_weight2[site.index])
        if id(site.weight.param) in foreign:
            total.changed += float(found.from_gradient.sum())
        else:
            directions.lora[site.index] = (found.direction_a, found.direction_b)
    for p in layout.unmeasured.values():
        if id(p) in snapshot.moved:
            total.unmeasured2 += _plain_length2(p, snapshot)
    # Whatever else the optimizer moved counts in the step's length but in no account: the books then fail.
    known = {id(w.param) for w in layout.weights} | {id(p) for p in layout.unmeasured.values()}
    lost = [p for group in optimizer.param_groups for p in group["params"] if id(p) in snapshot.moved - known]
    total.lost2 = sum(_plain_length2(p, snapshot) for p in lost)
    found = total.books(project(records, directions), books, split=bool(directions.plain or directions.lora))
    found.directions = directions
    return found


def _plain_length2(p: torch.nn.Parameter, snapshot: Snapshot) -> float:
    return float((p.detach().double() - snapshot.theta[id(p)].double()).square().sum())


class _Totals:
    """Sums over parameters, per address, before they are divided by the step's length."""

    def __init__(self, layout: Layout) -> None:
        device = layout.sites[0].weights[0].param.device if layout.sites and layout.sites[0].weights else None
        zero = torch.zeros(len(layout.addresses), dtype=torch.float64, device=device)
        self.uu, self.ww, self.carry, self.decay = (zero.clone() for _ in range(4))
        self.rounding = self.unexplained = self.interaction = self.unmeasured2 = self.lost2 = 0.0
        self.changed = 0.0  # what came of gradients that were changed on the way to the step

    def add_plain(self, weight: Weight, found: ParamBooks) -> None:
        for target, units in (
            (self.uu, found.uu), (self.ww, found.ww), (self.carry, found.carry), (self.decay, found.decay),
        ):  # fmt: skip
            weight.add_units(target, units)
        self.rounding += float(found.rounding.sum())
        self.unexplained += float(found.unexplained.sum())

    def add_lora(self, site: Site, found: LoraBooks, weight2: Tensor) -> None:
        for target, units in (
            (self.uu, found.uu), (self.ww, weight2), (self.carry, found.carry), (self.decay, found.decay),
        ):  # fmt: skip
            site.weight.add_units(target, units)
        self.rounding += float(found.rounding.sum())
        self.unexplained += float(found.unexplained.sum())
        self.interaction += float(found.interaction.sum())

    def books(
        self, shifts: list[tuple[Tensor, Tensor]], param_books: dict[int, ParamBooks], *, split: bool
    ) -> StepBooks:
        length = (float(self.uu.sum()) + self.unmeasured2 + self.lost2) ** 0.5
        inverse = 1.0 / length if length > 0 else 0.0
        known = inverse if split else math.nan  # what was split among nobody is not 0 for everybody
        by_address = sum((parts.sum(0) for parts, _ in shifts), torch.zeros_like(self.uu)) * inverse
        return StepBooks(
            update_l2=length,
            data=float(by_address.sum()),
            carry=float(self.carry.sum()) * inverse,
            decay=float(self.decay.sum()) * inverse,
            unmeasured=(self.unmeasured2 + self.changed) * inverse,
            unexplained=self.unexplained * inverse,
            interaction=self.interaction * inverse,
            rounding=self.rounding * inverse,
            part_update2=self.uu,
            part_weight2=self.ww,
            part_data=by_address,
            part_carry=self.carry * inverse,
            part_decay=self.decay * inverse,
            shift_NA=[parts * known for parts, _ in shifts],
            token_shift_BT=[tokens * known for _, tokens in shifts],
            param_books=param_books,
        )


def project(records: list[Record], directions: Directions, *, by_part: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Inner products of every example's and token's writes with a direction in parameter space.

    Args:
        by_part: whether the first result is filled; without it only tokens are summed.

    Returns:
        Per record: (n, A) per example and address, and (B, T) per position.
    """
    found = []
    for record in records:
        parts = torch.zeros_like(record.push2_NA)
        tokens = torch.zeros(record.write2_BT.shape, dtype=torch.float64, device=record.write2_BT.device)
        for factor in record.factors:
            for weight, units in _units_of(factor, directions):
                tokens[:, factor.offset : factor.offset + units.shape[1]].add_(units.sum(-1))
                if by_part:
                    _book(record, weight, units, factor.offset, parts)
        found.append((parts, tokens))
    return found


def project_tokens(records: list[Record], directions: Directions, addresses: list[int]) -> list[Tensor]:
    """The same inner products by token and address, for some addresses only: (B, T, K) per record.

    Args:
        addresses: their places in `Layout.addresses`.
    """
    found = []
    for record in records:
        total = record.push2_NA.new_zeros(*record.write2_BT.shape, record.push2_NA.shape[1])
        for factor in record.factors:
            for weight, units in _units_of(factor, directions):
                if not set(addresses).isdisjoint(weight.address_index.tolist()):
                    weight.add_units(total[:, factor.offset : factor.offset + units.shape[1]], units)
        found.append(total[..., addresses])
    return found


def _book(record: Record, weight: Weight, units_BTU: Tensor, offset: int, parts: Tensor) -> None:
    for block in record.caught.blocks:
        start, stop = max(0, block.span.start - offset), block.span.stop - offset
        if stop > start:
            weight.add_units(parts[block.slots], units_BTU[block.rows, start:stop].sum(1))


def _units_of(factor: Factor, directions: Directions):
    """(weight, (B, T, U) inner products) of every parameter that this factor writes."""
    site, factor = factor.site, on_device(factor)
    if site.kind == "lora":
        if site.index in directions.lora:
            x = (factor.a if factor.dropped is None else factor.dropped).float()
            yield site.weight, lora_token_dots(site, x, factor.b.float(), factor.lora, *directions.lora[site.index])
        return
    for weight in (site.weight, site.bias):
        if weight is None or id(weight.param) not in directions.plain:
            continue
        v, scale = directions.plain[id(weight.param)]
        v = v.float()
        if weight.kind == "embedding":
            units = torch.linalg.vecdot(v[factor.ids], factor.b.float())[..., None]
        elif weight.kind == "gain":
            units = (factor.gain.float() @ v)[..., None]
        elif weight.kind == "bias":
            units = (factor.b.float() @ v)[..., None]
        else:
            units = writes.token_dots(
                factor.a.float(), factor.b.float(), canonical(v, weight), side=weight.side, n_units=weight.n_units
            )
        yield weight, units.mul_(scale)


def on_device(factor: Factor) -> Factor:
    """The factor beside the weights again, where it had gone to host memory."""
    device = factor.site.weights[0].param.device
    if factor.b.device == device:
        return factor
    moved = {n: t.to(device) for n in ("a", "b", "gain", "dropped", "lora") if (t := getattr(factor, n)) is not None}
    return replace(factor, **moved)


def lora_weight2(layout: Layout) -> dict[int, Tensor]:
    """Squared length per unit of the frozen matrix under each adapter."""
    found = {}
    for site in layout.sites:
        if site.kind != "lora":
            continue
        w = site.module.get_base_layer().weight.detach()
        w2 = (w.t() if getattr(site.module, "fan_in_fan_out", False) else w).double().square()
        weight = site.weight
        if weight.n_units == 1:
            found[site.index] = w2.sum()[None]
        elif weight.side == "out":
            found[site.index] = w2.reshape(weight.n_units, -1).sum(-1)
        else:
            found[site.index] = w2.reshape(w2.shape[0], weight.n_units, -1).sum((0, 2))
    return found


def gradient_match(
    layout: Layout, records: list[Record], ours_S: Tensor, projections: Projections, scales: dict[int, float], ranks: Ranks
) -> float:
    """Whether the caught writes add up to autograd's gradient.

    Both are compared in their sketches: fixed random projections.

    Args:
        ours_S: the sum of all sketches, of all processes.

    Returns:
        norm(sum h_i - G) / norm(G).
    """
    difference2 = length2 = 0.0
    done, adapters, columns, sketches = set(), [], [], []
    for site in layout.sites:
        if site.kind == "lora":
            missing, found = _lora_match(site, records, projections, scales, ranks.world)
            adapters += missing
            length2 += found
            continue
        for weight in (site.weight, site.bias):
            if weight is None or id(weight.param) in done or weight.param.grad is None:
                continue
            done.add(id(weight.param))
            scale = scales.get(id(weight.param), 1.0) or 1.0
            grad = weight.param.grad.detach().float()
            sketches.append(_sketch_of(grad, weight, projections) / scale)
            columns.append(ours_S[projections.columns(weight)])
    if sketches:
        theirs = torch.cat(sketches).double()
        difference2 += float((torch.cat(columns) - theirs).square().sum())
        length2 += float(theirs.square().sum())
    if adapters:
        difference2 += float(ranks.sum(torch.cat(adapters)).square().sum())
    return (difference2 / length2) ** 0.5 if length2 else math.nan


def _sketch_of(grad: Tensor, weight: Weight, projections: Projections) -> Tensor:
    if grad.ndim == 1:
        return grad @ projections.signs(weight, "vector", grad.shape[0], grad.device)
    matrix = canonical(grad, weight)
    out = projections.signs(weight, "out", matrix.shape[0], grad.device)
    within = projections.signs(weight, "in", matrix.shape[1], grad.device)
    return (times(out.mT, matrix.mT) @ within).flatten()


def _lora_match(
    site: Site, records: list[Record], projections: Projections, scales: dict[int, float], world: int
) -> tuple[list[Tensor], float]:
    """What this process's writes lack of their share of A's and B's gradients, and autograd's squared length: in
    sketches."""
    caught = [f.lora for record in records for f in record.factors if f.site is site]
    missing, length2 = [], 0.0
    for which, weight in (("in", site.weight), ("out", site.lora_b)):
        if weight.param.grad is None:
            continue
        grad = weight.param.grad.detach().float() / (scales.get(id(weight.param), 1.0) or 1.0)
        if not caught:
            continue  # level norms keeps no factors
        signs = projections.signs(site.weight, which, grad.shape[1 if which == "in" else 0], grad.device)
        theirs = (grad @ signs if which == "in" else signs.mT @ grad).double()
        ours = sum((c.match_a if which == "in" else c.match_b).double() for c in caught)
        missing.append((ours - theirs / world).flatten())
        length2 += float(theirs.square().sum())
    return missing, length2
