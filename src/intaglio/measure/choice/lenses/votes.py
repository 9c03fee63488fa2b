"""How it votes: the ledger summed by kind and layer, and each strong effect taken apart.  [torch]"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from intaglio.address import Address
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.effects import Effects
from intaglio.measure.choice.lenses import Given, Measured

STRONG = 10  # effects taken apart
TERMS = 4  # other votes named for each


def kind_of(address: Address) -> str:
    """embed (learnt positions too), attn, mlp or bias."""
    if address.head is not None:
        return "attn"
    if address.part.startswith("embed"):
        return "embed"
    return "mlp" if address.part == "mlp" and address.sub is None else "bias"


def measure(found: Decision, given: Given) -> Measured:
    """Sums of the ledger; where parts were replaced, how votes and effects agree and what each effect is made of."""
    votes = dict(zip(found.votes.addresses, found.votes.votes_BP[0].tolist()))
    by_kind: dict[str, float] = defaultdict(float)
    by_layer: dict[tuple[int, str], float] = defaultdict(float)
    for address, vote in votes.items():
        by_kind[kind_of(address)] += vote
        if address.layer is not None:
            by_layer[address.layer, "mlp" if address.part == "mlp" else "attn"] += vote
    positive = sum(v for v in votes.values() if v > 0)
    numbers = {
        "difference_logits": float(found.votes.difference_B[0]), "closure_logits": float(found.votes.closure_B[0]),
        "for_logits": positive, "against_logits": sum(votes.values()) - positive, "parts": len(votes),
        "scaling_logits": float(found.votes.scaling_B[0]), "softcap_logits": float(found.votes.softcap_B[0]),
        **{f"{kind}_logits": by_kind.get(kind, 0.0) for kind in ("embed", "attn", "mlp", "bias")},
    }  # fmt: skip
    tables = {
        "layers": [
            {"layer": i, "attn_logits": by_layer.get((i, "attn"), 0.0), "mlp_logits": by_layer.get((i, "mlp"), 0.0)}
            for i in range(found.anatomy.n_layers)
        ]
    }
    if given.effects is not None:
        effects: Effects = given.effects
        direct = torch.tensor([votes[a] for a in effects.addresses], dtype=torch.float64)
        numbers["agreement"] = rank_correlation(direct, effects.effect_C)
        numbers["repaired_logits"] = _repaired(effects)
        numbers["effects"] = len(direct)
        tables["booked"] = _booked(effects, votes)
    return Measured(numbers, tables)


def _booked(effects: Effects, votes: dict[Address, float]) -> list[dict]:
    rows = []
    for i in effects.effect_C.abs().argsort(descending=True)[:STRONG].tolist():
        change = effects.others_CP[i]
        most = change.abs().argsort(descending=True)[:TERMS].tolist()
        rows.append({
            "address": str(effects.addresses[i]), "vote_logits": votes[effects.addresses[i]],
            "effect_logits": float(effects.effect_C[i]), "own_logits": float(effects.own_C[i]),
            "others_logits": float(change.sum()), "norm_logits": float(effects.norm_C[i]),
            "terms": [{"part": str(effects.parts[j]), "change_logits": float(change[j])} for j in most],
        })  # fmt: skip
    return rows


def _repaired(effects: Effects) -> float | None:
    """Net share of their own votes' changes that other parts made up for, summed over parts that vote for the target."""
    working = effects.own_C > 0.05
    if not bool(working.any()):
        return None
    return float(-effects.others_CP[working].sum() / effects.own_C[working].sum())


def rank_correlation(x: Tensor, y: Tensor) -> float | None:
    """Spearman's, of numbers without ties; None under five."""
    if len(x) < 5:
        return None
    ranks = torch.stack([v.argsort().argsort().double() for v in (x, y)])
    return float(torch.corrcoef(ranks)[0, 1])
