"""Cut one head out of a checkpoint into a file of its own, and graft it into another of the same shape.

Everything else of the other checkpoint stays bit-equal: its files are copied and only the head's bytes are written over.
Written aside and renamed: what stands under the new name is whole. No torch, no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.address import Address, parse_head
from intaglio.errors import InputError, StoreError, SubjectError
from intaglio.files import check_file, write_whole
from intaglio.model.header import Entry, Piece, product, read_header, write_safetensors
from intaglio.model.parts import Parts
from intaglio.model.slices import byte_runs, places_of
from intaglio.model.stored import Checkpoint

FORMAT = "intaglio-head"
FACTS = ("n_heads", "n_key_heads", "head_dim", "width")
SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Graft:
    """What was written over.

    Attributes:
        address: the head that was replaced.
        places: the rows of the table `places` whose bytes were written.
        left: those that were left alone, because other heads use them too.
    """

    address: Address
    places: list[dict[str, Any]]
    left: list[dict[str, Any]]

    @property
    def shared_with(self) -> list[str]:
        """Other heads whose bytes were written."""
        return sorted({a for row in self.places for a in row["shared_with"]}, key=lambda a: parse_head(a))


def cut_head(checkpoint: Checkpoint, address: Address, out: Path) -> list[dict[str, Any]]:
    """Write one head's numbers to a safetensors file of its own; returns its places in the checkpoint.

    The file's tensors are q.weight, k.weight, v.weight, o.weight and the biases, in the type and the way round of the
    checkpoint; a GGUF's are dequantised to float32, in Hugging Face's order of rows. Its metadata says whose they were.

    Raises:
        InputError: no such head, or `out` exists.
        SubjectError: the head's numbers share bytes with another's.
        StoreError: `out` cannot be written.
    """
    check_new(out)
    if out.suffix != ".safetensors":
        raise InputError("a head is cut into a .safetensors file", got=str(out))
    parts = Parts(checkpoint)
    places = places_of(checkpoint, address, parts=parts)
    pieces = {_key(row): _piece(checkpoint, row) for row in places}
    said = {
        "format": FORMAT, "schema": "1", "address": str(address), "source": checkpoint.path.resolve().name,
        "source_fingerprint": fingerprint(checkpoint), "model_type": str(checkpoint.config.get("model_type", "")),
        "shared_with": json.dumps(places_shared(places)), "orientation": _orientation(parts, address),
        **{name: str(value) for name, value in facts(parts, address).items()},
    }  # fmt: skip
    write_whole(out, lambda place: write_safetensors(place, pieces, said))
    return places


def graft_head(
    checkpoint: Checkpoint, head: Path, out: Path, *, into: Address | None = None, without_shared: bool = False
) -> Graft:
    """Copy a checkpoint to `out` with one head's bytes replaced by those of a file that `cut_head` wrote.

    Args:
        into: the head to replace; the one that the file came from if not given.
        without_shared: leave k and v alone where other heads use them too.

    Raises:
        InputError: `out` exists, no such head, or the file is not one of a head.
        SubjectError: the shapes or types differ.
        StoreError: `out` cannot be written.
    """
    check_new(out)
    if checkpoint.gguf:
        raise InputError("a head cannot be grafted into a GGUF", got=str(checkpoint.path), expected="safetensors")
    if checkpoint.path.is_file() and out.suffix != ".safetensors":
        raise InputError("a head is grafted into a copy of the file", got=str(out), expected="a new .safetensors file")
    pieces, said = read_head(head)
    address = into or parse_head(said["address"])
    parts = Parts(checkpoint)
    places = places_of(checkpoint, address, parts=parts)
    _check_same(facts(parts, address) | {"orientation": _orientation(parts, address)}, said, head)
    left = [row for row in places if without_shared and row["shared_with"]]
    places = [row for row in places if row not in left]
    for row in places:
        _check_fits(checkpoint, row, pieces, head)
    _write(checkpoint, places, pieces, out)
    return Graft(address, places, left)


def read_head(path: Path) -> tuple[dict[str, Piece], dict[str, str]]:
    """The pieces of a head's file and what its metadata says.

    Raises:
        InputError: it is not a head's file.
    """
    if not path.is_file():
        raise InputError("no such file of a head", got=str(path), expected="one that --head wrote")
    entries, said = read_header(path)
    if said.get("format") != FORMAT or not {"address", "orientation", *FACTS} <= set(said):
        raise InputError(f"{path} is not a file of one head", expected="one that --head wrote")
    lone = Checkpoint(path, path.parent, entries, {}, said)
    return {n: (e.dtype, e.shape, lone.data(e, 0, e.bytes).tobytes()) for n, e in entries.items()}, said


def facts(parts: Parts, address: Address) -> dict[str, int]:
    """The sizes that two models must share for a head of one to fit the other."""
    sizes = parts.heads(address.layer)
    width = parts.sides(parts.roles(address.layer, "attn")["o"])[0]
    return {"n_heads": sizes.n_heads, "n_key_heads": sizes.n_key_heads, "head_dim": sizes.head_dim, "width": width}


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hex digits over every tensor's name, type, shape and first 4 KiB: tells checkpoints apart without reading them."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(checkpoint.entries):
        e = checkpoint.entries[name]
        found.update(f"{name}|{e.dtype}|{e.shape}|".encode("utf-8", "surrogatepass"))
        found.update(checkpoint.data(e, 0, min(SAMPLE_BYTES, e.bytes)))
    return found.hexdigest()


def places_shared(places: list[dict[str, Any]]) -> list[str]:
    """Heads that use some of these bytes too."""
    return sorted({a for row in places for a in row["shared_with"]}, key=lambda a: parse_head(a))


def check_new(out: Path) -> None:
    """Refuse a place where something stands already, or that cannot be written into."""
    if out.exists() or out.is_symlink():
        raise InputError("--out exists", got=str(out), expected="a new name")
    check_file(out)


def _key(row: dict[str, Any]) -> str:
    letter, _, bias = row["role"].partition(".")
    return f"{letter}.{bias or 'weight'}"


def _piece(checkpoint: Checkpoint, row: dict[str, Any]) -> Piece:
    entry = checkpoint.entries[row["tensor"]]
    shape = _shape(entry, row)
    if checkpoint.gguf:
        return "F32", shape, _values(checkpoint, entry, row).astype("<f4").tobytes()
    per_block, block_bytes = entry.block
    if row["run_bytes"] * row["runs"] * per_block != product(shape) * block_bytes:
        raise SubjectError(f"numbers of type {entry.dtype} share bytes between heads in {entry.name}")
    data = checkpoint.data(entry, row["start"] - entry.start, row["stop"] - entry.start)
    if row["stride"] is None:
        return entry.dtype, shape, data.tobytes()
    gathered = np.lib.stride_tricks.as_strided(data, (row["runs"], row["run_bytes"]), (row["stride"], 1), writeable=False)
    return entry.dtype, shape, gathered.tobytes()


def _values(checkpoint: Checkpoint, entry: Entry, row: dict[str, Any]) -> np.ndarray:
    values = checkpoint.rows(entry.name, *(row["rows"] or (0, entry.shape[0])))
    return values[:, slice(*row["columns"])] if row["columns"] else values


def _shape(entry: Entry, row: dict[str, Any]) -> tuple[int, ...]:
    first, last = row["rows"] or (0, entry.shape[0])
    rest = (row["columns"][1] - row["columns"][0],) if row["columns"] else entry.shape[1:]
    return (last - first, *rest)


def _orientation(parts: Parts, address: Address) -> str:
    conv1d = parts.roles(address.layer, "attn")["o"].conv1d
    return "inputs by outputs" if conv1d else "outputs by inputs"


def _check_same(here: dict[str, Any], said: dict[str, str], head: Path) -> None:
    for name, value in here.items():
        if str(value) != said[name]:
            raise SubjectError(f"the head of {head} is of a model of another shape: {name.replace('_', ' ')}",
                               got=said[name][:60], expected=str(value))  # fmt: skip


def _check_fits(checkpoint: Checkpoint, row: dict[str, Any], pieces: dict[str, Piece], head: Path) -> None:
    entry, key = checkpoint.entries[row["tensor"]], _key(row)
    if key not in pieces:
        raise SubjectError(f"{head} has no {key}, which {checkpoint.path} needs for this head")
    dtype, shape, data = pieces[key]
    if (dtype, shape) != (entry.dtype, _shape(entry, row)) or len(data) != row["run_bytes"] * row["runs"]:
        raise SubjectError(f"{key} of {head} does not fit {entry.name}", got=f"{dtype} {list(shape)}",
                           expected=f"{entry.dtype} {list(_shape(entry, row))}")  # fmt: skip


def _write(checkpoint: Checkpoint, places: list[dict[str, Any]], pieces: dict[str, Piece], out: Path) -> None:
    aside = _aside(out)
    whole = checkpoint.path.is_dir()
    try:
        if whole:
            aside.mkdir()
            for path in sorted(p for p in checkpoint.path.iterdir() if p.is_file()):
                shutil.copyfile(path, aside / path.name)
        else:
            shutil.copyfile(checkpoint.path, aside)
        for row in places:
            _overwrite(aside / row["file"] if whole else aside, row, pieces[_key(row)][2])
        os.rename(aside, out)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def _overwrite(path: Path, row: dict[str, Any], data: bytes) -> None:
    with path.open("r+b") as file:
        for i, (start, stop) in enumerate(byte_runs(row)):
            file.seek(start)
            file.write(data[i * row["run_bytes"] : i * row["run_bytes"] + stop - start])


def _aside(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.{os.getpid()}.tmp")
