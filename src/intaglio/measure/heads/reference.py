"""Where every head looks on a little ordinary text: its pattern for the page, and what can be said of it in numbers.  [torch]

B texts, H heads, T positions (queries and keys), L layers.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intaglio.data.vocab import spelled, token_bytes
from intaglio.measure.heads.seeing import see_attention
from intaglio.model.anatomy import Anatomy

TOKENS = 64  # of each text


@dataclass(frozen=True, eq=False)
class Reference:
    """What heads did on the reference texts.

    Attributes:
        text_ids: token ids of every text; only the `ordinary` first ones count for the features.
        texts: the same as letters.
        patterns: rows of the table `patterns`.
        features: by address: entropy_nats, distance_tokens, sink.
    """

    text_ids: list[list[int]]
    texts: list[list[str]]
    patterns: list[dict[str, Any]]
    features: dict[str, dict[str, float]]


def measure_reference(anatomy: Anatomy, tokenizer: Any, texts: Sequence[Sequence[int]], *, ordinary: int) -> Reference:
    """Run each text once; keep patterns as bytes, and means over the first `ordinary` texts as numbers.

    Args:
        texts: token ids, two at least in each.
        ordinary: how many of them count for the features: texts made to provoke something do not.
    """
    sums_LHF = torch.zeros(anatomy.n_layers, anatomy.n_heads, 4, dtype=torch.float64)
    queries, patterns = 0, []
    for place, ids in enumerate(texts):
        counted = place < ordinary

        def see(layer: int, pattern_BHTT: Tensor, place: int = place, counted: bool = counted) -> None:
            pattern_HTT = pattern_BHTT[0].float()
            if counted:
                sums_LHF[layer] += summed(pattern_HTT).cpu()
            for head, triangle in enumerate(triangles(pattern_HTT)):
                patterns.append({"address": f"L{layer}.attn.H{head}", "text": place, "triangle": triangle})

        see_attention(anatomy, torch.tensor([list(ids)], device=anatomy.embed.weight.device), see, logits=False)
        queries += (len(ids) - 1) * counted
    features = {
        f"L{layer}.attn.H{head}": _features(sums_LHF[layer, head], queries)
        for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads)
    }  # fmt: skip
    letters = [[spelled(token_bytes(tokenizer, i)) for i in ids] for ids in texts]
    return Reference([list(map(int, ids)) for ids in texts], letters, patterns, features)


def summed(pattern_HTT: Tensor) -> Tensor:
    """(H, 4) over all queries but the first: entropy, attention times distance, attention on other than the first, on it."""
    p_HTT = pattern_HTT[:, 1:].double()
    length = p_HTT.shape[-1]
    distance_TT = (torch.arange(1, length)[:, None] - torch.arange(length)).clamp_min(0).to(p_HTT.device)
    return torch.stack([
        -torch.xlogy(p_HTT, p_HTT).sum((1, 2)), (p_HTT * distance_TT)[..., 1:].sum((1, 2)), p_HTT[..., 1:].sum((1, 2)),
        p_HTT[..., 0].sum(1),
    ], -1)  # fmt: skip


def _features(sums_F: Tensor, queries: int) -> dict[str, float]:
    entropy, distance, elsewhere, first = sums_F.tolist()
    return {"entropy_nats": entropy / queries, "distance_tokens": distance / elsewhere if elsewhere > 0 else None,
            "sink": first / queries}  # fmt: skip


def triangles(pattern_HTT: Tensor) -> list[str]:
    """Every head's lower triangle, row by row, one byte each, deflated, as base64."""
    length = pattern_HTT.shape[-1]
    rows, columns = torch.tril_indices(length, length)
    bytes_HX = (pattern_HTT[:, rows, columns].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [base64.b64encode(zlib.compress(one.tobytes(), 9)).decode() for one in bytes_HX]
