"""How far every tensor and every head moved between two checkpoints: one pass over both, in blocks.

    d = b - a;   |b|^2 = |a|^2 + 2 a.d + |d|^2;   relative = |d| / |a|;   cosine = a.b / (|a| |b|)

The angle is taken from |d|^2 - (|b| - |a|)^2, which stays exact where the cosine is all but 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from intaglio.errors import IntaglioError
from intaglio.measure.tensors.norms import in_threads, row_dots
from intaglio.measure.tensors.pair import Pair
from intaglio.measure.tensors.reading import chunks, scratch, spans, table_of, table_shape
from intaglio.model.parts import Parts
from intaglio.model.slices import Slice, slices_of

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sums:
    """What two sets of numbers are to each other.

    Attributes:
        aa, ad, dd: a.a, a.(b - a), |b - a|^2.
        changed: numbers whose bits differ, as float32; None where that was not counted.
    """

    aa: float
    ad: float
    dd: float
    changed: int | None = None

    def __add__(self, other: Sums) -> Sums:
        both = None if self.changed is None or other.changed is None else self.changed + other.changed
        return Sums(self.aa + other.aa, self.ad + other.ad, self.dd + other.dd, both)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.aa) and math.isfinite(self.ad) and math.isfinite(self.dd)

    def row(self) -> dict[str, float | None]:
        """Lengths, relative movement, cosine and angle; None where they are not defined."""
        if not self.finite:
            return dict.fromkeys(("before_l2", "after_l2", "moved_l2", "relative", "cosine", "angle_deg"))
        a, d = math.sqrt(self.aa), math.sqrt(self.dd)
        b = math.sqrt(max(0.0, self.aa + 2 * self.ad + self.dd))
        relative = d / a if a else None if d else 0.0
        cosine = angle = None
        if a and b:
            longer = (2 * self.ad + self.dd) / (a + b)  # |b| - |a|
            off = min(2.0, max(0.0, (self.dd - longer**2) / (2 * a * b)))  # 1 - cosine
            cosine, angle = 1 - off, math.degrees(2 * math.asin(math.sqrt(off / 2)))
        return {"before_l2": a, "after_l2": b, "moved_l2": d, "relative": relative,
                "cosine": cosine, "angle_deg": angle}  # fmt: skip


@dataclass(eq=False)
class Moved:
    """One tensor's movement.

    Attributes:
        sums: of the whole tensor.
        rows: (3, rows) sums by row, where they were asked for.
        columns: (3, segments) sums by segment of columns, where they were asked for.
    """

    sums: Sums
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    segment: int = 0

    def of(self, cut: Slice) -> Sums:
        """The movement of a slice of the tensor."""
        span = cut.columns or cut.rows
        if span is None:
            return self.sums
        if self.segment:  # columns, or the numbers of a vector
            held, span = self.columns, tuple(n // self.segment for n in span)
        else:
            held = self.rows
        return Sums(*(float(s) for s in held[:, slice(*span)].sum(1)))


@dataclass(eq=False)
class Heads:
    """The heads of a checkpoint as slices; none where they are not known, with the reason."""

    cuts: dict[str, list[Slice]] = field(default_factory=dict)
    unknown: str = ""


def heads_of(parts: Parts) -> Heads:
    """Every head's slices by its address."""
    from intaglio.address import Address

    found = Heads()
    layers = [i for i in range(parts.n_layers) if "o" in parts.roles(i, "attn")]
    try:
        for i in layers:
            for h in range(parts.heads(i).n_heads):
                address = Address("attn", i, head=h)
                found.cuts[str(address)] = slices_of(parts, address)
    except IntaglioError as error:
        return Heads({}, str(error))
    return found


def movement(
    pair: Pair, heads: Heads, by_row: Iterable[str] = (), *, workers: int | None = None, progress: Progress | None = None
) -> dict[str, Moved]:  # fmt: skip
    """Every tensor's movement.

    Args:
        heads: whose slices are to be told apart.
        by_row: tensors whose rows are to be told apart too.
        workers: threads; as many as there are cores, at most four, if not given.
        progress: told (what, done, total) in numbers read.
    """
    kept, segments = set(by_row), {}
    for cut in (c for cuts in heads.cuts.values() for c in cuts):
        if cut.columns is not None or (cut.rows is not None and len(pair.base.entry(cut.tensor).shape) == 1):
            first, last = cut.columns or cut.rows
            segments[cut.tensor] = last - first
        elif cut.rows is not None:
            kept.add(cut.tensor)
    entries = pair.base.entries
    tasks = [(name, span) for name, e in entries.items() if e.numbers and len(e.shape) <= 8 for span in spans(e.shape)]
    parts: dict[str, list[tuple]] = {name: [] for name in entries}
    done, total = 0, sum(e.numbers for e in entries.values())
    work = in_threads(lambda task: _part(pair, *task, segments.get(task[0], 0)), tasks, workers=workers)
    for (name, _), part in zip(tasks, work):
        parts[name].append(part if name in kept else (part[0].sum(1, keepdims=True), *part[1:]))
        done += part[3]
        if progress:
            progress("reading", done, total)
    return {name: _joined(found, name in kept, segments.get(name, 0)) for name, found in parts.items()}


def _part(pair: Pair, name: str, span: tuple[int, int], segment: int) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """Sums by row and by segment of columns, numbers changed and numbers read, of some rows."""
    rows_read, width = table_of(pair.base.entry(name).shape, span)
    rows = np.zeros((3, rows_read))
    columns = np.zeros((3, width // segment)) if segment else None
    still, changed = pair.still(name), 0
    for first, last, part in chunks((rows_read, width), span):
        a, b, d = pair.passing(name, first, last)
        differs = 0 if still else _differing(a, b)
        changed += differs
        step = None if not differs else np.subtract(b, a, out=scratch("difference", a)) if d is None else d
        _add(rows[:, part], columns, a, step, segment)
    return rows, columns, changed, rows_read * width


def _differing(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers' bits differ."""
    return int(np.count_nonzero(np.not_equal(a.view(np.uint32), b.view(np.uint32), out=scratch("differs", a, np.bool_))))


def _add(rows: np.ndarray, columns: np.ndarray | None, x: np.ndarray, d: np.ndarray | None, segment: int) -> None:
    """Book a chunk: products along rows, or along segments of them."""
    pairs = [(0, x, x)] if d is None else [(0, x, x), (1, x, d), (2, d, d)]
    for i, left, right in pairs:
        if columns is None:
            rows[i] = row_dots(left, right)
        else:
            made = row_dots(left.reshape(-1, segment), right.reshape(-1, segment)).reshape(len(x), -1)
            rows[i], columns[i] = made.sum(1), columns[i] + made.sum(0)


def _joined(parts: list[tuple], kept: bool, segment: int) -> Moved:
    if not parts:
        return Moved(Sums(0.0, 0.0, 0.0, 0))
    rows = np.concatenate([p[0] for p in parts], 1)
    sums = Sums(*(float(s) for s in rows.sum(1)), changed=sum(p[2] for p in parts))
    columns = np.sum([p[1] for p in parts], 0) if segment else None
    return Moved(sums, rows if kept else None, columns, segment)


def shape_of(pair: Pair, name: str) -> tuple[int, int]:
    """A tensor's shape as rows and columns."""
    return table_shape(pair.base.entry(name).shape)
