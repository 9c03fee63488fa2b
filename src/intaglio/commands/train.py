"""`intaglio train`: fine-tune a model on a data set while measuring what every example does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from intaglio.commands import prepare as ready
from intaglio.commands.job import Job
from intaglio.commands.options import Lang, Level, Probes, check_options, explained
from intaglio.errors import RecipeError


@explained
def train(
    subject: str,
    data: str,
    *,
    out: Path,
    probe: Probes = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 4,
    accumulate: int = 1,
    lr: float | None = None,
    schedule: Literal["constant", "linear", "cosine"] = "linear",
    warmup: float = 0.1,
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
    momentum: float = 0.9,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    lora: int | None = None,
    layers: str | None = None,
    max_tokens: int | None = None,
    truncate: bool = False,
    level: Level = "full",
    every: int = 1,
    memory: str | None = None,
    probe_every: int | None = None,
    checkpoint_every: int | None = None,
    keep_tokens: float = 1.0,
    group_momentum: bool = False,
    credit_parts: bool = False,
    rescan: int = 0,
    seed: int = 0,
    plan: bool = False,
    resume: bool = False,
    force: bool = False,
    lang: Lang = "en",
) -> None:
    """Fine-tune a model on your data, with books that close for every example and every token.

    Examples:

        intaglio train smollm2 mine.jsonl --probe target=paraphrases.jsonl --probe anchor=general.txt --out runs/mine

        intaglio train ./my-model data.parquet --lora 8 --layers 10:20 --epochs 2 --out runs/lora

    Parameters
    ----------
    probe
        NAME=FILE, a set of texts to watch; may be given again. target: what should be learnt beyond the
        wording trained on; anchor: what must not be forgotten.
    epochs
        Passes over the data (3 unless --steps is given).
    steps
        Optimizer steps, instead of --epochs.
    accumulate
        Forwards per optimizer step.
    lr
        Learning rate (2e-5; 2e-4 with --lora; 1e-3 for sgd).
    schedule
        constant, linear or cosine, after the warm-up.
    warmup
        Share of the steps in which the learning rate rises.
    optimizer
        adamw, adam or sgd.
    momentum
        First beta of Adam, or SGD's momentum.
    weight_decay
        Weight decay of matrices; gains and biases do not decay.
    clip
        Longest gradient; 0 leaves it as it is.
    lora
        Rank of LoRA adapters; without it all weights are trained.
    layers
        A:B, train only layers A up to B (B not included).
    every
        Measure full at every Nth step only, norms between.
    memory
        Most extra memory for measuring, such as 2GiB.
    probe_every
        Steps between measurements of the probes (a tenth of the run).
    checkpoint_every
        Steps between kept states of the model (none but the last).
    keep_tokens
        Share of examples whose rows per token are kept.
    credit_parts
        Keep every credit restricted to each part of the model, too, for `intaglio taught`.
    group_momentum
        Split the momentum by the data's `group` column exactly; one copy of it per group.
    rescan
        Score all data at this many states along the way, so that dispersion has enough visits.
    seed
        Of the order of the data, of adapters and of sketches.
    resume
        Go on with the unfinished run at --out.
    """
    console = ready.begin(out, plan=plan, force=force, resume=resume)
    job = Job(
        subject, out, level=level, every=every, memory=memory, probe_every=probe_every,
        checkpoint_every=checkpoint_every, keep_tokens=keep_tokens, group_momentum=group_momentum, rescan=rescan,
        credit_parts=credit_parts, resume=resume, force=force,
    )  # fmt: skip
    settings = dict(
        batch_size=batch_size, accumulate=accumulate, lr=lr, schedule=schedule, warmup=warmup, optimizer=optimizer,
        momentum=momentum, weight_decay=weight_decay, clip=clip or None, seed=seed, lora_rank=lora,
    )  # fmt: skip
    check_options(steps=steps, epochs=epochs, **settings)
    trained = parse_layers(layers)
    ready.token_limit(None, max_tokens)
    ready.parse_probes(probe or [])
    job.load()
    job.data, job.probes = ready.read_all(
        job.subject, data, probe, console, max_tokens=max_tokens, truncate=truncate
    )
    if group_momentum:
        from intaglio.measure.carry import check_groups

        check_groups(item.group for item in job.data.data)
    n_steps = step_count(len(job.data.data), batch_size * accumulate, epochs, steps)
    job.set_recipe(steps=n_steps, layers=trained, **settings)
    job.carry_out(console, plan=plan, lang=lang)


def step_count(n_rows: int, per_step: int, epochs: float | None, steps: int | None) -> int:
    """Optimizer steps of a run; the last step of an epoch may reach into the next."""
    if steps is not None:
        return steps
    epochs = 3.0 if epochs is None else epochs
    return max(1, -(-round(epochs * n_rows) // per_step))


def parse_layers(text: str | None) -> tuple[int, int] | None:
    """(first, last) of "A:B"."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit():
        raise RecipeError("not a range of layers", got=text, expected="A:B, such as 10:20")
    if int(first) >= int(last):
        raise RecipeError("--layers is empty", got=text, expected="A:B with A below B, such as 10:20")
    return int(first), int(last)
