"""The loss that a role should carry: texts, and the tokens of them that count.  [torch]"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RoleLoss:
    """What a model should lose when the heads of a role are taken away.

    Attributes:
        role: one of `atlas.ROLES`.
        task: what is predicted, in words for the page.
        batches: ids_BT (long) with mask_BT (bool), true at the tokens whose loss counts; each is predicted from the
            position before it, so position 0 never counts. All texts of a batch are equally long.
    """

    role: str
    task: str
    batches: list[tuple[Tensor, Tensor]]


def whole_texts(batches: Iterable[Tensor], *, begin: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Batches of ids_BT in which every token from `begin` on counts."""
    found = []
    for ids_BT in batches:
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        mask_BT[:, :begin] = False
        found.append((ids_BT, mask_BT))
    return found


def rows_of(texts: Iterable[Iterable[int]], device: torch.device) -> list[Tensor]:
    """Each text as a batch of its own, (1, T): they may differ in length."""
    return [torch.tensor([list(ids)], device=device) for ids in texts]
