"""Where each architecture keeps its parts: data, not classes.

A module's dotted name is enough to place it: the layer's number, then words that
say which part it is. Families differ only in the words, so one list per part
serves them all; what a list does not know becomes `other`, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from intaglio.address import Address

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)$")
ATTENTION = {"self_attn", "attn", "attention", "self_attention"}
MLP = {"mlp", "feed_forward", "ffn", "block_sparse_moe"}
MLP_DIRECT = {"fc1", "fc2"}  # OPT: the layer holds its MLP's matrices itself
OUTPUT = {"o_proj", "out_proj", "c_proj", "dense", "wo"}
SEPARATE = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "wq": "q", "wk": "k", "wv": "v"}
# How a fused projection lays out its outputs: all q heads, then k, then v; or head by head.
FUSED = {"c_attn": "qkv", "qkv_proj": "qkv", "Wqkv": "qkv", "query_key_value": "per_head"}
NORMS = {
    "input_layernorm": "attn", "ln_1": "attn", "self_attn_layer_norm": "attn", "attention_norm": "attn",
    "post_attention_layernorm": "mlp", "ln_2": "mlp", "final_layer_norm": "mlp", "ffn_norm": "mlp",
    "pre_feedforward_layernorm": "mlp", "post_feedforward_layernorm": "mlp_post",
    "q_norm": "q", "k_norm": "k", "q_layernorm": "q", "k_layernorm": "k",
}  # fmt: skip
FINAL_NORM = {"norm", "ln_f", "final_layer_norm", "final_layernorm"}
POSITIONS = {"wpe", "embed_positions"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module stands: its part's address and, in attention, its role."""

    address: Address
    role: str = ""  # q, k, v, o, qkv, per_head


def place(module_name: str, *, sandwich: bool = False) -> Place:
    """The part of the model that a module belongs to.

    Args:
        module_name: dotted name inside the causal language model, adapters' own names removed.
        sandwich: the family normalises after attention and after the MLP too (Gemma 2 and 3,
            OLMo 2), so `post_attention_layernorm` belongs to attention.
    """
    found = LAYER.search(module_name)
    if not found:
        return Place(Address(_outside(module_name)))
    layer, words = int(found[1]), found[2].split(".")
    last = words[-1]
    if last in NORMS:
        norm = "attn_post" if sandwich and last == "post_attention_layernorm" else NORMS[last]
        return Place(Address("norm", layer, sub=norm))
    if ATTENTION & set(words[:-1]):
        role = "o" if last in OUTPUT else SEPARATE.get(last) or FUSED.get(last) or ""
        return Place(Address("attn", layer), role)
    if MLP & set(words[:-1]) or last in MLP_DIRECT:
        return Place(Address("mlp", layer))
    return Place(Address("other"))


def _outside(module_name: str) -> str:
    last = module_name.rsplit(".", 1)[-1]
    if last in POSITIONS:
        return "embed.pos"
    return "norm" if last in FINAL_NORM else "other"
