"""What a table and a column are. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `type` is a pyarrow type name, `unit` is "" where the number has none."""

    name: str
    type: str
    unit: str
    means: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table: one row per `key`."""

    name: str
    key: tuple[str, ...]
    means: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)


ADDRESS = Column("address", "string", "", "part of the model, such as L3.attn.H5")
