"""One forward and one backward per example, alone and unpadded: what `push` must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny import Text

Gradient = dict[str, Tensor]


def token_losses(model: nn.Module, text: Text) -> Tensor:
    """Losses of the example's targets, nats."""
    ids = torch.tensor([text.ids])
    logits = model(input_ids=ids).logits[0].float()
    losses = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return losses[torch.tensor(text.labels)[1:]]


def example_gradient(model: nn.Module, text: Text, names: list[str] | None = None) -> Gradient:
    """Gradient of the example's own summed token loss, by parameter name."""
    params = {n: p for n, p in model.named_parameters() if p.requires_grad and (names is None or n in names)}
    loss = token_losses(model, text).sum()
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g.detach() for (n, p), g in zip(params.items(), found)}


def length(gradient: Gradient) -> float:
    return sum(float(g.double().square().sum()) for g in gradient.values()) ** 0.5


def dot(a: Gradient, b: Gradient) -> float:
    return sum(float((a[n].double() * b[n].double()).sum()) for n in a)


def scaled_sum(gradients: list[Gradient], weights: list[float]) -> Gradient:
    return {n: sum(w * g[n] for w, g in zip(weights, gradients)) for n in gradients[0]}
