"""A small model in which an induction head is born: its shape, its start from a seed, and how it is trained.  [torch]

Two layers of four heads, width 64. Position enters by rotation alone; q, k and v have biases, so that a head may look one token
back whatever the tokens are. Each layer keeps an MLP of 16 neurons, 16 % of its weights,
because a layer is expected to have one. What the model is taught stands in `data/repeats.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from intaglio.data.repeats import word_tokenizer
from intaglio.model.subject import Subject, fingerprint

NAME = "born"
SHAPE: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=64, attention_bias=True, tie_word_embeddings=False, initializer_range=0.05,
)  # fmt: skip
RECIPE: dict[str, Any] = dict(
    batch_size=32, accumulate=1, lr=4e-3, schedule="constant", warmup_steps=25, optimizer="adamw", weight_decay=0.01,
    momentum=0.9, clip=1.0, lora_rank=None, layers=None, precision="float32",
)  # fmt: skip
STEPS = 700
ROWS = 4096  # texts, each visited about five times
PROBE_TEXTS = 8
CHECKPOINT_EVERY, PROBE_EVERY = 10, 1


def make_subject(seed: int, **changes: Any) -> Subject:
    """The model before its first step, with its tokenizer: all weights drawn from `seed`.

    Args:
        changes: of `SHAPE`.
    """
    tokenizer = word_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), **(SHAPE | ends | changes))
    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_rng_state(state)
    return Subject(model, tokenizer, NAME, None, fingerprint(model))
