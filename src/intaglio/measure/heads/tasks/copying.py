"""Copying and copy suppression on ordinary text: does what a head reads become more likely, or less?

    copying          = sum over t, s of w(t, s) * r(t, s) / sum over all t, s of w(t, s)
    copy_suppression = sum over t, s with x_s predicted at t of w(t, s) * -r(t, s) / the same sum

w(t, s) is the length of what the head writes at t from s: attention times |v_s W_O|. r is how high the token x_s itself
stands among the distinct tokens of the text by what that write does to their logits: the share of other tokens that it raises
less than x_s, less the share that it raises more: 1 raised most, 0 in the middle, -1 lowered most. Sums below the line go
over all sources, also over the start token and the position itself, which count for nothing above it. Tokens that stand in
more than a quarter of the texts (articles, commas) are no sources at all: with them the texts were not independent.
`Predicted at t`: by the residual that enters the layer (logit lens), x_s stands within the first tenth of the text's tokens,
and is not the token at t.
Null: another token of the text in the place of x_s, drawn at random for each source, in r and in `predicted`.
Sources: copying Elhage et al. 2021 and Wang et al. 2211.00593; weights Kobayashi et al. 2004.10102; suppression McDougall
et al. 2310.04625 (attend to what is predicted and lower it). The ranks are ours; the final norm's scale changes none.
Limits: direct effects only; tokens of one text compared with each other, not with the whole vocabulary.

Legend: B texts, H heads, Q and K positions, N distinct tokens of a text, d head size, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.data.heads import prose
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.tasks.found import Found, blank
from intaglio.measure.heads.tasks.prompts import Untested, longest, start_ids
from intaglio.measure.heads.writing import directions_ND, output_DHd, raised_HdN, see_writing, write_length_BHK
from intaglio.model.anatomy import Anatomy

TOKENS = 64  # of a text
TEXTS = 20
BATCH = 8
COMMON = 0.25  # of the texts
PREDICTED = 0.1  # share of the text's tokens that are called predicted


def find_copying(anatomy: Anatomy, tokenizer: Any, rng: np.random.Generator) -> Found:
    """Scores of both roles on the reference text.

    Raises:
        Untested: the reference text is shorter than one piece.
    """
    ids_NT = reference_texts(tokenizer, tokens=min(TOKENS, longest(anatomy))).to(anatomy.unembed.weight.device)
    rare_NT = ~common(ids_NT)
    sheets = np.stack([blank(len(ids_NT), anatomy) for _ in range(4)])
    for start in range(0, len(ids_NT), BATCH):
        few = slice(start, start + BATCH)
        _score(anatomy, ids_NT[few], rare_NT[few], rng, sheets[:, few])
    again_NT = repeated(ids_NT)
    first_NT = ~again_NT
    first_NT[:, 0] = False
    return Found(
        [Sampled("copying", "", sheets[0], sheets[1]), Sampled("copy_suppression", "", sheets[2], sheets[3])],
        [RoleLoss("copying", "tokens of ordinary text that stood in it before", [(ids_NT, again_NT)]),
         RoleLoss("copy_suppression", "tokens of ordinary text that did not stand in it before", [(ids_NT, first_NT)])],
    )  # fmt: skip


def reference_texts(tokenizer: Any, texts: int = TEXTS, tokens: int = TOKENS) -> Tensor:
    """(N, T) pieces of ordinary prose in both languages, each after a start token; English and Russian by turns."""
    start, pieces = start_ids(tokenizer), []
    for language in ("en", "ru"):
        ids = tokenizer(" ".join(prose(language)), add_special_tokens=False)["input_ids"]
        size = tokens - len(start)
        pieces.append([(*start, *ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)])
    taken = [p[i] for i in range(max(map(len, pieces))) for p in pieces if i < len(p)][:texts]
    if not taken:
        raise Untested(f"the reference text has fewer than {tokens} tokens")
    return torch.tensor(taken)


def repeated(ids_NT: Tensor) -> Tensor:
    """(N, T) whether the token stood earlier in its text."""
    same_NTT = ids_NT[:, :, None] == ids_NT[:, None, :]
    return same_NTT.tril(-1).any(-1)


def common(ids_NT: Tensor) -> Tensor:
    """(N, T) whether the token stands in too many texts; the start token, which stands in all, is none of these."""
    distinct, inverse = torch.unique(ids_NT, return_inverse=True)
    held = torch.zeros(len(ids_NT), len(distinct), device=ids_NT.device)
    held.scatter_(1, inverse, 1.0)
    found = (held.mean(0) > COMMON)[inverse]
    found[:, 0] = False
    return found


def _score(anatomy: Anatomy, ids_BT: Tensor, rare_BT: Tensor, rng: np.random.Generator, into_4BLH: np.ndarray) -> None:
    """Write copying, its null, suppression and its null of a few texts."""
    texts = [_Text.of(anatomy, ids_T, rng) for ids_T in ids_BT]

    def see(layer: int, pattern_BHQK: Tensor, v_BHKd: Tensor, entering_BTD: Tensor) -> None:
        out_DHd = output_DHd(anatomy, layer)
        weight_BHQK = pattern_BHQK * (write_length_BHK(out_DHd, v_BHKd) * rare_BT[:, None])[:, :, None]
        whole_BH = weight_BHQK.sum((2, 3)).clamp_min(1e-30)
        counted_BHQK = weight_BHQK.tril(-1)
        counted_BHQK[:, :, :, 0] = 0
        for row, text in enumerate(texts):
            raised_HKN = torch.einsum("hkd,hdn->hkn", v_BHKd[row], raised_HdN(out_DHd, text.towards_ND))
            said_QN = lens_QN(entering_BTD[row], text.towards_ND)
            for i, asked_K in enumerate((text.own_T, text.other_T)):
                r_HK = standing(raised_HKN, asked_K)
                says_QK = standing(said_QN[:, None].expand(-1, len(asked_K), -1), asked_K)
                expected_QK = (says_QK >= 1 - 2 * PREDICTED) & (asked_K[None] != text.own_T[:, None])
                copied_H = torch.einsum("hqk,hk->h", counted_BHQK[row], r_HK)
                lowered_H = -torch.einsum("hqk,hk,qk->h", counted_BHQK[row], r_HK, expected_QK.to(r_HK.dtype))
                into_4BLH[i, row, layer] = (copied_H / whole_BH[row]).double().cpu().numpy()
                into_4BLH[2 + i, row, layer] = (lowered_H / whole_BH[row]).double().cpu().numpy()

    see_writing(anatomy, ids_BT, see)


@dataclass(frozen=True, eq=False)
class _Text:
    """A text's distinct tokens: which of them each position holds, and another that the null asks about."""

    own_T: Tensor
    other_T: Tensor
    towards_ND: Tensor

    @classmethod
    def of(cls, anatomy: Anatomy, ids_T: Tensor, rng: np.random.Generator) -> _Text:
        distinct_N, own_T = torch.unique(ids_T, return_inverse=True)
        shift_T = torch.as_tensor(rng.integers(1, max(len(distinct_N), 2), len(ids_T)), device=ids_T.device)
        return cls(own_T, (own_T + shift_T) % len(distinct_N), directions_ND(anatomy, distinct_N))


def standing(values_XKN: Tensor, asked_K: Tensor) -> Tensor:
    """(X, K) of the asked one of N numbers: the share of the others below it less the share above it, -1 to 1."""
    asked_XK1 = values_XKN.gather(-1, asked_K[None, :, None].expand(len(values_XKN), -1, 1))
    ahead_XK = (asked_XK1 > values_XKN).sum(-1) - (asked_XK1 < values_XKN).sum(-1)
    return ahead_XK.to(values_XKN.dtype) / max(values_XKN.shape[-1] - 1, 1)


def lens_QN(entering_QD: Tensor, towards_ND: Tensor) -> Tensor:
    """What the residual says of the tokens, in their order (the final norm's bias and scale left out)."""
    return entering_QD @ towards_ND.T
