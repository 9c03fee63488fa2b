"""Which part of the model a tensor belongs to, by its name."""

from __future__ import annotations

from dataclasses import dataclass

from intaglio.model.families import place

EMBED = {"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"}
UNEMBED = {"lm_head", "embed_out"}
UP = {"up_proj", "fc1", "c_fc", "dense_h_to_4h", "fc_in", "w3"}
DOWN = {"down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2"}
GATE = {"gate_proj", "w1"}
COLUMNS = ("q", "k", "v", "qkv", "o", "gate", "up", "down", "norm", "other")  # of a layer, in the order of the computation
READS, WRITES = {"q", "k", "v", "qkv", "gate", "up"}, {"o", "down"}  # matrices that meet the residual stream, and how
TRANSPOSED = {"gpt2"}  # families whose matrices stand as (inputs, outputs)


@dataclass(frozen=True)
class Part:
    """Where a tensor stands.

    Attributes:
        layer: its layer; None outside the layers.
        name: embed, positions, unembed, q, k, v, qkv, o, gate, up, down, norm or other; `up` also holds a fused gate.
        norm: for a norm, which: attn, mlp, attn_post, mlp_post, q, k, final.
        bias: whether it is added, not multiplied.
    """

    layer: int | None
    name: str
    norm: str = ""
    bias: bool = False


def part_of(tensor: str, *, sandwich: bool = False) -> Part:
    """The part that a tensor belongs to.

    Args:
        sandwich: whether the family has norms behind its parts too.
    """
    module, _, end = tensor.rpartition(".")
    if end not in ("weight", "bias"):
        module, end = tensor, "weight"
    last, bias = module.rsplit(".", 1)[-1], end == "bias"
    where = place(module, sandwich=sandwich)
    address = where.address
    if address.part == "norm":
        return Part(address.layer, "norm", address.sub or "final", bias)
    if address.part == "attn":
        return Part(address.layer, {"per_head": "qkv"}.get(where.role, where.role) or "other", "", bias)
    if address.part == "mlp":
        name = "gate" if last in GATE else "up" if last in UP or last == "gate_up_proj" else ""
        return Part(address.layer, name or ("down" if last in DOWN or last == "c_proj" else "other"), "", bias)
    if address.part == "embed.pos":
        return Part(None, "positions", "", bias)
    name = "embed" if last in EMBED else "unembed" if last in UNEMBED else "other"
    return Part(None, name, "", bias)
