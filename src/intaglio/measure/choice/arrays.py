"""Every array of the unchanged run by name: Intaglio's addresses, or TransformerLens's hook names as an alias.  [torch]

    L3.attn.pattern    blocks.3.attn.hook_pattern    (H, T, T)
    L3.attn.q  .k  .v  blocks.3.attn.hook_q ...      (T, H, d); k and v one per key head
    L3.attn.z          blocks.3.attn.hook_z          (T, H, d)
    L3.attn            blocks.3.hook_attn_out        (T, D), as it was added to the residual
    L3.mlp             blocks.3.hook_mlp_out         (T, D)
    L3.mlp.neurons     blocks.3.mlp.hook_post        (T, N), the input of the last matrix
    L3.resid           blocks.3.hook_resid_pre       (T, D), before the layer
    embed, embed.pos   hook_embed, hook_pos_embed    (T, D)
    resid              blocks.LAST.hook_resid_post   (T, D), before the final norm
    norm               ln_final.hook_normalized      (T, D), the final norm's whole output (its gain included)
    logits             -                             (T, V)
"""

from __future__ import annotations

import re

from torch import Tensor

from intaglio.errors import InputError
from intaglio.measure.choice.decision import Decision

_WHOLE = {"hook_embed": "embed", "hook_pos_embed": "embed.pos", "ln_final.hook_normalized": "norm"}
_IN_LAYER = {
    "attn.hook_pattern": "attn.pattern", "attn.hook_q": "attn.q", "attn.hook_k": "attn.k", "attn.hook_v": "attn.v",
    "attn.hook_z": "attn.z", "hook_attn_out": "attn", "hook_mlp_out": "mlp", "mlp.hook_post": "mlp.neurons",
    "hook_resid_pre": "resid", "hook_resid_post": "resid_after",
}  # fmt: skip
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\Z")
_LAYER = re.compile(r"L(\d+)\.(.+)\Z")


def array(found: Decision, name: str) -> Tensor:
    """One array of the run, without the batch dimension.

    Raises:
        InputError: no array of that name, or one that this family does not have.
    """
    value = _whole(found, _WHOLE.get(name, name))
    if value is None and (place := _BLOCK.match(name) or _LAYER.match(name)):
        layer, part = int(place[1]), place[2]
        if layer < found.anatomy.n_layers:
            value = _in_layer(found, layer, _IN_LAYER.get(part, part))
    if value is None:
        raise InputError("no such array of this run", got=name, expected="such as L3.attn.pattern or blocks.3.attn.hook_pattern")
    return value[0]


def _whole(found: Decision, name: str) -> Tensor | None:
    base = found.base
    return {
        "embed": base.tokens_BTD * found.anatomy.embed_scale, "embed.pos": base.positions_BTD, "resid": base.final_BTD,
        "norm": base.normed_BTD, "logits": base.logits_BTV,
    }.get(name)  # fmt: skip


def _in_layer(found: Decision, index: int, part: str) -> Tensor | None:
    layer, met = found.base.layers[index], found.base.layers[index].attention
    scale = found.anatomy.residual_scale
    last = index + 1 == found.anatomy.n_layers
    return {
        "attn.pattern": layer.pattern_BHTT, "attn.z": layer.z_BTHd, "attn": layer.attn_BTD * scale, "mlp": layer.mlp_BTD * scale,
        "mlp.neurons": layer.neurons_BTN, "resid": layer.resid_BTD,
        "resid_after": found.base.final_BTD if last else found.base.layers[index + 1].resid_BTD,
        "attn.q": None if met is None else met.q_BHTd.transpose(1, 2),
        "attn.k": None if met is None else met.k_BKTd.transpose(1, 2),
        "attn.v": layer.v_BHTd.transpose(1, 2) if met is None else met.v_BKTd.transpose(1, 2),
    }.get(part)  # fmt: skip
