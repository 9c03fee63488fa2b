"""Volatility, two numbers and never one: the level of an example's gradient and its dispersion.

Level E_i is the mean over visits of log push^2; dispersion D_i the MAD over visits of
log push^2 less the running median of its step (Dataset Cartography 2009.10795; VoG
2008.11600). A never-learnt example is calm: a low D alone does not mean compatible.
Neither does a high E mean bad: rare but right looks like noise. Hence the loss-only
baselines beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intaglio.analyse.data import RunData, read
from intaglio.analyse.stats import mad, number, residual, spearman

LEAST_VISITS = 5  # below, a MAD says more about luck than about the example
_WINDOW_VISITS = 50  # visits a running median rests on: its error is then about a sixth of the spread
_TOKENS_LISTED = 200


def level_and_dispersion(data: RunData) -> dict[str, np.ndarray]:
    """Per example, in log units: `level`, `level_residual` (length regressed out), `dispersion`.

    Scans count as visits. Example order as in `data.examples`; NaN where unknown.
    """
    code, values, deviation = _log_push(data)
    level = np.full(data.n_examples, np.nan)
    dispersion = np.full(data.n_examples, np.nan)
    order = np.argsort(code, kind="stable")
    present, first = np.unique(code[order], return_index=True)
    for example, own in zip(present, np.split(order, first[1:])):
        level[example] = values[own].mean()
        if len(own) >= LEAST_VISITS:
            dispersion[example] = mad(deviation[own])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_targets = np.log(data.examples["targets"])
    return {"level": level, "level_residual": residual(level, log_targets), "dispersion": dispersion}


def _log_push(data: RunData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every visit and scan with a push: code, log push^2, and that less its step's running median.

    A scan of the very state at which the example was visited is the same measurement, and counts once.
    """
    codes, values, deviations, seen = [], [], [], np.zeros(0)
    window = _half_window(len(data.visits["step"]), np.unique(data.visits["step"]))
    for table, half in ((data.visits, window), (data.scans, 0)):
        with np.errstate(divide="ignore", invalid="ignore"):
            log_push = 2 * np.log(table["push"])
        known = np.isfinite(log_push)
        step, code, log_push = table["step"][known], table["code"][known], log_push[known]
        deviation = log_push - _running_median(step, log_push, half)
        state = step * max(data.n_examples, 1) + code
        new = np.isin(state, seen, invert=True)
        seen = np.concatenate([seen, state])
        codes.append(code[new])
        values.append(log_push[new])
        deviations.append(deviation[new])
    return np.concatenate(codes), np.concatenate(values), np.concatenate(deviations)


def _half_window(rows: int, steps: np.ndarray) -> int:
    """Half width, in steps, of a window that holds about `_WINDOW_VISITS` of the rows that these steps have."""
    per_step = rows / max(len(steps), 1)
    stride = np.median(np.diff(steps)) if len(steps) > 1 else 1
    return int(max(0, np.ceil((_WINDOW_VISITS / max(per_step, 1) - 1) / 2)) * stride)


def _running_median(step: np.ndarray, values: np.ndarray, half: int) -> np.ndarray:
    """Median of the values within `half` steps of each value's step; `step` ascending."""
    every, inverse = np.unique(step, return_inverse=True)
    low = np.searchsorted(step, every - half, side="left")
    high = np.searchsorted(step, every + half, side="right")
    medians = np.array([np.median(values[a:b]) for a, b in zip(low, high)])
    return medians[inverse] if len(every) else values


def correlations(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Spearman of each gradient measure with each loss-only baseline, such as `level~csl`.

    Loss alone is hard to beat (CSL, ICML 2025): where the correlation is near 1 the
    gradient measure adds little to the loss.
    """
    measures = ("level", "level_residual", "dispersion", "shift_abs", "relative_shift", "alignment")
    baselines = ("csl", "first_loss", "length")
    found = {f"{m}~{b}": spearman(columns[m], columns[b]) for m in measures for b in baselines}
    return {name: value for name, value in found.items() if value is not None}


_MEANS = """
    count(*) as count, avg(abs(shift)) as shift_abs, avg(log_write) as level, mad(log_write - usual) as dispersion"""


def _written(data: RunData) -> str:
    """The tokens with `log_write`, log write^2, and `usual`, its running median: of the step, smoothed where it has few."""
    steps = read(data.run, "select step, count(*) as rows from tokens group by step order by step")
    half = _half_window(int(steps["rows"].sum()), steps["step"])
    return f"""
        logs as (select *, 2 * ln(case when write > 0 then write end) as log_write from tokens),
        medians as (select step, median(log_write) as one from logs group by step),
        running as (select step, median(one) over (order by step range between {half} preceding and {half} following)
                    as usual from medians),
        written as (select * from logs join running using (step))"""


def by_token(data: RunData) -> list[dict[str, Any]]:
    """Per token id, over all measured visits: means of |shift| (u) and of surprise, level and dispersion.

    The shift is what was written through the token; the surprise is of the token itself,
    which stands in the row before it. The most written ids only.
    """
    found = read(data.run, f"""
        with {_written(data)},
             own as (select token, {_MEANS} from written group by token),
             seen as (select target as token, avg(surprise_nats) as surprise from tokens group by target)
        select own.*, seen.surprise as surprise_nats, vocab.text
        from own left join seen using (token) left join vocab using (token)
        order by shift_abs * count desc nulls last, count desc, token limit {_TOKENS_LISTED}""")
    keys = [{"token": int(t), "text": text if text is not None else f"[{int(t)}]"}
            for t, text in zip(found["token"], found["text"])]
    return _entries(keys, found, data.unit_length)


def by_position(data: RunData) -> list[dict[str, Any]]:
    """The same per stretch of positions (0, 1, 2-3, 4-7, 8-15, ...), surprise being of the token there."""
    found = read(data.run, f"""
        with {_written(data)},
             own as (select {_bin("position")} as bin, {_MEANS} from written group by 1),
             seen as (select {_bin("position + 1")} as bin, avg(surprise_nats) as surprise from tokens group by 1)
        select own.*, seen.surprise as surprise_nats
        from own left join seen using (bin) order by bin""")
    keys = [{"position_from": int(2**b) if b >= 0 else 0, "position_to": int(2 ** (b + 1)) - 1 if b >= 0 else 0}
            for b in found["bin"]]
    return _entries(keys, found, data.unit_length)


def _bin(position: str) -> str:
    return f"case when {position} = 0 then -1 else floor(log2({position}))::int end"


def _entries(keys: list[dict[str, Any]], found: dict[str, np.ndarray], unit: float) -> list[dict[str, Any]]:
    return [
        key | {
            "count": int(found["count"][i]), "shift_abs_u": number(found["shift_abs"][i] / unit),
            "surprise_nats": number(found["surprise_nats"][i]), "level": number(found["level"][i]),
            "dispersion": number(found["dispersion"][i]) if found["count"][i] >= LEAST_VISITS else None,
        }
        for i, key in enumerate(keys)
    ]  # fmt: skip
