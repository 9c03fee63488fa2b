"""The header of a GGUF file, read strictly, and its blocks of numbers, dequantised by the gguf library.

The header is walked here with every length held against the file's end first; the library's own reader
trusts the lengths that it meets, so a hostile file could keep it busy for ever.

    magic, version, number of tensors, number of keys
    keys      name, type, value (text, number, or a list of them)
    tensors   name, dimensions (innermost first), type, offset
    data      from the next multiple of the alignment
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.errors import SubjectError
from intaglio.model.dtypes import BLOCKS
from intaglio.model.gguf_names import as_hugging_face
from intaglio.model.header import MAX_BYTES, Entry, shown

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
_KEPT = 4096  # a longer list (a vocabulary) is stepped over, a longer text is cut
_FEWEST = 24  # bytes of the shortest description of a tensor


class _Short(Exception):
    """The file ends, or says what cannot be."""


def read_gguf(path: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """The tensors of a GGUF in the order of their bytes, and its configuration in Hugging Face's words.

    Raises:
        SubjectError: the file cannot be read, or its header is not true.
    """
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    except (OSError, ValueError) as error:
        raise SubjectError(f"cannot read {path}: {shown(str(error))}") from None
    try:
        keys, entries = _Walk(memoryview(data), path.name).header()
    except _Short as fault:
        raise SubjectError(f"{path} is a malformed GGUF: {fault}",
                           expected="a file whose declared shapes match its data") from None  # fmt: skip
    parts = keys.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise SubjectError(f"{path} is one of {parts} parts of a GGUF", expected="the parts merged into one file")
    return as_hugging_face(entries, keys)


def dequantised(dtype: str, data: np.ndarray) -> np.ndarray:
    """Whole blocks of a GGUF type as float32, flat.

    Raises:
        SubjectError: the gguf library cannot dequantise this type.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[dtype]
    try:
        return dequantize(data.reshape(-1, GGML_QUANT_SIZES[kind][1]), kind).reshape(-1).astype(np.float32, copy=False)
    except NotImplementedError:
        raise SubjectError(f"the numbers of type {dtype} cannot be read") from None


class _Walk:
    """A place in the header that only moves forward, and never past the file's end."""

    def __init__(self, data: memoryview, file: str) -> None:
        self.data, self.file, self.at = data, file, 0

    def header(self) -> tuple[dict[str, Any], list[Entry]]:
        if bytes(self.take(4)) != b"GGUF":
            raise _Short("it does not begin with GGUF")
        version = self.number("<I")
        if version not in (2, 3):
            raise _Short(f"its version is {version}; 2 and 3 are known, little-endian")
        n_tensors, n_keys = self.number("<Q"), self.number("<Q")
        if n_tensors * _FEWEST + n_keys * 13 > len(self.data):
            raise _Short(f"it claims {n_tensors} tensors and {n_keys} keys, more than it has bytes for")
        keys: dict[str, Any] = {}
        for _ in range(n_keys):
            name = self.text()
            if name in keys:
                raise _Short(f"the key {shown(name)} stands twice")
            keys[name] = self.value(self.number("<I"), nested=False)
        return keys, self.tensors(n_tensors, keys)

    def tensors(self, count: int, keys: dict[str, Any]) -> list[Entry]:
        found = [self.tensor() for _ in range(count)]
        align = keys.get("general.alignment", 32)
        if type(align) is not int or align <= 0 or align & (align - 1) or align > 2**20:
            raise _Short(f"its alignment is {align!r}, not a power of two")
        base = -(-self.at // align) * align
        names, at = set(), base
        placed = [Entry(n, d, s, self.file, base + o, base + o + b, k) for n, d, s, o, b, k in found]
        for e in sorted(placed, key=lambda e: (e.start, e.stop)):
            if e.name in names:
                raise _Short(f"the tensor {shown(e.name)} stands twice")
            if e.start != -(-at // align) * align:
                raise _Short(f"the tensor {shown(e.name)} begins at byte {e.start:,} instead of {-(-at // align) * align:,}")
            names.add(e.name)
            at = e.stop
        if at > len(self.data):
            raise _Short(f"it has {len(self.data):,} bytes, but its tensors need {at:,}")
        return sorted(placed, key=lambda e: e.start)

    def tensor(self) -> tuple[str, str, tuple[int, ...], int, int, tuple[int, int]]:
        """Name, type, shape (outermost first), offset, bytes and block of the next tensor."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, n_dims = self.text(), self.number("<I")
        if n_dims > 4:
            raise _Short(f"the tensor {shown(name)} has {n_dims} dimensions")
        dims = [self.number("<Q") for _ in range(n_dims)]
        kind, offset = self.number("<I"), self.number("<Q")
        try:
            dtype = GGMLQuantizationType(kind)
            per_block, block_bytes = GGML_QUANT_SIZES[dtype]
        except (ValueError, KeyError):
            raise _Short(f"the tensor {shown(name)} has an unknown type {kind}") from None
        numbers = 1
        for n in dims:
            numbers *= n
            if numbers > MAX_BYTES:
                raise _Short(f"the shape of the tensor {shown(name)} is beyond any file")
        if (dims[0] if dims else 1) % per_block:
            raise _Short(f"the rows of {shown(name)} are not whole blocks of {per_block}")
        size = numbers // per_block * block_bytes
        if offset > MAX_BYTES:
            raise _Short(f"the tensor {shown(name)} begins beyond any file")
        block = BLOCKS.get(dtype.name, (per_block, block_bytes))
        return name, dtype.name, tuple(reversed(dims)), offset, size, block

    def value(self, kind: int, *, nested: bool) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text(cut=_KEPT)
        if kind != _LIST or nested:
            raise _Short(f"a value has the unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        each = struct.calcsize(_SCALARS[inner]) if inner in _SCALARS else 8
        if count * each > len(self.data) - self.at:
            raise _Short(f"a list of {count} values is longer than the file")
        if inner in _SCALARS and count > _KEPT:
            self.take(count * each)
            return None
        found = [self.value(inner, nested=True) if count <= _KEPT else self.skip() for _ in range(count)]
        return found if count <= _KEPT else None

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, cut: int = 2**16) -> str:
        return bytes(self.take(self.number("<Q"))[:cut]).decode("utf-8", "replace")

    def skip(self) -> None:
        self.take(self.number("<Q"))

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise _Short("it ends within its header")
        self.at += count
        return self.data[self.at - count : self.at]
