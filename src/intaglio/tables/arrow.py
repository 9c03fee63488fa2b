"""Rows of a contract as pyarrow, which is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from intaglio.errors import InputError
from intaglio.tables.column import Table

if TYPE_CHECKING:
    import pyarrow


def as_arrow(tables: Mapping[str, Table], name: str, rows: Mapping[str, Sequence[dict[str, Any]]], of: str) -> pyarrow.Table:
    """A table of the contract `tables` with its rows among `rows`; empty where it was not measured.

    Args:
        of: what has such tables, in words for the refusal.

    Raises:
        InputError: no such table.
    """
    import pyarrow as pa

    if name not in tables:
        raise InputError(f"no such table of {of}", got=name, expected=", ".join(tables))
    schema = pa.schema([(c.name, _type(c.type)) for c in tables[name].columns])
    return pa.Table.from_pylist(list(rows.get(name, ())), schema=schema)


def _type(name: str) -> pyarrow.DataType:
    import pyarrow as pa

    inner = name.removeprefix("list<").removesuffix(">")
    return pa.list_(pa.type_for_alias(inner)) if inner != name else pa.type_for_alias(name)
