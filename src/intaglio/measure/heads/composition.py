"""Which head's output enters which later head's circuit, from weights alone.  [torch]

    score = |M W| / (|M| |W|)   Frobenius lengths; W = W_O W_V of the writer
    M = W_K^T W_Q (side q: the reader's query is made of what the writer wrote), W_Q^T W_K (k), W_O W_V (v) of the reader

Elhage et al. 2021. Norms' gains are in the matrices, their scales cancel; rotary positions, biases, and what layers between
make of the writer's output are left out.

Null: the same singular values, directions at random in the residual stream. With shares a_i of M's and b_j of W's squared
singular values and X a d x d block of a random orthogonal D x D matrix, score^2 = sum_ij a_i b_j X_ij^2, whose mean is 1/D
and whose variance follows from the fourth moments of such a block (Collins and Sniady 2006):

    E X_ij^4 = 3 / (D (D+2)),  E X_ij^2 X_il^2 = 1 / (D (D+2)),  E X_ij^2 X_kl^2 = (D+1) / ((D-1) D (D+2))

The root's mean and deviation are those of a gamma law with these two moments. Trained heads share a few strong directions
of the residual stream, so most pairs lie beyond this null; `apart` therefore compares a writer with the reader's others.

Legend: R readers, W writers, H heads of a layer, d head size, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from intaglio.address import Address
from intaglio.measure.heads.matrices import LayerHeads

KEPT = 4  # writers listed per reader and side, those of the largest excess
SIDES = ("q", "k", "v")
_CELLS = 8_000_000  # numbers of one block of Gram matrices


@torch.no_grad()
def composition_rows(layers: list[LayerHeads], *, kept: int = KEPT) -> list[dict[str, Any]]:
    """Rows of the atlas table `composition`: for every reader and side its `kept` writers of the largest excess."""
    n_heads, rows = len(layers[0].q_HdD), []
    names = [str(Address("attn", i, head=h)) for i in range(len(layers)) for h in range(n_heads)]
    for side, (score_RW, null_RW, sd_RW) in compositions(layers).items():
        for r in range(n_heads, len(names)):
            earlier = r // n_heads * n_heads
            score_W, null_W, sd_W = (x[r, :earlier] for x in (score_RW, null_RW, sd_RW))
            excess_W = (score_W - null_W) / sd_W
            apart_W = _robust(score_W)
            for w in excess_W.topk(min(kept, earlier)).indices.tolist():
                rows.append({
                    "reader": names[r], "writer": names[w], "side": side, "score": float(score_W[w]),
                    "null": float(null_W[w]), "excess": float(excess_W[w]), "apart": None if apart_W is None else apart_W[w],
                })  # fmt: skip
    return rows


def _robust(score_W: Tensor) -> list[float] | None:
    """Each writer's distance from the median, in robust deviations; None under eight writers or without a spread."""
    middle = score_W.quantile(0.5)
    spread = 1.4826 * (score_W - middle).abs().quantile(0.5)
    return ((score_W - middle) / spread).tolist() if len(score_W) >= 8 and spread > 0 else None


# --- scores --------------------------------------------------------------------------------


def gram_root(x_XdD: Float[Tensor, "*X d D"]) -> Float[Tensor, "*X d d"]:
    """R with R^T R = x x^T in double precision: R stands for x wherever only lengths and spectra are asked for."""
    values, vectors = torch.linalg.eigh((x_XdD @ x_XdD.mT).double())
    return values.clamp_min(0).sqrt()[..., None] * vectors.mT


def _thin(left_HdX: Tensor, right_HdD: Tensor) -> Tensor:
    """(H, d, D) a matrix with the Gram matrix of `left^T @ right`."""
    return gram_root(left_HdX).to(right_HdD) @ right_HdD


def _reader(heads: LayerHeads, side: str) -> Tensor:
    if side == "q":
        return _thin(heads.k_form_HdD, heads.q_form_HdD)
    return _thin(heads.q_form_HdD, heads.k_form_HdD) if side == "k" else _thin(heads.o_HDd.mT, heads.v_HdD)


def _writer(heads: LayerHeads) -> Tensor:
    """(H, d, D) B^T with B B^T = W W^T."""
    return _thin(heads.v_HdD, heads.o_HDd.mT)


def compositions(layers: list[LayerHeads]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Side to score, null and its deviation, (R, W) each, of every head (R) with every head (W), also those not earlier.

    |A B|^2 = <A^T A, B B^T> for a reader's A (d x D) and a writer's B (D x d): products of Gram matrices, made in blocks of
    rows, so that all pairs cost one matrix product per side.
    """
    writer_WdD = torch.cat([_writer(heads) for heads in layers])
    readers = {side: torch.cat([_reader(heads, side) for heads in layers]) for side in SIDES}
    count, _, width = writer_WdD.shape
    block = max(1, _CELLS // (count * width))
    squared = {side: torch.zeros(count, count, dtype=torch.float64, device=writer_WdD.device) for side in SIDES}
    for start in range(0, width, block):
        part = slice(start, start + block)
        written_WX = (writer_WdD[..., part].mT @ writer_WdD).flatten(1)
        for side, reader_RdD in readers.items():
            squared[side] += (reader_RdD[..., part].mT @ reader_RdD).flatten(1) @ written_WX.T
    length_W, written_W = _length(writer_WdD), _concentration(writer_WdD)
    found = {}
    for side, reader_RdD in readers.items():
        score_RW = squared[side].clamp_min(0).sqrt() / (_length(reader_RdD)[:, None] * length_W).clamp_min(1e-300)
        found[side] = (score_RW, *null_moments(_concentration(reader_RdD)[:, None], written_W[None], width))
    return found


def _length(x_XdD: Tensor) -> Tensor:
    return x_XdD.flatten(1).norm(dim=1).double()


# --- null ----------------------------------------------------------------------------------


def _concentration(thin_HdD: Tensor) -> Tensor:
    """(H,) sum of the squared shares of the squared singular values: 1 for rank one, 1/d for d equal ones."""
    gram = (thin_HdD @ thin_HdD.mT).double()
    return gram.square().sum((1, 2)) / torch.diagonal(gram, dim1=1, dim2=2).sum(1).square().clamp_min(1e-300)


def null_moments(read: Tensor, written: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the score, from both sides' concentrations.

    Args:
        read, written: sums of the squared shares a_i and b_j.
        width: D, at least 2.
    """
    same, line = 3 / (width * (width + 2)), 1 / (width * (width + 2))
    apart = (width + 1) / ((width - 1) * width * (width + 2))
    fourth = read * written * same + (read * (1 - written) + (1 - read) * written) * line + (1 - read) * (1 - written) * apart
    mean, variance = 1 / width, (fourth - 1 / width**2).clamp_min(1e-300)
    shape = mean**2 / variance
    root = torch.exp(torch.lgamma(shape + 0.5) - torch.lgamma(shape)) * (mean / shape).sqrt()
    large = shape > 1e6  # there the two logarithms cancel; the series says the same
    root = torch.where(large, mean**0.5 * (1 - 1 / (8 * shape)), root)
    spread = torch.where(large, 0.5 * (mean / shape).sqrt(), (mean - root.square()).clamp_min(0).sqrt())
    return root, spread
