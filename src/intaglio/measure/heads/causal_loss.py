"""The loss that a role should carry: texts, and the tokens of them that count.  [torch]"""

from __future__ import annotations

from dataclasses import dataclass

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
