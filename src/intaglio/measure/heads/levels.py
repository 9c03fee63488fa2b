"""Level by level of the architecture: how many numbers, how long, how many directions, how far moved.  [torch]

Every parameter belongs to one level, a tied matrix to `embed`; what has no level of its own (learnt positions, routers,
sinks) stands in `positions` and `other`, so that the rows' parameters sum to the model's. Singular values are exact, from the
Gram matrix over a matrix's smaller side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from intaglio.errors import InputError
from intaglio.measure.heads.circuits import effective_rank
from intaglio.model.anatomy import DOWN, Anatomy
from intaglio.model.families import place

LEVELS = ("embed", "positions", "q", "k", "v", "o", "gate", "up", "down", "norm", "unembed", "other")
LARGEST = 2048  # smaller side of a matrix whose singular values are worked out
_UP = ("up_proj", "c_fc", "dense_h_to_4h", "fc1", "fc_in")
_BOTH = ("gate_up_proj",)  # gate and up side by side


@dataclass
class _Level:
    parameters: int = 0
    squares: float = 0.0
    moved_squares: float = 0.0
    spectra: list[tuple[float, float, int]] = field(default_factory=list)  # effective rank, top share, largest rank
    moved_ranks: list[float] = field(default_factory=list)
    skipped: bool = False  # a matrix too large for its singular values


@torch.no_grad()
def level_rows(anatomy: Anatomy, other: Anatomy | None = None) -> list[dict[str, Any]]:
    """Rows of the atlas table `levels`.

    Args:
        other: another checkpoint of the same model, from which movement is measured (its initialisation, its base).

    Raises:
        InputError: the other checkpoint's tensors have other names or shapes.
    """
    found: dict[str, _Level] = defaultdict(_Level)
    theirs = _theirs(anatomy, other)
    for name, param in anatomy.model.named_parameters():
        before = dict(_split(anatomy, name, theirs[name])) if theirs else {}
        for level, part in _split(anatomy, name, param.detach()):
            _add(found[level], part, before.get(level), vector=level in ("norm", "other") or "bias" in name.rpartition(".")[2])
    total = sum(level.parameters for level in found.values())
    rows = [_row(name, found[name], total, moved=bool(theirs)) for name in LEVELS if name in found]
    if anatomy.unembed.weight is anatomy.embed.weight:
        rows.append(next(r for r in rows if r["level"] == "embed") | {"level": "unembed", "parameters": 0, "share": 0.0,
                                                                     "shared_with": "embed"})  # fmt: skip
    return sorted(rows, key=lambda row: LEVELS.index(row["level"]))


def _theirs(anatomy: Anatomy, other: Anatomy | None) -> dict[str, Tensor]:
    if other is None:
        return {}
    ours, theirs = (dict(a.model.named_parameters()) for a in (anatomy, other))
    if wrong := sorted(ours.keys() ^ theirs.keys()):
        raise InputError("the two checkpoints are of different models", got=f"{wrong[0]} in one of them only")
    for name, param in ours.items():
        if param.shape != theirs[name].shape:
            got = f"{name} of {list(param.shape)} and {list(theirs[name].shape)}"
            raise InputError("the two checkpoints have different shapes", got=got, expected="one model at two times")
    return {name: param.detach() for name, param in theirs.items()}


# --- which numbers belong where ------------------------------------------------------------


def _split(anatomy: Anatomy, name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Level and part of one parameter's values; fused ones give several."""
    module_name, _, leaf = name.rpartition(".")
    module = anatomy.model.get_submodule(module_name)
    if module is anatomy.embed or module is anatomy.unembed or module is anatomy.positions:
        yield {anatomy.embed: "embed", anatomy.unembed: "unembed"}.get(module, "positions"), value
        return
    where = place(module_name)
    if where.role in ("qkv", "per_head"):
        outputs_last = isinstance(module, Conv1D) or value.ndim == 1
        yield from _fused(anatomy, where.role, value if outputs_last else value.mT)
    elif where.role:
        yield where.role, value
    elif where.address.part == "norm" or (value.ndim == 1 and _is_norm(module)):
        yield "norm", value
    else:
        yield from _mlp(anatomy, (module_name.rpartition(".")[2], leaf), value)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _fused(anatomy: Anatomy, role: str, value_DX: Tensor) -> Iterator[tuple[str, Tensor]]:
    """q, k and v out of outputs that stand in the last axis."""
    dim, heads, key_heads = anatomy.head_dim, anatomy.n_heads, anatomy.n_key_heads
    if value_DX.shape[-1] != (heads + 2 * key_heads) * dim or (role == "per_head" and heads != key_heads):
        yield "other", value_DX
    elif role == "qkv":
        yield from zip("qkv", value_DX.split([heads * dim, key_heads * dim, key_heads * dim], -1))
    else:
        yield from zip("qkv", (part.flatten(-2) for part in value_DX.unflatten(-1, (heads, 3, dim)).unbind(-2)))


def _mlp(anatomy: Anatomy, words: tuple[str, str], value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """gate, up and down by the module's name, or the parameter's own in a mixture of experts."""
    word = next((w.removesuffix("_bias") for w in words if w.removesuffix("_bias") in (*_BOTH, *_UP, *DOWN, "gate_proj")), "")
    if word in _BOTH:
        if anatomy.model.config.get_text_config().model_type == "gpt_oss":  # by turns in the last axis
            yield from (("gate", value[..., ::2]), ("up", value[..., 1::2]))
        else:
            axis = -1 if value.ndim == 1 or words[1].endswith("_bias") else -2
            yield from zip(("gate", "up"), value.chunk(2, axis))
    else:
        yield "gate" if word == "gate_proj" else "up" if word in _UP else "down" if word in DOWN else "other", value


# --- what they are -------------------------------------------------------------------------


def _add(level: _Level, part: Tensor, before: Tensor | None, *, vector: bool) -> None:
    """Put one part to its level; a vector has no singular values (nor have experts' biases, which stand in rows)."""
    level.parameters += part.numel()
    level.squares += float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
    if before is not None:
        moved = part.float() - before.to(part.device).float()
        level.moved_squares += float(torch.linalg.vector_norm(moved, dtype=torch.float64)) ** 2
    if vector or part.ndim < 2:
        return
    for i, matrix in enumerate(part.flatten(0, -3) if part.ndim > 2 else part[None]):
        if min(matrix.shape) > LARGEST:
            level.skipped = True
            continue
        energy = squared_spectrum(matrix)
        top = float(energy.max() / energy.sum().clamp_min(1e-300))
        level.spectra.append((float(effective_rank(energy.sqrt())), top, len(energy)))
        if before is not None:
            change = (moved.flatten(0, -3) if moved.ndim > 2 else moved[None])[i]
            level.moved_ranks.append(float(effective_rank(squared_spectrum(change).sqrt())))


def squared_spectrum(matrix: Tensor) -> Tensor:
    """Squared singular values, ascending, in double precision."""
    rows = matrix.float() if matrix.shape[0] >= matrix.shape[1] else matrix.float().T
    return torch.linalg.eigvalsh((rows.T @ rows).double()).clamp_min(0)


def _row(name: str, level: _Level, total: int, *, moved: bool) -> dict[str, Any]:
    length, count = level.squares**0.5, len(level.spectra)
    rank, top, full = (sum(column) / count for column in zip(*level.spectra)) if count and not level.skipped else (None,) * 3
    return {
        "level": name, "parameters": level.parameters, "share": level.parameters / total, "weight_l2": length,
        "effective_rank": rank, "full_rank": full, "top_share": top,
        "moved": level.moved_squares**0.5 / length if moved and length else None,
        "moved_rank": sum(level.moved_ranks) / count if level.moved_ranks and not level.skipped else None,
        "shared_with": None,
    }  # fmt: skip
