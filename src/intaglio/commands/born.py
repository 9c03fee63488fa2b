"""`intaglio born`: a small attention model is trained, and its induction head is watched being born."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intaglio.commands.job import Job
from intaglio.commands.options import Lang, check_options, explained
from intaglio.errors import InputError

MOST_SEEDS = 1000
SURE = 0.05
WHICH = {"first induction head": "first_head", "strongest at the end": "strongest"}


@explained
def born(
    *,
    out: Path = Path("runs/born"),
    seeds: int = 1,
    seed: int = 0,
    steps: int | None = None,
    force: bool = False,
    lang: Lang = "en",
) -> None:
    """Train a small attention model on texts in which repetition must be learnt, and watch an induction head being born.

    Two layers of four heads, from scratch, with the books open at every step and the model kept every ten steps. Ends with the
    page of its heads: loss, roles by step, births, and which texts taught them. The same seed gives the same numbers.

    Examples:

        intaglio born --out runs/born

        intaglio born --seeds 5 --out runs/lottery

        intaglio taught runs/born L1.attn.H3

    Parameters
    ----------
    out
        Folder of the run; the page is heads.html in it.
    seeds
        Also train so many models in all, from as many starts, without books: is it the same head, or a lottery?
    seed
        Of the weights and of the texts; the first of several.
    steps
        Optimizer steps (700).
    """
    from intaglio.commands import prepare as ready

    check_options(steps=steps, seed=seed)
    if not 1 <= seeds <= MOST_SEEDS:
        raise InputError("--seeds counts trainings", got=seeds, expected=f"1 to {MOST_SEEDS}")
    console = ready.begin(out, plan=False, force=force, resume=False)
    with one_thread():
        BornJob.ready(out, seed=seed, steps=steps, force=force).run(console)
        page = write_page(out, console, lang=lang)
        if seeds > 1:
            draw_lots(out, range(seed, seed + seeds), steps, console)
    print(page)
    show(page)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A model this small loses by threads, and sums shared out otherwise would be other numbers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_page(out: Path, console: Any, *, lang: str) -> Path:
    """The page of the run's heads with their history and teachers, and a few lines of it; the page's path."""
    from intaglio.commands.progress import bars
    from intaglio.history import history_of

    with bars(console) as tell:
        atlas = history_of(out, progress=tell, tokens=True)
    page = out / "heads.html"
    atlas.to_html(page, lang=lang)
    atlas.to_json(out / "heads.json")
    _say(atlas, out, console)
    return page


def _say(atlas: Any, out: Path, console: Any) -> None:
    """The fall of the loss, the births in it, and who taught the first induction head."""
    from intaglio.analyse.heads.teachers import groups_of
    from intaglio.history import ROLE_PROBE, windows_of
    from intaglio.store.run import open_run

    losses = {task: [r for r in atlas.rows["losses"] if r["task"] == task] for task in ("repeat", "first")}
    for task, words in (("repeat", "second copy of random words"), ("first", "first copy")):
        first, last = losses[task][0], losses[task][-1]
        then, now = (f"{row['loss_nats']:.2f} at step {row['step']}" for row in (first, last))
        console.print(f"  {words}: loss {then}, {now}", highlight=False)
    births = [e for e in atlas.rows["events"] if e["event"] == "birth" and e["role"] in ("previous_token", "induction")]
    for event in births:
        role = event["role"].replace("_", " ")
        console.print(f"  step {event['step']}: {event['address']} is a head of {role}", highlight=False)
    induction = [e["address"] for e in births if e["role"] == "induction"]
    if not induction:
        return console.print("  no induction head was born: more steps are needed", highlight=False)
    window = windows_of(atlas.rows)[induction[0]]
    groups = groups_of(open_run(out), induction[0], probe=ROLE_PROBE, window=(window.begun, window.end))
    told = ", ".join(f"{g['group']} {g['credit_nats']:+.2g}" for g in groups)
    console.print(f"  credit of each group to {induction[0]} while it was born, in nats: {told}", highlight=False)


def draw_lots(out: Path, seeds: range, steps: int | None, console: Any) -> None:
    """Train from every seed, without books, and say whether the same head comes first."""
    from rich.table import Table

    from intaglio.analyse.heads.lottery import lottery
    from intaglio.commands.progress import bars
    from intaglio.files import write_text
    from intaglio.retrain import side_by_side

    with bars(console) as tell:
        found = side_by_side([(watch_seed, (seed, steps)) for seed in seeds], min(os.cpu_count() or 1, len(seeds)),
                             lambda done: tell("other starts", done, len(seeds)))  # fmt: skip
    below = (found[0].losses[0] + found[0].losses[-1]) / 2
    rows = [one.summary(below) for one in found]
    last = found[0].excess.shape[1] - 1
    heads = [f"L{last}.attn.H{h}" for h in range(found[0].excess.shape[2])]
    lots = {what: lottery([row[key] for row in rows], heads) for what, key in WHICH.items()}
    table = Table("start", "first induction head", "at step", "strongest at the end", f"loss under {below:.2f} at", "last loss",
                  box=None, padding=(0, 2))  # fmt: skip
    for row in rows:
        table.add_row(
            row["name"], row["first_head"] or "none", _step(row["first_step"]), row["strongest"], _step(row["loss_step"]),
            f"{row['last_loss_nats']:.2f}",
        )  # fmt: skip
    console.print(table)
    said = {what: lots_in_words(found) for what, found in lots.items()}
    for what, words in said.items():
        console.print(f"  {what}: {words}", highlight=False)
    text = json.dumps({"seeds": list(seeds), "rows": rows, "lottery": lots, "said": said}, ensure_ascii=False, indent=1)
    write_text(out / "lottery.json", text + "\n")


def _step(step: int | None) -> str:
    return "never" if step is None else str(step)


def lots_in_words(lots: dict[str, Any]) -> str:
    """Is it the same head, or a lottery? In one sentence."""
    if lots["p"] is None:
        return "No start gave an induction head in so many steps."
    counts = ", ".join(f"{head} {n}" for head, n in lots["counts"].items())
    chance = f"an even draw gives some head {lots['count']} of {lots['seeds']} or more with probability {lots['p']:.2g}"
    same = lots["p"] < SURE
    return f"{'The same head more often than by chance' if same else 'A lottery, as far as can be told'}: {counts}; {chance}."


def watch_seed(seed: int, steps: int | None = None) -> Any:
    """The demonstration from another seed, other weights and other texts, without books."""
    from intaglio.retrain import watch

    with one_thread():
        job = BornJob.ready(Path("unwritten"), seed=seed, steps=steps)
        return watch(f"seed {seed}", job.subject, job.recipe, job.data.data, pad_id=job.subject.tokenizer.pad_token_id)


def show(page: Path) -> None:
    """Open the page where there is a screen to see it on."""
    import webbrowser

    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and sys.stdout.isatty():
        webbrowser.open(page.resolve().as_uri())


class BornJob(Job):
    """A run whose subject is made by recipe instead of being loaded."""

    @classmethod
    def ready(cls, out: Path, *, seed: int, steps: int | None = None, force: bool = False) -> BornJob:
        """Subject, texts, probes and recipe of a seed; nothing is written yet."""
        from intaglio import born as recipe
        from intaglio.train import Recipe, prepare_model

        job = cls(
            recipe.NAME, out, probe_every=recipe.PROBE_EVERY, checkpoint_every=recipe.CHECKPOINT_EVERY, keep_tokens=0.0,
            credit_parts=True, keep_start=True, keep_moments=10**9, force=force, extra={"demo": recipe.NAME},
        )  # fmt: skip
        job.subject = recipe.make_subject(seed)
        job.data, job.probes = _texts(job.subject.tokenizer, seed)
        job.recipe = Recipe(steps=steps or recipe.STEPS, seed=seed, **recipe.RECIPE)
        job.model = prepare_model(job.subject.model, job.recipe)
        return job

    def manifest(self) -> dict[str, Any]:
        """As of any run; but it is trained on the processor also where there is a GPU."""
        found = super().manifest()
        return found | {"hardware": found["hardware"] | {"device": "cpu"}}

    def load_start(self) -> None:
        """Put the weights back as the seed made them."""
        import torch

        from intaglio.born import make_subject

        with torch.no_grad():
            for mine, first in zip(self.model.parameters(), make_subject(self.recipe.seed).model.parameters()):
                mine.copy_(first)


def _texts(tokenizer: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """The data set, and the probes `repeat` and `first`, as a run has them from files."""
    from intaglio import born as recipe
    from intaglio.commands.prepare import make_probe, pad_id, prepare_data
    from intaglio.commands.steps import _as_rows
    from intaglio.data.encode import encode_rows
    from intaglio.data.repeats import first_rows, repeat_rows, training_rows

    originals = training_rows(recipe.ROWS, seed=seed)
    data = prepare_data(
        _as_rows(originals), tokenizer, name="texts with and without repeats", max_tokens=64, truncate=False,
        originals=originals, end=False,
    )  # fmt: skip
    sets = {"repeat": repeat_rows(recipe.PROBE_TEXTS, seed=seed), "first": first_rows(recipe.PROBE_TEXTS, seed=seed)}
    probes = {
        name: make_probe(name, encode_rows(_as_rows(rows), tokenizer, max_tokens=64, end=False), pad_id(tokenizer))
        for name, rows in sets.items()
    }
    return data, probes
