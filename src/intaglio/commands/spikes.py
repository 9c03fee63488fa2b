"""Spikes of a finished training: found by robust z, replayed from an earlier state for a verdict.

The subject itself is an earlier state of every step, so a verdict needs no kept states. A start state
often has longer gradients everywhere: the spike's batch is held against ordinary batches of the run
replayed at that same state, never against the lengths they had in the run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from intaglio.errors import IntaglioError

THRESHOLD_Z = 4.0  # robust z beyond which a step stands out
MOST = 3  # spikes replayed at the end of a run
ORDINARY = 12  # batches that do not stand out, replayed once at each state that a spike is replayed from
FIRST_STEP = 10  # Adam's first steps are large by themselves
EARLIER = 5  # steps that a kept state must lie before the spike
LEAST_SPREAD = 0.05  # of log lengths: batches closer than this are alike, whatever their MAD


def record_spikes(job: Any, writer: Any, console: Any = None) -> None:
    """Write the `spikes` table: data, state or both for the largest, replayed from an earlier state.

    At most `MOST` spikes are replayed, each one forward and backward of its batch, and `ORDINARY` batches
    beside it at each state; what was done and found is printed.
    """
    import numpy as np

    from intaglio.analyse.stats import robust_z
    from intaglio.store.run import Run

    writer.flush(job.recipe.steps)
    steps = Run(writer.folder).table("steps").sort_by("step")
    if steps.num_rows < 3 * FIRST_STEP:
        return
    number = np.asarray(steps.column("step"))
    grad = np.log(np.maximum(np.asarray(steps.column("grad_l2"), dtype=float), 1e-300))
    update = np.asarray(steps.column("update_l2").to_pylist(), dtype=float)
    grad_z, update_z = robust_z(grad), robust_z(np.log(np.where(update > 0, update, np.nan)))
    worst = np.fmax(np.nan_to_num(grad_z, nan=-math.inf), np.nan_to_num(update_z, nan=-math.inf))
    standing = [i for i in np.argsort(-worst, kind="stable") if worst[i] > THRESHOLD_Z and number[i] >= FIRST_STEP]
    if not standing:
        return
    ordinary = [int(number[i]) for i in np.flatnonzero(worst <= THRESHOLD_Z / 2)]
    rows = [
        {"step": int(number[i]), "grad_z": _known(grad_z[i]), "update_z": _known(update_z[i]), "verdict": "unknown"}
        for i in standing[:MOST]
    ]
    excess = {int(number[i]): float(grad[i] - np.median(grad)) for i in standing[:MOST]}
    _say(console, f"steps that stand out: {len(standing)}; replayed, the largest first: {len(rows)}")
    for state, folder in sorted({earlier_state(writer, row["step"]) for row in rows}):
        mine = [row for row in rows if earlier_state(writer, row["step"])[0] == state]
        try:
            lengths = _lengths(job, writer.folder / folder if folder else None, [r["step"] for r in mine], ordinary)
        except (IntaglioError, OSError) as error:  # the subject is gone: the run itself is whole
            _say(console, f"the state of step {state} cannot be had again, so nothing is replayed from it: {error}")
            continue
        for row, length in zip(mine, lengths[0]):
            row |= {"replay_step": state} | judged(length, lengths[1], excess[row["step"]])
            _say(console, f"step {row['step']}: {row['verdict']} (its batch at the state of step {state}: "
                          f"z {row['replay_z']:.1f} against {len(lengths[1])} ordinary batches there)")  # fmt: skip
    writer.append_rows("spikes", rows)


def earlier_state(writer: Any, step: int) -> tuple[int, str]:
    """The newest kept state at least `EARLIER` steps before a spike, and its folder; else step 0, the subject ("")."""
    known = {int(s): path for s, path in writer.manifest.get("checkpoints", {}).items() if int(s) <= step - EARLIER}
    return (max(known), known[max(known)]) if known else (0, "")


def judged(length: float, ordinary: Sequence[float], excess: float) -> dict[str, Any]:
    """The replay's z and what it says.

    data: the batch stands out at the earlier state too, by at least half as much as in the run; state: it
    does not; both: it does, but less.

    Args:
        length: of the batch's gradient at the earlier state.
        ordinary: of ordinary batches' gradients at that same state.
        excess: log of the gradient's length in the run over the run's median.
    """
    import numpy as np

    logs = np.log(np.maximum(np.asarray(ordinary, dtype=float), 1e-300))
    median = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - median))), LEAST_SPREAD)
    over = math.log(max(length, 1e-300)) - median
    z = over / spread
    if z <= THRESHOLD_Z / 2:
        return {"replay_z": z, "verdict": "state"}
    return {"replay_z": z, "verdict": "data" if z > THRESHOLD_Z and over >= excess / 2 else "both"}


def _lengths(job: Any, folder: Path | None, spikes: list[int], ordinary: list[int]) -> tuple[list[float], list[float]]:
    """Gradient lengths of the spikes' batches at one state, and of ordinary batches spread over the run."""
    import numpy as np

    places = np.unique(np.linspace(0, len(ordinary) - 1, min(ORDINARY, len(ordinary))).astype(int))
    with _at_state(job, folder):
        return [_length(job, s) for s in spikes], [_length(job, ordinary[i]) for i in places]


@contextlib.contextmanager
def _at_state(job: Any, folder: Path | None) -> Iterator[None]:
    """The model at a kept state, or at its start, in eval mode; afterwards as it was."""
    import torch

    from intaglio import checkpoint
    from intaglio.measure.probes import undisturbed

    trained = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
    kept = {n: p.detach().to("cpu", copy=True) for n, p in trained.items()}
    try:
        with undisturbed(job.model):
            if folder is not None:
                checkpoint.load_weights(folder, job.model)
            else:
                job.load_start()
            yield
    finally:
        with torch.no_grad():
            for n, p in trained.items():
                p.copy_(kept[n])


def _length(job: Any, step: int) -> float:
    """Length of the gradient that a step's batch has at the model's present state."""
    import torch

    from intaglio.commands.prepare import pad_id
    from intaglio.data.encode import collate
    from intaglio.train import autocast, batch_rows

    data, recipe = job.data.data, job.recipe
    rows = batch_rows(len(data), recipe, step)
    targets = sum(data[r].targets for r in rows)
    params = [p for p in job.model.parameters() if p.requires_grad]
    total: list[Any] = [None] * len(params)
    for start in range(0, len(rows), recipe.batch_size):
        items = [data[r] for r in rows[start : start + recipe.batch_size]]
        batch = {k: v.to(params[0].device) for k, v in collate(items, pad_id(job.subject.tokenizer)).items()}
        with torch.enable_grad(), autocast(recipe, params[0].device):
            loss = job.model(**batch, use_cache=False).loss * (sum(i.targets for i in items) / targets)
        found = torch.autograd.grad(loss, params, allow_unused=True)
        total = [g if t is None else t if g is None else t.add_(g) for t, g in zip(total, found)]
    return sum(float(g.double().square().sum()) for g in total if g is not None) ** 0.5


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _say(console: Any, text: str) -> None:
    if console is not None:
        console.print(f"  {text}", highlight=False, markup=False)
