"""Two checkpoints side by side, row by row; the second may be an adapter on the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intaglio.errors import SubjectError
from intaglio.measure.tensors.lora import Adapter, open_adapter
from intaglio.measure.tensors.norms import rows_of
from intaglio.model.tensors import Checkpoint, open_checkpoint


class Pair(Protocol):
    """Rows of a tensor before and after."""

    base: Checkpoint

    def both(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows before, after, and after less before, as float32 tables."""

    def dtype(self, name: str) -> str:
        """How the second side stores the tensor."""

    def still(self, name: str) -> bool:
        """Whether the tensor is known to be the same without reading it."""


class Two:
    """Two checkpoints of the same names and shapes."""

    def __init__(self, base: Checkpoint, other: Checkpoint) -> None:
        self.base, self.other = base, other
        check_same(base, other)

    def both(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b = (rows_of(side, name, first, last) for side in (self.base, self.other))
        return a, b, b - a

    def dtype(self, name: str) -> str:
        return self.other.entry(name).dtype

    def still(self, name: str) -> bool:
        return False


class Merged:
    """A checkpoint, and the same with an adapter merged into it on the fly."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self.base, self.adapter = base, adapter

    def both(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a = rows_of(self.base, name, first, last)
        if name in self.adapter.replaced:
            b = rows_of(self.adapter.file, self.adapter.replaced[name], first, last)
            return a, b, b - a
        if name not in self.adapter.added:
            return a, a, np.zeros_like(a)
        delta = self.adapter.added[name].rows(first, last)
        return a, a + delta, delta

    def dtype(self, name: str) -> str:
        return self.base.entry(name).dtype

    def still(self, name: str) -> bool:
        return name not in self.adapter.added and name not in self.adapter.replaced


def open_pair(base: str | Path, other: str | Path) -> Two | Merged:
    """Two checkpoints, or a checkpoint and a folder with a LoRA adapter on it.

    Raises:
        SubjectError: one of them cannot be read, they are not of one shape, or the adapter does not fit the base.
    """
    first = open_checkpoint(base)
    folder = Path(other).expanduser()
    if folder.is_dir() and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return Merged(first, open_adapter(folder, first))
    return Two(first, open_checkpoint(other))


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
