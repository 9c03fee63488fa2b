"""The optimizer's side: split the step that was taken into accounts.  [torch]

For every parameter U = theta_after - theta_before is compared with the optimizer's own
formula (rules.py). One pass over the parameters, in pieces that stay in the cache, gives
all sums; the matrix R = U/D is left in place of the momentum copy for the token dots.
No account is fitted to the step: what the formula does not give is missing in the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from intaglio.measure.ranks import Ranks
from intaglio.measure.rules import Rule, denominator, rule_for
from intaglio.model.layout import Weight

PIECE = 1 << 19  # numbers per piece: a few such buffers fit the shared cache, and calls are few
ROUNDING_SHARE = 7  # one number in seven stands for the rounding of a large piece, where it is hardly visible
SMALL_PIECE = 1 << 12
SAMPLES = 64  # strided coordinates per parameter for the clip scale
FOREIGN = 1e-5  # spread of the clip scale over coordinates beyond which a gradient was not merely scaled
NET_STRIDE = 61  # every 61st coordinate stands for the distance from the start


@dataclass(eq=False)
class Snapshot:
    """What is copied just before the optimizer steps; the buffers are used again every step."""

    theta: dict[int, Tensor] = field(default_factory=dict)
    momentum: dict[int, Tensor] = field(default_factory=dict)
    had_buffer: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)
    lr: dict[int, float] = field(default_factory=dict)

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        self.had_buffer.clear()
        self.moved.clear()
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue  # no gradient means no step
                key = id(p)
                self.moved.add(key)
                self._copy(self.theta, key, p.detach())
                state = optimizer.state.get(p, {})
                buffer = state.get("exp_avg", state.get("momentum_buffer"))
                if buffer is not None:
                    self.had_buffer.add(key)
                    self._copy(self.momentum, key, buffer)
                elif key in self.momentum:
                    self.momentum[key].zero_()
                else:
                    self.momentum[key] = torch.zeros_like(p, memory_format=torch.contiguous_format)

    @staticmethod
    def _copy(into: dict[int, Tensor], key: int, source: Tensor) -> None:
        if key in into and into[key].dtype == source.dtype:
            into[key].copy_(source)
        else:
            into[key] = source.detach().clone(memory_format=torch.contiguous_format)


@dataclass(eq=False)
class ParamBooks:
    """Accounts of one parameter, per unit, times the length of the whole step (still to be divided)."""

    rule: Rule
    scale: float  # factor between backward and step
    uu: Tensor  # (U,) squared length of the step
    ww: Tensor  # (U,) squared length of the weights before
    carry: Tensor  # (U,) <carry, U>
    decay: Tensor  # (U,) <decay, U>
    rounding: Tensor  # (U,) <what precision swallowed, U>
    unexplained: Tensor  # (U,)
    direction: Tensor | None  # R: <c, U> = data * scale * <h, R>
    foreign: bool = False  # its gradient was changed beyond a factor, so no part of it is any example's

    @property
    def factor(self) -> float:
        """What turns <h, R> into <c, U>."""
        return 0.0 if self.foreign else self.rule.data * self.scale

    def from_gradient(self, grad: Tensor) -> float:
        """<the step's part that came from the gradient as the optimizer got it, U>."""
        return self.rule.data * float((grad.float() * self.direction.float()).sum(dtype=torch.float64))


def reduce_units(product: Tensor, weight: Weight) -> Tensor:
    """Sum a piece (r, c) of a matrix per unit along its columns; (1,) where columns are not split."""
    if weight.axis == 1 and weight.n_units > 1:
        return product.view(product.shape[0], weight.n_units, -1).sum((0, 2))
    return product.sum()[None]


def pieces(size: int, width: int, weight: Weight) -> Iterator[tuple[slice, slice]]:
    """(numbers, units) of every piece of `size` numbers in rows of `width`: whole units of rows, or a part of one unit
    in whole rows; all units where columns are split.
    """
    by_rows = weight.n_units > 1 and weight.axis == 0
    whole = size // weight.n_units if by_rows else size
    if by_rows and whole <= PIECE:
        together = PIECE // whole
        for unit in range(0, weight.n_units, together):
            units = slice(unit, min(unit + together, weight.n_units))
            yield slice(units.start * whole, units.stop * whole), units
        return
    most = max(1, PIECE // width) * width
    for unit in range(weight.n_units if by_rows else 1):
        units = slice(unit, unit + 1) if by_rows else slice(0, weight.n_units)
        for start in range(unit * whole, (unit + 1) * whole, most):
            yield slice(start, min(start + most, (unit + 1) * whole)), units


def settle_parameter(
    weight: Weight, *, group: dict, state: dict, snapshot: Snapshot, rule_name: str, scale: float
) -> ParamBooks:
    """Accounts of one parameter's step; leaves R in the snapshot's momentum buffer."""
    p = weight.param
    key = id(p)
    rule = rule_for(rule_name, group, state, had_buffer=key in snapshot.had_buffer)
    if not rule.formula:
        return _by_projection(weight, snapshot, scale)
    tensors = [t.reshape(-1) for t in (p.detach(), snapshot.theta[key], snapshot.momentum[key], p.grad)]
    second = {rule.second: state[rule.second].reshape(-1)} if rule.second else {}
    ulp, width = 2 * torch.finfo(p.dtype).eps, p.shape[-1] if p.ndim > 1 else p.numel()
    columns = width if weight.axis == 1 and weight.n_units > 1 else 0
    sums_5U = torch.zeros(5, weight.n_units, dtype=torch.float64, device=p.device)
    share = 0
    for numbers, units in pieces(p.numel(), width, weight):
        piece = [t[numbers] for t in tensors]
        share = share or _rounding_share(piece[0], piece[1], ulp, p.numel())
        d = denominator(rule, second, numbers)
        sums_5U[:, units].add_(_piece(rule, *piece, d, ulp, share, units.stop - units.start, columns))
    factors = sums_5U.new_tensor([1.0, 1.0, rule.carry, rule.decay, 1.0])[:, None]
    zero = torch.zeros(weight.n_units, dtype=torch.float64, device=p.device)
    return ParamBooks(rule, scale, *(sums_5U * factors).unbind(0), zero, snapshot.momentum[key])


def _piece(
    rule: Rule, after: Tensor, before: Tensor, momentum: Tensor, grad: Tensor, d: Tensor | None, ulp: float,
    share: int, n_units: int, columns: int,
) -> Tensor:  # fmt: skip
    """(5, U) |step|^2, |weights|^2, carry and decay without their factors, rounding; `momentum` becomes R = U/D.

    Few calls on much at a time: on a small model the calls cost as much as the arithmetic.

    Args:
        columns: length of a row where units split the columns; else 0.
    """
    before = before.float()
    update = after.float() - before
    m = momentum.float()  # itself where it is fp32

    def dots(x: Tensor, y: Tensor) -> Tensor:
        product = x * y  # `sum` adds in pairs: a plain dot of many alike small numbers is off by 1e-5
        if columns:
            return product.view(-1, n_units, columns // n_units).sum((0, 2))
        return product.view(n_units, -1).sum(1)

    nothing = update.new_zeros(()).expand(n_units)
    squared, weights = dots(update, update), dots(before, before)
    if d is not None and rule.carry:
        m.div_(d)
    carry = dots(m, update) if rule.carry else nothing
    rounding = _rounding(rule, update, before, m, grad, d, ulp, share)
    torch.div(update, d, out=m) if d is not None else m.copy_(update)
    if m is not momentum:
        momentum.copy_(m)
    decay = dots(before, m if rule.decay_over_denominator else update) if rule.decay else nothing
    return torch.stack([squared, weights, carry, decay, (rounding / n_units).expand(n_units)])


def _rounding_share(after: Tensor, before: Tensor, ulp: float, size: int) -> int:
    """One number in how many is read for rounding: all where the step is within a thousand ulps of the weights.

    There rounding is a visible part of the step, and a sample of it would leave the books open. A sample
    of a large parameter is good enough down to a hundred ulps.
    """
    limit = 1000 if size < PIECE else 100
    length = torch.linalg.vector_norm(after.float() - before.float())
    small = length < limit * ulp * torch.linalg.vector_norm(before.float())
    return 1 if bool(small) else ROUNDING_SHARE


def _rounding(
    rule: Rule, update: Tensor, before: Tensor, carried: Tensor, grad: Tensor, d: Tensor | None, ulp: float, share: int
) -> Tensor:
    """<what precision swallowed, U> of a piece, from one number in `share` of a large one.

    Rounding may explain two units in the last place of the weight and no more, so that a
    wrong formula cannot hide in it.

    Args:
        carried: the momentum before the step, over D.
    """
    stands_for = 1.0
    if update.numel() > SMALL_PIECE and share > 1:
        numbers = len(update)
        update, before, carried, grad, d = (t if t is None else t[::share] for t in (update, before, carried, grad, d))
        stands_for = numbers / len(update)
    asked = grad.float() * rule.data
    if rule.decay and rule.decay_over_denominator:
        asked.add_(before, alpha=rule.decay)
    if d is not None:
        asked.div_(d)
    if rule.carry:
        asked.add_(carried, alpha=rule.carry)
    if rule.decay and not rule.decay_over_denominator:
        asked.add_(before, alpha=rule.decay)
    bound = before.abs().add_(update.abs()).mul_(ulp)
    swallowed = asked.sub_(update).neg_().clamp_(-bound, bound)
    return torch.dot(swallowed, update) * stands_for


def projection_factor(p: torch.nn.Parameter, snapshot: Snapshot) -> float:
    """<U, G> / |G|^2 of one parameter: the part of its step that lies along its gradient."""
    update, grad = p.detach().double() - snapshot.theta[id(p)].double(), p.grad.double()
    return float((update * grad).sum() / grad.square().sum().clamp_min(1e-38))


def _by_projection(weight: Weight, snapshot: Snapshot, scale: float) -> ParamBooks:
    """An optimizer without formulas here: c = h <U,G>/|G|^2 per tensor, the rest is unexplained."""
    p = weight.param
    before = snapshot.theta[id(p)].float()
    update = p.detach().float() - before
    grad = p.grad.float()
    alpha = projection_factor(p, snapshot)
    rule = Rule(alpha, 0.0, 0.0, None, formula=False)

    def units(product: Tensor) -> Tensor:
        product = _matrix(product).double()
        if weight.n_units == 1:
            return product.sum()[None]
        if weight.axis == 1:
            return reduce_units(product, weight)
        return product.view(weight.n_units, -1).sum(-1)

    uu, zero = units(update * update), torch.zeros(weight.n_units, dtype=torch.float64, device=p.device)
    unexplained = uu - alpha * units(grad * update)
    snapshot.momentum[id(p)].copy_(update)
    return ParamBooks(rule, scale, uu, units(before * before), zero, zero, zero, unexplained, snapshot.momentum[id(p)])


def _matrix(t: Tensor) -> Tensor:
    """A parameter as rows: a vector is one row."""
    return t.view(1, -1) if t.ndim < 2 else t.view(t.shape[0], -1) if t.is_contiguous() else t


def canonical(t: Tensor, weight: Weight) -> Tensor:
    """The matrix as (outputs, inputs), whatever the storage order."""
    return t.t() if weight.kind == "conv1d" else t


class Scaling(NamedTuple):
    """How gradients were changed between backward and step: the factor per parameter, the parameters that were not
    merely scaled, and the median factor of those that were (NaN where none was)."""

    scales: dict[int, float]
    foreign: set[int]
    median: float


class ClipScale:
    """How much every gradient was scaled between backward and step, read at a few coordinates.

    The same strided coordinates of p.grad are read after every accumulation and at the
    step; under value clipping their ratios differ, and the parameter is called foreign.
    """

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        self.params = params
        self.then: dict[int, Tensor] = {}
        self._handles = [p.register_post_accumulate_grad_hook(self._accumulated) for p in params]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _accumulated(self, p: torch.nn.Parameter) -> None:
        if p.grad is not None and not p.grad.is_sparse:
            self.then[id(p)] = self._sample(p.grad)

    @staticmethod
    def _sample(grad: Tensor) -> Tensor:
        flat = grad.detach().reshape(-1)
        return flat[:: _stride(flat)].clone()

    def dropped(self) -> bool:
        """Whether the gradients caught so far were cleared without a step."""
        for p in self.params:
            then = self.then.get(id(p))
            if then is not None and bool(then.any()):
                return p.grad is None or not bool(self._sample(p.grad).any())
        return False

    def average(self, ranks: Ranks) -> None:
        """The mean over the processes of what was read before their gradients were averaged."""
        if ranks.alone:
            return
        mine = [self.then.get(id(p), torch.zeros(_samples(p), device=p.device)).double() for p in self.params]
        seen = torch.tensor([id(p) in self.then for p in self.params], dtype=torch.float64, device=mine[0].device)
        *means, seen = ranks.sum(torch.cat([*mine, seen])).split([*map(len, mine), len(seen)])
        self.then = {id(p): mean / ranks.world for p, mean, n in zip(self.params, means, seen.tolist()) if n}

    def clear(self) -> None:
        self.then.clear()

    def read(self) -> Scaling:
        """What happened to the gradients since they were accumulated."""
        scales, foreign, unknown = {}, set(), []
        seen = [p for p in self.params if id(p) in self.then and p.grad is not None]
        if not seen:
            return Scaling({}, set(), 1.0)
        then_PS, now_PS = (
            torch.nn.utils.rnn.pad_sequence(samples, batch_first=True).double()
            for samples in ([self.then[id(p)] for p in seen], [self._sample(p.grad) for p in seen])
        )
        power_P = then_PS.square().sum(1)
        scale_P = (now_PS * then_PS).sum(1) / power_P
        spread_P = (now_PS - scale_P[:, None] * then_PS).norm(dim=1) / now_PS.norm(dim=1).clamp_min(1e-300)
        for p, power, scale, spread in zip(seen, power_P.tolist(), scale_P.tolist(), spread_P.tolist()):
            if power == 0:
                unknown.append(id(p))
                continue
            scales[id(p)] = scale
            tolerance = FOREIGN if p.grad.dtype == torch.float32 else 1e-2
            if spread > tolerance:
                foreign.add(id(p))
        ordered = sorted(scale for key, scale in scales.items() if key not in foreign)
        median = ordered[len(ordered) // 2] if ordered else math.nan if foreign else 1.0
        scales.update({key: 1.0 if math.isnan(median) else median for key in unknown})
        return Scaling(scales, foreign, median)


def _stride(p: Tensor) -> int:
    return max(1, p.numel() // SAMPLES)


def _samples(p: Tensor) -> int:
    return -(-p.numel() // _stride(p))
