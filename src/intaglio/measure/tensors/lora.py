"""LoRA adapters as differences to a base, read from their two files: no torch, no peft, no whole matrix.

    difference = scale * B A          scale = alpha / r, or alpha / sqrt(r) (rank-stabilised, arXiv 2312.03732)

Verified against peft's own merge in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.errors import SubjectError
from intaglio.model.header import load_json, read_header
from intaglio.model.tensors import ADAPTER, Checkpoint

_PREFIX = "base_model.model."
_ENDS = {".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_embedding_A": "ea", ".lora_embedding_B": "eb"}
_REFUSED = {"lora_magnitude_vector": "DoRA", "lora_B.bias": "a bias of its own in the adapter"}
MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class LowRank:
    """One matrix's difference, kept as its two factors.

    Attributes:
        down_RI: (rank, inputs).
        up_OR: (outputs, rank), the scale already in it.
        transposed: the base stores the matrix as (inputs, outputs).
    """

    down_RI: np.ndarray
    up_OR: np.ndarray
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """As the base stores it."""
        shape = self.up_OR.shape[0], self.down_RI.shape[1]
        return shape[::-1] if self.transposed else shape

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows of the difference, as the base stores them."""
        if self.transposed:
            return self.down_RI[:, first:last].T @ self.up_OR.T
        return self.up_OR[first:last] @ self.down_RI


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter does to the tensors of its base.

    Attributes:
        file: the adapter's own tensors.
        added: base tensor to its low-rank difference.
        replaced: base tensor to the adapter's tensor that stands in its place (modules_to_save, trained biases).
    """

    file: Checkpoint
    added: Mapping[str, LowRank]
    replaced: Mapping[str, str]


def open_adapter(folder: Path, base: Any) -> Adapter:
    """A PEFT folder as differences to `base`.

    Raises:
        SubjectError: not LoRA, a kind of it whose merge is not written here, or it does not fit the base.
    """
    config = _config(folder / "adapter_config.json")
    path = folder / ADAPTER
    if not path.is_file():
        raise SubjectError(f"{folder} has no {ADAPTER}", expected="an adapter saved as safetensors")
    entries, metadata = read_header(path)
    file = Checkpoint(path, folder, entries, {}, metadata)
    factors: dict[str, dict[str, str]] = {}
    replaced = {}
    for name in entries:
        for word, what in _REFUSED.items():
            if word in name:
                raise SubjectError("this kind of adapter is not merged here", got=what, expected="plain LoRA")
        end = next((e for e in _ENDS if name.endswith(e)), None)
        if end is None:
            replaced[_base_name(name, "", base, folder)] = name
        else:
            factors.setdefault(name.removesuffix(end), {})[_ENDS[end]] = name
    for target, name in replaced.items():
        if entries[name].shape != base.entry(target).shape:
            raise SubjectError(f"the adapter does not fit the base: {target}", got=str(list(entries[name].shape)),
                               expected=str(list(base.entry(target).shape)))  # fmt: skip
    added = {}
    for module, found in factors.items():
        target = _base_name(module, ".weight", base, folder)
        added[target] = _low_rank(file, module, found, config, base.entry(target).shape)
    return Adapter(file, added, replaced)


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise SubjectError(f"{path} is of absurd size", got=f"{path.stat().st_size:,} bytes")
        config = load_json(path.read_bytes(), str(path))
    except OSError as error:
        raise SubjectError(f"cannot read {path}: {error.strerror or error}") from None
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise SubjectError("this kind of adapter is not merged here", got=str(config["peft_type"]), expected="LORA")
    if config.get("use_dora"):
        raise SubjectError("this kind of adapter is not merged here", got="DoRA", expected="plain LoRA")
    return config


def _base_name(name: str, end: str, base: Any, folder: Path) -> str:
    """The base's tensor that a name of the adapter stands for."""
    own = name.removeprefix(_PREFIX).replace(".base_layer", "").replace(".modules_to_save.default", "") + end
    if own in base.entries:
        return own
    alike = [n for n in base.entries if n.endswith("." + own) or own.endswith("." + n)]
    if len(alike) == 1:
        return alike[0]
    raise SubjectError(f"the adapter in {folder} does not fit the base, which has no such tensor", got=own)


def _low_rank(
    file: Checkpoint, module: str, found: Mapping[str, str], config: Mapping[str, Any], shape: tuple[int, ...]
) -> LowRank:  # fmt: skip
    if set(found) not in ({"a", "b"}, {"ea", "eb"}):
        raise SubjectError("the adapter lacks one of the two factors", got=module)
    embedding = "ea" in found
    down, up = (file.entry(found[end]) for end in (("ea", "eb") if embedding else ("a", "b")))
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise SubjectError(f"the factors of {module} do not fit each other", got=f"{list(up.shape)} by {list(down.shape)}")
    made = up.shape[0], down.shape[1]
    transposed = embedding or bool(config.get("fan_in_fan_out")) or (made != shape and made[::-1] == shape)
    if (made[::-1] if transposed else made) != tuple(shape):
        raise SubjectError(f"the adapter does not fit the base: {module}", got=str(list(made)), expected=str(list(shape)))
    scale = _scale(config, module, down.shape[0])
    return LowRank(file.read(down.name), file.read(up.name) * np.float32(scale), transposed)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if _matches(str(pattern), module.removeprefix(_PREFIX)):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise SubjectError("adapter_config.json does not say lora_alpha", got=repr(alpha), expected="a number")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    """As peft does it: the pattern is a regular expression for the end of a module's name.

    Raises:
        SubjectError: one with so many repeats that matching it could take for ever.
    """
    if len(pattern) > 500 or sum(pattern.count(sign) for sign in "*+{") > 3:
        raise SubjectError("a pattern of adapter_config.json is not one that adapters need", got=pattern[:60])
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False
