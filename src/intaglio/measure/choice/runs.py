"""Runs of the model with parts replaced: many at once, from the layer that changes on.  [torch]

Three ways to the same numbers, each the other's oracle:
    naive      the whole model, one change at a time
    batched    all changes of a layer as rows of one batch, begun at that layer from the kept residual
    prefix     the same, on the positions from the first changed one on; earlier keys and values are kept
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.measure.choice.votes import Ending, LayerEnding, ending_of
from intaglio.model.anatomy import Anatomy
from intaglio.model.attention import after_prefix, eager, switched
from intaglio.model.capture import Capture, first_output
from intaglio.model.modes import evaluating
from intaglio.model.proof import raw_logits, shaped

ROWS = 16  # changes run side by side
WAYS = ("naive", "batched", "prefix")


@dataclass(frozen=True, eq=False)
class Change:
    """What replaces one part's output.

    Attributes:
        layer, head: a head's z, or where head is None what the MLP adds to the residual.
        value_TX: (T, d) for a head, (T, D) for an MLP: what stands there instead.
        begin: the first position that is replaced.
    """

    layer: int
    head: int | None
    value_TX: Tensor
    begin: int = 0


@torch.no_grad()
def run_changes(
    anatomy: Anatomy, base: Capture, changes: Sequence[Change], *, position: int = -1, way: str = "prefix"
) -> Iterator[tuple[list[Change], Ending]]:
    """Run every change by itself and give back what stands at the deciding position.

    Args:
        base: the unchanged run, of one row.
        position: the deciding position; later ones are not run.
        way: naive, batched or prefix; a family that bypasses transformers' interface is always run naive.

    Yields:
        Changes of one layer, at most ROWS at once, and their endings.
    """
    position %= base.ids_BT.shape[1]
    way = "naive" if anatomy.bypasses else way
    below = ending_of(base, position)
    for layer in sorted({c.layer for c in changes}):
        todo = [c for c in changes if c.layer == layer]
        size = 1 if way == "naive" else ROWS
        for start in range(0, len(todo), size):
            some = todo[start : start + size]
            begin = min(min(c.begin for c in some), position) if way == "prefix" else 0
            first = 0 if way == "naive" else layer
            caught = _Endings(anatomy, first)
            with evaluating(anatomy.model), _replacing(anatomy, some, begin, position + 1), caught.hooks():
                if way == "naive":
                    logits = _whole(anatomy, base, position)
                else:
                    logits = resumed(anatomy, base, len(some), first, begin, position + 1)
            yield some, caught.ending(below, logits, len(some))


def _whole(anatomy: Anatomy, base: Capture, position: int) -> Tensor:
    with eager(anatomy.model) if anatomy.bypasses else switched(anatomy.model):
        return anatomy.model(base.ids_BT[:, : position + 1], use_cache=False).logits[:, -1]


Kept = dict[nn.Module, tuple[Tensor, Tensor]]  # keys and values of earlier positions, by attention module


def resumed(
    anatomy: Anatomy, base: Capture, rows: int, first: int, begin: int, stop: int, kept: Kept | None = None
) -> Tensor:
    """(rows, V) logits of a run begun at layer `first` and position `begin`.

    Args:
        kept: keys and values of the positions before `begin`, (1 or rows, K, begin, d); the base run's if None.
    """
    hidden = base.layers[first].resid_BTD[:, begin:stop].expand(rows, -1, -1).contiguous()
    length = base.ids_BT.shape[1]
    prefix = keys_and_values(anatomy, base, begin) if kept is None else kept
    with switched(anatomy.model), after_prefix(prefix) if begin else contextlib.nullcontext():
        for block, seen in zip(anatomy.blocks[first:], base.layers[first:]):
            args, kwargs = _cut((seen.call["args"], seen.call["kwargs"]), length, begin, stop)
            hidden = first_output(block.layer(hidden, *args, **kwargs))
        raw = raw_logits(anatomy, anatomy.norm(hidden[:, -1]))
    return shaped(anatomy, raw)


def keys_and_values(anatomy: Anatomy, base: Capture, stop: int) -> Kept:
    """What the first `stop` positions of a run left for later ones to read."""
    return {
        block.attn: (seen.attention.k_BKTd[:, :, :stop], seen.attention.v_BKTd[:, :, :stop])
        for block, seen in zip(anatomy.blocks, base.layers)
    }


def _cut(value: Any, length: int, begin: int, stop: int) -> Any:
    """What of a layer's arguments belongs to the positions from `begin` up to `stop`."""
    if isinstance(value, tuple):
        return tuple(_cut(v, length, begin, stop) for v in value)
    if isinstance(value, dict):
        return {k: _cut(v, length, begin, stop) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4 and value.shape[-2] == length:  # mask: queries by keys
        return value[:, :, begin:stop, :stop]
    if value.ndim >= 2 and value.shape[1] == length:  # positions, their cosines and sines
        return value[:, begin:stop]
    return value[begin:stop] if value.ndim == 1 and value.shape[0] == length else value


@contextlib.contextmanager
def _replacing(anatomy: Anatomy, changes: list[Change], begin: int, stop: int) -> Iterator[None]:
    """Row i of the batch carries change i, from its own first position on."""

    def put(rows: Tensor, change: Change, row: int) -> None:
        at = max(change.begin, begin)
        if change.head is None:
            rows[row, at - begin :] = change.value_TX[at:stop]
        else:
            rows[row, at - begin :, change.head] = change.value_TX[at:stop]

    def heads(module: nn.Module, args: tuple) -> tuple:
        z = args[0].clone()
        rows = z.view(len(changes), stop - begin, anatomy.n_heads, -1)  # OPT flattens rows and positions
        for row, change in enumerate(changes):
            if change.head is not None:
                put(rows, change, row)
        return (z, *args[1:])

    def mlps(module: nn.Module, args: tuple, out: Any) -> Any:
        added = first_output(out).clone()
        rows = added.view(len(changes), stop - begin, -1)
        for row, change in enumerate(changes):
            if change.head is None:
                put(rows, change, row)
        return (added, *out[1:]) if isinstance(out, tuple) else added

    block = anatomy.blocks[changes[0].layer]
    handles = [block.out.register_forward_pre_hook(heads), block.mlp_added.register_forward_hook(mlps)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Endings:
    """Catches the last position run, from one layer on; below it the unchanged run holds."""

    def __init__(self, anatomy: Anatomy, first: int) -> None:
        self.anatomy, self.first = anatomy, first
        self.values: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """To be entered after the hooks that replace, for hooks run in the order of their registration."""
        handles = []

        def leaves(module: nn.Module, name: str) -> None:
            handles.append(module.register_forward_hook(lambda m, i, o: self._keep(name, first_output(o))))

        def enters(module: nn.Module, name: str) -> None:
            handles.append(module.register_forward_pre_hook(lambda m, i: self._keep(name, i[0])))

        try:
            for i, block in list(enumerate(self.anatomy.blocks))[self.first :]:
                enters(block.out, f"z{i}")
                leaves(block.out, f"attn_raw{i}")
                leaves(block.attn_added, f"attn{i}")
                leaves(block.down or block.mlp, f"mlp_raw{i}")
                leaves(block.mlp_added, f"mlp{i}")
            enters(self.anatomy.norm, "final")
            leaves(self.anatomy.norm, "normed")
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str, x: Tensor) -> None:
        self.values[name] = x

    def ending(self, below: Ending, logits_BV: Tensor, rows: int) -> Ending:
        def last(name: str) -> Tensor:
            x = self.values[name]
            return x.reshape(rows, -1, x.shape[-1])[:, -1]

        layers = []
        for i, base in enumerate(below.layers):
            if i < self.first:
                layers.append(LayerEnding(*(x.expand(rows, *x.shape[1:]) for x in base.parts), None))
                continue
            z = last(f"z{i}").unflatten(-1, (self.anatomy.n_heads, -1))
            layers.append(LayerEnding(z, last(f"attn_raw{i}"), last(f"attn{i}"), last(f"mlp_raw{i}"), last(f"mlp{i}"), None))
        positions = below.positions_BD
        return Ending(
            below.embed_BD.expand(rows, -1), None if positions is None else positions.expand(rows, -1), layers,
            last("final"), last("normed"), logits_BV,
        )  # fmt: skip
