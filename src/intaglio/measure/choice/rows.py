"""A decision's numbers as rows of the trace's tables.  [torch]"""

from __future__ import annotations

from typing import Any

import torch

from intaglio.address import Address
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.effects import Effects
from intaglio.measure.choice.upstream import trace_tree

CANDIDATES = 200  # likeliest tokens kept
NEURONS = 40  # strongest neurons kept, over all layers
TERMS = 12  # other votes kept for each effect
TRACED = 12  # heads whose looking is taken apart
WRITERS = 5  # parts named on each side of a score


def prompt_rows(found: Decision) -> list[dict[str, Any]]:
    return [
        {"position": i, "token": t, "text": found.written(t), "letters": shown}
        for i, (t, shown) in enumerate(zip(found.ids, found.letters()))
    ]


def candidate_rows(found: Decision) -> list[dict[str, Any]]:
    log_p = found.logits_V.log_softmax(-1)
    top = log_p.topk(min(CANDIDATES, len(log_p))).indices.tolist()
    return [
        {"rank": rank, "token": t, "text": found.written(t), "logit": float(found.logits_V[t]),
         "probability": float(log_p[t].exp()), "surprise_nats": -float(log_p[t])}
        for rank, t in enumerate(top)
    ]  # fmt: skip


def vote_rows(found: Decision, effects: Effects | None) -> list[dict[str, Any]]:
    """Every line of the ledger: a head's by source, every other part's whole."""
    votes, measured = found.votes, {}
    if effects is not None:
        metric_C = [None] * len(effects.addresses) if effects.metric_C is None else effects.metric_C.tolist()
        measured = dict(zip(effects.addresses, zip(effects.effect_C.tolist(), metric_C)))
    by_source = found.ledger.source_votes(found.base, votes)
    rows = []
    for address, vote in zip(votes.addresses, votes.votes_BP[0].tolist()):
        effect, metric = measured.get(address, (None, None))
        whole = {"address": str(address), "part_logits": vote, "effect_logits": effect, "effect_metric": metric}
        if address.head is None:
            rows.append({**whole, "source": None, "token": None, "vote_logits": vote, "attention": None})
            continue
        pattern = found.base.layers[address.layer].pattern_BHTT[0, address.head, -1].tolist()
        rows += [
            {**whole, "source": i, "token": found.written(found.ids[i]), "vote_logits": v, "attention": pattern[i]}
            for i, v in enumerate(by_source[address.layer, address.head].tolist())
        ]
    for name, value in (("unembed.scale", votes.scaling_B), ("unembed.softcap", votes.softcap_B)):
        if float(value[0]):
            rows.append({"address": name, "part_logits": float(value[0]), "effect_logits": None, "effect_metric": None,
                         "source": None, "token": None, "vote_logits": float(value[0]), "attention": None})  # fmt: skip
    return rows


def effect_rows(effects: Effects, ablation: str, estimates: torch.Tensor | None) -> list[dict[str, Any]]:
    others = effects.others_CP.sum(1)
    return [
        {"address": str(a), "ablation": ablation, "effect_logits": float(effects.effect_C[i]),
         "own_logits": float(effects.own_C[i]), "others_logits": float(others[i]), "norm_logits": float(effects.norm_C[i]),
         "shape_logits": float(effects.shape_C[i]), "closure_logits": float(effects.closure_C[i]),
         "estimate_logits": None if estimates is None else float(estimates[i]),
         "metric": None if effects.metric_C is None else float(effects.metric_C[i])}
        for i, a in enumerate(effects.addresses)
    ]  # fmt: skip


def term_rows(effects: Effects, ablation: str, most: int = 30) -> list[dict[str, Any]]:
    """For the `most` strongest effects, the other votes that changed most."""
    rows = []
    for i in effects.effect_C.abs().argsort(descending=True)[:most].tolist():
        change = effects.others_CP[i]
        for j in change.abs().argsort(descending=True)[:TERMS].tolist():
            rows.append({"address": str(effects.addresses[i]), "ablation": ablation, "part": str(effects.parts[j]),
                         "change_logits": float(change[j])})  # fmt: skip
    return rows


@torch.no_grad()
def neuron_rows(found: Decision) -> list[dict[str, Any]]:
    """The strongest neurons over all layers; none where MLPs are mixtures of experts."""
    rows = []
    for i, layer in enumerate(found.ending.layers):
        if layer.neurons_BN is None:
            continue
        votes = found.ledger.neuron_votes(found.ending, found.votes, i)[0]
        for n in votes.abs().topk(min(NEURONS, len(votes))).indices.tolist():
            rows.append({"layer": i, "neuron": n, "activation": float(layer.neurons_BN[0, n]), "vote_logits": float(votes[n])})
    return sorted(rows, key=lambda r: -abs(r["vote_logits"]))[:NEURONS]


def upstream_rows(found: Decision) -> list[dict[str, Any]]:
    """For the heads with the strongest votes: which earlier parts made them look at the token they read most from."""
    if found.anatomy.bypasses:
        return []
    votes, by_source = found.votes, found.ledger.source_votes(found.base, found.votes)
    strongest = sorted(
        ((abs(v), a) for a, v in zip(votes.addresses, votes.votes_BP[0].tolist()) if a.head is not None),
        key=lambda pair: -pair[0],
    )[:TRACED]  # fmt: skip
    rows, last = [], len(found.ids) - 1
    for _, a in strongest:
        key = int(by_source[a.layer, a.head].abs().argmax())
        rows += trace_tree(found.anatomy, found.base, a.layer, a.head, query=last, key=key, depth=1, width=WRITERS)
    return [{k: v for k, v in row.items() if k != "depth"} for row in rows]


def about(found: Decision) -> dict[str, Any]:
    """What the decision was, and how the ledger closed."""
    anatomy, votes = found.anatomy, found.votes
    log_p = found.logits_V.log_softmax(-1)

    def name(token: int | None) -> dict[str, Any] | None:
        return None if token is None else {
            "token": token, "text": found.written(token), "logit": float(found.logits_V[token]),
            "probability": float(log_p[token].exp()), "rank": int((found.logits_V > found.logits_V[token]).sum()),
        }  # fmt: skip

    return {
        "family": type(anatomy.model).__name__, "layers": anatomy.n_layers, "heads": anatomy.n_heads,
        "key_heads": anatomy.n_key_heads, "width": anatomy.width, "head_size": anatomy.head_dim,
        "vocabulary": int(found.logits_V.numel()), "tokens": len(found.ids), "ids": found.ids,
        "target": name(found.target), "against": name(found.against),
        "entropy_nats": float(-(log_p.exp() * log_p).sum()),
        "difference_logits": float(votes.difference_B[0]), "closure_logits": float(votes.closure_B[0]),
    }  # fmt: skip


def replaced(address: Address) -> bool:
    """Whether the address is a part that can be replaced: a head or a whole MLP."""
    return address.head is not None or (address.part == "mlp" and address.sub is None)
