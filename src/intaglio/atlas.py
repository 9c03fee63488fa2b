"""What every head does, as data: the hinge between measuring heads and looking at them.

Pure: no torch, no files beyond those a method is asked to write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.errors import InputError
from intaglio.files import write_text
from intaglio.tables import ATLAS_TABLES
from intaglio.tables.arrow import as_arrow

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

SCHEMA = 1
UNRESOLVED = "unresolved"
BASIC = ("previous_token", "fixed_offset", "duplicate_token", "induction", "first_token", "self")  # on repeated random tokens
ROLES = (
    *BASIC, "copying", "copy_suppression", "successor", "name_mover", "s_inhibition", "coreference", "syntax", "temporal",
    "retrieval",
)  # in the order in which pages list them


@dataclass(frozen=True, eq=False)
class Sampled:
    """One role's score of every head on N independent texts, with the same score on shuffled targets.

    Attributes:
        role: one of `ROLES`.
        detail: what the role leaves open (an offset, a relation with its direction); "" where nothing.
        values_NLH, null_NLH: float64, text by layer by head; nan where a text does not test the role.
    """

    role: str
    detail: str
    values_NLH: np.ndarray
    null_NLH: np.ndarray


@dataclass(eq=False)
class AtlasData:
    """What was found about the heads of one model, or of one model at several checkpoints.

    Attributes:
        about: subject, fingerprint, sizes (n_layers, n_heads, n_key_heads, head_dim, width), seed, the reference texts'
            tokens (`texts`: a list of lists of letters, `text_ids`), the rule and smallest effect by which a role is named
            (`rules`: by role), which roles were `skipped` and why (by role), seconds.
        rows: table name to its rows; the contract is `tables.ATLAS_TABLES`.
        beside: a second model or checkpoint of the same shape, looked at with the same selection.
    """

    about: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    beside: list[AtlasData] = field(default_factory=list)

    def rows_of(self, name: str) -> pyarrow.Table:
        """A table as pyarrow; empty where it was not measured.

        Raises:
            InputError: no such table.
        """
        return as_arrow(ATLAS_TABLES, name, self.rows, "an atlas")

    @property
    def table(self) -> pyarrow.Table:
        """One row per head: its strongest role, or unresolved."""
        return self.rows_of("heads")

    def to_json(self, path: str | Path | None = None) -> str:
        """All of it as JSON; also written to `path` if one is given.

        Raises:
            StoreError: it cannot be written.
        """
        beside = [{**side.about, "tables": side.rows} for side in self.beside]
        whole = {"schema": SCHEMA, **self.about, "tables": self.rows, "beside": beside}
        text = json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False)
        if path is not None:
            write_text(Path(path), text + "\n")
        return text


def read_atlas(path: str | Path) -> AtlasData:
    """What `AtlasData.to_json` wrote.

    Raises:
        InputError: it is not there, or no atlas.
    """
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the atlas: {error.strerror or error}", got=str(path)) from None
    except (ValueError, RecursionError):
        raise InputError("not an atlas: no JSON", got=str(path)) from None
    if not isinstance(whole, dict) or not isinstance(whole.get("tables"), dict):
        raise InputError("not an atlas", got=str(path), expected="a file that intaglio heads --json wrote")
    if whole.get("schema") != SCHEMA:
        raise InputError("an atlas of another schema", got=whole.get("schema"), expected=str(SCHEMA))
    return _data(whole)


def _data(whole: dict[str, Any]) -> AtlasData:
    about = {k: v for k, v in whole.items() if k not in ("schema", "tables", "beside")}
    return AtlasData(about, whole["tables"], [_data(side) for side in whole.get("beside", [])])
