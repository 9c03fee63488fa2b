"""`--plan`: time, memory and disk of a run, before any of it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from intaglio.commands import disk
from intaglio.words import counted

FULL_RATIO = {"norms": 1.15, "full": 1.6, "exact": 2.5}  # of a plain step, rounded up from benchmarks/overhead.py


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
    measuring = budget.of_step(tokens * recipe.batch_size * recipe.accumulate, recipe.accumulate)
    state = sum(p.numel() for p in job.model.parameters()) * 4 if not recipe.lora_rank else trained
    n_states = disk.kept_states(job)
    tables = sum(disk.table_bytes(job, layout).values()) + disk.data_bytes(job.data.originals)
    probes, rescans = _time_probes(job, layout), _time_rescans(job)
    training = step_seconds * recipe.steps
    whole = training * FULL_RATIO[job.level] + probes + rescans
    lines = [
        f"{counted(recipe.steps, 'step')} of {counted(recipe.batch_size * recipe.accumulate, 'example')}, "
        f"{counted(visits, 'visit')}, {visits * tokens:,.0f} tokens; "
        f"{layout.coverage:.1%} of {layout.n_trainable:,} trained parameters measured",
        f"time: about {_minutes(whole)}, of which training alone {_minutes(training)}"
        + (f", probes {_minutes(probes)} ({disk.probe_measurements(job)} times {len(job.probes)})" if job.probes else "")
        + (f", {job.rescan} rescans {_minutes(rescans)}" if job.rescan else ""),
        f"memory: training {human(4 * trained)} for weights, gradient and moments; measuring {human(measuring)} more"
        + (f", within a budget of {human(budget.limit)}" if budget.limit else ""),
        *(budget.lines() if budget.limit is not None else ()),
        f"disk: tables about {human(tables)}, the page {human(disk.page_bytes(data))}; "
        f"{n_states} kept state{'s' if n_states > 1 else ''} of {human(state)}, "
        f"moments of the last two {human(2 * trained * min(n_states, 2))}",
    ]
    for line in lines:
        console.print(f"  {line}", highlight=False)


def _time_batch(job: Any) -> float:
    """Seconds of one forward and backward on a middling batch; the optimizer's own pass is small beside it."""
    device = next(job.model.parameters()).device
    batch = {k: v.to(device) for k, v in _middling_batch(job).items()}
    params = [p for p in job.model.parameters() if p.requires_grad]
    run = partial(_backward, lambda: job.model(**batch, use_cache=False).loss, params)
    return min(_seconds(run), _seconds(run)) * 1.15


def _backward(loss: Callable[[], Any], params: list[Any]) -> None:
    import torch

    torch.autograd.grad(loss(), params, allow_unused=True)


def _middling_batch(job: Any) -> dict[str, Any]:
    from intaglio.commands.prepare import pad_id
    from intaglio.data.encode import collate

    data = sorted(job.data.data, key=lambda i: len(i.input_ids))
    middle = max(0, (len(data) - job.recipe.batch_size) // 2)
    return collate(data[middle : middle + job.recipe.batch_size], pad_id(job.subject.tokenizer))


def _time_probes(job: Any, layout: Any) -> float:
    """Seconds of all the run's measurements of its probes: each is measured once here, as around a step."""
    from intaglio.measure.probes import as_probe, measure_probe_with_gradient, probe_loss, undisturbed

    params = [w.param for w in layout.weights] if job.level != "norms" else []
    total = 0.0
    for name, source in job.probes.items():
        probe = as_probe(name, source, next(job.model.parameters()).device)
        with undisturbed(job.model):
            total += _seconds(partial(measure_probe_with_gradient, job.model, probe, params))
            total += _seconds(partial(probe_loss, job.model, probe)) if params else 0.0
    return total * disk.probe_measurements(job)


def _time_rescans(job: Any) -> float:
    """Seconds of scoring all data at every state of --rescan, from one scored batch."""
    if not job.rescan:
        return 0.0
    from intaglio.measure.scan import Scorer

    scorer = Scorer(job.model, seed=job.recipe.seed, precision=job.recipe.precision)
    batches = -(-len({i.example for i in job.data.data}) // job.recipe.batch_size)
    return job.rescan * batches * _seconds(partial(scorer.score, _middling_batch(job)))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
    tables = disk.scan_table_bytes(found.data, probes, scorer.collector.projections.width)
    written = sum(tables.values()) + disk.data_bytes(found.originals)
    console.print(f"  {counted(len(data), 'example')}, time: about {_minutes(seconds)}", highlight=False)
    console.print(f"  memory: {human(size * (1 + len(probes)))} for weights and probe gradients", highlight=False)
    page = disk.scan_page_bytes(found.data)
    console.print(f"  disk: tables about {human(written)}, the page {human(page)}", highlight=False)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
