"""The journey of the weights: do the books close, how straight was the path, which steps stand out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intaglio.analyse.data import RunData, nonfinite_step, read
from intaglio.analyse.stats import number, numbers, robust_z, sampling_half_width
from intaglio.findings import SpikeFinding

# A normal series of any length would pass it once in 30,000 steps, if its scale were known; with the MAD of 8, 30 or 200
# steps it is once in 140, 1,300 or 13,000: of runs of pure noise, 1 to 5 in a hundred show a spike.
SPIKE_Z = 4.0
SETTLED_STEP = 10  # before, Adam's denominators are young and updates are of another size
_LEAST_STEPS = 8  # fewer give no scale to stand out from
_CAUSES = 5  # examples named per spike

_SERIES = (
    "step", "lr", "loss_nats", "grad_l2", "update_l2", "data_shift", "carry_shift", "decay_shift", "unmeasured_shift",
    "unexplained_shift", "interaction_shift", "rounding_shift", "closure", "gradient_match", "unsettled",
    "agreement_gg", "agreement_s", "path_l2", "net_l2", "seconds", "measure_seconds",
)  # fmt: skip


def books(data: RunData, tolerance: float) -> dict[str, Any]:
    """Whether the accounts add up to the steps taken, and the shares of data, momentum and decay."""
    steps = data.steps
    closure = steps["closure"][np.isfinite(steps["closure"])]
    match = steps["gradient_match"][np.isfinite(steps["gradient_match"])]
    measured = np.array([m not in (None, "none") for m in steps["measured"]], dtype=bool)
    return {
        "steps_total": len(steps["step"]),
        "steps_measured": int(measured.sum()),
        "steps_with_shift": int(data.step_has_shift().sum()),
        "closure_max": number(closure.max()) if closure.size else None,
        "closure_median": number(np.median(closure)) if closure.size else None,
        "gradient_match_max": number(match.max()) if match.size else None,
        "books_close": bool(closure.max() < tolerance) if closure.size else None,
        "unsettled_shift_share": _unsettled(data),
        "momentum": momentum(data.manifest) if data.manifest.get("optimizer") else None,
        "unmeasured_share": _share(steps, "unmeasured_shift", settled=False),
        "fresh_unmeasured": _fresh_unmeasured(steps),
        "nonfinite_step": nonfinite_step(data.manifest),
        **{f"{name}_share": _share(steps, f"{name}_shift") for name in ("data", "carry", "decay")},
    }


def _unsettled(data: RunData) -> float | None:
    """How much of the measured sum of |shift| lies in the first, unsettled steps."""
    size = np.nan_to_num(np.abs(data.visits["shift"]))
    early = np.isin(data.visits["step"], data.steps["step"][data.steps["unsettled"] == 1])
    return number(size[early].sum() / size.sum()) if size.sum() > 0 else None


def _share(steps: Mapping[str, np.ndarray], account: str, *, settled: bool = True) -> float | None:
    """sum(account) / sum(update_l2) over (settled) steps in which both were measured."""
    use = np.isfinite(steps[account]) & np.isfinite(steps["update_l2"]) & ((steps["unsettled"] == 0) | (not settled))
    total = steps["update_l2"][use].sum()
    return number(steps[account][use].sum() / total) if total > 0 else None


def _fresh_unmeasured(steps: Mapping[str, np.ndarray]) -> float | None:
    """What of data and unmeasured together is unmeasured; None where neither moved anything."""
    lost, data = (np.nansum(steps[f"{name}_shift"]) for name in ("unmeasured", "data"))
    return number(lost / (lost + data)) if lost + data > 0 else None


def group_carry(data: RunData) -> dict[str, Any]:
    """Whose earlier gradients the steps carried: per group, sum of its carry over sum of `update_l2`, settled steps.

    Where no step has settled, all steps whose carry was split stand in.
    """
    found = read(data.run, """select "group", step, carry_shift from group_carry where carry_shift is not null""")
    steps = data.steps
    split = np.isin(steps["step"], found["step"]) & np.isfinite(steps["update_l2"])
    settled = split & (steps["unsettled"] == 0)
    use = settled if settled.any() else split
    length = steps["update_l2"][use].sum()
    if not length > 0:
        return {"group_carry": {}, "group_carry_settled": True}
    inside = np.isin(found["step"], steps["step"][use])
    names = np.array([g or "" for g in found["group"]], dtype=object)
    shares = {str(g): float(found["carry_shift"][inside & (names == g)].sum() / length) for g in sorted(set(names))}
    return {"group_carry": shares, "group_carry_settled": bool(settled.any())}


def path(data: RunData) -> dict[str, float | None]:
    """Path, net (both in u) and tortuosity = path / net, with what a random walk would give.

    The null is that of steps in random directions under momentum b1 (2403.07379), of the lengths that
    the steps had, so that a learning-rate schedule does not look like direction: see `random_walk`.
    Steps whose length was not measured are interpolated. `path_half_u` is half the 95 % interval that
    the steps left out give the path.
    """
    steps, length = data.steps, _every_length(data)
    walked = np.cumsum(length)
    if not len(walked) or not walked[-1] > 0:
        return {"path_u": None, "path_half_u": None, "net_u": None, "tortuosity": None, "tortuosity_null": None}
    known = steps["update_l2"][np.isfinite(steps["update_l2"])]
    nets = np.flatnonzero(np.isfinite(steps["net_l2"]))
    out = {"path_u": number(walked[-1] / data.unit_length), "net_u": None, "tortuosity": None,
           "tortuosity_null": None,
           "path_half_u": number(sampling_half_width(known, len(length)) / data.unit_length)}  # fmt: skip
    if len(nets) and steps["net_l2"][nets[-1]] > 0:
        at = nets[-1]
        until = length[: at + 1]
        out |= {"net_u": number(steps["net_l2"][at] / data.unit_length),
                "tortuosity": number(walked[at] / steps["net_l2"][at]),
                "tortuosity_null": number(random_walk(until, momentum(data.manifest)))}  # fmt: skip
    return out


def random_walk(length: np.ndarray, b1: float) -> float:
    """Path / net of steps of these lengths in random directions under momentum b1, which starts empty.

    U_t is along sum_{s<=t} b1^(t-s) g_s with fresh g_s, so cos(U_s, U_t) = b1^(t-s) sqrt(V_s / V_t) for
    s < t, V_t = 1 + b1^2 + ... + b1^(2t): net^2 = sum of l_s l_t cos(U_s, U_t). For T equal steps it goes to
    sqrt(T (1 - b1) / (1 + b1)) from above; that limit itself would call short runs of noise winding (at
    b1 = 0.9 and T = 30 it gives 1.26, and noise 1.53), and is below 1 for the shortest. NaN without a step.
    """
    net2 = behind = variance = 0.0  # behind: sum over earlier steps of l_s b1^(t-s) sqrt(V_s)
    for own in length:
        behind, variance = b1 * behind, 1.0 + b1 * b1 * variance
        net2 += own * own + 2 * own * behind / np.sqrt(variance)
        behind += own * np.sqrt(variance)
    return float(length.sum() / np.sqrt(net2)) if net2 > 0 else np.nan


def _every_length(data: RunData) -> np.ndarray:
    """update_l2 of every step; between measured steps interpolated, as `path_l2` counts measured ones only."""
    length = data.steps["update_l2"]
    known = np.isfinite(length)
    if not known.any():
        return np.zeros(len(length))
    return np.interp(data.steps["step"], data.steps["step"][known], length[known])


def momentum(manifest: Mapping[str, Any]) -> float:
    """b1 of the run's optimizer: Adam's first beta, SGD's momentum, else 0."""
    optimizer = manifest.get("optimizer") or {}
    if not isinstance(optimizer, Mapping):
        return 0.0
    betas = optimizer.get("betas")
    return float(betas[0]) if betas else float(optimizer.get("momentum") or 0.0)


def series(data: RunData) -> dict[str, list[int | float | None]]:
    """Per step, ready to draw: the columns of `steps`; lengths also in u (`update_u`, `path_u`, `net_u`, ...)."""
    steps = data.steps
    out = {name: numbers(steps[name]) for name in _SERIES}
    out["step"] = [int(s) for s in steps["step"]]
    for name in ("update_l2", "path_l2", "net_l2", "data_shift", "carry_shift", "decay_shift"):
        out[name.rsplit("_", 1)[0] + "_u"] = numbers(steps[name] / data.unit_length)
    gg, s = steps["agreement_gg"], steps["agreement_s"]
    with np.errstate(divide="ignore", invalid="ignore"):
        out["agreement"] = numbers(np.where(steps["examples"] == 1, np.nan, gg / (gg + s)))
        out["grad_z"] = numbers(_z(steps["grad_l2"]))
        out["update_z"] = numbers(_settled_z(data))
    out["shift_abs_u"] = _abs_shift_per_step(data)
    return out


def _abs_shift_per_step(data: RunData) -> list[float | None]:
    """Sum of |shift| over each step's visits, in u; None where the step's shift was not measured."""
    known = np.isfinite(data.visits["shift"])
    place = np.searchsorted(data.steps["step"], data.visits["step"][known])
    place = np.minimum(place, max(len(data.steps["step"]) - 1, 0))
    total = np.bincount(place, np.abs(data.visits["shift"][known]), minlength=len(data.steps["step"]))
    return numbers(np.where(data.step_has_shift(), total[: len(data.steps["step"])] / data.unit_length, np.nan))


def _z(lengths: np.ndarray) -> np.ndarray:
    if np.isfinite(lengths).sum() < _LEAST_STEPS:
        return np.full(len(lengths), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return robust_z(np.log(lengths))


def _settled_z(data: RunData) -> np.ndarray:
    """Robust z of log update_l2 among settled steps; NaN before."""
    return _z(np.where(data.steps["step"] >= SETTLED_STEP, data.steps["update_l2"], np.nan))


def spikes(data: RunData) -> list[SpikeFinding]:
    """Steps whose gradient or update is far longer than usual, and the examples with the largest |shift| there.

    The verdict is that of the replay where one was made (table `spikes`), else unknown.
    """
    grad_z, update_z = _z(data.steps["grad_l2"]), _settled_z(data)
    stored = read(data.run, "select distinct on (step) step, grad_z, update_z, replay_step, replay_z, verdict from spikes")
    replayed = {int(s): i for i, s in enumerate(stored["step"])}
    with np.errstate(invalid="ignore"):
        out = {int(s): i for i, s in enumerate(data.steps["step"]) if max_z(grad_z[i], update_z[i]) > SPIKE_Z}
    return [
        SpikeFinding(
            step=step,
            grad_z=number(grad_z[out[step]]) if step in out else number(stored["grad_z"][replayed[step]]),
            update_z=number(update_z[out[step]]) if step in out else number(stored["update_z"][replayed[step]]),
            examples=_largest(data, step),
            **(_replay(stored, replayed[step]) if step in replayed else {"verdict": "unknown"}),
        )
        for step in sorted({*out, *replayed})
    ]


def _replay(stored: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    """What the replay of one spike said, and from which step's state."""
    step, z = number(stored["replay_step"][i]), number(stored["replay_z"][i])
    return {"verdict": stored["verdict"][i] or "unknown", "replay_step": None if step is None else int(step), "replay_z": z}


def max_z(*values: float) -> float:
    """The larger of the z-scores that are known; -inf where none is."""
    return max((v for v in values if np.isfinite(v)), default=-np.inf)


def _largest(data: RunData, step: int) -> tuple[str, ...]:
    """Ids of the step's examples by |shift|, or by push where shift was not measured."""
    here = data.visits["step"] == step
    size = np.abs(data.visits["shift"][here])
    if not np.isfinite(size).any():
        size = data.visits["push"][here]
    order = np.argsort(-np.nan_to_num(size, nan=-1.0), kind="stable")
    return tuple(dict.fromkeys(data.visits["example"][here][order]))[:_CAUSES]
