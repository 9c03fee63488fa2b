"""Writes: what can be computed from input activations and output gradients alone.  [torch]

A linear layer's weight gradient is a sum of rank-one matrices, one per token position:
sum_t b_t a_t^T. Everything here uses that sum without building it where that is cheaper.

Shapes: B rows, T positions, p inputs, q outputs, U units (heads) of one weight, n slots
(examples) of a block, k the sketch's side. Sizes are in the names: a_BTP, b_BTQ.

Pure: tensors in, tensors out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intaglio.measure import products

HALVES_FROM = 64  # positions from which symmetry is worth several smaller products
QUARTERS_FROM = 128


class Gram(NamedTuple):
    """Inner products of a row's positions with each other, without what symmetry mirrors.

    Each block is (*X, n, t, t): n squares on the diagonal, or n squares beside it (which count twice).
    """

    diagonal: tuple[Tensor, ...]
    beside: tuple[Tensor, ...] = ()

    def beside_axis(self) -> Gram:
        """With one more axis before the positions, to stand beside the Gram matrices of units."""
        return Gram(*(tuple(block.unsqueeze(-4) for block in blocks) for blocks in self))


def gram(x_XTP: Float[Tensor, "*X T P"]) -> Gram:
    """Inner products of all positions of a row: all, three quarters or five eighths of them are made."""
    *lead, positions, width = x_XTP.shape
    if positions >= QUARTERS_FROM and positions % 4 == 0:
        half, quarter = positions // 2, positions // 4
        if x_XTP.ndim == 3 and products.pays(x_XTP, x_XTP):
            return _in_quarters(products.times_rows(x_XTP, x_XTP))
        quarters = x_XTP.reshape(-1, quarter, width)
        left, right = quarters[::2], quarters[1::2]
        halves = quarters.view(-1, half, width)
        top, bottom = halves[::2], halves[1::2]
        return Gram(  # three products of batches of matrices: few calls
            (torch.bmm(quarters, quarters.mT).view(*lead, 4, quarter, quarter),),
            (torch.bmm(left, right.mT).view(*lead, 2, quarter, quarter),
             torch.bmm(top, bottom.mT).view(*lead, 1, half, half)),
        )  # fmt: skip
    if positions >= HALVES_FROM:
        half = positions // 2
        top, bottom = x_XTP[..., None, :half, :], x_XTP[..., None, half:, :]
        return Gram((top @ top.mT, bottom @ bottom.mT), (top @ bottom.mT,))
    return Gram(((x_XTP @ x_XTP.mT)[..., None, :, :],))


def _in_quarters(whole_BTT: Tensor) -> Gram:
    """The blocks of a whole matrix: one fast product beats several slow ones, and reading five eighths is enough."""
    rows, positions = whole_BTT.shape[:2]
    half, quarter = positions // 2, positions // 4
    quarters = whole_BTT.view(rows, 4, quarter, 4, quarter)
    pairs = whole_BTT.view(rows, 2, 2, quarter, 2, 2, quarter)[:, :, 0, :, :, 1]
    return Gram(
        (quarters.diagonal(dim1=1, dim2=3).movedim(-1, 1),),
        (pairs.diagonal(dim1=1, dim2=3).movedim(-1, 1), whole_BTT[:, None, :half, half:]),
    )


def gram_dot(first: Gram, second: Gram) -> Tensor:
    """Sum of the elementwise product of two Gram matrices, over their positions."""
    diagonal, beside = (
        sum((a * b).sum((-1, -2, -3)) for a, b in zip(blocks, others)) for blocks, others in zip(first, second)
    )
    return diagonal + 2 * beside


def gram_lengths(found: Gram) -> Tensor:
    """Squared length of every position: the diagonal."""
    return torch.cat([block.diagonal(dim1=-2, dim2=-1).flatten(-2) for block in found.diagonal], dim=-1)


def by_unit(x_BTP: Float[Tensor, "B T P"], n_units: int) -> Float[Tensor, "B U T D"]:
    """Equal slices of the last axis, each as a batch of its own (a copy: products of strided slices are slower)."""
    rows, positions, width = x_BTP.shape
    return x_BTP.view(rows, positions, n_units, width // n_units).transpose(1, 2).contiguous()


def ghost_is_cheaper(positions: int, n_in: int, n_out: int) -> bool:
    """Whether the Gram form costs fewer multiplications than building b^T a."""
    return positions * (n_in + n_out) < n_in * n_out


def squared_norms(
    a_BTP: Float[Tensor, "B T P"],
    b_BTQ: Float[Tensor, "B T Q"],
    *,
    side: str = "",
    n_units: int = 1,
    a_gram: Gram | None = None,
) -> tuple[Float[Tensor, "B U"], Float[Tensor, "B T"]]:
    """Squared length of each row's summed writes sum_t b_t a_t^T per unit, and of every single write.

    Goodfellow 1510.01799; Li et al. 2110.05679: |g|^2 = sum_{s,t} (a_s.a_t)(b_s.b_t).

    Args:
        side: "out" if the units slice b, "in" if they slice a, "" if there is one unit.
        a_gram: `gram(a_BTP)` where it is known already (q, k and v share it).
    """
    positions, n_in, n_out = a_BTP.shape[1], a_BTP.shape[2], b_BTQ.shape[2]
    if not ghost_is_cheaper(positions, n_in, n_out):
        lengths = a_BTP.square().sum(-1) * b_BTQ.square().sum(-1)
        return _squared_norms_built(a_BTP, b_BTQ, side=side, n_units=n_units), lengths
    if side == "in":
        a_gram, b_gram = gram(by_unit(a_BTP, n_units)), gram(b_BTQ)
        lengths = gram_lengths(a_gram).sum(1) * gram_lengths(b_gram)
        return gram_dot(a_gram, b_gram.beside_axis()), lengths
    a_gram = gram(a_BTP) if a_gram is None else a_gram
    if side == "out":
        b_gram = gram(by_unit(b_BTQ, n_units))
        lengths = gram_lengths(a_gram) * gram_lengths(b_gram).sum(1)
        return gram_dot(b_gram, a_gram.beside_axis()), lengths
    b_gram = gram(b_BTQ)
    return gram_dot(a_gram, b_gram)[:, None], gram_lengths(a_gram) * gram_lengths(b_gram)


def _squared_norms_built(a_BTP: Tensor, b_BTQ: Tensor, *, side: str, n_units: int) -> Tensor:
    g_BQP = b_BTQ.mT @ a_BTP
    rows, n_out, n_in = g_BQP.shape
    if side == "in":
        return g_BQP.view(rows, n_out, n_units, n_in // n_units).square_().sum((1, 3))
    if side == "out":
        return g_BQP.view(rows, n_units, -1).square_().sum(-1)
    return g_BQP.flatten(1).square_().sum(-1, keepdim=True)


def lookup_squared_norms(
    ids_BT: Int[Tensor, "B T"], b_BTD: Float[Tensor, "B T D"]
) -> Float[Tensor, B]:
    """Squared length of each row's gradient of an embedding table: rows of equal ids add up."""
    same = ids_BT[:, :, None] == ids_BT[:, None, :]
    return (products.times_rows(b_BTD, b_BTD) * same).sum((-1, -2))


def tied_cross_terms(
    ids_BS: Int[Tensor, "B S"],
    lookup_b_BSD: Float[Tensor, "B S D"],
    head_a_BTD: Float[Tensor, "B T D"],
    head_b_BTV: Float[Tensor, "B T V"],
) -> Float[Tensor, B]:
    """Inner product of the lookup's and the head's gradient of one shared matrix, per row.

    <sum_s e_{x_s} g_s^T, sum_t b_t a_t^T> = sum_{s,t} b_t[x_s] (a_t . g_s).
    """
    picked_BTS = head_b_BTV.gather(2, ids_BS[:, None, :].expand(-1, head_b_BTV.shape[1], -1))
    return (picked_BTS * products.times_rows(head_a_BTD, lookup_b_BSD)).sum((-1, -2))


def token_dots(
    a_BTP: Float[Tensor, "B T P"],
    b_BTQ: Float[Tensor, "B T Q"],
    v_QP: Float[Tensor, "Q P"],
    *,
    side: str = "",
    n_units: int = 1,
) -> Float[Tensor, "B T U"]:
    """<b_t a_t^T, V> = b_t^T V a_t for every position, per unit; one matrix product."""
    if side == "out" or (side == "" and b_BTQ.shape[-1] < a_BTP.shape[-1]):
        terms = products.times(a_BTP, v_QP).mul_(b_BTQ)
    else:
        terms = products.times(b_BTQ, v_QP.mT).mul_(a_BTP)
    if side == "":
        return terms.sum(-1, keepdim=True)
    return terms.view(*terms.shape[:2], n_units, -1).sum(-1)


def logit_statistics(
    logits_NV: Float[Tensor, "N V"], grad_NV: Float[Tensor, "N V"], target_N: Int[Tensor, N], *, chunk: int = 1 << 20
) -> dict[str, Float[Tensor, N]]:
    """Surprise and entropy of each prediction, and the weight that the loss gave it.

    If the loss is a weighted sum over tokens, the gradient at the logits is
    omega (p - onehot(target)); omega is its projection and `misfit` the share of the
    gradient that has another form (0 for any weighted cross-entropy).

    Args:
        chunk: how many logits to hold at once (numbers, not bytes).

    Returns:
        surprise (nats), entropy (nats), omega (loss per nat), reach (|p - onehot|), misfit (0..1).
    """
    rows = max(1, min(chunk // logits_NV.shape[1], len(logits_NV)))
    buffers = torch.empty(2, rows, logits_NV.shape[1], dtype=torch.float32, device=logits_NV.device)
    pieces = [
        _logit_statistics(z.float(), g.float(), y, buffers[:, : len(y)])
        for z, g, y in zip(logits_NV.split(rows), grad_NV.split(rows), target_N.split(rows))
    ]
    names = ("surprise", "entropy", "omega", "reach", "misfit")
    if not pieces:
        return {name: logits_NV.new_zeros(0, dtype=torch.float32) for name in names}
    return {name: torch.cat([piece[i] for piece in pieces]) for i, name in enumerate(names)}


def _logit_statistics(z_NV: Tensor, g_NV: Tensor, target_N: Tensor, buffers_2NV: Tensor) -> tuple[Tensor, ...]:
    """One exponential per logit, and no other array than the two buffers, which stay in the cache.

    The target's own terms are kept apart, so that nothing cancels where its probability is near 1.
    """
    e_NV, product_NV = buffers_2NV
    index = target_N[:, None]
    top = z_NV.amax(-1, keepdim=True)
    torch.exp(torch.sub(z_NV, top, out=product_NV), out=e_NV)
    e_y, below_y, g_y = (x.gather(1, index)[:, 0] for x in (e_NV, product_NV, g_NV))
    e_NV.scatter_(1, index, 0.0)
    others = e_NV.sum(-1)
    total = others + e_y
    log_total = total.log()  # of exp(z - top), as all here; a masked logit may be -inf
    spread = product_NV.clamp_min_(-1e4).mul_(e_NV).sum(-1) + e_y * below_y.clamp_min(-1e4)
    entropy = log_total - spread / total
    missing = others / total  # 1 - p_y
    reach2 = (torch.linalg.vector_norm(e_NV, dim=-1) / total).square() + missing.square()
    dot = torch.mul(e_NV, g_NV, out=product_NV).sum(-1) / total - g_y * missing
    omega = dot / reach2.clamp_min(1e-30)
    gg = torch.linalg.vector_norm(g_NV, dim=-1).square()
    misfit = (1 - omega * dot / gg.clamp_min(1e-38)).clamp(0, 1).sqrt()
    misfit = torch.where(gg > 0, misfit, torch.zeros_like(misfit))
    return log_total - below_y, entropy, omega, reach2.sqrt(), misfit


def projection(size: int, side: int, seed: int, device: torch.device) -> Float[Tensor, "size side"]:
    """Random signs / sqrt(side): inner products of projected vectors are unbiased."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (size, side), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
    return (signs.float() / side**0.5).to(device)


def fresh_projection(size: int, side: int, key: tuple[int, int, int], device: torch.device) -> Tensor:
    """The same, drawn where it is used and for one use: `key` is seed, step and which of the step's projections."""
    seed, step, which = key
    generator = torch.Generator(device).manual_seed(((seed * 1_000_003 + step) * 1_000_003 + which) % 2**63)
    signs = torch.randint(0, 2, (size, side), generator=generator, dtype=torch.int8, device=device)
    return signs.float().mul_(2).sub_(1).mul_(side**-0.5)


def normalised(x: Tensor, *, rms: bool, eps: float) -> Tensor:
    """What a norm's gain multiplies: x over its root mean square, centred first for LayerNorm."""
    return times_normalised(None, x.float(), rms=rms, eps=eps)


def times_normalised(b: Tensor | None, x: Tensor, *, rms: bool, eps: float) -> Tensor:
    """b times the normalised x: the gradient of a norm's gain at every position, in few passes."""
    if not rms:
        scaled = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
        return scaled if b is None else scaled.mul_(b)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = mean_square.add_(eps).rsqrt_()
    return x * scale if b is None else (b * x).mul_(scale)
