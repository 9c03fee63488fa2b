"""The parquet files of one table of a run: written aside and renamed, in the order of their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from intaglio.errors import StoreError
from intaglio.files import write_whole

WHOLE = "all.parquet"  # a table in one file; where it stands, parts beside it are left over and count no more
_PART = re.compile(r"^part-(\d+)-(\d+)(?:-(\d+))?\.parquet$")  # step, rank, and which flush of that step


def parts_of(folder: Path) -> list[Path]:
    """A table's parts in the order in which they were written: by step, rank and flush."""
    return sorted((p for p in folder.glob("part-*.parquet") if _PART.match(p.name)), key=numbers_of)


def numbers_of(part: Path) -> tuple[int, int, int]:
    """Step, rank and flush of a part."""
    step, rank, flush = _PART.match(part.name).groups()
    return int(step), int(rank), int(flush or 0)


def next_part(folder: Path, step: int, rank: int) -> Path:
    """The name of the next flush of a step."""
    flushes = [n[2] for n in map(numbers_of, parts_of(folder)) if n[:2] == (step, rank)]
    return folder / f"part-{step:08d}-{rank}{f'-{flushes[-1] + 1}' if flushes else ''}.parquet"


def write_table(path: Path, data: pa.Table) -> None:
    """Write a parquet file, whole or not at all."""
    write_whole(path, lambda p: pq.write_table(data, p, compression="zstd"))


def check_whole(files: Iterable[Path]) -> None:
    """Refuse files that are no parquet, by name.

    Raises:
        StoreError: one is damaged or cannot be read.
    """
    for file in files:
        try:
            pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"cannot read {file}: {str(error).splitlines()[0]}") from None
