"""The training loop: which rows a step takes and at which learning rate, and recipes that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from intaglio.bounds import BOUNDS, Bound
from intaglio.commands import train as command
from intaglio.commands.options import check_options
from intaglio.errors import RecipeError
from intaglio.train import Recipe, batch_rows, check_recipe, learning_rate
from training import rows, train, weights

pytestmark = pytest.mark.usefixtures("no_page")

RECIPE = Recipe(
    steps=20, batch_size=2, accumulate=1, lr=1.0, schedule="linear", warmup_steps=4, optimizer="adamw",
    weight_decay=0.0, momentum=0.9, clip=1.0, seed=0, lora_rank=None, layers=None, precision="float32",
)  # fmt: skip


def test_the_learning_rate_rises_then_falls_as_its_schedule_says():
    linear = [learning_rate(RECIPE, s) for s in range(20)]
    assert linear[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert linear[19] == pytest.approx(1 / 16) and all(a >= b for a, b in pairwise(linear[3:]))
    constant = [learning_rate(replace(RECIPE, schedule="constant"), s) for s in range(20)]
    assert constant[4:] == [1.0] * 16
    cosine = [learning_rate(replace(RECIPE, schedule="cosine"), s) for s in range(20)]
    assert cosine[12] == pytest.approx(0.5) and cosine[8] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    for schedule in ("constant", "linear", "cosine"):
        assert all(0 < learning_rate(replace(RECIPE, schedule=schedule), s) <= 1 for s in range(20)), schedule
    assert learning_rate(replace(RECIPE, warmup_steps=0), 0) == 1.0
    assert learning_rate(replace(RECIPE, warmup_steps=20), 19) == 1.0


def test_the_order_depends_on_seed_and_epoch_alone():
    n = 7

    def stream(recipe):
        return [r for s in range(14) for r in batch_rows(n, recipe, s)]

    one = stream(RECIPE)
    epochs = [tuple(one[i : i + n]) for i in range(0, len(one) - n + 1, n)]
    assert all(sorted(e) == list(range(n)) for e in epochs) and len(set(epochs)) > 1
    changed = replace(RECIPE, lr=0.1, optimizer="sgd", steps=99, schedule="cosine")
    assert stream(changed) == one
    by_four = [r for s in range(7) for r in batch_rows(n, replace(RECIPE, batch_size=4), s)]
    by_accumulation = [r for s in range(7) for r in batch_rows(n, replace(RECIPE, accumulate=2), s)]
    assert by_four == one == by_accumulation
    assert stream(replace(RECIPE, seed=1)) != one
    assert batch_rows(3, replace(RECIPE, batch_size=8), 0)[:3] != [] and len(batch_rows(3, replace(RECIPE, batch_size=8), 0)) == 8


def test_accumulation_changes_nothing_but_rounding(tiny, data, tmp_path):
    one = train(tiny, data, tmp_path / "one", batch_size=4, optimizer="sgd")
    two = train(tiny, data, tmp_path / "two", batch_size=2, accumulate=2, optimizer="sgd")
    for a, b in zip(rows(one, "visits"), rows(two, "visits")):
        assert a["example"] == b["example"] and a["push"] == pytest.approx(b["push"], rel=1e-4)
        assert a["shift"] == pytest.approx(b["shift"], rel=1e-3, abs=1e-7)
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(two)[name], atol=1e-6), name


@pytest.mark.parametrize("change", [
    dict(steps=0), dict(batch_size=0), dict(accumulate=-1), dict(lr=0.0), dict(lr=math.nan), dict(lr=math.inf),
    dict(momentum=1.0), dict(momentum=-0.1), dict(weight_decay=-1.0), dict(clip=-1.0), dict(clip=math.nan),
    dict(lora_rank=0), dict(seed=-1), dict(optimizer="lion"), dict(schedule="step"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_carried_out_is_refused(change):
    check_recipe(RECIPE)
    with pytest.raises(RecipeError):
        check_recipe(replace(RECIPE, **change))


BAD = {"steps": 0, "epochs": 0, "batch_size": 0, "accumulate": -1, "lr": math.nan, "schedule": "step", "warmup": 2,
       "optimizer": "lion", "momentum": 1, "weight_decay": -1, "clip": math.nan, "lora_rank": 0, "seed": 2**63}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_the_same_for_a_recipe_and_for_the_command_line(name, data, tmp_path, monkeypatch):
    """Refused by both by one bound: where that is changed, both say so, each by the name that its user knows."""
    flag, recipe = {"lora_rank": "--lora"}.get(name, f"--{name.replace('_', '-')}"), name in RECIPE.as_dict()

    def said(change: float | str) -> list[str]:
        found = []
        with pytest.raises(RecipeError) as error:
            command.train("no-such-model", str(data), out=tmp_path / "run", **{name.removesuffix("_rank"): change})
        found.append(str(error.value))
        if recipe:
            with pytest.raises(RecipeError) as error:
                check_recipe(replace(RECIPE, **{name: change}))
            found.append(str(error.value))
        return found

    for line, known_as in zip(said(BAD[name]), (flag, name)):
        bound = BOUNDS[name]
        assert line.startswith(bound.what.format(name=known_as)) and line.endswith(f"expected {bound.expected}")
    check_options(**{name: getattr(RECIPE, name, 1)})
    monkeypatch.setitem(BOUNDS, name, Bound(lambda value: value == "never", "{name} is never right", "never"))
    assert said(0.5) == [f"{known_as} is never right; got 0.5; expected never" for known_as in (flag, name)][: 1 + recipe]
