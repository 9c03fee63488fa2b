"""`LedgerCallback`: the ledger inside transformers' Trainer and TRL's trainers.  [torch]

    trainer = Trainer(..., callbacks=[intaglio.LedgerCallback("runs/y")])

Callbacks hear nothing of an exception and see the log only after the reporting callbacks
have sent it. So at the start of training the callback looks up the trainer that called it,
puts itself first in the trainer's list, and watches the epoch's method until training ends.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from intaglio.errors import InputError, UnmeasurableError
from intaglio.measure.ledger import Ledger, Source
from intaglio.model.tap import Pass, segments

COLLATED = 32  # rows collated at once while rows are looked up
LOOKUP_SECONDS = 60.0
_NEAR = 20  # frames between a trainer and its callback, decorators included


class LedgerCallback(TrainerCallback):
    """Measures a run of transformers' Trainer, or of a trainer derived from it.

    Adds to every log line that has a loss: `intaglio/shift`, `intaglio/update_l2`,
    `intaglio/data_share` and `intaglio/agreement` (means over the steps since the last such
    line) and `intaglio/closure` (their worst).

    Args:
        out: folder of the run.
        dataset: rows with the columns `group` and `fact`, where the trainer's own data set has
            lost them; as long as the trainer's and in the same order.
        max_rows: look up which row each example is in data sets up to this size; 0 never.
        ledger: anything `Ledger` takes: probes, level, memory, every, probe_every, force, ...

    Raises (when training begins):
        UnmeasurableError: an optimizer, weights or a way of distributing that cannot be measured.
        InputError: group momentum where the rows have no `group`, or are not known.
        StoreError: the run exists or cannot be written.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        dataset: Sequence[Mapping[str, Any]] | None = None,
        max_rows: int = 100_000,
        **ledger: Any,
    ) -> None:
        self.out, self.dataset, self.max_rows, self.options = Path(out), dataset, max_rows, ledger
        self.ledger: Ledger | None = None
        self._steps: list[dict[str, Any]] = []  # rows of `steps` since the last log
        self._broke = False  # whether a training of ours was broken off
        self._unwatch: Callable[[], None] = lambda: None
        self._finalizer: weakref.finalize | None = None

    # -- events, in the order of a training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close(KeyboardInterrupt())  # one that was broken off without our hearing of it
        _check_way(args)
        trainer = _calling_trainer()
        options = {"first_step": state.global_step, **self._where(args, state.global_step), **self.options}
        options.setdefault("tokenizer", _decoder(kwargs.get("processing_class")))
        options.setdefault("sources", self._sources(kwargs.get("train_dataloader"), trainer))
        model = trainer.model_wrapped if args.world_size > 1 and trainer is not None else kwargs["model"]
        ledger = Ledger(model, kwargs["optimizer"], out=self.out, **options)
        if options.get("resume"):
            ledger.restore(state.global_step, start_seen=False)  # the checkpoint's weights are loaded by now
        ledger.writer.write_manifest(
            command=f"{type(trainer).__name__ if trainer else 'Trainer'}.train()",
            rows_known=sum(len(s.rows) for s in ledger.recorder.sources.values()),
        )
        self.ledger, self._steps = ledger, []
        ledger.attach()
        self._finalizer = weakref.finalize(self, _abandon, ledger)
        if trainer is not None:
            _put_first(trainer.callback_handler.callbacks, self)
            self._unwatch = _watch(trainer, self._close)
        else:
            warnings.warn("intaglio: no Trainer called this callback, so reporting callbacks before it will not "
                          "show intaglio's scalars", RuntimeWarning, stacklevel=2)  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ledger is not None and self.ledger.latest.get("step") == state.global_step - 1:
            self._steps.append(self.ledger.latest)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "train_runtime" in logs and args.load_best_model_at_end:
            self._close(None)  # before the best checkpoint's weights replace the last step's
        if logs is None or "loss" not in logs or not self._steps:
            return
        found = scalars(self._steps)
        self._steps = []
        logs.update(found)
        if state.log_history:
            state.log_history[-1].update(found)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint and the tables end at the same step, so that resuming can drop what came after."""
        if self.ledger is not None and self.ledger._attached:
            self.ledger._guard(self.ledger.flush)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close(None)

    # -- beginning and ending

    def _where(self, args: Any, step: int) -> dict[str, bool]:
        """Continue the partial run when training resumes; replace our own when it starts over with smaller batches."""
        if step > 0:
            return {"resume": self.out.with_name(self.out.name + ".partial").exists()}
        return {"force": self._broke and args.auto_find_batch_size}

    def _close(self, error: BaseException | None) -> None:
        ledger, self.ledger = self.ledger, None
        if ledger is None:
            return
        self._unwatch()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._broke = error is not None
        ledger.__exit__(type(error) if error is not None else None, error, None)

    def _sources(self, loader: Any, trainer: Trainer | None) -> dict[str, Source]:
        if self.max_rows == 0 or loader is None:
            return {}
        named = self.dataset if self.dataset is not None else getattr(trainer, "train_dataset", None)
        try:
            return sources_of(loader, named, max_rows=self.max_rows)
        except InputError:
            raise
        except Exception as error:  # a stranger's data set or collator: rows stay unknown, training goes on
            warnings.warn(f"intaglio: rows of the data set are not known: {type(error).__name__}: {error}",
                          RuntimeWarning, stacklevel=3)  # fmt: skip
            return {}


def scalars(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What goes into the trainer's log, from rows of `steps`; what was not measured is left out.

    Agreement averages both estimates over the steps before it divides; closure is the worst.
    """
    found: dict[str, float] = {}
    settled = [s for s in steps if s.get("update_l2") is not None]
    if settled:
        shift, update = (float(np.mean([s[n] for s in settled])) for n in ("data_shift", "update_l2"))
        found |= {"intaglio/shift": shift, "intaglio/update_l2": update}
        if update > 0:
            found["intaglio/data_share"] = shift / update
        closures = [s["closure"] for s in settled if s.get("closure") is not None]
        if closures:
            found["intaglio/closure"] = float(max(closures))
    pairs = [(s["agreement_gg"], s["agreement_s"]) for s in steps if s.get("agreement_gg") is not None]
    gg, spread = (float(np.mean(column)) for column in zip(*pairs)) if pairs else (0.0, 0.0)
    if gg + spread > 0:
        found["intaglio/agreement"] = gg / (gg + spread)
    return found


# -- which row of the data set an example is


def sources_of(
    loader: Any, named: Any = None, *, max_rows: int = 100_000, max_seconds: float = LOOKUP_SECONDS
) -> dict[str, Source]:
    """Example id to its rows, by collating the loader's data set as training will; random states are kept.

    Args:
        loader: the trainer's dataloader; a streaming data set has no row numbers and gives {}.
        named: rows with `group` and `fact`, or None.
        max_rows: larger data sets are not looked up.
        max_seconds: rows that are not reached within this time stay unknown.

    Raises:
        InputError: `named` is not as long as the loader's data set.
    """
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if isinstance(dataset, torch.utils.data.IterableDataset) or collate is None or not hasattr(dataset, "__getitem__"):
        return {}
    if len(dataset) > max_rows:
        return {}
    groups, facts = (_column(named, name, len(dataset)) for name in ("group", "fact"))
    found: dict[str, Source] = {}
    until = time.monotonic() + max_seconds
    with _random_states_kept():
        for start in range(0, len(dataset), COLLATED):
            if time.monotonic() > until:
                warnings.warn(f"intaglio: rows from {start} on were not looked up within {max_seconds:.0f} s",
                              RuntimeWarning, stacklevel=3)  # fmt: skip
                break
            rows = range(start, min(start + COLLATED, len(dataset)))
            for row, example, side in _examples_of(rows, dataset, collate):
                known = found.get(example)
                if known is None:
                    group, fact = groups[row] if groups else side, facts[row] if facts else None
                    found[example] = Source((row,), group, fact)
                elif row not in known.rows:
                    found[example] = replace(known, rows=(*known.rows, row))
    return found


def _examples_of(rows: Sequence[int], dataset: Any, collate: Any) -> Iterator[tuple[int, str, str | None]]:
    """(row, example id, side of a preference pair) of everything in some rows."""
    batch = collate([dataset[i] for i in rows])
    ids = batch.get("input_ids") if hasattr(batch, "get") else None
    if ids is None:
        return
    examples, packed = _ids_of(batch)
    if packed and len(rows) > 1:  # the row's borders are lost in the flattened batch
        for row in rows:
            yield from _examples_of([row], dataset, collate)
        return
    pairs = not packed and len(examples) == 2 * len(rows)
    for i, example in enumerate(examples):
        side = ("chosen", "rejected")[i // len(rows)] if pairs else None
        yield rows[i % len(rows)], example, side


def _ids_of(batch: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Ids of a collated batch's examples, as the tap will see them; and whether rows are packed."""
    ids, labels = batch["input_ids"], batch.get("labels")
    if labels is None and "completion_mask" in batch:  # TRL's preference trainers mask inside the loss
        labels = ids.masked_fill(batch["completion_mask"] == 0, -100)
    mask = batch.get("attention_mask")
    mask = mask if mask is not None and mask.shape == ids.shape else None
    segment, n_slots, blocks = segments(ids, mask, batch.get("position_ids"))
    caught = Pass(ids, segment, n_slots, blocks, labels)
    packed = caught.packed or "position_ids" in batch
    return [example for example, _, _ in caught.examples(caught.target_BT() >= 0)], packed


def _column(named: Any, name: str, length: int) -> list[str | None] | None:
    if named is None or not hasattr(named, "__len__") or not hasattr(named, "__getitem__") or len(named) == 0:
        return None
    columns = getattr(named, "column_names", None)
    first = None if columns is not None else named[0]
    if name not in (columns if columns is not None else first if isinstance(first, Mapping) else ()):
        return None
    if len(named) != length:
        if columns is not None:
            return None  # the trainer packed or filtered its rows
        raise InputError("`dataset` is not as long as the trainer's", got=len(named), expected=f"{length} rows")
    values = list(named[name]) if columns is not None else [row.get(name) for row in named]
    return [None if v is None else str(v) for v in values]


@contextmanager
def _random_states_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _decoder(processing: Any) -> Any:
    """The tokenizer, also inside a processor; None where there is none."""
    found = getattr(processing, "tokenizer", processing)
    return found if hasattr(found, "decode") else None


# -- the trainer around the callback


def _check_way(args: Any) -> None:
    """The books need whole weights, whole examples and one device in every process."""
    if getattr(args, "n_gpu", 0) > 1:
        raise UnmeasurableError(
            "a process that spreads its batch over several devices (DataParallel) is not measured",
            got=f"{args.n_gpu} of them", expected="one process on one device, or torchrun with one process for each",
        )  # fmt: skip
    for name in ("deepspeed", "fsdp", "torch_compile"):
        if getattr(args, name, None):
            raise UnmeasurableError(f"a model under {name} is not measured", expected=f"training without {name}")


def _calling_trainer() -> Trainer | None:
    """The trainer whose event this is; transformers hands callbacks no reference to it.

    Looks into transformers' own frames only: reading a frame's locals keeps them alive.
    """
    frame = sys._getframe(1)
    for _ in range(_NEAR):
        if frame is None:
            break
        found = frame.f_locals.get("self") if _is_of_trainer(frame) else None
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back
    return None


def _is_of_trainer(frame: Any) -> bool:
    module = frame.f_globals.get("__name__", "")
    return module.startswith("transformers.") or frame.f_code.co_name == "_inner_training_loop"


def _put_first(callbacks: list, callback: TrainerCallback) -> None:
    """What `on_log` adds must be there before the reporting callbacks send it."""
    if callback in callbacks:
        callbacks.remove(callback)
        callbacks.insert(0, callback)  # safe while the list is iterated: those after us keep their place


def _watch(trainer: Trainer, close: Callable[[BaseException], None]) -> Callable[[], None]:
    """Hear of an exception inside an epoch; what comes back ends the watch."""
    name = "_run_epoch" if hasattr(trainer, "_run_epoch") else "training_step"
    original, before = getattr(trainer, name), vars(trainer).get(name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            close(error)
            raise

    def restore() -> None:
        if vars(trainer).get(name) is not watched:
            return
        if before is None:
            delattr(trainer, name)
        else:
            setattr(trainer, name, before)

    setattr(trainer, name, watched)
    return restore


def _abandon(ledger: Ledger) -> None:
    """At the interpreter's end, or when the callback is dropped: leave a readable partial run and no hook."""
    ledger.__exit__(KeyboardInterrupt, None, None)
