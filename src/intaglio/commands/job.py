"""One training run, from a loaded subject to a finished folder: what `train` and `steps` carry out."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intaglio.commands import prepare as ready
from intaglio.commands.progress import Progress
from intaglio.commands.resuming import check_same, go_back, in_order
from intaglio.errors import IntaglioError, RecipeError, SubjectError, TrainingError


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
    credit_parts: bool = False
    group_momentum: bool = False
    rescan: int = 0
    keep_start: bool = False  # keep the state before the first step, too
    keep_moments: int = 2  # how many of the last states keep the optimizer's moments
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

    def carry_out(self, console: Any, *, plan: bool, lang: str) -> None:
        """Say what it would cost; or train, and end with the page."""
        if plan:
            from intaglio.commands.plan import print_plan

            return print_plan(self, console)
        from intaglio.commands.summary import conclude, print_summary

        self.run(console)
        conclude(self.out, print_summary, console, lang=lang)

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
            check_same(self, writer.manifest)
        try:
            ledger = self._ledger(optimizer, writer)
        except IntaglioError:
            if not self.resume:
                shutil.rmtree(writer.folder, ignore_errors=True)  # nothing was measured yet
            raise
        folder = checkpoint.resumable(writer.folder) if self.resume else None
        first = go_back(self, ledger, optimizer, folder) if self.resume else 0
        if first == 0:
            ready.write_originals(writer.folder, self.data.originals)
        for line in ledger.budget.lines():
            console.print(f"  {line}", highlight=False)
        if ledger.layout.unmeasured:
            share = 1 - ledger.layout.coverage
            console.print(f"  not measured ({share:.1%} of the parameters): {', '.join(ledger.layout.unmeasured)}")
        self.started = time.perf_counter() - (checkpoint.seconds(folder) if folder else 0.0)
        if first == 0 and self.keep_start:
            self._save(ledger, 0, optimizer)
        scans = self._rescan_steps()
        try:
            with Progress(console, self.recipe.steps, first) as bar, ledger:
                if folder is not None and ledger.group_carry is not None:
                    ledger.group_carry.buffers = in_order(checkpoint.load_carried(folder, self.model), ledger.layout)

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
        except TrainingError as error:
            writer.write_manifest(nonfinite=writer.manifest.get("nonfinite", {"step": ledger.step}))
            raise TrainingError(
                f"{error.what}; the run so far is kept in {writer.folder}", got=error.got, expected=error.expected
            ) from None
        torch.cuda.empty_cache() if torch.cuda.is_available() else None

    def _ledger(self, optimizer: Any, writer: Any) -> Any:
        from intaglio.measure.ledger import Ledger

        return Ledger(
            self.model, optimizer, out=self.out, writer=writer, level=self.level, every=self.every,
            memory=self.memory, probes=self.probes, probe_every=self.probe_every, keep_tokens=self.keep_tokens,
            credit_parts=self.credit_parts, group_momentum=self.group_momentum, seed=self.recipe.seed,
            sources=ready.sources_of(self.data.data),
            tokenizer=self.subject.tokenizer, manifest=self.manifest(), strict=True, quiet=True,
        )  # fmt: skip

    def _save(self, ledger: Any, step: int, optimizer: Any) -> None:
        """Keep a state, once all rows before it are on disk: a resumed run trusts that they are."""
        from intaglio import checkpoint

        writer, carry = ledger.writer, ledger.group_carry
        ledger.flush()
        folder = checkpoint.save(
            writer.folder, step, self.model, optimizer, self.subject.tokenizer,
            carried=carry.buffers if carry is not None else None, seconds=time.perf_counter() - self.started,
            keep_moments=self.keep_moments,
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

        with ledger.tap.paused():
            scorer = Scorer(self.model, seed=self.recipe.seed, precision=self.recipe.precision)
            score_rows(
                scorer, self.data.data, ledger.writer, step=step, batch_size=self.recipe.batch_size,
                pad_id=ready.pad_id(self.subject.tokenizer),
            )  # fmt: skip

    def _replay_spikes(self, writer: Any, ledger: Any, console: Any) -> None:
        from intaglio.commands.spikes import record_spikes

        ledger.tap.enabled = False
        ledger.snapshot.theta.clear()  # no step is left to measure, and the replay wants the room
        ledger.snapshot.momentum.clear()
        record_spikes(self, writer, console)
