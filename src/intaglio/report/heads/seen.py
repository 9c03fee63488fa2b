"""An atlas as the page walks through it: heads by short name, whichever tables there are.  Pure."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from intaglio.atlas import UNRESOLVED, AtlasData

_HEAD = re.compile(r"L(\d+)\.attn\.H(\d+)\Z", re.ASCII)
_TOLD = (
    "heads",
    "scores",
    "weights",
    "patterns",
    "history",
    "places",
    "reads",
    "events",
    "teachers",
)  # tables that name heads
RESTING = "first_token"  # where heads rest: behind all their other roles
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Seen:
    """One side of the page.

    Attributes:
        name: of the subject.
        layers, heads: size of the wall.
        rows: table name to its rows, as in the atlas.
        by_head: every head's row of `heads`, by short name ("18.6"), in order; made from the scores, or from the last step
            of the history, where that table is not there.
        tested: whether any role was looked for at all.
    """

    name: str
    about: dict[str, Any]
    layers: int
    heads: int
    rows: dict[str, list[Row]]
    by_head: dict[str, Row]
    tested: bool

    def of(self, table: str) -> list[Row]:
        return self.rows.get(table, [])

    def grouped(self, table: str, key: str = "address") -> dict[str, list[Row]]:
        """Rows of a table by the short name of their head."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.of(table):
            found[short(row[key])].append(row)
        return found

    @property
    def named(self) -> dict[str, Row]:
        """Heads that have a role."""
        return {name: row for name, row in self.by_head.items() if row["role"] != UNRESOLVED}

    def holders(self) -> dict[str, list[Row]]:
        """Role to the rows of all heads that have it, the most evidence first; a head may have several roles."""
        found: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in self.of("scores"):
            if row.get("named"):
                best = found[row["role"]].setdefault(short(row["address"]), row)
                if _order(row) < _order(best):
                    found[row["role"]][short(row["address"])] = row
        for name, row in self.named.items():
            if not self.of("scores"):
                found[row["role"]][name] = row
        return {role: sorted(rows.values(), key=_order) for role, rows in found.items()}


def seen(atlas: AtlasData) -> Seen:
    """An atlas with its heads in order, the missing ones as unresolved."""
    about, rows = atlas.about, atlas.rows
    places = [p for name in _TOLD for row in rows.get(name, []) if (p := place(row["address"]))]
    layers = int(about.get("n_layers") or 1 + max((p[0] for p in places), default=-1))
    heads = int(about.get("n_heads") or 1 + max((p[1] for p in places), default=-1))
    layers, heads = (
        max(size, *(1 + p[i] for p in places)) if places else size for i, size in enumerate((layers, heads))
    )
    given = {
        short(r["address"]): r
        for r in rows.get("heads") or _strongest(rows.get("scores") or _last(rows.get("history", [])))
    }
    every = [f"{layer}.{head}" for layer in range(layers) for head in range(heads)]
    by_head = {name: {"role": UNRESOLVED, "roles": []} | given.get(name, {}) for name in every}
    tested = any(rows.get(name) for name in ("heads", "scores", "history"))
    return Seen(str(about.get("subject", "")), about, layers, heads, rows, by_head, tested)


def _last(history: list[Row]) -> list[Row]:
    last = max((r["step"] for r in history), default=None)
    return [r for r in history if r["step"] == last]


def _strongest(scores: Iterable[Row]) -> list[Row]:
    """The named role with the most evidence of every head."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in scores:
        if row.get("named"):
            found[row["address"]].append(row | {"evidence": evidence(row)})
    made = []
    for _address, rows in found.items():
        rows.sort(key=lambda r: (r["role"] == RESTING, _order(r)))
        made.append(rows[0] | {"roles": list(dict.fromkeys(r["role"] for r in rows))})
    return made


def loosely_tested(check: Row) -> bool:
    """Whether the loss of a check is only ordinary text's, because none is known that the role alone should carry."""
    return "no loss is known" in check["task"]


def verdict(check: Row) -> str | None:
    """What a check says of its role: the key of a sentence under `page.roles`; None where nothing was compared.

    Without its heads the loss may rise beyond all random draws, rise no further than some draw, or not rise at all.
    """
    if check.get("ablated_nats") is None or check.get("random_nats") is None:
        return None
    said = "holds" if check.get("holds") else "idle" if check["ablated_nats"] <= check["loss_nats"] else "fails"
    return f"loose_{said}" if loosely_tested(check) else said


def _order(row: Row) -> float:
    """Less for the row with more evidence."""
    return -(evidence(row) or 0.0)


def evidence(row: Row) -> float | None:
    """How far a score lies between its null and the best possible."""
    score, null = row.get("score"), row.get("null")
    if score is None or null is None or not null < 1:
        return None
    return (score - null) / (1 - null)


def place(address: str) -> tuple[int, int] | None:
    """Layer and head of an address; None where it names something else."""
    found = _HEAD.match(address or "")
    return (int(found[1]), int(found[2])) if found else None


def short(address: str) -> str:
    """18.6 for L18.attn.H6; what is no head stays as it is."""
    found = place(address)
    return f"{found[0]}.{found[1]}" if found else address


def brief(value: float | None, digits: int = 4) -> float | int | None:
    """A number for the page's script; None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
