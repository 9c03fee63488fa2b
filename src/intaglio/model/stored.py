"""The tensors of a checkpoint and their numbers, by memory map: in whole, by rows, or streamed.

What is asked for is mapped for as long as it is used, so a file larger than memory works. Never torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.errors import InputError, SubjectError
from intaglio.model.dtypes import BLOCKS, as_float32, decode
from intaglio.model.header import Entry, product, shown

BLOCK_BYTES = 16 * 2**20  # of float32, held at once while streaming


@dataclass(eq=False)
class Checkpoint:
    """The tensors of one model, as they lie on disk.

    Attributes:
        path: what was opened; a file or a folder.
        folder: where the files lie.
        entries: tensor name to its place, in the order of files and bytes.
        config: the model's configuration (config.json, or a GGUF's own keys in the same words); {} without one.
        metadata: text by name, from the files' headers.
        unindexed: tensors that a shard holds and the index does not name; they are not among the entries.
    """

    path: Path
    folder: Path
    entries: dict[str, Entry]
    config: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    unindexed: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that hold the entries."""
        return tuple(dict.fromkeys(e.file for e in self.entries.values()))

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.suffix == ".gguf"

    def entry(self, name: str) -> Entry:
        """The place of a tensor.

        Raises:
            InputError: there is no such tensor.
        """
        if name not in self.entries:
            raise InputError(f"{self.path} has no such tensor", got=shown(name))
        return self.entries[name]

    def data(self, entry: Entry, start: int, stop: int) -> np.ndarray:
        """Bytes `start` to `stop` of the tensor (from its own first byte), as a memory map.

        Raises:
            SubjectError: the file is no longer what it was when it was opened.
        """
        if not 0 <= start <= stop <= entry.bytes:
            raise AssertionError(f"{entry.name}: bytes {start} to {stop} of {entry.bytes}")
        if start == stop:
            return np.empty(0, np.uint8)
        try:
            mapped = np.memmap(self.folder / entry.file, np.uint8, "r", entry.start + start, (stop - start,))
        except (OSError, ValueError) as error:
            raise SubjectError(f"cannot read {self.folder / entry.file}: {shown(str(error))}") from None
        return mapped.view(np.ndarray)

    def read(self, name: str) -> np.ndarray:
        """All of a tensor in its shape: integers as they are, other types as float32.

        A complex tensor has one more axis, of its real and imaginary parts. Where nothing had to be decoded this is a view
        of the file, which cannot be written to.
        """
        entry = self.entry(name)
        if entry.dtype in BLOCKS and entry.dtype[0] in "IUB" and entry.dtype != "BF16":
            return decode(entry.dtype, self.data(entry, 0, entry.bytes)).reshape(entry.shape)
        return self._values(entry, 0, entry.shape[0] if entry.shape else 1).reshape((*entry.shape, *_more(entry)))

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last` (exclusive) of a tensor as float32; all others stay on disk."""
        entry = self.entry(name)
        if not entry.shape or not 0 <= first <= last <= entry.shape[0]:
            raise InputError(f"{shown(name)} has no such rows", got=f"{first}:{last}", expected=f"within {entry.shape}")
        step = _step(entry)
        low, high = first // step * step, min(-(-last // step) * step, entry.shape[0])
        return self._values(entry, low, high)[first - low : last - low]

    def blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """All of a tensor as float32 blocks of whole rows, in order; at least one row at a time.

        Args:
            max_bytes: of float32 in one block.
        """
        entry = self.entry(name)
        n_rows = entry.shape[0] if entry.shape else 1
        step = _step(entry)
        row_bytes = 4 * max(1, product(entry.shape[1:])) * (2 if entry.dtype == "C64" else 1)
        count = max(step, max_bytes // row_bytes // step * step)
        for first in range(0, n_rows if entry.numbers else 0, count):
            yield self._values(entry, first, min(first + count, n_rows))

    def pieces(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """All of a tensor's numbers as float32, flat and in the order of the file, however long its rows are."""
        entry = self.entry(name)
        per_block, block_bytes = entry.block
        blocks = max(1, max_bytes // (4 * per_block))
        for start in range(0, entry.bytes, blocks * block_bytes):
            yield _float32(entry, self.data(entry, start, min(start + blocks * block_bytes, entry.bytes)))

    def _values(self, entry: Entry, first: int, last: int) -> np.ndarray:
        """Rows as float32; the caller sees to whole blocks and whole heads."""
        row = product(entry.shape[1:])
        per_block, block_bytes = entry.block
        start, stop = (n * row // per_block * block_bytes for n in (first, last))
        if last * row % per_block:  # the end of a tensor whose last block has bits to spare
            stop = entry.bytes
        flat = _float32(entry, self.data(entry, start, stop))
        if not entry.shape:
            return flat
        values = flat.reshape(last - first, *entry.shape[1:], *_more(entry))
        return _unpaired(values, entry) if entry.paired else values


def _step(entry: Entry) -> int:
    """The fewest rows that can be read by themselves: whole blocks of numbers, whole heads."""
    per_block = entry.block[0]
    step = per_block // math.gcd(per_block, max(1, product(entry.shape[1:])))
    return max(step, entry.shape[0] // entry.paired) if entry.paired else step


def _more(entry: Entry) -> tuple[int, ...]:
    return (2,) if entry.dtype == "C64" else ()


def _float32(entry: Entry, data: np.ndarray) -> np.ndarray:
    if entry.dtype in BLOCKS:
        values = as_float32(entry.dtype, data)
    else:
        from intaglio.model.gguf_file import dequantised

        values = dequantised(entry.dtype, data)
    return values - np.float32(entry.shift) if entry.shift else values


def _unpaired(values: np.ndarray, entry: Entry) -> np.ndarray:
    """Rows of each head from rotary pairs (0, d/2, 1, d/2 + 1, ...) to two halves, as Hugging Face keeps them."""
    size = entry.shape[0] // entry.paired
    pairs = values.reshape(-1, size // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
