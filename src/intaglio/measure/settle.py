"""The optimizer's side: split the step that was taken into accounts.  [torch]

For every parameter U = theta_after - theta_before is compared with the optimizer's own
formula (rules.py). One pass over the parameters, in pieces that stay in the cache, gives
all sums; the matrix R = U/D is left in place of the momentum copy for the token dots.
No account is fitted to the step: what the formula does not give is missing in the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from intaglio.measure.ranks import Ranks
from intaglio.measure.rules import Rule, denominator, rule_for
from intaglio.model.layout import Weight

PIECE = 1 << 18  # numbers per piece: a few such buffers fit the shared cache, and calls are few
ROUNDING_SHARE = 7  # one row in seven stands for the rounding of a large piece, where it is hardly visible
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


def pieces(shape: tuple[int, int], weight: Weight):
    """(rows, unit) slices that lie within one unit of rows, or (rows, None) where columns are split."""
    n_rows, n_columns = shape
    by_rows = weight.n_units > 1 and weight.axis == 0
    height = n_rows // weight.n_units if by_rows else n_rows
    step = max(1, PIECE // max(1, n_columns))
    for unit in range(weight.n_units if by_rows else 1):
        for start in range(unit * height, (unit + 1) * height, step):
            stop = min(start + step, (unit + 1) * height)
            yield slice(start, stop), (unit if by_rows else 0 if weight.n_units == 1 else None)


def settle_parameter(
    weight: Weight, *, group: dict, state: dict, snapshot: Snapshot, rule_name: str, scale: float
) -> ParamBooks:
    """Accounts of one parameter's step; leaves R in the snapshot's momentum buffer."""
    p = weight.param
    key = id(p)
    rule = rule_for(rule_name, group, state, had_buffer=key in snapshot.had_buffer)
    if not rule.formula:
        return _by_projection(weight, snapshot, scale)
    tensors = [_matrix(t) for t in (p.detach(), snapshot.theta[key], snapshot.momentum[key], p.grad)]
    second = {rule.second: _matrix(state[rule.second])} if rule.second else {}
    ulp = 2 * torch.finfo(p.dtype).eps
    columns = weight.axis == 1 and weight.n_units > 1
    found: dict[int, list[Tensor]] = {unit: [] for unit in range(1 if columns else weight.n_units)}
    share = 0
    for rows, unit in pieces(tensors[0].shape, weight):
        piece = [t[rows] for t in tensors]
        share = share or _rounding_share(piece[0], piece[1], ulp, p.numel())
        d = denominator(rule, second, rows)
        found[unit or 0].append(_piece(rule, *piece, d, ulp, share, weight if columns else None))
    sums = torch.stack([torch.stack(rows).sum(0, dtype=torch.float64) for rows in found.values()])  # (U or 1, 5[, U])
    by_unit = sums[0].unbind(0) if columns else sums.unbind(1)
    zero = torch.zeros(weight.n_units, dtype=torch.float64, device=p.device)
    return ParamBooks(rule, scale, *by_unit, zero, snapshot.momentum[key])


def _piece(
    rule: Rule, after: Tensor, before: Tensor, momentum: Tensor, grad: Tensor, d: Tensor | None, ulp: float,
    share: int, columns: Weight | None,
) -> Tensor:  # fmt: skip
    """(uu, ww, carry, decay, rounding) of one piece, per unit of columns if given; `momentum` becomes R = U/D."""
    before, after = before.float(), after.float()
    update = after - before
    r = update if d is None else update / d

    def dot(x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        if columns is not None:
            return (x * y).view(len(x), columns.n_units, -1).sum((0, 2)).mul_(factor)
        return torch.dot(x.reshape(-1), y.reshape(-1)).mul_(factor)

    uu = dot(update, update)
    nothing = torch.zeros_like(uu)
    carry = dot(momentum.float(), r, rule.carry) if rule.carry else nothing
    decay = dot(before, r if rule.decay_over_denominator else update, rule.decay) if rule.decay else nothing
    rounding = _rounding(rule, update, before, momentum, grad, d, ulp, share)
    if columns is not None:
        rounding = rounding / columns.n_units + nothing
    found = torch.stack([uu, dot(before, before), carry, decay, rounding])
    momentum.copy_(r)
    return found


def _rounding_share(after: Tensor, before: Tensor, ulp: float, size: int) -> int:
    """One row in how many is read for rounding: all where the step is within a thousand ulps of the weights.

    There rounding is a visible part of the step, and a sample of it would leave the books open. A sample
    of a large parameter is good enough down to a hundred ulps.
    """
    limit = 1000 if size < PIECE else 100
    length = torch.linalg.vector_norm(after.float() - before.float())
    small = length < limit * ulp * torch.linalg.vector_norm(before.float())
    return 1 if bool(small) else ROUNDING_SHARE


def _rounding(
    rule: Rule, update: Tensor, before: Tensor, momentum: Tensor, grad: Tensor, d: Tensor | None, ulp: float, share: int
) -> Tensor:
    """<what precision swallowed, U> of a piece, from one row in `share` of a large one.

    Rounding may explain two units in the last place of the weight and no more, so that a
    wrong formula cannot hide in it.
    """
    some = slice(0, -(-len(update) // share) if update.numel() > SMALL_PIECE else None)
    stands_for = len(update) / len(update[some])
    update, before, momentum, grad = update[some], before[some], momentum[some], grad[some]
    asked = grad.float() * rule.data
    if rule.carry:
        asked.add_(momentum, alpha=rule.carry)
    if rule.decay and rule.decay_over_denominator:
        asked.add_(before, alpha=rule.decay)
    if d is not None:
        asked.div_(d[some])
    if rule.decay and not rule.decay_over_denominator:
        asked.add_(before, alpha=rule.decay)
    bound = before.abs().add_(update.abs()).mul_(ulp)
    swallowed = torch.clamp(update - asked, -bound, bound)
    return torch.dot(swallowed.view(-1), update.reshape(-1)) * stands_for


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
        for p in self.params:
            then = self.then.get(id(p))
            if then is None or p.grad is None:
                continue
            now, then = self._sample(p.grad).double(), then.double()
            power = float(then @ then)
            if power == 0:
                unknown.append(id(p))
                continue
            scale = float(now @ then) / power
            spread = float((now - scale * then).norm()) / max(float(now.norm()), 1e-300)
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
