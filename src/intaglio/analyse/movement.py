"""Total movement: how far each example, each group and the whole data moved the model, and what was learnt.

"A million units against ten thousand" is read off here: sums of |shift| in u (one
millionth of the initial weights' length), net, at equal tokens, beside the nats learnt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intaglio.analyse.data import Columns, RunData, read
from intaglio.analyse.stats import mean_interval, number, ratio_interval, resamples, sampling_half_width, widen
from intaglio.findings import GroupFinding, Interval

# EAFT (2601.02151) calls a token a confident conflict where the model is sure and wrong.
SURE_NATS = 1.0  # entropy below: as if it chose among fewer than e = 2.7 tokens
WRONG_NATS = 3.0  # surprise above: the right token had less than one chance in twenty
_CREDITED = 20  # examples listed per probe as having taught, or made forget, most


def example_columns(data: RunData) -> dict[str, np.ndarray]:
    """Per example: sums in u, losses in nats per token, learnt nats; NaN where unknown.

    Shifts are scaled from the measured steps to all steps, so they add up to the totals.
    """
    visits, per_u = data.visits, data.scale() / data.unit_length
    shift = visits["shift"]
    sums = {
        "visits": np.bincount(visits["code"], minlength=data.n_examples).astype(float),
        "shift_abs": data.per_example(np.abs(shift)) * per_u,
        "shift_net": data.per_example(shift) * per_u,
        "shift_half": _half_width(data, shift),
        "relative_shift": data.per_example(relative_shift(data), mean=True),
        "against_share": data.per_example(np.where(np.isfinite(shift), shift < 0, np.nan), mean=True),
        "measured_targets": data.per_example(np.where(np.isfinite(shift), visits["targets"], np.nan)),
        "target_tokens": data.per_example(visits["targets"]),
        "push": data.per_example(visits["push"], mean=True),
        "alignment": data.per_example(visits["alignment"], mean=True),
        "csl": data.per_example(visits["loss_nats"]),
        "length": data.examples["targets"],
    }
    if not len(shift):  # a scan: nothing was visited, but every example was scored
        sums |= _scanned(data)
    return sums | _losses(data) | confident_conflict(data)


def _half_width(data: RunData, shift: np.ndarray) -> np.ndarray:
    """Per example, half the 95 % interval of its scaled sums of shift, in u; 0 where every step was measured.

    1.96 sqrt((1 - p) sum y^2) / p over the measured visits, p the share of visits measured: the
    Horvitz-Thompson variance as if each step had been measured with chance p (Cochran, section 9A.7).
    """
    p = 1 / data.scale()
    return 1.96 * np.sqrt((1 - p) * data.per_example(np.square(shift))) / p / data.unit_length


def relative_shift(data: RunData) -> np.ndarray:
    """Per visit: |shift| over the mean |shift| of its step's visits; 1 is an example like the others there.

    Neither the learning rate nor momentum moves it. Sums of |shift| they do: under Adam the data's
    part of a step falls from all of it at the first to about a fifth by the tenth, so an example that
    happened to stand in the first batch has a large sum for no reason of its own.
    """
    size = np.abs(data.visits["shift"])
    known = np.isfinite(size)
    _, place = np.unique(data.visits["step"], return_inverse=True)
    n_steps = int(place.max()) + 1 if len(place) else 0
    total = np.bincount(place[known], size[known], minlength=n_steps)
    count = np.bincount(place[known], minlength=n_steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = size / (total / count)[place]
    return np.where(np.isfinite(out), out, np.nan)


def _scanned(data: RunData) -> dict[str, np.ndarray]:
    means = {}
    for name in ("push", "alignment"):
        known = np.isfinite(data.scans[name])
        code = data.scans["code"][known]
        with np.errstate(invalid="ignore", divide="ignore"):
            means[name] = np.bincount(code, data.scans[name][known], data.n_examples) / np.bincount(
                code, minlength=data.n_examples
            )
    return means


def _losses(data: RunData) -> dict[str, np.ndarray]:
    """First and last loss over visits and scans (both score the state before their step), and the fall.

    `learnt` = (first - last) * targets in nats; NaN where only one state was seen.
    """
    step, code, loss = (np.concatenate([data.visits[k], data.scans[k]]) for k in ("step", "code", "loss_nats"))
    known = np.isfinite(loss)
    order = np.argsort(step[known], kind="stable")
    step, code, loss = step[known][order], code[known][order].astype(int), loss[known][order]
    first, last, states = (np.full(data.n_examples, np.nan) for _ in range(3))
    last[code] = loss
    first[code[::-1]] = loss[::-1]
    seen = np.unique(np.stack([code, step]), axis=1)[0].astype(int)
    states = np.bincount(seen, minlength=data.n_examples)
    learnt = np.where(states >= 2, (first - last) * data.examples["targets"], np.nan)
    return {"first_loss": first, "last_loss": last, "states": states, "learnt": learnt}


def confident_conflict(data: RunData) -> dict[str, np.ndarray]:
    """Per example: trained tokens seen (`conflict_of`) and those that are confident conflicts (`conflicting`)."""
    found = read(data.run, f"""
        select v.example, count(*)::double as seen, sum((t.surprise_nats > {WRONG_NATS}
               and t.entropy_nats < {SURE_NATS})::int)::double as conflicting
        from tokens t join visits v using (step, slot)
        where t.surprise_nats is not null and t.entropy_nats is not null group by v.example""")
    place = {e: i for i, e in enumerate(data.examples["example"])}
    at = np.array([place[e] for e in found["example"]], dtype=int)
    seen, conflicting = np.full((2, data.n_examples), np.nan)
    seen[at], conflicting[at] = found["seen"], found["conflicting"]
    return {"conflict_of": seen, "conflicting": conflicting}


def credits(data: RunData) -> dict[str, np.ndarray]:
    """Per probe, each example's credits summed over the steps that measured them, in nats (not scaled)."""
    found = read(data.run, """
        select probe, example, sum(credit_nats) as credit from credits
        where credit_nats is not null group by all order by probe""")
    place = {e: i for i, e in enumerate(data.examples["example"])}
    out: dict[str, np.ndarray] = {}
    for probe, example, credit in zip(found["probe"], found["example"], found["credit"]):
        if example in place:
            out.setdefault(probe, np.full(data.n_examples, np.nan))[place[example]] = credit
    return out


def credited(data: RunData, credit: dict[str, np.ndarray]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Per probe, who taught it most (largest credit) and who made it forget most (most negative)."""
    ids, out = data.examples["example"], {"taught": {}, "forgot": {}}
    for probe, values in credit.items():
        order = np.argsort(-np.nan_to_num(values), kind="stable")
        out["taught"][probe] = tuple(ids[i] for i in order if values[i] > 0)[:_CREDITED]
        out["forgot"][probe] = tuple(ids[i] for i in order[::-1] if values[i] < 0)[:_CREDITED]
    return out


def group_members(data: RunData) -> Iterator[tuple[str, np.ndarray]]:
    """The whole data set under "", then each group, with the indices of its examples."""
    yield "", np.arange(data.n_examples)
    named = np.array([g or "" for g in data.examples["group"]], dtype=object)
    for group in sorted(set(named) - {""}):
        yield group, np.flatnonzero(named == group)


def group_finding(data: RunData, cols: dict[str, np.ndarray], credit: dict[str, np.ndarray], group: str,
                  members: np.ndarray, *, seed: int) -> GroupFinding:  # fmt: skip
    """Totals of a group with 95 % intervals: bootstrap over its examples, and sampling over steps.

    Args:
        cols: `example_columns` and volatility, per example of the whole data set.
        credit: `credits`.
        members: the group's examples.
    """
    own = {name: values[members] for name, values in cols.items()}
    counts = resamples(max(len(members), 1), seed=seed)
    totals = _totals(data, own, members, counts)
    both = np.isfinite(own["learnt"]) & np.isfinite(own["shift_abs"])
    moved_ku = own["shift_abs"][both].sum() / 1000
    weight = witnesses_of_change(own["length"], own["states"])
    return GroupFinding(
        group=group, examples=len(members), visits=int(own["visits"].sum()),
        target_tokens=int(np.nansum(own["target_tokens"])), **totals,
        learnt_nats=ratio_interval(own["learnt"], None, counts),
        nats_per_ku=number(own["learnt"][both].sum() / moved_ku) if moved_ku > 0 else None,
        relative_shift=mean_interval(own["relative_shift"], counts),
        level=mean_interval(own["level"], counts), dispersion=mean_interval(own["dispersion"], counts),
        alignment=_with_null(mean_interval(own["alignment"], counts), 0.0),
        first_loss_nats=weighted_mean(own["first_loss"], weight),
        last_loss_nats=weighted_mean(own["last_loss"], weight),
        credits_nats={p: ratio_interval(c[members], None, counts) for p, c in credit.items()},
    )  # fmt: skip


def _totals(data: RunData, own: Columns, members: np.ndarray, counts: np.ndarray) -> dict[str, Interval]:
    """Sums of shift over the group with their intervals, in u; at equal tokens, in u per 1000 target tokens."""
    n_steps, per_u = int(data.countable().sum()), 1 / data.unit_length
    steps = _per_step(data, members)
    raw = own["shift_abs"] / data.scale()
    per_1000 = ratio_interval(raw * 1000, own["measured_targets"], counts)
    tokens_per_step = steps["targets"].mean() if len(steps["targets"]) else 0.0
    ratio_half = np.nan
    if per_1000.value is not None and tokens_per_step > 0:  # residuals of the ratio estimator, per step
        off = steps["abs"] * per_u * 1000 - per_1000.value * steps["targets"]
        ratio_half = sampling_half_width(off, n_steps) / (n_steps * tokens_per_step)
    return {
        "shift_abs_u": _from_zero(widen(ratio_interval(own["shift_abs"], None, counts),
                                        sampling_half_width(steps["abs"] * per_u, n_steps))),
        "shift_net_u": widen(ratio_interval(own["shift_net"], None, counts),
                             sampling_half_width(steps["net"] * per_u, n_steps)),
        "shift_abs_u_per_1000_tokens": _from_zero(widen(per_1000, ratio_half)),
    }  # fmt: skip


def _from_zero(interval: Interval) -> Interval:
    """The interval of a sum of absolute values: what lies below zero is left out."""
    low = None if interval.low is None else max(interval.low, 0.0)
    return Interval(interval.value, low, interval.high, interval.null)


def _per_step(data: RunData, members: np.ndarray) -> dict[str, np.ndarray]:
    """The group's sums in each step whose shift was measured: |shift|, shift (parameter length), targets."""
    visits = data.visits
    at = {s: i for i, s in enumerate(data.steps["step"][data.step_has_shift()])}
    wanted = np.zeros(data.n_examples, dtype=bool)
    wanted[members] = True
    use = np.isfinite(visits["shift"]) & wanted[visits["code"]] & np.isin(visits["step"], list(at))
    place = np.array([at[s] for s in visits["step"][use]], dtype=int)
    shift = visits["shift"][use]
    weights = {"abs": np.abs(shift), "net": shift, "targets": np.nan_to_num(visits["targets"][use])}
    return {name: np.bincount(place, w, minlength=len(at)) for name, w in weights.items()}


def weighted_mean(values: np.ndarray, weight: np.ndarray) -> float | None:
    """Mean over the known values, by target tokens: the loss per token of all of them together."""
    known = np.isfinite(values) & np.isfinite(weight) & (weight > 0)
    return number(values[known] @ weight[known] / weight[known].sum()) if known.any() else None


def witnesses_of_change(weight: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The weights of those seen at two states or more, 0 for the rest; unchanged where none was seen twice.

    A text seen once has one loss, first and last: that is a fall not measured, and no fall of 0.
    """
    again = states >= 2
    return np.where(again, weight, 0.0) if again.any() else weight


def _with_null(interval: Interval, null: float) -> Interval:
    return Interval(interval.value, interval.low, interval.high, null if interval.value is not None else None)
