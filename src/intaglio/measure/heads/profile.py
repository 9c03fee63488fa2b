"""At which distance a head would look if only positions counted: score of its mean query with its mean key.  [torch]

    profile(t) = scaling * (mean query, t positions on) . (mean key), its mean over distances taken off

Means go over the searched tokens as embedded, through the first norm: the mean over all pairs of tokens of their score at
that distance. Under rotary positions the model's own proved rotation turns the query. With learnt positions (GPT-2) the
mean embedding plus the position's vector goes through the first norm, and scores are averaged over all pairs at equal
distance, each query's own mean taken off. A model with neither has no profile.

Legend: H heads, d head size, D width, N tokens, P positions, T distances.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Skip
from intaglio.measure.choice.rotation import Rotation, rotations_of, turned
from intaglio.measure.heads.matrices import LayerHeads, hat_of, kind_of_norm, norm_before
from intaglio.measure.heads.sides import Sides
from intaglio.model.anatomy import Anatomy

FARTHEST = 64  # tokens back
QUERIES = 256  # positions averaged over, where positions are learnt


def profiles(anatomy: Anatomy, tokenizer: Any, layers: list[LayerHeads], sides: Sides) -> list[Tensor | None]:
    """Per layer (H, T) nats by distance 0, 1, ...; None where positions do not act through rotation or a learnt vector."""
    if isinstance(getattr(anatomy.positions, "weight", None), nn.Parameter):
        hat_PD = _placed(anatomy, sides)
        return [_learnt(heads, hat_PD) for heads in layers]
    found = Decision(anatomy, tokenizer, sides.ids_N[:8].tolist(), 0, None)
    try:
        rotations = rotations_of(found)
    except Skip:
        return [None] * len(layers)
    reach = [_reach(block.attn) for block in anatomy.blocks]
    return [r and rotary_profile(heads, r, sides.e_ND, far) for heads, r, far in zip(layers, rotations, reach)]


def _reach(attn: nn.Module) -> int:
    """The largest distance that the profile covers: less where a sliding window ends before."""
    window = getattr(attn, "sliding_window", None)
    return min(FARTHEST, window - 1) if isinstance(window, int) and window > 0 else FARTHEST


def rotary_profile(heads: LayerHeads, rotation: Rotation, hat_ND: Tensor, farthest: int = FARTHEST) -> Tensor:
    """(H, T) with the layer's proved rotation."""
    q_H1d, k_Hd = heads.queries(hat_ND).double().mean(0)[:, None], heads.keys(hat_ND).double().mean(0)
    places_T = torch.arange(farthest + 1, device=hat_ND.device, dtype=torch.double)
    q_HTd = turned(rotation, q_H1d.expand(-1, farthest + 1, -1), places_T)
    score_HT = heads.scaling * (q_HTd * k_Hd[:, None]).sum(-1)
    return score_HT - score_HT.mean(1, keepdim=True)


def _placed(anatomy: Anatomy, sides: Sides) -> Tensor:
    """(P, D) the mean embedding at each learnt position, as the first norm gives it."""
    offset = int(getattr(anatomy.positions, "offset", 0))  # OPT's first positions stand for padding
    places_PD = anatomy.positions.weight.detach().float()[offset:][: FARTHEST + QUERIES]
    x_PD = (anatomy.embed(sides.ids_N).float() * anatomy.embed_scale).mean(0) + places_PD
    norm = norm_before(anatomy.blocks[0])
    return x_PD if norm is None else hat_of(kind_of_norm(norm, anatomy.width), norm, x_PD)


def _learnt(heads: LayerHeads, hat_PD: Tensor) -> Tensor:
    farthest = min(FARTHEST, (len(hat_PD) - 1) // 2)
    score_HPP = heads.scaling * torch.einsum("qhe,khe->hqk", heads.queries(hat_PD), heads.keys(hat_PD)).double()
    queries = torch.arange(farthest, len(hat_PD), device=hat_PD.device)
    keys = queries[:, None] - torch.arange(farthest + 1, device=hat_PD.device)
    score_HQT = score_HPP[:, queries[:, None], keys]
    return (score_HQT - score_HQT.mean(2, keepdim=True)).mean(1)
