"""GGUF's names of tensors and keys in Hugging Face's words, and what its converter did to their rows. Data, not code.

An architecture that is not listed keeps its own names, so that its tensors can be listed but no part is guessed.

Sources: llama.cpp's converter (`LlamaModel.permute` interleaves the rows of q and k within each head, which leaves
every head's rows where they are; Gemma's gains are stored with 1 added) and its tables of tensor names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from intaglio.model.header import Entry

_BLOCK = re.compile(r"blk\.(\d{1,6})\.([a-z_0-9]+)\.(weight|bias)\Z", re.ASCII)
_OUTSIDE = re.compile(r"([a-z_]+)\.(weight|bias)\Z", re.ASCII)
_LLAMA = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_SANDWICH = _LLAMA | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class _Family:
    """How one architecture's names and rows are translated."""

    model_type: str
    block: dict[str, str] = field(default_factory=lambda: _LLAMA)
    ends: dict[str, str] = field(default_factory=lambda: _ENDS)
    layers: str = "model.layers"
    paired: bool = False  # rows of q and k stand in rotary pairs
    shift: float = 0.0  # added to every norm's gain


_FAMILIES = {
    "llama": _Family("llama", paired=True), "smollm3": _Family("smollm3", paired=True),
    "granite": _Family("granite", paired=True), "qwen2": _Family("qwen2"), "qwen3": _Family("qwen3"),
    "command-r": _Family("cohere"), "stablelm": _Family("stablelm"), "gemma": _Family("gemma", shift=1.0),
    "gemma2": _Family("gemma2", _SANDWICH, shift=1.0), "gemma3": _Family("gemma3_text", _SANDWICH, shift=1.0),
    "olmo2": _Family("olmo2", _SANDWICH),
    "phi3": _Family("phi3", _LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "phi2": _Family("phi", _LLAMA | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
                    _ENDS | {"output_norm": "model.final_layernorm"}),
    "starcoder2": _Family("starcoder2", _LLAMA | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "gpt2": _Family("gpt2", {
        "attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
        "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
    }, {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
        "output": "lm_head"}, "transformer.h"),
}  # fmt: skip
_KEYS = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "context_length": "max_position_embeddings", "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window", "vocab_size": "vocab_size",
}  # fmt: skip


def as_hugging_face(entries: list[Entry], keys: dict[str, Any]) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Entries by Hugging Face's names, and the configuration in its words."""
    architecture = keys.get("general.architecture")
    family = _FAMILIES.get(architecture) if isinstance(architecture, str) else None
    config = {new: keys[f"{architecture}.{old}"] for old, new in _KEYS.items() if keys.get(f"{architecture}.{old}") is not None}
    config["model_type"] = family.model_type if family else str(architecture)
    if family is None:
        return {e.name: e for e in entries}, config
    config["tie_word_embeddings"] = not any(e.name == "output.weight" for e in entries)
    found: dict[str, Entry] = {}
    for e in entries:
        new = _translated(e, family, config)
        found[e.name if new.name in found else new.name] = e if new.name in found else new
    return found, config


def _translated(entry: Entry, family: _Family, config: dict[str, Any]) -> Entry:
    block, outside = _BLOCK.match(entry.name), _OUTSIDE.match(entry.name)
    if block and block[2] in family.block:
        name = f"{family.layers}.{block[1]}.{family.block[block[2]]}.{block[3]}"
        word = block[2]
    elif outside and outside[1] in family.ends:
        name, word = f"{family.ends[outside[1]]}.{outside[2]}", outside[1]
    else:
        return entry
    shift = family.shift if word.endswith("norm") and name.endswith(".weight") else 0.0
    return replace(entry, name=name, stored=entry.name, shift=shift, paired=_paired(entry, word, family, config))


def _paired(entry: Entry, word: str, family: _Family, config: dict[str, Any]) -> int:
    """Heads within which this tensor's rows stand in pairs; 0 where they do not, or the heads do not divide them."""
    if not family.paired or word not in ("attn_q", "attn_k"):
        return 0
    heads = config.get("num_attention_heads")
    heads = config.get("num_key_value_heads", heads) if word == "attn_k" else heads
    rows = entry.shape[0] if entry.shape else 0
    return heads if type(heads) is int and heads > 0 and rows and rows % (2 * heads) == 0 else 0
