"""Random tiny models of every family whose insides are known, with perturbed vectors and matrices."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 97
_COMMON = dict(
    vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_OLD = dict(vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_positions=64)

FAMILIES: dict[str, dict] = {
    "gpt2": _OLD, "gpt_neox": _COMMON | {"use_parallel_residual": True}, "llama": _GROUPED,
    "mistral": _GROUPED | {"head_dim": 12, "sliding_window": 6}, "qwen2": _GROUPED, "qwen3": _GROUPED | {"head_dim": 16},
    "gemma": _GROUPED | {"head_dim": 16}, "gemma2": _GROUPED | {"head_dim": 16}, "gemma3_text": _GROUPED | {"head_dim": 16},
    "phi": _COMMON, "phi3": _GROUPED, "olmo2": _GROUPED, "smollm3": _GROUPED,
    "granite": _GROUPED | {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0},
    "opt": dict(vocab_size=VOCAB, hidden_size=48, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
                max_position_embeddings=64, word_embed_proj_dim=48),
    "bloom": dict(vocab_size=VOCAB, hidden_size=48, n_layer=3, n_head=4),
    "gpt_neo": dict(vocab_size=VOCAB, hidden_size=48, num_layers=3, num_heads=4, max_position_embeddings=64,
                    attention_types=[[["global", "local"], 1], [["global"], 1]]),
    "gptj": _OLD | {"rotary_dim": 8}, "stablelm": _GROUPED | {"head_dim": 12, "partial_rotary_factor": 0.5},
    "starcoder2": _GROUPED, "cohere": _GROUPED,
    "gpt_oss": _GROUPED | {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
BYPASSING = {"bloom", "gpt_neo", "gptj"}  # their attention does not go through transformers' interface


def family(name: str, *, seed: int = 1) -> nn.Module:
    """A tiny model in eval mode; a fresh one's gains of 1 and biases of 0 would hide faults."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **FAMILIES[name])).eval().float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.1))
    return model


def ids(length: int = 13, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))
