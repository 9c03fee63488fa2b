"""Name movers: heads that look from the end at the indirect object and write its name.

    score = (A[end, IO] - A[end, S1] - A[end, S2]) * 1[vote(IO) > vote(S)]

A is the head's attention, a name's mass is summed over its tokens, and the vote is the head's direct effect on the
two names' logits (the first tokens that tell them apart) through its whole write at the end. 1: it looks at nothing but
the name that is right and raises it over the other. Null: the same with three other positions, at random, in the place of
the names, and two tokens of the prompt, at random, in the place of theirs.
Source: Wang et al. 2211.00593 (attention to IO against S, copying through OV); the product is ours.
Limits: direct effects only; a head that looks at both names gets nothing, however well it copies.

Legend: B texts, H heads, K positions, d head size, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.measure.heads.tasks.found import blank
from intaglio.measure.heads.tasks.prompts import Prompt, by_length
from intaglio.measure.heads.writing import directions_ND, output_DHd, see_writing
from intaglio.model.anatomy import Anatomy


@dataclass(frozen=True)
class Asked:
    """Where a mover should look (+1) and should not (-1), and the token it should raise over another."""

    signs: dict[int, float]
    right: int
    wrong: int


def name_movers(anatomy: Anatomy, prompts: Sequence[Prompt], rng: np.random.Generator) -> Sampled:
    """The score of every head on every prompt."""
    values, null = blank(len(prompts), anatomy), blank(len(prompts), anatomy)
    sheets = ((values, [asked_of(p) for p in prompts]), (null, [shuffled(p, rng) for p in prompts]))
    device = anatomy.unembed.weight.device
    for chunk, ids_BT in by_length(prompts, device):
        ready = [_ready(anatomy, [asked[i] for i in chunk], ids_BT) for _, asked in sheets]

        def see(layer: int, pattern_BHQK: Tensor, v_BHKd: Tensor, entering_BTD: Tensor) -> None:
            end_BHK, out_DHd = pattern_BHQK[:, :, -1], output_DHd(anatomy, layer)
            z_BHd = torch.einsum("bhk,bhkd->bhd", end_BHK, v_BHKd)
            for (into, _), (signs_BK, towards_BD) in zip(sheets, ready):  # noqa: B023 (used at once)
                looks_BH = torch.einsum("bhk,bk->bh", end_BHK, signs_BK)
                votes_BH = torch.einsum("bhd,ehd,be->bh", z_BHd, out_DHd, towards_BD)
                into[chunk, layer] = (looks_BH * (votes_BH > 0)).double().cpu().numpy()  # noqa: B023

        see_writing(anatomy, ids_BT, see)
    return Sampled("name_mover", "", values, null)


def asked_of(prompt: Prompt) -> Asked:
    """IO against S, where they stand."""
    signs = {k: sign for mark, sign in (("IO", 1.0), ("S1", -1.0), ("S2", -1.0)) for k in range(*prompt.spans[mark])}
    return Asked(signs, prompt.facts["io"], prompt.facts["s"])


def shuffled(prompt: Prompt, rng: np.random.Generator) -> Asked:
    """The same question about other positions and tokens of the prompt, at random; as many as the names have tokens."""
    real = asked_of(prompt)
    free = [k for k in range(1, len(prompt.ids)) if k not in real.signs]
    places = rng.choice(free, min(len(real.signs), len(free)), replace=False)
    tokens = sorted({prompt.ids[k] for k in free})
    right, wrong = rng.choice(tokens, 2, replace=False) if len(tokens) > 1 else (real.right, real.wrong)
    return Asked({int(k): sign for k, sign in zip(places, real.signs.values())}, int(right), int(wrong))


def _ready(anatomy: Anatomy, asked: Sequence[Asked], ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Signs by position, (B, K), and the direction that tells right from wrong, (B, D)."""
    weight = anatomy.unembed.weight
    signs_BK = torch.zeros(ids_BT.shape, dtype=weight.dtype, device=weight.device)
    for row, a in enumerate(asked):
        for k, sign in a.signs.items():
            signs_BK[row, k] = sign
    pairs = torch.tensor([[a.right, a.wrong] for a in asked], device=weight.device)
    raising_B2D = directions_ND(anatomy, pairs)
    return signs_BK, raising_B2D[:, 0] - raising_B2D[:, 1]
