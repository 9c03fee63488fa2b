"""The losses that the basic roles should carry, and what stands in for a head that is removed.  [torch]"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from intaglio.measure.heads.causal_loss import RoleLoss, rows_of, whole_texts
from intaglio.measure.heads.repeats import Repeats
from intaglio.model.anatomy import Anatomy

REPEAT = "second copy of random tokens"
TEXT = "ordinary text (no loss is known that this role alone should carry)"
FEEDS = ("previous_token", "induction")  # a previous-token head tells induction heads what followed (Olsson 2209.11895)
REST = ("fixed_offset", "duplicate_token", "first_token", "self")


def basic_losses(anatomy: Anatomy, given: Repeats, texts: Sequence[Sequence[int]]) -> list[RoleLoss]:
    """One loss for each basic role: the second copy where the role serves repetition, else ordinary text.

    Args:
        given: repeated random tokens.
        texts: token ids of ordinary texts.
    """
    mask_BT = torch.zeros_like(given.ids_BT, dtype=torch.bool)
    mask_BT[:, given.second + 1 :] = True  # the first token of the second copy cannot be known
    repeat, plain = [(given.ids_BT, mask_BT)], whole_texts(rows_of(texts, given.ids_BT.device))
    return [*(RoleLoss(role, REPEAT, repeat) for role in FEEDS), *(RoleLoss(role, TEXT, plain) for role in REST)]
