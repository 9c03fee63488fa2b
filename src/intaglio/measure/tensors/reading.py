"""Rows of tensors in passing: read into a buffer that is used again, which is faster than mapping them anew each time."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Iterator

import numpy as np

from intaglio.errors import SubjectError
from intaglio.model.dtypes import as_float32
from intaglio.model.tensors import Checkpoint

CHUNK = 2**17  # numbers looked at together: a few such arrays fit a core's own cache
SPAN_BYTES = 8 * 2**20  # of float32 in one task of one thread
_own = threading.local()


def table_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as rows and columns: what is left of a first dimension lies side by side; a vector is one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return int(shape[0]), math.prod(shape[1:])


def spans(shape: tuple[int, ...], max_bytes: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of a tensor's first dimension, each of at most `max_bytes` (`SPAN_BYTES`) of float32, but at least one."""
    max_bytes = max_bytes or SPAN_BYTES
    if not shape:
        yield 0, 1
        return
    width = max(1, math.prod(shape[1:]))
    count = max(1, max_bytes // (4 * width))
    for first in range(0, shape[0], count):
        yield first, min(first + count, shape[0])


def rows_of(checkpoint: Checkpoint, name: str, first: int, last: int) -> np.ndarray:
    """Rows of a tensor as a float32 table; a vector's numbers as one row."""
    shape = checkpoint.entry(name).shape
    if not shape:
        return checkpoint.read(name).astype(np.float32, copy=False).reshape(1, 1)
    values = checkpoint.rows(name, first, last)
    return values.reshape(1, -1) if len(shape) == 1 else values.reshape(last - first, -1)


def table_of(shape: tuple[int, ...], span: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a range of the first dimension: a vector's numbers are one row."""
    return (span[1] - span[0], table_shape(shape)[1]) if len(shape) > 1 else (1, span[1] - span[0])


def chunks(table: tuple[int, int], span: tuple[int, int]) -> Iterator[tuple[int, int, slice]]:
    """Parts of about `CHUNK` numbers: first and last in the tensor's first dimension, and as rows of the table.

    Args:
        table: what `table_of` gives for the span; a vector is taken whole.
    """
    rows, columns = table
    if rows != span[1] - span[0]:
        yield *span, slice(0, 1)
        return
    step = max(1, CHUNK // max(1, columns))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        yield span[0] + first, span[0] + last, slice(first, last)


def scratch(what: str, like: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Memory of this thread that is used again: fresh memory costs more than the arithmetic in it."""
    held = getattr(_own, what, None)
    if held is None or len(held) < like.size:
        held = np.empty(like.size, dtype)
        setattr(_own, what, held)
    return held[: like.size].reshape(like.shape)


class Reader:
    """Reads one checkpoint row by row, from several threads; its files are closed when it is gone."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self._files, self._lock, self._own = checkpoint, {}, threading.Lock(), threading.local()
        weakref.finalize(self, _close, self._files)

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows as a float32 table; what came from the same thread before is overwritten.

        Raises:
            SubjectError: the file is no longer what it was when it was opened.
        """
        entry = self.checkpoint.entry(name)
        if entry.block[0] != 1 or entry.paired or entry.shift or not entry.shape or entry.dtype == "C64":
            return rows_of(self.checkpoint, name, first, last)
        width = table_shape(entry.shape)[1] if len(entry.shape) > 1 else 1
        row_bytes = width * entry.block[1]
        data = self._filled(entry.file, entry.start + first * row_bytes, (last - first) * row_bytes)
        values = as_float32(entry.dtype, data)
        return values.reshape(1, -1) if len(entry.shape) == 1 else values.reshape(last - first, width)

    def _filled(self, file: str, start: int, count: int) -> np.ndarray:
        held = getattr(self._own, "buffer", None)
        if held is None or len(held) < count:
            held = self._own.buffer = np.empty(count, np.uint8)
        done, view = 0, memoryview(held)
        while done < count:
            got = os.preadv(self._file(file), [view[done:count]], start + done)
            if got == 0:
                raise SubjectError(f"cannot read {self.checkpoint.folder / file}: it ends too early")
            done += got
        return held[:count]

    def _file(self, name: str) -> int:
        with self._lock:
            if name not in self._files:
                try:
                    self._files[name] = os.open(self.checkpoint.folder / name, os.O_RDONLY)
                except OSError as error:
                    raise SubjectError(f"cannot read {self.checkpoint.folder / name}: {error.strerror}") from None
            return self._files[name]


def _close(files: dict[str, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
