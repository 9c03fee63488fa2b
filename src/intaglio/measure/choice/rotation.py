"""Rotary positions as a model really applies them: found by numbers, proved, run with other angles.  [torch]

    pair j of a query or key at position p is turned by p * frequency[j];  score = scaling * sum over pairs

A layer is handed cosines and sines; some buffer of the model must explain them, and a run of the layer with no turn at
all must give the queries and keys from which our own turn makes the ones that met. Source: Su et al. 2104.09864.
Legend: P pairs, H heads, T positions, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Skip
from intaglio.model.attention import Attention, switched
from intaglio.model.capture import LayerCapture, first_output
from intaglio.model.modes import evaluating
from intaglio.model.proof import raw_logits, shaped

LIMIT, COARSE = 1e-3, 3e-2  # in units of the largest number compared; COARSE for 16 bits
TOKENS = 512  # run side by side
QUERIES = 64  # last ones whose scores are compared
COLUMNS: dict[str, Callable[[Tensor], Tensor]] = {  # how a table's columns hold the pairs
    "halves": lambda x: torch.cat([x, x], -1), "neighbours": lambda x: x.repeat_interleave(2, -1), "once": lambda x: x,
}


@dataclass(frozen=True, eq=False)
class Rotation:
    """How one layer turns its queries and keys.

    Attributes:
        frequencies_P: radians per position, double precision.
        scale: by which cosines and sines are multiplied (YaRN).
        columns: how the layer's tables hold the pairs.
        halves: pair j is made of coordinates j and j + P; else of 2 j and 2 j + 1. Later coordinates are not turned.
        q_Hd, k_Hd: mean query and key before the turn, by query head, the first token left out; the scale is in them.
        error: largest difference of our scores from those that met, in units of the largest score.
    """

    frequencies_P: Tensor
    scale: float
    columns: str
    halves: bool
    q_Hd: Tensor
    k_Hd: Tensor
    error: float

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., P) first and second coordinate of every pair, and what is not turned."""
        count = len(self.frequencies_P)
        turned, rest = x[..., : 2 * count], x[..., 2 * count :]
        if self.halves:
            return turned[..., :count], turned[..., count:], rest
        return turned[..., ::2], turned[..., 1::2], rest


@torch.no_grad()
def rotations_of(found: Decision) -> list[Rotation | None]:
    """The rotation of every layer; None where a layer turns nothing.

    Raises:
        Skip: the model has no rotary positions, or they cannot be seen or proved.
    """
    base = found.base
    tables = [_tables(layer) for layer in base.layers]
    if found.anatomy.bypasses or not any(tables):
        raise Skip(_other_kind(found))
    if len(found.ids) < 2:
        raise Skip("one_token")
    rotations = [None if table is None else _proved(found, i, table) for i, table in enumerate(tables)]
    if not any(rotations):
        raise Skip("unfound")
    return rotations


def _tables(layer: LayerCapture) -> tuple[Tensor, Tensor] | None:
    """The cosines and sines, (1, T, columns) each, that a layer was handed."""
    for value in (*layer.call["args"], *layer.call["kwargs"].values()):
        if _is_tables(value):
            return value[0], value[1]
    return None


def _is_tables(value: Any) -> bool:
    if not (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, Tensor) and v.ndim == 3 for v in value)):
        return False
    if value[0].shape != value[1].shape:
        return False
    sizes = value[0].double().square() + value[1].double().square()
    return bool((sizes - sizes.mean()).abs().max() < COARSE * sizes.mean())


def _with_tables(call: dict[str, Any], cos: Tensor, sin: Tensor) -> tuple[tuple, dict]:
    """A layer's arguments with other tables."""
    def put(value: Any) -> Any:
        return (cos, sin) if _is_tables(value) else value

    return tuple(put(v) for v in call["args"]), {k: put(v) for k, v in call["kwargs"].items()}


def _other_kind(found: Decision) -> str:
    """Which positions a model has that hands its layers no tables of cosines and sines."""
    positions = found.anatomy.positions
    if positions is not None:
        return "learnt" if any(True for _ in positions.parameters()) else "sinusoidal"
    handed = any(layer.call["kwargs"].get("alibi") is not None for layer in found.base.layers)
    if handed or getattr(found.anatomy.model.config.get_text_config(), "alibi", False):
        return "alibi"
    return "unseen" if found.anatomy.bypasses else "unfound"


def _unturned(found: Decision, index: int, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(H, T, d) queries and keys of a layer on what it read, with angles of 0."""
    caught: list[Attention] = []
    layer = found.base.layers[index]
    args, kwargs = _with_tables(layer.call, torch.full_like(table[0], _scale(table)), torch.zeros_like(table[1]))
    with evaluating(found.anatomy.model), switched(found.anatomy.model, caught.append):
        found.anatomy.blocks[index].layer(layer.resid_BTD, *args, **kwargs)
    return caught[0].q_BHTd[0].double(), caught[0].k_BHTd[0].double()


def _scale(table: tuple[Tensor, Tensor]) -> float:
    return float((table[0].double().square() + table[1].double().square()).mean().sqrt())


def _proved(found: Decision, index: int, table: tuple[Tensor, Tensor]) -> Rotation | None:
    """The rotation by which the layer's own queries and keys come from those with angles of 0; None if nothing is turned."""
    met = found.base.layers[index].attention
    wanted = met.q_BHTd[0].double(), met.k_BHTd[0].double()
    q, k = _unturned(found, index, table)
    limit = LIMIT if met.q_BHTd.dtype in (torch.float32, torch.float64) else COARSE
    positions = torch.arange(q.shape[1], device=q.device, dtype=torch.double)
    tried = []
    for frequencies_P, columns in _explaining(found, table, limit):
        for halves in (True, False):
            one = Rotation(frequencies_P, _scale(table), columns, halves, q[:, 1:].mean(1), k[:, 1:].mean(1), 0.0)
            ours = turned(one, q, positions), turned(one, k, positions)
            tried.append(replace(one, error=max(*map(_off, ours, wanted), _off(_scores(*ours), _scores(*wanted)))))
    if tried and (best := min(tried, key=lambda one: one.error)).error < limit:
        return best
    still = max(map(_off, (q, k), wanted))
    if still < limit:
        return None
    raise Skip("unproved", layer=f"L{index}", error=f"{min((one.error for one in tried), default=still):.1e}")


def _explaining(found: Decision, table: tuple[Tensor, Tensor], limit: float) -> list[tuple[Tensor, str]]:
    """Buffers of the model, taken as frequencies, that give the table; and how its columns hold them."""
    size, explaining = _scale(table), []
    positions = torch.arange(table[0].shape[1], device=table[0].device, dtype=torch.double)
    for buffer in found.anatomy.model.buffers():
        for columns, spread in COLUMNS.items():
            if buffer.ndim != 1 or not buffer.is_floating_point() or len(spread(buffer)) != table[0].shape[-1]:
                continue
            angles = spread(positions[:, None] * buffer.double())
            ours = angles.cos() * size, angles.sin() * size
            error = max(float((made - given[0].double()).abs().max()) for made, given in zip(ours, table))
            if error < limit * max(1.0, size):
                explaining.append((buffer.detach().double(), columns))
    return explaining


def turned(rotation: Rotation, x_HTd: Tensor, positions_T: Tensor) -> Tensor:
    """Queries or keys turned by their positions."""
    angles = positions_T[:, None] * rotation.frequencies_P
    cos, sin = angles.cos(), angles.sin()
    a, b, rest = rotation.pairs(x_HTd)
    pair = (a * cos - b * sin, b * cos + a * sin)
    both = torch.cat(pair, -1) if rotation.halves else torch.stack(pair, -1).flatten(-2)
    return torch.cat([both, rest], -1)


def _scores(q_HTd: Tensor, k_HTd: Tensor) -> Tensor:
    return q_HTd[:, -QUERIES:] @ k_HTd.mT


def _off(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


@torch.no_grad()
def run_turned(found: Decision, rotations: Sequence[Rotation | None], scales: Sequence[tuple[float, float]]) -> Tensor:
    """(N, V) logits, in double precision, of N runs with other angles; weights and buffers are not touched.

    Args:
        scales: for each run, by what positions and the base are multiplied: frequency j of P becomes
            base factor ** (-j / P) times itself.
    """
    model, base, done = found.anatomy.model, found.base, []
    size = max(1, TOKENS // len(found.ids))
    with evaluating(model), switched(model):
        for start in range(0, len(scales), size):
            some = scales[start : start + size]
            hidden = base.layers[0].resid_BTD.expand(len(some), -1, -1).contiguous()
            for block, layer, rotation in zip(found.anatomy.blocks, base.layers, rotations):
                args, kwargs = layer.call["args"], layer.call["kwargs"]
                if rotation is not None:
                    args, kwargs = _with_tables(layer.call, *_scaled(rotation, layer, some))
                hidden = first_output(block.layer(hidden, *args, **kwargs))
            done.append(shaped(found.anatomy, raw_logits(found.anatomy, found.anatomy.norm(hidden[:, -1]))).double())
    return torch.cat(done)


def _scaled(rotation: Rotation, layer: LayerCapture, scales: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """(rows, T, columns) cosines and sines of every run."""
    frequencies_P, like = rotation.frequencies_P, layer.resid_BTD
    exponent_P = -torch.arange(len(frequencies_P), device=like.device, dtype=torch.double) / len(frequencies_P)
    places_T = torch.arange(like.shape[1], device=like.device, dtype=torch.double)
    angles = torch.stack([p * places_T[:, None] * frequencies_P * b**exponent_P for p, b in scales])
    wide = COLUMNS[rotation.columns](angles)
    return (wide.cos() * rotation.scale).to(like.dtype), (wide.sin() * rotation.scale).to(like.dtype)
