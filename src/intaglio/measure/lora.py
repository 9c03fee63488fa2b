"""LoRA: books of the product dW = s B A, because A and B alone are not gauge-invariant.  [torch]

With old A0, B0 the step of the product is U_W = s (dB A1 + B0 dA) = s P Q, P = [dB, B0],
Q = [A1; dA]; it is never built. An example's part is c^W = s (c^B A0 + B0 c^A), so its
inner product with U_W needs only the pulled-back directions s U_W A0^T (for B) and
s B0^T U_W (for A). The account `interaction` is s dB dA.

Shapes: S adapters alike, q outputs, p inputs, r rank, U units (heads) of the product's rows or columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.measure.products import times
from intaglio.measure.rules import Rule, denominator, rule_for
from intaglio.measure.settle import Snapshot, projection_factor
from intaglio.model.layout import Layout, Site, Weight

STILL = Rule(0.0, 0.0, 0.0, None)  # of a half that this step does not move
TOGETHER = 1 << 20  # numbers of directions that are made at once
HALVES, DIRECTIONS = 12, 3  # how many arrays as large as the adapters and as their directions are held then, in double


@dataclass(eq=False)
class LoraBooks:
    """Accounts of one adapter's step per unit, times the length of the whole step."""

    uu: Tensor
    carry: Tensor
    decay: Tensor
    rounding: Tensor
    interaction: Tensor
    unexplained: Tensor
    from_gradient: Tensor  # what came of both gradients as the optimizer got them; the data's, unless they were changed
    direction_a: Tensor  # (U or 1, r, p), times data * scale
    direction_b: Tensor  # (q, r) or (U, q, r), times data * scale


@dataclass(eq=False)
class _Half:
    """A or B of adapters that are alike, (S, rows, columns), with everything the optimizer did to them; all in double."""

    old: Tensor
    new: Tensor
    momentum: Tensor
    asked: Tensor
    inverse: Tensor  # 1 / D
    data: Tensor  # (S, 1, 1)
    carry: float
    decay_over_denominator: bool
    decay: float
    ulp: float
    unexplained: Tensor  # of the change, under an optimizer without formulas
    given: Tensor  # of the change: what came of the gradient as the optimizer got it

    @property
    def change(self) -> Tensor:
        return self.new - self.old

    def swallowed(self) -> Tensor:
        bound = self.ulp * (self.old.abs() + self.change.abs())
        return torch.minimum(torch.maximum(self.change - self.asked, -bound), bound)

    def decay_vector(self) -> Tensor:
        return self.decay * self.old * (self.inverse if self.decay_over_denominator else 1.0)


def _half(
    weights: list[Weight], rule: Rule, optimizer: torch.optim.Optimizer, snapshot: Snapshot, scales: dict[int, float]
) -> _Half:
    params = [w.param for w in weights]
    old, new, momentum, grad = (torch.stack(each).double() for each in zip(*(_taken(p, snapshot) for p in params)))

    def each(values: list[float]) -> Tensor:
        return old.new_tensor(values)[:, None, None]

    scale, nothing = each([scales.get(id(p), 1.0) for p in params]), torch.zeros_like(old)
    if not rule.formula:  # nothing is known of this optimizer: the part along the gradient is the data's
        alpha = each([projection_factor(p, snapshot) for p in params])
        change, given = new - old, alpha * grad
        return _Half(old, new, momentum, change, torch.ones_like(old), alpha * scale, 0.0, False, 0.0, 0.0,
                     change - given, given)  # fmt: skip
    inverse = torch.ones_like(old)
    if rule.second:
        second = torch.stack([optimizer.state[p][rule.second] for p in params])
        inverse = denominator(rule, {rule.second: second}, ...).double().reciprocal_()
    half = _Half(
        old, new, momentum, nothing, inverse, rule.data * scale, rule.carry, rule.decay_over_denominator, rule.decay,
        2 * torch.finfo(params[0].dtype).eps, nothing, grad * rule.data * inverse,
    )  # fmt: skip
    half.asked = half.given + momentum * rule.carry * inverse + half.decay_vector()
    return half


def _taken(p: torch.nn.Parameter, snapshot: Snapshot) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A half before and after the step, its momentum before and its gradient."""
    if id(p) not in snapshot.moved:
        return p.detach(), p.detach(), torch.zeros_like(p), torch.zeros_like(p)
    return snapshot.theta[id(p)], p.detach(), snapshot.momentum[id(p)], p.grad.detach()


def _units(t_SRC: Tensor, n_units: int, axis: int) -> Tensor:
    """(S, U, ...) slices of matrices along their rows (0) or columns (1), or the matrices themselves as one unit."""
    if n_units == 1:
        return t_SRC[:, None]
    sites, rows, columns = t_SRC.shape
    if axis == 0:
        return t_SRC.reshape(sites, n_units, rows // n_units, columns)
    return t_SRC.reshape(sites, rows, n_units, columns // n_units).transpose(1, 2)


def settle_lora(
    sites: list[Site], optimizer: torch.optim.Optimizer, snapshot: Snapshot, rule_name: str,
    scales: dict[int, float], groups: dict[int, dict],
) -> Iterator[tuple[Site, LoraBooks]]:  # fmt: skip
    """Accounts of every adapter's step, and the directions that give every token's share of it.

    Adapters of one shape and one rule are settled together: each is small, and calls cost more than arithmetic.
    """

    def rule_of(weight: Weight) -> Rule:
        p = weight.param
        if id(p) not in snapshot.moved:
            return STILL
        return rule_for(rule_name, groups[id(p)], optimizer.state.get(p, {}), had_buffer=id(p) in snapshot.had_buffer)

    alike: dict[tuple, list[Site]] = {}
    for site in sites:
        a, b = site.weight, site.lora_b
        together = max(1, TOGETHER // _spread(site))
        kind = (rule_of(a), rule_of(b), a.param.shape, b.param.shape, a.param.dtype, b.param.dtype, a.param.device,
                a.side, a.n_units, site.scale)  # fmt: skip
        full = sum(len(found) // together for key, found in alike.items() if key[:-1] == kind)
        alike.setdefault((*kind, full), []).append(site)
    for (rule_a, rule_b, *_), found in alike.items():
        a = _half([s.weight for s in found], rule_a, optimizer, snapshot, scales)
        b = _half([s.lora_b for s in found], rule_b, optimizer, snapshot, scales)
        yield from zip(found, _settle(found[0], a, b))


def _spread(site: Site) -> int:
    """Numbers in an adapter's directions: the half that the units do not slice has one for each."""
    a, b, u = site.weight.param.numel(), site.lora_b.param.numel(), site.weight.n_units
    return a * u + b if site.weight.side == "out" else a + b * u


def lora_bytes(layout: Layout) -> int:
    """Most bytes of a settled step beside the copies: every adapter's directions, which stand until the next step,
    and what it takes to make some of them."""
    standing, working, alike = 0, 0, Counter()
    for site in (s for s in layout.sites if s.kind == "lora"):
        a, b, spread = site.weight, site.lora_b, _spread(site)
        kind = a.param.shape, b.param.shape, a.side, a.n_units
        alike[kind] += 1
        at_once = min(alike[kind], max(1, TOGETHER // spread))
        standing += 4 * spread
        working = max(working, 8 * at_once * (HALVES * (a.param.numel() + b.param.numel()) + DIRECTIONS * spread))
    return standing + working


def _settle(site: Site, a: _Half, b: _Half) -> Iterator[LoraBooks]:
    """Accounts of adapters like this site's, each in turn."""
    u, split_out, s2 = site.weight.n_units, site.weight.side == "out", site.scale**2
    n_rows, n_columns = (u, 1) if split_out else (1, u)
    left = torch.cat([b.change, b.old], dim=2)  # P (q, 2r)
    right = torch.cat([a.new, a.change], dim=1)  # Q (2r, p)
    p_units, b_units, change_b = (_units(t, n_rows, 0) for t in (left, b.old, b.change))
    q_units, a_units, change_a, inverse_a = (_units(t, n_columns, 1) for t in (right, a.old, a.change, a.inverse))
    for_a = s2 * (b_units.mT @ p_units) @ q_units  # (S, U, r, p')
    for_b = s2 * p_units @ (q_units @ a_units.mT)  # (S, U, q', r)
    inner_q = q_units @ q_units.mT
    uu = s2 * ((p_units.mT @ p_units) * inner_q).sum((-1, -2))
    interaction = s2 * ((change_b.mT @ p_units) * (change_a @ q_units.mT)).sum((-1, -2))

    def both(vector_a: Tensor, vector_b: Tensor) -> Tensor:
        along_a, along_b = _units(vector_a, n_columns, 1) * for_a, _units(vector_b, n_rows, 0) * for_b
        return along_a.sum((-1, -2)) + along_b.sum((-1, -2))

    accounts = (
        uu,
        both(a.carry * a.momentum * a.inverse, b.carry * b.momentum * b.inverse),
        both(a.decay_vector(), b.decay_vector()),
        both(a.swallowed(), b.swallowed()),
        interaction,
        both(a.unexplained, b.unexplained),
        both(a.given, b.given),
        (for_a * inverse_a * a.data[:, None]).float(),
        (for_b * _units(b.inverse, n_rows, 0) * b.data[:, None]).float(),
    )
    for one in zip(*accounts):
        yield LoraBooks(*one)


def both_or_neither(layout: Layout, foreign: set[int]) -> set[int]:
    """Parameters whose gradient was changed, with the other half of every adapter: the books are of their product."""
    pairs = ({id(s.weight.param), id(s.lora_b.param)} for s in layout.sites if s.kind == "lora")
    return foreign.union(*(pair for pair in pairs if pair & foreign))


@dataclass(eq=False)
class LoraCatch:
    """What an adapter's pass is held against besides its writes, made once with A0 and B0 as they stand."""

    low_BTR: Tensor  # A x
    back_BTR: Tensor  # s B^T b
    match_a: Tensor  # (r, k) the gradient of A, its columns projected onto k random signs
    match_b: Tensor  # (k, r) the gradient of B, its rows projected

    def to(self, device: torch.device | str) -> LoraCatch:
        """The same on another device."""
        return LoraCatch(*(t.to(device) for t in (self.low_BTR, self.back_BTR, self.match_a, self.match_b)))


def lora_catch(site: Site, x_BTP: Tensor, b_BTQ: Tensor, x_BKT: Tensor, b_BKT: Tensor) -> LoraCatch:
    """The inner activations of an adapter and the sketch of its own two gradients.

    Args:
        x_BTP: the adapter's input (after its dropout); x_BKT: projected onto k random signs.
        b_BTQ: gradient at the layer's output; b_BKT: projected.
    """
    low = times(x_BTP, site.weight.param.detach().float())
    back = times(b_BTQ, site.lora_b.param.detach().float().mT).mul_(site.scale)
    match_a = (x_BKT @ back).sum(0).mT
    match_b = (b_BKT @ low).sum(0).mul_(site.scale)
    return LoraCatch(low, back, match_a, match_b)


def lora_token_dots(
    site: Site, x_BTP: Tensor, b_BTQ: Tensor, catch: LoraCatch, direction_a: Tensor, direction_b: Tensor
) -> Tensor:
    """<h^A_t, direction_a> + <h^B_t, direction_b> for every position and unit of the product.

    h^B_t = s b_t (A x_t)^T and h^A_t = s (B^T b_t) x_t^T.

    Args:
        x_BTP: the adapter's input (after its dropout).
        b_BTQ: gradient at the layer's output.
        direction_a: (1, r, p), (U, r, p) when rows are split, (U, r, p/U) when columns are.
        direction_b: (1, q, r), (U, q/U, r) when rows are split, (U, q, r) when columns are.

    Returns:
        (B, T, U).
    """
    rows, length = x_BTP.shape[:2]
    n_units, split_out = max(len(direction_a), len(direction_b)), site.weight.side == "out"
    low_BTR, back_BTR = catch.low_BTR, catch.back_BTR
    rank = low_BTR.shape[-1]
    if n_units == 1:
        from_a = (times(x_BTP, direction_a[0]) * back_BTR).sum(-1, keepdim=True)
        from_b = (times(b_BTQ, direction_b[0].mT) * low_BTR).sum(-1, keepdim=True)
    elif split_out:
        seen = times(x_BTP, direction_a.reshape(n_units * rank, -1)).view(rows, length, n_units, rank)
        from_a = (seen * back_BTR[:, :, None]).sum(-1)
        written = times(low_BTR, direction_b.reshape(-1, rank))
        from_b = (written * b_BTQ).view(rows, length, n_units, -1).sum(-1)
    else:
        whole = direction_a.transpose(0, 1).reshape(rank, -1)  # columns back in order
        terms = times(back_BTR, whole.mT)
        from_a = (terms * x_BTP).view(rows, length, n_units, -1).sum(-1)
        seen = times(b_BTQ, direction_b.transpose(1, 2).reshape(-1, b_BTQ.shape[-1])).view(rows, length, n_units, rank)
        from_b = (seen * low_BTR[:, :, None]).sum(-1)
    return from_a + from_b * site.scale


def lora_gradients(site: Site, x_BTP: Tensor, b_BTQ: Tensor, old_a: Tensor, old_b: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of A and B that the caught writes add up to (to hold against autograd's)."""
    x, b = x_BTP.flatten(0, 1), b_BTQ.flatten(0, 1)
    return site.scale * (b @ old_b).mT @ x, site.scale * b.mT @ (x @ old_a.mT)
