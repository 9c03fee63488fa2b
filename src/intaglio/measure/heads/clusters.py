"""What a head's patterns look like on ordinary prose, in a few numbers per text.  [torch]

All are means over the queries of a text, its first left out, which can only see itself:

    entropy     of the row, as a share of the largest it could have
    first       attention on the first token; all that follow leave this token out
    self, back_1, back_2, back_4, back_8, back_16, back_far   attention by distance back: 0, 1, 2, 3 to 4, 5 to 8, 9 to 16, more
    diagonal    the largest mean attention at any one distance from 0 to 16
    same        on earlier tokens that are the query's own token
    after_same  on tokens that followed an earlier copy of the query's token
    mark        on tokens of punctuation, symbols and line breaks

Patterns are never kept: each layer's are reduced before the next runs.
Legend: N texts, L layers, H heads, F features, T positions, Q queries, K keys.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from intaglio.data.leaps import anchor_rows
from intaglio.data.vocab import token_bytes
from intaglio.errors import InputError
from intaglio.measure.choice.decision import context_of, prompt_ids
from intaglio.measure.heads.seeing import see_attention
from intaglio.model.anatomy import Anatomy

BANDS = {"self": (0, 0), "back_1": (1, 1), "back_2": (2, 2), "back_4": (3, 4), "back_8": (5, 8), "back_16": (9, 16),
         "back_far": (17, math.inf)}  # fmt: skip
FEATURES = ("entropy", "first", *BANDS, "diagonal", "same", "after_same", "mark")
LONGEST = 64  # tokens of a text
_NEAR = 16  # distances among which a diagonal is sought


@dataclass(frozen=True, eq=False)
class PatternFeatures:
    """Features of every head on every text.

    Attributes:
        names: of the features.
        values_NLHF: float64.
        ids: the texts' tokens, N lists of one length.
    """

    names: tuple[str, ...]
    values_NLHF: np.ndarray
    ids: list[list[int]]


@torch.no_grad()
def cluster_features(
    anatomy: Anatomy, tokenizer: Any, *, texts: Sequence[str] | None = None, longest: int = LONGEST
) -> PatternFeatures:
    """Features of all heads on independent texts, all cut to the tokens of the shortest.

    Args:
        texts: the package's own prose, English and Russian, where None.
        longest: tokens of a text at most.

    Raises:
        InputError: fewer than two texts, or one of fewer than four tokens.
    """
    texts = [row["text"] for row in anchor_rows()] if texts is None else list(texts)
    ids = [prompt_ids(tokenizer, text, chat=False) for text in texts]
    length = min([longest, context_of(anatomy.model), *map(len, ids)])
    if len(ids) < 2 or length < 4:
        got = f"{len(ids)}, the shortest of {min(map(len, ids), default=0)} tokens"
        raise InputError("too little text to tell heads' patterns apart", got=got, expected="two texts of four tokens")
    ids_NT = torch.tensor([row[:length] for row in ids], device=anatomy.unembed.weight.device)
    marks = {t: _is_mark(token_bytes(tokenizer, t)) for t in set(ids_NT.flatten().tolist())}
    masks_NFQK = _masks(ids_NT, torch.tensor([[marks[t] for t in row] for row in ids_NT.tolist()], device=ids_NT.device))
    found: dict[int, Tensor] = {}

    def see(layer: int, pattern_NHQK: Tensor) -> None:
        found[layer] = features_of(pattern_NHQK.float(), masks_NFQK)

    see_attention(anatomy, ids_NT, see, logits=False)
    values_NLHF = torch.stack([found[i] for i in range(anatomy.n_layers)], 1)
    return PatternFeatures(FEATURES, values_NLHF.double().cpu().numpy(), ids_NT.tolist())


def features_of(pattern_NHQK: Float[Tensor, "N H Q K"], masks_NFQK: Float[Tensor, "N F Q K"]) -> Float[Tensor, "N H G"]:
    """The features, `FEATURES`, of patterns; `masks_NFQK` as `_masks` makes them."""
    length = pattern_NHQK.shape[-1]
    rows_NHQK = pattern_NHQK[:, :, 1:]
    largest_Q = torch.arange(2, length + 1, device=rows_NHQK.device).log()
    entropy_NH = (-torch.xlogy(rows_NHQK, rows_NHQK).sum(-1) / largest_Q).mean(-1)
    masses_NHF = torch.einsum("nhqk,nfqk->nhf", rows_NHQK, masks_NFQK[:, :, 1:]) / (length - 1)
    diagonals = [pattern_NHQK[:, :, d + 1 :, 1:].diagonal(dim1=2, dim2=3).mean(-1) for d in range(min(_NEAR, length - 2) + 1)]
    diagonal_NH = torch.stack(diagonals).amax(0)
    before = len(BANDS) + 1  # the first token and the distances
    parts = [entropy_NH[..., None], masses_NHF[..., :before], diagonal_NH[..., None], masses_NHF[..., before:]]
    return torch.cat(parts, -1)


def _masks(ids_NT: Int[Tensor, "N T"], mark_NT: Bool[Tensor, "N T"]) -> Float[Tensor, "N F T T"]:
    """Which keys count for which query: first, by distance, same, after_same, mark."""
    count, length = ids_NT.shape
    place_T = torch.arange(length, device=ids_NT.device)
    back_TT = place_T[:, None] - place_T
    later_TT = (place_T > 0).expand(length, -1) & (back_TT >= 0)
    equal_NTT = ids_NT[:, :, None] == ids_NT[:, None, :]
    after_NTT = torch.zeros_like(equal_NTT)
    after_NTT[:, :, 1:] = equal_NTT[:, :, :-1]
    bands = [(back_TT >= low) & (back_TT <= high) & later_TT for low, high in BANDS.values()]
    of_all = [(place_T == 0).expand(length, -1), *bands]
    masks = [mask.expand(count, -1, -1) for mask in of_all]
    masks += [equal_NTT & later_TT & (back_TT > 0), after_NTT & later_TT, mark_NT[:, None] & later_TT]
    return torch.stack(masks, 1).float()


def _is_mark(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    return bool(text) and all(unicodedata.category(c)[0] in "PSZC" and c != "\ufffd" for c in text) and text != " "
