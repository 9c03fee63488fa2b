"""From an address to the bytes that hold it: rows and columns of tensors, by names, shapes and config.json alone.

    places_of(open_checkpoint("model/"), "L18.attn.H6")   # rows of the table `places`

A head is its rows of q, its group's rows of k and v (shared under grouped-query attention), its columns of o
and the same rows of the biases; a neuron is its row of gate and up and its column of down. Where numbers are
stored in blocks (quantised, or of less than a byte) a range covers whole blocks and says whose they are too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from intaglio.address import Address, parse
from intaglio.errors import InputError, SubjectError
from intaglio.model.header import Entry, product
from intaglio.model.parts import Heads, Part, Parts
from intaglio.model.stored import Checkpoint

Span = tuple[int, int]  # first, and the one after the last


@dataclass(frozen=True)
class Slice:
    """A part of one tensor: rows, columns, or all of it (None).

    Attributes:
        shared_with: addresses that use the same numbers.
        unit: columns that belong to one head or neuron; 0 where that cannot be asked.
    """

    tensor: str
    role: str
    rows: Span | None = None
    columns: Span | None = None
    shared_with: tuple[str, ...] = ()
    unit: int = 0


def places_of(checkpoint: Checkpoint, address: Address | str, *, parts: Parts | None = None) -> list[dict[str, Any]]:
    """Where an address is stored: rows of the table `places`.

    Args:
        parts: `Parts(checkpoint)`, where many addresses are asked for.

    Raises:
        InputError: the model has no such part.
        SubjectError: the files do not say how it is stored.
    """
    address = parse(address) if isinstance(address, str) else address
    return [_row(checkpoint.entries[s.tensor], address, s) for s in slices_of(parts or Parts(checkpoint), address)]


def head_places(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """`places_of` every head of every layer that has attention."""
    parts = Parts(checkpoint)
    layers = [i for i in range(parts.n_layers) if "o" in parts.roles(i, "attn")]
    heads = [Address("attn", i, head=h) for i in layers for h in range(parts.heads(i).n_heads)]
    return [row for address in heads for row in places_of(checkpoint, address, parts=parts)]


def slices_of(parts: Parts, address: Address) -> list[Slice]:
    """The slices of tensors that an address is made of."""
    if address.layer is not None:
        parts.check_layer(address.layer)
    if address.head is not None:
        return _head(parts, address)
    if address.neuron is not None:
        return _neuron(parts, address)
    found = parts.within(address)
    if not found and address.part == "unembed" and parts.tied:
        return [Slice(p.name, "unembed", shared_with=("embed",)) for p in parts.within(Address("embed"))]
    if not found:
        raise InputError(f"{parts.checkpoint.path} has no such part", got=str(address), expected=_some(parts))
    shared = ("unembed",) if address.part == "embed" and parts.tied else ()
    return [Slice(p.name, p.role or str(address), shared_with=shared) for p in found]


def byte_runs(row: dict[str, Any]) -> Iterator[Span]:
    """The contiguous byte ranges of one row of `places`, in order."""
    for i in range(row["runs"]):
        start = row["start"] + i * (row["stride"] or 0)
        yield start, start + row["run_bytes"]


def _head(parts: Parts, address: Address) -> list[Slice]:
    layer, h = address.layer, address.head
    sizes = parts.heads(layer)
    if h >= sizes.n_heads:
        raise InputError(f"layer {layer} has no head {h}", expected=f"0 to {sizes.n_heads - 1}")
    mates = tuple(str(Address("attn", layer, head=i)) for i in _mates(sizes, h) if i != h)
    found = []
    for role, part in parts.roles(layer, "attn").items():
        kind, _, bias = role.partition(".")
        for letter, first in _outputs(sizes, kind, h):
            span = (first, first + (1 if kind == "sink" else sizes.head_dim))
            shared = mates if letter in "kv" else ()
            found.append(_cut(part, letter + (f".{bias}" if bias else ""), span, outputs=True, shared=shared))
        if role == "o":
            found.append(_cut(part, "o", (h * sizes.head_dim, (h + 1) * sizes.head_dim), outputs=False, unit=sizes.head_dim))
    order = ("q", "k", "v", "o", "sink")
    return sorted(found, key=lambda s: (order.index(s.role.partition(".")[0]), s.role))


def _outputs(sizes: Heads, kind: str, h: int) -> list[tuple[str, int]]:
    """What of a projection's outputs belongs to head `h`: letter and first output."""
    dim, j = sizes.head_dim, h // sizes.group
    if kind == "qkv":
        keys = sizes.n_heads * dim
        return [("q", h * dim), ("k", keys + j * dim), ("v", keys + (sizes.n_key_heads + j) * dim)]
    if kind == "per_head":
        return [("q", 3 * h * dim), ("k", (3 * h + 1) * dim), ("v", (3 * h + 2) * dim)]
    return {"q": [("q", h * dim)], "k": [("k", j * dim)], "v": [("v", j * dim)], "sink": [("sink", h)]}.get(kind, [])


def _mates(sizes: Heads, h: int) -> range:
    first = h // sizes.group * sizes.group
    return range(first, first + sizes.group)


def _neuron(parts: Parts, address: Address) -> list[Slice]:
    roles, n = parts.roles(address.layer, "mlp"), address.neuron
    if "down" not in roles:
        raise InputError(f"the neurons of layer {address.layer} are not numbered", got=str(address),
                         expected="a layer with one MLP, not a mixture of experts")  # fmt: skip
    count = parts.sides(roles["down"])[1]
    if n >= count:
        raise InputError(f"layer {address.layer} has no neuron {n}", expected=f"0 to {count - 1}")
    found = []
    for role, part in roles.items():
        kind, _, bias = role.partition(".")
        tail = f".{bias}" if bias else ""
        if kind in ("gate", "up"):
            found.append(_cut(part, role, (n, n + 1), outputs=True))
        elif kind == "gate_up":
            found += [_cut(part, k + tail, (n + at, n + at + 1), outputs=True) for k, at in (("gate", 0), ("up", count))]
        elif role == "down":
            found.append(_cut(part, "down", (n, n + 1), outputs=False, unit=1))
    order = ("gate", "up", "down")
    return sorted(found, key=lambda s: (order.index(s.role.partition(".")[0]), s.role))


def _cut(part: Part, role: str, span: Span, *, outputs: bool, shared: tuple[str, ...] = (), unit: int = 0) -> Slice:
    """Outputs are rows, inputs are columns; in a Conv1D it is the other way round."""
    if outputs != part.conv1d or role.endswith(".bias"):
        return Slice(part.name, role, rows=span, shared_with=shared)
    return Slice(part.name, role, columns=span, shared_with=shared, unit=unit)


def _row(entry: Entry, address: Address, cut: Slice) -> dict[str, Any]:
    """One row of `places`: where the slice's bytes begin, how long each run is, how far apart."""
    for span, size in ((cut.rows, entry.shape[0] if entry.shape else 0), (cut.columns, product(entry.shape[1:]))):
        if span and span[1] > size:
            raise SubjectError(f"{entry.name} is smaller than its part", got=str(list(entry.shape)), expected=str(span[1]))
    start, run_bytes, stride, runs, widened = _runs(entry, cut)
    stop = start + (runs - 1) * (stride or 0) + run_bytes
    shared = cut.shared_with + tuple(a for a in _neighbours(address, cut, widened) if a not in cut.shared_with)
    return {
        "address": str(address), "tensor": entry.name, "role": cut.role, "file": entry.file, "dtype": entry.dtype,
        "shape": list(entry.shape), "rows": list(cut.rows or ()), "columns": list(cut.columns or ()),
        "start": start, "stop": stop, "run_bytes": run_bytes, "stride": stride, "runs": runs, "shared_with": list(shared),
    }  # fmt: skip


def _runs(entry: Entry, cut: Slice) -> tuple[int, int, int | None, int, Span | None]:
    """First byte, length of a run, stride, runs, and the columns that whole blocks cover."""
    row = product(entry.shape[1:])
    first, last = cut.rows or (0, entry.shape[0] if entry.shape else 1)
    per_block, block_bytes = entry.block
    if cut.columns is None:
        low, high = first * row // per_block * block_bytes, -(-last * row // per_block) * block_bytes
        high = min(high, entry.bytes)
        return entry.start + low, high - low, None, 1, None
    if row % per_block:
        raise SubjectError(f"the rows of {entry.name} do not begin on whole bytes", got=f"{row} numbers of {entry.dtype}")
    low, high = cut.columns[0] // per_block, -(-cut.columns[1] // per_block)
    start = entry.start + (first * (row // per_block) + low) * block_bytes
    run, stride = (high - low) * block_bytes, row // per_block * block_bytes
    widened = (low * per_block, high * per_block)
    if run == stride or last - first == 1:
        return start, run * (last - first), None, 1, widened
    return start, run, stride, last - first, widened


def _neighbours(address: Address, cut: Slice, widened: Span | None) -> list[str]:
    """Whose columns share blocks with this one's."""
    if widened is None or not cut.unit or widened == cut.columns:
        return []
    places = range(widened[0] // cut.unit, math.ceil(widened[1] / cut.unit))
    if address.head is not None:
        return [str(Address("attn", address.layer, head=i)) for i in places if i != address.head]
    return [str(Address("mlp", address.layer, neuron=i)) for i in places if i != address.neuron]


def _some(parts: Parts) -> str:
    held = sorted({p.address for p in parts.of.values()})
    return ", ".join(str(a) for a in held[:4]) + (", ..." if len(held) > 4 else "") or "a model with known parts"
