"""What moved between two checkpoints, where, how far, and of what rank: rows for tables, pages and JSON.

    found = diff("base/", "tuned/")       # or a folder with a LoRA adapter on the first
    found.rows["tensors"], found.rows["heads"], found.rows["tokens"], found.rows["directions"]
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.data.pieces import Pieces, open_pieces
from intaglio.files import write_text
from intaglio.measure.tensors.directions import directions
from intaglio.measure.tensors.movement import Heads, Moved, Progress, Sums, heads_of, movement, shape_of
from intaglio.measure.tensors.norms import in_threads
from intaglio.measure.tensors.pair import Merged, Pair, open_pair
from intaglio.measure.tensors.spectra import Spectrum, effective_rank, principal_angles, spectrum, top_subspace
from intaglio.model.parts import Part, Parts
from intaglio.model.slices import Slice
from intaglio.model.tensors import Checkpoint

SCHEMA = 1
WORKERS = 2  # for spectra: each holds a few square matrices of the smaller side
TOP = 8  # directions whose span is compared
TOP_VALUES = 8
TOKENS = 24  # rows of an embedding that are listed
COLUMNS = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "norm", "other")  # of a layer, as it computes


@dataclass(eq=False)
class Difference:
    """What was found between two checkpoints.

    Attributes:
        about: names, sizes, totals (numbers, changed, relative, cosine), seed, how spectra were found, what is not known.
        rows: `tensors`, `heads`, `tokens`, `directions`: lists of plain rows.
    """

    about: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_json(self, path: str | Path | None = None) -> str:
        """All of it as JSON; also written to `path` if one is given.

        Raises:
            StoreError: it cannot be written.
        """
        text = json.dumps({"schema": SCHEMA, **self.about, "tables": self.rows}, ensure_ascii=False, indent=1, allow_nan=False)
        if path is not None:
            write_text(Path(path), text + "\n")
        return text


def diff(
    base: Checkpoint | str | Path, other: Checkpoint | str | Path, *, spectra: bool = True, tokens: bool = True,
    names: tuple[str, str] | None = None, seed: int = 0, workers: int | None = None, progress: Progress | None = None,
) -> Difference:  # fmt: skip
    """Lay two checkpoints of one shape side by side.

    Args:
        base, other: open checkpoints, files or folders; `other` may be a folder with a LoRA adapter on `base`.
        spectra: also ranks, top directions and the turning of subspaces: bound by matrix products, not by the disk.
        tokens: name tokens by their letters and not by their ids alone: reads the tokenizer.
        names: how the two are called; their folders' names if not given.
        seed: of the sampled spectra and of the null of the directions.
        workers: threads.
        progress: told (what, done, total).

    Raises:
        SubjectError: the checkpoints cannot be read, or are not of one shape.
    """
    pair = open_pair(base, other)
    parts = Parts(pair.base)
    heads = heads_of(parts)
    by_row = [n for n, p in parts.of.items() if str(p.address) in ("embed", "unembed") and len(pair.base.entry(n).shape) == 2]
    moved = movement(pair, heads, by_row, workers=workers, progress=progress)
    tensors = [_tensor_row(pair, parts.of[name], found) for name, found in moved.items()]
    head_rows = [_head_row(address, cuts, moved) for address, cuts in heads.cuts.items()]
    found = Difference(_about(pair, parts, moved, heads, names or _names(base, other), seed))
    pieces = open_pieces(pair.base.folder) if tokens else None
    if spectra:
        tops = _add_spectra(pair, moved, tensors, seed=seed, workers=workers, progress=progress)
        _add_head_ranks(pair, heads, head_rows)
        found.rows["directions"] = directions(pair.base, parts, tops, {r["tensor"]: r for r in tensors}, pieces, seed=seed)
    found.rows |= {"tensors": tensors, "heads": head_rows, "tokens": _token_rows(by_row, moved, pieces)}
    found.about |= {"spectra": spectra, "tokenizer": pieces is not None}
    return found


def _names(base: Checkpoint | str | Path, other: Checkpoint | str | Path) -> tuple[str, str]:
    first, second = (Path(getattr(p, "path", p)).expanduser().resolve() for p in (base, other))
    same = first.name == second.name
    return tuple(f"{p.parent.name}/{p.name}" if same else p.name for p in (first, second))


def _about(
    pair: Pair, parts: Parts, moved: dict[str, Moved], heads: Heads, names: tuple[str, str], seed: int
) -> dict[str, Any]:  # fmt: skip
    total = sum((m.sums for m in moved.values()), Sums(0.0, 0.0, 0.0, 0))
    bad = [name for name, m in moved.items() if not m.sums.finite]
    finite = sum((m.sums for m in moved.values() if m.sums.finite), Sums(0.0, 0.0, 0.0, 0))
    return {
        "base": names[0], "other": names[1], "adapter": isinstance(pair, Merged),
        "dtypes": sorted({e.dtype for e in pair.base.entries.values()}),
        "other_dtypes": sorted({pair.dtype(name) for name in pair.base.entries}),
        "n_tensors": len(moved), "numbers": sum(e.numbers for e in pair.base.entries.values()), "changed": total.changed,
        "still": sum(m.sums.changed == 0 for m in moved.values()), **finite.row(), "nonfinite": bad,
        "n_layers": parts.n_layers, "n_heads": max((len([a for a in heads.cuts if a.startswith(f"L{i}.")])
                                                   for i in range(parts.n_layers)), default=0),
        "heads_unknown": heads.unknown, "tied": parts.tied, "top": TOP, "seed": seed,
        "model_type": pair.base.config.get("model_type"),
    }  # fmt: skip


def column_of(part: Part) -> str:
    """The column of the layers x parts grid in which a tensor stands; embed, unembed ... outside the layers."""
    role = part.role.partition(".")[0]
    if part.address.part in ("attn", "mlp"):
        return {"per_head": "qkv", "": "other", "sink": "other"}.get(role, role)
    return part.address.part if part.address.layer is not None else str(part.address).removesuffix(".bias")


def _tensor_row(pair: Pair, part: Part, found: Moved) -> dict[str, Any]:
    entry = pair.base.entry(part.name)
    return {
        "tensor": part.name, "address": str(part.address), "layer": part.address.layer, "part": column_of(part),
        "shape": list(entry.shape), "numbers": entry.numbers, "dtype": entry.dtype, "other_dtype": pair.dtype(part.name),
        "changed": found.sums.changed, **found.sums.row(),
    }  # fmt: skip


def _head_row(address: str, cuts: list[Slice], moved: dict[str, Moved]) -> dict[str, Any]:
    """A head's movement over all its slices, and by matrix; shared keys and values count whole for every head."""
    by_role: dict[str, Sums] = {}
    for cut in cuts:
        role = cut.role.partition(".")[0]
        by_role[role] = by_role.get(role, Sums(0.0, 0.0, 0.0)) + moved[cut.tensor].of(cut)
    total = sum(by_role.values(), Sums(0.0, 0.0, 0.0))
    layer, _, head = address.removeprefix("L").partition(".attn.H")
    return {
        "address": address, "layer": int(layer), "head": int(head), **total.row(),
        "relative_by": {role: s.row()["relative"] for role, s in by_role.items()},
        "moved_l2_by": {role: s.row()["moved_l2"] for role, s in by_role.items()},
        "shared_with": sorted({a for cut in cuts for a in cut.shared_with}),
    }  # fmt: skip


def _token_rows(names: list[str], moved: dict[str, Moved], pieces: Pieces | None) -> list[dict[str, Any]]:
    """The rows of the embeddings that moved most, by length; rows that did not move are left out."""
    found = []
    for name in names:
        aa, _, dd = moved[name].rows
        ids = [int(i) for i in np.argsort(-dd, kind="stable")[:TOKENS] if dd[i] > 0]
        found += [{
            "tensor": name, "rank": rank, "token": i, "text": pieces(i) if pieces else None, "moved_l2": float(np.sqrt(dd[i])),
            "relative": float(np.sqrt(dd[i] / aa[i])) if aa[i] else None, "rows_moved": int((dd > 0).sum()), "rows": len(dd),
        } for rank, i in enumerate(ids)]  # fmt: skip
    return found


# --- spectra -------------------------------------------------------------------------------


def _add_spectra(
    pair: Pair, moved: dict[str, Moved], tensors: list[dict[str, Any]], *, seed: int, workers: int | None,
    progress: Progress | None,
) -> dict[str, Spectrum]:  # fmt: skip
    """Rank, top values and turning of every matrix that moved, into its row; gives the differences' spectra."""
    matrices = [r for r in tensors if len(r["shape"]) == 2 and min(r["shape"]) > 1]
    rows = [r for r in matrices if r["changed"] and moved[r["tensor"]].sums.finite]
    tops: dict[str, Spectrum] = {}
    for done, (row, (change, said)) in enumerate(zip(rows, in_threads(
        lambda r: _spectra(pair, r["tensor"], seed), rows, workers=min(workers or WORKERS, WORKERS)
    ))):  # fmt: skip
        row |= said
        tops[row["tensor"]] = change
        if progress:
            progress("spectra", done + 1, len(rows))
    return tops


def _spectra(pair: Pair, name: str, seed: int) -> tuple[Spectrum, dict[str, Any]]:
    shape = shape_of(pair, name)

    def before(first: int, last: int) -> np.ndarray:
        return pair.both(name, first, last)[0]

    def after(first: int, last: int) -> np.ndarray:
        return pair.both(name, first, last)[1]

    def change(first: int, last: int) -> np.ndarray:
        return pair.both(name, first, last)[2](slice(None))

    k = min(TOP, *shape)
    moved = spectrum(change, shape, k=min(k, 3), seed=seed)
    a, b = (top_subspace(side, shape, k, seed=seed) for side in (before, after))
    said = {
        "rank": moved.rank, "rank_low": moved.rank_low, "rank_high": moved.rank_high, "exact": moved.exact,
        "top_values": [float(v) for v in moved.values[:TOP_VALUES]], "top_share": moved.top_share,
    }  # fmt: skip
    turned = {}
    for side, x, y in (("left", a.left_RK, b.left_RK), ("right", a.right_CK, b.right_CK)):
        angles = principal_angles(x, y)
        if not len(angles):  # a matrix of zeros has no directions to turn from, or to
            return moved, said
        turned |= {f"turned_{side}_deg": float(angles.max()), f"shared_{side}": float((np.cos(np.radians(angles)) ** 2).mean())}
    return moved, said | turned | {"turned_k": k, "gap": a.gap(k)}


def _add_head_ranks(pair: Pair, heads: Heads, rows: list[dict[str, Any]]) -> None:
    """Effective ranks of the change of each head's matrices, and of all of them together."""
    values: dict[tuple, np.ndarray] = {}
    for row in rows:
        by_role: dict[str, np.ndarray] = {}
        for cut in heads.cuts[row["address"]]:
            if row["moved_l2"] and len(pair.base.entry(cut.tensor).shape) == 2:
                key = cut.tensor, cut.rows, cut.columns
                if key not in values:
                    values |= _unit_values(pair, heads, cut)
                by_role[cut.role] = values[key]
        row["rank_by"] = {role: effective_rank(v) for role, v in by_role.items()}
        row["rank"] = effective_rank(np.concatenate(list(by_role.values()))) if by_role else None


def _unit_values(pair: Pair, heads: Heads, cut: Slice) -> dict[tuple, np.ndarray]:
    """Singular values of the change of one slice; for columns, of all heads' columns of the tensor in one pass."""
    name = cut.tensor
    n_rows, n_columns = shape_of(pair, name)
    if cut.columns is None:
        d = pair.both(name, *cut.rows)[2](slice(None)).astype(np.float64)
        return {(name, cut.rows, None): _values_of(d @ d.T if len(d) <= d.shape[1] else d.T @ d)}
    size = cut.columns[1] - cut.columns[0]
    grams = np.zeros((n_columns // size, size, size))
    step = max(1, 2**22 // n_columns)
    for first in range(0, n_rows, step):
        d = pair.both(name, first, min(first + step, n_rows))[2](slice(None)).astype(np.float64)
        by_unit = d.reshape(len(d), -1, size).transpose(1, 0, 2)
        grams += by_unit.transpose(0, 2, 1) @ by_unit
    return {(name, None, (i * size, (i + 1) * size)): _values_of(gram) for i, gram in enumerate(grams)}


def _values_of(gram: np.ndarray) -> np.ndarray:
    squares = np.clip(np.linalg.eigvalsh(gram), 0, None)
    squares[squares < len(gram) * np.finfo(np.float64).eps * squares.max(initial=0)] = 0
    return np.sqrt(squares)
