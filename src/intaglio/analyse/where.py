"""Where in the model the movement went: layers, heads and parts, over time and by group."""

from __future__ import annotations

from typing import Any

import numpy as np

from intaglio.address import parse
from intaglio.analyse.data import RunData, read
from intaglio.analyse.stats import number, numbers

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

    Sums are scaled from the steps whose parts were measured to all steps. A part is starved
    when nothing ever happened there, or the data's shift there took both signs about equally often:
    |positive - negative| within 1.96 sqrt(steps), which is what random signs give. Signs, not
    sums: one spike would decide a sum. (A tied head has no step of its own, but shift.)
    """
    found = read(data.run, """
        select address, sum(update_l2) as length, sum(update_l2 / nullif(weight_l2, 0)) as relative,
               count(data_shift) as n, abs(sum(sign(data_shift))) as majority,
               coalesce(sum(abs(data_shift)), 0) as size
        from parts group by address""")
    measured = read(data.run, "select count(distinct step) as n from parts where update_l2 is not null")["n"][0]
    scale = len(data.steps["step"]) / measured if measured else np.nan
    at = {a: i for i, a in enumerate(found["address"])}
    names = _ordered(at)
    starved = (found["n"] >= _LEAST_STEPS) & (found["size"] > 0) & (found["majority"] <= _SIGNS_Z * np.sqrt(found["n"]))
    idle = (found["length"] == 0) & (found["size"] == 0)
    lengths, relative = found["length"] * scale / data.unit_length, found["relative"] * scale
    return {
        "head_totals": {a: float(lengths[at[a]]) for a in names if ".attn.H" in a and np.isfinite(lengths[at[a]])},
        "relative_update": {a: float(relative[at[a]]) for a in names if np.isfinite(relative[at[a]])},
        "starved_parts": tuple(a for a in names if starved[at[a]] or idle[at[a]]),
    }


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


def visit_part_totals(data: RunData) -> dict[str, dict[str, float]]:
    """Group ("" is all) to whole part to the sum over visits of |shift| there, in u, scaled to all steps.

    A visit's heads and biases are added up with their signs before the absolute value is taken.
    """
    found = read(data.run, f"""
        with whole as (select step, slot, {_WHOLE_PART} as part, sum(shift) as shift
                       from visit_parts where shift is not null group by all)
        select coalesce(e."group", '') as grp, part, sum(abs(whole.shift)) as total
        from whole join visits v using (step, slot) left join examples e on e.example = v.example group by all""")
    per_u = data.scale() / data.unit_length
    out: dict[str, dict[str, float]] = {}
    if not np.isfinite(per_u):
        return out
    for part in _ordered(set(found["part"])):
        here = found["part"] == part
        out.setdefault("", {})[part] = number(found["total"][here].sum() * per_u)
        for group, total in zip(found["grp"][here], found["total"][here]):
            if group:
                out.setdefault(group, {})[part] = float(total * per_u)
    return out
