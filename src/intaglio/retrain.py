"""Training again without books, with looks at the heads on the way: another seed, or the same without some texts.  [torch]"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intaglio.analyse.heads.lottery import Birth, births_of, first_below
from intaglio.measure.heads.basic import measure_basic
from intaglio.measure.heads.causal import loss_of
from intaglio.measure.heads.repeats import repeats
from intaglio.measure.heads.series import losses_of
from intaglio.model.anatomy import anatomy_of
from intaglio.model.subject import Subject
from intaglio.replaying import open_replay
from intaglio.store.run import open_run
from intaglio.train import Recipe, make_optimizer, prepare_model, train

EVERY = 10  # steps between two looks
TEXTS = 8
LENGTH = 24  # tokens in a copy
ROLE = "induction"


@dataclass(frozen=True, eq=False)
class Watched:
    """What was seen on the way.

    Attributes:
        steps: of the looks, 0 first.
        losses: mean loss of the second copy of random tokens at each, nats per token.
        excess: induction score less its null, look by layer by head.
        train_losses: loss of every step, nats per token.
    """

    name: str
    steps: list[int]
    losses: list[float]
    excess: np.ndarray
    train_losses: list[float]

    def summary(self, below: float) -> dict[str, Any]:
        """The first birth, all births, and the first look at which the loss is under `below` for good."""
        births = births_of(self.steps, self.excess)
        first = births[0] if births else None
        strongest = np.unravel_index(int(self.excess[-1].argmax()), self.excess[-1].shape)
        return {
            "name": self.name, "first_head": first and first.address, "first_step": first and first.step,
            "births": {b.address: b.step for b in births}, "strongest": Birth.named(*map(int, strongest)),
            "loss_step": first_below(self.steps, self.losses, below), "last_loss_nats": self.losses[-1],
        }  # fmt: skip


def watch(
    name: str, subject: Subject, recipe: Recipe, data: Sequence[Any], *, pad_id: int,
    order: Callable[[int], list[int]] | None = None, every: int = EVERY, seed: int = 0,
) -> Watched:  # fmt: skip
    """Train a subject from where it stands, looking every so many steps.

    Args:
        order: places of `data` in each step's batch, where it is not the recipe's.
        every: steps between two looks.
        seed: of the texts that are looked at.
    """
    model = prepare_model(subject.model, recipe)
    anatomy = anatomy_of(model)
    given = repeats(anatomy, seed=seed, texts=TEXTS, length=LENGTH)
    steps, losses, excess, train_losses = [], [], [], []

    def look(step: int) -> None:
        one = next(s for s in measure_basic(anatomy, seed=seed, texts=TEXTS, length=LENGTH) if s.role == ROLE)
        steps.append(step)
        excess.append((one.values_NLH - one.null_NLH).mean(0))
        losses.append(loss_of(anatomy, losses_of(given)["repeat"]))

    def after(step: int, loss_nats: float) -> None:
        train_losses.append(loss_nats)
        if step % every == 0 or step == recipe.steps:
            look(step)

    look(0)
    train(model, make_optimizer(model, recipe), data, recipe, pad_id=pad_id, order=order, after_step=after)
    return Watched(name, steps, losses, np.stack(excess), train_losses)


def watch_without(folder: str, name: str, dropped: Sequence[str], seed: int) -> Watched:
    """A run again from its start, without some of its examples.

    In every batch the place of a dropped example is taken by another of its group, drawn once for all: the size of the
    batches, their order and their mixture of groups stay.

    Args:
        folder: of the run.
        dropped: ids of examples.
        seed: of who takes the places.
    """
    torch.set_num_threads(1)
    run = open_run(folder)
    found = open_replay(run, first=0, last=int(run.manifest["recipe"]["steps"]))
    instead = stand_ins([item.example for item in found.data], [item.group or "" for item in found.data], dropped, seed)
    return watch(
        name, found.subject, found.recipe, found.data, pad_id=found.pad_id,
        order=lambda step: [instead.get(i, i) for i in found.order[step]],
    )  # fmt: skip


def stand_ins(examples: Sequence[str], groups: Sequence[str], dropped: Sequence[str], seed: int) -> Mapping[int, int]:
    """By place of a dropped example: the place of one of its group that stays (of any group, where none of its own does)."""
    gone, rng = set(dropped), np.random.default_rng(seed)
    stay = [i for i, e in enumerate(examples) if e not in gone]
    assert stay, "some example must stay"
    by_group: dict[str, list[int]] = {}
    for i in stay:
        by_group.setdefault(groups[i], []).append(i)
    return {i: int(rng.choice(by_group.get(groups[i], stay))) for i, e in enumerate(examples) if e in gone}


def drawn_like(dropped: Sequence[str], groups: Mapping[str, str], seed: int) -> list[str]:
    """As many examples of each group as `dropped` has, drawn at random from all of the group.

    Args:
        groups: example to its group.
    """
    rng, found = np.random.default_rng([seed, 7]), []
    for group in sorted({groups[e] for e in dropped}):
        mine = sorted(e for e, g in groups.items() if g == group)
        n = sum(groups[e] == group for e in dropped)
        found += [mine[i] for i in rng.choice(len(mine), n, replace=False)]
    return found


def side_by_side(
    jobs: Sequence[tuple[Callable[..., Watched], tuple[Any, ...]]], workers: int, tell: Callable[[int], None]
) -> list[Watched]:
    """Several trainings, as many at a time as there are workers; one after the other with one."""
    if workers <= 1 or len(jobs) == 1:
        found = []
        for function, arguments in jobs:
            found.append(function(*arguments))
            tell(len(found))
        return found
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in jobs]
        for done, _ in enumerate(as_completed(futures), 1):
            tell(done)
        return [future.result() for future in futures]
