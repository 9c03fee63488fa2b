"""Our attention function: transformers' eager arithmetic, with everything seen on the way.  [torch]

It is registered once under a name of its own through transformers' public AttentionInterface and
used only inside `switched`, which puts the model's own implementation back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "intaglio"


@dataclass(eq=False)
class Attention:
    """What one call of attention saw; q and k as they meet (after rotation and norms of their own)."""

    module: nn.Module
    q_BHTd: Tensor
    k_BKTd: Tensor  # one per key head; the query heads of a group share it
    v_BKTd: Tensor
    pattern_BHTT: Tensor
    scaling: float
    softcap: float | None
    sinks: bool  # a share of the attention goes nowhere
    mask_BHTT: Tensor | None = None  # what was added to the scores; as much below 0 as can be where nothing is seen

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.q_BHTd.shape[1] // self.k_BKTd.shape[1]

    @property
    def v_BHTd(self) -> Tensor:
        """Values by query head."""
        return self.v_BKTd.repeat_interleave(self.group, 1)

    @property
    def k_BHTd(self) -> Tensor:
        """Keys by query head."""
        return self.k_BKTd.repeat_interleave(self.group, 1)


_watchers: list[Callable[[Attention], None]] = []
_prefixes: list[dict[nn.Module, tuple[Tensor, Tensor]]] = []  # keys and values of positions that are not run again


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    for prefix in _prefixes[-1:]:
        key, value = (torch.cat([p.expand(len(x), -1, -1, -1), x], 2) for p, x in zip(prefix[module], (key, value)))
    group = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.repeat_interleave(group, 1).mT * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, :, : key.shape[-2]]
    if s_aux is not None:
        sink = s_aux.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], -1)
        scores = scores - scores.max(-1, keepdim=True).values
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if s_aux is not None:
        pattern = pattern[..., :-1]
    z = pattern @ value.repeat_interleave(group, 1)
    for watch in _watchers[-1:]:
        watch(Attention(module, query, key, value, pattern, float(scaling), softcap, s_aux is not None,
                        attention_mask))
    return z.transpose(1, 2).contiguous(), pattern


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)


@contextlib.contextmanager
def switched(model: nn.Module, watch: Callable[[Attention], None] = lambda seen: None) -> Iterator[None]:
    """`model` attends through our function, which reports every call; its own implementation comes back after."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)
        model.set_attn_implementation(before)


@contextlib.contextmanager
def after_prefix(prefix: dict[nn.Module, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside `switched`: every attention module sees these keys and values, (1, K, P, d) each, before its own."""
    _prefixes.append(prefix)
    try:
        yield
    finally:
        _prefixes.remove(prefix)


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """`model` attends by transformers' plain arithmetic; its own implementation comes back after."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
