"""THE contract: every table, its key, its columns, their units and what they mean.

    run.py    what training did (parquet, in a run's folder)
    trace.py  one decision taken apart
    atlas.py  what every attention head does, and where it lies

Stages that pass data never import each other; they all import this. A column's `means` is
printed by the pages and the reference docs, so it is written for a reader. Pure: no torch, no pyarrow.
"""

from __future__ import annotations

from intaglio.tables.atlas import ATLAS
from intaglio.tables.column import Column, Table
from intaglio.tables.run import RUN
from intaglio.tables.trace import TRACE

__all__ = ["ATLAS_TABLES", "SCHEMA_VERSION", "TABLES", "TRACE_TABLES", "Column", "Table"]

SCHEMA_VERSION = 1
TABLES: dict[str, Table] = {table.name: table for table in RUN}
TRACE_TABLES: dict[str, Table] = {table.name: table for table in TRACE}
ATLAS_TABLES: dict[str, Table] = {table.name: table for table in ATLAS}
