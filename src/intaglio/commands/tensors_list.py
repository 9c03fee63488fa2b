"""What `intaglio tensors` prints: every tensor by its part, and the byte ranges of an address."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from intaglio.errors import IntaglioError
from intaglio.model.header import shown
from intaglio.model.parts import Parts
from intaglio.model.slices import head_places
from intaglio.model.stored import Checkpoint

if TYPE_CHECKING:
    from rich.console import Console

TOP = 3  # singular values shown
_ROLES = {role: i for i, role in enumerate(
    ("q", "k", "v", "qkv", "per_head", "o", "gate", "up", "gate_up", "down", "gain", "gain.bias",
     "q.bias", "k.bias", "v.bias", "qkv.bias", "per_head.bias", "o.bias", "gate.bias", "up.bias", "gate_up.bias", "down.bias")
)}  # fmt: skip
_PLACE, _SPECTRUM = ("size", "bytes"), ("effective rank", "largest singular values")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def listing(checkpoint: Checkpoint, *, spectra: bool = False) -> dict[str, Any]:
    """Everything about a checkpoint's tensors as plain data: the sizes of the model, then one row per tensor."""
    from intaglio.measure.tensors.norms import norms

    parts, lengths = Parts(checkpoint), norms(checkpoint)
    rows = []
    for name, e in checkpoint.entries.items():
        part, norm = parts.of[name], lengths[name]
        rows.append({
            "tensor": name, "address": str(part.address), "role": part.role, "file": e.file, "dtype": e.dtype,
            "shape": list(e.shape), "start": e.start, "stop": e.stop, "numbers": e.numbers, "bytes": e.bytes,
            "l2": norm.l2, "largest": norm.largest, "zeros": norm.zeros, "nonfinite": norm.nonfinite,
            **({"stored_as": e.stored} if e.stored and e.stored != name else {}),
            **({"spectrum": None if norm.nonfinite else _spectrum(checkpoint, name)} if spectra else {}),
        })  # fmt: skip
    rows.sort(key=lambda row: (parts.of[row["tensor"]].address, _ROLES.get(row["role"], len(_ROLES)), row["tensor"]))
    return {
        "subject": str(checkpoint.path), "format": "gguf" if checkpoint.gguf else "safetensors",
        "files": {f: (checkpoint.folder / f).stat().st_size for f in checkpoint.files},
        "model": _sizes(parts), "metadata": checkpoint.metadata, "not_in_the_index": list(checkpoint.unindexed), "tensors": rows,
        "heads": _heads(checkpoint),
    }  # fmt: skip


def _heads(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Where every head lies, as the table `places` says it; none where the family's heads are not known."""
    try:
        return head_places(checkpoint)
    except IntaglioError:
        return []


def print_listing(checkpoint: Checkpoint, found: dict[str, Any], console: Console) -> None:
    """The sizes, a sum per kind of part, then every tensor, layer by layer."""
    rows = found["tensors"]
    _line(console, f"{found['subject']}: {_facts(found)}")
    for name, text in list(found["metadata"].items())[:12]:
        _line(console, f"  {shown(name)}: {shown(text)}")
    if rows:
        console.print(_totals(rows))
    for layer, members in groupby(rows, key=_layer_of):
        console.print(_tensors(layer, list(members), len(found["files"]) > 1))
    if found["not_in_the_index"]:
        _line(console, f"in the shards, but not in the index: {', '.join(map(shown, found['not_in_the_index'][:8]))}")
    broken = sum(row["nonfinite"] for row in rows)
    if broken:
        _line(console, f"{broken:,} numbers are infinite or not a number; lengths leave them out")


def print_places(
    checkpoint: Checkpoint, places: list[dict[str, Any]], console: Console, *, shared: bool = True
) -> None:
    """The byte ranges of an address, and in one line whose they are too."""
    if places:
        _line(console, f"{places[0]['address']} in {checkpoint.path}")
    for row in places:
        _line(console, f"  {row['role']:<8}{_stored(checkpoint, row)}: {_slice(row)}, {row['dtype']}")
        _line(console, f"          bytes {_bytes(row)}")
    runs = sum(r["runs"] for r in places)
    total = sum(r["run_bytes"] * r["runs"] for r in places)
    _line(console, f"{total:,} bytes in {runs:,} {'run' if runs == 1 else 'runs'}")
    by_others = defaultdict(list)
    for row in places if shared else []:
        by_others[tuple(row["shared_with"])].append(row["role"])
    for others, roles in by_others.items():
        if others:
            _line(console, f"{' and '.join(roles)}: the same bytes are "
                           f"used by {', '.join(others[:8])}{', ...' if len(others) > 8 else ''}")  # fmt: skip
    if any(checkpoint.entries[row["tensor"]].paired and row["rows"] for row in places):
        _line(console, "rows of q and k stand in rotary pairs in this GGUF; a head's rows are the same set, in another order")


def size(count: int) -> str:
    """A count of bytes for people."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.4g} {_UNITS[unit]}"


def _line(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def _spectrum(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """Effective rank and largest singular values of a matrix; None for what is not one."""
    from intaglio.measure.tensors.spectra import spectrum

    shape = checkpoint.entries[name].shape
    if len(shape) != 2 or min(shape) < 2:
        return None
    found = spectrum(lambda first, last: checkpoint.rows(name, first, last), shape)
    return {
        "effective_rank": found.rank, "full_rank": min(shape), "exact": found.exact, "low": found.rank_low,
        "high": found.rank_high, "top_share": found.top_share, "singular_values": [float(v) for v in found.values[:16]],
    }  # fmt: skip


def _sizes(parts: Parts) -> dict[str, Any]:
    """What the names and shapes say of the model; heads only where they are known."""
    found: dict[str, Any] = {"n_layers": parts.n_layers, "tied": parts.tied,
                             "model_type": str(parts.checkpoint.config.get("model_type", ""))}  # fmt: skip
    try:
        first = next(i for i in range(parts.n_layers) if "o" in parts.roles(i, "attn"))
        heads = parts.heads(first)
        width = parts.sides(parts.roles(first, "attn")["o"])[0]
        found |= {"n_heads": heads.n_heads, "n_key_heads": heads.n_key_heads, "head_dim": heads.head_dim, "width": width}
    except StopIteration:
        pass
    except IntaglioError as fault:
        found["heads"] = str(fault)
    return found


def _facts(found: dict[str, Any]) -> str:
    rows, model = found["tensors"], found["model"]
    said = [f"{len(rows):,} tensors", f"{sum(r['numbers'] for r in rows):,} numbers", size(sum(r["bytes"] for r in rows))]
    said.append(" ".join(sorted({r["dtype"] for r in rows})))
    if len(found["files"]) > 1:
        said.append(f"{len(found['files'])} files")
    if "n_heads" in model:
        keys = f" ({model['n_key_heads']} of keys)" if model["n_key_heads"] != model["n_heads"] else ""
        said.append(f"{model['n_layers']} layers of {model['n_heads']} heads{keys} of {model['head_dim']}")
        said.append(f"width {model['width']}")
    elif model["n_layers"]:
        said.append(f"{model['n_layers']} layers" + ("; " + model["heads"] if "heads" in model else ""))
    if model["tied"]:
        said.append("the embedding is the output head too")
    return ", ".join(s for s in said if s)


def _totals(rows: list[dict[str, Any]]) -> Table:
    """Sums over all layers by what a tensor is."""
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for column in ("part", "tensors", "numbers", "share", "size", "length"):
        table.add_column(column, justify="left" if column == "part" else "right")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[_kind(row)].append(row)
    total = max(1, sum(r["numbers"] for r in rows))
    for kind, held in groups.items():
        numbers = sum(r["numbers"] for r in held)
        length, taken = sum(r["l2"] ** 2 for r in held) ** 0.5, size(sum(r["bytes"] for r in held))
        table.add_row(kind, f"{len(held):,}", f"{numbers:,}", f"{100 * numbers / total:.1f} %", taken, f"{length:.4g}")
    return table


def _kind(row: dict[str, Any]) -> str:
    if not _layer_of(row):
        return row["address"]
    part = row["address"].split(".")[1]
    return "norm in layers" if part == "norm" else f"{part} {row['role']}".strip()


def _layer_of(row: dict[str, Any]) -> str:
    return row["address"].partition(".")[0] if row["address"].startswith("L") else ""


def _tensors(layer: str, rows: list[dict[str, Any]], named: bool) -> Table:
    """One layer's tensors, or those outside the layers."""
    spectra = any("spectrum" in row for row in rows)
    table = Table(title=layer or None, title_justify="left", title_style="bold", box=None, padding=(0, 2), pad_edge=False)
    for column in ("part", "tensor", "shape", "type", "length", *(_SPECTRUM if spectra else _PLACE)):
        table.add_column(column, justify="right" if column in ("size", "length") else "left", no_wrap=column != "tensor")
    for row in rows:
        place = f"{row['start']:,}-{row['stop']:,}" + (f" {shown(row['file'])}" if named else "")
        part = row["address"].partition(".")[2] if layer else row["address"]
        cells = [part, _tail(row["tensor"], layer), _by(row["shape"]), row["dtype"], f"{row['l2']:.4g}"]
        table.add_row(*map(Text, cells + (_spectral(row["spectrum"]) if spectra else [size(row["bytes"]), place])))
    return table


def _tail(name: str, layer: str) -> str:
    """A tensor's name without what the heading says."""
    number = f".{layer[1:]}."
    return shown(name.partition(number)[2] if layer and number in name else name)


def _spectral(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", ""]
    rank = f"{found['effective_rank']:.1f}" if found["exact"] else f"{found['low']:.0f} to {found['high']:.0f}"
    return [f"{rank} of {found['full_rank']}", " ".join(f"{v:.3g}" for v in found["singular_values"][:TOP])]


def _by(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) if shape else "one number"


def _stored(checkpoint: Checkpoint, row: dict[str, Any]) -> str:
    own = checkpoint.entries[row["tensor"]].stored
    return shown(row["tensor"]) + (f" ({shown(own)})" if own and own != row["tensor"] else "")


def _slice(row: dict[str, Any]) -> str:
    for axis in ("rows", "columns"):
        if row[axis]:
            return f"{axis} {row[axis][0]}:{row[axis][1]} of {_by(row['shape'])}"
    return f"all of {_by(row['shape'])}"


def _bytes(row: dict[str, Any]) -> str:
    if row["stride"] is None:
        return f"{row['start']:,}-{row['stop']:,}"
    return f"{row['start']:,}-{row['stop']:,}: {row['runs']:,} runs of {row['run_bytes']:,}, one every {row['stride']:,}"
