"""Score examples at one state of the model, without training.  [torch]

One forward and one backward through the activations alone (no weight gradient is made)
give surprise and push of every example, its agreement with the rest, and the credit that
learning it would earn at each probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from intaglio.errors import TrainingError
from intaglio.measure import rows as make
from intaglio.measure.books import Directions, project
from intaglio.measure.collect import Collector
from intaglio.measure.probes import Probe, as_probe, probe_gradient, undisturbed
from intaglio.model.layout import build_layout, causal_lm
from intaglio.model.tap import Tap


@dataclass(frozen=True, slots=True)
class Scored:
    """What a batch of examples showed; arrays run over examples."""

    ids: list[str]
    loss_nats: np.ndarray
    push: np.ndarray
    push_kind: list[str]  # as in `visits`: where the loss's weight is unknown, push is of the loss as it was used
    sketch_NS: np.ndarray  # of each example's own gradient
    credits: dict[str, tuple[np.ndarray, np.ndarray]]  # probe -> credit per unit length, cosine


class Scorer:
    """Scores batches; nothing of the model is changed, and `.grad` is not touched.

    Args:
        model: a causal language model whose parameters require gradients.
        probes: whose loss each example would raise or lower.
        seed: of the sketches.
        precision: float32, or bfloat16 (the forward runs under autocast; probes do not, as in training).
    """

    def __init__(
        self, model: nn.Module, probes: Sequence[Probe] = (), *, seed: int = 0, precision: str = "float32"
    ) -> None:
        self.model, self.precision = causal_lm(model), precision
        self.device = next(self.model.parameters()).device
        probes = [as_probe(p.name, p, self.device) for p in probes]
        self.layout = build_layout(model)
        self.collector = Collector(self.layout, seed=seed)
        self.collector.keep = bool(probes)
        self.directions = {p.name: self._direction(p) for p in probes}

    def _direction(self, probe: Probe) -> tuple[Directions, float]:
        weights = self.layout.weights
        with undisturbed(self.model):
            gradient = probe_gradient(self.model, probe, [w.param for w in weights])
        length = float(sum(g.double().square().sum() for g in gradient) ** 0.5)
        return Directions(plain={id(w.param): (g, 1.0) for w, g in zip(weights, gradient)}), length

    def score(self, batch: dict[str, torch.Tensor]) -> Scored:
        """Score one batch (input_ids, attention_mask, labels), on any device.

        Raises:
            TrainingError: the loss is not a number.
        """
        tap = Tap(
            self.model, self.layout, on_write=self.collector.write, on_logits=self.collector.logits,
            on_pass=self.collector.begin, on_fault=_raise,
        )  # fmt: skip
        batch = {k: v.to(self.device) for k, v in batch.items()}
        found: list[torch.Tensor] = []
        entry = self.model.get_input_embeddings().register_forward_hook(_entry(found))
        tap.attach()
        try:
            with undisturbed(self.model), torch.enable_grad():
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
                    loss = self.model(**batch, use_cache=False).loss
                if not loss.isfinite():
                    raise TrainingError(f"the loss is {float(loss.detach())}")
                torch.autograd.grad(loss, found)
        finally:
            tap.detach()
            entry.remove()
        (record,) = self.collector.records.values()
        scored = self._scored(record)
        self.collector.records.clear()
        self.collector.clear_caches()
        return scored

    def _scored(self, record: Any) -> Scored:
        omega, push_kind = make.loss_weights(record)
        weight = np.abs(np.where(np.isnan(omega), 1.0, omega))
        push = np.sqrt(make.squared_push(record)) / weight
        _, loss = make._mean_losses(record)
        ids = [e[0] for e in record.caught.examples(record.target_BT >= 0)]
        sketch = record.sketch_NS.cpu().numpy() / weight[:, None]
        credits = {name: self._credit(record, *d, weight, push) for name, d in self.directions.items()}
        return Scored(ids, loss, push, push_kind, sketch, credits)

    def _credit(
        self, record: Any, directions: Directions, length: float, weight: np.ndarray, push: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        ((parts, _),) = project([record], directions)
        with np.errstate(invalid="ignore", divide="ignore"):
            per_length = parts.sum(1).cpu().numpy() / weight / push
        return per_length, per_length / length


def alignments(sketch_NS: np.ndarray, total_S: np.ndarray | None = None) -> np.ndarray:
    """Cosine of each example's sketch with the sum of the others'.

    Args:
        total_S: sum of all sketches; by default of those given.
    """
    sketch = sketch_NS.astype(np.float64)
    total = sketch.sum(0) if total_S is None else total_S
    others = total[None] - sketch
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sketch * others).sum(1) / np.linalg.norm(sketch, axis=1) / np.linalg.norm(others, axis=1)


def _entry(found: list[torch.Tensor]):
    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        if not output.requires_grad:
            output.requires_grad_(True)
        found.append(output)
        return output

    return hook


def _raise(error: Exception) -> None:
    raise error
