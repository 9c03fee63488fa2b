"""Architecture: how small the model may become before this choice turns, part by part and together.  [torch]

    single effect of a head = D - D(head at its mean);   joint effect of a set = D - D(all of them at their means)
    D(k coordinates) = logit difference of the normed state with all but k coordinates at 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intaglio.address import Address
from intaglio.data.vocab import token_bytes
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.effects import Means, estimate_effects, means_over, to_mean
from intaglio.measure.choice.lenses import Given, Measured, Peer, Skip
from intaglio.measure.choice.lenses.trajectory import settled
from intaglio.measure.choice.pair import lens_log_probs
from intaglio.measure.choice.removal import Removal, run_narrow, run_removals
from intaglio.model.proof import raw_logits, shaped

DRAWS = 3  # random orders
RATIOS = (2, 4, 8)  # of one group's size to the next's: the first that is cheap enough
MULTIPLICATIONS = 1.2e11  # that runs without groups of heads may take; about two seconds on two cores
Head = tuple[int, int]


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """The choice without groups of heads, without each layer, cut short, and narrower; the same prompt in other models.

    Raises:
        Skip: there is no reference text whose means could stand in for a head.
    """
    if len(given.reference_ids) < 2:
        raise Skip("no_reference")
    singles, kind = _singles(found, given)
    heads, ratio = _heads(found, given, singles, measured=kind == "measured")
    layers = _layers(found)
    neurons = _neurons(found)
    numbers = {
        **_outcome(found, found.logits_V), "heads": len(singles), "layers": found.anatomy.n_layers, "order_by": kind,
        "ratio": ratio, "draws": DRAWS, "coordinates": found.anatomy.width,
        "neurons": None if neurons is None else found.ending.layers[0].neurons_BN.shape[-1], "peers": len(given.peers),
        "exit": _exit(found),
    }  # fmt: skip
    tables = {"heads": heads, "layers": layers, "width": _width(found, given.seed), "neurons": neurons or [],
              "models": _models(found, given)}  # fmt: skip
    return Measured(numbers, tables)


def _outcome(found: Decision, logits_V: Tensor) -> dict[str, Any]:
    """What one run says to the question."""
    log_p, first = logits_V.log_softmax(-1), int(logits_V.argmax())
    return {
        "difference_logits": float(found.question.of(logits_V[None])), "probability": float(log_p[found.target].exp()),
        "first": found.written(first), "first_changed": first != int(found.logits_V.argmax()),
    }  # fmt: skip


def _singles(found: Decision, given: Given) -> tuple[dict[Head, float], str]:
    """Every head's effect alone: as measured, or where not every head was run its first-order estimate."""
    heads = [(i, h) for i in range(found.anatomy.n_layers) for h in range(found.anatomy.n_heads)]
    if given.effects is not None:
        known = {(a.layer, a.head): e for a, e in zip(given.effects.addresses, given.effects.effect_C.tolist())}
        if all(head in known for head in heads):
            return {head: known[head] for head in heads}, "measured"
    parts = [Address("attn", layer, head=head) for layer, head in heads]
    changes = to_mean(found.anatomy, found.base, _means(found, given), parts)
    return dict(zip(heads, estimate_effects(found.anatomy, found.ids_BT, found.question.of, changes).tolist())), "estimated"


def _means(found: Decision, given: Given) -> Means:
    if given.means is None:
        ids = torch.tensor([given.reference_ids[: found.context]], device=found.ids_BT.device)
        given.means = means_over(found.anatomy, ids)
    return given.means


def sizes_of(total: int, ratio: int) -> list[int]:
    """1, ratio, ratio^2 ... and the whole; a size that is nearly the whole is left out."""
    sizes, size = [], 1
    while size * 1.5 < total:
        sizes.append(size)
        size *= ratio
    return [*sizes, total]


def orders_of(singles: dict[Head, float], seed: int) -> dict[str, list[Head]]:
    """Weakest first, strongest first by the size of the effect alone, and random orders."""
    weak = sorted(singles, key=lambda head: abs(singles[head]))
    draw, heads = torch.Generator().manual_seed(seed), list(singles)
    mixed = [[heads[i] for i in torch.randperm(len(heads), generator=draw).tolist()] for _ in range(DRAWS)]
    return {"weak": weak, "strong": weak[::-1], **{f"random{i}": order for i, order in enumerate(mixed)}}


def groups_of(singles: dict[Head, float], seed: int, ratio: int) -> list[tuple[str, list[Head]]]:
    """The groups that are run, by order; all orders end with all heads. Few weak or random heads change little."""
    sizes = sizes_of(len(singles), ratio)[:-1]
    begins = {"strong": 0, "weak": 1}
    groups = [
        (name, order[:size]) for name, order in orders_of(singles, seed).items()
        for size in sizes[begins.get(name, 1 if ratio < 4 else 2) :]
    ]  # fmt: skip
    return [*groups, ("all", list(singles))]


def _heads(found: Decision, given: Given, singles: dict[Head, float], *, measured: bool) -> tuple[list[dict[str, Any]], int]:
    """Groups of heads gone together, in each order."""
    inside = sum(p.numel() for block in found.anatomy.blocks for p in block.layer.parameters()) * len(found.ids)
    runs = {ratio: groups_of(singles, given.seed, ratio) for ratio in RATIOS}
    ratio = next((r for r in RATIOS if len(runs[r]) * inside < MULTIPLICATIONS), RATIOS[-1])
    groups = runs[ratio]
    means_LHd = _means(found, given).z_LHd
    logits_NV = run_removals(found.anatomy, found.base, [Removal(heads=frozenset(g)) for _, g in groups], means_LHd)
    rows = [
        {"order": name, "removed": len(group), **_outcome(found, logits_V),
         "singles_logits": sum(singles[head] for head in group) if measured else None}
        for (name, group), logits_V in zip(groups, logits_NV)
    ]  # fmt: skip
    return rows, ratio


def _layers(found: Decision) -> list[dict[str, Any]]:
    """Without each layer alone, and as it would be if the model ended behind it."""
    count = found.anatomy.n_layers
    logits_LV = run_removals(found.anatomy, found.base, [Removal(layers=frozenset([i])) for i in range(count)])
    ends_LV = lens_log_probs(found)[1:]
    return [
        {"layer": i, **_outcome(found, logits_LV[i]), **{f"exit_{k}": v for k, v in _outcome(found, ends_LV[i]).items()}}
        for i in range(count)
    ]


def _exit(found: Decision) -> int:
    """After how many layers the final first choice is first for good."""
    return settled((lens_log_probs(found).argmax(-1) == found.logits_V.argmax()).tolist()) or 0


def _width(found: Decision, seed: int) -> list[dict[str, Any]]:
    """The normed final state with some coordinates only: the strongest by their share of the difference, or random ones."""
    normed_D = found.base.normed_BTD[0, -1]
    strong = (normed_D * found.question.direction_D(found.anatomy)).abs().argsort(descending=True, stable=True)
    draw = torch.Generator().manual_seed(seed)
    orders = {"strong": strong, **{f"random{i}": torch.randperm(len(strong), generator=draw) for i in range(DRAWS)}}
    asked = [(name, order[:size]) for name, order in orders.items() for size in sizes_of(len(order), 2)[:-1]]
    kept_ND = torch.zeros(len(asked), len(strong), dtype=normed_D.dtype, device=normed_D.device)
    for row, (_, kept) in enumerate(asked):
        kept_ND[row, kept] = normed_D[kept]
    logits_NV = shaped(found.anatomy, raw_logits(found.anatomy, kept_ND)).double()
    return [{"order": name, "kept": len(kept), **_outcome(found, row)} for (name, kept), row in zip(asked, logits_NV)]


def _neurons(found: Decision) -> list[dict[str, Any]] | None:
    """Every MLP narrowed to its strongest neurons at the last position; None for mixtures of experts."""
    if any(layer.neurons_BN is None for layer in found.ending.layers):
        return None
    sizes = sizes_of(min(layer.neurons_BN.shape[-1] for layer in found.ending.layers), 4)[:-1]
    logits_NV = run_narrow(found.anatomy, found.base, sizes)
    return [{"kept": size, **_outcome(found, logits_V)} for size, logits_V in zip(sizes, logits_NV)]


def _models(found: Decision, given: Given) -> list[dict[str, Any]]:
    """This model and its peers before the same text."""
    own = Peer(given.subject, found, same_tokenizer=True)
    return [_model(found, peer) for peer in (own, *given.peers)] if given.peers else []


def _model(found: Decision, peer: Peer) -> dict[str, Any]:
    seen = peer.decision
    asked = found.target if peer.same_tokenizer else beginning(seen.tokenizer, token_bytes(found.tokenizer, found.target))
    log_p = seen.logits_V.log_softmax(-1)
    return {
        "name": peer.name, "layers": seen.anatomy.n_layers, "heads": seen.anatomy.n_heads, "width": seen.anatomy.width,
        "parameters": sum(p.numel() for p in seen.anatomy.model.parameters()), "same_tokenizer": peer.same_tokenizer,
        "tokens": len(seen.ids), "asked": None if asked is None else seen.written(asked),
        "probability": None if asked is None else float(log_p[asked].exp()), "first": seen.written(int(log_p.argmax())),
        "first_probability": float(log_p.max().exp()), "exit": _exit(seen),
    }  # fmt: skip


def beginning(tokenizer: Any, target: bytes) -> int | None:
    """The first token by which another tokenizer would write these bytes; None where they do not begin with it."""
    try:
        ids: Sequence[int] = tokenizer(target.decode(), add_special_tokens=False)["input_ids"]
    except UnicodeDecodeError:
        return None
    first = token_bytes(tokenizer, ids[0]) if ids else b""
    return int(ids[0]) if first and target.startswith(first) else None
