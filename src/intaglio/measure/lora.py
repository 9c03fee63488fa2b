"""LoRA: books of the product dW = s B A, because A and B alone are not gauge-invariant.  [torch]

With old A0, B0 the step of the product is U_W = s (dB A1 + B0 dA) = s P Q, P = [dB, B0],
Q = [A1; dA]; it is never built. An example's part is c^W = s (c^B A0 + B0 c^A), so its
inner product with U_W needs only the pulled-back directions s U_W A0^T (for B) and
s B0^T U_W (for A). The account `interaction` is s dB dA.

Shapes: q outputs, p inputs, r rank, U units (heads) of the product's rows or columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.measure.rules import denominator, rule_for
from intaglio.measure.settle import Snapshot, projection_factor
from intaglio.model.layout import Layout, Site, Weight


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
    """A or B with everything the optimizer did to it; all in double."""

    old: Tensor
    new: Tensor
    momentum: Tensor
    asked: Tensor
    inverse: Tensor | float  # 1 / D
    data: float
    carry: float
    decay_over_denominator: bool
    decay: float
    ulp: float
    unexplained: Tensor | float = 0.0  # of the change, under an optimizer without formulas
    given: Tensor | float = 0.0  # of the change: what came of the gradient as the optimizer got it

    @property
    def change(self) -> Tensor:
        return self.new - self.old

    def swallowed(self) -> Tensor:
        bound = self.ulp * (self.old.abs() + self.change.abs())
        return torch.minimum(torch.maximum(self.change - self.asked, -bound), bound)

    def decay_vector(self) -> Tensor:
        return self.decay * self.old * (self.inverse if self.decay_over_denominator else 1.0)


def _half(
    weight: Weight, optimizer: torch.optim.Optimizer, snapshot: Snapshot, rule_name: str, scale: float, group: dict
) -> _Half:
    p, state = weight.param, optimizer.state[weight.param]
    rule = rule_for(rule_name, group, state, had_buffer=id(p) in snapshot.had_buffer)
    d = denominator(rule, state, ...)
    inverse = 1.0 if d is None else 1.0 / d.double()
    old, momentum = snapshot.theta[id(p)].double(), snapshot.momentum[id(p)].double()
    if not rule.formula:  # nothing is known of this optimizer: the part along the gradient is the data's
        new, alpha = p.detach().double(), projection_factor(p, snapshot)
        given = alpha * p.grad.double()
        unexplained = new - old - given
        return _Half(old, new, momentum, new - old, 1.0, alpha * scale, 0.0, False, 0.0, 0.0, unexplained, given)
    half = _Half(
        old, p.detach().double(), momentum, old, inverse, rule.data * scale, rule.carry,
        rule.decay_over_denominator, rule.decay, 2 * torch.finfo(p.dtype).eps,
    )  # fmt: skip
    half.given = p.grad.double() * rule.data * inverse
    half.asked = half.given + momentum * rule.carry * inverse + half.decay_vector()
    return half


def _units(t: Tensor, n_units: int, axis: int) -> Tensor:
    """(U, ...) slices of a matrix along an axis, or the matrix itself as one unit."""
    if n_units == 1:
        return t[None]
    rows, columns = t.shape
    if axis == 0:
        return t.view(n_units, rows // n_units, columns)
    return t.view(rows, n_units, columns // n_units).transpose(0, 1)


def pulled_back(site: Site, a: _Half, b: _Half) -> tuple[Tensor, Tensor, Tensor]:
    """Directions (U, r, p') for A, (U, q', r) for B, and |U_W|^2 per unit."""
    weight, s2 = site.weight, site.scale**2
    u = weight.n_units
    left = torch.cat([b.change, b.old], dim=1)  # P (q, 2r)
    right = torch.cat([a.new, a.change], dim=0)  # Q (2r, p)
    split_out = weight.side == "out"
    p_units = _units(left, u, 0) if split_out else left[None]
    b_units = _units(b.old, u, 0) if split_out else b.old[None]
    q_units = _units(right, 1 if split_out else u, 1)
    a_units = _units(a.old, 1 if split_out else u, 1)
    for_a = s2 * (b_units.mT @ p_units) @ q_units
    for_b = s2 * p_units @ (q_units @ a_units.mT)
    uu = s2 * ((p_units.mT @ p_units) * (q_units @ q_units.mT)).sum((-1, -2))
    return for_a, for_b, uu


def settle_lora(
    site: Site, optimizer: torch.optim.Optimizer, snapshot: Snapshot, rule_name: str,
    scales: dict[int, float], groups: dict[int, dict],
) -> LoraBooks:  # fmt: skip
    """Accounts of one adapter's step, and the directions that give every token's share of it."""
    a, b = (
        _half(w, optimizer, snapshot, rule_name, scales.get(id(w.param), 1.0), groups[id(w.param)])
        for w in (site.weight, site.lora_b)
    )
    for_a, for_b, uu = pulled_back(site, a, b)
    u, split_out = site.weight.n_units, site.weight.side == "out"

    def both(vector_a: Tensor, vector_b: Tensor) -> Tensor:
        va = vector_a[None] if split_out else _units(vector_a, u, 1)
        vb = _units(vector_b, u, 0) if split_out else vector_b[None]
        return (va * for_a).sum((-1, -2)) + (vb * for_b).sum((-1, -2))

    change_b = _units(b.change, u, 0) if split_out else b.change[None]
    left = torch.cat([b.change, b.old], dim=1)
    right = torch.cat([a.new, a.change], dim=0)
    p_units = _units(left, u, 0) if split_out else left[None]
    change_a = _units(a.change, 1 if split_out else u, 1)
    q_units = _units(right, 1 if split_out else u, 1)
    interaction = site.scale**2 * ((change_b.mT @ p_units) * (change_a @ q_units.mT)).sum((-1, -2))
    direction_a = for_a * (a.inverse if split_out or u == 1 else _units(_full(a.inverse, a.old), u, 1)) * a.data
    direction_b = for_b * (_units(_full(b.inverse, b.old), u, 0) if split_out else b.inverse) * b.data
    return LoraBooks(
        uu=uu,
        carry=both(a.carry * a.momentum * a.inverse, b.carry * b.momentum * b.inverse),
        decay=both(a.decay_vector(), b.decay_vector()),
        rounding=both(a.swallowed(), b.swallowed()),
        interaction=interaction,
        unexplained=both(_full(a.unexplained, a.old), _full(b.unexplained, b.old)),
        from_gradient=both(a.given, b.given),
        direction_a=direction_a.float(),
        direction_b=direction_b.float(),
    )


def both_or_neither(layout: Layout, foreign: set[int]) -> set[int]:
    """Parameters whose gradient was changed, with the other half of every adapter: the books are of their product."""
    pairs = ({id(s.weight.param), id(s.lora_b.param)} for s in layout.sites if s.kind == "lora")
    return foreign.union(*(pair for pair in pairs if pair & foreign))


def _full(value: Tensor | float, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(like, value)


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
    low = x_BTP @ site.weight.param.detach().float().mT
    back = (b_BTQ @ site.lora_b.param.detach().float()).mul_(site.scale)
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
        from_a = ((x_BTP @ direction_a[0].mT) * back_BTR).sum(-1, keepdim=True)
        from_b = ((b_BTQ @ direction_b[0]) * low_BTR).sum(-1, keepdim=True)
    elif split_out:
        seen = (x_BTP @ direction_a.reshape(n_units * rank, -1).mT).view(rows, length, n_units, rank)
        from_a = (seen * back_BTR[:, :, None]).sum(-1)
        written = low_BTR @ direction_b.reshape(-1, rank).mT
        from_b = (written * b_BTQ).view(rows, length, n_units, -1).sum(-1)
    else:
        whole = direction_a.transpose(0, 1).reshape(rank, -1)  # columns back in order
        terms = back_BTR @ whole
        from_a = (terms * x_BTP).view(rows, length, n_units, -1).sum(-1)
        seen = (b_BTQ @ direction_b.permute(1, 0, 2).reshape(b_BTQ.shape[-1], -1)).view(rows, length, n_units, rank)
        from_b = (seen * low_BTR[:, :, None]).sum(-1)
    return from_a + from_b * site.scale


def lora_gradients(site: Site, x_BTP: Tensor, b_BTQ: Tensor, old_a: Tensor, old_b: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of A and B that the caught writes add up to (to hold against autograd's)."""
    x, b = x_BTP.flatten(0, 1), b_BTQ.flatten(0, 1)
    return site.scale * (b @ old_b).mT @ x, site.scale * b.mT @ (x @ old_a.mT)
