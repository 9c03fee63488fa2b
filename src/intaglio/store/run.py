"""A run on disk: one directory, a manifest, atomic parquet parts.

A run is written under `NAME.partial/` and renamed to `NAME/` when it is finished,
so a folder without `.partial` is whole. Each flush writes one parquet file per
table aside and renames it, and touches no earlier one: a killed process loses at
most the last flush, and a flush costs what it writes.
Several processes write one run side by side; the first makes, describes and closes it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from intaglio.errors import StoreError
from intaglio.files import write_text
from intaglio.store.parts import WHOLE, check_whole, next_part, numbers_of, parts_of, write_table
from intaglio.tables import SCHEMA_VERSION, TABLES

_TYPES = {
    "int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32(), "float64": pa.float64(),
    "string": pa.string(), "bool": pa.bool_(), "binary": pa.binary(),
    "list<int64>": pa.list_(pa.int64()), "list<int32>": pa.list_(pa.int32()),
    "list<float32>": pa.list_(pa.float32()), "list<bool>": pa.list_(pa.bool_()),
}  # fmt: skip
NAMED_ONCE = ("examples", "vocab")  # every process names what it meets; a reader sees each name once


def schema_of(table: str) -> pa.Schema:
    """The pyarrow schema of a table of the contract."""
    return pa.schema([pa.field(c.name, _TYPES[c.type]) for c in TABLES[table].columns])


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


_LOCK = ".lock"


class RunWriter:
    """Writes a run. Rows are buffered; `flush` makes them durable; `finish` makes the run whole.

    Args:
        path: where the finished run will stand.
        manifest: what is known at the start; JSON values only.
        force: replace an existing run of this name.
        resume: continue the partial run of this name.
        rank: process number, part of every file name; above 0 nothing but rows is written.
    """

    def __init__(
        self, path: str | Path, manifest: Mapping[str, Any], *, force: bool = False, resume: bool = False, rank: int = 0
    ) -> None:
        self.path, self.rank, self._buffers = Path(path), rank, defaultdict(list)
        self.folder = _partial(self.path)
        self._force, self._lock = force, None
        self.manifest: dict[str, Any] = {**manifest, "schema_version": SCHEMA_VERSION, "complete": False}
        if rank:
            return
        check_free(self.path, force=force, resume=resume)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder)
            if not resume:
                for old in self.folder.iterdir():
                    _remove(old)
        except OSError as error:
            raise StoreError(f"cannot create {self.folder}: {error.strerror or error}") from None
        kept = _read_manifest(self.folder) if resume and (self.folder / "manifest.json").exists() else {}
        self.manifest = {**kept, **self.manifest}
        self.write_manifest()

    def mark(self) -> int:
        """When the manifest was written: the same in every process that sees this folder.

        Raises:
            StoreError: it cannot be seen.
        """
        try:
            return (self.folder / "manifest.json").stat().st_mtime_ns
        except OSError:
            raise StoreError(f"{self.folder} is not there", expected="a folder that all processes share") from None

    def write_manifest(self, **changes: Any) -> None:
        """Merge `changes` into the manifest and write it."""
        self.manifest.update(changes)
        if self.rank:
            return
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False, sort_keys=True)
        write_text(self.folder / "manifest.json", text)

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Buffer rows, given as columns of equal length (lists or numpy arrays).

        Columns of the contract that are not given become null.
        """
        schema = schema_of(table)
        unknown = set(columns) - set(schema.names)
        assert not unknown, f"columns {unknown} are not in the contract of {table}"
        n_rows = len(next(iter(columns.values())))
        if n_rows == 0:
            return
        arrays = [
            pa.array(columns[f.name], type=f.type, from_pandas=f.type in (pa.float64(), pa.float32()))
            if f.name in columns else pa.nulls(n_rows, f.type)
            for f in schema
        ]  # fmt: skip
        self._buffers[table].append(pa.Table.from_arrays(arrays, schema=schema))

    def append_rows(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Buffer rows given as dictionaries."""
        rows = list(rows)
        if rows:
            names = {name for row in rows for name in row}
            self.append(table, {name: [row.get(name) for row in rows] for name in names})

    def flush(self, step: int) -> None:
        """Write all buffered rows as new parts of `step`, each file whole or absent."""
        for table, pieces in list(self._buffers.items()):
            folder = self.folder / table
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot write {folder}: {error.strerror or error}") from None
            write_table(next_part(folder, step, self.rank), pa.concat_tables(pieces))
            del self._buffers[table]

    def drop_after(self, step: int) -> None:
        """Drop every part written after optimizer step `step` (what a resumed run will write again).

        The first process drops the others' parts, too: there may be fewer of them now.
        """
        for path in (p for table in TABLES for p in parts_of(self.folder / table)):
            of_step, rank, _ = numbers_of(path)
            if of_step > step and self.rank in (0, rank):
                path.unlink(missing_ok=True)

    def keep_rows(self, table: str, wanted: Callable[[pa.Table], Any], columns: Sequence[str]) -> None:
        """Rewrite those parts of a table that hold rows that are not wanted, without them.

        Args:
            wanted: a mask over the rows of one part, in the order of writing.
            columns: those that it looks at.
        """
        for path in parts_of(self.folder / table):
            file = pq.ParquetFile(path)
            mask = pa.array(wanted(file.read(columns=list(columns))), type=pa.bool_())
            if mask.true_count == 0:
                path.unlink()
            elif mask.true_count < len(mask):
                write_table(path, file.read().filter(mask))

    def replace(self, table: str, data: pa.Table) -> None:
        """Write a whole table anew, in place of its parts; nothing may be appended to it any more."""
        folder = self.folder / table
        folder.mkdir(exist_ok=True)
        write_table(folder / WHOLE, data.cast(schema_of(table)))
        for part in parts_of(folder):  # killed here, readers take the whole file alone
            part.unlink()

    def finish(self, **changes: Any) -> Path:
        """Mark the run complete, give it its final name and compact its parts."""
        self.flush(99999999)
        if self.rank:
            return self.path
        self.write_manifest(complete=True, **changes)
        self.let_go()
        (self.folder / _LOCK).unlink(missing_ok=True)
        if self._force and self.path.exists():
            shutil.rmtree(self.path)
        try:
            os.replace(self.folder, self.path)
        except OSError as error:
            raise StoreError(f"cannot rename {self.folder} to {self.path}: {error.strerror or error}") from None
        self._compact()
        return self.path

    def let_go(self) -> None:
        """Leave the folder to other processes; for who writes no more, but lives on with the run unfinished."""
        if self._lock is not None:
            self._lock.close()

    def _compact(self) -> None:
        """One file per table, once the run is whole: stopped halfway, or out of space, it is still whole."""
        for folder in sorted(p for p in self.path.iterdir() if p.name in TABLES):
            parts = parts_of(folder)
            if len(parts) > 1 and not (folder / WHOLE).exists():
                whole = _joined(folder.name, parts)
                try:
                    write_table(folder / WHOLE, whole)
                except StoreError:
                    return
            if (folder / WHOLE).exists():
                for part in parts:
                    part.unlink()


def _joined(table: str, parts: list[Path]) -> pa.Table:
    """The rows of several parts; of several processes in the order of the key, and each name once.

    A column that was not yet in the contract when a part was written is null there.
    """
    pieces = [pq.ParquetFile(p).read() for p in parts]
    whole = pa.concat_tables([schema_of(table).empty_table(), *pieces], promote_options="default")
    key = TABLES[table].key
    if table in NAMED_ONCE:
        numbered = whole.select(key).append_column("place", pa.array(range(len(whole)), type=pa.int64()))
        first = numbered.group_by(list(key)).aggregate([("place", "min")])["place_min"]
        if len(first) < len(whole):
            whole = whole.take(pa.array(sorted(first.to_pylist()), type=pa.int64()))
    if len({numbers_of(p)[1] for p in parts if p.name != WHOLE}) < 2:
        return whole
    return whole.sort_by([(name, "ascending") for name in key])


def check_free(path: str | Path, *, force: bool = False, resume: bool = False) -> None:
    """Refuse a path that holds a run already, before any work is done.

    Raises:
        StoreError: the folder exists (and neither `force` nor `resume` was given) or cannot be created.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise StoreError("a run needs a folder of its own", got=str(path), expected="a name, such as runs/mine")
    if path.exists() and not force:
        raise StoreError(f"{path} exists already", expected="a new folder, or --force to replace it")
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file", expected="a new folder")
    for folder in (path, _partial(path)):
        if force and folder.exists() and not (folder / "manifest.json").exists() and any(folder.iterdir()):
            raise StoreError(f"{folder} is not a run, so --force will not replace it", expected="a run or a new folder")
    if _partial(path).exists() and not (resume or force):
        raise StoreError(f"{_partial(path)} is an unfinished run", expected="--resume to continue it or --force to replace it")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK) or not _takes_a_folder(parent):
        raise StoreError(f"cannot write to {parent}", expected="a writable folder")


def _locked(folder: Path) -> Any:
    """The folder's lock, held until this process ends, however it ends; where the system has none, nothing.

    Raises:
        StoreError: another process is writing this run.
    """
    lock = open(folder / _LOCK, "a")
    try:
        import fcntl

        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StoreError(f"{folder} is being written by another process", expected="to wait for its end, or to end it") from None
    except (ImportError, OSError):  # no such system call, or a file system without locks
        pass
    return lock


def _remove(old: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    elif old.name != _LOCK:
        old.unlink(missing_ok=True)


def _takes_a_folder(parent: Path) -> bool:
    """Whether a folder can be made there: root may write to a folder of /proc, as far as its bits say."""
    try:
        Path(tempfile.mkdtemp(prefix=".intaglio-", dir=parent)).rmdir()
    except OSError:
        return False
    return True


def begun(path: Path) -> bool:
    """Whether an unfinished run is there to be continued."""
    return _partial(Path(path)).is_dir()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{folder} is not a run: it has no manifest.json") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {folder / 'manifest.json'}: {error}") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise StoreError(f"{folder} has another schema version", got=version, expected=str(SCHEMA_VERSION))
    return manifest


class Run:
    """A run that can be read; it may still be going (`complete` says so)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)

    @property
    def complete(self) -> bool:
        """Whether the run was finished; a killed one, or one that is still going, is not."""
        return bool(self.manifest.get("complete"))

    @property
    def name(self) -> str:
        """The folder's name, without `.partial`."""
        return self.folder.name.removesuffix(".partial")

    @property
    def final(self) -> Path:
        """Where the run stands, or will stand, once it is whole."""
        return self.folder.with_name(self.name)

    def files(self, table: str) -> list[Path]:
        """The parquet files of a table; empty where the run has no such rows."""
        if table not in TABLES:
            raise StoreError("unknown table", got=table, expected=", ".join(TABLES))
        folder = self.folder / table
        whole = folder / WHOLE
        return [whole] if whole.exists() else parts_of(folder)

    def table(self, name: str) -> pa.Table:
        """A whole table, with the contract's schema; no rows where nothing was recorded."""
        files = self.files(name)
        if not files:
            return schema_of(name).empty_table()
        check_whole(files)
        return _joined(name, files).cast(schema_of(name))

    def column(self, table: str, name: str) -> list[Any]:
        """One column of a table, without reading the others."""
        return [value for batch in self.batches(table, [name]) for value in batch.column(0).to_pylist()]

    def batches(self, table: str, columns: Sequence[str], rows: int = 4096) -> Iterator[pa.RecordBatch]:
        """Some columns of a table in pieces, for tables too large to hold."""
        files = self.files(table)
        check_whole(files)
        for file in files:
            yield from pq.ParquetFile(file).iter_batches(batch_size=rows, columns=list(columns))

    def sql(self, query: str) -> Any:
        """A DuckDB relation: the result of `query` over this run's tables."""
        from intaglio.store.query import connect

        return connect({"": self}).sql(query)


def open_run(path: str | Path) -> Run:
    """Open a run by its folder; one that is still going or was killed is found too.

    Raises:
        StoreError: there is no run, or its schema version is unknown.
    """
    path = Path(path)
    for folder in (path, _partial(path)):
        if folder.is_dir():
            return Run(folder)
    raise StoreError("no such run", got=str(path), expected="a folder written by intaglio train, scan or Ledger")
