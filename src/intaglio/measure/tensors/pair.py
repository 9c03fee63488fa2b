"""Two checkpoints side by side, row by row; the second may be an adapter on the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.errors import SubjectError
from intaglio.measure.tensors.lora import Adapter, open_adapter
from intaglio.measure.tensors.reading import Reader, rows_of
from intaglio.model.tensors import Checkpoint, open_checkpoint

Rows = tuple[np.ndarray, np.ndarray, Callable[[slice], np.ndarray]]


class Pair(ABC):
    """Rows of a tensor before and after."""

    base: Checkpoint

    @abstractmethod
    def both(self, name: str, first: int, last: int) -> Rows:
        """Rows before and after as float32 tables, and after less before by slice of these rows."""

    @abstractmethod
    def passing(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows before and after, and their difference where it is known better than by subtraction.

        Faster than `both`; what came from the same thread before is overwritten.
        """

    @abstractmethod
    def dtype(self, name: str) -> str:
        """How the second side stores the tensor."""

    @abstractmethod
    def still(self, name: str) -> bool:
        """Whether the tensor is known to be the same without reading it."""


class Two(Pair):
    """Two checkpoints of the same names and shapes."""

    def __init__(self, base: Checkpoint, other: Checkpoint) -> None:
        check_same(base, other)
        self.base, self.other = base, other
        self._readers = Reader(base), Reader(other)

    def both(self, name: str, first: int, last: int) -> Rows:
        a, b = (rows_of(side, name, first, last) for side in (self.base, self.other))
        return a, b, lambda part: b[part] - a[part]

    def passing(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        a, b = (reader.rows(name, first, last) for reader in self._readers)
        return a, b, None

    def dtype(self, name: str) -> str:
        return self.other.entry(name).dtype

    def still(self, name: str) -> bool:
        return False


class Merged(Pair):
    """A checkpoint, and the same with an adapter merged into it on the fly."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self.base, self.adapter, self._reader = base, adapter, Reader(base)

    def both(self, name: str, first: int, last: int) -> Rows:
        return self._merged(name, first, last, rows_of(self.base, name, first, last))

    def passing(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        a, b, d = self._merged(name, first, last, self._reader.rows(name, first, last))
        return a, b, None if name in self.adapter.replaced else d(slice(None))

    def _merged(self, name: str, first: int, last: int, a: np.ndarray) -> Rows:
        replaced, added = self.adapter.replaced.get(name), self.adapter.added.get(name)
        if added is None and replaced is None:
            return a, a, lambda part: np.zeros_like(a[part])
        delta = None if added is None else added.rows(first, last).reshape(a.shape)
        if replaced is None:
            return a, a + delta, delta.__getitem__
        b = rows_of(self.adapter.file, replaced, first, last)
        b = b if delta is None else b + delta  # peft saves an embedding beside the factors on it
        return a, b, lambda part: b[part] - a[part]

    def dtype(self, name: str) -> str:
        return self.base.entry(name).dtype

    def still(self, name: str) -> bool:
        return name not in self.adapter.added and name not in self.adapter.replaced


def open_pair(base: Checkpoint | str | Path, other: Checkpoint | str | Path) -> Two | Merged:
    """Two checkpoints, open or by path; the second may be a folder with a LoRA adapter on the first.

    Raises:
        SubjectError: one of them cannot be read, they are not of one shape, or the adapter does not fit the base.
    """
    first = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    if isinstance(other, Checkpoint):
        return Two(first, other)
    folder = Path(other).expanduser()
    if is_adapter(folder):
        return Merged(first, open_adapter(folder, first))
    return Two(first, open_checkpoint(other))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return folder.is_dir() and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def check_same(a: Any, b: Any) -> None:
    """Refuse checkpoints that cannot be laid side by side.

    Raises:
        SubjectError: the first tensor that only one of them has, or whose shapes differ.
    """
    for name, entry in a.entries.items():
        if name not in b.entries:
            raise SubjectError("the checkpoints are not of one shape: the second lacks a tensor", got=f"no {name}")
        if tuple(entry.shape) != tuple(b.entries[name].shape):
            raise SubjectError(
                f"the checkpoints are not of one shape: {name} differs", got=str(list(b.entries[name].shape)),
                expected=str(list(entry.shape)),
            )  # fmt: skip
    more = next((name for name in b.entries if name not in a.entries), None)
    if more is not None:
        raise SubjectError("the checkpoints are not of one shape: the second has a tensor more", got=more)
