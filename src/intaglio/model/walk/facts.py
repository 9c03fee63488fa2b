"""What the code of one file must know: its tensors' names and its configuration, with a record of what was asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intaglio.errors import SubjectError
from intaglio.model.walk.recipes import RECIPES, Recipe

_MISSING = object()
_PLAIN = re.compile(r"[\w.]*", re.ASCII)
_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")


def number(value: Any, what: str) -> int | float:
    """A finite number of a configuration.

    Raises:
        SubjectError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SubjectError(f"{what} in config.json is not a number", got=repr(value)[:80])
    return value


@dataclass(eq=False)
class Facts:
    """One model's file: names, sizes, switches.

    Attributes:
        config: config.json as it stands.
        shapes: tensor name to shape.
        recipe: how its family computes.
        prefix: what stands before the layers' names, such as `model.`.
        asked: the config fields that the code rests on, in order: field to (value, what it fixed, whether the file says it).
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    recipe: Recipe
    prefix: str
    asked: dict[str, tuple[Any, str, bool]] = field(default_factory=dict)

    def take(self, name: str, why: str, default: Any = _MISSING) -> Any:
        """A config field under the family's own name; `why` is a key of what it fixes.

        Raises:
            SubjectError: the file does not say and the family has no default.
        """
        own = self.recipe.field(name)
        given = self.config.get(own) is not None
        value = self.config[own] if given else dict(self.recipe.defaults).get(own, default)
        if value is _MISSING:
            raise SubjectError(f"config.json has no {own}, which the code of this part needs", got=str(self.family))
        if given or (value is not None and default is _MISSING):
            self.asked[own] = (value, why, given)
        return value

    def of_layer(self, name: str, why: str, layer: int) -> Any:
        """What a config field that lists the layers says of one.

        Raises:
            SubjectError: it is no such list.
        """
        listed = self.take(name, why)
        if not isinstance(listed, list) or not layer < len(listed):
            raise SubjectError(f"{name} in config.json does not list the layers", got=repr(listed)[:80])
        return listed[layer]

    def number(self, name: str, why: str, default: Any = _MISSING) -> int | float:
        """The same for a number: it will stand in code, so nothing else may.

        Raises:
            SubjectError: it is not a finite number.
        """
        return number(self.take(name, why, default), self.recipe.field(name))

    def count(self, name: str, why: str, default: Any = _MISSING) -> int:
        """The same for a count.

        Raises:
            SubjectError: it is not a whole number above zero.
        """
        value = self.take(name, why, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise SubjectError(f"{self.recipe.field(name)} in config.json is not a count", got=repr(value)[:80])
        return value

    @property
    def family(self) -> Any:
        return self.config.get("model_type")

    @property
    def heads(self) -> int:
        return self.count("num_attention_heads", "heads")

    @property
    def key_heads(self) -> int:
        return self.count("num_key_value_heads", "key_heads", self.heads)

    @property
    def width(self) -> int:
        return self.count("hidden_size", "width")

    @property
    def head_dim(self) -> int:
        return self.count("head_dim", "head_dim", self.width // self.heads)

    @property
    def layers(self) -> int:
        return self.count("num_hidden_layers", "layers")

    def sliding(self, layer: int) -> bool:
        """Whether a layer of a family that mixes both attends only to a window."""
        if self.config.get("layer_types"):
            return self.of_layer("layer_types", "layer_types", layer) == "sliding_attention"
        if self.family == "gemma2":
            return layer % 2 == 0
        if self.family == "gemma3_text":
            return (layer + 1) % self.count("sliding_window_pattern", "layer_types", 6) != 0
        if self.config.get("use_sliding_window"):
            return layer >= self.number("max_window_layers", "window", 0)
        return False

    def window(self, layer: int) -> int | None:
        """How many tokens back a query sees, itself included; None for all."""
        how = self.recipe.windowed
        if not how or (how == "typed" and not self.sliding(layer)):
            return None
        return self.count("sliding_window", "window") if self.config.get("sliding_window") else None

    def layer(self, number: int) -> str:
        """What stands before the names in a layer."""
        return f"{self.prefix}{self.recipe.layers}.{number}."

    def has(self, name: str) -> bool:
        return name in self.shapes


def facts_of(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Facts:
    """The facts of a file.

    Raises:
        SubjectError: no recipe for its family, or no layers by the family's names.
    """
    family = config.get("model_type")
    if not config:
        raise SubjectError("there is no config.json beside the tensors, which says how they are used")
    if not isinstance(family, str) or family not in RECIPES:
        raise SubjectError(
            "the code of this family is not known here, and none is guessed", got=str(family),
            expected=", ".join(sorted(RECIPES)),
        )  # fmt: skip
    recipe = RECIPES[family]
    pattern = re.compile(rf"((?:.+\.)?){recipe.layers}\.0\.")
    found = next((m for m in map(pattern.match, shapes) if m), None)
    if found is None or not _PLAIN.fullmatch(found[1]):  # names stand in code
        raise SubjectError(f"no layer is named as the family {family} names them", expected=f"...{recipe.layers}.0....")
    if config.get("use_bidirectional_attention"):
        raise SubjectError("attention in both directions is not written here", got="use_bidirectional_attention")
    return Facts(config, shapes, recipe, found[1])


def check_layer(facts: Facts, number: int) -> None:
    """Refuse a layer that holds tensors which the code would pass over.

    Raises:
        SubjectError: no such layer, a tensor that is missing, or one that has no place in the family's arithmetic.
    """
    if not 0 <= number < facts.layers:
        raise SubjectError("no such layer", got=f"L{number}", expected=f"L0 to L{facts.layers - 1}")
    recipe, prefix = facts.recipe, facts.layer(number)
    words = {recipe.attn_norm, recipe.mlp_norm, recipe.attn_post, recipe.mlp_post} - {""}
    if recipe.qkv == "separate":
        words |= {f"{recipe.attn}.{r}_proj" for r in "qkv"}
    else:
        words |= {f"{recipe.attn}.{recipe.qkv_name}"}
    words |= {f"{recipe.attn}.{recipe.out}", f"{recipe.mlp_name}.{recipe.up}", f"{recipe.mlp_name}.{recipe.down}"}
    if recipe.mlp == "gated":
        words |= {f"{recipe.mlp_name}.gate_proj"}
    if recipe.qk_norm:
        words |= {f"{recipe.attn}.{r}_norm" for r in "qk"}
    allowed = {f"{prefix}{word}.{end}" for word in words for end in ("weight", "bias")}
    held = {n for n in facts.shapes if n.startswith(prefix) and not n.removeprefix(prefix).endswith(_BUFFERS)}
    unknown = sorted(held - allowed)
    if unknown:
        raise SubjectError(
            "the code of this part is not known here: the layer holds a tensor that the family's usual arithmetic lacks",
            got=unknown[0],
        )  # fmt: skip
    if recipe.parallel and facts.take(recipe.parallel, "parallel", recipe.parallel == "always"):
        words -= {recipe.mlp_norm} - {recipe.attn_norm}
    missing = sorted(f"{prefix}{word}.weight" for word in words if f"{prefix}{word}.weight" not in held)
    if missing:
        raise SubjectError("the file lacks a tensor of this layer", got=missing[0])
