"""Two processes that train together under gloo, started once for many tests; and what they are asked to do."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from intaglio.errors import StoreError
from intaglio.measure import ledger as ledger_module
from intaglio.measure import ranks
from intaglio.measure.ledger import Ledger
from tiny import Text, build, micro

WORLD = 2
SECONDS = 60.0
Step = Sequence[Sequence[Text]]  # micro-batches of texts


class Pair:
    """Runs a function of this module in both processes; whoever hangs is killed."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ends, self._workers = [], []
        for rank in range(WORLD):
            ours, theirs = spawn.Pipe()
            worker = spawn.Process(target=_work, args=(rank, theirs), daemon=True)
            worker.start()
            self._ends.append(ours)
            self._workers.append(worker)
        self._jobs = 0

    def __call__(self, job: Callable, folder: Path, **how: Any) -> list[Any]:
        """What each process returned; an exception comes back as its type's name and text."""
        self._jobs += 1
        for end in self._ends:
            end.send((job.__name__, str(folder / f".meet{self._jobs}"), how))
        found = []
        for rank, end in enumerate(self._ends):
            if not end.poll(SECONDS):
                self.close()
                raise TimeoutError(f"process {rank} hangs in {job.__name__}")
            kind, value = end.recv()
            assert kind == "found", value
            found.append(value)
        return found

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


def _work(rank: int, end: Any) -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            name, meeting, how = end.recv()
            try:
                if name != "under_trainer":  # which makes its own process group
                    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
                end.send(("found", globals()[name](rank, **how)))
            except BaseException:
                end.send(("broken", traceback.format_exc()))
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()


# -- jobs


def model_of(how: str) -> nn.Module:
    """A tiny model; "lora" with adapters, "unused" with a matrix that no loss reaches."""
    model = build("llama_gqa" if how == "lora" else "llama_tied")
    if how == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(3)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    if how == "unused":
        model.add_module("unused", nn.Linear(3, 3))
    return model


def optimizer_of(model: nn.Module, settings: dict[str, Any]) -> torch.optim.Optimizer:
    settings = dict(settings)
    kind = getattr(torch.optim, settings.pop("name"))
    return kind([p for p in model.parameters() if p.requires_grad], **settings)


def train(
    rank: int, *, out: str, steps: Sequence[Sequence[Step]], settings: dict[str, Any], kind: str = "", clip: float = 0.0,
    clip_value: float = 0.0, sync_all: bool = False, wrap: dict[str, Any] | None = None, fault: str = "",
    hook: str = "", measured: bool = True, error_at: int = -1, **ledger: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train on this process's part of every step; what `fault` names fails in process 1."""
    model = model_of(kind)
    wrapped = DistributedDataParallel(model, **(wrap or {}))
    if hook:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(None, getattr(default_hooks, hook))
    optimizer = optimizer_of(model, settings)
    raised = ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with _faulty(fault if rank == 1 else ""):
                made = Ledger(wrapped, optimizer, out=out, quiet=True, **ledger) if measured else contextlib.nullcontext()
                with made:
                    for number, step in enumerate(steps):
                        _take(wrapped, optimizer, step[rank], clip=clip, clip_value=clip_value, sync_all=sync_all)
                        if number == error_at and rank == 1:
                            raise ZeroDivisionError("the user's own")
                    if error_at >= 0:
                        _store().wait(["gone"])
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
            _store().set("gone", "1")
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    hooks += sum(len(p._post_accumulate_grad_hooks or {}) for p in model.parameters())
    return {
        "weights": [p.detach().numpy() for p in model.parameters()], "raised": raised, "hooks": hooks,
        "said": [str(w.message) for w in said if str(w.message).startswith("intaglio")],
        "latest": getattr(made, "latest", None) if not raised else None,
    }  # fmt: skip


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _take(
    wrapped: DistributedDataParallel, optimizer: Any, micros: Step, *, clip: float, clip_value: float, sync_all: bool
) -> None:
    for i, examples in enumerate(micros):
        last = i == len(micros) - 1
        with contextlib.nullcontext() if last or sync_all else wrapped.no_sync():
            (wrapped(**micro(examples).inputs, use_cache=False).loss / len(micros)).backward()
    if clip:
        nn.utils.clip_grad_norm_(wrapped.parameters(), clip)
    if clip_value:
        nn.utils.clip_grad_value_(wrapped.parameters(), clip_value)
    optimizer.step()
    optimizer.zero_grad()


@contextlib.contextmanager
def _faulty(where: str):
    """The instrument fails there from its second use on: in the backward, around the step, or when rows are written."""
    places = {
        "backward": (ledger_module.Collector, "logits"), "before": (ledger_module.Snapshot, "take"),
        "after": (ledger_module, "settle"), "last": (ledger_module.Recorder, "examples"),
        "writing": (ledger_module.RunWriter, "flush"), "beginning": (ledger_module, "build_layout"),
    }  # fmt: skip
    if not where:
        yield
        return
    owner, name = places[where]
    original, calls = getattr(owner, name), []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 1 or where == "beginning":
            raise StoreError("a fault of the instrument")
        return original(*args, **kwargs)

    setattr(owner, name, fails)
    try:
        yield
    finally:
        setattr(owner, name, original)


def refused(rank: int, *, out: str, how: str) -> str:
    """What is said where the ledger cannot be made, or must stop at once."""
    model = build("llama_tied")
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options: dict[str, Any] = {"out": out, "quiet": True}
    if how == "bare":
        wrapped = model
    if how == "outside":
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    if how == "different":
        options["every"] = 1 + rank
    if how == "group momentum":
        options["group_momentum"] = True
    if how == "one only":
        ranks.PATIENCE = 0.5
        if rank == 1:
            return ""
    try:
        Ledger(wrapped, optimizer, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        ranks.PATIENCE = 300.0
    return "made"


def uneven(rank: int, *, out: str, step: Step) -> dict[str, Any]:
    """Process 1 has one batch less; DDP's join lets process 0 go on alone."""
    model = build("llama_tied")
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    taken = 0
    with warnings.catch_warnings(record=True) as said, Ledger(wrapped, optimizer, out=out, quiet=True):
        warnings.simplefilter("always")
        with wrapped.join():
            for _ in range(3 - rank):
                _take(wrapped, optimizer, step, clip=0.0, clip_value=0.0, sync_all=False)
                taken += 1
    return {"taken": taken, "said": [str(w.message) for w in said if str(w.message).startswith("intaglio")]}


def under_trainer(rank: int, *, out: str, port: int, **changes: Any) -> dict[str, Any]:
    """transformers' Trainer as torchrun starts it."""
    from accelerate.state import AcceleratorState, PartialState
    from transformers import Trainer, TrainingArguments

    import intaglio
    import test_callback as one

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        arguments = one.arguments(Path(out), **{"ddp_backend": "gloo", "max_steps": 3, **changes})
        model = one.tiny()
        trainer = Trainer(
            model, TrainingArguments(**arguments), train_dataset=one.rows(8), data_collator=one.collate,
            callbacks=[intaglio.LedgerCallback(Path(out) / "run")],
        )  # fmt: skip
        trainer.train()
        logs = [line for line in trainer.state.log_history if "loss" in line]
        return {"logs": logs, "hooks": one.hooks(model)}
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
