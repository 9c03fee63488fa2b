"""The processes that train one model together under DistributedDataParallel.  [torch]

What crosses them is sums: counts, one number per address, the sum of the sketches, a few
coordinates of each gradient. They meet inside the optimizer's step, which every process
takes. Each meeting first asks whether all are well and at the same place, so a fault in one
is a fault in all, and nobody waits for a sum that does not come. Words go through the store
that the processes found each other by. One process alone meets nobody.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from intaglio.errors import InputError, IntaglioError, UnmeasurableError

PATIENCE = 300.0  # seconds until a ledger must have been begun in every process
LONG = 1800.0  # seconds for which a process waits for the others' end, as torch's own groups do

_begun: Counter[str] = Counter()  # ledgers begun in this process, by the processes that share them


class Apart(Exception):
    """Some process can no longer measure, so none does; raised in all of them at the same meeting.

    Attributes:
        refusal: whether it was one of Intaglio's own errors, which `strict` raises.
    """

    def __init__(self, text: str, *, refusal: bool = False) -> None:
        super().__init__(text)
        self.refusal = refusal


class Ranks:
    """This process among those that share its gradients; by itself without a wrapper.

    Attributes:
        fault: what went wrong here and is still to be said at the next meeting.
    """

    def __init__(self, wrapper: DistributedDataParallel | None = None) -> None:
        self.rank, self.world, self.fault = 0, 1, None
        self._wrapper, self._meetings = wrapper, 0
        if wrapper is None:
            return
        self._group = wrapper.process_group
        self.rank, self.world = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._device = next(wrapper.parameters()).device
        members = "-".join(map(str, dist.get_process_group_ranks(self._group)))
        _begun[members] += 1
        self._store = dist.PrefixStore(
            f"intaglio/{members}/{_begun[members]}", dist.distributed_c10d._get_default_store()
        )
        present = self._exchange("here", {}, seconds=PATIENCE)
        if None in present:
            _begun[members] -= 1  # the next one is this number again, in all processes
            self._store.delete_key(f"here/{self.rank}")
            raise UnmeasurableError(
                "a ledger measures all processes or none",
                got=f"none in process {present.index(None)} within {PATIENCE:.0f} s", expected="one in every process",
            )  # fmt: skip

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> Ranks:
        """The processes that train `model`.

        Raises:
            UnmeasurableError: they share gradients in another way than DistributedDataParallel, or not all gradients.
        """
        check_distributed(model, optimizer)
        wrapper = _wrapper_of(model)
        return cls(wrapper if wrapper is not None and dist.get_world_size(wrapper.process_group) > 1 else None)

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this process writes and says what is the same in all."""
        return self.rank == 0

    # -- sums

    def sum(self, x: Tensor) -> Tensor:
        """`x` summed over the processes, in double precision; alone `x` itself."""
        if self.alone:
            return x
        total = x.detach().to(self._device, torch.float64, copy=True).contiguous()
        self.meet(size=total.numel())
        dist.all_reduce(total, group=self._group)
        return total.to(x.device)

    def sums(self, **numbers: float | int) -> dict[str, float]:
        """Every number summed over the processes."""
        if self.alone:
            return {name: float(number) for name, number in numbers.items()}
        return dict(zip(numbers, self.sum(torch.tensor(list(numbers.values()), dtype=torch.float64)).tolist()))

    def table(self, *numbers: float | int) -> np.ndarray:
        """(processes, numbers): what each process has."""
        found = torch.zeros(self.world, len(numbers), dtype=torch.float64)
        found[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        return self.sum(found).numpy()

    # -- meetings

    def meet(self, *, size: int = 0) -> None:
        """Ask whether all are well, at the same meeting and about to add up as many numbers.

        Raises:
            Apart: in every process, where they are not.
        """
        self._meetings += 1
        mine = [float(self.fault is not None), self._meetings, -self._meetings, size, -size]
        flags = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        bad, latest, earliest, largest, smallest = flags.tolist()
        if not bad and latest == -earliest and largest == -smallest:
            return
        said = [n or {} for n in self._exchange("fault", _note_of(self.fault))]
        text = "; ".join(f"process {i}: {n['fault']}" for i, n in enumerate(said) if n.get("fault"))
        self.fault = None
        raise Apart(text or "the processes are not at the same place", refusal=any(n.get("refusal") for n in said))

    def together(self, function: Callable[[], None]) -> None:
        """Run a hook of the step, in which processes meet; it ends with a meeting, so no fault is left unsaid.

        Raises:
            Apart: in every process, where it failed in one.
        """
        if self.alone:
            function()
            return
        if self._wrapper._join_config.enable:  # some process may have no batch left, and then does not come here
            raise Apart("steps under DistributedDataParallel.join are not measured", refusal=True)
        try:
            if self.fault is None:
                function()
        except Apart:
            raise
        except Exception as error:
            self.fault = error
        self.meet()

    # -- beginning and ending

    @contextmanager
    def all_or_none(self, stage: str) -> Iterator[dict[str, Any]]:
        """What the block does is done in all processes, or refused in all; what it puts into the dictionary must agree.

        Raises:
            UnmeasurableError: the block failed in another process.
            InputError: the processes were told different things.
        """
        same: dict[str, Any] = {}
        error: Exception | None = None
        try:
            yield same
        except Exception as found:
            error = found
        if not self.alone:
            notes = self._exchange(stage, _note_of(error) | {"same": {k: repr(v) for k, v in same.items()}})
            if error is None:
                _check_agreed(notes)
        if error is not None:
            raise error

    @contextmanager
    def leaving(self, whole: bool) -> Iterator[list[dict[str, Any]]]:
        """Say how this process ends; what every one said is in the list after the block.

        Nobody waits after an exception, whose or wherever it was: only a whole run has an end to agree on.
        """
        notes: list[dict[str, Any]] = []
        mine = {"whole": False}
        try:
            yield notes
            mine = {"whole": whole}
        except Exception as error:
            self.fault = self.fault or error
            raise
        finally:
            mine |= _note_of(self.fault)
            if self.alone:
                notes.append(mine)
            else:
                notes += self._ends(mine)

    def _ends(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            found = self._exchange("end", mine, enough=lambda note: not note["whole"])
        except RuntimeError:  # the store went with the process that kept it
            found = [None]
        return [n or {"whole": False} for n in found]

    def left(self, *, whole: bool) -> None:
        """The first process has closed the run; the others wait for it where they came to the end, so that all find
        it closed."""
        if self.alone:
            return
        try:
            if self.first:
                self._store.set("closed", "1")
                self._store.check(["closed"])  # an answer: the store has it
            elif whole:
                _wait(lambda: self._store.check(["closed"]), LONG)
        except RuntimeError:
            pass  # the first process has left, and taken the store along

    def _exchange(
        self, name: str, note: dict[str, Any], *, seconds: float | None = None,
        enough: Callable[[dict[str, Any]], bool] = lambda note: False,
    ) -> list[dict[str, Any] | None]:  # fmt: skip
        """The notes of all processes; None where one did not come in time, or where another's was enough."""
        self._store.set(f"{name}/{self.rank}", json.dumps(note))
        notes: list[dict[str, Any] | None] = [None] * self.world
        notes[self.rank] = note

        def complete() -> bool:
            for i, known in enumerate(notes):
                if known is None and self._store.check([f"{name}/{i}"]):
                    notes[i] = json.loads(self._store.get(f"{name}/{i}"))
            return None not in notes or any(enough(n) for n in notes if n)

        _wait(complete, LONG if seconds is None else seconds)
        return notes


def _wait(ready: Callable[[], bool], seconds: float) -> None:
    """Polling, because a wait inside the store would keep torch's own threads from it."""
    pause, until = 0.002, time.monotonic() + seconds
    while not ready() and time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _note_of(error: Exception | None) -> dict[str, Any]:
    if error is None:
        return {}
    return {"fault": f"{type(error).__name__}: {error}", "refusal": isinstance(error, IntaglioError)}


def _check_agreed(notes: list[dict[str, Any] | None]) -> None:
    for i, note in enumerate(notes):
        if note is None or note.get("fault"):
            said = note["fault"] if note else f"it did not answer within {LONG:.0f} s"
            raise UnmeasurableError(f"process {i} cannot measure, so none does: {said}")
    for name, value in notes[0]["same"].items():
        for i, note in enumerate(notes):
            if note["same"].get(name) != value:
                raise InputError(
                    f"the processes have different {name}", got=f"{value} in process 0, {note['same'].get(name)} in {i}",
                    expected="the same in all",
                )  # fmt: skip


# -- what can be measured


def _wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    return next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)


def check_distributed(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse every way of sharing a training whose books could not close.

    Raises:
        UnmeasurableError: sharded weights, DataParallel, processes whose gradients nothing adds up, or not all of them.
    """
    kinds = {type(m).__name__ for m in model.modules()} & {"FullyShardedDataParallel", "DataParallel"}
    if any(type(p).__name__ == "DTensor" for p in model.parameters()):
        kinds.add("weights sharded as DTensor")
    if kinds:
        raise UnmeasurableError(
            "this way of distributing is not measured", got=", ".join(sorted(kinds)),
            expected="one device, or DistributedDataParallel",
        )  # fmt: skip
    wrapper = _wrapper_of(model)
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if wrapper is None and world > 1:
        raise UnmeasurableError(
            "training over several processes is measured under DistributedDataParallel only, which adds up their gradients",
            got=f"{world} processes and a bare {type(model).__name__}", expected="the wrapped model",
        )  # fmt: skip
    if wrapper is None or dist.get_world_size(wrapper.process_group) == 1:
        return
    if getattr(wrapper, "mixed_precision", None) is not None:
        raise UnmeasurableError("DistributedDataParallel's own mixed precision is not measured", expected="autocast")
    _check_reduced(wrapper, (p for group in optimizer.param_groups for p in group["params"]))


def _check_reduced(wrapper: DistributedDataParallel, params: Iterable[nn.Parameter]) -> None:
    ignored = wrapper.parameters_to_ignore
    reduced = {id(p) for name, p in wrapper.module.named_parameters() if name not in ignored}
    stray = [p for p in params if p.requires_grad and id(p) not in reduced]
    if stray:
        raise UnmeasurableError(
            "DistributedDataParallel does not add up the gradients of all parameters that the optimizer moves",
            got=f"{len(stray)} parameters, the first of shape {tuple(stray[0].shape)}", expected="all inside the wrapper",
        )  # fmt: skip
