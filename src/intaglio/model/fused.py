"""A head that is not called: its writes, from the hidden states and the gradient at the log-probabilities.  [torch]

TRL's trainers score tokens without making the logits: the output has `log_probs` and the
head's module never runs. With dL/dlogp_t = g_t the gradient at the logits is still known
exactly, g_t (onehot - p), so surprise, weight and the head's write are made here, provided
that the log-probabilities can be reproduced from the model's own head (checked, not assumed).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CHECKED = 16  # positions at which the first forward is reproduced


def head_form(config: object) -> tuple[float, float | None]:
    """What a family multiplies its logits by, and the softcap it then applies (None: none)."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            scale = float(getattr(config, name))
            break
    else:
        divisor = getattr(config, "logits_scaling", None)
        scale = 1.0 if divisor is None else 1.0 / float(divisor)
    return scale, getattr(config, "final_logit_softcapping", None)


def head_logits(
    head: nn.Module, hidden_NP: Float[Tensor, "N P"], form: tuple[float, float | None]
) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N V"] | float]:
    """Logits as the loss sees them, and the slope from the head's own output to them."""
    scale, cap = form
    bias = head.bias.float() if getattr(head, "bias", None) is not None else None
    logits = nn.functional.linear(hidden_NP.float(), head.weight.float(), bias)
    if scale != 1.0:
        logits = logits * scale
    if cap is None:
        return logits, scale
    bent = torch.tanh(logits / cap)
    return cap * bent, scale * (1 - bent.square())


def reproduces(
    head: nn.Module, hidden_BTP: Tensor, target_BT: Int[Tensor, "B T"], log_probs_BS: Tensor,
    form: tuple[float, float | None],
) -> bool:  # fmt: skip
    """Whether a fused output's log-probabilities are those of the model's own head."""
    length = log_probs_BS.shape[1]
    where = (target_BT[:, :length] >= 0).nonzero()[:CHECKED]
    if len(where) == 0:
        return True
    rows, columns = where.unbind(1)
    logits, _ = head_logits(head, hidden_BTP[rows, columns], form)
    target = target_BT[rows, columns]
    ours = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    tolerance = 1e-3 if hidden_BTP.dtype == log_probs_BS.dtype == torch.float32 else 0.1
    return bool(torch.allclose(ours, log_probs_BS[rows, columns].float(), rtol=1e-3, atol=tolerance))


def head_gradients(
    head: nn.Module, hidden_BTP: Tensor, target_BT: Int[Tensor, "B T"], gradient_BS: Tensor,
    form: tuple[float, float | None],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Logits, the gradient at them and the gradient at the head's output; zero where nothing is predicted.

    Args:
        gradient_BS: dL/dlogp of every position that has a successor, S = T or T - 1.
    """
    where = target_BT >= 0
    where[:, gradient_BS.shape[1] :] = False
    target_N = target_BT[where]
    g_N = gradient_BS.float()[where[:, : gradient_BS.shape[1]]]
    logits_NV, slope = head_logits(head, hidden_BTP[where], form)
    grad_NV = logits_NV.softmax(-1).mul_(-g_N[:, None])
    grad_NV[torch.arange(len(target_N), device=target_N.device), target_N] += g_N
    full = (*target_BT.shape, logits_NV.shape[1])
    logits, gradient = logits_NV.new_zeros(full), logits_NV.new_zeros(full)
    logits[where], gradient[where] = logits_NV, grad_NV
    if isinstance(slope, float) and slope == 1.0:
        return logits, gradient, gradient
    at_head = torch.zeros_like(gradient)
    at_head[where] = grad_NV * slope
    return logits, gradient, at_head
