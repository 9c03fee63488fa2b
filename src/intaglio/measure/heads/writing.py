"""One forward pass whose heads are seen with what they read, layer by layer, and let go again.  [torch]

Beside the attention a watcher gets the values, so that it can say what each head writes and from where. Writes are
asked for along few directions (tokens), never as full vectors.

Legend: B texts, L layers, H heads, d head size, D width, Q and K positions, N tokens asked about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from intaglio.measure.heads.seeing import check_length
from intaglio.model.anatomy import Anatomy, matrix_of
from intaglio.model.attention import Attention, switched
from intaglio.model.capture import capture
from intaglio.model.modes import evaluating

See = Callable[[int, Tensor, Tensor, Tensor], None]


@torch.no_grad()
def see_writing(anatomy: Anatomy, ids_BT: Tensor, see: See) -> Tensor:
    """Run the model once; `see(layer, pattern_BHQK, v_BHKd, entering_BTD)` is told each layer as it happens.

    Args:
        ids_BT: token ids without padding.
        see: `entering_BTD` is the residual that enters the layer.

    Returns:
        (B, T, D) the normed residual, from which `proof.raw_logits` makes logits.

    Raises:
        TooLong: the texts are longer than the model's context.
    """
    check_length(anatomy, ids_BT)
    if anatomy.bypasses:
        whole = capture(anatomy, ids_BT)
        for i, layer in enumerate(whole.layers):
            see(i, layer.pattern_BHTT, layer.v_BHTd, layer.resid_BTD)
        return whole.normed_BTD
    place = {id(block.attn): i for i, block in enumerate(anatomy.blocks)}
    entering: dict[int, Tensor] = {}

    def watch(seen: Attention) -> None:
        layer = place[id(seen.module)]
        see(layer, seen.pattern_BHTT, seen.v_BHTd, entering.pop(layer))

    with evaluating(anatomy.model), _entering(anatomy, entering), switched(anatomy.model, watch):
        return anatomy.base(input_ids=ids_BT, use_cache=False).last_hidden_state


@contextlib.contextmanager
def _entering(anatomy: Anatomy, into: dict[int, Tensor]) -> Iterator[None]:
    def hook(i: int) -> Callable:
        def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
            into[i] = args[0] if args else kwargs["hidden_states"]
        return keep

    handles = [b.layer.register_forward_pre_hook(hook(i), with_kwargs=True) for i, b in enumerate(anatomy.blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def output_DHd(anatomy: Anatomy, layer: int) -> Tensor:
    """The output matrix by head, with the gain of the norm behind it, if there is one.

    That norm's scale is left out: it is positive and the same for all heads of a position, so no rank or sign knows it.
    """
    block = anatomy.blocks[layer]
    out = matrix_of(block.out).detach()
    if block.attn_post is not None:
        kind = anatomy.kinds[block.attn_post]
        out = kind.gain_D[:, None] * (out - out.mean(0) if kind.centred else out)
    return out.reshape(out.shape[0], anatomy.n_heads, -1)


def directions_ND(anatomy: Anatomy, ids_N: Tensor) -> Tensor:
    """For each token the direction of the last residual that raises its logit; the final norm's scale left out."""
    weight = anatomy.unembed.weight.detach()[ids_N]
    return anatomy.kinds[anatomy.norm].pull_back(weight)


def raised_HdN(out_DHd: Tensor, ids_ND: Tensor) -> Tensor:
    """What one unit of each head's reading does to each token's logit."""
    return torch.einsum("dhe,nd->hen", out_DHd, ids_ND)


def write_length_BHK(out_DHd: Tensor, v_BHKd: Tensor) -> Tensor:
    """Length of what each head would write from each source at full attention.

    Source: Kobayashi et al. 2004.10102 (attention weighted by the norm of what is moved).
    """
    gram_Hdd = torch.einsum("ahd,ahe->hde", out_DHd, out_DHd)
    return torch.einsum("bhkd,hde,bhke->bhk", v_BHKd, gram_Hdd, v_BHKd).clamp_min(0).sqrt()
