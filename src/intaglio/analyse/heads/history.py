"""Role scores over a series of checkpoints: when a head took up a role, gave it away, lost it. Pure: no torch.

A head *has* a role at a checkpoint where its score is beyond the null by the rule of `naming`, with p corrected for all
heads, roles and checkpoints of the series together. Then

    birth     the first checkpoint from which on it has the role at every later one
    death     the first checkpoint from which on it never has it again, after two checkpoints in a row at which it had
    handover  a death beside which another head's birth in the same role lies: the role went over to it

Steps are known to a checkpoint only: an event lies after the checkpoint before it. Its interval is where it falls when the
texts are drawn again with replacement (the same draw at every checkpoint), widened to hold the estimate itself.

C checkpoints, N texts, L layers, H heads, R redrawings.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intaglio.analyse.heads.naming import LEVEL, least_of, score_rows
from intaglio.atlas import Sampled

REDRAWINGS = 200
LASTING = 2  # checkpoints in a row that make a role one that can be lost
BESIDE = 3  # checkpoints that a birth may lie from a death for the role to have gone over
KEPT = 0.9  # of a head's highest score: from the last such checkpoint on the role was going

Row = dict[str, Any]
Lines = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]  # by role and head: (C,) has it, (C,) excess over the null


def history_rows(
    steps: Sequence[int], series: Sequence[Sequence[Sampled]], *, smallest: Mapping[str, float] | None = None
) -> list[Row]:
    """Rows of the table `history`: every role of every head at every checkpoint.

    Args:
        steps: of the checkpoints, rising.
        series: what was measured at each, on the same texts.
        smallest: the smallest effect by role, as in `score_rows`.
    """
    owners = [step for step, sampled in zip(steps, series) for one in sampled for _ in range(_rows_of(one))]
    rows = score_rows([one for sampled in series for one in sampled], smallest=smallest)
    assert len(owners) == len(rows), "a row for every head that a text tests"
    kept = ("address", "role", "detail", "score", "low", "high", "null", "named")
    return [{"step": int(step), **{k: row[k] for k in kept}} for step, row in zip(owners, rows)]


def _rows_of(one: Sampled) -> int:
    return int(np.isfinite(one.values_NLH).any(0).sum())


def event_rows(
    steps: Sequence[int], series: Sequence[Sequence[Sampled]], *, smallest: Mapping[str, float] | None = None,
    history: Sequence[Row] | None = None, seed: int = 0, redrawings: int = REDRAWINGS,
) -> list[Row]:  # fmt: skip
    """Rows of the table `events`, in the order of their steps.

    Args:
        history: the rows of `history_rows`, where they were made already.
        seed: of the redrawn texts.
    """
    history = history_rows(steps, series, smallest=smallest) if history is None else history
    lines = lines_of(steps, history)
    drawn = _redrawn(steps, series, smallest, seed, redrawings)
    events = []
    for (role, address), (named_C, _) in lines.items():
        again_RC = drawn.get((role, address), np.zeros((0, len(steps)), dtype=bool))
        events += [
            _event(role, address, kind, at, [found(again_C) for again_C in again_RC], steps)
            for kind, found in (("birth", birth_of), ("death", death_of)) if (at := found(named_C)) is not None
        ]  # fmt: skip
    return sorted(_handed_over(events, lines, steps), key=lambda e: (e["step"], e["role"], e["address"]))


def lines_of(steps: Sequence[int], history: Sequence[Row]) -> Lines:
    """By role and head: at which checkpoints it has the role, and its largest excess over the null there; (C,) each.

    What a role leaves open (the distance of a fixed offset) may change from one checkpoint to the next.
    """
    place = {int(step): i for i, step in enumerate(steps)}
    found: Lines = defaultdict(
        lambda: (np.zeros(len(place), dtype=bool), np.full(len(place), -np.inf))
    )
    for row in history:
        named_C, excess_C = found[row["role"], row["address"]]
        at = place[row["step"]]
        named_C[at] |= row["named"]
        excess_C[at] = max(excess_C[at], row["score"] - row["null"])
    return dict(found)


def birth_of(named_C: np.ndarray) -> int | None:
    """The checkpoint from which on a head has the role at all later ones; None where it never or always had it."""
    if not named_C[-1] or named_C.all():
        return None
    return int(np.flatnonzero(~named_C)[-1]) + 1


def death_of(named_C: np.ndarray) -> int | None:
    """The checkpoint from which on a head has the role at none, after it had it `LASTING` times in a row."""
    if named_C[-1] or not named_C.any():
        return None
    lost = int(np.flatnonzero(named_C)[-1]) + 1
    runs = np.convolve(named_C[:lost], np.ones(LASTING), "valid") if lost >= LASTING else np.zeros(1)
    return lost if (runs == LASTING).any() else None


def _event(role: str, address: str, kind: str, at: int, again: Sequence[int | None], steps: Sequence[int]) -> Row:
    known = [i for i in again if i is not None] or [at]
    low, high = np.percentile(known, [2.5, 97.5], method="closest_observation").astype(int)
    return {
        "role": role, "address": address, "event": kind, "step": int(steps[at]), "after_step": int(steps[at - 1]),
        "low_step": int(steps[min(low, at)]), "high_step": int(steps[max(high, at)]), "other": "",
    }  # fmt: skip


def _handed_over(events: list[Row], lines: Lines, steps: Sequence[int]) -> list[Row]:
    """Deaths beside which another head took the role up, as handovers to the one that rose most."""
    place = {int(step): i for i, step in enumerate(steps)}
    for event in events:
        if event["event"] != "death":
            continue
        role, death = event["role"], place[event["step"]]
        excess_C = lines[role, event["address"]][1]
        going = int(np.flatnonzero(excess_C[: death + 1] >= KEPT * excess_C[: death + 1].max())[-1])  # the fall begins
        taken = [
            e["address"] for e in events
            if e["event"] == "birth" and e["role"] == role and e["address"] != event["address"]
            and going - BESIDE <= place[e["step"]] <= death + BESIDE
        ]  # fmt: skip
        last = min(death + BESIDE, len(steps) - 1)
        rise = {a: lines[role, a][1][last] - lines[role, a][1][max(0, going - BESIDE)] for a in taken}
        if rise:
            event |= {"event": "handover", "other": max(rise, key=rise.__getitem__)}
    return events


def _redrawn(
    steps: Sequence[int], series: Sequence[Sequence[Sampled]], smallest: Mapping[str, float] | None, seed: int, redrawings: int
) -> dict[tuple[str, str], np.ndarray]:
    """(R, C) by role and head: has it the role, with the texts drawn again; p corrected by the number of all tests."""
    tests = sum(_rows_of(one) for sampled in series for one in sampled)
    found: dict[tuple[str, str], np.ndarray] = {}
    for at, sampled in enumerate(series):
        for one in sampled:
            weight_RN = _weights(len(one.values_NLH), seed, redrawings)
            _add(found, one, at, len(steps), weight_RN, least_of(one.role, smallest), LEVEL / max(tests, 1))
    return found


@functools.lru_cache(maxsize=32)
def _weights(texts: int, seed: int, redrawings: int) -> np.ndarray:
    """(R, N) how often each text is drawn: the same draws wherever a role has so many texts."""
    picks_RN = np.random.default_rng(seed).integers(texts, size=(redrawings, texts))
    return np.stack([np.bincount(pick, minlength=texts) for pick in picks_RN]).astype(float)


def _add(
    found: dict[tuple[str, str], np.ndarray], one: Sampled, at: int, checkpoints: int, weight_RN: np.ndarray,
    least: float, level: float,
) -> None:  # fmt: skip
    """One measurement of one checkpoint, under every redrawing; texts that do not test a head are drawn and left out."""
    from scipy.special import stdtrit

    heads = one.values_NLH.shape[2]
    excess_NX = (one.values_NLH - one.null_NLH).reshape(len(one.values_NLH), -1)
    known_NX = np.isfinite(excess_NX)
    excess_NX = np.where(known_NX, excess_NX, 0.0)
    count_RX = weight_RN @ known_NX
    divisor_RX = np.maximum(count_RX, 1.0)
    mean_RX = weight_RN @ excess_NX / divisor_RX
    square_RX = np.maximum(weight_RN @ excess_NX**2 / divisor_RX - mean_RX**2, 0.0)
    error_RX = np.sqrt(square_RX / np.maximum(count_RX - 1, 1.0))
    least_t_X = stdtrit(np.maximum(known_NX.sum(0) - 1, 1), 1 - level)
    named_RX = (count_RX > 1) & (mean_RX >= least) & (mean_RX > least_t_X * error_RX)
    for x in np.flatnonzero(known_NX.sum(0) > 1):
        key = one.role, f"L{x // heads}.attn.H{x % heads}"
        found.setdefault(key, np.zeros((len(weight_RN), checkpoints), dtype=bool))[:, at] |= named_RX[:, x]
