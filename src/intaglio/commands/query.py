"""`intaglio query`: SQL over a run's tables."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from intaglio.errors import InputError
from intaglio.store import query as store
from intaglio.store.run import open_run
from intaglio.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

_TABLE_ROWS = 50  # a terminal's worth; csv and json print all


def query(run: Path, sql: str, *, format: Literal["table", "csv", "json"] = "table", limit: int | None = None) -> None:
    """Print the result of a SQL query over a run's tables.

    The tables and their columns are those of the reference, such as `visits`, `steps`, `tokens`.
    The query is DuckDB's SQL; it can read nothing but the run, and write nothing at all.

    Examples:

        intaglio query runs/mine "select example, sum(shift) from visits group by 1 order by 2 desc limit 10"

        intaglio query runs/mine "select step, loss_nats from steps" --format csv

    Parameters
    ----------
    run
        Folder of the run; one that is still going will do.
    sql
        One statement that reads: select, with, from, describe, summarize, explain or show tables.
    format
        A table for reading, or csv or json (one array of objects) for another program. Bytes are written as
        UTF-8 text, with a replacement sign (U+FFFD) for a part of a letter.
    limit
        Print at most this many rows; as a table 50 unless told, else all.
    """
    if limit is not None and limit < 0:
        raise InputError("--limit must not be negative", got=limit)
    found = store.query(open_run(run), sql)
    most = limit if limit is not None else _TABLE_ROWS if format == "table" else found.num_rows
    {"table": print_table, "csv": print_csv, "json": print_json}[format](found.slice(0, most))
    if format == "table" and found.num_rows > most:
        print(f"{counted(found.num_rows - most, 'more row')}; --limit {found.num_rows} prints all")


def print_table(found: pa.Table) -> None:
    """Aligned columns for a reader; numbers to six significant digits."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = [column.to_pylist() for column in found.columns]
    for name, values in zip(found.column_names, columns):
        numeric = any(isinstance(v, int | float) for v in values)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in zip(*columns):
        table.add_row(*(Text(_shown(value)) for value in row))
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(table)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(_text(value))


def _text(value: object) -> object:
    """Bytes as UTF-8, with U+FFFD for a part of a letter; anything else as it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _plain(value: object) -> object:
    """What JSON can hold, also within lists and structs."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return None if value != value else _text(value)


def print_csv(found: pa.Table) -> None:
    """Comma-separated values with a header; null is empty, bytes are text."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(found.column_names)
    writer.writerows([_text(value) for value in row] for row in zip(*(c.to_pylist() for c in found.columns)))


def print_json(found: pa.Table) -> None:
    """One array of objects; bytes and dates as text, NaN as null; columns of one name are numbered."""
    names: list[str] = []
    for name in found.column_names:
        taken = {*names, *found.column_names[len(names) + 1 :]}
        numbered = (f"{name}_{n}" for n in itertools.count(2))
        names.append(name if name not in names else next(n for n in numbered if n not in taken))
    rows = [{name: _plain(value) for name, value in row.items()} for row in found.rename_columns(names).to_pylist()]
    json.dump(rows, sys.stdout, ensure_ascii=False, indent=1, default=str)
    print()
