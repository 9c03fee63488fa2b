"""Which training texts taught a head: credit to the loss of its role through its own slices, with movement beside. Pure.

Movement is not teaching: a text may push a head hard in a direction that its role does not need. The credit of a visit is
the fall of the role's loss that its part of the step predicts through this head's weights alone (`visit_credits`); a text's is
the sum over its visits in the window of the head's birth. Its null is the same credit through the other heads of the layer:
a text that teaches all of them alike taught none of them in particular.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intaglio.analyse.stats import number
from intaglio.errors import InputError

BEGUN, DONE = 0.1, 0.9  # of the head's highest excess over the null: between them lies the birth
REDRAWINGS = 1000
_LAYER = re.compile(r"(.*\.attn\.H)\d+\Z", re.ASCII)

Row = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """The steps of a birth: `before` it up to `begun`, and during it up to `end` (not included).

    `before` lies as many steps before `begun` as the birth took.
    """

    before: int
    begun: int
    end: int

    @property
    def whole(self) -> tuple[int, int]:
        """(first, one past the last) step, before and during the birth."""
        return self.before, self.end


def birth_window(history: Sequence[Mapping[str, Any]], address: str, role: str) -> Window:
    """When a head came to its role: from the last checkpoint under a tenth of its highest score to the first over nine tenths.

    Args:
        history: rows of the table `history`.

    Raises:
        InputError: the head never has the role, or has it from the first checkpoint on.
    """
    mine: dict[int, float] = {}
    named = False
    for row in history:
        if row["address"] == address and row["role"] == role:
            mine[row["step"]] = max(row["score"] - row["null"], mine.get(row["step"], -np.inf))
            named |= row["named"]
    steps = np.array(sorted(mine))
    excess = np.array([mine[s] for s in steps])
    if not named or excess.max() <= 0:
        raise InputError(f"{address} never has the role {role} in this run", expected="--window A:B, or a head that has it")
    done = int(np.flatnonzero(excess >= DONE * excess.max())[0])
    low = np.flatnonzero(excess[:done] < BEGUN * excess.max())
    if done == 0 or not len(low):
        raise InputError(f"{address} has the role {role} from the first checkpoint on", expected="--window A:B")
    begun, end = int(steps[low[-1]]), int(steps[done])
    return Window(max(0, begun - (end - begun)), begun, end)


def teachers_of(run: Any, address: str, *, probe: str, window: tuple[int, int], top: int | None = None) -> list[Row]:
    """Rows of the table `teachers`, the largest credit first.

    Args:
        run: with `visit_credits`.
        address: a head, such as L1.attn.H3.
        probe: whose loss is the role's.
        window: (first, one past the last) step.
        top: only so many; all if None.

    Raises:
        InputError: no such probe, head or credit in the window.
    """
    credit = _credits(run, address, probe, window)
    moved = _moved(run, address, window)
    order = sorted(credit, key=lambda e: (-credit[e][address], e))
    told = _examples(run, order[:top])
    rows = []
    for rank, example in enumerate(order[:top]):
        others = [c for a, c in credit[example].items() if a != address]
        low, high = np.percentile(others, [5, 95]) if others else (np.nan, np.nan)
        movement, visits = moved.get(example, (0.0, 0))
        rows.append({
            "address": address, "example": example, "rank": rank, "credit_nats": credit[example][address],
            "movement": movement, "null_low": number(low), "null_high": number(high), "visits": visits, **told[example],
        })  # fmt: skip
    return rows


def groups_of(run: Any, address: str, *, probe: str, window: tuple[int, int], seed: int = 0) -> list[Row]:
    """Which group of texts taught the head: mean credit of a visit with its interval, and the sums, the best first.

    Args:
        window: (first, one past the last) step.
        seed: of the redrawn texts.

    Returns:
        Rows of group, examples, visits, credit_nats (their sum), per_visit_nats with low and high (95 %, by redrawing
        texts), other_nats (the sum through the layer's other heads, mean over them), movement.
    """
    credit, moved = _credits(run, address, probe, window), _moved(run, address, window)
    told = _examples(run, list(credit))
    rng, rows = np.random.default_rng(seed), []
    for group in sorted({row["group"] or "" for row in told.values()}):
        mine = [e for e in credit if (told[e]["group"] or "") == group]
        total = np.array([credit[e][address] for e in mine])
        visits = np.array([moved.get(e, (0.0, 0))[1] for e in mine])
        picks = rng.integers(len(mine), size=(REDRAWINGS, len(mine)))
        again = total[picks].sum(1) / np.maximum(visits[picks].sum(1), 1)
        low, high = np.percentile(again, [2.5, 97.5])
        others = [np.mean([c for a, c in credit[e].items() if a != address] or [np.nan]) for e in mine]
        rows.append({
            "group": group, "examples": len(mine), "visits": int(visits.sum()), "credit_nats": float(total.sum()),
            "per_visit_nats": float(total.sum() / max(1, visits.sum())), "low": float(low), "high": float(high),
            "other_nats": number(np.sum(others)), "movement": float(sum(moved.get(e, (0.0, 0))[0] for e in mine)),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["credit_nats"])


def share_of_top(teachers: Sequence[Mapping[str, Any]], share: float = 0.1) -> float | None:
    """How much of all positive credit the best teachers gave: 0.1 of them gave 0.1 where all teach alike."""
    positive = np.array([max(0.0, row["credit_nats"]) for row in teachers])
    n = max(1, round(share * len(positive)))
    return number(positive[:n].sum() / positive.sum()) if positive.sum() > 0 else None


# --- reading ---------------------------------------------------------------------------------


def _credits(run: Any, address: str, probe: str, window: tuple[int, int]) -> dict[str, dict[str, float]]:
    """By example: by head of the layer, the sum of its credits in the window."""
    known = run.manifest.get("probes") or {}
    if probe not in known:
        raise InputError("the run has no such probe", got=probe, expected=", ".join(known) or "a run with probes")
    if not run.files("visit_credits"):
        raise InputError(
            f"{run.name} kept no credits by part of the model", expected="a run with --credit-parts, or a replay of this one"
        )
    layer = _LAYER.match(address)
    assert layer, address
    found = run.sql(f"""
        select example, address, sum(credit_nats) as credit from visit_credits
        where probe = '{probe}' and starts_with(address, '{layer[1]}') and step >= {int(window[0])} and step < {int(window[1])}
        and isfinite(credit_nats) group by all order by all""").fetchnumpy()  # fmt: skip
    credits: dict[str, dict[str, float]] = {}
    for example, at, credit in zip(found["example"], found["address"], found["credit"]):
        credits.setdefault(str(example), {})[str(at)] = float(credit)
    if not any(address in heads for heads in credits.values()):
        raise InputError(f"no credit of {address} was kept in steps {window[0]} to {window[1]}",
                         expected="a head of this model, and a window with credited steps")  # fmt: skip
    return credits


def _moved(run: Any, address: str, window: tuple[int, int]) -> dict[str, tuple[float, int]]:
    """By example: the sum of |shift| in the head over the window, and its visits there."""
    found = run.sql(f"""
        select v.example as example, coalesce(sum(abs(p.shift)), 0) as movement, count(*) as visits
        from visit_parts p join visits v using (step, slot)
        where p.address = '{address}' and step >= {int(window[0])} and step < {int(window[1])} group by all""").fetchnumpy()
    return {str(e): (float(m), int(n)) for e, m, n in zip(found["example"], found["movement"], found["visits"])}


def _examples(run: Any, wanted: Sequence[str]) -> dict[str, Row]:
    """Group and preview of some examples."""
    table = run.table("examples").select(["example", "group", "preview"]).to_pylist()
    asked = set(wanted)
    found = {row["example"]: {"group": row["group"], "preview": row["preview"]} for row in table if row["example"] in asked}
    return {e: found.get(e, {"group": None, "preview": ""}) for e in wanted}
