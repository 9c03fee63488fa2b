"""What an optimizer does to each example, written out plainly and kept apart from the package.

Every optimizer here carries its own moments, fed only with per-example gradients taken one
at a time, so nothing is read from the state of torch's optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Account:
    """What one step did to one parameter, as tensors of its shape."""

    parts: list[Tensor]  # one per example
    carry: Tensor
    decay: Tensor

    @property
    def step(self) -> Tensor:
        return sum(self.parts) + self.carry + self.decay


@dataclass
class Sgd:
    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    buffer: Tensor | None = None

    def step(self, theta: Tensor, gradients: list[Tensor]) -> Account:
        """theta and gradients in double; the buffer gets the whole gradient with its decay, as torch does."""
        sign = -1.0 if self.maximize else 1.0
        parts, old, decay = [sign * g for g in gradients], torch.zeros_like(theta), self.weight_decay * theta
        if self.momentum:
            fresh = 1.0 if self.buffer is None else 1 - self.dampening
            kept = torch.zeros_like(theta) if self.buffer is None else self.momentum * self.buffer
            entered = [fresh * p for p in parts], fresh * decay
            self.buffer = kept + sum(entered[0]) + entered[1]
            if self.nesterov:
                parts = [p + self.momentum * e for p, e in zip(parts, entered[0])]
                decay = decay + self.momentum * entered[1]
                old = self.momentum * kept
            else:
                parts, decay, old = entered[0], entered[1], kept
        return Account([-self.lr * p for p in parts], -self.lr * old, -self.lr * decay)


@dataclass
class Adam:
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    amsgrad: bool = False
    maximize: bool = False
    t: int = 0
    m: Tensor | None = None
    v: Tensor | None = None
    v_max: Tensor | None = None

    def step(self, theta: Tensor, gradients: list[Tensor]) -> Account:
        b1, b2 = self.betas
        sign = -1.0 if self.maximize else 1.0
        inside = torch.zeros_like(theta) if self.decoupled else self.weight_decay * theta
        whole = sign * sum(gradients) + inside
        if self.m is None:
            self.m, self.v, self.v_max = (torch.zeros_like(theta) for _ in range(3))
        self.t += 1
        old = self.m
        self.m = b1 * old + (1 - b1) * whole
        self.v = b2 * self.v + (1 - b2) * whole**2
        self.v_max = torch.maximum(self.v_max, self.v)
        second = self.v_max if self.amsgrad else self.v
        denominator = (second / (1 - b2**self.t)).sqrt() + self.eps

        def moved(entered: Tensor) -> Tensor:
            return -self.lr * entered / (1 - b1**self.t) / denominator

        decay = -self.lr * self.weight_decay * theta if self.decoupled else moved((1 - b1) * inside)
        return Account([moved((1 - b1) * sign * g) for g in gradients], moved(b1 * old), decay)


@dataclass
class Twin:
    """The oracle of a whole model: one plain optimizer per parameter."""

    make: object  # name of a parameter -> Sgd or Adam
    by_name: dict[str, Sgd | Adam] = field(default_factory=dict)

    def step(self, before: dict[str, Tensor], gradients: list[dict[str, Tensor]]) -> dict[str, Account]:
        found = {}
        for name in gradients[0]:
            optimizer = self.by_name.setdefault(name, self.make(name))
            found[name] = optimizer.step(before[name].double(), [g[name].double() for g in gradients])
        return found
