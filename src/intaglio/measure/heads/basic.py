"""The six basic roles of every head, on repeated random tokens, reduced while the model runs.  [torch]

    previous_token   attention on the token before
    fixed_offset     attention on the token k before, k from 2 on: chosen on other texts than it is scored on
    duplicate_token  in the second copy: attention on the same token in the first
    induction        in the second copy: attention on what followed the same token in the first
    first_token      attention on the first token
    self             attention on the token itself

Each is a mean over the positions that look. Its null is the same mean with every target moved to another position that
the query may see, all of them equally likely, taken exactly: a head that attends evenly scores its null. Where positions
are biased by construction (ALiBi) and the bias alone scores more, that is the null.
Sources: Olsson et al. 2209.11895 (induction), Wang et al. 2211.00593 (duplicate), Xiao et al. 2309.17453 (first token).

B texts, H heads, Q queries, K keys, O offsets back, N texts in all, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.measure.heads.repeats import Repeats, repeats
from intaglio.measure.heads.seeing import see_attention
from intaglio.measure.heads.slopes import leaning
from intaglio.model.anatomy import Anatomy

FURTHEST = 16  # tokens back, the longest fixed offset
TEXTS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Targets at one distance: every query from `begin` on looks `back` tokens back."""

    role: str
    back: int
    begin: int


def measure_basic(
    anatomy: Anatomy, *, seed: int = 0, texts: int = 4, length: int = 50, ordinary: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Sampled]:  # fmt: skip
    """Scores of all heads for the six basic roles, with the same on shuffled targets; no pattern is kept.

    Args:
        texts: independent texts; the fixed offset needs two at least.
        length: tokens in a copy; fewer where the model's context or vocabulary is too small.
        ordinary: token ids to draw from; every id but the special ones if not given.
        progress: told how many texts are done.

    Returns:
        One per role; for the fixed offset one per distance that some head prefers, nan for all other heads.

    Raises:
        InputError: the model has no room for repeated texts.
    """
    given = repeats(anatomy, seed=seed, texts=texts, length=length, ordinary=ordinary)
    lines = diagonals(given)
    found = torch.empty(2, texts, len(lines) + 1, anatomy.n_layers, anatomy.n_heads, dtype=torch.float64)
    visible: dict[int, Tensor] = {}
    for at in range(0, texts, TEXTS_AT_ONCE):
        some = slice(at, min(at + TEXTS_AT_ONCE, texts))

        def see(layer: int, pattern_BHQK: Tensor, some: slice = some) -> None:
            found[:, some, :, layer] = reduced(pattern_BHQK.float(), lines, visible[layer]).to("cpu", torch.float64)

        see_attention(anatomy, given.ids_BT[some], see, logits=False, visible=visible)
        progress(some.stop)
    values_NOLH, null_NOLH = found.numpy()
    lean_BHTT = leaning(anatomy, given.ids_BT.shape[1])
    if lean_BHTT is not None:
        by_design_OH = reduced(lean_BHTT, lines, visible[0])[0, 0].cpu().numpy()
        null_NOLH = np.maximum(null_NOLH, by_design_OH[None, :, None])
    offsets = [i for i, line in enumerate(lines) if line.role == "fixed_offset"]
    sampled = [
        Sampled(line.role, "", values_NOLH[:, i], null_NOLH[:, i])
        for i, line in enumerate(lines) if line.role != "fixed_offset"
    ]  # fmt: skip
    sampled.append(Sampled("first_token", "", values_NOLH[:, -1], null_NOLH[:, -1]))
    if offsets and texts > 1:
        backs = [lines[i].back for i in offsets]
        sampled += best_offset(values_NOLH[:, offsets], null_NOLH[:, offsets], backs)
    return sampled


def diagonals(given: Repeats) -> list[Diagonal]:
    """Every role whose targets lie at one distance, and every distance that the fixed offset may have.

    Queries whose target would be the first token are left out where that is not the role: a sink would score there.
    """
    furthest = min(FURTHEST, given.length - 2)  # the next one is the distance of induction
    return [
        Diagonal("previous_token", 1, 2), Diagonal("self", 0, 1),
        Diagonal("duplicate_token", given.length, given.second + (1 - given.first)),
        Diagonal("induction", given.length - 1, given.second),
        *(Diagonal("fixed_offset", back, back + 1) for back in range(2, furthest + 1)),
    ]  # fmt: skip


def reduced(pattern_BHQK: Tensor, lines: Sequence[Diagonal], visible_Q: Tensor) -> Tensor:
    """(2, B, lines + 1, H): the mean over each line's targets and its null; the first token is the last line.

    The null of a query is what is left of its row, divided by the positions it may see besides its target.
    """
    rows_BHQ = pattern_BHQK.sum(-1)  # less than 1 where a share goes nowhere
    targets = [(pattern_BHQK.diagonal(-line.back, 2, 3), line.back, line.begin) for line in lines]
    targets.append((pattern_BHQK[..., 0], 0, 1))
    values, nulls = [], []
    for target_BHq, back, begin in targets:  # a diagonal begins at the query `back`
        target_BHq = target_BHq[..., begin - back :]
        others_q = (visible_Q[begin:] - 1).clamp_min(1)
        values.append(target_BHq.mean(-1))
        nulls.append(((rows_BHQ[..., begin:] - target_BHq) / others_q).mean(-1))
    return torch.stack([torch.stack(values, 1), torch.stack(nulls, 1)])


def best_offset(values_NOLH: np.ndarray, null_NOLH: np.ndarray, backs: Sequence[int]) -> list[Sampled]:
    """The fixed offset without bias by selection: each half of the texts is scored at the distance the other half chose.

    Args:
        backs: the distances, in tokens, of the axis O.

    Returns:
        One for every distance that is some head's best over all texts; nan for the other heads.
    """
    texts = len(values_NOLH)
    excess_NOLH = values_NOLH - null_NOLH
    half_N = np.arange(texts) % 2
    score_NLH, null_NLH = np.empty_like(values_NOLH[:, 0]), np.empty_like(values_NOLH[:, 0])
    for half in (0, 1):
        chosen_LH = excess_NOLH[half_N != half].mean(0).argmax(0)
        for out, of in ((score_NLH, values_NOLH), (null_NLH, null_NOLH)):
            out[half_N == half] = np.take_along_axis(of[half_N == half], chosen_LH[None, None], 1)[:, 0]
    best_LH = excess_NOLH.mean(0).argmax(0)
    return [
        Sampled("fixed_offset", str(back), np.where(best_LH == i, score_NLH, np.nan), np.where(best_LH == i, null_NLH, np.nan))
        for i, back in enumerate(backs) if (best_LH == i).any()
    ]  # fmt: skip
