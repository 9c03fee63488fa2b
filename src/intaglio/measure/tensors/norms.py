"""Sums of squares of what is too large to hold: by blocks of rows, several at once.

Products are taken in float32 along a row (or a segment of one) and added up in float64.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

CHUNK = 2**17  # numbers looked at together: a few such arrays fit a core's own cache
SPAN_BYTES = 8 * 2**20  # of float32 in one task of one thread
T, R = TypeVar("T"), TypeVar("R")


def row_dots(x_RC: np.ndarray, y_RC: np.ndarray) -> np.ndarray:
    """(R,) products of rows, as float64; each row's own sum is taken in float32."""
    if hasattr(np, "vecdot"):
        return np.vecdot(x_RC, y_RC).astype(np.float64)
    return np.einsum("rc,rc->r", x_RC, y_RC).astype(np.float64)


def table_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as rows and columns: what is left of a first dimension lies side by side; a vector is one row."""
    if len(shape) < 2:
        return 1, int(np.prod(shape, dtype=np.int64))
    return int(shape[0]), int(np.prod(shape[1:], dtype=np.int64))


def spans(shape: tuple[int, ...], max_bytes: int = SPAN_BYTES) -> Iterator[tuple[int, int]]:
    """Ranges of a tensor's first dimension, each of at most `max_bytes` of float32 (but at least one)."""
    if not shape:
        yield 0, 1
        return
    width = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    count = max(1, max_bytes // (4 * width))
    for first in range(0, shape[0], count):
        yield first, min(first + count, shape[0])


def rows_of(checkpoint: Any, name: str, first: int, last: int) -> np.ndarray:
    """Rows of a tensor as a float32 table; a vector's numbers as one row."""
    shape = checkpoint.entry(name).shape
    if not shape:
        return checkpoint.read(name).astype(np.float32, copy=False).reshape(1, 1)
    values = checkpoint.rows(name, first, last)
    return values.reshape(1, -1) if len(shape) == 1 else values.reshape(last - first, -1)


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows of about `CHUNK` numbers."""
    step = max(1, CHUNK // max(1, columns))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


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


def norms(checkpoint: Any, names: Iterable[str] | None = None, *, workers: int | None = None) -> dict[str, Norm]:
    """The length of every tensor, streamed.

    Args:
        checkpoint: an open checkpoint.
        names: which tensors; all if not given.
        workers: threads; as many as there are cores, at most four, if not given.
    """
    wanted = list(checkpoint.entries if names is None else names)
    tasks = [(name, span) for name in wanted for span in spans(checkpoint.entry(name).shape)]
    found = {name: [0.0, 0.0, 0, 0] for name in wanted}
    for (name, _), part in zip(tasks, in_threads(lambda task: _part(checkpoint, *task), tasks, workers=workers)):
        held = found[name]
        held[0] += part[0]
        held[1] = max(held[1], part[1])
        held[2] += part[2]
        held[3] += part[3]
    return {name: Norm(float(np.sqrt(s)), float(m), int(z), int(bad)) for name, (s, m, z, bad) in found.items()}


def _part(checkpoint: Any, name: str, span: tuple[int, int]) -> tuple[float, float, int, int]:
    table = rows_of(checkpoint, name, *span)
    total, largest, zeros, bad = 0.0, 0.0, 0, 0
    for part in chunks(*table.shape):
        x = table[part]
        square = float(row_dots(x, x).sum())
        if not np.isfinite(square):
            finite = np.isfinite(x)
            bad += int(x.size - finite.sum())
            x = np.where(finite, x, np.float32(0)).astype(np.float64)
            square = float((x * x).sum())
        total += square
        zeros += int(x.size - np.count_nonzero(x))
        largest = max(largest, float(x.max(initial=0)), -float(x.min(initial=0)))
    return total, largest, zeros, bad
