"""What an optimizer does to a gradient: torch's own formulas, as data.  [torch]

A step is U = c(h) + carry + decay for every parameter, with c linear in the gradient
that entered: c = data * h / D, carry = carry * buffer / D, decay = decay * theta (/ D).
D is the denominator after the step (1 for SGD). See definitions.md, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from intaglio.errors import UnmeasurableError


@dataclass(frozen=True, slots=True)
class Rule:
    """How one parameter's step is made in one optimizer step; coefficients include the learning rate."""

    data: float  # of the gradient as it entered the optimizer, before `maximize`
    carry: float  # of the momentum buffer before the step
    decay: float  # of the weights before the step
    buffer: str | None  # name of the momentum buffer in the optimizer's state
    second: str | None = None  # name of the second moment; None: no denominator
    correction: float = 1.0  # sqrt(second) is divided by this ...
    eps: float = 0.0  # ... and this is added
    decay_over_denominator: bool = False
    formula: bool = True  # False: no formula is known here; the step is split by projection


def unwrap(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's or another wrapper."""
    while hasattr(optimizer, "optimizer") and isinstance(optimizer.optimizer, torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def check_measurable(optimizer: torch.optim.Optimizer) -> str:
    """The name of the optimizer's rule: adamw, adam, sgd, or `other` (split by projection).

    Raises:
        UnmeasurableError: an 8-bit optimizer, whose state cannot be read as numbers.
    """
    kind = type(optimizer)
    if kind.__module__.startswith(("bitsandbytes", "torchao")) or "8bit" in kind.__name__:
        raise UnmeasurableError(
            f"the state of {kind.__name__} is quantised, so the step's books cannot close",
            expected="torch's AdamW, Adam or SGD",
        )
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is a subclass of Adam in torch >= 2.6
        decoupled = kind is torch.optim.AdamW or any(g.get("decoupled_weight_decay") for g in optimizer.param_groups)
        return "adamw" if decoupled else "adam"
    if isinstance(optimizer, torch.optim.AdamW):
        return "adamw"
    return "sgd" if isinstance(optimizer, torch.optim.SGD) else "other"


def rule_for(name: str, group: dict, state: dict, *, had_buffer: bool) -> Rule:
    """The rule of one parameter, read after the step (so `step` counts this one).

    Args:
        name: what `check_measurable` said.
        group: the parameter's group, with the learning rate that the step used.
        state: the parameter's optimizer state after the step.
        had_buffer: whether a momentum buffer stood before the step (SGD's first step has none).
    """
    if name in ("adam", "adamw"):
        return _adam(group, state)
    return _sgd(group, had_buffer) if name == "sgd" else Rule(1.0, 0.0, 0.0, None, formula=False)


def _adam(group: dict, state: dict) -> Rule:
    lr, decay, eps = float(group["lr"]), float(group["weight_decay"]), float(group["eps"])
    b1, b2 = (float(b) for b in group["betas"])
    t = float(state["step"])
    first = lr / (1 - b1**t)
    data = -first * (1 - b1)
    decoupled = bool(group.get("decoupled_weight_decay", False))
    return Rule(
        data=-data if group.get("maximize") else data,
        carry=-first * b1,
        decay=-lr * decay if decoupled else data * decay,
        buffer="exp_avg",
        second="max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq",
        correction=(1 - b2**t) ** 0.5,
        eps=eps,
        decay_over_denominator=not decoupled,
    )


def _sgd(group: dict, had_buffer: bool) -> Rule:
    lr, mu, decay = float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])
    nesterov = bool(group["nesterov"])
    kappa = 1.0
    if mu and had_buffer:
        kappa = 1 - float(group["dampening"])
    carry = 0.0
    if mu:
        carry = -lr * (mu * mu if nesterov else mu) if had_buffer else 0.0
        kappa = 1 + mu * kappa if nesterov else kappa
    data = -lr * kappa
    return Rule(
        data=-data if group.get("maximize") else data,
        carry=carry,
        decay=data * decay,
        buffer="momentum_buffer" if mu else None,
    )


def denominator(rule: Rule, state: dict, part: slice | tuple | EllipsisType) -> Tensor | None:
    """D of a slice of the parameter, after the step; None where there is none."""
    if rule.second is None:
        return None
    return state[rule.second][part].sqrt().div_(rule.correction).add_(rule.eps)
