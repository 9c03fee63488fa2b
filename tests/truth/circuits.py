"""Circuits of heads the long way: whole V x V and D x D matrices, explicit rotation, sampled random directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intaglio.measure.heads.matrices import LayerHeads


def normed_embeddings(model: nn.Module) -> Tensor:
    """(V, D) what a Llama's first norm makes of every embedding, its gain taken out again."""
    norm = model.model.layers[0].input_layernorm
    return (norm(model.model.embed_tokens.weight) / norm.weight).double()


def output_rows(model: nn.Module) -> Tensor:
    """(V, D) the output matrix with the final gain, the mean over tokens taken off."""
    rows = (model.lm_head.weight * model.model.norm.weight).double()
    return rows - rows.mean(0)


def full_ov(model: nn.Module, layer: int, head: int) -> Tensor:
    """(V, V) logit of each token (row) by token read (column), from the modules' own slices."""
    block = model.model.layers[layer]
    attn, dim = block.self_attn, block.self_attn.head_dim
    own, shared = slice(head * dim, (head + 1) * dim), head // attn.num_key_value_groups
    value = attn.v_proj.weight[shared * dim : (shared + 1) * dim] * block.input_layernorm.weight
    return output_rows(model) @ attn.o_proj.weight[:, own].double() @ value.double() @ normed_embeddings(model).T


def full_qk(model: nn.Module, layer: int, head: int) -> Tensor:
    """(V, V) score of each token looked at (column) by token looking (row), without rotation, rows centred."""
    block = model.model.layers[layer]
    attn, dim, e_VD = block.self_attn, block.self_attn.head_dim, normed_embeddings(model)
    shared = head // attn.num_key_value_groups
    q = e_VD @ (attn.q_proj.weight[head * dim : (head + 1) * dim] * block.input_layernorm.weight).double().T
    k = e_VD @ (attn.k_proj.weight[shared * dim : (shared + 1) * dim] * block.input_layernorm.weight).double().T
    return q @ (k - k.mean(0)).T * attn.scaling


def eigen_score(full_VV: Tensor) -> float:
    values = torch.linalg.eigvals(full_VV)
    return float(values.real.sum() / values.abs().sum())


def random_copying(model: nn.Module, layer: int, head: int, draws: int) -> Tensor:
    """(draws,) absolute scores of heads with this one's singular values and random directions, by V x V eigenvalues."""
    block, e_VD, u_VD = model.model.layers[layer], normed_embeddings(model), output_rows(model)
    attn, dim, width = block.self_attn, block.self_attn.head_dim, e_VD.shape[1]
    shared = head // attn.num_key_value_groups
    value = attn.v_proj.weight[shared * dim : (shared + 1) * dim] * block.input_layernorm.weight
    spectrum = torch.linalg.svdvals((attn.o_proj.weight[:, head * dim : (head + 1) * dim] @ value).double())[:dim]
    found = []
    for _ in range(draws):
        left, right = (torch.linalg.qr(torch.randn(width, dim, dtype=torch.double))[0] for _ in range(2))
        found.append(abs(eigen_score(u_VD @ (left * spectrum) @ right.T @ e_VD.T)))
    return torch.tensor(found)


def effective_rank(full: Tensor) -> float:
    share = torch.linalg.svdvals(full.double()).square()
    share = (share / share.sum())[share > share.max() * 1e-18]
    return float(torch.exp(-(share * share.log()).sum()))


def composition(reader: LayerHeads, r: int, writer: LayerHeads, w: int, side: str) -> float:
    """By whole D x D matrices."""
    written = writer.o_HDd[w].double() @ writer.v_HdD[w].double()
    q, k = reader.q_form_HdD[r].double(), reader.k_form_HdD[r].double()
    read = {"q": k.T @ q, "k": q.T @ k, "v": reader.o_HDd[r].double() @ reader.v_HdD[r].double()}[side]
    return float((read @ written).norm() / (read.norm() * written.norm()))


def random_composition(read_d: Tensor, written_d: Tensor, width: int, draws: int) -> Tensor:
    """(draws,) scores of matrices with these singular values and random directions."""
    found = []
    for _ in range(draws):
        left, right = (torch.linalg.qr(torch.randn(width, len(s), dtype=torch.double))[0] for s in (read_d, written_d))
        product = (read_d[:, None] * left.T) @ (right * written_d)
        found.append(product.norm() / (read_d.norm() * written_d.norm()))
    return torch.stack(found)
