"""Where each part writes into the residual stream: found by names, believed only once proved.  [torch]

A part is what is *added to the residual*: under Gemma 2, Gemma 3 and OLMo 2 that is what comes
out of the norm behind it. The names are data (families.py); `proof.prove` checks them by numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from transformers.pytorch_utils import Conv1D

from intaglio.errors import SubjectError
from intaglio.model.families import ATTENTION, FINAL_NORM, MLP, OUTPUT, POSITIONS
from intaglio.model.layout import causal_lm
from intaglio.model.norms import NormKind

LAYERS = ("layers", "h", "decoder.layers", "blocks")
NESTED = ("attention",)  # GPT-Neo keeps its attention inside `attn`
DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
EMBED_NORMS = ("word_embeddings_layernorm",)
BYPASS = {"bloom", "gpt_neo", "gptj"}  # they do not ask transformers' AttentionInterface


@dataclass(frozen=True, eq=False)
class Block:
    """The modules of one layer."""

    layer: nn.Module
    attn: nn.Module
    out: nn.Module  # its input is all heads' z side by side
    attn_post: nn.Module | None  # norm between the attention and the residual
    mlp: nn.Module | None  # None where the layer holds its MLP's matrices itself (OPT)
    down: nn.Module | None  # its input is the neurons; None for a mixture of experts
    mlp_post: nn.Module | None

    @property
    def attn_added(self) -> nn.Module:
        """Whose output joins the residual."""
        return self.attn_post or self.out

    @property
    def mlp_added(self) -> nn.Module:
        """Whose output joins the residual."""
        return self.mlp_post or self.down or self.mlp


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The modules that a decision passes through, and the sizes of the heads."""

    model: nn.Module
    base: nn.Module
    embed: nn.Module
    positions: nn.Module | None
    embed_norm: nn.Module | None
    blocks: tuple[Block, ...]
    norm: nn.Module
    unembed: nn.Module
    n_heads: int
    n_key_heads: int
    residual_scale: float  # what a part is multiplied by before it is added (Granite)
    embed_scale: float  # what the embedding is multiplied by before the first layer (Granite)
    bypasses: bool
    kinds: dict[nn.Module, NormKind] = field(default_factory=dict)  # of the norms behind; filled by the proof
    logit_scale: float = 1.0
    softcap: float | None = None

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def width(self) -> int:
        return int(self.unembed.weight.shape[1])

    @property
    def head_dim(self) -> int:
        return matrix_of(self.blocks[0].out).shape[1] // self.n_heads


def matrix_of(module: nn.Module):
    """The weight as (outputs, inputs), whatever way round the module stores it."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def anatomy_of(model: nn.Module) -> Anatomy:
    """The parts of `model`, by their names.

    Raises:
        SubjectError: a part has no module that is known here.
    """
    model = causal_lm(model)
    base = getattr(model, "base_model", model)
    config = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", None):
        raise SubjectError("the model has no attention heads", got=type(model).__name__, expected="a transformer")
    layers = _first(base, LAYERS)
    found = {
        "layers": layers, "embedding": model.get_input_embeddings(), "final norm": _first(base, _within(FINAL_NORM)),
        "output head": model.get_output_embeddings(),
    }  # fmt: skip
    for what, module in found.items():
        if module is None:
            raise _unknown(model, what)
    sandwich = any(n.endswith("post_feedforward_layernorm") for n, _ in layers[0].named_children())
    heads = int(config.num_attention_heads)
    return Anatomy(
        model, base, found["embedding"], _first(base, _within(POSITIONS)), _first(base, EMBED_NORMS),
        tuple(_block(model, layer, sandwich) for layer in layers), found["final norm"], found["output head"],
        heads, int(getattr(config, "num_key_value_heads", None) or heads),
        float(getattr(config, "residual_multiplier", None) or 1.0),
        float(getattr(config, "embedding_multiplier", None) or 1.0), config.model_type in BYPASS,
    )  # fmt: skip


def _block(model: nn.Module, layer: nn.Module, sandwich: bool) -> Block:
    attn = _first(layer, tuple(ATTENTION))
    if attn is not None:
        attn = _first(attn, NESTED) or attn
    out = _first(attn, tuple(OUTPUT)) if attn is not None else None
    mlp = _first(layer, tuple(MLP))
    down = _first(mlp if mlp is not None else layer, DOWN)
    if out is None or not isinstance(out, nn.Linear | Conv1D):
        raise _unknown(model, "output of attention")
    if mlp is None and down is None:
        raise _unknown(model, "MLP")
    return Block(
        layer, attn, out, getattr(layer, "post_attention_layernorm", None) if sandwich else None,
        mlp, down, getattr(layer, "post_feedforward_layernorm", None),
    )  # fmt: skip


def _within(names: set[str]) -> tuple[str, ...]:
    return (*sorted(names), *(f"decoder.{n}" for n in sorted(names)))


def _first(module: nn.Module | None, names: tuple[str, ...]) -> nn.Module | None:
    for name in names:
        found = module
        for word in name.split("."):
            found = getattr(found, word, None)
        if isinstance(found, nn.Module):
            return found
    return None


def _unknown(model: nn.Module, what: str) -> SubjectError:
    return SubjectError(
        f"the parts of this family cannot be told apart: no {what} is known", got=type(model).__name__,
        expected="a decoder such as GPT-2, Llama, Qwen, Gemma, Mistral or Phi",
    )  # fmt: skip
