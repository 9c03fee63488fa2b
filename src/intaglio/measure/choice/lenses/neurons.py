"""MLP memory: the neurons whose votes weigh most here, what fires them in ordinary text, which tokens they promote.  [torch]

    write of neuron n = activation[n] * its row of the output matrix
    promoted[y] = scale * (gain * write) . (W_U[y] - mean of W_U)
    promoted[target] - promoted[against] = its vote
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from intaglio.data.vocab import token_bytes
from intaglio.measure.choice.decision import Decision, context_of
from intaglio.measure.choice.effects import measure_effects
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.runs import Change
from intaglio.measure.choice.votes import balance
from intaglio.model.anatomy import Anatomy, matrix_of
from intaglio.model.capture import capture

STRONGEST = 12
CONTEXTS, BEFORE, AFTER = 4, 10, 4  # places of the reference text shown for a neuron, tokens before and after each
PROMOTED = 6
PIECE = 128  # tokens of the reference text run at once


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """The strongest neurons over all layers: vote, effect, what fires them, what they promote.

    Raises:
        Skip: the MLPs are mixtures of experts, or there is no reference text.
    """
    if any(layer.neurons_BN is None for layer in found.ending.layers):
        raise Skip("experts")
    if len(given.reference_ids) < 2:
        raise Skip("no_reference")
    votes_LN = torch.stack([found.ledger.neuron_votes(found.ending, found.votes, i)[0] for i in range(found.anatomy.n_layers)])
    order = votes_LN.abs().flatten().argsort(descending=True)[:STRONGEST].tolist()
    strongest = [divmod(i, votes_LN.shape[1]) for i in order]
    fired = activations(found.anatomy, given.reference_ids, strongest)
    effects = _effects(found, strongest)
    rows = [
        {**_neuron(found, *at, float(votes_LN[at]), fired[i]), "effect_logits": effects[i]} for i, at in enumerate(strongest)
    ]
    contexts = [row for i, at in enumerate(strongest) for row in _contexts(found, *at, fired[i], given.reference_ids)]
    return Measured({**_sums(votes_LN), "reference": len(given.reference_ids)}, {"neurons": rows, "contexts": contexts})


def _sums(votes_LN: Tensor) -> dict[str, Any]:
    sizes = votes_LN.abs()
    share = float(sizes.max() / sizes.sum().clamp_min(1e-30))
    return {"neurons": votes_LN.numel(), **balance(votes_LN), "strongest_share": share}


def activations(anatomy: Anatomy, ids: list[int], neurons: list[tuple[int, int]]) -> Tensor:
    """(M, T) activations of M neurons at every token of a text; NaN at the first token of each piece it is run in."""
    size, device = min(PIECE, context_of(anatomy.model)), anatomy.unembed.weight.device
    pieces = []
    for start in range(0, len(ids), size):
        seen = capture(anatomy, torch.tensor([ids[start : start + size]], device=device))
        piece = torch.stack([seen.layers[layer].neurons_BTN[0, :, n].double() for layer, n in neurons])
        piece[:, 0] = torch.nan  # many neurons are extreme on a first token, whatever it is
        pieces.append(piece)
    return torch.cat(pieces, 1)


def write_of(found: Decision, layer: int, neuron: int) -> Tensor:
    """(D,) what one neuron adds to the residual here, the norm behind the MLP at the scale it has."""
    anatomy, block, seen = found.anatomy, found.anatomy.blocks[layer], found.ending.layers[layer]
    row_D = matrix_of(block.down)[:, neuron].detach().double()
    write_D = float(seen.neurons_BN[0, neuron]) * row_D * anatomy.residual_scale
    if block.mlp_post is None:
        return write_D
    kind = anatomy.kinds[block.mlp_post]
    scale = kind.scale_of(seen.mlp_raw_BD, seen.mlp_BD)[0].double()
    return scale * kind.gain_D.double() * (write_D - write_D.mean() if kind.centred else write_D)


def promoted(found: Decision, write_D: Tensor) -> Tensor:
    """(V,) what a write adds to every token's logit through the final norm as it is, the mean over the vocabulary taken off."""
    kind = found.anatomy.kinds[found.anatomy.norm]
    inside_D = write_D - write_D.mean() if kind.centred else write_D
    normed_D = found.votes.scale_B[0] * kind.gain_D.double() * inside_D
    logits_V = (found.anatomy.unembed.weight.detach() @ normed_D.to(found.anatomy.unembed.weight.dtype)).double()
    return logits_V - logits_V.mean()


def _neuron(found: Decision, layer: int, neuron: int, vote: float, fired_T: Tensor) -> dict[str, Any]:
    here = float(found.ending.layers[layer].neurons_BN[0, neuron])
    logits_V = promoted(found, write_of(found, layer, neuron))
    known_T = fired_T[~fired_T.isnan()] * (1.0 if here > 0 else -1.0)
    up, down = logits_V.topk(PROMOTED), (-logits_V).topk(PROMOTED)
    return {
        "address": f"L{layer}.mlp.N{neuron}", "vote_logits": vote, "activation": here, "mean": float(fired_T.nanmean()),
        "most": float(known_T.max()) * (1.0 if here > 0 else -1.0), "as_strong": float((known_T >= abs(here)).double().mean()),
        "promotes": [_token(found, i, v) for i, v in zip(up.indices.tolist(), up.values.tolist())],
        "demotes": [_token(found, i, -v) for i, v in zip(down.indices.tolist(), down.values.tolist())],
        "target_rank": int((logits_V > logits_V[found.target]).sum()),
    }  # fmt: skip


def _token(found: Decision, token: int, logits: float) -> dict[str, Any]:
    return {"text": found.written(token), "logits": logits}


def _contexts(found: Decision, layer: int, neuron: int, fired_T: Tensor, ids: list[int]) -> list[dict[str, Any]]:
    """Places of the reference text where the neuron fires most, on the side on which it fires here."""
    side = 1.0 if float(found.ending.layers[layer].neurons_BN[0, neuron]) > 0 else -1.0
    strength_T = (fired_T * side).nan_to_num(nan=-torch.inf)
    rows = []
    for at in strength_T.topk(min(CONTEXTS, len(ids))).indices.tolist():
        if float(strength_T[at]) > 0:
            rows.append({
                "address": f"L{layer}.mlp.N{neuron}", "position": at, "activation": float(fired_T[at]),
                "before": _text(found, ids[max(0, at - BEFORE) : at]), "token": found.written(ids[at]),
                "next": _text(found, ids[at + 1 : at + 2]), "after": _text(found, ids[at + 1 : at + 1 + AFTER]),
            })  # fmt: skip
    return rows


def _text(found: Decision, ids: list[int]) -> str:
    """Tokens as one text; letters cut at its ends are left out."""
    return b"".join(token_bytes(found.tokenizer, i) for i in ids).decode("utf-8", "ignore")


def _effects(found: Decision, neurons: list[tuple[int, int]]) -> list[float]:
    """How far the difference falls when each neuron is silenced at the deciding position and the model runs on."""
    anatomy, last = found.anatomy, len(found.ids) - 1
    changes = []
    for layer, neuron in neurons:
        block, seen = anatomy.blocks[layer], found.base.layers[layer]
        row_D = matrix_of(block.down)[:, neuron].detach()
        raw_D = seen.mlp_raw_BTD[0, last] - seen.neurons_BTN[0, last, neuron] * row_D
        value_TD = seen.mlp_BTD[0].clone()
        value_TD[last] = raw_D if block.mlp_post is None else block.mlp_post(raw_D[None, None])[0, 0]
        changes.append(Change(layer, None, value_TD, last))
    effects = measure_effects(anatomy, found.base, found.question, changes)
    by_layer = sorted(range(len(neurons)), key=lambda i: neurons[i][0])  # changes are run layer by layer, each in its order
    return [value for _, value in sorted(zip(by_layer, effects.effect_C.tolist()))]
