"""A run's small tables as plain arrays: parsed once, so that every measure is arithmetic on them.

Large tables (tokens, visit_parts, parts) never come in whole; DuckDB aggregates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Columns = dict[str, np.ndarray]

_VISITS = """
    select step, slot, example, targets, loss_nats, push, shift, alignment, loss_weight
    from visits order by step, slot"""
_EXAMPLES = """
    select example, row, "group", fact, tokens, targets, preview from examples
    order by row[1] nulls last, example"""


def columns(table: pa.Table) -> Columns:
    """A column's array each: numbers as float64 with NaN for null, all else as objects with None."""
    return {name: _array(table.column(name)) for name in table.column_names}


def _array(column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        out = np.empty(len(column), dtype=object)
        out[:] = column.to_pylist()
        return out
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def read(run: Any, sql: str) -> Columns:
    """The result of a query over the run's tables."""
    return columns(run.sql(sql).to_arrow_table())


@dataclass(frozen=True)
class RunData:
    """What a run holds per step, visit and example. `code` indexes the examples; missing is NaN.

    Attributes:
        unit_length: parameter length of 1 u; NaN where the manifest has none.
        steps: one entry per step, ascending.
        visits: one entry per training visit, by step and slot.
        scans: one entry per example and scored state.
        examples: one entry per distinct text, by its first row.
    """

    run: Any
    manifest: Mapping[str, Any]
    unit_length: float
    steps: Columns
    visits: Columns
    scans: Columns
    examples: Columns

    @property
    def n_examples(self) -> int:
        return len(self.examples["example"])

    def step_has_shift(self) -> np.ndarray:
        """Which steps' visits carry a shift: bool, per step."""
        return np.isin(self.steps["step"], self.visits["step"][np.isfinite(self.visits["shift"])])

    def countable(self) -> np.ndarray:
        """Which steps sums are scaled up to: those whose shift was measured, or was left out whatever they held.

        Left out for what they held are steps whose loss was no finite number, and steps measured in full whose
        gradients were so changed that nothing could be split among the examples. Bool, per step.
        """
        chosen = np.isin(self.steps["measured"], ("full", "exact"))
        broken = ~np.isfinite(self.steps["loss_nats"]) if nonfinite_step(self.manifest) is not None else False
        return self.step_has_shift() | ~(chosen | broken)

    def scale(self) -> float:
        """Factor from the steps whose shift was measured to all countable ones, by examples seen (1: all were).

        Horvitz-Thompson: with steps measured independently of their content, measured
        sums times this factor estimate sums over all steps, and keep adding up.
        """
        measured = self.step_has_shift()
        if not measured.any():
            return 1.0
        seen = self.steps["examples"]
        weight = seen if np.isfinite(seen).all() else np.ones(len(seen))
        return float(weight[self.countable()].sum() / weight[measured].sum())

    def per_example(self, values: np.ndarray, *, mean: bool = False) -> np.ndarray:
        """Sum (or mean) over each example's visits; NaN for an example without a known value."""
        known = np.isfinite(values)
        code = self.visits["code"][known]
        count = np.bincount(code, minlength=self.n_examples)
        total = np.bincount(code, weights=values[known], minlength=self.n_examples)
        with np.errstate(invalid="ignore"):
            return np.where(count > 0, total / count if mean else total, np.nan)


def nonfinite_step(manifest: Mapping[str, Any]) -> int | None:
    """The first step whose loss was no finite number."""
    found = manifest.get("nonfinite")
    return int(found["step"]) if found else None


def _finite_end(manifest: Mapping[str, Any], steps: Columns) -> float:
    """The step from which on no loss was a finite number any more; infinite where there is none."""
    first = nonfinite_step(manifest)
    if first is None:
        return np.inf
    return max([first, *(steps["step"][np.isfinite(steps["loss_nats"])] + 1)])


def load(run: Any) -> RunData:
    """Read a run, whole or still going; visits of texts not yet listed get an entry of their own.

    A run whose losses end in NaN is read up to there.
    """
    manifest = dict(run.manifest)
    unit = manifest.get("unit_length")
    steps = read(run, "select distinct on (step) * from steps order by step")
    visits, end = read(run, _VISITS), _finite_end(manifest, steps)
    steps, visits = ({n: v[t["step"] < end] for n, v in t.items()} for t in (steps, visits))
    scans = read(run, "select step, example, loss_nats, push, alignment from scans order by step")
    examples = _with_unlisted(read(run, _EXAMPLES), visits, scans)
    index = {example: code for code, example in enumerate(examples["example"])}
    for table in (visits, scans):
        table["code"] = np.array([index[e] for e in table["example"]], dtype=np.int64)
    return RunData(run, manifest, float(unit) if unit else np.nan, steps, visits, scans, examples)


def _with_unlisted(examples: Columns, visits: Columns, scans: Columns) -> Columns:
    listed = set(examples["example"])
    targets = dict(zip(visits["example"], visits["targets"]))
    extra = sorted({*visits["example"], *scans["example"]} - listed)
    if not extra:
        return examples
    blank = {
        "example": extra, "row": [[]] * len(extra), "group": [None] * len(extra), "fact": [None] * len(extra),
        "tokens": [np.nan] * len(extra), "targets": [targets.get(e, np.nan) for e in extra],
        "preview": [""] * len(extra),
    }  # fmt: skip
    return {name: np.concatenate([values, _like(values, blank[name])]) for name, values in examples.items()}


def _like(values: np.ndarray, extra: list) -> np.ndarray:
    out = np.empty(len(extra), dtype=values.dtype)
    out[:] = extra
    return out
