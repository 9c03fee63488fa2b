"""One model at several checkpoints: the roles and three losses of each, the structure loaded once.  [torch]"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from intaglio.atlas import BASIC, Sampled
from intaglio.checkpoint import load_weights
from intaglio.errors import InputError, SubjectError
from intaglio.measure.heads.basic import measure_basic
from intaglio.measure.heads.causal import loss_of
from intaglio.measure.heads.causal_loss import RoleLoss, rows_of, whole_texts
from intaglio.measure.heads.repeats import Repeats, repeats
from intaglio.model.anatomy import Anatomy
from intaglio.model.proof import check_finite
from intaglio.model.tensors import open_checkpoint


@dataclass(eq=False)
class Series:
    """What was measured at each checkpoint.

    Attributes:
        steps: of the checkpoints, rising.
        sampled: the roles' scores at each, on the same texts.
        losses: rows of the table `losses`.
    """

    steps: list[int] = field(default_factory=list)
    sampled: list[list[Sampled]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)


def measure_series(
    anatomy: Anatomy, states: Sequence[tuple[int, Path | None]], *, texts: int, length: int, seed: int = 0,
    ordinary: Sequence[int] | None = None, plain: Sequence[Sequence[int]] = (),
    roles: Sequence[str] = BASIC, more: Callable[[Anatomy], list[Sampled]] = lambda anatomy: [],
    last: Callable[[], list[Sampled]] | None = None, progress: Callable[[int], None] = lambda done: None,
) -> Series:  # fmt: skip
    """The six basic roles, those of `more`, and the losses at every state; the model is left with the last state's weights.

    Args:
        anatomy: of a model of the states' shape.
        states: steps taken and folder of each; None is the model as it stands, which then must come first.
        texts: of repeated random tokens, the same for every state.
        length: tokens in a copy.
        ordinary: token ids to draw from.
        roles: those of the basic ones that are kept.
        more: scores of other roles of the model as it stands, on the same texts whenever it is asked.
        plain: token ids of ordinary texts, for the loss `text`; none leaves it out.
        last: the same scores of the last state from elsewhere, asked for once the model has its weights.
        progress: told how many states are done.

    Raises:
        InputError: a state has other tensors than the first.
    """
    check_alike([folder for _, folder in states if folder is not None])
    given = repeats(anatomy, seed=seed, texts=texts, length=length, ordinary=ordinary)
    tasks = losses_of(given)
    if plain:
        tasks["text"] = RoleLoss("", "text", whole_texts(rows_of(plain, given.ids_BT.device)))
    found = Series()
    for step, folder in states:
        if folder is not None:
            load_weights(folder, anatomy.model)
            _check_finite(anatomy, folder)
        found.steps.append(step)
        if last is not None and len(found.steps) == len(states):
            found.sampled.append(last())
        else:
            basic = measure_basic(anatomy, seed=seed, texts=texts, length=length, ordinary=ordinary)
            found.sampled.append([*(one for one in basic if one.role in roles), *more(anatomy)])
        found.losses += [{"step": step, "task": task, "loss_nats": loss_of(anatomy, one)} for task, one in tasks.items()]
        progress(len(found.steps))
    return found


def _check_finite(anatomy: Anatomy, folder: Path) -> None:
    try:
        check_finite(anatomy.model)
    except SubjectError as error:
        raise SubjectError(f"{folder}: {error}") from None


def check_alike(folders: Sequence[Path]) -> None:
    """Refuse states that are not of one shape, by their headers alone.

    Raises:
        InputError: the first tensor that differs.
    """
    first: dict[str, tuple[int, ...]] = {}
    for folder in folders:
        shapes = {name: tuple(entry.shape) for name, entry in open_checkpoint(folder).entries.items()}
        first = first or shapes
        for name in sorted(set(first) | set(shapes)):
            if first.get(name) != shapes.get(name):
                raise InputError(
                    f"the checkpoints are of different shapes: {name} in {folder}", got=_shape(shapes.get(name)),
                    expected=f"{_shape(first.get(name))} as in {folders[0]}",
                )  # fmt: skip


def losses_of(given: Repeats) -> dict[str, RoleLoss]:
    """The loss of the second copy, which can be looked up, and of the first, which cannot."""
    found = {}
    for task, start, stop in (("repeat", given.second + 1, given.second + given.length), ("first", given.first, given.second)):
        mask_BT = torch.zeros_like(given.ids_BT, dtype=torch.bool)
        mask_BT[:, max(1, start) : stop] = True
        found[task] = RoleLoss("induction", task, [(given.ids_BT, mask_BT)])
    return found


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
