"""`Ledger`: books for any PyTorch training loop, unchanged.  [torch]

    with Ledger(model, optimizer, out="runs/x", probes={"anchor": batch}):
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step(); optimizer.zero_grad()

It finds the step through the optimizer's own hooks and the examples through the model's
inputs, measures within a memory budget, and leaves nothing behind, also after an exception.
Under DistributedDataParallel every process has a ledger of its own examples; ranks.py adds them up.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from intaglio.errors import InputError, IntaglioError, UnmeasurableError
from intaglio.measure import rows as make
from intaglio.measure.books import StepBooks, gradient_match, groups_of, lora_weight2, settle
from intaglio.measure.budget import Budget
from intaglio.measure.collect import Collector
from intaglio.measure.credit import CreditAccounts, credit_of_visits, prepare
from intaglio.measure.describe import describe
from intaglio.measure.exact import exact_products
from intaglio.measure.net import NetDistance
from intaglio.measure.probes import (
    Probe,
    as_probe,
    measure_probe,
    measure_probe_with_gradient,
    probe_loss,
    undisturbed,
)  # fmt: skip
from intaglio.measure.ranks import Apart, Ranks
from intaglio.measure.recorder import Recorder, Source
from intaglio.measure.rules import check_measurable, unwrap
from intaglio.measure.settle import ClipScale, Snapshot
from intaglio.model.layout import build_layout, causal_lm
from intaglio.model.tap import Tap
from intaglio.store.run import RunWriter

LEVELS = ("norms", "full", "exact")
TOLERANCE = {torch.float32: 1e-4}  # closure that counts as closed; anything of 16 bits: 1e-2
COARSE = 1e-2  # what 16 bits leave of closure, in weights or under autocast
FLUSH_SECONDS = 20.0


@dataclass(eq=False)
class _ProbeStep:
    """A probe measured around one step."""

    probe: Probe
    state: Any
    gradient: dict[int, torch.Tensor] = field(default_factory=dict)
    accounts: CreditAccounts | None = None
    seconds: float = 0.0


class Ledger:
    """Measures a training run and keeps it as a run on disk.

    Args:
        model: a causal language model of transformers, possibly with LoRA adapters; never changed. Under
            torchrun, what DistributedDataParallel or accelerate made of it; every process makes a ledger.
        optimizer: AdamW, Adam or SGD of torch have exact formulas; another optimizer's step is split by projection.
        out: folder of the run.
        probes: name to a batch of tensors (input_ids, attention_mask, labels), a list of batches, or a Probe.
        level: norms (losses, push, agreement, sketches), full (plus shift and credits), exact (plus churn,
            exact alignment and conflict).
        memory: budget for extra memory, such as "2GiB"; None is no limit.
        every: measure `full` at every Nth step only, `norms` between.
        probe_every: steps between measurements of the probes.
        keep_tokens: share of examples whose `tokens` rows are kept.
        group_momentum: keep one momentum buffer per group and split the carry by group exactly.
        sources: example id to its Source, where the data set is known.
        tokenizer: for previews and the `vocab` table.
        manifest: more to keep in the run's manifest; JSON values only.
        seed: of the sketches.
        force: replace an existing run; resume: continue an unfinished one.
        quiet: do not print what is predicted.
        writer: an open RunWriter to use instead of making one at `out`.
        strict: raise Intaglio's own errors instead of detaching.
        first_step: optimizer steps taken before (a resumed run).

    Raises:
        UnmeasurableError: an 8-bit optimizer, quantised weights, DoRA, nothing to measure, or processes
            that share gradients in another way than DistributedDataParallel.
        StoreError: the run exists or cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        out: str | Path,
        probes: Mapping[str, object] | None = None,
        level: str = "full",
        memory: str | int | None = None,
        every: int = 1,
        probe_every: int = 50,
        keep_tokens: float = 1.0,
        group_momentum: bool = False,
        sources: Mapping[str, Source] | None = None,
        tokenizer: object = None,
        manifest: Mapping[str, Any] | None = None,
        seed: int = 0,
        force: bool = False,
        resume: bool = False,
        first_step: int = 0,
        strict: bool = False,
        quiet: bool = False,
        writer: RunWriter | None = None,
    ) -> None:
        if level not in LEVELS:
            raise InputError("unknown level", got=level, expected=", ".join(LEVELS))
        if every < 1 or probe_every < 1:
            raise InputError("every and probe_every count steps", got=min(every, probe_every), expected="1 or more")
        self.model, self.optimizer = causal_lm(model), unwrap(optimizer)
        self.ranks = Ranks.of(model, self.optimizer)
        with self.ranks.all_or_none("ledger") as same:
            self.level, self.every, self.probe_every = level, every, probe_every
            self.strict, self.quiet = strict, quiet or not self.ranks.first
            self.step, self.seed = first_step, seed
            self.rule_name = check_measurable(self.optimizer)
            params = {id(p) for g in self.optimizer.param_groups for p in g["params"]}
            self.layout = build_layout(self.model, params)
            if not self.layout.sites:
                raise UnmeasurableError("nothing that the optimizer moves can be measured", expected="linear layers")
            device = next(self.model.parameters()).device
            self.probes = [as_probe(name, p, device) for name, p in (probes or {}).items()]
            groups = 2 + len({s.group for s in (sources or {}).values()}) if group_momentum else 0  # decay, and earlier
            self.budget = Budget.parse(
                memory, self.layout, self.model, level=level, probes=self.probes, every=every, groups=groups
            )
            self.collector = Collector(self.layout, seed=seed, share=1 / self.ranks.world)
            self.snapshot, self.net = Snapshot(), NetDistance(self.layout)
            self.lora_weight2 = lora_weight2(self.layout)
            self.tolerance = min(TOLERANCE.get(w.param.dtype, COARSE) for w in self.layout.weights)
            self.path_l2 = 0.0
            self.latest: dict[str, Any] = {}
            self.group_carry, self.group_momentum = None, group_momentum
            if group_momentum:
                if self.layout.lora:
                    raise UnmeasurableError("group momentum is not measured under LoRA", expected="full fine-tuning")
                if not self.ranks.alone:
                    raise InputError("group momentum is measured in one process only", got=f"{self.ranks.world} of them")
                if every > 1 or level == "norms" or self.rule_name == "other":
                    raise InputError("group momentum follows every step of SGD, Adam or AdamW", expected="full, every=1")
            same |= {
                "level": level, "every": every, "probe_every": probe_every, "seed": seed, "first_step": first_step,
                "rule": self.rule_name, "layout": (len(self.layout.addresses), self.layout.n_measured),
                "probes": [(p.name, p.fingerprint) for p in self.probes],
            }  # fmt: skip
        with self.ranks.all_or_none("run"):
            if writer is not None and writer.rank != self.ranks.rank:
                raise InputError("the writer is another process's", got=writer.rank, expected=f"rank={self.ranks.rank}")
            self.writer = writer or RunWriter(out, {}, force=force, resume=resume, rank=self.ranks.rank)
            self.recorder = Recorder(
                self.writer, self.layout, sources=sources or {}, tokenizer=tokenizer, keep_tokens=keep_tokens, seed=seed
            )
            self.writer.write_manifest(**describe(self), **dict(manifest or {}))
        with self.ranks.all_or_none("folder") as same:
            same["run folder"] = self.writer.mark()
        self._handles: list = []
        self._spent = 0.0
        self._depth = 0  # steps under way: one, or two where a subclass's step calls its parent's
        self._attached = self._headless = self._said_mixed = False

    # -- life

    def __enter__(self) -> Ledger:
        self.attach()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None and self._attached and self.ranks.first:
                self._guard(self._probe_end)
        finally:
            self.detach()
        self._close(whole=kind is None)

    def attach(self) -> None:
        """Register all hooks."""
        self.tap = Tap(
            self.model, self.layout,
            on_write=self.collector.write, on_logits=self.collector.logits, on_pass=self._begin_pass,
            on_fault=self._fault, on_bypass=self._bypassed,
        )  # fmt: skip
        self.tap.attach()
        self.clip = ClipScale([p for g in self.optimizer.param_groups for p in g["params"] if p.requires_grad])
        self._handles = [
            self.optimizer.register_step_pre_hook(self._step_begins),
            self.optimizer.register_step_post_hook(self._step_ends),
        ]
        if self.group_momentum:  # only now: a resumed run has loaded the optimizer's state since
            from intaglio.measure.carry import GroupCarry

            self.group_carry = GroupCarry(self.layout, self.optimizer)
        self._attached = True
        self._ended = time.perf_counter()
        self._plan_step()
        if self.layout.unmeasured:
            self._say_unmeasured(list(self.layout.unmeasured))
        for line in self.budget.lines() if not self.quiet else ():
            print(f"intaglio: {line}")

    def detach(self) -> None:
        """Remove every hook; safe to call twice."""
        if not self._attached:
            return
        self._stop_catching()
        for handle in self._handles:
            handle.remove()
        self._handles, self._attached = [], False

    def _stop_catching(self) -> None:
        self.tap.detach()
        self.clip.remove()
        self.collector.records.clear()

    def _close(self, *, whole: bool) -> None:
        try:
            with self.ranks.leaving(whole) as ends:
                self.writer.flush(self.step if whole else self.step + 1)  # a broken step's rows go when it is taken again
            if whole and not self.ranks.alone:
                self._say_ends(ends)
            if all(end["whole"] for end in ends):
                self.writer.finish(steps=self.step)
            else:
                self.writer.write_manifest(steps=self.step)
        except IntaglioError as error:
            if self.strict:
                raise
            warnings.warn(f"intaglio: {error}", RuntimeWarning, stacklevel=3)
        finally:
            self.ranks.left(whole=whole)

    def _fault(self, error: Exception) -> None:
        """A fault of the instrument: one warning, everything detached, training goes on.

        Among several processes the step's hooks stay until all have met and know of it.
        """
        if not self.ranks.alone and not isinstance(error, Apart):
            self._stop_catching()
            self.ranks.fault = self.ranks.fault or error
            return
        self.detach()
        if self.strict and isinstance(error, IntaglioError):
            raise error
        if self.strict and isinstance(error, Apart) and error.refusal:
            raise UnmeasurableError(str(error))
        self._say_fault(str(error) if isinstance(error, Apart) else f"{type(error).__name__}: {error}")

    def _say_fault(self, what: str) -> None:
        text = f"measuring stopped at step {self.step}: {what}"
        self._warn(f"{text}; what was written is kept, training goes on")
        try:
            self.writer.write_manifest(fault=text, measured_steps=self.step)
        except IntaglioError:
            pass

    def _say_ends(self, ends: list[dict[str, Any]]) -> None:
        """What went wrong in the other processes after the last meeting."""
        faults = [f"process {i}: {end['fault']}" for i, end in enumerate(ends) if "fault" in end]
        broken = [str(i) for i, end in enumerate(ends) if not end["whole"]]
        if faults:
            self._say_fault("; ".join(faults))
        elif broken:
            self._warn(f"process {', '.join(broken)} did not come to its block's end, so the run stays unfinished")

    def _warn(self, text: str) -> None:
        if self.ranks.first:
            warnings.warn(f"intaglio: {text}", RuntimeWarning, stacklevel=4)

    def _bypassed(self, reason: str) -> None:
        """A fused loss that does not use the head: its parameters leave the books, by name."""
        if self._headless:
            return
        self._headless = True
        lost = self.layout.give_up(self.layout.head, reason)
        if lost:
            self._say_unmeasured(lost)
        else:
            self._warn(f"{reason}: losses per token are not known")
        layout = self.layout
        self.writer.write_manifest(
            parameters_measured=layout.n_measured, coverage=layout.coverage, unmeasured=sorted(layout.unmeasured),
            unmeasured_reasons=dict(layout.reasons), headless=reason,
        )  # fmt: skip

    def _say_unmeasured(self, names: list[str]) -> None:
        share = sum(self.layout.unmeasured[n].numel() for n in names) / self.layout.n_trainable
        shown = ", ".join(f"{n} ({self.layout.reasons[n]})" for n in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        self._warn(f"{share:.1%} of the trained parameters are not measured and stand under `unmeasured`: {shown}{more}")

    def _guard(self, function: Any) -> None:
        try:
            with torch.no_grad():
                function()
        except Exception as error:
            self._fault(error)

    def _timed(self, function: Any) -> None:
        if not self._attached:
            return
        start = time.perf_counter()
        self._guard(lambda: self.ranks.together(function))
        self._spent += time.perf_counter() - start

    def prime_probes(self) -> None:
        """Keep what the probes show now as their start (before an earlier state is loaded)."""
        for probe in self.probes:
            with undisturbed(self.model):
                measure_probe(self.model, probe)

    def restore(self, step: int, *, path_l2: float, examples: list[str], tokens: list[int]) -> None:
        """Go on after `step` steps of a run whose earlier rows are kept."""
        self.step, self.path_l2 = step, path_l2
        self.recorder.restore(examples, tokens)

    # -- one step

    def _plan_step(self) -> None:
        """What the coming step will be measured at."""
        self.collector.keep = self.budget.due(self.step)

    def _begin_pass(self, caught: object) -> None:
        self._depth = 0  # a step that raised never ended
        if caught.mixed and not self._said_mixed:
            self._said_mixed = True
            text = "examples packed into one row attend to each other, so no push is one example's own"
            self._warn(f"{text}; pass use_cache=False and no mask")
        if self.collector.records and self.clip.dropped():
            self.collector.records.clear()  # the gradients were cleared without a step
        if self.collector.keep:
            self._admit(caught.ids_BT.numel())
        self.collector.begin(caught)

    def _admit(self, n_tokens: int) -> None:
        """Keep the factors of a pass if they fit the budget; what is given up for that is said."""
        said = self.budget.reason
        if not self.budget.admit(n_tokens, len(self.collector.records)):
            self._drop_factors()
        elif self.budget.spill and not self.collector.spill:
            self.collector.spill_all()
        self._say_given_up(said)

    def _drop_factors(self) -> None:
        """The memory budget is passed: this step is measured at level norms."""
        self.collector.keep = False
        for record in self.collector.records.values():
            record.factors.clear()
        if self.budget.only_norms:
            self.snapshot = Snapshot()

    def _say_given_up(self, said: str) -> None:
        if self.budget.reason != said:
            if self.ranks.first:
                print(f"intaglio: {self.budget.reason}")
            self.writer.write_manifest(memory=self.budget.as_dict())

    def _step_begins(self, optimizer: object, args: tuple, kwargs: dict) -> tuple | None:
        """Before the optimizer moves anything; under step(closure) that is when the closure returns.

        A subclass's step calls its parent's, with hooks of its own: only the outermost counts.
        """
        self._depth += 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._depth > 1 or closure is None:
            if self._depth == 1:
                self._timed(self._before)
            return None
        waiting = [self._before]

        def measured_closure() -> Any:
            self._depth, depth = 0, self._depth
            found = closure()
            self._depth = depth
            if waiting:
                self._timed(waiting.pop())
            return found

        return args[:1], {**kwargs, "closure": measured_closure}

    def _step_ends(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._timed(self._after)

    def _before(self) -> None:
        self._meet_others(sum(r.caught.n_slots for r in self.collector.records.values()))
        self.clip.average(self.ranks)
        self._scales = self.clip.read()
        if self.collector.keep:
            self.snapshot.take(self.optimizer)
        self._probing = []
        if self.probes and self.step % self.probe_every == 0:
            self._probing = [self._probe_before(p) for p in self.probes]

    def _meet_others(self, examples: int) -> None:
        """Where this process's examples stand in the step's batch, and whether all processes kept their factors."""
        seen, kept = self.ranks.table(examples, self.collector.keep).T
        if seen.min() == 0 < seen.max():
            raise RuntimeError(f"process {seen.argmin()} trained on no example that could be seen")
        self.recorder.first_slot = int(seen[: self.ranks.rank].sum())
        if self.collector.keep and not kept.all():
            said = self.budget.reason
            self.budget.refused_elsewhere(int(kept.argmin()))
            self._drop_factors()
            self._say_given_up(said)

    def _probe_before(self, probe: Probe) -> _ProbeStep:
        start = time.perf_counter()
        self.tap.enabled = False
        try:
            with undisturbed(self.model):
                params = []
                if self.collector.keep:
                    params = [w.param for w in self.layout.weights] + list(self.layout.unmeasured.values())
                state, gradient = measure_probe_with_gradient(self.model, probe, params)
                found = _ProbeStep(probe, state, {id(p): g for p, g in zip(params, gradient)})
        finally:
            self.tap.enabled = True
        found.seconds = time.perf_counter() - start
        return found

    def _after(self) -> None:
        records = list(self.collector.records.values())
        scales, foreign, clip_scale = self._scales
        books = None
        if records and self.collector.keep:
            for probing in self._probing:
                self._prepare_credits(probing)
            books = settle(
                self.layout, records, self.optimizer, self.snapshot,
                rule_name=self.rule_name, scales=scales, foreign=foreign, lora_weight2=self.lora_weight2,
            )  # fmt: skip
            books.part_data = self.ranks.sum(books.part_data)  # all other accounts are the same in every process
            books.data = float(books.part_data.sum())
            self.path_l2 += books.update_l2
            self.budget.fitted()
        if any(r.coarse for r in records) and self.tolerance < COARSE:
            self.tolerance = COARSE
            self.writer.write_manifest(tolerance=COARSE, autocast=True)
        if records:
            self._record(records, books, clip_scale, scales)
        for probing in self._probing:
            self._record_probe(probing, records, books)
        self.collector.records.clear()
        self.collector.clear_caches()
        self.clip.clear()
        self.step += 1
        self._plan_step()
        if time.perf_counter() - getattr(self, "_flushed", 0.0) > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make everything measured so far durable."""
        self.writer.flush(self.step)
        self._flushed = time.perf_counter()

    def _record(self, records: list, books: StepBooks | None, clip_scale: float, scales: dict) -> None:
        examples = [e for r in records for e in r.caught.examples(_trained(r))]
        ids = self._ids = [e[0] for e in examples]
        sketches = torch.cat([r.sketch_NS for r in records])
        total_S = self.ranks.sum(sketches.double().sum(0))
        match, grad_l2 = gradient_match(self.layout, records, total_S, self.collector.projections, scales, self.ranks)
        own, along = (x.cpu().numpy() for x in (sketches.double().square().sum(1), sketches.double() @ total_S))
        squared = np.concatenate([make.squared_push(r) for r in records])
        extra: dict[str, Any] = {}
        if books is not None and self.level == "exact":
            exact = exact_products(self.layout, records, self.optimizer, books, scales, self.snapshot)
            extra["churn"] = np.sqrt(np.clip(exact.squared_c - _shifts(books) ** 2, 0, None))
            if self.ranks.alone:
                own, along = exact.products_NN.diagonal(), exact.products_NN.sum(1)
                match = match if self.layout.lora else exact.gradient_match
            elif not self.layout.lora:  # of the other processes' examples only their sum is here, as the gradient
                own, along = exact.products_NN.diagonal(), exact.along_N
        visits = make.visit_columns(self.step, records, books, ids, self.writer.rank) | extra
        trained = np.array(visits["targets"]) > 0
        everyone = self.ranks.sums(
            examples=len(ids), targets=int(np.sum(visits["targets"])), nats=_nats(visits), trained=int(trained.sum()),
            squared=float(squared[trained].sum()), along=float(along.sum()), total2=float((squared + along - own).sum()),
        )  # fmt: skip
        visits["alignment"] = make.leave_one_out(own, along, everyone["along"])
        self.recorder.append("visits", visits)
        self.recorder.sketches(self.step, ids, sketches, squared, exact=self.level == "exact")
        self.recorder.places(self.step, records, books, visits, ids)
        if books is not None and self.level == "exact":
            self.recorder.pairs(self.step, exact.products_NN, visits["loss_weight"])
        if self.group_carry is not None and books is not None:
            groups = [self.recorder.group(i) for i in ids]
            carried = self.group_carry.step(records, groups, books, scales, self.snapshot, self.optimizer)
            self.writer.append_rows(
                "group_carry", [{"step": self.step, "group": g, "carry_shift": v} for g, v in carried.items()]
            )
        # Under LoRA autograd never makes the product's gradient; lengths are exact, products as good as `along`.
        total2 = everyone["total2"] if self.layout.lora else grad_l2**2
        self._record_step(books, everyone, clip_scale, match, total2)
        self.recorder.examples(examples)

    def _record_step(
        self, books: StepBooks | None, everyone: dict[str, float], clip_scale: float, match: float, total2: float
    ) -> None:
        gg, s = make.agreement(total2, everyone["squared"], int(everyone["trained"]))
        targets = int(everyone["targets"])
        now = time.perf_counter()
        row = {
            "step": self.step, "examples": int(everyone["examples"]), "targets": targets,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "loss_nats": everyone["nats"] / targets if targets else None,
            "grad_l2": math.sqrt(max(total2, 0.0)), "clip_scale": clip_scale, "gradient_match": match,
            "unsettled": self.step < make.UNSETTLED_STEPS, "agreement_gg": gg, "agreement_s": s,
            "measured": self.level if books is not None else "norms",
            "net_l2": self.net.measure(), "seconds": now - self._ended, "measure_seconds": self._spent + self.tap.seconds,
        }  # fmt: skip
        if books is not None:
            row |= {
                "update_l2": books.update_l2, "data_shift": books.data, "carry_shift": books.carry,
                "decay_shift": books.decay, "unmeasured_shift": books.unmeasured,
                "unexplained_shift": books.unexplained, "interaction_shift": books.interaction,
                "rounding_shift": books.rounding, "closure": books.closure, "path_l2": self.path_l2,
            }  # fmt: skip
        self.recorder.append_rows("steps", [row])
        self.latest = row
        self._ended, self._spent, self.tap.seconds = now, 0.0, 0.0

    # -- probes

    def _record_probe(self, probing: _ProbeStep, records: list, books: StepBooks | None) -> None:
        start = time.perf_counter()
        row: dict[str, Any] = {
            "step": self.step, "probe": probing.probe.name, "loss_nats": probing.state.loss_nats,
            "kl_nats": probing.state.kl_nats,
        }  # fmt: skip
        if probing.gradient:
            self.tap.enabled = False
            try:
                with undisturbed(self.model):
                    row["measured_change_nats"] = probing.state.loss_nats - probe_loss(self.model, probing.probe)
            finally:
                self.tap.enabled = True
        if probing.accounts is not None and books is not None:
            row |= self._credits(probing, records)
            predicted = row["credit_sum_nats"] + row["carry_nats"] + row["decay_nats"] + row["unmeasured_nats"]
            row["residual_nats"] = row["measured_change_nats"] - predicted
        row["seconds"] = probing.seconds + time.perf_counter() - start
        self.recorder.append_rows("probes", [row])
        self.recorder.probe_state(self.step, probing.probe, probing.state)

    def _prepare_credits(self, probing: _ProbeStep) -> None:
        probing.accounts = prepare(
            self.layout, self.optimizer, self.snapshot, probing.gradient,
            rule_name=self.rule_name, scales=self._scales[0], foreign=self._scales[1], groups=groups_of(self.optimizer),
        )  # fmt: skip

    def _credits(self, probing: _ProbeStep, records: list) -> dict[str, float]:
        accounts = probing.accounts
        credit_N = credit_of_visits(records, accounts)
        n = len(credit_N)
        self.recorder.append("credits", {
            "step": [self.step] * n, "slot": list(range(n)), "probe": [probing.probe.name] * n,
            "example": self._ids, "credit_nats": credit_N,
        })  # fmt: skip
        return {
            **self.ranks.sums(credit_sum_nats=float(credit_N.sum())), "carry_nats": accounts.carry, "decay_nats": accounts.decay,
            "unmeasured_nats": accounts.unmeasured,
        }  # fmt: skip

    def _probe_end(self) -> None:
        """The state after the last step: losses, KL and drift without a step to explain."""
        self.tap.enabled = False
        for probe in self.probes:
            start = time.perf_counter()
            with undisturbed(self.model):
                state = measure_probe(self.model, probe)
            self.recorder.append_rows("probes", [{
                "step": self.step, "probe": probe.name, "loss_nats": state.loss_nats, "kl_nats": state.kl_nats,
                "seconds": time.perf_counter() - start,
            }])  # fmt: skip
            self.recorder.probe_state(self.step, probe, state)


def _nats(visits: dict[str, Any]) -> float:
    """Summed loss of all trained tokens."""
    return float(sum(loss * n for loss, n in zip(visits["loss_nats"], visits["targets"]) if n))


def _shifts(books: StepBooks) -> np.ndarray:
    return np.concatenate([s.sum(1).cpu().numpy() for s in books.shift_NA])


def _trained(record: Any) -> torch.Tensor:
    """(B, T) which positions predict a trained target; every token where no target was seen."""
    return record.caught.segment_BT >= 0 if record.target_BT is None else record.target_BT >= 0

