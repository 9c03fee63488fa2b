"""What the weights of a head say without any text: copying, matching, ranks, distance profile, strongest token pairs.  [torch]

    full OV circuit  W_E W_V W_O W_U   how much a token read raises each token's logit         (V x V)
    full QK circuit  W_E W_Q W_K W_E   how much a token looking wants each token looked at     (V x V)
    copying, matching = (sum of the eigenvalues) / (sum of their sizes)

after Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". A V x V matrix A B of rank d has the nonzero
eigenvalues of the d x d matrix B A, so nothing of size V x V is made. What the softmax is blind to is taken off first: what
a token adds to all logits alike (OV), what a query gives to all keys alike (QK). W_E and W_U are `sides.Sides`: tokens as
the first norm gives them, without context; later layers read more than that, so these scores are about what a head does to
tokens as embedded. Biases are left out of the eigenvalues, rotary positions out of the QK circuit.

Legend: H heads, d head size, D width, N searched tokens, V vocabulary, T distances.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from intaglio.address import Address
from intaglio.measure.heads.composition import composition_rows, gram_root
from intaglio.measure.heads.matrices import LayerHeads
from intaglio.measure.heads.profile import profiles
from intaglio.measure.heads.proved import read_heads
from intaglio.measure.heads.sides import SEARCHED, Sides, sides_of
from intaglio.model.anatomy import Anatomy

RANKS = 5  # pairs of tokens kept per circuit
DRAWS = 400  # of random directions
NO_LENGTH = 1e-12  # of the largest squared length: what is left of a direction that is none
_FEWEST, _ENOUGH, _WORK = 12, 100, 4_000_000  # draws whose eigenvalues are worked out: cost is draws times d^3
_BLOCK = 256  # rows of tokens at once, so that they stay in the cache


@torch.no_grad()
def measure_weights(
    anatomy: Anatomy, tokenizer: Any, *, seed: int = 0, searched: int = SEARCHED
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the atlas tables `weights`, `reads` and `composition`; no text is read.

    Args:
        seed: of the null's random directions.
        searched: among how many of the first regular tokens the strongest pairs are sought, all of these against all.

    Raises:
        SubjectError: the slices of attention's matrices cannot be proved.
    """
    layers = read_heads(anatomy)
    sides = sides_of(anatomy, tokenizer, searched=searched)
    directions = _Directions(anatomy, sides, seed)
    profile = profiles(anatomy, tokenizer, layers, sides)
    weights, reads = [], []
    for i, heads in enumerate(layers):
        weights += _weight_rows(i, heads, sides, directions, profile[i])
        reads += _read_rows(i, heads, sides)
    return {"weights": weights, "reads": reads, "composition": composition_rows(layers)}


# --- scores --------------------------------------------------------------------------------


def eigen_score(square_Xdd: Tensor) -> Tensor:
    """(sum of the eigenvalues) / (sum of their sizes) of each matrix, -1 to 1; 0 for a matrix of zeros."""
    values = torch.linalg.eigvals(square_Xdd.double())
    return values.real.sum(-1) / values.abs().sum(-1).clamp_min(1e-300)


def copying(heads: LayerHeads, sides: Sides) -> Tensor:
    """(H,) 1 for a head that raises what it reads, -1 for one that lowers it."""
    return eigen_score(heads.v_HdD.double() @ sides.ov_DD @ heads.o_HDd.double())


def matching(heads: LayerHeads, sides: Sides) -> Tensor:
    """(H,) 1 for a head in which tokens look for their like, -1 for their unlike."""
    return eigen_score(heads.k_form_HdD.double() @ sides.qk_DD @ heads.q_form_HdD.double().mT)


def product_spectrum(left_HDd: Tensor, right_HdD: Tensor) -> Float[Tensor, "H d"]:
    """Singular values of `left @ right` (D x D, rank d), through d x d matrices; largest first."""
    return torch.linalg.svdvals(gram_root(left_HDd.mT) @ gram_root(right_HdD).mT)


def effective_rank(spectrum_Xd: Tensor) -> Tensor:
    """exp of the entropy of the squared singular values' shares (Roy and Vetterli 2007); 0 where all are 0."""
    energy = spectrum_Xd.double().square()
    total = energy.sum(-1, keepdim=True)
    share = energy / total.clamp_min(1e-300)
    return torch.exp(-torch.xlogy(share, share).sum(-1)) * (total[..., 0] > 0)


class _Directions:
    """What heads of random directions score: W_V W_O of the same singular values, turned at random in the residual stream.

    The tokens at both ends stay as they are, so that their own unevenness is in the null. For small heads it is the 95th
    percentile of the absolute score itself. For large ones eigenvalues of all draws would take minutes: it is that of their
    sum (a trace, exact for every draw), brought to the score's scale by the draws for which both are known; within some
    percent of the score's own where no single direction rules the embeddings. Draws are shared by all heads.
    """

    def __init__(self, anatomy: Anatomy, sides: Sides, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (anatomy.head_dim, anatomy.width)
        found = []
        for _ in range(DRAWS):
            left, right = (_orthonormal(torch.randn(shape, generator=generator)).to(sides.ov_DD) for _ in range(2))
            found.append(torch.stack([left @ middle_DD @ right.T for middle_DD in (sides.ov_DD, sides.qk_DD)]))
        self.inner_CXdd = torch.stack(found, 1)

    def null(self, spectrum_Hd: Tensor, circuit: int) -> Tensor:
        """(H,) 95th percentile of the absolute score."""
        inner_Xdd = self.inner_CXdd[circuit]
        known = max(_FEWEST, min(DRAWS, _WORK // inner_Xdd.shape[-1] ** 3))
        traces_HX = spectrum_Hd @ torch.diagonal(inner_Xdd, dim1=1, dim2=2).T
        scores_HX = eigen_score(spectrum_Hd[:, None, :, None] * inner_Xdd[:known])
        if known >= _ENOUGH:
            return scores_HX.abs().quantile(0.95, dim=1)
        scale_H = scores_HX.norm(dim=1) / traces_HX[:, :known].norm(dim=1).clamp_min(1e-300)
        return (traces_HX.abs().quantile(0.95, dim=1) * scale_H).clamp_max(1.0)


def _orthonormal(x_dD: Tensor) -> Tensor:
    """The nearest rows that are orthonormal: random directions where `x_dD` is normal noise.

    A head wider than the residual stream has as many as the stream has room for.
    """
    x_dD = x_dD.double()
    values, vectors = torch.linalg.eigh(x_dD @ x_dD.T)
    inverse = torch.where(values > NO_LENGTH * values.max(), values.clamp_min(1e-300).rsqrt(), 0.0)
    return (vectors * inverse) @ vectors.T @ x_dD


def _weight_rows(layer: int, heads: LayerHeads, sides: Sides, null: _Directions, profile_HT: Tensor | None) -> list[dict]:
    ov = product_spectrum(heads.o_HDd, heads.v_HdD)
    qk = product_spectrum(heads.q_form_HdD.mT, heads.k_form_HdD) * abs(heads.scaling)
    columns = {
        "ov_copying": copying(heads, sides), "ov_copying_null": null.null(ov, 0),
        "qk_matching": matching(heads, sides), "qk_matching_null": null.null(qk, 1),
        "ov_rank": effective_rank(ov), "qk_rank": effective_rank(qk), "ov_l2": ov.norm(dim=-1), "qk_l2": qk.norm(dim=-1),
    }  # fmt: skip
    rows = []
    for h in range(len(ov)):
        profile = [] if profile_HT is None else [round(float(x), 5) for x in profile_HT[h]]
        rows.append({
            "address": str(Address("attn", layer, head=h)), **{name: float(x_H[h]) for name, x_H in columns.items()},
            "profile_offset": max(range(len(profile)), key=profile.__getitem__) if profile else None, "profile": profile,
        })  # fmt: skip
    return rows


# --- token pairs ---------------------------------------------------------------------------


def _read_rows(layer: int, heads: LayerHeads, sides: Sides) -> list[dict]:
    """Strongest pairs; of OV what is the same whatever is read is taken off, since attention always sums to 1."""
    source_NHd = torch.einsum("hed,nd->nhe", heads.v_HdD, sides.e_ND - sides.e_ND.mean(0))
    target_NHd = torch.einsum("hde,nd->nhe", heads.o_HDd, sides.u_ND)
    q_NHd, k_NHd = heads.queries(sides.e_ND) * heads.scaling, heads.keys(sides.e_ND)
    k_NHd = k_NHd - k_NHd.mean(0)
    rows = []
    for h in range(source_NHd.shape[1]):
        address = str(Address("attn", layer, head=h))
        up, down = strongest(source_NHd[:, h], target_NHd[:, h])
        found = {"ov": up, "ov_down": down, "qk": strongest(q_NHd[:, h], k_NHd[:, h])[0]}
        rows += [
            {"address": address, "circuit": circuit, "rank": rank, "source": sides.words_N[row],
             "token": sides.words_N[column], "value": value}
            for circuit, pairs in found.items() for rank, (row, column, value) in enumerate(pairs)
        ]  # fmt: skip
    return rows


def strongest(
    left_Nd: Float[Tensor, "N d"], right_Md: Float[Tensor, "M d"], *, ranks: int = RANKS
) -> tuple[list[tuple[int, int, float]], list[tuple[int, int, float]]]:
    """(row, column, value) of the largest and of the smallest entries of `left @ right^T`, the most extreme first.

    All entries are looked at, none kept: of each row only its extreme one counts, so a row stands once.
    """
    highs, lows, (left_Nd, right_dM) = [], [], (left_Nd.contiguous(), right_Md.T.contiguous())
    for block in left_Nd.split(_BLOCK):
        x_NM = block @ right_dM
        highs.append(x_NM.amax(1))
        lows.append(-x_NM.amin(1))
    found = []
    for sign, best in ((1, highs), (-1, lows)):
        rows = torch.cat(best).topk(min(ranks, len(left_Nd))).indices
        x_RM = left_Nd[rows] @ right_dM
        columns = (sign * x_RM).argmax(1).tolist()
        found.append([(r, c, float(x_RM[i, c])) for i, (r, c) in enumerate(zip(rows.tolist(), columns))])
    return found[0], found[1]
