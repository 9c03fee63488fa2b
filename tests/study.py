"""Train a tiny model under a Ledger, beside the slow oracle that recomputes every account."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.measure.ledger import Ledger
from intaglio.store.run import Run, open_run
from tiny import Micro
from truth.gradients import example_gradient
from truth.optimizers import Account, Twin

Weights = Callable[[list[Micro]], list[float]]


@dataclass
class Truth:
    """One step as the oracle sees it."""

    update_l2: float
    shift: list[float]
    carry: float
    decay: float
    push: list[float]
    churn: list[float]
    gradients: list[dict[str, Tensor]]  # of each example's own summed loss
    accounts: dict[str, Account]
    update: dict[str, Tensor]


@dataclass
class Study:
    """A finished run, its rows by table, and the oracle's steps."""

    run: Run
    truths: list[Truth] = field(default_factory=list)

    def rows(self, table: str, **where: object) -> list[dict]:
        found = self.run.table(table).to_pylist()
        return [r for r in found if all(r[k] == v for k, v in where.items())]

    def column(self, table: str, name: str, **where: object) -> np.ndarray:
        return np.array([r[name] for r in self.rows(table, **where)], dtype=float)


def mean_weights(micros: list[Micro]) -> list[float]:
    """What `model(labels=...).loss / len(micros)` gives every token: one over the micro-batch's targets."""
    return [1.0 / (sum(e.targets for e in m.examples) * len(micros)) for m in micros for _ in m.examples]


def model_loss(model: nn.Module, one: Micro, n_micros: int) -> Tensor:
    return model(**one.inputs, use_cache=False).loss / n_micros


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Sequence[list[Micro]],
    out: Path,
    *,
    loss: Callable = model_loss,
    weights: Weights = mean_weights,
    clip: float | None = None,
    twin: Twin | None = None,
    after: Callable | None = None,
    oracle_model: nn.Module | None = None,
    **options: object,
) -> Study:
    """Run `steps`, each a list of micro-batches, and collect the oracle's accounts when `twin` is given."""
    study_truths: list[Truth] = []
    shadow = copy.deepcopy(oracle_model or model).eval() if twin else None
    if shadow is not None and hasattr(shadow, "gradient_checkpointing_disable"):
        shadow.gradient_checkpointing_disable()
    with Ledger(model, optimizer, out=out, quiet=True, strict=True, **options):
        for micros in steps:
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            for one in micros:
                loss(model, one, len(micros)).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip) if clip else None
            factor = float(min(1.0, clip / (norm + 1e-6))) if clip else 1.0
            optimizer.step()
            optimizer.zero_grad()
            if twin:
                _load(shadow, before)
                study_truths.append(_truth(model, shadow, before, micros, weights(micros), factor, twin))
            if after:
                after()
    return Study(open_run(out), study_truths)


@torch.no_grad()
def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.copy_(weights[name])


def _truth(
    model: nn.Module, shadow: nn.Module, before: dict, micros: list[Micro], weights: list[float], factor: float,
    twin: Twin,
) -> Truth:  # fmt: skip
    examples = [e for m in micros for e in m.examples]
    own = [example_gradient(shadow, e) for e in examples]
    entered = [{n: g * w * factor for n, g in one.items()} for one, w in zip(own, weights)]
    accounts = twin.step(before, entered)
    update = {n: p.detach().double() - before[n].double() for n, p in model.named_parameters() if n in accounts}
    size = sum(float(u.square().sum()) for u in update.values()) ** 0.5

    def along(pieces: dict[str, Tensor]) -> float:
        return sum(float((pieces[n] * update[n]).sum()) for n in update) / size

    parts = [{n: a.parts[i] for n, a in accounts.items()} for i in range(len(examples))]
    shift = [along(p) for p in parts]
    squared = [sum(float(t.square().sum()) for t in p.values()) for p in parts]
    return Truth(
        update_l2=size,
        shift=shift,
        carry=along({n: a.carry for n, a in accounts.items()}),
        decay=along({n: a.decay for n, a in accounts.items()}),
        push=[sum(float(g.double().square().sum()) for g in one.values()) ** 0.5 for one in own],
        churn=[max(c - s * s, 0.0) ** 0.5 for c, s in zip(squared, shift)],
        gradients=own,
        accounts=accounts,
        update=update,
    )
