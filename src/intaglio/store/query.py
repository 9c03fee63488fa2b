"""DuckDB over one or many runs. Reads parquet in place; a query can neither write nor open other files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from intaglio.errors import InputError
from intaglio.tables import TABLES

if TYPE_CHECKING:
    from intaglio.store.run import Run


def connect(runs: Mapping[str, Run]) -> Any:
    """A DuckDB connection with every table of every run as a view.

    The files are opened here, by pyarrow, and handed over; DuckDB itself is denied the file
    system. Listing the files as its allowed paths would not do: an allowed path may be written.

    Args:
        runs: schema name to run; the empty name puts the tables at top level
            (`visits`), a name `a` puts them in schema `a` (`a.visits`).
    """
    import duckdb

    connection = duckdb.connect()
    connection.execute("set enable_external_access = false")
    for name, run in runs.items():
        if name:
            connection.execute(f'create schema "{name}"')
        for table in TABLES:
            source = f"_rows_{name}_{table}"
            connection.register(source, _rows(run, table))
            target = f'"{name}"."{table}"' if name else f'"{table}"'
            connection.execute(f'create view {target} as select * from "{source}"')
    connection.execute("set lock_configuration = true")
    return connection


def _rows(run: Run, table: str) -> Any:
    """The table's files as one pyarrow dataset, of which a query reads only the columns it names."""
    from pyarrow import dataset

    from intaglio.store.parts import check_whole
    from intaglio.store.run import NAMED_ONCE, schema_of

    files = run.files(table)
    if not files or table in NAMED_ONCE:
        return run.table(table)
    check_whole(files)
    return dataset.dataset([str(file) for file in files], schema=schema_of(table), format="parquet")


def query(run: Run, sql: str) -> Any:
    """The rows of a query over one run, as a pyarrow table.

    Raises:
        InputError: the SQL does not parse, names an unknown column, touches files, or selects nothing.
    """
    import duckdb

    try:
        relation = connect({"": run}).sql(sql)
        if relation is None:
            raise InputError("the query selects nothing", got=sql, expected="a select statement")
        return relation.to_arrow_table()
    except duckdb.Error as error:
        raise InputError(f"the query failed: {str(error).splitlines()[0]}") from None
