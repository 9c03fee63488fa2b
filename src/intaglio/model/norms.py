"""A norm as a linear map: with its scale frozen where it was, what it does to each summand.  [torch]

    norm(x) = scale * gain * (x, centred or not) + bias

Whether it centres and whether the gain is w or 1 + w is read from what the module gives, so
RMSNorm, Gemma's (1 + w) RMSNorm and LayerNorm are served alike, of whatever class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class NormKind:
    """What a norm does but for its scale.

    Attributes:
        gain_D: the learnt gain as it is applied.
        bias_D: the learnt bias, or zeros.
        centred: whether the mean over features is taken off first.
        error: largest difference from what the module gave, in units of its largest output.
    """

    gain_D: Tensor
    bias_D: Tensor
    centred: bool
    error: float

    def scale_of(self, x_D: Tensor, y_D: Tensor) -> Tensor:
        """(...,) the scale by which the module turned `x_D` (..., D) into `y_D`, read from these alone."""
        raw = self.gain_D * self._shape(x_D)
        return ((y_D - self.bias_D) * raw).sum(-1) / raw.square().sum(-1).clamp_min(1e-30)

    def apply(self, x_D: Tensor, scale: Tensor) -> Tensor:
        """The module's output for `x_D` if its scale were `scale` (...,)."""
        return scale[..., None] * self.gain_D * self._shape(x_D) + self.bias_D

    def pull_back(self, direction_D: Tensor) -> Tensor:
        """The direction before the norm whose product with a summand is `direction_D`'s after it, at scale 1."""
        return self._shape(self.gain_D * direction_D)

    def _shape(self, x_D: Tensor) -> Tensor:
        return x_D - x_D.mean(-1, keepdim=True) if self.centred else x_D


def kind_of(norm: nn.Module, x_D: Tensor, y_D: Tensor) -> NormKind:
    """The kind that explains best how `norm` turned `x_D` into `y_D`, (..., D) both."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    ones = torch.ones(x_D.shape[-1], dtype=x_D.dtype, device=x_D.device)
    bias_D = bias.detach().to(x_D.dtype) if isinstance(bias, Tensor) else torch.zeros_like(ones)
    gains = [ones]
    if isinstance(weight, Tensor):
        gains = [weight.detach().to(x_D.dtype), 1 + weight.detach().to(x_D.dtype)]
    tried = [_fit(NormKind(gain, bias_D, centred, 0.0), x_D, y_D) for centred in (False, True) for gain in gains]
    return min(tried, key=lambda kind: kind.error)


def _fit(kind: NormKind, x_D: Tensor, y_D: Tensor) -> NormKind:
    made = kind.apply(x_D, kind.scale_of(x_D, y_D))
    error = float((made - y_D).abs().max() / y_D.abs().max().clamp_min(1e-30))
    return NormKind(kind.gain_D, kind.bias_D, kind.centred, error)
