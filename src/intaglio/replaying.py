"""A finished training run taken again from its start or a kept state: the same batches, the same numbers.  [torch]

What a replay needs stands in the run itself: the recipe, the examples with their tokens, and which of them every step visited.
So probes that were invented after training are answered by the training itself, and any step can be looked at closer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from intaglio import checkpoint
from intaglio.data.encode import Encoded
from intaglio.errors import IntaglioError, StoreError
from intaglio.model.subject import Subject, load_subject
from intaglio.store.run import Run
from intaglio.train import Recipe, make_optimizer, prepare_model, train


@dataclass(eq=False)
class Replay:
    """One run, ready to be taken again.

    Attributes:
        data: its examples, as the model saw them.
        order: by step, places in `data` in the order of the batch.
        subject: the model as loaded, with its tokenizer; `model` is what is trained of it.
    """

    run: Run
    recipe: Recipe
    subject: Subject
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    data: list[Encoded]
    order: dict[int, list[int]]
    step: int = 0

    @property
    def pad_id(self) -> int:
        """A token to pad with, as the run padded."""
        tokenizer = self.subject.tokenizer
        return int(next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0))

    def go(self, until: int, after_step: Callable[[int, float], None] = lambda step, loss: None) -> None:
        """Train on to `until` steps taken."""
        recipe = self.recipe
        train(
            self.model, self.optimizer, self.data, recipe, pad_id=self.pad_id, first_step=self.step, last_step=until,
            order=self.order.__getitem__, after_step=after_step,
        )  # fmt: skip
        self.step = until


def open_replay(run: Run, *, first: int, last: int) -> Replay:
    """The run at the newest kept state that has its moments and lies at `first` or before it, else at its start.

    Args:
        first: step to be looked at first; `last`: the one after the last.

    Raises:
        StoreError: the run has no recipe, no such steps, was of several processes, or its start is gone and no state before
            `first` kept the optimizer's moments.
    """
    recipe = _recipe(run)
    if not 0 <= first < last <= recipe.steps:
        raise StoreError(f"{run.name} has no such steps", got=f"{first}:{last}", expected=f"within 0:{recipe.steps}")
    if run.manifest.get("processes", 1) > 1:
        raise StoreError(f"{run.name} was trained by several processes, which one cannot replay", got=run.manifest["processes"])
    state = _state_before(run, first)
    subject = _subject(run, state)
    torch.manual_seed(recipe.seed)
    model = prepare_model(subject.model.to(_device(run)), recipe)
    optimizer = make_optimizer(model, recipe)
    data, order = examples_of(run)
    missing = [s for s in range(checkpoint_step(state), last) if s not in order]
    if missing:
        raise StoreError(f"{run.name} kept no visits of step {missing[0]}", expected="a run that was measured at every step")
    found = Replay(run, recipe, subject, model, optimizer, data, order)
    if state is not None and checkpoint_step(state) > 0:
        found.step = checkpoint.load(state, model, optimizer)
    return found


def checkpoint_step(state: Path | None) -> int:
    """Steps taken by a kept state; 0 for none."""
    return int(state.name.removeprefix("step-")) if state is not None else 0


def _recipe(run: Run) -> Recipe:
    told = run.manifest.get("recipe")
    if not told or not run.files("visits"):
        raise StoreError(f"{run.name} is no run of intaglio train or born", expected="a run with a recipe and its visits")
    try:
        return Recipe(**told | {"layers": tuple(told["layers"]) if told["layers"] else None})
    except (TypeError, KeyError):
        raise StoreError(f"the recipe of {run.name} is of another version") from None


def _state_before(run: Run, first: int) -> Path | None:
    """The newest state at or before `first` from which training can go on; None for the start."""
    kept = [s for s in checkpoint.states(run.folder) if checkpoint_step(s) <= first]
    whole = [s for s in kept if checkpoint_step(s) == 0 or (s / "optimizer.safetensors").exists()]
    return whole[-1] if whole else None


def _subject(run: Run, state: Path | None) -> Subject:
    """The model before the first step: the subject of the run, or the state of step 0 that the run kept."""
    start = next((s for s in checkpoint.states(run.folder) if checkpoint_step(s) == 0), None)
    told = run.manifest.get("subject") or {}
    if start is not None:
        return load_subject(start)
    try:
        subject = load_subject(told.get("spec", ""))
    except (IntaglioError, OSError) as error:
        raise _gone(run, f"the subject it began with cannot be had ({error})") from None
    if subject.fingerprint != told.get("fingerprint"):
        raise _gone(run, f"the subject it began with, {told.get('spec')}, has changed since")
    return subject


def _gone(run: Run, why: str) -> StoreError:
    if run.manifest.get("kind") == "replay":
        made_of = run.manifest.get("replay_of")
        return StoreError(f"{run.name} is itself a replay", expected=f"the run that it was made of, {made_of}")
    return StoreError(f"{run.name} cannot be replayed: {' '.join(why.split())}", expected="the same subject where it was")


def _device(run: Run) -> str:
    """Where the run was trained: on a GPU only if it was, and one is here."""
    told = (run.manifest.get("hardware") or {}).get("device", "cpu")
    return "cuda" if told != "cpu" and torch.cuda.is_available() else "cpu"


def examples_of(run: Run) -> tuple[list[Encoded], dict[int, list[int]]]:
    """The run's examples, and by step their places in the order of the batch."""
    rows = run.table("examples").to_pylist()
    data = [
        Encoded(
            r["row"][0] if r["row"] else i, tuple(r["token_ids"]), tuple(r["target_mask"]), r["group"], r["fact"], r["preview"]
        )
        for i, r in enumerate(rows)
    ]  # fmt: skip
    place = {r["example"]: i for i, r in enumerate(rows)}
    visits = run.table("visits").select(["step", "slot", "example"]).sort_by([("step", "ascending"), ("slot", "ascending")])
    order: dict[int, list[int]] = {}
    for step, example in zip(visits.column("step").to_pylist(), visits.column("example").to_pylist()):
        order.setdefault(step, []).append(place[example])
    return data, order


# --- measured again ----------------------------------------------------------------------------


@dataclass
class Sameness:
    """How far a replay is from what the run recorded; all 0 where it is the same to the bit.

    Attributes:
        losses: steps whose losses were compared; `loss_off` is the largest difference, nats per token.
        states: kept states that were compared; `weight_off` is the largest difference of any weight.
    """

    losses: int = 0
    loss_off: float = 0.0
    states: int = 0
    weight_off: float = 0.0
    compared: list[int] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """The same to the bit, wherever it could be compared."""
        return self.loss_off == 0 and self.weight_off == 0

    def line(self) -> str:
        """One sentence about it."""
        what = f"{self.losses} losses and {self.states} kept states compared"
        if self.exact:
            return f"the same to the bit: {what}"
        return f"not the same: losses off by up to {self.loss_off:.1e} nats, weights by up to {self.weight_off:.1e} ({what})"


def replay_measured(
    found: Replay, out: Path, *, first: int, last: int, force: bool = False, progress: Callable[[int], None] = lambda step: None,
    **measured: Any,
) -> Sameness:  # fmt: skip
    """Take steps `first` to `last` again under a ledger, and hold them against the record.

    Args:
        out: folder of the replay, a run of its own.
        measured: of the Ledger: probes, probe_every, credit_parts, token_parts, token_examples, ...

    Raises:
        StoreError: the folder exists already, or cannot be written.
    """
    from intaglio.measure.ledger import Ledger

    run, sameness = found.run, Sameness()
    kept = {checkpoint_step(s): s for s in checkpoint.states(run.folder)}

    def after(step: int, loss_nats: float) -> None:
        progress(step)
        if step in kept:
            _hold_weights(found.model, kept[step], sameness)

    found.go(first, after)
    ledger = Ledger(
        found.model, found.optimizer, out=out, level="full", seed=int(run.manifest.get("seed", 0)), first_step=first,
        sources=_sources(found.data), tokenizer=found.subject.tokenizer, strict=True, quiet=True, force=force,
        manifest={"kind": "replay", "replay_of": run.name, "steps_replayed": [first, last],
                  **{k: run.manifest[k] for k in ("subject", "data", "recipe", "hardware") if k in run.manifest}}, **measured,
    )  # fmt: skip
    if first > 0:
        ledger.net = None
        for probe in ledger.probes:
            probe.start_seen = False
    with ledger:
        found.go(last, after)
        ledger.flush()
        _hold_losses(run, Run(ledger.writer.folder), sameness)
        ledger.writer.write_manifest(sameness={"exact": sameness.exact, "said": sameness.line()})
    return sameness


def _hold_weights(model: torch.nn.Module, state: Path, sameness: Sameness) -> None:
    """Compare the trained weights with those of a kept state."""
    theirs = checkpoint.weights_of(state)
    mine = {n.replace(".default.", "."): p.detach().cpu() for n, p in model.named_parameters()}  # LoRA's files say it shorter
    off = [float((mine[n] - theirs[n]).abs().max()) for n in mine if n in theirs]
    if off:
        sameness.states += 1
        sameness.weight_off = max(sameness.weight_off, *off)
        sameness.compared.append(checkpoint_step(state))


def _hold_losses(recorded: Run, again: Run, sameness: Sameness) -> None:
    """Compare every visit's loss."""
    def losses(run: Run) -> Mapping[tuple[int, int], float | None]:
        rows = run.table("visits").select(["step", "slot", "loss_nats"]).to_pylist()
        return {(r["step"], r["slot"]): r["loss_nats"] for r in rows}

    then, steps = losses(recorded), set()
    for key, now in losses(again).items():
        was = then.get(key)
        if was is not None and now is not None:
            steps.add(key[0])
            sameness.loss_off = max(sameness.loss_off, abs(now - was))
    sameness.losses = len(steps)


def _sources(data: Sequence[Encoded]) -> dict[str, Any]:
    from intaglio.measure.recorder import Source

    return {item.example: Source((item.row,), item.group, item.fact, item.preview) for item in data}


def replay_tokens(
    run: Run, teachers: Sequence[Mapping[str, Any]], windows: Mapping[str, tuple[int, int]], *,
    progress: Callable[[int], None] = lambda step: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of `teacher_tokens`: what the window's steps wrote into a head through each token of its teachers.

    Args:
        teachers: rows of the table `teachers`.
        windows: by head, (first, one past the last) step.

    Raises:
        StoreError: the run cannot be replayed.
    """
    import tempfile

    wanted = {(row["address"], row["example"]) for row in teachers}
    first, last = min(w[0] for w in windows.values()), max(w[1] for w in windows.values())
    with _undisturbed_random_state(), tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tokens"
        replay_measured(
            open_replay(run, first=first, last=last), out, first=first, last=last, progress=progress, keep_tokens=0.0,
            token_parts=sorted({a for a, _ in wanted}), token_examples=sorted({e for _, e in wanted}),
        )  # fmt: skip
        return _token_rows(Run(out), wanted, windows)


def _token_rows(replayed: Run, wanted: set[tuple[str, str]], windows: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    letters = {r["token"]: r["text"] for r in replayed.table("vocab").to_pylist()}
    ids = {r["example"]: r["token_ids"] for r in replayed.table("examples").to_pylist()}
    visits = {(r["step"], r["slot"]): r["example"] for r in replayed.table("visits").to_pylist()}
    total: dict[tuple[str, str, int], float] = {}
    for row in replayed.table("token_parts").to_pylist():
        example, (start, stop) = visits[row["step"], row["slot"]], windows[row["address"]]
        if (row["address"], example) in wanted and start <= row["step"] < stop:
            key = row["address"], example, row["position"]
            total[key] = total.get(key, 0.0) + (row["shift"] or 0.0)
    return [
        {"address": a, "example": e, "position": p, "token": letters.get(ids[e][p], ""), "shift": shift}
        for (a, e, p), shift in sorted(total.items())
    ]


@contextlib.contextmanager
def _undisturbed_random_state() -> Iterator[None]:
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
