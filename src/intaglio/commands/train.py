"""`intaglio train`: fine-tune a model on a data set while measuring what every example does to it."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from intaglio.commands import prepare as ready
from intaglio.errors import IntaglioError, RecipeError, SubjectError


def train(
    subject: str,
    data: str,
    *,
    out: Path,
    probe: Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)] = None,
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
    level: Literal["norms", "full", "exact"] = "full",
    every: int = 1,
    memory: str | None = None,
    probe_every: int | None = None,
    checkpoint_every: int | None = None,
    keep_tokens: float = 1.0,
    group_momentum: bool = False,
    rescan: int = 0,
    seed: int = 0,
    plan: bool = False,
    resume: bool = False,
    force: bool = False,
    lang: Literal["en", "ru"] = "en",
) -> None:
    """Fine-tune a model on your data, with books that close for every example and every token.

    Examples:

        intaglio train smollm2 mine.jsonl --probe target=paraphrases.jsonl --probe anchor=general.txt --out runs/mine

        intaglio train ./my-model data.parquet --lora 8 --layers 10:20 --epochs 2 --out runs/lora

    Parameters
    ----------
    subject
        smollm2 (built in), a Hugging Face id, a folder with safetensors, or a .gguf file.
    data
        A .jsonl, .json, .csv, .parquet or .txt file, or a Hub data set.
    out
        Folder of the run; it must not exist (see --force, --resume).
    probe
        NAME=FILE, a set of texts to watch; may be given again. target: what should be learnt beyond the
        wording trained on; anchor: what must not be forgotten.
    epochs
        Passes over the data (3 unless --steps is given).
    steps
        Optimizer steps, instead of --epochs.
    batch_size
        Examples per forward.
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
    max_tokens
        Longest example (1024, or the model's context); a longer one is refused by its row number.
    truncate
        Cut longer examples instead.
    level
        norms, full or exact: how much is measured.
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
    group_momentum
        Split the momentum by the data's `group` column exactly; one copy of it per group.
    rescan
        Score all data at this many states along the way, so that dispersion has enough visits.
    seed
        Of the order of the data, of adapters and of sketches.
    plan
        Print time, memory and disk, and stop.
    resume
        Go on with the unfinished run at --out.
    force
        Replace an existing run at --out.
    lang
        Language of the report: en or ru.
    """
    from rich.console import Console

    from intaglio.store.run import check_free

    console = Console(stderr=True)
    if not plan:
        check_free(out, force=force, resume=resume)
    job = Job(
        subject, out, level=level, every=every, memory=memory, probe_every=probe_every,
        checkpoint_every=checkpoint_every, keep_tokens=keep_tokens, group_momentum=group_momentum, rescan=rescan,
        resume=resume, force=force,
    )  # fmt: skip
    job.load()
    limit = ready.token_limit(job.subject.context_tokens, max_tokens)
    tokenizer = job.subject.tokenizer
    job.data = ready.read_data(data, tokenizer, max_tokens=limit, truncate=truncate)
    job.probes = ready.read_probes(
        ready.parse_probes(probe or []), tokenizer, max_tokens=limit, truncate=truncate
    )
    ready.show_data(job.data, tokenizer, console)
    n_steps = step_count(len(job.data.data), batch_size * accumulate, epochs, steps)
    job.set_recipe(
        steps=n_steps, batch_size=batch_size, accumulate=accumulate, lr=lr, schedule=schedule, warmup=warmup,
        optimizer=optimizer, weight_decay=weight_decay, momentum=momentum, clip=clip or None, seed=seed,
        lora_rank=lora, layers=parse_layers(layers),
    )  # fmt: skip
    if plan:
        from intaglio.commands.plan import print_plan

        print_plan(job, console)
        return
    job.run(console)
    finish(job, console, lang=lang)


def step_count(n_rows: int, per_step: int, epochs: float | None, steps: int | None) -> int:
    """Optimizer steps of a run; the last step of an epoch may reach into the next."""
    if per_step < 1:
        raise RecipeError("--batch-size and --accumulate count examples and forwards", expected="1 or more")
    if epochs is not None and steps is not None:
        raise RecipeError("--epochs and --steps exclude each other")
    if steps is not None:
        return steps
    epochs = 3.0 if epochs is None else epochs
    if not 0 < epochs < float("inf"):
        raise RecipeError("--epochs must be positive", got=epochs)
    return max(1, -(-round(epochs * n_rows) // per_step))


def parse_layers(text: str | None) -> tuple[int, int] | None:
    """(first, last) of "A:B"."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit():
        raise RecipeError("not a range of layers", got=text, expected="A:B, such as 10:20")
    return int(first), int(last)


@dataclass
class Job:
    """One training run: from a loaded subject to a finished folder."""

    spec: str
    out: Path
    level: str = "full"
    every: int = 1
    memory: str | None = None
    probe_every: int | None = None
    checkpoint_every: int | None = None
    keep_tokens: float = 1.0
    group_momentum: bool = False
    rescan: int = 0
    resume: bool = False
    force: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # for the manifest
    subject: Any = None
    data: Any = None
    probes: dict[str, Any] = field(default_factory=dict)
    recipe: Any = None
    model: Any = None
    started: float = 0.0  # of the clock, less the time that earlier parts of a resumed run took
    first_adapters: dict[str, Any] = field(default_factory=dict)  # LoRA's before the first step, on the CPU

    def load(self) -> None:
        from intaglio.model.subject import load_subject

        self._check()
        self.subject = load_subject(self.spec)

    def load_start(self) -> None:
        """Put what is trained back as it was before the first step: the subject's weights, or fresh adapters.

        Raises:
            SubjectError: the subject cannot be read any more, or is another one now.
        """
        import torch

        from intaglio.model.subject import load_subject

        start = self.first_adapters
        if not start:
            subject = load_subject(self.spec)
            if subject.fingerprint != self.subject.fingerprint:
                raise SubjectError("the subject has changed since training began", got=self.spec)
            start = dict(subject.model.named_parameters())
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if p.requires_grad:
                    p.copy_(start[name])

    def _check(self) -> None:
        """Refuse what cannot be measured, before any work."""
        from intaglio.measure.budget import parse_bytes

        parse_bytes(self.memory)
        for name in ("every", "probe_every", "checkpoint_every"):
            steps = getattr(self, name)
            if steps is not None and steps < 1:
                raise RecipeError(f"--{name.replace('_', '-')} counts steps", got=steps, expected="1 or more")
        if self.rescan < 0:
            raise RecipeError("--rescan counts states", got=self.rescan, expected="0 or more")
        if not 0 <= self.keep_tokens <= 1:
            raise RecipeError("--keep-tokens is a share of the examples", got=self.keep_tokens, expected="0 to 1")

    def set_recipe(self, *, lr: float | None, warmup: float, **settings: Any) -> None:
        """Resolve the recipe, and prepare the model for it."""
        import torch

        from intaglio.train import Recipe, check_recipe, prepare_model

        default_lr = 2e-4 if settings["lora_rank"] else 1e-3 if settings["optimizer"] == "sgd" else 2e-5
        if not 0 <= warmup <= 1:
            raise RecipeError("--warmup is a share of the steps", got=warmup, expected="0 to 1")
        self.recipe = Recipe(
            lr=default_lr if lr is None else lr, warmup_steps=int(warmup * settings["steps"]),
            precision=ready.precision(), **settings,
        )  # fmt: skip
        check_recipe(self.recipe)
        self.probe_every = self.probe_every or max(1, self.recipe.steps // 10)
        torch.manual_seed(self.recipe.seed)
        self.model = prepare_model(self.subject.model.to(ready.device()), self.recipe)
        if self.recipe.lora_rank:
            trained = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
            self.first_adapters = {n: p.detach().to("cpu", copy=True) for n, p in trained}

    def manifest(self) -> dict[str, Any]:
        import platform

        import torch

        return {
            "kind": "train", "command": ["intaglio", *sys.argv[1:]],
            "subject": {"name": self.subject.name, "fingerprint": self.subject.fingerprint, "spec": self.spec},
            "data": {"name": self.data.name, "rows": len(self.data.originals), "fingerprint": self.data.fingerprint},
            "recipe": self.recipe.as_dict(), "rescan": self.rescan, "group_momentum": self.group_momentum,
            "hardware": {
                "machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            },
            **self.extra,
        }  # fmt: skip

    def run(self, console: Any) -> None:
        """Train, measure, checkpoint; the run folder is whole when this returns."""
        import torch

        from intaglio import checkpoint
        from intaglio.store.run import RunWriter
        from intaglio.train import make_optimizer
        from intaglio.train import train as train_loop

        optimizer = make_optimizer(self.model, self.recipe)
        writer = RunWriter(self.out, {}, force=self.force, resume=self.resume)
        if self.resume:
            self._check_same(writer.manifest)
        try:
            ledger = self._ledger(optimizer, writer)
        except IntaglioError:
            if not self.resume:
                shutil.rmtree(writer.folder, ignore_errors=True)  # nothing was measured yet
            raise
        folder = checkpoint.resumable(writer.folder) if self.resume else None
        first = self._resume_state(ledger, optimizer, folder) if self.resume else 0
        if first == 0:
            ready.write_originals(writer.folder, self.data.originals)
        for line in ledger.budget.lines():
            console.print(f"  {line}", highlight=False)
        if ledger.layout.unmeasured:
            share = 1 - ledger.layout.coverage
            console.print(f"  not measured ({share:.1%} of the parameters): {', '.join(ledger.layout.unmeasured)}")
        self.started = time.perf_counter() - (checkpoint.seconds(folder) if folder else 0.0)
        scans = self._rescan_steps()
        with _progress(console, self.recipe.steps, first) as bar, ledger:
            if folder is not None and ledger.group_carry is not None:
                ledger.group_carry.buffers = _in_order(checkpoint.load_carried(folder, self.model), ledger.layout)

            def after_step(step: int, loss_nats: float) -> None:
                bar.step(step, loss_nats, ledger.latest)
                if step in scans:
                    self._rescan(ledger, step)
                if self.checkpoint_every and step % self.checkpoint_every == 0 and step < self.recipe.steps:
                    self._save(ledger, step, optimizer)

            if first == 0 and 0 in scans:
                self._rescan(ledger, 0)
            train_loop(
                self.model, optimizer, self.data.data, self.recipe,
                pad_id=ready.pad_id(self.subject.tokenizer), first_step=first, after_step=after_step,
            )  # fmt: skip
            writer.manifest["training_seconds"] = time.perf_counter() - self.started
            if first < self.recipe.steps:
                self._save(ledger, self.recipe.steps, optimizer)
            self._replay_spikes(writer, ledger, console)
        torch.cuda.empty_cache() if torch.cuda.is_available() else None

    def _ledger(self, optimizer: Any, writer: Any) -> Any:
        from intaglio.measure.ledger import Ledger

        return Ledger(
            self.model, optimizer, out=self.out, writer=writer, level=self.level, every=self.every,
            memory=self.memory, probes=self.probes, probe_every=self.probe_every, keep_tokens=self.keep_tokens,
            group_momentum=self.group_momentum, seed=self.recipe.seed, sources=ready.sources_of(self.data.data),
            tokenizer=self.subject.tokenizer, manifest=self.manifest(), strict=True, quiet=True,
        )  # fmt: skip

    def _check_same(self, manifest: dict[str, Any]) -> None:
        """Refuse to go on with a run that was begun otherwise."""
        mine = self.manifest()
        probes = {p.name: p.as_dict() for p in self.probes.values()}
        for key, now in (
            ("recipe", mine["recipe"]), ("data", mine["data"]), ("subject", mine["subject"]), ("probes", probes),
            ("level", self.level), ("every", self.every), ("probe_every", self.probe_every),
            ("keep_tokens", self.keep_tokens), ("group_momentum", self.group_momentum), ("rescan", self.rescan),
        ):  # fmt: skip
            then = manifest.get(key)
            if then is not None and then != now:
                differs = sorted(k for k in {*now, *then} if then.get(k) != now.get(k)) if isinstance(now, dict) else [key]
                raise RecipeError(
                    f"the unfinished run at {self.out} has another {key} ({', '.join(differs)})",
                    expected="the same command line with --resume, or --force to start anew",
                )

    def _resume_state(self, ledger: Any, optimizer: Any, folder: Path | None) -> int:
        """Go back to the newest kept state, or to the start; rows written after it are dropped."""
        from intaglio import checkpoint
        from intaglio.store.run import Run

        ledger.prime_probes()
        step = checkpoint.load(folder, self.model, optimizer) if folder else 0
        ledger.writer.drop_after(step if folder else -1)
        run = Run(ledger.writer.folder)
        rows = run.table("steps").select(["step", "path_l2", "measured"]).to_pylist()
        ledger.budget.restore(sorted((r["step"], r["measured"]) for r in rows))
        ledger.restore(
            step, path_l2=max((r["path_l2"] or 0.0 for r in rows), default=0.0),
            examples=run.table("examples").column("example").to_pylist(),
            tokens=run.table("vocab").column("token").to_pylist(),
        )  # fmt: skip
        return step

    def _save(self, ledger: Any, step: int, optimizer: Any) -> None:
        """Keep a state, once all rows before it are on disk: a resumed run trusts that they are."""
        from intaglio import checkpoint

        writer, carry = ledger.writer, ledger.group_carry
        ledger.flush()
        folder = checkpoint.save(
            writer.folder, step, self.model, optimizer, self.subject.tokenizer,
            carried=carry.buffers if carry is not None else None, seconds=time.perf_counter() - self.started,
        )  # fmt: skip
        path = folder.relative_to(writer.folder).as_posix()
        writer.write_manifest(checkpoints={**writer.manifest.get("checkpoints", {}), str(step): path})
        writer.append_rows("checkpoints", [{"step": step, "path": path, "net_l2": ledger.latest.get("net_l2")}])
        writer.flush(step)

    def _rescan_steps(self) -> set[int]:
        if self.rescan < 1:
            return set()
        return {round(i * self.recipe.steps / self.rescan) for i in range(self.rescan)}

    def _rescan(self, ledger: Any, step: int) -> None:
        """Score all data at the present state; the ledger looks away meanwhile."""
        from intaglio.commands.scoring import score_rows
        from intaglio.measure.scan import Scorer

        ledger.tap.enabled = False
        try:
            scorer = Scorer(self.model, seed=self.recipe.seed, precision=self.recipe.precision)
            score_rows(
                scorer, self.data.data, ledger.writer, step=step, batch_size=self.recipe.batch_size,
                pad_id=ready.pad_id(self.subject.tokenizer),
            )  # fmt: skip
        finally:
            ledger.tap.enabled = True

    def _replay_spikes(self, writer: Any, ledger: Any, console: Any) -> None:
        from intaglio.commands.spikes import record_spikes

        ledger.tap.enabled = False
        ledger.snapshot.theta.clear()  # no step is left to measure, and the replay wants the room
        ledger.snapshot.momentum.clear()
        record_spikes(self, writer, console)


def _in_order(buffers: dict[str, dict[int, Any]], layout: Any) -> dict[str, dict[int, Any]]:
    """Buffers in the order of the weights, in which their sums were taken before: sums of floats depend on it."""
    order = [id(w.param) for w in layout.weights]
    return {name: {key: found[key] for key in order if key in found} for name, found in buffers.items()}


class _progress:
    """A progress bar with loss, shift, agreement and what is left."""

    def __init__(self, console: Any, total: int, first: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.task = self.progress.add_task("training", total=total, completed=first, said="")

    def __enter__(self) -> _progress:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def step(self, step: int, loss_nats: float, row: dict[str, Any]) -> None:
        said = f"loss {loss_nats:.3f}"
        if row.get("update_l2"):
            said += f"  shift {row['update_l2']:.3g} ({row['data_shift'] / row['update_l2']:.0%} from this step's data)"
        gg, s = row.get("agreement_gg"), row.get("agreement_s")
        if gg is not None and gg + s:
            said += f"  agreement {gg / (gg + s):.2f}"
        self.progress.update(self.task, completed=step, said=said)


def finish(job: Job, console: Any, *, lang: str) -> None:
    """A short summary in the terminal and the report's path."""
    from intaglio.commands.report import write_report
    from intaglio.commands.summary import print_summary
    from intaglio.store.run import open_run

    findings, path = write_report(open_run(job.out), lang=lang)
    print_summary(findings, console)
    print(path)
