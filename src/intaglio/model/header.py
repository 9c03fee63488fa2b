"""The header of a safetensors file, read strictly: nothing in it is believed before it is checked.

    8 bytes    length of the header, little-endian
    header     JSON: name -> {dtype, shape, data_offsets}, and __metadata__: text -> text
    data       every byte belongs to exactly one tensor

What is refused: a length beyond the file or beyond 100 MB, anything that is not that JSON, a name twice, a
shape whose bytes are not those of its offsets, overlaps, gaps, bytes after the last tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.errors import SubjectError
from intaglio.model.dtypes import BLOCKS

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_MARKS = 2_000_000  # commas and brackets; a tensor takes about ten. Beyond it, parsing alone would fill the memory
MAX_BYTES = 2**63 - 1
_FIELDS = {"dtype", "shape", "data_offsets"}
Piece = tuple[str, tuple[int, ...], bytes]  # a tensor to write: type, shape, numbers


@dataclass(frozen=True)
class Entry:
    """Where a tensor's numbers lie.

    Attributes:
        name: the tensor's name; for a GGUF, as Hugging Face has it.
        dtype: as the format calls it, such as BF16; for a GGUF, such as Q4_1.
        shape: outermost dimension first.
        file: name of the file, relative to the checkpoint's folder.
        start, stop: absolute byte offsets in the file; `stop` is the byte after the last.
        block: numbers per block and bytes per block; a block cannot be divided.
        stored: its name in the file, where that is another.
        paired: heads within which rows lie in rotary pairs (llama-family GGUF); 0: rows lie as named.
        shift: what a GGUF adds to the stored values (1 for Gemma's gains).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int
    block: tuple[int, int]
    stored: str = ""
    paired: int = 0
    shift: float = 0.0

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return product(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self.stop - self.start


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of one safetensors file, in the order of their bytes, and its metadata.

    Raises:
        SubjectError: the file cannot be read, or its header is not true.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8:
                raise _bad(path, "it is too short", got=f"{size} bytes", expected="8 bytes that give the header's length")
            if length > MAX_HEADER_BYTES:
                raise _bad(path, "its header claims an absurd size", got=f"{length:,} bytes",
                           expected=f"at most {MAX_HEADER_BYTES:,}")  # fmt: skip
            if 8 + length > size:
                raise _bad(path, "it ends within its header", got=f"{size:,} bytes", expected=f"at least {8 + length:,}")
            text = file.read(length)
    except OSError as error:
        raise SubjectError(f"cannot read {path}: {error.strerror or error}") from None
    if len(text) != length:
        raise _bad(path, "it ends within its header")
    return parse_header(text, size - 8 - length, path)


def parse_header(text: bytes, data_bytes: int, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """What a header says, once all of it is checked against the bytes that follow it.

    Args:
        text: the header's bytes.
        data_bytes: how many bytes follow it.
        path: of the file, for the names of entries and errors.
    """
    found = _json(text, path)
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "its metadata is not text by name")
    entries = [_entry(name, value, 8 + len(text), path) for name, value in found.items()]
    entries.sort(key=lambda e: (e.start, e.stop))
    at = 8 + len(text)
    for e in entries:
        if e.start < at:
            raise _bad(path, f"the bytes of {shown(e.name)} overlap those of another tensor",
                       got=f"start {e.start:,}", expected=f"{at:,}")  # fmt: skip
        if e.start > at:
            raise _bad(path, f"there are bytes before {shown(e.name)} that belong to no tensor",
                       got=f"start {e.start:,}", expected=f"{at:,}")  # fmt: skip
        at = e.stop
    if at > 8 + len(text) + data_bytes:
        raise _bad(path, "it is cut short", got=f"{8 + len(text) + data_bytes:,} bytes", expected=f"{at:,}")
    if at < 8 + len(text) + data_bytes:
        raise _bad(path, "there are bytes after the last tensor", got=f"{8 + len(text) + data_bytes:,} bytes",
                   expected=f"{at:,}")  # fmt: skip
    return {e.name: e for e in entries}, metadata


def write_safetensors(path: Path, pieces: dict[str, Piece], metadata: dict[str, str]) -> None:
    """A safetensors file of any types, from their bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in pieces.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in pieces.values():
            file.write(data)


def product(shape: tuple[int, ...]) -> int:
    """How many numbers a shape has."""
    total = 1
    for n in shape:
        total *= n
    return total


def shown(text: str) -> str:
    """A name from a file, fit for a line: short, and without control characters."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:120])
    return plain + ("..." if len(text) > 120 else "")


def load_json(text: bytes, what: str) -> dict[str, Any]:
    """An object without a name twice.

    Raises:
        SubjectError: it is not JSON in UTF-8, or not an object, or has a name twice, or more values than any model needs.
    """
    marks = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if marks > MAX_MARKS:
        raise SubjectError(f"{what} is of absurd size", got=f"{marks:,} values", expected=f"at most {MAX_MARKS:,}")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise SubjectError(f"{what} is nested too deeply") from None
    except ValueError as error:  # JSON's and UTF-8's own errors are among them
        raise SubjectError(f"{what} is not valid JSON: {shown(str(error))}") from None
    if not isinstance(found, dict):
        raise SubjectError(f"{what} is not a JSON object")
    return found


def _json(text: bytes, path: Path) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _bad(path, "its header does not begin with {")
    return load_json(text, f"the header of {path}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for name, value in pairs:
        (name + value if isinstance(value, str) else name).encode()  # half a character has no place in UTF-8
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {shown(twice)} stands twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _entry(name: str, value: Any, base: int, path: Path) -> Entry:
    what = f"the tensor {shown(name)}"
    if not isinstance(value, Mapping) or set(value) != _FIELDS:
        raise _bad(path, f"{what} is not described by {', '.join(sorted(_FIELDS))}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BLOCKS:
        raise _bad(path, f"{what} has an unknown type", got=shown(str(dtype)), expected=", ".join(BLOCKS))
    if not _counts(shape):
        raise _bad(path, f"the shape of {what} is not a list of counts", got=shown(repr(shape)))
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, f"the offsets of {what} are not two places in order", got=shown(repr(offsets)))
    numbers, (per_block, block_bytes) = 1, BLOCKS[dtype]
    for n in shape:
        numbers *= n
        if numbers > MAX_BYTES:
            raise _bad(path, f"the shape of {what} is beyond any file", got=shown(repr(shape)))
    bits = numbers * block_bytes * 8 // per_block
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise _bad(path, f"the bytes of {what} do not fit its shape", got=f"{offsets[1] - offsets[0]:,}",
                   expected=f"{-(-bits // 8):,} for {dtype} {shown(repr(shape))}")  # fmt: skip
    return Entry(name, dtype, tuple(shape), path.name, base + offsets[0], base + offsets[1], BLOCKS[dtype])


def _counts(value: Any) -> bool:
    """Whether it is a short list of integers from 0 to the largest file size (true and false are not)."""
    return isinstance(value, list) and len(value) <= 32 and all(type(n) is int and 0 <= n <= MAX_BYTES for n in value)


def _bad(path: Path, what: str, **values: str) -> SubjectError:
    return SubjectError(f"{path} is not a sound safetensors file: {what}", **values)
