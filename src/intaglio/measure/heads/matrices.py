"""Every head as four small matrices of the normed residual, read from the weights (`proved.read_heads`).  [torch]

    hat(x) = the residual centred (LayerNorm) and brought to mean square 1, before the norm's gain
    q = W_Q hat(x) + b_Q, k and v alike: the norm's gain is folded into the matrices, its bias into b
    what the head adds = W_O (attention-weighted mean of v); a norm behind attention has its gain folded into W_O, and
    its scale, which depends on the text, is left out; so is the scale of a norm of queries or keys in `q_form`, `k_form`

Legend: H query heads, d head size, D width, N vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from intaglio.errors import SubjectError
from intaglio.model.anatomy import Anatomy, Block, matrix_of
from intaglio.model.families import FUSED, NORMS, SEPARATE
from intaglio.model.norms import NormKind, kind_of
from intaglio.model.proof import TOKENS

Norm = Callable[[Tensor], Tensor]  # of (N, H, d)


@dataclass(frozen=True, eq=False)
class LayerHeads:
    """The heads of one layer, in float32; keys and values stand once per query head that uses them.

    Attributes:
        q_HdD, k_HdD, v_HdD: from the residual at the norm's scale to query, key and value.
        o_HDd: from what the head read to what it adds to the residual.
        q_Hd, k_Hd, v_Hd: biases, the norm's bias included.
        scaling: by which the product of query and key is multiplied.
        q_norm, k_norm: the head's own norm of queries and keys; None where there is none.
        q_gain_Hd, k_gain_Hd: gains of these norms; 1 where there is none.
        kind: the norm before attention; None where attention reads the residual itself (OLMo 2).
        errors: how far queries, keys, values and what is added are from what the model made of a few tokens.
    """

    q_HdD: Tensor
    k_HdD: Tensor
    v_HdD: Tensor
    o_HDd: Tensor
    q_Hd: Tensor
    k_Hd: Tensor
    v_Hd: Tensor
    scaling: float
    q_norm: Norm | None
    k_norm: Norm | None
    q_gain_Hd: Tensor
    k_gain_Hd: Tensor
    kind: NormKind | None
    errors: dict[str, float]

    @property
    def q_form_HdD(self) -> Tensor:
        """Queries as a linear map: the gain of their norm folded in, its scale left out."""
        return self.q_gain_Hd[..., None] * self.q_HdD

    @property
    def k_form_HdD(self) -> Tensor:
        """Keys as a linear map, the same way."""
        return self.k_gain_Hd[..., None] * self.k_HdD

    def queries(self, hat_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N H d"]:
        """Queries before any rotation, biases and norms included."""
        q_NHd = torch.einsum("hed,nd->nhe", self.q_HdD, hat_ND) + self.q_Hd
        return q_NHd if self.q_norm is None else self.q_norm(q_NHd)

    def keys(self, hat_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N H d"]:
        """Keys before any rotation, biases and norms included."""
        k_NHd = torch.einsum("hed,nd->nhe", self.k_HdD, hat_ND) + self.k_Hd
        return k_NHd if self.k_norm is None else self.k_norm(k_NHd)

    def hat(self, x_ND: Float[Tensor, "N D"], norm: nn.Module | None) -> Float[Tensor, "N D"]:
        """Residuals as the matrices take them."""
        return x_ND if self.kind is None or norm is None else hat_of(self.kind, norm, x_ND)


def hat_of(kind: NormKind, norm: nn.Module, x_ND: Tensor) -> Tensor:
    """`x_ND` centred where the norm centres, at the scale the norm gives it, before its gain."""
    dtype = next((p.dtype for p in norm.parameters()), x_ND.dtype)
    scale_N = kind.scale_of(x_ND, norm(x_ND.to(dtype)).float())
    return scale_N[:, None] * (x_ND - x_ND.mean(-1, keepdim=True) if kind.centred else x_ND)


def norm_before(block: Block) -> nn.Module | None:
    """The norm whose output attention reads; None where it reads the residual itself."""
    return next((m for name, m in block.layer.named_children() if NORMS.get(name) == "attn"), None)


def sliced(anatomy: Anatomy, index: int) -> LayerHeads:
    """The heads of one layer as the names of its parts have them, not yet proved."""
    block, dim, heads = anatomy.blocks[index], anatomy.head_dim, anatomy.n_heads
    group = heads // anatomy.n_key_heads
    norm = norm_before(block)
    kind = None if norm is None else kind_of_norm(norm, anatomy.width)
    parts = _projections(anatomy, block)
    found = {}
    for role, (weight, bias) in parts.items():
        weight_KdD = weight.detach().float().unflatten(0, (-1, dim))
        bias_Kd = torch.zeros_like(weight_KdD[..., 0]) if bias is None else bias.detach().float().unflatten(0, (-1, dim))
        if kind is not None:
            bias_Kd = bias_Kd + weight_KdD @ kind.bias_D
            weight_KdD = kind.pull_back(weight_KdD)
        repeat = 1 if role == "q" else group
        found[role] = weight_KdD.repeat_interleave(repeat, 0), bias_Kd.repeat_interleave(repeat, 0)
    out_HDd = matrix_of(block.out).detach().float().unflatten(1, (heads, dim)).permute(1, 0, 2) * anatomy.residual_scale
    if block.attn_post is not None:
        post = anatomy.kinds.get(block.attn_post) or kind_of_norm(block.attn_post, anatomy.width)
        out_HDd = post.gain_D[:, None] * (out_HDd - out_HDd.mean(1, keepdim=True) if post.centred else out_HDd)
    q_norm, q_gain = _own_norm(block.attn, "q", heads, dim, 1)
    k_norm, k_gain = _own_norm(block.attn, "k", anatomy.n_key_heads, dim, group)
    return LayerHeads(
        found["q"][0], found["k"][0], found["v"][0], out_HDd.contiguous(), found["q"][1], found["k"][1], found["v"][1],
        dim**-0.5, q_norm, k_norm, q_gain, k_gain, kind, {},
    )  # fmt: skip


def _projections(anatomy: Anatomy, block: Block) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Role to the rows of its matrix and bias, (outputs, D) and (outputs,)."""
    dim, heads, key_heads = anatomy.head_dim, anatomy.n_heads, anatomy.n_key_heads
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, module in block.attn.named_children():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        weight, bias = matrix_of(module), getattr(module, "bias", None)
        if name in SEPARATE:
            found[SEPARATE[name]] = weight, bias
        elif name in FUSED and len(weight) == (heads + 2 * key_heads) * dim:
            rows = torch.arange(len(weight), device=weight.device)
            if FUSED[name] == "qkv":
                split = rows.split([heads * dim, key_heads * dim, key_heads * dim])
            elif heads == key_heads:
                split = [part.flatten() for part in rows.view(heads, 3, dim).unbind(1)]
            else:
                continue
            found |= {r: (weight[s], None if bias is None else bias[s]) for r, s in zip("qkv", split)}
    sizes = {"q": heads * dim, "k": key_heads * dim, "v": key_heads * dim}
    if {r: len(w) for r, (w, _) in found.items()} != sizes:
        raise SubjectError(
            "the projections of attention are not known here", got=", ".join(n for n, _ in block.attn.named_children()),
            expected="q, k and v of the sizes that the config names",
        )  # fmt: skip
    return found


def kind_of_norm(norm: nn.Module, size: int) -> NormKind:
    """What a norm does but for its scale, from vectors of no meaning."""
    weight = next(norm.parameters(), torch.zeros(()))
    x_ND = torch.randn(TOKENS, size, generator=torch.Generator().manual_seed(0)).to(weight.device)
    kind = kind_of(norm, x_ND, norm(x_ND.to(weight.dtype)).float())
    return replace(kind, gain_D=kind.gain_D.float(), bias_D=kind.bias_D.float())


def _own_norm(attn: nn.Module, role: str, heads: int, dim: int, group: int) -> tuple[Norm | None, Tensor]:
    """A norm of queries or keys as a function of (N, H, d), and its gain by query head."""
    norm = next((m for n, m in attn.named_children() if NORMS.get(n) == role), None)
    ones = torch.ones(heads * group, dim, device=next(attn.parameters()).device)
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor):
        return None, ones
    flat = weight.ndim == 1 and weight.numel() == heads * dim and heads > 1  # one norm over all heads side by side

    def apply(x_NHd: Tensor) -> Tensor:
        x_NKd = x_NHd[:, ::group].to(weight.dtype)
        made = norm(x_NKd.flatten(1)).view_as(x_NKd) if flat else norm(x_NKd)
        return made.float().repeat_interleave(group, 1)

    x_NKd = torch.randn(TOKENS, heads, dim, generator=torch.Generator().manual_seed(0)).to(ones.device)
    kind = kind_of(norm, x_NKd.flatten(1), norm(x_NKd.flatten(1).to(weight.dtype)).float()) if flat else None
    gain = kind.gain_D.view(heads, dim) if flat else _gain(norm, x_NKd)
    return apply, (ones[:heads] * gain.float()).repeat_interleave(group, 0)


def _gain(norm: nn.Module, x_NKd: Tensor) -> Tensor:
    return kind_of(norm, x_NKd, norm(x_NKd.to(norm.weight.dtype)).float()).gain_D
