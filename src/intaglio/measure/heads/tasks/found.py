"""What a task gives back, and the empty sheet it is written on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from intaglio.atlas import Sampled
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.model.anatomy import Anatomy


@dataclass(eq=False)
class Found:
    """Scores and losses of one task.

    Attributes:
        notes: what was left out and how often, or what else a reader should know, by name.
    """

    sampled: list[Sampled] = field(default_factory=list)
    losses: list[RoleLoss] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)


def blank(texts: int, anatomy: Anatomy) -> np.ndarray:
    """(N, L, H) of nan."""
    return np.full((texts, anatomy.n_layers, anatomy.n_heads), np.nan)
