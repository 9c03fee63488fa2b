"""One forward pass whose attention is seen layer by layer and let go again.  [torch]

Patterns are never kept: a watcher reduces each layer's to a few numbers per head before the next runs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from intaglio.model.anatomy import Anatomy
from intaglio.model.attention import Attention, eager, switched
from intaglio.model.modes import evaluating

See = Callable[[int, Tensor], None]


@torch.no_grad()
def see_attention(anatomy: Anatomy, ids_BT: Tensor, see: See, *, logits: bool = True) -> Tensor:
    """Run the model once in eval mode; `see(layer, pattern_BHQK)` is told each layer's attention as it happens.

    Args:
        ids_BT: token ids without padding (texts of one length; others go in calls of their own).
        logits: False leaves out the output matrix and gives the last hidden states, (B, T, D), instead.

    Returns:
        (B, T, V) logits, as the model gives them.
    """
    place = {id(block.attn): i for i, block in enumerate(anatomy.blocks)}

    def watch(seen: Attention) -> None:
        see(place[id(seen.module)], seen.pattern_BHTT)

    model: nn.Module = anatomy.model if logits else anatomy.base
    with evaluating(anatomy.model), eager(anatomy.model) if anatomy.bypasses else switched(anatomy.model, watch):
        out = model(input_ids=ids_BT, use_cache=False, output_attentions=anatomy.bypasses or None)
    for i, pattern_BHTT in enumerate(out.attentions if anatomy.bypasses else ()):
        see(i, pattern_BHTT)
    return out.logits if logits else out.last_hidden_state
