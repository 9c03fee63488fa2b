"""`--plan`: time, memory and disk of a run, before any of it is done."""

from __future__ import annotations

import time
from typing import Any

FULL_RATIO = {"norms": 1.15, "full": 1.6, "exact": 2.5}  # of a plain step, rounded up from benchmarks/overhead.py
BYTES_PER_TOKEN_ROW, BYTES_PER_PART_ROW = 28, 12  # of parquet, measured on a run of smollm2


def print_plan(job: Any, console: Any) -> None:
    """Time a real forward and backward on a batch of the data, and scale up."""
    from intaglio.measure.budget import Budget, human
    from intaglio.model.layout import build_layout, causal_lm

    layout = build_layout(job.model)
    recipe, data = job.recipe, job.data.data
    budget = Budget.parse(
        job.memory, layout, causal_lm(job.model), level=job.level, probes=list(job.probes.values()), every=job.every,
        groups=2 + len({i.group for i in data}) if job.group_momentum else 0,
    )  # fmt: skip
    tokens = sum(len(i.input_ids) for i in data) / len(data)
    visits = recipe.steps * recipe.batch_size * recipe.accumulate
    step_seconds = _time_batch(job) * recipe.accumulate
    trained = layout.n_trainable * 4
    factors = budget.per_token * int(tokens * recipe.batch_size * recipe.accumulate)
    measuring = budget.held if job.level == "norms" else budget.fixed + factors
    state = sum(p.numel() for p in job.model.parameters()) * 4 if not recipe.lora_rank else trained
    n_states = (recipe.steps // job.checkpoint_every if job.checkpoint_every else 0) + 1
    rows = visits * (tokens * job.keep_tokens * BYTES_PER_TOKEN_ROW + len(layout.addresses) * BYTES_PER_PART_ROW)
    lines = [
        f"{recipe.steps} steps of {recipe.batch_size * recipe.accumulate} examples, {visits} visits, "
        f"{visits * tokens:,.0f} tokens; {layout.coverage:.1%} of {layout.n_trainable:,} trained parameters measured",
        f"time: about {_minutes(step_seconds * recipe.steps * FULL_RATIO[job.level])}, of which training alone "
        f"{_minutes(step_seconds * recipe.steps)}; probes come on top",
        f"memory: training {human(4 * trained)} for weights, gradient and moments; measuring {human(measuring)} more"
        + (f", within a budget of {human(budget.limit)}" if budget.limit else ""),
        *(budget.lines() if budget.limit is not None else ()),
        f"disk: tables about {human(rows)}; {n_states} kept state{'s' if n_states > 1 else ''} of {human(state)}, "
        f"moments of the last two {human(2 * trained * min(n_states, 2))}",
    ]
    for line in lines:
        console.print(f"  {line}", highlight=False)


def _time_batch(job: Any) -> float:
    """Seconds of one forward and backward on a middling batch; the optimizer's own pass is small beside it."""
    import torch

    from intaglio.commands.prepare import pad_id
    from intaglio.data.encode import collate

    data = sorted(job.data.data, key=lambda i: len(i.input_ids))
    middle = max(0, (len(data) - job.recipe.batch_size) // 2)
    batch = collate(data[middle : middle + job.recipe.batch_size], pad_id(job.subject.tokenizer))
    device = next(job.model.parameters()).device
    batch = {k: v.to(device) for k, v in batch.items()}
    params = [p for p in job.model.parameters() if p.requires_grad]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        torch.autograd.grad(job.model(**batch, use_cache=False).loss, params, allow_unused=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1.15


def print_scan_plan(loaded: Any, found: Any, probes: dict[str, Any], batch_size: int, console: Any) -> None:
    """Time one scored batch, and scale up."""
    from intaglio.commands.prepare import pad_id, precision
    from intaglio.data.encode import collate
    from intaglio.measure.budget import human
    from intaglio.measure.scan import Scorer

    scorer = Scorer(loaded.model, list(probes.values()), precision=precision())
    data = sorted(found.data, key=lambda i: len(i.input_ids))
    middle = max(0, (len(data) - batch_size) // 2)
    batch = collate(data[middle : middle + batch_size], pad_id(loaded.tokenizer))
    start = time.perf_counter()
    scorer.score(batch)
    seconds = (time.perf_counter() - start) * len(data) / batch_size
    size = sum(p.numel() for p in loaded.model.parameters()) * 4
    width = scorer.collector.projections.width * 4
    console.print(f"  {len(data)} examples, time: about {_minutes(seconds)}", highlight=False)
    console.print(f"  memory: {human(size * (1 + len(probes)))} for weights and probe gradients", highlight=False)
    console.print(f"  disk: about {human(len(data) * (width + 200))}", highlight=False)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
