"""Where in the model the movement went: layers, heads and parts, over time and by group."""

from __future__ import annotations

from typing import Any

import numpy as np

from intaglio.address import parse
from intaglio.analyse.data import RunData, read
from intaglio.analyse.stats import half_width_of_sums, numbers

_STRETCHES = 50  # heads are many: their movement is kept per stretch of steps, not per step
_LEAST_STEPS = 5  # fewer measured steps cannot be told from random signs
_SIGNS_Z = 1.96
# L3.attn.H5 -> L3.attn; embed.pos stays
_WHOLE_PART = r"regexp_extract(address, '^(L\d+\.(attn|mlp|norm)|.+)', 1)"


def by_address(text: str) -> tuple:
    """Sort key: as data flows through the model; names that are no address come last."""
    try:
        return (0, parse(text))
    except Exception:
        return (1, text)


def _ordered(names: Any) -> list[str]:
    known = sorted((n for n in names if by_address(n)[0] == 0), key=parse)
    return known + sorted(set(names) - set(known))


def layer_series(data: RunData) -> dict[str, list[float | None]]:
    """Each whole part's own step length in u, per step of the run (None where parts were not measured).

    A part's length is the root of the summed squares of the addresses within it.
    """
    found = read(data.run, f"""
        select step, {_WHOLE_PART} as part, sqrt(sum(update_l2 * update_l2)) as length
        from parts where update_l2 is not null group by all""")
    place = np.searchsorted(data.steps["step"], found["step"])
    known = place < len(data.steps["step"])
    grid = {part: np.full(len(data.steps["step"]), np.nan) for part in _ordered(set(found["part"]))}
    for part, at, length in zip(found["part"][known], place[known], found["length"][known]):
        grid[part][at] = length
    return {part: numbers(line / data.unit_length) for part, line in grid.items()}


def part_totals(data: RunData) -> dict[str, Any]:
    """Sums over steps per address: `head_totals` (u), `relative_update`, `starved_parts`.

    Sums are scaled from the steps whose parts were measured to all steps; `head_half_u` and
    `relative_half` are half their 95 % intervals. A part is starved
    when nothing ever happened there, or the data's shift there took both signs about equally often:
    |positive - negative| within 1.96 sqrt(steps), which is what random signs give. Signs, not
    sums: one spike would decide a sum. (A tied head has no step of its own, but shift.)
    """
    found = read(data.run, """
        select address, sum(update_l2) as length, sum(update_l2 / nullif(weight_l2, 0)) as relative,
               sum(update_l2 * update_l2) as length2, sum((update_l2 / nullif(weight_l2, 0)) ** 2) as relative2,
               count(data_shift) as n, abs(sum(sign(data_shift))) as majority,
               coalesce(sum(abs(data_shift)), 0) as size
        from parts group by address""")
    measured = read(data.run, "select count(distinct step) as n from parts where update_l2 is not null")["n"][0]
    total = len(data.steps["step"])
    scale = total / measured if measured else np.nan
    at = {a: i for i, a in enumerate(found["address"])}
    names = _ordered(at)
    starved = (found["n"] >= _LEAST_STEPS) & (found["size"] > 0) & (found["majority"] <= _SIGNS_Z * np.sqrt(found["n"]))
    idle = (found["length"] == 0) & (found["size"] == 0)
    length_half, relative_half = (
        half_width_of_sums(found[name], found[f"{name}2"], measured, total) for name in ("length", "relative")
    )
    heads = [a for a in names if ".attn.H" in a]
    return {
        "head_totals": _known(heads, at, found["length"] * scale / data.unit_length),
        "head_half_u": _known(heads, at, length_half / data.unit_length),
        "relative_update": _known(names, at, found["relative"] * scale),
        "relative_half": _known(names, at, relative_half),
        "starved_parts": tuple(a for a in names if starved[at[a]] or idle[at[a]]),
    }


def _known(names: list[str], at: dict[str, int], values: np.ndarray) -> dict[str, float]:
    return {a: float(values[at[a]]) for a in names if np.isfinite(values[at[a]])}


def head_series(data: RunData) -> dict[str, Any]:
    """Mean step length of each head (u per step) in at most 50 equal stretches, and where those begin."""
    steps = data.steps["step"]
    if not len(steps):
        return {"head_series": {}, "head_series_steps": []}
    first, width = steps[0], max(1, int(np.ceil((steps[-1] - steps[0] + 1) / _STRETCHES)))
    count = int((steps[-1] - first) // width) + 1
    found = read(data.run, f"""
        select address, ((step - {int(first)}) // {width})::int as stretch, avg(update_l2) as length
        from parts where address like '%.attn.H%' and update_l2 is not null group by all""")
    grid = {a: np.full(count, np.nan) for a in _ordered(set(found["address"]))}
    for address, stretch, length in zip(found["address"], found["stretch"], found["length"]):
        if 0 <= stretch < count:
            grid[address][int(stretch)] = length
    starts = [int(first) + width * i for i in range(count)] if grid else []
    return {"head_series": {a: numbers(v / data.unit_length) for a, v in grid.items()}, "head_series_steps": starts}


def visit_part_totals(data: RunData) -> dict[str, dict[str, dict[str, float]]]:
    """`visit_part_totals`: group ("" is all) to whole part to the sum over visits of |shift| there, in u.

    Scaled to all steps; `visit_part_half_u` is half the 95 % interval. A visit's heads and biases are
    added up with their signs before the absolute value is taken.
    """
    found = read(data.run, f"""
        with whole as (select step, slot, {_WHOLE_PART} as part, sum(shift) as shift
                       from visit_parts where shift is not null group by all),
             stepwise as (select step, part, coalesce(e."group", '') as grp, sum(abs(whole.shift)) as size
                          from whole join visits v using (step, slot) left join examples e on e.example = v.example
                          group by all),
             every as (select step, part, '' as grp, sum(size) as size from stepwise group by all
                       union all select step, part, grp, size from stepwise where grp <> '')
        select grp, part, sum(size) as total, sum(size * size) as squares from every group by all""")
    per_u = data.scale() / data.unit_length
    totals: dict[str, dict[str, float]] = {}
    halves: dict[str, dict[str, float]] = {}
    if np.isfinite(per_u):
        n, steps = int(data.step_has_shift().sum()), int(data.countable().sum())
        half = half_width_of_sums(found["total"], found["squares"], n, steps) / data.unit_length
        for part in _ordered(set(found["part"])):
            for i in np.flatnonzero(found["part"] == part):
                totals.setdefault(found["grp"][i], {})[part] = float(found["total"][i] * per_u)
                if np.isfinite(half[i]):
                    halves.setdefault(found["grp"][i], {})[part] = float(half[i])
    return {"visit_part_totals": totals, "visit_part_half_u": halves}
