"""Both ends of a head's circuits: the tokens it can read and the tokens it can raise, as vectors.  [torch]

    e_t = what the first norm makes of token t's embedding alone, before its gain (no positions, no context)
    u_t = token t's row of the output matrix before the final norm's gain: the logit's change per unit at scale 1,
          less its mean over all tokens, to which probabilities are blind

Legend: V vocabulary, D width, N tokens whose names are searched.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intaglio.data.vocab import is_special, spelled, token_bytes
from intaglio.measure.heads.matrices import hat_of, kind_of_norm, norm_before
from intaglio.model.anatomy import Anatomy

SEARCHED = 2048
_ROWS = 8192  # of the vocabulary at once
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that no text in UTF-8 holds


@dataclass(frozen=True, eq=False)
class Sides:
    """The vocabulary at both ends.

    Attributes:
        ids_N: the first regular tokens: no control tokens, control characters or bytes that no text holds.
        words_N: they, as letters.
        e_ND, u_ND: their vectors at either end.
        ov_DD: sum over all tokens of e_t u_t^T.
        qk_DD: sum over all tokens of (e_t - mean) (e_t - mean)^T.
        size: how many tokens the sums go over: all that the tokenizer names and the model can read and write.
    """

    ids_N: Tensor
    words_N: list[str]
    e_ND: Tensor
    u_ND: Tensor
    ov_DD: Tensor
    qk_DD: Tensor
    size: int


@torch.no_grad()
def sides_of(anatomy: Anatomy, tokenizer: Any, *, searched: int = SEARCHED) -> Sides:
    """Embeddings and output rows of a model, at the scale at which heads meet them."""
    size = min(len(anatomy.embed.weight), len(anatomy.unembed.weight), len(tokenizer))
    device = anatomy.unembed.weight.device
    ids = [i for i in range(size) if _is_regular(tokenizer, i)][:searched]
    ids_N = torch.tensor(ids or list(range(min(size, searched))), device=device)
    ov, qk = (torch.zeros(anatomy.width, anatomy.width, dtype=torch.float64, device=device) for _ in range(2))
    sum_e, sum_u = (torch.zeros(anatomy.width, dtype=torch.float64, device=device) for _ in range(2))
    for rows in torch.arange(size, device=device).split(_ROWS):
        e_ND, u_ND = read(anatomy, rows), written(anatomy, rows)
        ov += e_ND.T @ u_ND
        qk += e_ND.T @ e_ND
        sum_e += e_ND.sum(0)
        sum_u += u_ND.sum(0)
    ov -= sum_e[:, None] * sum_u / size
    qk -= sum_e[:, None] * sum_e / size
    words = [spelled(token_bytes(tokenizer, int(i))) for i in ids_N]
    return Sides(ids_N, words, read(anatomy, ids_N), (written(anatomy, ids_N) - sum_u / size).float(), ov, qk, size)


def read(anatomy: Anatomy, ids_N: Tensor) -> Tensor:
    """(N, D) e_t."""
    x_ND = anatomy.embed(ids_N).float() * anatomy.embed_scale
    if anatomy.embed_norm is not None:
        x_ND = anatomy.embed_norm(x_ND.to(anatomy.unembed.weight.dtype)).float()
    norm = norm_before(anatomy.blocks[0])
    return x_ND if norm is None else hat_of(kind_of_norm(norm, anatomy.width), norm, x_ND)


def written(anatomy: Anatomy, ids_N: Tensor) -> Tensor:
    """(N, D) u_t, its mean over tokens still in it."""
    kind = kind_of_norm(anatomy.norm, anatomy.width)
    return kind.pull_back(anatomy.unembed.weight[ids_N].float()) * anatomy.logit_scale


def _is_regular(tokenizer: Any, token: int) -> bool:
    if is_special(tokenizer, token):
        return False
    data = token_bytes(tokenizer, token)
    if not data or _NEVER & set(data):
        return False
    return data in (b"\n", b"\t") or any(unicodedata.category(c) != "Cc" for c in data.decode("utf-8", "replace"))
