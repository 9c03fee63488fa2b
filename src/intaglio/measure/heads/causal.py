"""Is a role's group of heads worth anything? Removed together, against random heads of the same layers.  [torch]

A head is removed by replacing what it read (its input of the output matrix) by its mean over ordinary text, at every
position but the first, where many heads keep their sink (mean ablation, as in Wang et al. 2211.00593).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.address import Address, parse
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.model.anatomy import Anatomy
from intaglio.model.modes import evaluating
from intaglio.model.proof import raw_logits, shaped


@torch.no_grad()
def loss_of(anatomy: Anatomy, role_loss: RoleLoss) -> float:
    """Mean loss in nats per counted token; logits are made where they count alone."""
    total, count = 0.0, 0
    with evaluating(anatomy.model):
        for ids_BT, mask_BT in role_loss.batches:
            keep_BT = mask_BT[:, 1:]
            last_BTD = anatomy.base(input_ids=ids_BT, use_cache=False).last_hidden_state
            logits_XV = shaped(anatomy, raw_logits(anatomy, last_BTD[:, :-1][keep_BT])).float()
            losses_X = nn.functional.cross_entropy(logits_XV, ids_BT[:, 1:][keep_BT], reduction="none")
            total, count = total + float(losses_X.double().sum()), count + len(losses_X)
    return total / count


def shortened(role_loss: RoleLoss, tokens: int) -> RoleLoss:
    """The same loss over its first texts, as many as have so many tokens together; one at least."""
    batches, left = [], tokens
    for ids_BT, mask_BT in role_loss.batches:
        texts = max(min(left // ids_BT.shape[1], len(ids_BT)), 0 if batches else 1)
        if texts and mask_BT[:texts].any():
            batches.append((ids_BT[:texts], mask_BT[:texts]))
        left -= texts * ids_BT.shape[1]
    return replace(role_loss, batches=batches or role_loss.batches[:1])


@contextlib.contextmanager
def removed(anatomy: Anatomy, heads: Sequence[Address], z_LHd: Tensor) -> Iterator[None]:
    """Inside, these heads read their mean at every position but the first; nothing is left behind.

    Args:
        z_LHd: mean of what each head reads, as `measure.choice.effects.means_over` gives it.
    """
    by_layer: dict[int, list[int]] = {}
    for head in heads:
        by_layer.setdefault(head.layer, []).append(head.head)
    handles = []

    def to_mean(layer: int, some: list[int]):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z_BTX = inputs[0]
            wide = z_BTX.unflatten(-1, (anatomy.n_heads, -1)).clone()
            wide[..., 1:, some, :] = z_LHd[layer, some].to(wide)
            return (wide.flatten(-2), *inputs[1:])
        return hook

    try:
        for layer, some in by_layer.items():
            handles.append(anatomy.blocks[layer].out.register_forward_pre_hook(to_mean(layer, some)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_groups(
    anatomy: Anatomy, heads: Sequence[Address], *, draws: int, seed: int, without: Sequence[Address] = ()
) -> list[tuple[Address, ...]]:
    """Different groups with as many heads in each layer, none of which is in `heads` or `without`.

    Fewer than `draws` where the layers have no more choices; none where some layer has not enough other heads.
    """
    wanted = Counter(a.layer for a in heads)
    taken = {(a.layer, a.head) for a in (*heads, *without)}
    free = {layer: [h for h in range(anatomy.n_heads) if (layer, h) not in taken] for layer in sorted(wanted)}
    choices = math.prod(math.comb(len(free[layer]), wanted[layer]) for layer in free)
    if choices <= 4 * draws:
        each = [itertools.combinations(free[layer], wanted[layer]) for layer in free]
        every = list(itertools.product(*each))
        order = np.random.default_rng(seed).permutation(len(every))[:draws]
        drawn = [every[i] for i in order]
    else:
        random, found = np.random.default_rng(seed), {}
        while len(found) < draws:
            one = tuple(tuple(sorted(random.choice(free[layer], wanted[layer], replace=False).tolist())) for layer in free)
            found[one] = None
        drawn = list(found)
    return [tuple(Address("attn", layer, head=h) for layer, some in zip(free, one) for h in some) for one in drawn]


def check_role(
    anatomy: Anatomy, heads: Sequence[str], role_loss: RoleLoss, z_LHd: Tensor, *, draws: int = 5, seed: int = 0,
    without: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """A row of the table `checks`: the role's heads removed together, against random groups of the same layers.

    Args:
        heads: addresses of the role's heads.
        z_LHd: mean of what each head reads over ordinary text.
        draws: random groups; as many heads in each layer, none of them with the role.
        without: more heads that no random group may hold, such as those with the role in a weaker degree.

    Returns:
        `holds` is true where the role's heads cost more than every draw; null where no random group could be drawn.
    """
    mine = [parse(a) for a in heads]
    groups = random_groups(anatomy, mine, draws=draws, seed=seed, without=[parse(a) for a in without])
    whole = loss_of(anatomy, role_loss)
    with removed(anatomy, mine, z_LHd):
        ablated = loss_of(anatomy, role_loss)
    others = []
    for group in groups:
        with removed(anatomy, group, z_LHd):
            others.append(loss_of(anatomy, role_loss))
    return {
        "role": role_loss.role, "heads": [str(a) for a in mine], "task": role_loss.task, "loss_nats": whole,
        "ablated_nats": ablated, "random_nats": float(np.mean(others)) if others else None,
        "random_low": min(others, default=None), "random_high": max(others, default=None), "draws": len(others),
        "holds": ablated > max(whole, *others) if others else None,
    }  # fmt: skip
