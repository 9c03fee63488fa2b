"""Pretraining against fine-tuning: the same tokens in two models of one tokenizer, token by token.  [torch]"""

from __future__ import annotations

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Needs
from intaglio.measure.choice.pair import common_log_probs, compare, kl_nats


def measure(found: Decision, given: Given) -> Measured:
    """What `compare` says of the decision, and for every token of the prompt both surprises and the KL there."""
    if (needs := lacking(given)) is not None:
        raise needs
    other = given.versus
    numbers, tables = compare(found, other)
    log_p, log_q = common_log_probs(found.base.logits_BTV[0], other.base.logits_BTV[0])
    kl_T = kl_nats(log_p, log_q)
    rows = []
    for i, kl in enumerate(kl_T.tolist()):
        following = found.ids[i + 1] if i + 1 < len(found.ids) else found.target
        ranks = [int((log[i] > log[i, following]).sum()) + 1 for log in (log_p, log_q)]
        rows.append({
            "position": i, "text": found.written(found.ids[i]), "next": found.written(following), "kl_nats": kl,
            "surprise_a_nats": -float(log_p[i, following]), "surprise_b_nats": -float(log_q[i, following]),
            "rank_a": ranks[0], "rank_b": ranks[1],
        })  # fmt: skip
    numbers["mean_kl_nats"] = float(kl_T.mean())
    tables["tokens"] = rows
    return Measured(numbers, tables)


def lacking(given: Given) -> Needs | None:
    """What has to be given besides, if anything."""
    if given.versus is not None:
        return None
    return Needs("other_tokenizer" if given.peers else "no_second", "--versus MODEL with the same tokenizer")
