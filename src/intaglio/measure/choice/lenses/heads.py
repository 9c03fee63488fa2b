"""Self-attention at the decision: where each head looks, what it votes, and what made it look there.  [torch]

    vote of a head = sum over source tokens of attention[source] * value[source] W_O . direction
    score(source) - score(rival) = ln of the ratio of their attention; an exact sum over earlier parts, by query or by key side
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from intaglio.address import Address
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.upstream import Side, trace_upstream
from intaglio.measure.choice.votes import balance

STRONGEST = 12  # heads described one by one
MATCHED = 6  # of these, how many are traced upstream
NAMED = 3  # tokens or parts named for each


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Every head's attention and vote at the deciding position; for the strongest, what query and key matched on.

    Raises:
        Skip: there is one token only, so there is nothing to choose between.
    """
    if len(found.ids) < 2:
        raise Skip("one_token")
    votes_LHT = found.ledger.source_votes(found.base, found.votes)
    looks_LHT = torch.stack([layer.pattern_BHTT[0, :, -1].double() for layer in found.base.layers])
    votes_LH = votes_LHT.sum(-1)
    order = votes_LH.abs().flatten().argsort(descending=True)[:STRONGEST].tolist()
    strongest = [divmod(i, found.anatomy.n_heads) for i in order]
    effects = {} if given.effects is None else dict(zip(given.effects.addresses, given.effects.effect_C.tolist()))
    heads = [_head(found, *at, votes_LHT[at], looks_LHT[at], effects) for at in strongest]
    matched = [] if found.anatomy.bypasses else [
        match(found, *at, votes_LHT[at], looks_LHT[at]) for at in strongest[:MATCHED]
    ]
    numbers = {"heads": votes_LH.numel(), **balance(votes_LH), **_sink(votes_LHT, looks_LHT)}
    numbers["traced"] = not found.anatomy.bypasses
    numbers["nowhere_mean"] = float((1 - looks_LHT.sum(-1)).mean()) if _has_sinks(found) else None
    numbers["copying"] = sum(found.ids[h["read"][0]["position"]] == found.target for h in heads if h["vote_logits"] > 0)
    numbers["voting_for"] = sum(h["vote_logits"] > 0 for h in heads)
    return Measured(numbers, {"heads": heads, "matched": matched})


def _sink(votes_LHT: Tensor, looks_LHT: Tensor) -> dict[str, Any]:
    """How much goes to the first token, of what is looked at and of what is read."""
    top_LH, said_LH = looks_LHT.argmax(-1), votes_LHT.abs().argmax(-1)
    return {
        "first_most": int((top_LH == 0).sum()), "first_mean": float(looks_LHT[..., 0].mean()), "even": 1 / looks_LHT.shape[-1],
        "first_vote_share": float(votes_LHT[..., 0].abs().sum() / votes_LHT.abs().sum().clamp_min(1e-30)),
        "elsewhere": int((top_LH != said_LH).sum()),
    }  # fmt: skip


def _head(
    found: Decision, layer: int, head: int, votes_T: Tensor, looks_T: Tensor, effects: dict[Address, float]
) -> dict[str, Any]:
    address = Address("attn", layer, head=head)
    return {
        "address": str(address), "vote_logits": float(votes_T.sum()), "effect_logits": effects.get(address),
        "looks": [_at(found, i, share=float(looks_T[i])) for i in looks_T.topk(min(NAMED, len(looks_T))).indices.tolist()],
        "read": [_at(found, i, vote_logits=float(votes_T[i])) for i in _read(votes_T)[:NAMED]],
    }  # fmt: skip


def _read(votes_T: Tensor) -> list[int]:
    """Source positions, the one that gave most towards the head's own side first."""
    return (votes_T * votes_T.sum().sign()).argsort(descending=True).tolist()


def match(found: Decision, layer: int, head: int, votes_T: Tensor, looks_T: Tensor) -> dict[str, Any]:
    """Why a head looked at the token it read its vote from rather than at the next most attended one."""
    last, source = len(found.ids) - 1, _read(votes_T)[0]
    rival = next(i for i in looks_T.argsort(descending=True).tolist() if i != source)
    to, other = (trace_upstream(found.anatomy, found.base, layer, head, query=last, key=i) for i in (source, rival))
    return {
        "address": str(Address("attn", layer, head=head)), "vote_logits": float(votes_T.sum()),
        "source": _at(found, source, share=float(looks_T[source])), "rival": _at(found, rival, share=float(looks_T[rival])),
        "score": to.score, "difference": to.score - other.score,
        "ratio": min(1e12, float(looks_T[source]) / max(float(looks_T[rival]), 1e-12)),
        "query": _difference(to.query, other.query), "key": _difference(to.key, other.key),
        "closure": max(s.closure * abs(u.score) for u in (to, other) for s in (u.query, u.key)),
    }  # fmt: skip


def _difference(to: Side, other: Side) -> dict[str, Any]:
    """The parts that favoured one key over the other, first those on the difference's side; its sum with `rest` and `bias`."""
    parts_P = to.parts_P - other.parts_P
    side = 1.0 if float(parts_P.sum()) + to.bias - other.bias > 0 else -1.0
    top = (parts_P * side).argsort(descending=True)[:NAMED].tolist()
    named = [{"address": str(to.addresses[i]), "score": float(parts_P[i])} for i in top]
    return {"parts": named, "rest": float(parts_P.sum()) - sum(p["score"] for p in named), "bias": to.bias - other.bias}


def _at(found: Decision, position: int, **more: float) -> dict[str, Any]:
    return {"position": position, "text": found.written(found.ids[position]), **more}


def _has_sinks(found: Decision) -> bool:
    return any(layer.attention is not None and layer.attention.sinks for layer in found.base.layers)
