"""DuckDB over one or many runs. Reads parquet in place; executes SQL on local files only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from intaglio.errors import InputError
from intaglio.tables import TABLES

if TYPE_CHECKING:
    from intaglio.store.run import Run


def connect(runs: Mapping[str, Run]) -> Any:
    """A DuckDB connection with every table of every run as a view.

    Args:
        runs: schema name to run; the empty name puts the tables at top level
            (`visits`), a name `a` puts them in schema `a` (`a.visits`).
    """
    import duckdb

    connection = duckdb.connect()
    for name, run in runs.items():
        if name:
            connection.execute(f'create schema "{name}"')
        for table in TABLES:
            files = run.files(table)
            target = f'"{name}"."{table}"' if name else f'"{table}"'
            if files:
                listed = ", ".join("'" + str(f).replace("'", "''") + "'" for f in files)
                connection.execute(f"create view {target} as select * from read_parquet([{listed}])")
            else:
                empty = f"_empty_{name}_{table}"
                connection.register(empty, run.table(table))
                connection.execute(f'create view {target} as select * from "{empty}"')
    return connection


def query(run: Run, sql: str) -> Any:
    """The rows of a query over one run, as a pyarrow table.

    Raises:
        InputError: the SQL does not parse or names an unknown column.
    """
    import duckdb

    try:
        return connect({"": run}).sql(sql).to_arrow_table()
    except (duckdb.Error, AttributeError) as error:
        raise InputError(f"the query failed: {str(error).splitlines()[0]}") from None
