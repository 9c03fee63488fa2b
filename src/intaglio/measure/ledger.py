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
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intaglio.address import parse
from intaglio.errors import InputError, IntaglioError, UnmeasurableError
from intaglio.measure import heap
from intaglio.measure import rows as make
from intaglio.measure.agreement import Agreement, agreement_of
from intaglio.measure.books import StepBooks, lora_weight2, settle
from intaglio.measure.budget import Budget
from intaglio.measure.carry import GroupCarry, check_group_momentum
from intaglio.measure.collect import Collector, Record
from intaglio.measure.describe import describe
from intaglio.measure.exact import exact_products
from intaglio.measure.lora import both_or_neither
from intaglio.measure.net import NetDistance
from intaglio.measure.notices import Notices
from intaglio.measure.probes import as_probes
from intaglio.measure.ranks import Apart, Ranks
from intaglio.measure.recorder import Recorder, Source
from intaglio.measure.rules import check_measurable, unwrap
from intaglio.measure.settle import ClipScale, Snapshot
from intaglio.measure.step_hooks import StepHooks
from intaglio.measure.watch import ProbeWatch, prime
from intaglio.model.layout import build_layout, causal_lm
from intaglio.model.tap import Tap
from intaglio.store.run import Run, RunWriter

LEVELS = ("norms", "full", "exact")
TOLERANCE = 1e-4  # closure that counts as closed
COARSE = 1e-2  # the same where anything has 16 bits: what 16 bits leave of closure, in weights or under autocast
FLUSH_SECONDS = 20.0


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
        token_parts: addresses, such as L1.attn.H3, of which the shift through every token is kept, too.
        token_examples: only of the examples with these ids.
        credit_parts: also keep every credit restricted to each part of the model (`visit_credits`).
        group_momentum: keep one momentum buffer per group and split the carry by group exactly; `sources` must
            name groups.
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
        InputError: an unknown level, a probe that is none, an optimizer of another model, group momentum where
            no source has a group.
        UnmeasurableError: an 8-bit optimizer, quantised weights, DoRA, a model that does not predict the next
            token, nothing to measure, or processes that share gradients in another way than DistributedDataParallel.
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
        credit_parts: bool = False,
        token_parts: Sequence[str] = (),
        token_examples: Sequence[str] | None = None,
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
            self.strict, self.quiet, self.credit_parts = strict, quiet or not self.ranks.first, credit_parts
            self.step, self.seed = first_step, seed
            self.rule_name = check_measurable(self.optimizer)
            params = {id(p) for g in self.optimizer.param_groups for p in g["params"]}
            if params.isdisjoint(id(p) for p in self.model.parameters()):
                raise InputError("the optimizer moves nothing of the model", got="parameters of another model",
                                 expected="an optimizer over this model's parameters")  # fmt: skip
            self.layout = build_layout(self.model, params)
            if not self.layout.weights:
                why = next((f"{n}: {why}" for n, why in self.layout.reasons.items()), None)
                raise UnmeasurableError(
                    "nothing that the optimizer moves can be measured", got=why, expected="linear layers"
                )
            token_places = [self._place(text) for text in token_parts]
            device = next(self.model.parameters()).device
            self._device_type = device.type
            self.probes = as_probes(probes, device)
            groups = 2 + len({s.group for s in (sources or {}).values()}) if group_momentum else 0  # decay, and earlier
            self.budget = Budget.parse(
                memory, self.layout, self.model, level=level, probes=self.probes, every=every, groups=groups
            )
            self.collector = Collector(self.layout, seed=seed, share=1 / self.ranks.world)
            self.snapshot = Snapshot()
            self.net: NetDistance | None = NetDistance(self.layout)
            self.lora_weight2 = lora_weight2(self.layout)
            coarse = any(w.param.element_size() < 4 for w in self.layout.weights)
            self.tolerance = COARSE if coarse else TOLERANCE
            self.path_l2 = 0.0
            self.latest: dict[str, Any] = {}
            self.group_carry, self.group_momentum = None, group_momentum
            if group_momentum:
                check_group_momentum(self.layout, self.ranks, level=level, every=every, rule_name=self.rule_name,
                                     groups=(s.group for s in (sources or {}).values()))  # fmt: skip
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
            self.recorder.token_parts = token_places
            self.recorder.token_examples = None if token_examples is None else set(token_examples)
            unit = {k: v for k, v in self.writer.manifest.items() if k == "unit_length"} if resume else {}
            self.writer.write_manifest(**describe(self) | unit, **dict(manifest or {}))
        with self.ranks.all_or_none("folder") as same:
            same["run folder"] = self.writer.mark()
        self.notices = Notices(self.ranks, self.writer)
        self._spent = self._flushed = 0.0
        self._attached = self._headless = self._entered = False

    # -- life

    def __enter__(self) -> Ledger:
        if self._entered:
            raise InputError("a ledger is entered once", got="a ledger that was entered before", expected="a new Ledger")
        self._entered = True
        self.attach()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None and self._attached and self.ranks.first:
                self._guard(partial(self.watch.end, self.step))
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
        self._hooks = StepHooks(self.optimizer, partial(self._timed, self._before), partial(self._timed, self._after))
        self.watch = ProbeWatch(
            self.probes, self.tap, self.recorder, self.ranks, every=self.probe_every, by_part=self.credit_parts
        )
        if self.group_momentum:  # only now: a resumed run has loaded the optimizer's state since
            self.group_carry = GroupCarry(self.layout, self.optimizer)
        if all(p.device.type == "cpu" for p in self.model.parameters()):
            heap.keep_freed_memory(self)
        self._attached = True
        self._ended = time.perf_counter()
        self._plan_step()
        if self.layout.unmeasured:
            self.notices.unmeasured(self.layout, list(self.layout.unmeasured))
        for line in self.budget.lines() if not self.quiet else ():
            print(f"intaglio: {line}")

    def detach(self) -> None:
        """Remove every hook; safe to call twice."""
        if not self._attached:
            return
        self._stop_catching()
        self._hooks.remove()
        heap.let_go(self)
        self._attached = False

    def _stop_catching(self) -> None:
        self.tap.detach()
        self.clip.remove()
        self.collector.records.clear()

    def _close(self, *, whole: bool) -> None:
        try:
            with self.ranks.leaving(whole) as ends:
                self.writer.flush(self.step if whole else self.step + 1)  # a broken step's rows go when it is taken again
            if whole and not self.ranks.alone:
                self.notices.ends(self.step, ends)
            if all(end["whole"] for end in ends):
                self.writer.finish(steps=self.step)
            else:
                self.writer.write_manifest(steps=self.step)
        except IntaglioError as error:
            if self.strict:
                raise
            warnings.warn(f"intaglio: {error}", RuntimeWarning, stacklevel=3)
        finally:
            self.writer.let_go()
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
        self.notices.stopped(self.step, str(error) if isinstance(error, Apart) else f"{type(error).__name__}: {error}")

    def _bypassed(self, reason: str) -> None:
        """A fused loss that does not use the head: its parameters leave the books, by name."""
        if not self._headless:
            self._headless = True
            self.notices.headless(self.layout, self.layout.give_up(self.layout.head, reason), reason)

    def _guard(self, function: Any) -> None:
        try:  # a loop may stand in autocast as a whole, and its optimizer's step with it
            with torch.no_grad(), torch.autocast(self._device_type, enabled=False):
                function()
        except Exception as error:
            self._fault(error)

    def _timed(self, function: Any) -> None:
        if not self._attached:
            return
        self._entered = time.perf_counter()
        self._guard(lambda: self.ranks.together(function))
        self._spent += time.perf_counter() - self._entered

    def prime_probes(self) -> None:
        """Keep what the probes show now as their start (before an earlier state is loaded)."""
        prime(self.model, self.probes)

    def restore(self, step: int, *, start_seen: bool = True) -> None:
        """Go on after `step` steps of the run in the folder: later rows are dropped, earlier ones counted again.

        Args:
            start_seen: whether this ledger was made at the weights of step 0; if not, no distance from them is measured.
        """
        with self.ranks.all_or_none(f"restored {step}"):  # nobody reads before all have dropped
            self.writer.drop_after(step if step else -1)
        for seen in ("nonfinite", "gradients_changed"):
            if self.writer.manifest.get(seen, {"step": -1})["step"] >= step:
                del self.writer.manifest[seen]
        run = Run(self.writer.folder)
        rows = run.table("steps").select(["step", "path_l2", "measured"]).to_pylist()
        self.recorder.restore(run.column("examples", "example"), run.column("vocab", "token"))
        self.step, self.path_l2 = step, max((r["path_l2"] or 0.0 for r in rows), default=0.0)
        self.budget.restore(sorted((r["step"], r["measured"]) for r in rows))
        if not start_seen:
            self.net = None
            for probe in self.probes:
                probe.start_seen = False

    def flush(self) -> None:
        """Make everything measured so far durable."""
        self.writer.flush(self.step)
        self._flushed = time.perf_counter()

    # -- one step

    def _place(self, text: str) -> int:
        """Where an address stands among those that are measured."""
        try:
            return self.layout.addresses.index(parse(text))
        except ValueError:
            raise InputError("not a measured part of this model", got=text, expected="such as L1.attn.H3") from None

    def _plan_step(self) -> None:
        """What the coming step will be measured at."""
        self.collector.step, self.collector.keep = self.step, self.budget.due(self.step)

    def _begin_pass(self, caught: object) -> None:
        self._hooks.reset()  # a step that raised never ended
        if caught.mixed:
            self.notices.mixed()
        if self.collector.records and self.clip.dropped():
            self.collector.records.clear()  # the gradients were cleared without a step
        if self.collector.keep:
            self._admit(caught.ids_BT.numel())
        self.collector.begin(caught)

    def _admit(self, n_tokens: int) -> None:
        """Keep the factors of a pass if they fit the budget; what is given up for that is said."""
        with self.notices.giving_up(self.budget):
            if not self.budget.admit(n_tokens, len(self.collector.records)):
                self._drop_factors()
            elif self.budget.spill and not self.collector.spill:
                self.collector.spill_all()

    def _drop_factors(self) -> None:
        """The memory budget is passed: this step is measured at level norms."""
        self.collector.drop_factors()
        if self.budget.only_norms:
            self.snapshot = Snapshot()

    def _before(self) -> None:
        self._meet_others(sum(r.caught.n_slots for r in self.collector.records.values()))
        self.clip.average(self.ranks)
        found = self.clip.read()
        self._scaling = found._replace(foreign=both_or_neither(self.layout, found.foreign))
        self.notices.changed(self.step, self.layout, self._scaling.foreign)
        if self.collector.keep:
            self.snapshot.take(self.optimizer)
        self.watch.before(self.step, credited=self.collector.keep)

    def _meet_others(self, examples: int) -> None:
        """Where this process's examples stand in the step's batch, and whether all processes kept their factors."""
        seen, kept = self.ranks.table(examples, self.collector.keep).T
        if seen.min() == 0 < seen.max():
            raise RuntimeError(f"process {seen.argmin()} trained on no example that could be seen")
        self.recorder.first_slot = int(seen[: self.ranks.rank].sum())
        if self.collector.keep and not kept.all():
            with self.notices.giving_up(self.budget):
                self.budget.refused_elsewhere(int(kept.argmin()))
                self._drop_factors()

    def _after(self) -> None:
        records = list(self.collector.records.values())
        books = self._settle(records) if records and self.collector.keep else None
        if any(r.coarse for r in records) and self.tolerance < COARSE:
            self.tolerance = COARSE
            self.writer.write_manifest(tolerance=COARSE, autocast=True)
        ids = self._record(records, books) if records else []
        self.watch.record(self.step, records, ids)
        self.collector.records.clear()
        self.collector.clear_caches()
        self.clip.clear()
        self.step += 1
        self._plan_step()
        if time.perf_counter() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _settle(self, records: list[Record]) -> StepBooks:
        how = {"rule_name": self.rule_name, "scales": self._scaling.scales, "foreign": self._scaling.foreign}
        self.watch.account(self.optimizer, self.snapshot, **how)  # first: settling uses the momentum up
        books = settle(self.layout, records, self.optimizer, self.snapshot, **how, lora_weight2=self.lora_weight2)
        books.part_data = self.ranks.sum(books.part_data)  # all other accounts are the same in every process
        books.data = float(books.part_data.sum())
        self.path_l2 += books.update_l2
        self.budget.fitted()
        return books

    # -- record

    def _record(self, records: list[Record], books: StepBooks | None) -> list[str]:
        """Rows of everything but the probes; the ids of the step's examples."""
        examples = [e for r in records for e in r.caught.examples(r.trained_BT)]
        ids = [example for example, _, _ in examples]
        scales = self._scaling.scales
        found = agreement_of(self.layout, records, self.collector.projections, self._scaling, self.ranks)
        visits = make.visit_columns(self.step, records, books, ids, self.writer.rank)
        if exact := books is not None and self.level == "exact":
            products = exact_products(self.layout, records, self.optimizer, books, self._scaling, self.snapshot)
            found = found.exactly(products, lora=self.layout.lora, alone=self.ranks.alone)
            visits["churn"] = make.churn(products.squared_c, books)
        everyone = self.ranks.sums(**found.sums(visits))
        visits["alignment"] = make.leave_one_out(found.own_N, found.along_N, everyone["along"])
        self.recorder.append("visits", visits)
        self.recorder.sketches(self.step, ids, found.sketches_NS, found.squared_N, exact=self.level == "exact")
        self.recorder.places(self.step, records, books, visits, ids)
        if exact:
            self.recorder.pairs(self.step, products.products_NN, visits["loss_weight"])
        if self.group_carry is not None and books is not None:
            groups = [self.recorder.group(i) for i in ids]
            carried = self.group_carry.step(records, groups, books, scales, self.snapshot, self.optimizer)
            self.recorder.group_carry(self.step, carried)
        self._record_step(books, everyone, found)
        self.recorder.examples(examples)
        return ids

    def _broke(self, row: dict[str, Any]) -> bool:
        """Whether the step's loss or gradient is no finite number; a loss that is not known (no head) is NaN, too."""
        numbers = [row["grad_l2"], None if self._headless else row["loss_nats"]]
        return any(x is not None and not math.isfinite(x) for x in numbers)

    def _record_step(self, books: StepBooks | None, everyone: dict[str, float], found: Agreement) -> None:
        gg, s = make.agreement(found.total2, everyone["squared"], int(everyone["trained"]))
        targets = int(everyone["targets"])
        now = time.perf_counter()
        row = {
            "step": self.step, "examples": int(everyone["examples"]), "targets": targets,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "loss_nats": everyone["nats"] / targets if targets else None,
            "grad_l2": None if found.total2 is None else math.sqrt(found.total2), "clip_scale": self._scaling.median,
            "gradient_match": found.gradient_match,
            "unsettled": self.step < make.UNSETTLED_STEPS, "agreement_gg": gg, "agreement_s": s,
            "measured": self.level if books is not None else "norms",
            "net_l2": self.net.measure() if self.net is not None else None,
            "seconds": now - self._ended, "measure_seconds": self._spent + self.tap.seconds + now - self._entered,
        }  # fmt: skip
        if books is not None:
            row |= make.step_accounts(books) | {"path_l2": self.path_l2}
        if self._broke(row):
            self.notices.nonfinite(self.step)
        self.recorder.append_rows("steps", [row])
        self.latest = row
        self._ended, self._entered, self._spent, self.tap.seconds = now, now, 0.0, 0.0
