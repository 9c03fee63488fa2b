"""Names of a model's parts: parse, print, sort, match.

    embed        the token embedding (and `embed.pos`, learnt positions)
    L3.attn      attention of layer 3, whole;  L3.attn.H5 its head 5;  L3.attn.bias its biases
    L3.mlp       the MLP of layer 3;           L3.mlp.N120 its neuron 120
    L3.norm.attn the gain before attention;    also L3.norm.mlp, L3.norm.q, L3.norm.k, ...
    norm         the final norm
    unembed      the output head (with tied embeddings: the head's share of the shared matrix)

Pure: no torch, no files.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from intaglio.errors import InputError

_PATTERN = re.compile(
    r"^(?:(?P<whole>embed(?:\.pos|\.norm)?|norm|unembed(?:\.bias)?|other)"
    r"|L(?P<layer>\d+)\.(?P<part>attn|mlp|norm)"
    r"(?:\.(?:H(?P<head>\d+)|N(?P<neuron>\d+)|(?P<sub>[a-z_0-9]+)))?)\Z",
    re.ASCII,
)
_ORDER = {"embed": 0, "embed.pos": 1, "embed.norm": 2, "norm": 4, "unembed": 5, "unembed.bias": 6, "other": 7}
_PARTS = {"norm": 0, "attn": 1, "mlp": 2}


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class Address:
    """One part of a model; ordered as data flows through it, hashable, printed by `str`."""

    part: str
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None
    sub: str | None = None

    def __str__(self) -> str:
        if self.layer is None:
            return self.part
        tail = (
            f".H{self.head}"
            if self.head is not None
            else f".N{self.neuron}"
            if self.neuron is not None
            else f".{self.sub}"
            if self.sub
            else ""
        )
        return f"L{self.layer}.{self.part}{tail}"

    def _key(self) -> tuple:
        if self.layer is None:
            return (_ORDER[self.part], 0, 0, -1, -1, "")
        none = -1
        head = none if self.head is None else self.head
        neuron = none if self.neuron is None else self.neuron
        return (3, self.layer, _PARTS[self.part], head, neuron, self.sub or "")

    def __lt__(self, other: Address) -> bool:
        return self._key() < other._key()

    def contains(self, other: Address) -> bool:
        """Whether `other` is this part or lies within it (`L3.attn` contains `L3.attn.H5`)."""
        if self.layer is None or other.layer is None:
            return self == other
        if (self.layer, self.part) != (other.layer, other.part):
            return False
        return self == other or (self.head is None and self.neuron is None and self.sub is None)


@functools.lru_cache(maxsize=65536)
def parse(text: str) -> Address:
    """The address that `text` names.

    Raises:
        InputError: the text names no part of a model.
    """
    found = _PATTERN.match(text)
    head = neuron = None
    if found:
        layer, part = found["layer"], found["part"] or found["whole"]
        head = int(found["head"]) if found["head"] else None
        neuron = int(found["neuron"]) if found["neuron"] else None
        if not ((head is not None and part != "attn") or (neuron is not None and part != "mlp")):
            return Address(part, int(layer) if layer else None, head, neuron, found["sub"])
    raise InputError(
        "not an address of a model's part", got=text, expected="embed, L3.attn, L3.attn.H5, L3.mlp, L3.norm.attn"
    )


_SHORT = re.compile(r"(\d{1,6})\.(\d{1,6})\Z", re.ASCII)


def parse_head(text: str) -> Address:
    """The head that `text` names: L18.attn.H6, or 18.6 for short.

    Raises:
        InputError: the text names no head.
    """
    short = _SHORT.match(text)
    found = Address("attn", int(short[1]), head=int(short[2])) if short else parse(text)
    if found.head is None:
        raise InputError("not a head", got=text, expected="such as L18.attn.H6, or 18.6")
    return found
