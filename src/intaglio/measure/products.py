"""Products of matrices by the fastest kernel at hand.  [torch]

PyTorch's own product of fp32 matrices on x86 is MKL's, which on processors that are not Intel's runs at half the speed
of oneDNN's, or less (docs/speed.md); both stand in the same PyTorch. What training itself computes is left alone.

Shapes: X any leading axes, T and S positions of a row, P the axis that is summed, Q the columns of the result.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

NARROW = 16  # columns of a result
ROW_FROM = 20_000_000  # multiplications from which a row's product is worth a call of its own


def times(x_XP: Float[Tensor, "*X P"], w_QP: Float[Tensor, "Q P"]) -> Float[Tensor, "*X Q"]:
    """x w^T."""
    if _fast(x_XP, w_QP):
        return _linear(x_XP, w_QP)
    if x_XP.device.type == "cpu" and len(w_QP) <= NARROW:  # MKL is several times faster at the transpose
        turned = torch.mm(w_QP, x_XP.reshape(-1, x_XP.shape[-1]).mT)
        return turned.mT.contiguous().view(*x_XP.shape[:-1], len(w_QP))
    return x_XP @ w_QP.mT


def times_rows(x_BTP: Float[Tensor, "B T P"], y_BSP: Float[Tensor, "B S P"]) -> Float[Tensor, "B T S"]:
    """x y^T, row by row of the batch."""
    if not pays(x_BTP, y_BSP):
        return torch.bmm(x_BTP, y_BSP.mT)
    return torch.stack([_linear(x_TP, y_SP) for x_TP, y_SP in zip(x_BTP, y_BSP)])


def pays(x_BTP: Tensor, y_BSP: Tensor) -> bool:
    """Whether `times_rows` of these goes row by row: decided by their shapes, so that numbers can be had again."""
    return x_BTP.shape[1] * y_BSP.shape[1] * x_BTP.shape[2] >= ROW_FROM and _fast(x_BTP, y_BSP)


def _fast(x: Tensor, w: Tensor) -> bool:
    plain = x.dtype == w.dtype == torch.float32 and x.device.type == w.device.type == "cpu"
    wanted = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    return plain and not wanted and x.numel() > 0 < w.numel() and torch.backends.mkldnn.enabled and _has_kernel()


@cache
def _has_kernel() -> bool:
    """Whether this PyTorch has oneDNN's product for this processor; the operator is PyTorch's own and may go."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    one = torch.ones(2, 2, dtype=torch.float32, device="cpu")
    try:
        return torch.equal(_linear(one, one), one * 2)
    except (AttributeError, RuntimeError):
        return False


def _linear(x: Tensor, w: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, w, None, "none", [], "")
