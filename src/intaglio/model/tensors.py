"""What is in a checkpoint's files: names, shapes and places, from the headers alone.

    checkpoint = open_checkpoint("model.safetensors")     # a file, a folder (sharded or not), or a .gguf
    checkpoint.entries["model.norm.weight"]               # Entry(name, dtype, shape, file, start, stop)
    for block in checkpoint.blocks("lm_head.weight"): ...  # float32 rows, a few megabytes at a time

Never torch, never pickle.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from intaglio.errors import SubjectError
from intaglio.model.header import MAX_HEADER_BYTES, Entry, load_json, read_header, shown
from intaglio.model.stored import Checkpoint

__all__ = ["Checkpoint", "Entry", "open_checkpoint"]

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
ADAPTER = "adapter_model.safetensors"
NOT_WEIGHTS = {ADAPTER, "optimizer.safetensors"}
INDEX = "model.safetensors.index.json"
_EXPECTED = "a .safetensors file, a folder with safetensors, or a .gguf"
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$", re.ASCII)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a `.safetensors` file, a folder (with an index or not) or a `.gguf`; headers only.

    Raises:
        SubjectError: there is no such file, it is a pickle, an adapter without its base, or malformed.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            return _open_folder(path)
        if not path.is_file():
            raise SubjectError("no such checkpoint", got=str(path), expected=_EXPECTED)
    except OSError as error:
        raise SubjectError(f"cannot read {path}: {error.strerror or error}") from None
    if path.suffix in PICKLES:
        raise SubjectError(f"{path} is a pickle, which can execute code when it is read", expected="safetensors")
    if path.suffix == ".gguf":
        from intaglio.model.gguf_file import read_gguf

        entries, config = read_gguf(path)
        return Checkpoint(path, path.parent, entries, config)
    if path.suffix != ".safetensors":
        raise SubjectError(f"{path} is not a checkpoint", expected=_EXPECTED)
    if path.name == ADAPTER:
        raise _adapter(path)
    entries, metadata = read_header(path)
    return Checkpoint(path, path.parent, entries, _config(path.parent), metadata)


def _open_folder(folder: Path) -> Checkpoint:
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    found = [n for n in names if n.endswith(".safetensors") and n not in NOT_WEIGHTS]
    if "model.safetensors" not in found and INDEX in names:
        return _open_indexed(folder)
    if "model.safetensors" in found:
        found = ["model.safetensors"]
    if not found:
        raise _no_weights(folder, names)
    _check_numbered(folder, found)
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for name in found:
        more, said = read_header(folder / name)
        twice = next((n for n in more if n in entries), None)
        if twice is not None:
            raise SubjectError(f"{folder} holds the tensor {shown(twice)} twice", got=f"{entries[twice].file} and {name}")
        entries |= more
        metadata |= said
    return Checkpoint(folder, folder, entries, _config(folder), metadata)


def _open_indexed(folder: Path) -> Checkpoint:
    """The shards that an index names; it must agree with what they hold."""
    what = folder / INDEX
    index = load_json(_small(what), str(what)).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(v, str) for v in index.values()):
        raise SubjectError(f"{what} has no weight_map from tensors to files")
    headers: dict[str, dict[str, Entry]] = {}
    metadata: dict[str, str] = {}
    for file in dict.fromkeys(index.values()):
        if not file.endswith(".safetensors") or file != Path(file).name or "\\" in file or "\0" in file:
            raise SubjectError(f"{what} names a file that is not a .safetensors beside it", got=shown(file))
        if not (folder / file).is_file():
            raise SubjectError(f"{what} names a shard that is not there", got=shown(file))
        headers[file], said = read_header(folder / file)
        metadata |= said
    for name, file in index.items():
        if name not in headers[file]:
            raise SubjectError(f"{what} places {shown(name)} in {file}, which does not hold it")
    held = Counter(name for header in headers.values() for name in header if name in index)
    twice = next((name for name, count in held.items() if count > 1), None)
    if twice is not None:
        raise SubjectError(f"{folder} holds the tensor {shown(twice)} twice")
    entries = {n: e for header in headers.values() for n, e in header.items() if index.get(n) == e.file}
    loose = tuple(n for header in headers.values() for n in header if n not in index)
    return Checkpoint(folder, folder, entries, _config(folder), metadata, loose)


def _no_weights(folder: Path, names: list[str]) -> SubjectError:
    pickles = [n for n in names if Path(n).suffix in PICKLES]
    gguf = [n for n in names if n.endswith(".gguf")]
    if ADAPTER in names:
        return _adapter(folder)
    if pickles:
        return SubjectError(
            f"{folder} holds its weights only as a pickle ({shown(pickles[0])}), which can execute code when it is read",
            expected="safetensors",
        )
    if gguf:
        return SubjectError(f"{folder} holds no safetensors", expected=f"the file itself: {folder / gguf[0]}")
    return SubjectError(f"{folder} holds no weights", expected="*.safetensors")


def _adapter(path: Path) -> SubjectError:
    return SubjectError(f"{path} holds a LoRA adapter without its base model", expected="the base, or the merged model")


def _check_numbered(folder: Path, names: list[str]) -> None:
    """Refuse numbered shards of which one is missing, where no index says so."""
    numbers = [m for m in map(_NUMBERED.search, names) if m]
    there, total = {int(m[1]) for m in numbers}, max((int(m[2]) for m in numbers), default=0)
    if numbers and len(there) < total:
        missing = next(i for i in range(1, total + 1) if i not in there)
        raise SubjectError(f"{folder} lacks a shard", got=f"no {missing:05d}-of-{total:05d}")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return load_json(_small(path), str(path)) if path.is_file() else {}


def _small(path: Path) -> bytes:
    """A text file of a size that such files have."""
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise SubjectError(f"{path} is of absurd size", got=f"{path.stat().st_size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise SubjectError(f"cannot read {path}: {error.strerror or error}") from None
