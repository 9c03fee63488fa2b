"""Spikes of a finished training: found by robust z, replayed from an earlier state for a verdict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

THRESHOLD_Z = 4.0  # robust z beyond which a step stands out
MOST = 3  # spikes replayed at the end of a run
FIRST_STEP = 10  # Adam's first steps are large by themselves


def record_spikes(job: Any, writer: Any) -> None:
    """Write the `spikes` table: data, state or both, where an earlier state was kept to replay from."""
    import numpy as np

    from intaglio.analyse.stats import robust_z
    from intaglio.store.run import Run

    writer.flush(job.recipe.steps)
    steps = Run(writer.folder).table("steps")
    if steps.num_rows < 3 * FIRST_STEP:
        return
    number = np.asarray(steps.column("step"))
    grad = np.log(np.maximum(np.asarray(steps.column("grad_l2"), dtype=float), 1e-300))
    update = np.asarray(steps.column("update_l2").to_pylist(), dtype=float)
    grad_z, update_z = robust_z(grad), robust_z(np.log(np.where(update > 0, update, np.nan)))
    worst = np.fmax(grad_z, np.where(np.isnan(update_z), -math.inf, update_z))
    chosen = [i for i in np.argsort(-worst) if worst[i] > THRESHOLD_Z and number[i] >= FIRST_STEP][:MOST]
    rows = []
    for i in chosen:
        row = {
            "step": int(number[i]), "grad_z": float(grad_z[i]),
            "update_z": None if math.isnan(update_z[i]) else float(update_z[i]), "verdict": "unknown",
        }  # fmt: skip
        earlier = earlier_state(writer, int(number[i]))
        if earlier is not None:
            row |= _replayed(job, writer.folder / earlier[1], earlier[0], int(number[i]), grad)
        rows.append(row)
    writer.append_rows("spikes", rows)


def earlier_state(writer: Any, step: int) -> tuple[int, Path] | None:
    """The newest kept state at least five steps before a spike."""
    known = {int(s): Path(p) for s, p in writer.manifest.get("checkpoints", {}).items()}
    before = [s for s in known if s <= step - 5]
    return (max(before), known[max(before)]) if before else None


def _replayed(job: Any, folder: Path, state_step: int, spike_step: int, log_grads: Any) -> dict[str, Any]:
    """Gradient length of the spike's batch at an earlier state, held against all steps of the run."""
    import numpy as np
    import torch

    from intaglio import checkpoint
    from intaglio.commands.prepare import pad_id
    from intaglio.data.encode import collate
    from intaglio.train import autocast, batch_rows

    kept = {n: p.detach().clone() for n, p in job.model.named_parameters()}
    try:
        checkpoint.load_weights(folder, job.model)
        rows = batch_rows(len(job.data.data), job.recipe, spike_step)
        targets = sum(job.data.data[r].targets for r in rows)
        params = [p for p in job.model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p) for p in params]
        job.model.eval()
        for start in range(0, len(rows), job.recipe.batch_size):
            items = [job.data.data[r] for r in rows[start : start + job.recipe.batch_size]]
            batch = {k: v.to(params[0].device) for k, v in collate(items, pad_id(job.subject.tokenizer)).items()}
            with autocast(job.recipe, params[0].device):
                loss = job.model(**batch, use_cache=False).loss * (sum(i.targets for i in items) / targets)
            for into, g in zip(total, torch.autograd.grad(loss, params, allow_unused=True)):
                if g is not None:
                    into += g
        length = float(sum(g.double().square().sum() for g in total) ** 0.5)
    finally:
        with torch.no_grad():
            for n, p in job.model.named_parameters():
                p.copy_(kept[n])
    median = float(np.median(log_grads))
    spread = 1.4826 * float(np.median(np.abs(log_grads - median))) or 1e-12
    z = (math.log(length) - median) / spread
    verdict = "data" if z > THRESHOLD_Z else "both" if z > THRESHOLD_Z / 2 else "state"
    return {"replay_step": state_step, "replay_z": z, "verdict": verdict}
