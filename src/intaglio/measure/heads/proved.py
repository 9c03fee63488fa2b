"""Are the slices of attention's matrices true? A few tokens, one by one, are enough to see.  [torch]

Legend: H query heads, d head size, D width, N tokens, Q queries, K keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from intaglio.errors import SubjectError
from intaglio.measure.heads.matrices import LayerHeads, kind_of_norm, norm_before, sliced
from intaglio.model.anatomy import Anatomy, Block
from intaglio.model.capture import Capture, LayerCapture, capture
from intaglio.model.proof import COARSE, TOKENS

LIMIT = 1e-3  # in units of the largest number compared; COARSE for 16 bits


@torch.no_grad()
def read_heads(anatomy: Anatomy) -> list[LayerHeads]:
    """The heads of all layers.

    Raises:
        SubjectError: a projection is not known here, or its slices do not give what the model computes.
    """
    heads = [sliced(anatomy, i) for i in range(anatomy.n_layers)]
    limit = COARSE if anatomy.unembed.weight.dtype in (torch.float16, torch.bfloat16) else LIMIT
    for i, one in enumerate(heads := _checked(anatomy, heads)):
        for what, error in one.errors.items():
            if not error <= limit:
                raise SubjectError(
                    f"the slices of attention's matrices are not proved: {what} of layer {i} are not the model's",
                    got=f"off by {error:.1e} in {type(anatomy.model).__name__}", expected="0",
                )  # fmt: skip
    return heads


def _checked(anatomy: Anatomy, heads: list[LayerHeads]) -> list[LayerHeads]:
    """The same with their errors on a few tokens and the scaling that the model uses.

    Every token stands alone, at position 0, where rotary positions turn nothing. A family that does not show its queries
    and keys has them in one row with positions of 0, where differences of differences of scores are free of any bias.
    """
    size, device = anatomy.unembed.weight.shape[0], anatomy.unembed.weight.device
    ids_N = torch.linspace(3, size - 1, TOKENS, device=device).long()
    if not anatomy.bypasses:
        seen = capture(anatomy, ids_N[:, None])
        return [_compared(anatomy, one, seen, i, _met) for i, one in enumerate(heads)]
    known = "position_ids" in inspect.signature(anatomy.model.forward).parameters
    placed = {"position_ids": torch.zeros_like(ids_N)[None]} if known else {}
    seen = capture(anatomy, ids_N[None], attention_mask=torch.ones_like(ids_N)[None], **placed)  # the mask: one text, not five
    return [_compared(anatomy, one, seen, i, _hidden) for i, one in enumerate(heads)]


def _compared(anatomy: Anatomy, heads: LayerHeads, seen: Capture, index: int, scores: Callable) -> LayerHeads:
    layer, block = seen.layers[index], anatomy.blocks[index]
    hat_ND = heads.hat(layer.resid_BTD.flatten(0, 1).float(), norm_before(block))
    v_NHd = torch.einsum("hed,nd->nhe", heads.v_HdD, hat_ND) + heads.v_Hd
    met_NHd = layer.v_BHTd.transpose(1, 2).flatten(0, 1).float()
    added_ND = torch.einsum("hde,nhe->nd", heads.o_HDd, layer.z_BTHd.flatten(0, 1).float())
    wanted_ND = _without_bias(anatomy, block, layer.attn_BTD.flatten(0, 1).float(), layer.attn_raw_BTD.flatten(0, 1).float())
    scaling, found = scores(heads, layer, hat_ND)
    return replace(heads, scaling=scaling, errors={**found, "values": _off(v_NHd, met_NHd), "writes": _off(added_ND, wanted_ND)})


def _without_bias(anatomy: Anatomy, block: Block, added_ND: Tensor, raw_ND: Tensor) -> Tensor:
    """What attention added, less its bias, with the scale of a norm behind it taken out."""
    bias = getattr(block.out, "bias", None)
    bias_D = torch.zeros_like(raw_ND[0]) if bias is None else bias.detach().float()
    if block.attn_post is None:
        return (added_ND - bias_D) * anatomy.residual_scale
    kind = anatomy.kinds.get(block.attn_post) or kind_of_norm(block.attn_post, anatomy.width)
    unscaled = (added_ND - kind.bias_D) / kind.scale_of(raw_ND, added_ND)[:, None]
    return (unscaled - kind.apply(bias_D, torch.ones((), device=bias_D.device)) + kind.bias_D) * anatomy.residual_scale


def _met(heads: LayerHeads, layer: LayerCapture, hat_ND: Tensor) -> tuple[float, dict[str, float]]:
    """Scaling (a constant by which rotary tables are multiplied included); errors of queries and keys."""
    met = layer.attention
    scaling, found = met.scaling, {}
    pairs = {"queries": (heads.queries(hat_ND), met.q_BHTd), "keys": (heads.keys(hat_ND), met.k_BHTd)}
    for what, (ours_NHd, theirs) in pairs.items():
        theirs_NHd = theirs.transpose(1, 2).flatten(0, 1).float()
        factor = _factor(ours_NHd, theirs_NHd)
        scaling, found[what] = scaling * factor, _off(ours_NHd * factor, theirs_NHd)
    return scaling, found


def _hidden(heads: LayerHeads, layer: LayerCapture, hat_ND: Tensor) -> tuple[float, dict[str, float]]:
    ours_HTT = torch.einsum("qhe,khe->hqk", heads.queries(hat_ND), heads.keys(hat_ND))
    theirs_HTT = layer.pattern_BHTT[0].float().clamp_min(1e-30).log()
    half = ours_HTT.shape[-1] // 2

    def twice(x_HTT: Tensor) -> Tensor:  # over queries that all see the first keys
        seen = x_HTT[:, half:, : half + 1]
        seen = seen - seen[..., :1]
        return seen - seen[:, :1]

    ours, theirs = twice(ours_HTT), twice(theirs_HTT)
    factor = _factor(ours, theirs)
    return factor, {"scores": _off(ours * factor, theirs)}


def _factor(ours: Tensor, theirs: Tensor) -> float:
    return float((ours * theirs).sum() / ours.square().sum().clamp_min(1e-30))


def _off(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
