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
            source = f"_rows_{name}_{table}" if name else table  # alone, no other name shows in `show tables`
            connection.register(source, _rows(run, table))
            if name:
                connection.execute(f'create view "{name}"."{table}" as select * from "{source}"')
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


def _check_reads(connection: Any, sql: str) -> None:
    """Refuse all but one statement that reads: the tables in memory are nobody's to change."""
    import duckdb

    reads = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    kinds = [statement.type for statement in connection.extract_statements(sql)]
    if kinds and (len(kinds) > 1 or kinds[0] not in reads):
        got = "several statements" if len(kinds) > 1 else kinds[0].name.lower()
        raise InputError("a query only reads", got=got, expected="one select statement")


def query(run: Run, sql: str) -> Any:
    """The rows of a query over one run, as a pyarrow table.

    Raises:
        InputError: the SQL does not parse, is no single statement that reads, names an unknown column, touches
            files, or selects nothing.
    """
    import duckdb

    try:
        connection = connect({"": run})
        _check_reads(connection, sql)
        relation = connection.sql(sql)
        if relation is None:
            raise InputError("the query selects nothing", got=sql, expected="a select statement")
        return relation.to_arrow_table()
    except duckdb.Error as error:
        raise InputError(f"the query failed: {str(error).splitlines()[0]}") from None
