"""Which part of a model each tensor of a checkpoint is, by its name and shape alone. No torch, no model.

The words are those of `families`; what they do not know becomes `other`, never a guess. Sizes come from the
shapes; the configuration gives only the number of heads, and must agree with the shapes in all else.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from intaglio.address import Address
from intaglio.errors import InputError, SubjectError
from intaglio.model.families import LAYER, place
from intaglio.model.stored import Checkpoint

EMBED = {"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"}
EMBED_NORM = {"word_embeddings_layernorm"}
UNEMBED = {"lm_head", "embed_out", "output"}
NEURONS = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down",
    "gate_up_proj": "gate_up", "c_fc": "up", "fc1": "up", "fc_in": "up", "dense_h_to_4h": "up",
    "c_proj": "down", "fc2": "down", "fc_out": "down", "dense_4h_to_h": "down",
}  # fmt: skip
CONV1D = {"c_attn", "c_proj", "c_fc"}  # GPT-2 stores inputs by outputs
_ELSEWHERE = re.compile(r"(^|\.)(vision|visual|audio|image|speech)|\.rotary_emb\.|masked_bias$")
_EXPERTS = re.compile(r"(^|\.)(experts?|shared_experts?|block_sparse_moe)(\.|$)")
_COUNTS = {"n_heads": ("num_attention_heads", "n_head", "num_heads"), "n_key_heads": ("num_key_value_heads", "num_kv_heads")}


@dataclass(frozen=True)
class Part:
    """One whole tensor's place in the model.

    Attributes:
        address: the part it belongs to.
        role: q, k, v, o, qkv or per_head (fused), gate, up, gate_up, down, gain, sink; with .bias where it is one.
        conv1d: a matrix stored as inputs by outputs.
    """

    name: str
    address: Address
    role: str
    conv1d: bool = False


@dataclass(frozen=True)
class Heads:
    """Sizes of one layer's attention."""

    n_heads: int
    n_key_heads: int
    head_dim: int
    fused: str  # how q, k and v stand in one tensor: qkv, per_head, or "" where they are apart

    @property
    def group(self) -> int:
        """Query heads per key and value head."""
        return self.n_heads // self.n_key_heads


class Parts:
    """The parts of a checkpoint: tensor by tensor, and the sizes of its heads, layer by layer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        sandwich = any("post_feedforward_layernorm" in name for name in checkpoint.entries)
        conv1d = any(e.name.endswith("c_attn.weight") and len(e.shape) == 2 and e.shape[0] < e.shape[1]
                     for e in checkpoint.entries.values())  # fmt: skip
        self.of = {name: self._part(name, sandwich, conv1d) for name in checkpoint.entries}
        numbered = (LAYER.search(name) for name in self.of if not _ELSEWHERE.search(name))
        self.n_layers = 1 + max((int(found[1]) for found in numbered if found), default=-1)
        self._config = text_config(checkpoint.config)
        self._heads: dict[int, Heads] = {}

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output head too: the files hold no head of its own."""
        held = {str(p.address) for p in self.of.values()}
        return "embed" in held and "unembed" not in held

    def within(self, address: Address) -> list[Part]:
        """The whole tensors of a part, in the order of the files."""
        return [p for p in self.of.values() if address.contains(p.address)]

    def roles(self, layer: int, part: str) -> dict[str, Part]:
        """The tensors of one layer's attention or MLP by their role."""
        return self._by_layer.get((layer, part), {})

    @functools.cached_property
    def _by_layer(self) -> dict[tuple[int, str], dict[str, Part]]:
        found: dict[tuple[int, str], dict[str, Part]] = {}
        for p in self.of.values():
            if p.address.layer is not None and p.role:
                found.setdefault((p.address.layer, p.address.part), {}).setdefault(p.role, p)
        return found

    def heads(self, layer: int) -> Heads:
        """How one layer's attention divides into heads.

        Raises:
            InputError: there is no such layer, or it has no attention.
            SubjectError: the number of heads is not known, or the shapes do not fit it.
        """
        if layer not in self._heads:
            self.check_layer(layer)
            self._heads[layer] = self._measured(layer, self.roles(layer, "attn"))
        return self._heads[layer]

    def _measured(self, layer: int, roles: dict[str, Part]) -> Heads:
        if "o" not in roles:
            raise InputError(f"layer {layer} has no attention whose heads are known here",
                             expected="separate or fused q, k and v, and an output matrix")  # fmt: skip
        n_heads = self._count("n_heads")
        if n_heads is None:
            raise SubjectError(f"the number of heads is not known for {self.checkpoint.path}",
                               expected="a config.json beside the weights that gives num_attention_heads")  # fmt: skip
        inputs = self.sides(roles["o"])[1]
        dim = inputs // n_heads
        said = self._config.get("head_dim")
        other = isinstance(said, int) and said != dim and "global_head_dim" not in self._config
        if dim == 0 or dim * n_heads != inputs or other:
            raise self._unfit(layer, f"{n_heads} heads" + (f" of {said}" if said else ""), f"{inputs} inputs of o")
        return self._with_keys(layer, roles, n_heads, dim)

    def _with_keys(self, layer: int, roles: dict[str, Part], n_heads: int, dim: int) -> Heads:
        fused = next((r for r in ("qkv", "per_head") if r in roles), "")
        kind = self._config.get("model_type")
        if fused:
            out = self.sides(roles[fused])[0]
            key_heads = (out // dim - n_heads) // 2
            fits = out == (n_heads + 2 * key_heads) * dim and (fused == "qkv" or key_heads == n_heads)
            if kind == "codegen" or (kind == "gpt_bigcode" and key_heads == n_heads):
                fits = False  # they interleave q, k and v in ways of their own
        elif "k" in roles and "q" in roles:
            key_heads = self.sides(roles["k"])[0] // dim
            fits = self.sides(roles["k"])[0] == key_heads * dim and self.sides(roles["q"])[0] == n_heads * dim
        else:
            raise InputError(f"layer {layer} has no queries and keys by heads that are known here")
        if not fits or key_heads < 1 or n_heads % key_heads:
            raise self._unfit(layer, f"{n_heads} heads of {dim}", "their shapes")
        said = self._count("n_key_heads")
        if said is not None and said != key_heads and "num_global_key_value_heads" not in self._config:
            raise self._unfit(layer, f"{said} key heads", f"{key_heads} in the file")
        return Heads(n_heads, key_heads, dim, fused)

    def sides(self, part: Part) -> tuple[int, int]:
        """Outputs and inputs of a matrix, whichever way round it is stored."""
        shape = self.checkpoint.entries[part.name].shape
        if len(shape) != 2:
            raise SubjectError(f"{part.name} is not a matrix", got=str(list(shape)))
        return (shape[1], shape[0]) if part.conv1d else (shape[0], shape[1])

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that the files do not hold."""
        if not 0 <= layer < self.n_layers:
            raise InputError(f"{self.checkpoint.path} has no layer {layer}", expected=f"0 to {self.n_layers - 1}"
                             if self.n_layers else "a model with numbered layers")  # fmt: skip

    def _count(self, which: str) -> int | None:
        for name in _COUNTS[which]:
            value = self._config.get(name)
            if value is not None:
                if type(value) is not int or not 0 < value < 2**31:
                    raise SubjectError(f"{name} in config.json is not a count", got=repr(value)[:80])
                return value
        return None

    def _unfit(self, layer: int, said: str, found: str) -> SubjectError:
        return SubjectError(f"the heads of layer {layer} do not fit the tensors", got=f"{said}, but {found}")

    def _part(self, name: str, sandwich: bool, conv1d: bool) -> Part:
        module, kind = _module(name)
        shape = self.checkpoint.entries[name].shape
        if _ELSEWHERE.search(name) or (kind == "bias" and len(shape) > 1):  # causal masks are called bias too
            return Part(name, Address("other"), "")
        where, last = place(module, sandwich=sandwich), module.rsplit(".", 1)[-1]
        address, tail = where.address, ".bias" if kind == "bias" else ""
        if address.layer is None:
            return Part(name, _outside(address, last, kind), {"norm": "gain"}.get(address.part, "") + tail)
        if address.part == "norm":
            return Part(name, address, "gain" + tail)
        role = where.role if address.part == "attn" else _mlp_role(module, last, len(shape))
        if last == "sinks":
            address, role = Address("attn", address.layer), "sink"
        if tail:
            address = Address(address.part, address.layer, sub="bias")
        return Part(name, address, role + tail if role else "", conv1d and last in CONV1D and len(shape) == 2)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _module(name: str) -> tuple[str, str]:
    for kind in ("weight", "bias"):
        if name.endswith("." + kind):
            return name.removesuffix("." + kind), kind
    return name, ""


def _outside(address: Address, last: str, kind: str) -> Address:
    if last in EMBED:
        return Address("embed")
    if last in EMBED_NORM:
        return Address("embed.norm")
    if last in UNEMBED:
        return Address("unembed.bias" if kind == "bias" else "unembed")
    return address


def _mlp_role(module: str, last: str, dimensions: int) -> str:
    if _EXPERTS.search(module):
        return ""
    return NEURONS.get(last, "") if dimensions <= 2 else ""
