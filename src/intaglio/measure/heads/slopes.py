"""Where attention leans by construction: ALiBi takes off so much a token of distance, whatever was learnt.  [torch]

Source: Press et al. 2108.12409. Of the families whose parts are known, BLOOM has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intaglio.model.anatomy import Anatomy


def leaning(anatomy: Anatomy, length: int) -> Tensor | None:
    """(1, H, T, T) attention of heads whose queries and keys say nothing; None where no distance is preferred."""
    make = getattr(anatomy.base, "build_alibi_tensor", None)
    if make is None:
        return None
    mask_BT = torch.ones(1, length, device=anatomy.embed.weight.device)
    bias_HT = make(mask_BT, anatomy.n_heads, torch.float32).reshape(anatomy.n_heads, length)  # by key: the row's level is free
    later_TT = torch.ones(length, length, dtype=torch.bool, device=mask_BT.device).triu(1)
    return bias_HT[:, None].expand(-1, length, -1).masked_fill(later_TT, float("-inf")).softmax(-1)[None]
