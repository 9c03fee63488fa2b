"""Sums of squares of what is too large to hold: by blocks of rows, several at once.

Products are taken in float32 along a row (or a segment of one) and added up in float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from intaglio.measure.tensors.reading import Reader, chunks, scratch, spans, table_of
from intaglio.model.tensors import Checkpoint

LONGEST = 2**16  # numbers whose products are added up in float32
T, R = TypeVar("T"), TypeVar("R")


def row_dots(x_RC: np.ndarray, y_RC: np.ndarray) -> np.ndarray:
    """(R,) products of rows, as float64; sums of up to `LONGEST` numbers are taken in float32."""
    if x_RC.shape[1] > LONGEST:
        return sum(row_dots(x_RC[:, i : i + LONGEST], y_RC[:, i : i + LONGEST]) for i in range(0, x_RC.shape[1], LONGEST))
    if hasattr(np, "vecdot"):
        return np.vecdot(x_RC, y_RC).astype(np.float64)
    return np.einsum("rc,rc->r", x_RC, y_RC).astype(np.float64)


def in_threads(work: Callable[[T], R], tasks: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """Results in the order of the tasks; numpy leaves the interpreter free while it computes."""
    workers = workers or min(4, os.cpu_count() or 1)
    if workers == 1:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, tasks)


@dataclass(frozen=True)
class Norm:
    """What one tensor weighs.

    Attributes:
        l2: length of all its numbers (Frobenius).
        largest: the largest size of a number.
        zeros: numbers that are exactly zero.
        nonfinite: numbers that are infinite or not a number; the length leaves them out.
    """

    l2: float
    largest: float
    zeros: int
    nonfinite: int


def norms(checkpoint: Checkpoint, names: Iterable[str] | None = None, *, workers: int | None = None) -> dict[str, Norm]:
    """The length of every tensor, streamed.

    Args:
        checkpoint: an open checkpoint.
        names: which tensors; all if not given.
        workers: threads; as many as there are cores, at most four, if not given.
    """
    wanted = list(checkpoint.entries if names is None else names)
    tasks = [(name, span) for name in wanted for span in spans(checkpoint.entry(name).shape)]
    found = {name: [0.0, 0.0, 0, 0] for name in wanted}
    reader = Reader(checkpoint)
    for (name, _), part in zip(tasks, in_threads(lambda task: _part(reader, *task), tasks, workers=workers)):
        held = found[name]
        held[0] += part[0]
        held[1] = max(held[1], part[1])
        held[2] += part[2]
        held[3] += part[3]
    return {name: Norm(math.sqrt(s), m, z, bad) for name, (s, m, z, bad) in found.items()}


def _part(reader: Reader, name: str, span: tuple[int, int]) -> tuple[float, float, int, int]:
    """Sum of squares, largest size, zeros and numbers that are not finite, of some rows."""
    total, largest, zeros, bad = 0.0, 0.0, 0, 0
    for first, last, _ in chunks(table_of(reader.checkpoint.entry(name).shape, span), span):
        x = reader.rows(name, first, last)
        zeros += int(np.count_nonzero(np.equal(x, 0, out=scratch("zero", x, np.bool_))))
        square = float(row_dots(x, x).sum())
        if not np.isfinite(square):
            finite = np.isfinite(x)
            bad += int(x.size - finite.sum())
            x = np.where(finite, x, np.float32(0)).astype(np.float64)
            square = float((x * x).sum())
        total += square
        largest = max(largest, float(x.max(initial=0)), -float(x.min(initial=0)))
    return total, largest, zeros, bad
