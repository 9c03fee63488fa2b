"""The model made smaller for one run: many heads, layers or neurons gone together.  [torch]

Each row of a batch carries its own removal. A head that is gone writes its mean at every position but the first, as
where parts are replaced one by one (effects.py); a layer that is gone writes nothing anywhere.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.measure.choice.runs import resumed
from intaglio.model.anatomy import Anatomy, Block, matrix_of
from intaglio.model.attention import eager
from intaglio.model.capture import Capture, first_output
from intaglio.model.modes import evaluating

TOKENS, ROWS = 256, 16  # run side by side: so many tokens in all, and at most so many removals


@dataclass(frozen=True)
class Removal:
    """What is gone: heads as (layer, head), whole layers."""

    heads: frozenset[tuple[int, int]] = frozenset()
    layers: frozenset[int] = frozenset()

    @property
    def first(self) -> int:
        """The lowest layer that loses something."""
        return min((*self.layers, *(layer for layer, _ in self.heads)), default=0)


@torch.no_grad()
def run_removals(anatomy: Anatomy, base: Capture, removals: Sequence[Removal], means_LHd: Tensor | None = None) -> Tensor:
    """(N, V) logits at the last position, in double precision, of N runs with something gone.

    Args:
        base: the unchanged run, of one row.
        means_LHd: what a head that is gone writes through its output matrix; needed where heads are.
    """
    order = sorted(range(len(removals)), key=lambda i: removals[i].first)
    logits: list[Any] = [None] * len(removals)
    size = max(1, min(ROWS, TOKENS // base.ids_BT.shape[1]))
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        some = [removals[i] for i in chunk]
        with _removing(anatomy, some, means_LHd):
            out = _last_logits(anatomy, base, len(some), first=min(r.first for r in some))
        for row, i in enumerate(chunk):
            logits[i] = out[row].double()
    return torch.stack(logits)


@torch.no_grad()
def run_narrow(anatomy: Anatomy, base: Capture, counts: Sequence[int]) -> Tensor:
    """(N, V) logits of N runs in which every MLP keeps so many neurons at the last position, all others at 0.

    Kept are those that write most in that very run: activation times the length of the neuron's row of the output matrix.
    """
    last = base.ids_BT.shape[1] - 1
    with _narrowing(anatomy, counts):
        return _last_logits(anatomy, base, len(counts), begin=last).double()


def _last_logits(anatomy: Anatomy, base: Capture, rows: int, *, first: int = 0, begin: int = 0) -> Tensor:
    """Where the family lets it be, only from layer `first` and position `begin` on."""
    model = anatomy.model
    with evaluating(model):
        if not anatomy.bypasses:
            return resumed(anatomy, base, rows, first, begin, base.ids_BT.shape[1])
        few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        with eager(model):
            return model(base.ids_BT.expand(rows, -1), use_cache=False, **few).logits[:, -1]


@contextlib.contextmanager
def _removing(anatomy: Anatomy, some: Sequence[Removal], means_LHd: Tensor | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for i, block in enumerate(anatomy.blocks):
            gone_RH = torch.tensor([[(i, h) in r.heads for h in range(anatomy.n_heads)] for r in some])
            if gone_RH.any():
                device = block.out.weight.device
                stack.callback(block.out.register_forward_pre_hook(_without_heads(gone_RH.to(device), means_LHd[i])).remove)
            gone_R = torch.tensor([i in r.layers for r in some])
            if gone_R.any():
                for module in (block.attn_added, block.mlp_added):
                    stack.callback(module.register_forward_hook(_without_rows(gone_R)).remove)
        yield


def _without_heads(gone_RH: Tensor, mean_Hd: Tensor) -> Callable:
    def hook(module: nn.Module, args: tuple) -> tuple:
        z = args[0].clone()
        rows = z.view(len(gone_RH), -1, *mean_Hd.shape)  # OPT flattens rows and positions
        begin = 1 if rows.shape[1] > 1 else 0
        rows[:, begin:] = torch.where(gone_RH[:, None, :, None], mean_Hd.to(z.dtype), rows[:, begin:])
        return (z, *args[1:])

    return hook


def _without_rows(gone_R: Tensor) -> Callable:
    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        added = first_output(out).clone()
        added.view(len(gone_R), -1, added.shape[-1])[gone_R.to(added.device)] = 0
        return (added, *out[1:]) if isinstance(out, tuple) else added

    return hook


@contextlib.contextmanager
def _narrowing(anatomy: Anatomy, counts: Sequence[int]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for block in anatomy.blocks:
            stack.callback(block.down.register_forward_pre_hook(_strongest_only(block, counts)).remove)
        yield


def _strongest_only(block: Block, counts: Sequence[int]) -> Callable:
    lengths_N = matrix_of(block.down).detach().norm(dim=0)

    def hook(module: nn.Module, args: tuple) -> tuple:
        x = args[0].clone()
        last_RN = x.view(len(counts), -1, x.shape[-1])[:, -1]
        place_RN = (last_RN.abs() * lengths_N).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        last_RN[place_RN >= place_RN.new_tensor(counts)[:, None]] = 0
        return (x, *args[1:])

    return hook
