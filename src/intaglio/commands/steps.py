"""`intaglio steps`: leaps and bridges: how does this model take sharp steps?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from intaglio.commands.options import Lang, Level, check_options, explained

EPOCHS = 6  # every example is visited six times: dispersion needs five


@explained
def steps(
    subject: str = "smollm2",
    *,
    out: Path | None = None,
    rotation: Literal["a", "b", "both"] = "a",
    epochs: float = EPOCHS,
    batch_size: int = 6,
    lr: float = 2e-5,
    level: Level = "full",
    seed: int = 0,
    plan: bool = False,
    force: bool = False,
    resume: bool = False,
    lang: Lang = "en",
) -> None:
    """Teach a model twelve facts in five ways, and see how each way moves it.

    The built-in set, in English and Russian: invented facts stated bare (leap) or reached in small
    steps (bridge), known facts contradicted (conflict) or repeated (control), and word salad (noise),
    at equal token counts. Paraphrases are the target probe, ordinary prose is the anchor.

    Examples:

        intaglio steps smollm2

        intaglio steps smollm2 --rotation both

        intaglio steps ./my-model --rotation b --out runs/steps-b --lang ru

    Parameters
    ----------
    out
        Folder of the run (runs/steps-NAME-ROTATION); with --rotation both, OUT-a and OUT-b.
    rotation
        a or b: what one teaches by a leap (or falsely), the other teaches by a bridge (or truly). both: one run
        after the other from the same start, and each fact's leap against its own bridge.
    epochs
        Passes over the thirty rows.
    batch_size
        Examples per optimizer step.
    lr
        Learning rate.
    seed
        Of the order of the data.
    force
        Replace an existing run.
    resume
        Go on with an unfinished run.
    """
    from intaglio.commands import prepare as ready
    from intaglio.store.run import begun

    settings = dict(
        batch_size=batch_size, accumulate=1, lr=lr, schedule="constant", warmup=0.1, optimizer="adamw",
        weight_decay=0.0, momentum=0.9, clip=1.0, seed=seed, lora_rank=None,
    )  # fmt: skip
    check_options(epochs=epochs, **settings)
    rotations = ("a", "b") if rotation == "both" else (rotation,)
    base = out or Path("runs") / f"steps-{Path(subject).name}"
    folders = {r: base if out and rotation != "both" else base.with_name(f"{base.name}-{r}") for r in rotations}
    whole = [r for r in rotations if rotation == "both" and resume and folders[r].exists()]  # finished before the other
    for r in rotations:
        others = [f for f in folders.values() if f != folders[r] and (begun(f) or f.exists())]
        console = ready.begin(folders[r], plan=plan or r in whole, force=force, resume=resume, alone=not others)
    for r in rotations:
        job = _job(subject, folders[r], r, epochs, settings, level, console, force=force, resume=resume)
        if r in whole:
            _keep(job, console)
        else:
            job.carry_out(console, plan=plan, lang=lang)
    if rotation == "both" and not plan:
        from intaglio.analyse.pairs import fact_pairs
        from intaglio.commands.summary import print_pairs
        from intaglio.store.run import open_run

        print_pairs(fact_pairs([open_run(f) for f in folders.values()]), console)


def _job(
    subject: str, out: Path, rotation: str, epochs: float, settings: dict[str, Any], level: str, console: Any, *,
    force: bool, resume: bool,
) -> Any:  # fmt: skip
    """One rotation's run, ready to be carried out, from a subject that was loaded afresh."""
    from intaglio.commands import prepare as ready
    from intaglio.commands.job import Job
    from intaglio.commands.train import step_count
    from intaglio.data.leaps import anchor_rows, paraphrase_rows, training_rows

    job = Job(
        subject, out, level=level, force=force, resume=resume, extra={"demo": "leaps and bridges", "rotation": rotation}
    )
    job.load()
    limit = ready.token_limit(job.subject.context_tokens, None)
    job.data = ready.prepare_data(
        _as_rows(training_rows(rotation)), job.subject.tokenizer, name=f"leaps and bridges, rotation {rotation}",
        max_tokens=limit, truncate=False, originals=training_rows(rotation), end=False,
    )  # fmt: skip
    sets = {"target": paraphrase_rows(rotation), "anchor": anchor_rows()}
    job.probes = {name: _probe(name, rows, job.subject.tokenizer, limit) for name, rows in sets.items()}
    ready.show_data(job.data, job.subject.tokenizer, console)
    n_steps = step_count(len(job.data.data), settings["batch_size"], epochs, None)
    job.probe_every = max(1, n_steps // 2)
    job.set_recipe(steps=n_steps, layers=None, **settings)
    return job


def _keep(job: Any, console: Any) -> None:
    """A rotation that was finished before the other one was interrupted; it must be of the same recipe."""
    from intaglio.commands.resuming import check_same
    from intaglio.store.run import open_run

    check_same(job, open_run(job.out).manifest)
    console.print(f"  {job.out} is finished and stays as it is", highlight=False)


def _as_rows(originals: Sequence[dict[str, Any]]) -> list[Any]:
    """The set's rows as if they had been read from a file."""
    from intaglio.data.read import Row

    return [
        Row(
            number=n, kind="completion" if "completion" in row else "text",
            fields={k: row[k] for k in ("prompt", "completion", "text") if k in row},
            group=row.get("group"), fact=row.get("fact"), original=row,
        )
        for n, row in enumerate(originals)
    ]  # fmt: skip


def _probe(name: str, originals: list[dict[str, Any]], tokenizer: Any, limit: int) -> Any:
    from intaglio.commands.prepare import make_probe, pad_id
    from intaglio.data.encode import encode_rows

    return make_probe(name, encode_rows(_as_rows(originals), tokenizer, max_tokens=limit, end=False), pad_id(tokenizer))
