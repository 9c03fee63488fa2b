"""One forward pass whose attention is seen layer by layer and let go again.  [torch]

Patterns are never kept: a watcher reduces each layer's to a few numbers per head before the next runs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from intaglio.errors import InputError
from intaglio.model.anatomy import Anatomy
from intaglio.model.attention import Attention, eager, switched
from intaglio.model.modes import evaluating

See = Callable[[int, Tensor], None]


class TooLong(InputError):
    """A text has more tokens than the model can read."""


def check_length(anatomy: Anatomy, ids_BT: Tensor) -> None:
    """Refuse texts beyond the model's context, which learnt positions cannot place.

    Raises:
        TooLong: how long, and how long they may be.
    """
    context = getattr(anatomy.model.config.get_text_config(), "max_position_embeddings", None)
    if context and ids_BT.shape[1] > context:
        raise TooLong("the text is longer than the model's context", got=f"{ids_BT.shape[1]} tokens", expected=f"{context}")


@torch.no_grad()
def see_attention(
    anatomy: Anatomy, ids_BT: Tensor, see: See, *, logits: bool = True, visible: dict[int, Tensor] | None = None
) -> Tensor:
    """Run the model once in eval mode; `see(layer, pattern_BHQK)` is told each layer's attention as it happens.

    Args:
        ids_BT: token ids without padding (texts of one length; others go in calls of their own).
        logits: False leaves out the output matrix and gives the last hidden states, (B, T, D), instead.
        visible: filled with how many positions each query of a layer may see, (T,), before `see` is told of the layer.

    Returns:
        (B, T, V) logits, as the model gives them.

    Raises:
        TooLong: the texts are longer than the model's context.
    """
    check_length(anatomy, ids_BT)
    place = {id(block.attn): i for i, block in enumerate(anatomy.blocks)}

    def watch(seen: Attention) -> None:
        layer = place[id(seen.module)]
        if visible is not None:
            visible[layer] = _visible(seen.pattern_BHTT, seen.mask_BHTT)
        see(layer, seen.pattern_BHTT)

    model: nn.Module = anatomy.model if logits else anatomy.base
    with evaluating(anatomy.model), eager(anatomy.model) if anatomy.bypasses else switched(anatomy.model, watch):
        out = model(input_ids=ids_BT, use_cache=False, output_attentions=anatomy.bypasses or None)
    for i, pattern_BHTT in enumerate(out.attentions if anatomy.bypasses else ()):
        if visible is not None:
            visible[i] = _visible(pattern_BHTT, None)
        see(i, pattern_BHTT)
    return out.logits if logits else out.last_hidden_state


def _visible(pattern_BHTT: Tensor, mask_BHTT: Tensor | None) -> Tensor:
    """(T,) positions that each query may see, by the mask; without one, those to which any head attends at all."""
    if mask_BHTT is None:
        return (pattern_BHTT.amax((0, 1)) > 0).sum(-1)
    allowed = mask_BHTT if mask_BHTT.dtype == torch.bool else mask_BHTT > torch.finfo(mask_BHTT.dtype).min / 2
    return allowed[0, 0, :, : pattern_BHTT.shape[-1]].sum(-1)
