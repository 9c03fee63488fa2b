"""One decision taken apart: plain tables and numbers, the hinge between measuring and looking.

Pure: no torch, no files beyond those a method is asked to write.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.files import write_text
from intaglio.tables import TRACE_TABLES
from intaglio.tables.arrow import as_arrow

if TYPE_CHECKING:
    import pyarrow

SCHEMA = 1
LENSES = (
    "distribution", "embedding", "heads", "context", "position", "votes", "residual", "neurons", "rotary", "temperature",
    "interference", "sampling", "architecture", "tokenization", "tuning", "instruction", "reasoning", "corpus", "models",
    "trajectory",
)  # in the order in which the page numbers them


@dataclass(eq=False)
class TraceData:
    """What `why` found, as data; `views.Trace` adds what shows it.

    Attributes:
        about: the subject, the prompt as the model saw it, the question, sizes and the ledger's closing.
        rows: table name to its rows; the contract is `tables.TRACE_TABLES`.
        lenses: lens name to its `numbers` and `tables`, or to why it was `skipped`.
        beside: other sides of the same question, each with `kind` (model, prompt or target) and `name` in its `about`.
    """

    about: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lenses: dict[str, dict[str, Any]] = field(default_factory=dict)
    beside: list[TraceData] = field(default_factory=list)

    def table(self, name: str) -> pyarrow.Table:
        """A table as pyarrow; empty where it was not measured.

        Raises:
            InputError: no such table.
        """
        return as_arrow(TRACE_TABLES, name, self.rows, "a trace")

    @property
    def votes(self) -> pyarrow.Table:
        """address, source, token, vote_logits, part_logits, effect_logits, attention: sums to the logit difference."""
        return self.table("votes")

    def to_json(self, path: str | Path | None = None) -> str:
        """All of it as JSON; also written to `path` if one is given.

        Raises:
            StoreError: it cannot be written.
        """
        beside = [{**side.about, "tables": side.rows} for side in self.beside]
        whole = {"schema": SCHEMA, **self.about, "tables": self.rows, "lenses": self.lenses, "beside": beside}
        text = json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False)
        if path is not None:
            write_text(Path(path), text + "\n")
        return text


def by_order(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each order, the row without any head at the end of all."""
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        lines[row["order"]].append(row)
    everything = lines.pop("all")
    return {name: own + everything for name, own in ({"weak": [], "strong": []} | lines).items()}
