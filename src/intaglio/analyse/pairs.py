"""Each fact with itself: told in one way in one run and in another way in another run.

Different facts differ by themselves more than the ways of telling them do, so the difference is taken
within the fact, and the interval over the facts (paired bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intaglio.analyse.data import read
from intaglio.analyse.stats import mean_interval, number, resamples
from intaglio.findings import Interval

MEASURES = ("moved_u", "fell_nats")


@dataclass(frozen=True, slots=True)
class Told:
    """What one way of telling a fact did: None where it was not measured."""

    moved_u: float | None  # |shift| of its rows in u per 1000 trained tokens, over the measured visits
    fell_nats: float | None  # fall of loss in other words (probe `target`), nats per token


@dataclass(frozen=True, slots=True)
class FactPair:
    """One fact, told in both ways."""

    fact: str
    ways: tuple[Told, Told]

    def difference(self, measure: str) -> float:
        """First way less second; NaN where either is unknown."""
        first, second = (getattr(way, measure) for way in self.ways)
        return np.nan if first is None or second is None else first - second


def fact_pairs(runs: Sequence[Any], arms: tuple[str, str] = ("leap", "bridge")) -> list[FactPair]:
    """Facts told in both ways (groups) over several runs, by name; a fact that lacks a way is left out.

    Args:
        runs: open runs; a fact stands in one group per run.
        arms: the two groups.
    """
    told: dict[str, dict[str, Told]] = {}
    for run in runs:
        for (group, fact), way in _told(run).items():
            told.setdefault(fact, {})[group] = way
    return [FactPair(f, (ways[arms[0]], ways[arms[1]])) for f, ways in sorted(told.items()) if {*arms} <= {*ways}]


def mean_difference(pairs: Sequence[FactPair], measure: str, *, seed: int = 0) -> Interval:
    """Mean over the facts of (first way - second way) with its paired bootstrap interval; the null is 0."""
    if not pairs:
        return Interval(None)
    found = mean_interval(np.array([p.difference(measure) for p in pairs]), resamples(len(pairs), seed=seed, times=10_000))
    return Interval(found.value, found.low, found.high, None if found.value is None else 0.0)


def _told(run: Any) -> dict[tuple[str, str], Told]:
    """(group, fact) to what was measured of it in one run."""
    unit = float(run.manifest.get("unit_length") or np.nan)
    moved = read(run, """
        select e."group" as grp, e.fact as fact,
               1000 * sum(abs(v.shift)) / sum(v.targets) filter (where v.shift is not null) as moved
        from visits v join examples e using (example) where e.fact is not null and e."group" is not null group by all""")
    falls = read(run, """
        select fact, avg(first - last) as fall from (
            select fact, item, arg_min(loss_nats, step) as first, arg_max(loss_nats, step) as last
            from probe_items where probe = 'target' and fact is not null and loss_nats is not null
            group by fact, item having count(distinct step) > 1) group by fact""")
    fell = dict(zip(falls["fact"], falls["fall"]))
    return {
        (group, fact): Told(number(size / unit), number(fell.get(fact)))
        for group, fact, size in zip(moved["grp"], moved["fact"], moved["moved"])
    }
