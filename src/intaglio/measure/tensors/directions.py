"""Top directions of a change, as the tokens that lie nearest: read by a matrix, or written by it.

A direction in the residual stream is compared with every row of the embedding (what is read) or of the output matrix
(what is written), rows centred, by cosine, with the gain of the norm between them. Chance gives cosines too: a token is
named only beyond the 95th percentile of the largest cosine that random directions reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intaglio.address import Address
from intaglio.data.pieces import Pieces
from intaglio.measure.tensors.reading import rows_of, spans
from intaglio.measure.tensors.spectra import Spectrum
from intaglio.model.parts import Part, Parts

SHOWN = 24  # matrices whose directions are looked at: those that moved most, relatively
DRAWS = 64  # random directions of the null
TOKENS = 8  # named on either side
READS, WRITES = ("q", "k", "v", "qkv", "per_head", "gate", "up", "gate_up"), ("o", "down")
_SPAN_BYTES = 16 * 2**20


def directions(
    base: Any, parts: Parts, tops: dict[str, Spectrum], rows: dict[str, dict[str, Any]], pieces: Pieces | None, *, seed: int = 0
) -> list[dict[str, Any]]:  # fmt: skip
    """The first direction of the change of the matrices that moved most, with the tokens nearest to it.

    Args:
        tops: spectra of the changes, with vectors, by tensor.
        rows: the tensors' rows, for their relative movement.
    """
    table = _tables(parts)
    if not tops or pieces is None or table["embed"] is None:
        return []
    width = base.entry(table["embed"]).shape[1]
    ordered = sorted(tops, key=lambda n: -(rows[n]["relative"] or 0))
    looked = [_direction(base, parts, parts.of[n], tops[n], width) for n in ordered]
    looked = [x for x in looked if x is not None][:SHOWN]
    found = []
    for side in ("reads", "writes"):
        mine = [x for x in looked if x["side"] == side]
        if mine:
            _name_tokens(base, table["embed" if side == "reads" else "unembed"], mine, pieces, np.random.default_rng(seed))
            found += mine
    order = {n: i for i, n in enumerate(ordered)}
    return [{k: v for k, v in x.items() if k != "vector"} for x in sorted(found, key=lambda x: order[x["tensor"]])]


def _tables(parts: Parts) -> dict[str, str | None]:
    held = {str(p.address): n for n, p in parts.of.items() if len(parts.checkpoint.entry(n).shape) == 2}
    embed = held.get("embed")
    return {"embed": embed, "unembed": held.get("unembed", embed)}


def _direction(base: Any, parts: Parts, part: Part, top: Spectrum, width: int) -> dict[str, Any] | None:
    """The first singular vector on the side of the residual stream, as it stands before (after) the norm; else None."""
    reads = part.role in READS
    if not (reads or part.role in WRITES) or not top.left_RK.shape[1]:
        return None
    vector = (top.right_CK if reads != part.conv1d else top.left_RK)[:, 0]
    if len(vector) != width:
        return None
    layer, kind = part.address.layer, part.address.part
    gains = [(layer, kind)] if reads else [(layer, f"{kind}_post"), (None, None)]
    for where in gains:
        vector = vector * _gain(base, parts, *where, width)
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or not length:
        return None
    return {"tensor": part.name, "side": "reads" if reads else "writes", "share": top.top_share, "vector": vector / length}


def _gain(base: Any, parts: Parts, layer: int | None, sub: str | None, width: int) -> np.ndarray | float:
    """The gain of a norm as it is applied; 1 where there is none."""
    wanted = Address("norm", layer, sub=sub)
    name = next((n for n, p in parts.of.items() if p.address == wanted and p.role == "gain"), None)
    if name is None or base.entry(name).shape != (width,):
        return 1.0
    gain = base.read(name).astype(np.float64)
    return 1 + gain if str(base.config.get("model_type", "")).startswith("gemma") else gain


def _name_tokens(base: Any, name: str, looked: list[dict[str, Any]], pieces: Pieces, rng: np.random.Generator) -> None:
    """The tokens whose rows lie nearest to each direction, into its row."""
    entry = base.entry(name)
    count, width = entry.shape
    mean = np.zeros(width)
    for span in spans(entry.shape, _SPAN_BYTES):
        mean += rows_of(base, name, *span).sum(0, dtype=np.float64)
    mean = (mean / count).astype(np.float32)
    random = rng.standard_normal((width, DRAWS))
    probes = np.column_stack([*(x["vector"] for x in looked), random / np.linalg.norm(random, axis=0)]).astype(np.float32)
    cosines = np.empty((count, len(looked)), np.float32)
    largest = np.zeros(DRAWS)
    for span in spans(entry.shape, _SPAN_BYTES):
        rows = rows_of(base, name, *span) - mean
        found = rows @ probes / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-20)
        cosines[slice(*span)] = found[:, : len(looked)]
        largest = np.maximum(largest, np.abs(found[:, len(looked) :]).max(0))
    null = float(np.quantile(largest, 0.95))
    for i, x in enumerate(looked):
        column = cosines[:, i] * (1 if cosines[:, i].max() >= -cosines[:, i].min() else -1)  # the sign of a direction is free
        x["null"] = null
        for key, sign in (("towards", 1), ("away", -1)):
            best = np.argsort(-sign * column, kind="stable")[:TOKENS]
            x[key] = [{"token": int(t), "text": pieces(int(t)) or f"#{t}", "cosine": float(column[t])}
                      for t in best if sign * column[t] > null]  # fmt: skip
