"""How each family computes, as data: the words of its tensors' names and the switches of its arithmetic.

What stands here is believed only because the tests run the code that is written from it beside the
model itself. A family that is missing is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """One family.

    Attributes:
        layers: the word before a layer's number.
        norm: rms (gain w), rms1 (gain 1 + w) or layer (mean taken off, bias added).
        attn_norm, mlp_norm: the norm before the part; "" where the part reads the residual stream as it is.
        attn_post, mlp_post: the norm behind the part, before the residual stream; "" where there is none.
        qkv: separate; fused (all q rows, then k, then v); conv (the same as columns); per_head (q, k, v head by head).
        qk_norm: head (each head's q and k by itself), whole (all heads together), or "".
        rotary: whether positions turn q and k.
        mlp: gated; fused (gate and up in one matrix); plain; conv (plain, matrices the other way round).
        parallel: the MLP reads the layer's input, not what attention added to it; the config's field, or "always".
        embed_scale: what the embedding is multiplied by: sqrt (of the width), a config field, or "".
        fields: config names that differ from the usual ones.
        defaults: values of config fields that old files leave out.
    """

    layers: str = "layers"
    norm: Literal["rms", "rms1", "layer"] = "rms"
    attn: str = "self_attn"
    mlp_name: str = "mlp"
    attn_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attn_post: str = ""
    mlp_post: str = ""
    final: str = "norm"
    embed: str = "embed_tokens"
    positions: str = ""
    unembed: str = "lm_head"
    qkv: Literal["separate", "fused", "conv", "per_head"] = "separate"
    qkv_name: str = ""
    out: str = "o_proj"
    qk_norm: Literal["", "head", "whole"] = ""
    rotary: bool = True
    mlp: Literal["gated", "fused", "plain", "conv"] = "gated"
    up: str = "up_proj"
    down: str = "down_proj"
    parallel: str = ""
    embed_scale: str = ""
    windowed: Literal["", "always", "typed"] = ""
    fields: tuple[tuple[str, str], ...] = ()
    defaults: tuple[tuple[str, object], ...] = ()

    def field(self, name: str) -> str:
        """What this family's config.json calls the field that most call `name`."""
        return dict(self.fields).get(name, name)


_LLAMA = Recipe(defaults=(("rope_theta", 10000.0), ("hidden_act", "silu")))
_GEMMA = replace(
    _LLAMA, norm="rms1", embed_scale="sqrt", defaults=(("rope_theta", 10000.0), ("hidden_activation", "gelu_pytorch_tanh")),
)
_SANDWICH = dict(
    attn_post="post_attention_layernorm", mlp_norm="pre_feedforward_layernorm", mlp_post="post_feedforward_layernorm",
)
_GEMMA_2 = replace(_GEMMA, **_SANDWICH, windowed="typed", fields=(("hidden_act", "hidden_activation"),))
_LAYER = replace(_LLAMA, norm="layer", fields=(("rms_norm_eps", "layer_norm_eps"),))

RECIPES: dict[str, Recipe] = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, windowed="always"),
    "qwen2": replace(_LLAMA, windowed="typed"),
    "qwen3": replace(_LLAMA, qk_norm="head", windowed="typed"),
    "smollm3": replace(_LLAMA, windowed="typed"),
    "granite": replace(_LLAMA, embed_scale="embedding_multiplier"),
    "olmo2": replace(
        _LLAMA, qk_norm="whole", attn_norm="", mlp_norm="", attn_post="post_attention_layernorm",
        mlp_post="post_feedforward_layernorm",
    ),
    "gemma": replace(_GEMMA, fields=(("hidden_act", "hidden_act"),), defaults=(("rope_theta", 10000.0),)),
    "gemma2": _GEMMA_2,
    "gemma3_text": replace(_GEMMA_2, qk_norm="head"),
    "phi3": replace(_LLAMA, qkv="fused", qkv_name="qkv_proj", mlp="fused", up="gate_up_proj", windowed="always"),
    "phi": replace(
        _LAYER, mlp="plain", up="fc1", down="fc2", out="dense", final="final_layernorm", mlp_norm="input_layernorm",
        parallel="always", defaults=(("rope_theta", 10000.0), ("partial_rotary_factor", 0.5)),
    ),
    "stablelm": replace(
        _LAYER, parallel="use_parallel_residual", defaults=(("rope_theta", 10000.0), ("partial_rotary_factor", 0.25)),
    ),
    "starcoder2": replace(
        _LAYER, mlp="plain", up="c_fc", down="c_proj", windowed="always", fields=(("rms_norm_eps", "norm_epsilon"),),
    ),
    "gpt_neox": replace(
        _LAYER, attn="attention", embed="embed_in", unembed="embed_out", final="final_layer_norm", qkv="per_head",
        qkv_name="query_key_value", out="dense", mlp="plain", up="dense_h_to_4h", down="dense_4h_to_h",
        parallel="use_parallel_residual",
        defaults=(("rope_theta", 10000.0), ("partial_rotary_factor", 0.25), ("use_parallel_residual", True)),
    ),
    "gpt2": Recipe(
        layers="h", norm="layer", attn="attn", attn_norm="ln_1", mlp_norm="ln_2", final="ln_f", embed="wte", positions="wpe",
        qkv="conv", qkv_name="c_attn", out="c_proj", rotary=False, mlp="conv", up="c_fc", down="c_proj",
        fields=(
            ("rms_norm_eps", "layer_norm_epsilon"), ("hidden_act", "activation_function"), ("hidden_size", "n_embd"),
            ("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer"), ("intermediate_size", "n_inner"),
            ("max_position_embeddings", "n_positions"),
        ),
        defaults=(("layer_norm_epsilon", 1e-5), ("activation_function", "gelu_new"), ("n_inner", None),
                  ("n_positions", 1024)),
    ),
}  # fmt: skip
