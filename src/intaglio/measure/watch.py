"""What a run's probes show around its steps, and which of the step's examples made it so.  [torch]"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.measure import rows as make
from intaglio.measure.collect import Record
from intaglio.measure.credit import CreditAccounts, credit_of_visits, prepare
from intaglio.measure.probes import (
    Probe,
    ProbeState,
    measure_probe,
    measure_probe_with_gradient,
    probe_loss,
    undisturbed,
)  # fmt: skip
from intaglio.measure.ranks import Ranks
from intaglio.measure.recorder import Recorder
from intaglio.measure.settle import Snapshot
from intaglio.model.tap import Tap


def prime(model: nn.Module, probes: list[Probe]) -> None:
    """Keep what the probes show now as their start."""
    for probe in probes:
        with undisturbed(model):
            measure_probe(model, probe)


@dataclass(eq=False)
class _Around:
    """A probe measured around one step."""

    probe: Probe
    state: ProbeState  # before the step
    gradient: dict[int, Tensor]  # by parameter; empty where the step is measured at level norms
    seconds: float
    accounts: CreditAccounts | None = None


class ProbeWatch:
    """Measures the probes around a step, while the tap looks away, and writes what they show.

    In the order of a step: `before` it; `account` and `record` once it is taken; and `end` after the last.

    Args:
        every: steps from one measurement to the next.
        by_part: also write `visit_credits`, the credits through each part of the model alone.
    """

    def __init__(
        self, probes: list[Probe], tap: Tap, recorder: Recorder, ranks: Ranks, *, every: int, by_part: bool = False
    ) -> None:
        self.probes, self.tap, self.recorder, self.ranks, self.every = probes, tap, recorder, ranks, every
        self.by_part = by_part
        self._around: list[_Around] = []

    def before(self, step: int, *, credited: bool) -> None:
        """Measure the probes where the step is due; with their gradients if its examples are to be credited."""
        layout, due = self.tap.layout, self.probes if step % self.every == 0 else []
        params = [*(w.param for w in layout.weights), *layout.unmeasured.values()] if credited else []
        self._around = [self._measured(p, params) for p in due]

    def _measured(self, probe: Probe, params: list[nn.Parameter]) -> _Around:
        start = time.perf_counter()
        with self.tap.paused(), undisturbed(self.tap.model):
            state, gradient = measure_probe_with_gradient(self.tap.model, probe, params)
        return _Around(probe, state, {id(p): g for p, g in zip(params, gradient)}, time.perf_counter() - start)

    def account(
        self, optimizer: torch.optim.Optimizer, snapshot: Snapshot, *, rule_name: str, scales: dict[int, float],
        foreign: set[int],
    ) -> None:  # fmt: skip
        """Hold the probes' gradients against the step, while the snapshot still has the momentum."""
        for around in self._around:
            around.accounts = prepare(
                self.tap.layout, optimizer, snapshot, around.gradient,
                rule_name=rule_name, scales=scales, foreign=foreign,
            )  # fmt: skip

    def record(self, step: int, records: list[Record], ids: list[str]) -> None:
        """Rows of `probes`, `probe_items`, `drift` and, where the step was accounted for, `credits`.

        Args:
            ids: of the records' examples.
        """
        for around in self._around:
            start = time.perf_counter()
            row = _row(step, around.probe, around.state)
            if around.gradient:
                with self.tap.paused(), undisturbed(self.tap.model):
                    row["measured_change_nats"] = around.state.loss_nats - probe_loss(self.tap.model, around.probe)
            if around.accounts is not None:
                row |= self._credits(step, around.probe, around.accounts, records, ids)
                predicted = row["credit_sum_nats"] + row["carry_nats"] + row["decay_nats"] + row["unmeasured_nats"]
                row["residual_nats"] = row["measured_change_nats"] - predicted
            row["seconds"] = around.seconds + time.perf_counter() - start
            self.recorder.append_rows("probes", [row])
            self.recorder.probe_state(step, around.probe, around.state)
        self._around = []  # gradients and all

    def _credits(
        self, step: int, probe: Probe, accounts: CreditAccounts, records: list[Record], ids: list[str]
    ) -> dict[str, float]:
        credit_N, credit_NA = credit_of_visits(records, accounts, by_part=self.by_part)
        n = len(credit_N)
        if credit_NA is not None:
            self.recorder.append(
                "visit_credits", make.visit_credit_columns(step, self.tap.layout, probe.name, ids, credit_NA)
            )
        self.recorder.append("credits", {
            "step": [step] * n, "slot": list(range(n)), "probe": [probe.name] * n, "example": ids,
            "credit_nats": credit_N,
        })  # fmt: skip
        return {
            **self.ranks.sums(credit_sum_nats=float(np.nansum(credit_N))), "carry_nats": accounts.carry,
            "decay_nats": accounts.decay, "unmeasured_nats": accounts.unmeasured,
        }  # fmt: skip

    def end(self, step: int) -> None:
        """The state after the last step: losses, KL and drift without a step to explain."""
        for probe in self.probes:
            start = time.perf_counter()
            with self.tap.paused(), undisturbed(self.tap.model):
                state = measure_probe(self.tap.model, probe)
            row = _row(step, probe, state) | {"seconds": time.perf_counter() - start}
            self.recorder.append_rows("probes", [row])
            self.recorder.probe_state(step, probe, state)


def _row(step: int, probe: Probe, state: ProbeState) -> dict[str, Any]:
    return {"step": step, "probe": probe.name, "loss_nats": state.loss_nats, "kl_nats": state.kl_nats}
