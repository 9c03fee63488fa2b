"""Measured effects beside direct votes: a part is replaced, the model runs on, and the difference is booked.  [torch]

    effect = logit difference as it was - logit difference with the part replaced
           = change of the part's own vote + changes of all other votes + the final norm's new scale + softcap

Each term is computed from the votes of both runs, none is the remainder.
Sources: mean and resample ablation (Wang et al. 2211.00593; Chan et al., causal scrubbing 2022),
attribution patching (Nanda 2023; Syed et al. 2310.10348), self-repair (McGrath et al. 2307.15771; Rushing, Nanda 2402.15390).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.address import Address
from intaglio.measure.choice.runs import Change, run_changes
from intaglio.measure.choice.votes import Ledger, Question, Votes, ending_of
from intaglio.model.anatomy import Anatomy
from intaglio.model.capture import Capture, capture


@dataclass(frozen=True, eq=False)
class Effects:
    """What replacing each of C parts did.

    Attributes:
        addresses: the parts replaced.
        effect_C: fall of the logit difference; positive: the part worked for the target.
        own_C: of which the part's own vote.
        others_CP: of which every other part's vote, at the norm's old scale; 0 in the part's own column.
        norm_C: of which the final norm's new scale.
        shape_C: of which scaling and capping of logits.
        parts: the P columns of `others_CP`.
        closure_C: abs(effect - sum of all terms).
        metric_C: fall of a metric of the user's own, or None.
    """

    addresses: list[Address]
    effect_C: Tensor
    own_C: Tensor
    others_CP: Tensor
    norm_C: Tensor
    shape_C: Tensor
    parts: list[Address]
    closure_C: Tensor
    metric_C: Tensor | None


@dataclass(frozen=True, eq=False)
class Means:
    """Mean output of every part over a reference text, its first token left out."""

    z_LHd: Tensor
    mlp_LD: Tensor
    tokens: int


def means_over(anatomy: Anatomy, ids_BT: Tensor) -> Means:
    """Run the reference text once and average."""
    seen = capture(anatomy, ids_BT)
    return Means(
        torch.stack([a.z_BTHd[:, 1:].mean((0, 1)) for a in seen.layers]),
        torch.stack([a.mlp_BTD[:, 1:].mean((0, 1)) for a in seen.layers]), ids_BT[:, 1:].numel(),
    )  # fmt: skip


def all_parts(anatomy: Anatomy) -> list[Address]:
    """Every head and every MLP."""
    return [
        a for i in range(anatomy.n_layers)
        for a in (*(Address("attn", i, head=h) for h in range(anatomy.n_heads)), Address("mlp", i))
    ]  # fmt: skip


def to_mean(anatomy: Anatomy, base: Capture, means: Means, parts: Sequence[Address]) -> list[Change]:
    """Replace each part by its mean at every position but the first, where many heads and MLPs keep their sink."""
    length = base.ids_BT.shape[1]
    begin = 1 if length > 1 else 0
    return [
        Change(a.layer, a.head, (means.mlp_LD[a.layer] if a.head is None else means.z_LHd[a.layer, a.head]).expand(length, -1),
               begin)
        for a in parts
    ]  # fmt: skip


def to_other(anatomy: Anatomy, base: Capture, other: Capture, parts: Sequence[Address]) -> list[Change]:
    """Replace each part by what it was in another run of as many tokens (resample ablation, activation patching)."""
    differs = (base.ids_BT != other.ids_BT)[0].nonzero()
    begin = int(differs[0]) if len(differs) else 0  # before it both runs are the same
    return [
        Change(a.layer, a.head,
               other.layers[a.layer].mlp_BTD[0] if a.head is None else other.layers[a.layer].z_BTHd[0, :, a.head], begin)
        for a in parts
    ]  # fmt: skip


@torch.no_grad()
def measure_effects(
    anatomy: Anatomy, base: Capture, question: Question, changes: Sequence[Change], *, position: int = -1,
    way: str = "prefix", metric: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Effects:  # fmt: skip
    """Run every change and book what it did.

    Args:
        metric: (B, V) logits to (B,) numbers, measured beside the logit difference.
        progress: told how many changes have been run since it was last called.
    """
    ending = ending_of(base, position)
    ledger = Ledger(anatomy, question)
    was = ledger.votes(ending)
    column = {a: i for i, a in enumerate(was.addresses)}
    order, rows, mine = [], [], []
    for some, ended in run_changes(anatomy, base, changes, position=position, way=way):
        now = ledger.votes(ended)
        parts = [Address("attn", c.layer, head=c.head) if c.head is not None else Address("mlp", c.layer) for c in some]
        rows.append(_booked(was, now, torch.tensor([column[p] for p in parts])))
        order += parts
        if metric is not None:
            mine.append(metric(ending.logits_BV) - metric(ended.logits_BV))
        progress(len(some))
    effect, own, others, norm, shape = (torch.cat(x) for x in zip(*rows))
    closure = (effect - own - others.sum(1) - norm - shape).abs()
    return Effects(order, effect, own, others, norm, shape, was.addresses, closure, torch.cat(mine) if mine else None)


def _booked(was: Votes, now: Votes, own_column_B: Tensor) -> tuple[Tensor, ...]:
    """The terms of B effects; `fixed` lines stand behind the norm and do not feel its scale."""
    fixed = torch.tensor([a.part in ("norm", "unembed.bias") and a.layer is None for a in was.addresses])
    back = torch.where(fixed, 1.0, (was.scale_B / now.scale_B)[:, None])
    at_old_scale = now.votes_BP * back
    change = was.votes_BP - at_old_scale
    rows = torch.arange(len(change))
    own = change[rows, own_column_B].clone()
    change[rows, own_column_B] = 0
    norm = (at_old_scale - now.votes_BP).sum(1)
    shape = (was.scaling_B + was.softcap_B) - (now.scaling_B + now.softcap_B)
    return was.difference_B - now.difference_B, own, change, norm, shape


def estimate_effects(
    anatomy: Anatomy, ids_BT: Tensor, metric: Callable[[Tensor], Tensor], changes: Sequence[Change], *, position: int = -1
) -> Tensor:
    """(C,) attribution patching: first-order estimates of all effects on a metric of the logits, from one backward."""
    with torch.no_grad():
        embeds = anatomy.model.get_input_embeddings()(ids_BT)
    with torch.enable_grad():
        embeds.requires_grad_(True)
        seen = capture(anatomy, ids_BT, grad=True, embeds_BTD=embeds)
        total = metric(seen.logits_BTV[:, position]).sum()
        grads = torch.autograd.grad(total, [t for a in seen.layers for t in a.graph])
    found = []
    for change in changes:
        layer, at = seen.layers[change.layer], change.begin
        if change.head is None:
            now, grad = layer.mlp_BTD[0], grads[2 * change.layer + 1].view(layer.mlp_BTD.shape)[0]
        else:
            now = layer.z_BTHd[0, :, change.head]
            grad = grads[2 * change.layer].view(layer.z_BTHd.shape)[0, :, change.head]
        found.append(((now.detach() - change.value_TX)[at:] * grad[at:]).sum().double())
    return torch.stack(found).detach()
