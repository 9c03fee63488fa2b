"""What a training's settings may be: one bound for each, for recipes and for command lines.  (pure)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from intaglio.errors import RecipeError

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class Bound:
    """What a setting must be, and what is said where it is not; `{name}` stands for what its user calls it."""

    holds: Callable[[Any], bool]  # false of NaN
    what: str
    expected: str


_COUNT = Bound(lambda n: n >= 1, "{name} is too small", "1 or more")

BOUNDS: dict[str, Bound] = {
    "steps": _COUNT,
    "epochs": Bound(lambda n: 0 < n < inf, "{name} must be positive", "such as 3"),
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "lr": Bound(lambda x: 0 < x < inf, "the learning rate must be positive", "such as 2e-5"),
    "schedule": Bound(SCHEDULES.__contains__, "unknown schedule", ", ".join(SCHEDULES)),
    "warmup": Bound(lambda x: 0 <= x <= 1, "{name} is a share of the steps", "0 to 1"),
    "optimizer": Bound(OPTIMIZERS.__contains__, "unknown optimizer", ", ".join(OPTIMIZERS)),
    "momentum": Bound(lambda x: 0 <= x < 1, "{name} is a share", "0 or more, below 1"),
    "weight_decay": Bound(lambda x: 0 <= x < inf, "the weight decay must not be negative", "0 or more"),
    "clip": Bound(lambda x: x > 0, "the longest gradient must be positive", "0 for no limit, or more"),
    "lora_rank": Bound(lambda n: n >= 1, "the rank, {name}, is too small", "1 or more"),
    "seed": Bound(lambda n: 0 <= n < 2**63, "the seed is out of range", "0 or more, below 2 to the 63rd"),
}


def check_bounds(settings: Mapping[str, Any], *, named: Callable[[str], str] = str) -> None:
    """Refuse settings that cannot be carried out; None passes: it stands for a default, or for leaving it be.

    Args:
        settings: of `BOUNDS`, by name.
        named: what the user calls a setting.

    Raises:
        RecipeError: what, got, expected.
    """
    for name, value in settings.items():
        bound = BOUNDS[name]
        if value is not None and not bound.holds(value):
            raise RecipeError(bound.what.format(name=named(name)), got=value, expected=bound.expected)
