"""`intaglio steps`: leaps and bridges: how does this model take sharp steps?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

EPOCHS = 6  # every example is visited six times: dispersion needs five


def steps(
    subject: str = "smollm2",
    *,
    out: Path | None = None,
    rotation: Literal["a", "b"] = "a",
    epochs: float = EPOCHS,
    batch_size: int = 6,
    lr: float = 2e-5,
    level: Literal["norms", "full", "exact"] = "full",
    seed: int = 0,
    plan: bool = False,
    force: bool = False,
    resume: bool = False,
    lang: Literal["en", "ru"] = "en",
) -> None:
    """Teach a model twelve facts in five ways, and see how each way moves it.

    The built-in set, in English and Russian: invented facts stated bare (leap) or reached in small
    steps (bridge), known facts contradicted (conflict) or repeated (control), and word salad (noise),
    at equal token counts. Paraphrases are the target probe, ordinary prose is the anchor.

    Examples:

        intaglio steps smollm2

        intaglio steps ./my-model --rotation b --out runs/steps-b --lang ru

    Parameters
    ----------
    subject
        smollm2 (built in), a Hugging Face id, a folder with safetensors, or a .gguf file.
    out
        Folder of the run (runs/steps-NAME-ROTATION).
    rotation
        a or b: what one teaches by a leap (or falsely), the other teaches by a bridge (or truly).
    epochs
        Passes over the thirty rows.
    batch_size
        Examples per optimizer step.
    lr
        Learning rate.
    level
        norms, full or exact: how much is measured.
    seed
        Of the order of the data.
    plan
        Print time, memory and disk, and stop.
    force
        Replace an existing run.
    resume
        Go on with an unfinished run.
    lang
        Language of the report: en or ru.
    """
    from rich.console import Console

    from intaglio.commands import prepare as ready
    from intaglio.commands.train import Job, finish, step_count
    from intaglio.data.leaps import anchor_rows, paraphrase_rows, training_rows
    from intaglio.store.run import check_free

    console = Console(stderr=True)
    out = out or Path("runs") / f"steps-{Path(subject).name}-{rotation}"
    if not plan:
        check_free(out, force=force, resume=resume)
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
    n_steps = step_count(len(job.data.data), batch_size, epochs, None)
    job.probe_every = max(1, n_steps // 2)
    job.set_recipe(
        steps=n_steps, batch_size=batch_size, accumulate=1, lr=lr, schedule="constant", warmup=0.1,
        optimizer="adamw", weight_decay=0.0, momentum=0.9, clip=1.0, seed=seed, lora_rank=None, layers=None,
    )  # fmt: skip
    if plan:
        from intaglio.commands.plan import print_plan

        print_plan(job, console)
        return
    job.run(console)
    finish(job, console, lang=lang)


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
