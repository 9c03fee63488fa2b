"""Random tiny models of every supported family, with perturbed norms and biases, and batches for them.

A fresh transformer has gains of exactly 1 and biases of exactly 0, which hides faults in both;
here every vector is disturbed, and matrices are large enough that attention is not uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

torch.set_num_threads(1)  # a tiny model loses more by threads than it gains

VOCAB = 53
PAD = 2  # the padding token occurs in texts too, as SmolLM2's does
SIZES = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
COMMON = dict(max_position_embeddings=64, pad_token_id=None, bos_token_id=0, eos_token_id=1)


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=1,
    ))  # fmt: skip


def _neox() -> nn.Module:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **COMMON, hidden_dropout=0.0, attention_dropout=0.0))


def _llama(**changes: object) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**(SIZES | COMMON | changes)))


def _gemma3() -> nn.Module:
    return Gemma3ForCausalLM(Gemma3TextConfig(
        **(SIZES | COMMON | {"pad_token_id": 0}), num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8,
        sliding_window=8,
    ))  # fmt: skip


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,
    "neox": _neox,
    "llama": lambda: _llama(num_key_value_heads=4),
    "llama_tied": lambda: _llama(num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=PAD),
    "llama_gqa": lambda: _llama(num_key_value_heads=2),
    "llama_bias": lambda: _llama(num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **COMMON, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **COMMON, num_key_value_heads=2, head_dim=8)),
    "gemma3": _gemma3,
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, **COMMON, num_key_value_heads=2, sliding_window=6)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**(SIZES | COMMON), num_key_value_heads=2)),
}


def build(family: str = "llama_gqa", *, seed: int = 0) -> nn.Module:
    """A tiny model in training mode, fp32, eager attention; the same weights for the same seed."""
    torch.manual_seed(seed)
    model = BUILDERS[family]()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.15 if p.ndim < 2 else 0.08))
    return model.train()


@dataclass(frozen=True)
class Text:
    """One training text: token ids, and which of them are trained on."""

    ids: tuple[int, ...]
    labels: tuple[bool, ...]

    @property
    def targets(self) -> int:
        return sum(self.labels[1:])


def texts(lengths: Sequence[int] = (7, 12, 4, 9), *, seed: int = 1, masked: bool = True) -> list[Text]:
    """Random texts; the first tokens of every other text are a prompt that is not trained on."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, length in enumerate(lengths):
        ids = torch.randint(0, VOCAB, (length,), generator=generator)
        ids[length // 2] = PAD
        prompt = length // 3 if masked and i % 2 else 1
        found.append(Text(tuple(ids.tolist()), tuple(t >= prompt for t in range(length))))
    return found


def batch(examples: Sequence[Text], *, side: str = "right", length: int | None = None) -> dict[str, Tensor]:
    """One padded batch."""
    width = length or max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), width), PAD)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    positions = torch.zeros_like(ids)
    for row, e in enumerate(examples):
        n = len(e.ids)
        where = slice(0, n) if side == "right" else slice(width - n, width)
        ids[row, where] = torch.tensor(e.ids)
        labels[row, where] = torch.where(torch.tensor(e.labels), torch.tensor(e.ids), -100)
        labels[row, where.start] = -100
        mask[row, where] = 1
        positions[row, where] = torch.arange(n)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "position_ids": positions}


def packed(rows: Sequence[Sequence[Text]]) -> dict[str, Tensor]:
    """Several texts per row, told apart by positions alone; all rows must be equally long."""
    ids, labels, positions = [], [], []
    for row in rows:
        ids.append([t for e in row for t in e.ids])
        labels.append([x if l and t else -100 for e in row for t, (x, l) in enumerate(zip(e.ids, e.labels))])
        positions.append([t for e in row for t in range(len(e.ids))])
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "position_ids": torch.tensor(positions)}


@dataclass
class Micro:
    """One forward and backward of a step: its inputs and the texts in slot order."""

    inputs: dict[str, Tensor]
    examples: list[Text] = field(default_factory=list)


def micro(examples: Sequence[Text], **how: object) -> Micro:
    return Micro(batch(examples, **how), list(examples))


def micro_packed(rows: Sequence[Sequence[Text]]) -> Micro:
    return Micro(packed(rows), [e for row in rows for e in row])
