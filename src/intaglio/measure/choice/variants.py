"""What the model would say to other prompts: many small variants of one, side by side.  [torch]

Variants that begin alike share the keys and values of that beginning, so each token is run about once.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intaglio.model.anatomy import Anatomy
from intaglio.model.modes import evaluating

ROWS = 8  # variants run side by side


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What N prompts led to.

    Attributes:
        logits_NV: at the last position, in double precision.
        states_NLD: residual at the last position before every layer and before the final norm, or None.
    """

    logits_NV: Tensor
    states_NLD: Tensor | None


@torch.no_grad()
def run_variants(anatomy: Anatomy, ids: Sequence[int], variants: Sequence[Sequence[int]], *, states: bool = False) -> Outcomes:
    """Run every variant of the prompt `ids`.

    Args:
        variants: token ids of each, none empty.
        states: keep the residual at the last position.
    """
    shared = [_shared(ids, v) for v in variants]
    order = sorted(range(len(variants)), key=lambda i: (shared[i], len(variants[i])))
    device = anatomy.unembed.weight.device
    logits: list[Any] = [None] * len(variants)
    kept: list[Any] = [None] * len(variants)
    cache, done = None, 0
    with evaluating(anatomy.model), _last_states(anatomy) as seen:
        for chunk in _chunks(order, [len(v) for v in variants]):
            upto = min(shared[i] for i in chunk)
            if upto > done:
                cache = _run(anatomy, torch.tensor([list(ids[done:upto])], device=device), cache).past_key_values
                done = upto
            mine = copy.deepcopy(cache)
            if mine is not None:
                mine.batch_repeat_interleave(len(chunk))
            given = torch.tensor([list(variants[i][upto:]) for i in chunk], device=device)
            out = _run(anatomy, given, mine).logits[:, -1].double()
            for row, i in enumerate(chunk):
                logits[i] = out[row]
                kept[i] = torch.stack([s[row] for s in seen]) if states else None
    return Outcomes(torch.stack(logits), torch.stack(kept) if states else None)


def _run(anatomy: Anatomy, given_BT: Tensor, cache: Any) -> Any:
    more = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(anatomy.model.forward).parameters else {}
    return anatomy.model(given_BT, past_key_values=cache, use_cache=True, **more)


def _shared(ids: Sequence[int], variant: Sequence[int]) -> int:
    """How many tokens the two have in common from the start; at least one is left to run."""
    count = next((i for i, (a, b) in enumerate(zip(ids, variant)) if a != b), min(len(ids), len(variant)))
    return min(count, len(variant) - 1)


def _chunks(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    for i in order:
        if chunk and (len(chunk) == ROWS or lengths[i] != lengths[chunk[0]]):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


@contextlib.contextmanager
def _last_states(anatomy: Anatomy) -> Iterator[list[Tensor]]:
    """The residual at the last position before each layer and before the final norm, of the latest run."""
    found: list[Any] = [None] * (anatomy.n_layers + 1)
    handles = []

    def keep(index: int) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict) -> None:
            found[index] = (args[0] if args else kwargs["hidden_states"])[:, -1].detach()
        return hook

    try:
        for i, module in enumerate([*(b.layer for b in anatomy.blocks), anatomy.norm]):
            handles.append(module.register_forward_pre_hook(keep(i), with_kwargs=True))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: the correlation of ranks, ties sharing theirs; None where one side does not vary."""
    ranks = torch.stack([_ranks(torch.tensor(x, dtype=torch.float64)) for x in (a, b)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    size = ranks.square().sum(1).prod().sqrt()
    return None if float(size) == 0 else float((ranks[0] * ranks[1]).sum() / size)


def _ranks(x: Tensor) -> Tensor:
    below = (x[None] < x[:, None]).sum(1)
    return below + ((x[None] == x[:, None]).sum(1) - 1) / 2
