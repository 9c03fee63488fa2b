"""The memory budget: predicted before the first step, never passed, given up in a fixed order.  [torch]"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from intaglio.errors import InputError
from intaglio.measure.collect import SUM_SIDE
from intaglio.measure.lora import lora_bytes
from intaglio.measure.probes import DRIFT_TOKENS, KL_POSITIONS, Probe
from intaglio.model.layout import Layout

FIRST = "factors to host memory"
NTH = 4  # `full` is tried again at every so many of the steps asked for
SUM_COPIES = 4  # of one forward's sketch: at the step its sum stands in double, twice (agreement.py)
TRIES = 3  # measured steps in a row that do not fit, after which the rest of the run is `norms`

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str | int | None) -> int | None:
    """Bytes of "2GiB", "500MB" or a number; None stays None.

    Raises:
        InputError: the text is no amount of memory.
    """
    if text is None or isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not found or found[2].lower() not in _UNITS:
        raise InputError("not an amount of memory", got=text, expected='such as "2GiB" or "500MB"')
    return int(float(found[1]) * _UNITS[found[2].lower()])


def human(n_bytes: float | int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


@dataclass(frozen=True, slots=True)
class Rung:
    """One thing that can be given up, whether it was, and why."""

    name: str
    taken: bool
    why: str


@dataclass(eq=False)
class Budget:
    """What measuring may hold beside training, and what is given up where that is not enough.

    `snapshot`: copies of the weights and of the momentum, standing from the first measured step on, and under LoRA the
    directions that examples are held against;
    `probes`: gradients of the probes; `held`: what stands at every level (the probes' first predictions);
    `carried`: the momentum by group; `summed`: under LoRA the sketch of the summed gradient, at every level
    once per forward of the step, and its sum over them; `per_token`: factors kept until the step, an upper bound (inputs
    shared by q, k and v are counted once each).

    The order is fixed: factors to host memory, `full` on every Nth step only, level `norms`. The second
    does not lower the peak of a step. What it does: a step whose factors do not fit is measured as `norms`
    (its factors are let go, so the budget is not passed), and `full` is tried again at a fixed distance,
    so that the measured steps lie spread over the run and are not its beginning alone. It helps where
    steps differ in length; where `TRIES` steps in a row do not fit, the rest of the run is `norms`.
    """

    limit: int | None
    snapshot: int
    per_token: int
    probes: int
    level: str
    on_cpu: bool
    held: int = 0
    carried: int = 0
    summed: int = 0
    every: int = 1  # the distance asked for; `nth` is the one in force
    follows: bool = False  # every step is needed (momentum by group)
    spill: bool = False
    thinned: bool = False
    only_norms: bool = False
    reason: str = ""
    tokens_held: int = 0
    refused: int = 0  # steps in a row that did not fit

    @classmethod
    def parse(
        cls, memory: str | int | None, layout: Layout, model: nn.Module, *, level: str, probes: Sequence[Probe] = (),
        every: int = 1, groups: int = 0,
    ) -> Budget:  # fmt: skip
        """The budget of a run, with everything that can be known before its first step.

        Args:
            groups: momentum buffers that are split by group; 0 where momentum is not split.
        """
        moved = [*(w.param for w in layout.weights), *layout.unmeasured.values()]
        size = sum(p.numel() * p.element_size() for p in moved)
        halves = 4 * sum(w.param.numel() for w in layout.weights if w.kind.startswith("lora"))  # of a gradient, over D
        budget = cls(
            parse_bytes(memory), 2 * size + lora_bytes(layout), bytes_per_token(layout), len(probes) * (size + halves), level,
            moved[0].device.type == "cpu", held=sum(kept_bytes(model, p) for p in probes),
            carried=groups * 4 * sum(p.numel() for p in moved), summed=sum_bytes(layout), every=every,
            follows=bool(groups),
        )  # fmt: skip
        if level != "norms" and budget.limit is not None and budget.fixed > budget.limit:
            budget.only_norms = True
            budget.reason = (
                f"copies of weights and momentum, probe gradients and first predictions need {human(budget.fixed)}, "
                f"the budget is {human(budget.limit)}: level norms"
            )
            if budget.always > budget.limit:
                budget.reason += f", and {human(budget.always)} stay at any level, which is more than the budget"
        return budget

    @property
    def always(self) -> int:
        """Bytes that stand at every level, whatever the step."""
        return self.held + SUM_COPIES * self.summed

    @property
    def fixed(self) -> int:
        """Bytes that a measured step needs whatever its length."""
        return self.snapshot + self.probes + self.carried + self.always

    def of_step(self, n_tokens: int | float, n_forwards: int) -> int:
        """Most bytes of a step at the level asked for."""
        if self.level == "norms":
            return self.always + self.summed * n_forwards
        return self.fixed + self.summed * n_forwards + int(self.per_token * n_tokens)

    @property
    def nth(self) -> int:
        """`full` is measured at steps divisible by this."""
        return self.every * NTH if self.thinned else self.every

    def due(self, step: int) -> bool:
        """Whether a step is to be measured beyond `norms`."""
        return self.level != "norms" and not self.only_norms and step % self.nth == 0

    def admit(self, n_tokens: int, n_records: int) -> bool:
        """Whether factors of another pass fit; if not, they go to host memory, or the step falls to norms."""
        if n_records == 0:
            self.tokens_held = 0
        self.tokens_held += n_tokens
        need, bare = (self.of_step(tokens, n_records + 1) for tokens in (self.tokens_held, 0))
        if self.limit is None or (bare if self.spill else need) <= self.limit:
            return True
        said = f"factors of {self.tokens_held} tokens need up to {human(need)}, the budget is {human(self.limit)}: "
        if not self.on_cpu and bare <= self.limit:
            self.spill = True  # the device holds only the copies from here on
            self.reason = said + "factors go to host memory from this step on"
            return True
        if self.refuse():
            self.reason = said + self._consequence()
        return False

    def _consequence(self) -> str:
        if self.follows:
            return "level norms from this step on (momentum by group would need every step)"
        if self.only_norms:
            return f"level norms from this step on ({TRIES} measured steps in a row did not fit)"
        return f"level norms in this step, {self.level} on every {ordinal(self.nth)} step only"

    def refuse(self) -> bool:
        """A step did not fit; whether that leads one rung down."""
        before = self.thinned, self.only_norms
        self.refused += 1
        self.thinned |= not self.follows
        self.only_norms |= self.follows or self.refused >= TRIES
        return before != (self.thinned, self.only_norms)

    def refused_elsewhere(self, process: int) -> None:
        """The step did not fit in another process, so it is measured here as it is there."""
        if self.refuse():
            self.reason = f"process {process} passed its memory budget: {self._consequence()}"

    def fitted(self) -> None:
        """A step was measured within the budget."""
        self.refused = 0

    def restore(self, measured: Iterable[tuple[int, str]]) -> None:
        """Give up what the earlier steps of a resumed run have given up.

        Args:
            measured: (step, what was measured in it), ascending.
        """
        for step, level in measured:
            if not self.due(step):
                continue
            if level != "norms":
                self.fitted()
            elif self.refuse():
                self.reason = f"the memory budget was passed before the interruption: {self._consequence()}"

    def rungs(self) -> list[Rung]:
        """The order in which things are given up, and of each whether it was and why."""
        copies = self.limit is not None and self.fixed > self.limit
        fewer = f"{self.level} on every {ordinal(self.every * NTH)} step only"
        if self.on_cpu:
            host = Rung(FIRST, False, "training runs in host memory already")
        elif copies:
            host = Rung(FIRST, False, "the copies alone do not fit")
        else:
            host = Rung(FIRST, self.spill, "the factors of a step did not fit" if self.spill else "not needed so far")
        if copies:
            nth = Rung(fewer, False, "it does not lower the peak of a step, and the copies fit in none")
        elif not self.on_cpu and not self.thinned:
            nth = Rung(fewer, False, "it does not lower the peak of a step, and without factors every step fits")
        elif self.follows:
            nth = Rung(fewer, False, "momentum by group would need every step")
        elif self.thinned:
            nth = Rung(fewer, True, "the factors of a step did not fit; it does not lower the peak of a step, but "
                       "spreads the steps that fit over the run")  # fmt: skip
        else:
            nth = Rung(fewer, False, "not needed so far; it would not lower the peak of a step, but spread the steps "
                       "that fit over the run")  # fmt: skip
        why = "the copies alone do not fit" if copies else "not needed so far"
        if self.only_norms and not copies:
            why = "a step did not fit" if self.follows else f"{TRIES} measured steps in a row did not fit"
        return [host, nth, Rung("level norms", self.only_norms, why)]

    def lines(self) -> list[str]:
        """What is predicted, printed before the first step."""
        sums = f"{human(self.summed)} per forward for the sketch of the summed gradient" if self.summed else ""
        if self.level == "norms":
            held = f"{human(self.held)} for the probes' first predictions, " if self.held else ""
            return [f"level norms: {held}{sums}{', ' if sums else ''}no copies, no factors are kept"]
        said = f"extra memory: {human(self.fixed)} for copies, up to {human(self.per_token)} per token"
        said += f", {sums}" if sums else ""
        if self.limit is None:
            return [said]
        rungs = [f"{place}. {r.name}: {'taken' if r.taken else 'not taken'}, {r.why}"
                 for place, r in enumerate(self.rungs(), 1)]  # fmt: skip
        given = [f"{said}; budget {human(self.limit)}, given up in this order:", *rungs]
        return [*given, self.reason] if self.reason else given

    def as_dict(self) -> dict[str, Any]:
        return {
            "limit_bytes": self.limit, "copies_bytes": self.snapshot, "probe_bytes": self.probes + self.held,
            "group_bytes": self.carried, "factor_bytes_per_token": self.per_token,
            "sketch_bytes_per_forward": self.summed,
            "order": [asdict(r) for r in self.rungs()] if self.level != "norms" else [],
            "full_every": self.nth, "degraded": self.reason or None,
        }  # fmt: skip


def ordinal(n: int) -> str:
    """4th, 21st; nothing for 1: "every step"."""
    tail = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{tail}"


def kept_bytes(model: nn.Module, probe: Probe) -> int:
    """Upper bound on what a probe keeps from its first measurement: predictions and hidden states."""
    tokens = sum(b["input_ids"].numel() for b in probe.batches)
    config = model.config.get_text_config()
    drift = min(DRIFT_TOKENS, tokens) * (config.num_hidden_layers + 1) * config.hidden_size
    return 4 * (min(KL_POSITIONS, probe.targets) * config.vocab_size + drift)


def sum_bytes(layout: Layout) -> int:
    """Bytes of the sketch of the summed gradient that one forward keeps until the step; 0 without adapters."""
    return 4 * SUM_SIDE * sum(site.lora_b.param.shape[0] for site in layout.sites if site.kind == "lora")


def bytes_per_token(layout: Layout) -> int:
    """Upper bound on the bytes of factors per token."""
    total = 0
    for site in layout.sites:
        if site.kind == "embedding":
            total += site.module.embedding_dim
        elif site.kind == "norm":
            total += sum(w.param.numel() for w in site.weights)
        elif site.kind == "lora":
            total += site.lora_b.param.shape[0] + 2 * site.weight.param.shape[1] + 2 * site.weight.param.shape[0]
        elif site.weight is not None or site.bias is not None:
            total += sum(site.module.weight.shape) if site.weight is not None else site.module.weight.shape[0]
    return total * 4
