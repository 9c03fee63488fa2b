"""The memory budget: predicted before the first step, never passed, given up in a fixed order.  [torch]"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from intaglio.errors import InputError
from intaglio.model.layout import Layout

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


@dataclass(eq=False)
class Budget:
    """What measuring may hold beside training.

    `snapshot`: copies of the weights and of the momentum; `per_token`: factors kept until
    the step, an upper bound (inputs shared by q, k and v are counted once each).
    """

    limit: int | None
    snapshot: int
    per_token: int
    probes: int
    level: str
    on_cpu: bool
    spill: bool = False
    only_norms: bool = False
    reason: str = ""
    tokens_held: int = 0

    @classmethod
    def parse(cls, memory: str | int | None, layout: Layout, *, n_probes: int, level: str) -> Budget:
        size = sum(w.param.numel() * w.param.element_size() for w in layout.weights)
        budget = cls(
            parse_bytes(memory), 2 * size, bytes_per_token(layout), n_probes * size, level,
            layout.weights[0].param.device.type == "cpu",
        )  # fmt: skip
        fixed = budget.snapshot + budget.probes
        if level != "norms" and budget.limit is not None and fixed > budget.limit:
            budget.only_norms = True
            budget.reason = (
                f"copies of weights, momentum and probe gradients need {human(fixed)}, the budget is "
                f"{human(budget.limit)}: level norms"
            )
        return budget

    def admit(self, n_tokens: int, n_records: int) -> bool:
        """Whether factors of another pass fit; if not, they go to host memory, or the step falls to norms."""
        if n_records == 0:
            self.tokens_held = 0
        self.tokens_held += n_tokens
        if self.limit is None:
            return True
        need = self.snapshot + self.probes + self.per_token * self.tokens_held
        if need <= self.limit:
            return True
        if not self.on_cpu:
            self.spill = True  # the device holds only the copies from here on
            return True
        self.give_up(
            f"factors of {self.tokens_held} tokens need up to {human(need)}, the budget is {human(self.limit)}: "
            "level norms from this step on"
        )
        return False

    def give_up(self, reason: str) -> None:
        """Measure at level norms from here on."""
        self.only_norms, self.reason = True, reason

    def lines(self) -> list[str]:
        """What is predicted, printed before the first step."""
        if self.level == "norms":
            return ["level norms: no copies, no factors are kept"]
        said = f"extra memory: {human(self.snapshot + self.probes)} for copies, up to {human(self.per_token)} per token"
        if self.limit is not None:
            said += f"; budget {human(self.limit)}, given up in this order: " + ", ".join(self.order)
        return [said, self.reason] if self.reason else [said]

    @property
    def order(self) -> list[str]:
        host = [] if self.on_cpu else ["factors to host memory"]
        return [*host, "level norms"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "limit_bytes": self.limit, "copies_bytes": self.snapshot, "probe_bytes": self.probes,
            "factor_bytes_per_token": self.per_token, "order": self.order, "degraded": self.reason or None,
        }  # fmt: skip


def bytes_per_token(layout: Layout) -> int:
    """Upper bound on the bytes of factors per token."""
    total = 0
    for site in layout.sites:
        if site.kind == "embedding":
            total += site.module.embedding_dim
        elif site.kind == "norm":
            total += sum(w.param.numel() for w in site.weights)
        elif site.kind == "lora":
            total += site.lora_b.param.shape[0] + 2 * site.weight.param.shape[1]
        elif site.weight is not None or site.bias is not None:
            total += sum(site.module.weight.shape) if site.weight is not None else site.module.weight.shape[0]
    return total * 4
