"""Two decisions beside each other: another prompt in the same model, or the same prompt in another model.  [torch]"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.votes import Question
from intaglio.model.proof import raw_logits, shaped

TOP = 10  # candidates of each side in the table
CHANGED = 16  # votes that changed most


def lens_log_probs(found: Decision, position: int = -1) -> Tensor:
    """(L + 1, V) the logit lens: what each layer's state says through the model's own final norm and output matrix.

    The first row is what enters the first layer, the last the model's own answer. Source: nostalgebraist 2020.
    """
    anatomy = found.anatomy
    states = torch.stack([a.resid_BTD[0, position] for a in found.base.layers] + [found.base.final_BTD[0, position]])
    with torch.no_grad():
        return shaped(anatomy, raw_logits(anatomy, anatomy.norm(states[None])[0])).double().log_softmax(-1)


def kl_nats(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p | q) over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def common_log_probs(*logits: Tensor) -> list[Tensor]:
    """Log-probabilities over the rows that all output matrices have; some are padded to a round number of rows."""
    size = min(x.shape[-1] for x in logits)
    return [x[..., :size].double().log_softmax(-1) for x in logits]


def compare(a: Decision, b: Decision) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """How far the distributions are apart, at which layer they part, whose votes changed.

    Both are asked the first one's question. Votes are compared where both models have the same parts.
    """
    question = Question(a.target, a.against)
    log_p, log_q = common_log_probs(a.logits_V, b.logits_V)
    lens_a, lens_b = common_log_probs(lens_log_probs(a), lens_log_probs(b))
    numbers = {
        "kl_nats": float(kl_nats(log_p, log_q)), "kl_back_nats": float(kl_nats(log_q, log_p)),
        "entropy_a_nats": float(-(log_p.exp() * log_p).sum()), "entropy_b_nats": float(-(log_q.exp() * log_q).sum()),
        "p_a": float(log_p[a.target].exp()), "p_b": float(log_q[a.target].exp()),
        "difference_a_logits": float(question.of(a.logits_V[None])), "difference_b_logits": float(question.of(b.logits_V[None])),
        "first_a": a.written(int(log_p.argmax())), "first_b": a.written(int(log_q.argmax())),
        "tokens_a": len(a.ids), "tokens_b": len(b.ids),
        "layers_b": b.anatomy.n_layers, "width_b": b.anatomy.width, "vocabulary_b": len(b.logits_V),
    }  # fmt: skip
    union = dict.fromkeys([*log_p.topk(TOP).indices.tolist(), *log_q.topk(TOP).indices.tolist()])
    tables: dict[str, list[dict[str, Any]]] = {
        "candidates": sorted(
            ({"token": t, "text": a.written(t), "p_a": float(log_p[t].exp()), "p_b": float(log_q[t].exp())} for t in union),
            key=lambda r: -max(r["p_a"], r["p_b"]),
        )
    }
    if lens_a.shape == lens_b.shape:
        tables["layers"] = [
            {"layer": i, "kl_nats": float(kl), "p_a": float(lens_a[i, a.target].exp()), "p_b": float(lens_b[i, a.target].exp())}
            for i, kl in enumerate(kl_nats(lens_a, lens_b))
        ]
    same = b.asking(a.target, a.against)
    if same.votes.addresses == a.votes.addresses:
        change = same.votes.votes_BP[0] - a.votes.votes_BP[0]
        tables["votes"] = [
            {"address": str(a.votes.addresses[i]), "a_logits": float(a.votes.votes_BP[0, i]),
             "b_logits": float(same.votes.votes_BP[0, i]), "change_logits": float(change[i])}
            for i in change.abs().argsort(descending=True)[:CHANGED].tolist()
        ]  # fmt: skip
        numbers |= {"changed_logits": float(change.abs().sum()), "parts": len(change)}
    return numbers, tables
