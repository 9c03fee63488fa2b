"""What is known of a run before its first step.  [torch]"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from intaglio import __version__

if TYPE_CHECKING:
    from intaglio.measure.ledger import Ledger


def describe(ledger: Ledger) -> dict[str, Any]:
    """The manifest's part that the ledger knows at the start: coverage, unit, optimizer, probes, budget."""
    layout = ledger.layout
    group = ledger.optimizer.param_groups[0]
    return {
        "package_version": __version__, "processes": ledger.ranks.world, "level": ledger.level, "every": ledger.every,
        "probe_every": ledger.probe_every, "seed": ledger.seed, "keep_tokens": ledger.recorder.keep_tokens,
        "credit_parts": ledger.credit_parts,
        "parameters_total": layout.n_trainable, "parameters_measured": layout.n_measured,
        "coverage": layout.coverage, "unmeasured": sorted(layout.unmeasured),
        "unmeasured_reasons": {n: layout.reasons[n] for n in layout.unmeasured if n in layout.reasons},
        "tied_embeddings": layout.tied, "lora": layout.lora, "tolerance": ledger.tolerance,
        "vocab_size": getattr(ledger.model.config.get_text_config(), "vocab_size", None),
        "unit_length": 1e-6 * weight_length(ledger),
        "optimizer": {
            "name": type(ledger.optimizer).__name__, "rule": ledger.rule_name, "lr": float(group["lr"]),
            **{k: group[k] for k in ("betas", "weight_decay", "momentum", "eps", "nesterov") if k in group},
        },
        "probes": {p.name: p.as_dict() for p in ledger.probes},
        "precision": sorted({str(w.param.dtype).removeprefix("torch.") for w in layout.weights}),
        "memory": ledger.budget.as_dict(),
    }  # fmt: skip


def weight_length(ledger: Ledger) -> float:
    """Length of the measured weights at the start (LoRA: of the matrices under the adapters)."""
    total = sum(float(u.sum()) for u in ledger.lora_weight2.values())
    adapters = {id(w.param) for s in ledger.layout.sites if s.kind == "lora" for w in s.weights}
    for weight in ledger.layout.weights:
        if id(weight.param) not in adapters:
            total += float(weight.param.detach().float().norm().double() ** 2)
    return math.sqrt(total)
