"""One forward pass with everything on the way kept.  [torch]

The hooks live for one `with` block; the model's attention implementation, mode and random state
come back. Nothing of the weights is changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SubjectError
from intaglio.model.anatomy import Anatomy, matrix_of
from intaglio.model.attention import Attention, eager, switched
from intaglio.model.families import FUSED, SEPARATE
from intaglio.model.modes import evaluating


@dataclass(eq=False)
class LayerCapture:
    """What one layer did.

    Attributes:
        pattern_BHTT: attention, query by key; q, k and scaling are in `attention` (None where the family bypasses it).
        v_BHTd: values by query head.
        z_BTHd: what each head read, before the output matrix.
        attn_BTD, mlp_BTD: what was added to the residual, the residual scale left out.
        attn_raw_BTD, mlp_raw_BTD: the same before the norm behind the part; the same tensor where there is none.
        neurons_BTN: the MLP's neurons; None for a mixture of experts.
        call: keyword arguments of the layer, to run it again.
        graph: z and the MLP's addition as the model's own tensors, to take gradients at.
    """

    pattern_BHTT: Tensor
    v_BHTd: Tensor
    z_BTHd: Tensor
    attn_BTD: Tensor
    attn_raw_BTD: Tensor
    mlp_BTD: Tensor
    mlp_raw_BTD: Tensor
    neurons_BTN: Tensor | None
    attention: Attention | None
    resid_BTD: Tensor
    call: dict[str, Any]
    graph: tuple[Tensor, Tensor]


@dataclass(eq=False)
class Capture:
    """One forward pass: the residual's start, what every part added, its end and what came of it."""

    ids_BT: Tensor
    embed_BTD: Tensor  # what enters the first layer
    tokens_BTD: Tensor  # the token embedding's own output
    positions_BTD: Tensor | None  # learnt positions
    layers: list[LayerCapture]
    final_BTD: Tensor
    normed_BTD: Tensor
    logits_BTV: Tensor


@dataclass(eq=False)
class _Caught:
    values: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[int, dict] = field(default_factory=dict)
    attention: list[Attention] = field(default_factory=list)


def capture(
    anatomy: Anatomy, ids_BT: Tensor, *, grad: bool = False, embeds_BTD: Tensor | None = None, **inputs: Tensor
) -> Capture:
    """Run the model once, in eval mode, and keep everything.

    Args:
        ids_BT: token ids without padding.
        grad: keep the graph, for gradients along the way.
        embeds_BTD: vectors to use in place of the tokens' own.
        inputs: more for the forward (position_ids).
    """
    caught, model = _Caught(), anatomy.model
    around = eager(model) if anatomy.bypasses else switched(model, caught.attention.append)
    first = {"input_ids": ids_BT} if embeds_BTD is None else {"inputs_embeds": embeds_BTD}
    with evaluating(model), _hooks(anatomy, caught), around, torch.set_grad_enabled(grad):
        out = model(**first, **inputs, use_cache=False, output_attentions=anatomy.bypasses or None)
    return _assembled(anatomy, caught, out, ids_BT)


@contextlib.contextmanager
def _hooks(anatomy: Anatomy, caught: _Caught) -> Iterator[None]:
    handles = []

    def out(module: nn.Module | None, name: str) -> None:
        if module is not None:
            handles.append(module.register_forward_hook(lambda m, i, o: caught.values.__setitem__(name, first_output(o))))

    def into(module: nn.Module | None, name: str) -> None:
        if module is not None:
            handles.append(module.register_forward_pre_hook(lambda m, i: caught.values.__setitem__(name, i[0])))

    def calls(index: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = dict(kwargs)
            caught.values[f"resid{index}"] = args[0] if args else given.pop("hidden_states")
            caught.calls[index] = {"args": args[1:], "kwargs": given}
        return hook

    try:
        out(anatomy.embed, "tokens")
        out(anatomy.positions, "positions")
        for i, block in enumerate(anatomy.blocks):
            handles.append(block.layer.register_forward_pre_hook(calls(i), with_kwargs=True))
            into(block.out, f"z{i}")
            out(block.out, f"attn_raw{i}")
            out(block.attn_added, f"attn{i}")
            into(block.down, f"neurons{i}")
            out(block.down or block.mlp, f"mlp_raw{i}")
            out(block.mlp_added, f"mlp{i}")
            if anatomy.bypasses:
                for name, module in block.attn.named_children():
                    if SEPARATE.get(name) == "v" or name in FUSED:
                        out(module, f"values{i}")
        into(anatomy.norm, "final")
        out(anatomy.norm, "normed")
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_output(output: Any) -> Tensor:
    """What a module gives, without the tuple that some wrap it in."""
    return output[0] if isinstance(output, tuple) else output


def _assembled(anatomy: Anatomy, caught: _Caught, out: Any, ids_BT: Tensor) -> Capture:
    values, (batch, length) = caught.values, ids_BT.shape

    def wide(name: str) -> Tensor:  # OPT flattens rows and positions
        return values[name].reshape(batch, length, -1)

    if not anatomy.bypasses and len(caught.attention) != anatomy.n_layers:
        raise SubjectError(
            "the family does not attend through transformers' interface",
            got=f"{len(caught.attention)} calls in {anatomy.n_layers} layers", expected="one per layer",
        )  # fmt: skip
    layers = []
    for i in range(anatomy.n_layers):
        z = wide(f"z{i}").view(batch, length, anatomy.n_heads, -1)
        seen = None if anatomy.bypasses else caught.attention[i]
        layers.append(LayerCapture(
            out.attentions[i] if seen is None else seen.pattern_BHTT,
            _values(values[f"values{i}"], anatomy, z.shape[-1]) if seen is None else seen.v_BHTd,
            z, wide(f"attn{i}"), wide(f"attn_raw{i}"), wide(f"mlp{i}"), wide(f"mlp_raw{i}"),
            wide(f"neurons{i}") if f"neurons{i}" in values else None, seen, values[f"resid{i}"], caught.calls[i],
            (values[f"z{i}"], values[f"mlp{i}"]),
        ))  # fmt: skip
    positions = values.get("positions")
    return Capture(
        ids_BT, values["resid0"], wide("tokens") if "tokens" in values else values["resid0"],
        positions.expand(batch, length, -1) if positions is not None else None,
        layers, values["final"], values["normed"], out.logits,
    )  # fmt: skip


def _values(projected: Tensor, anatomy: Anatomy, dim: int) -> Tensor:
    """(B, H, T, d) from a value projection, or from one fused head by head (bloom)."""
    heads = projected.unflatten(-1, (anatomy.n_heads, -1))
    return heads[..., -dim:].transpose(1, 2)


def head_writes(anatomy: Anatomy, layer: LayerCapture, index: int) -> Tensor:
    """(B, T, H, D) what each head added, before the norm behind attention; the bias is nobody's."""
    out = matrix_of(anatomy.blocks[index].out).detach()
    return torch.einsum("bthd,ehd->bthe", layer.z_BTHd, out.view(out.shape[0], anatomy.n_heads, -1))
