"""S-inhibition: heads that look from the end at the name that came again and turn the name movers away from it.

    score = A[end, S2] * tanh(e / 2)
    e = -(z[end] - z'[end]) . dF/dz[end],  F = mean over movers of log(A_m[end, S1] + A_m[end, S2]) - log A_m[end, IO]

z is what the head read at the end, z' the same in the prompt with a third name in the place of S2, and the movers are the
three heads that move names best on the other half of the prompts. e is by how many nats the head's knowledge of S2 lowers
the movers' log odds of looking at S rather than at IO; tanh(e / 2) is that as (1 - odds ratio) / (1 + odds ratio).
1: it looks at S2 alone and the movers' choice rests on it. Null: attention to another position, at random, times the
tanh of another prompt.
Source: Wang et al. 2211.00593 (roles, the third name as the patch); the effect by one gradient instead of one run per
head and prompt: attribution patching, Syed et al. 2310.10348.
Limits: e is of first order, and takes in what goes through later heads and MLPs; heads not below a mover have e = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.measure.heads.tasks.found import blank
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, by_length
from intaglio.model.anatomy import Anatomy
from intaglio.model.capture import Capture, capture

MOVERS = 3
LEAST_MOVER = 0.1  # a head below this mean score is not called a mover
FLOOR = 1e-9  # under a logarithm

Head = tuple[int, int]


def find_s_inhibition(anatomy: Anatomy, prompts: Sequence[Prompt], movers: Sampled, rng: np.random.Generator
                 ) -> tuple[Sampled, list[Head]]:  # fmt: skip
    """The score of every head on every prompt, and the movers it was measured on.

    Args:
        movers: the name movers' scores on the same prompts.

    Raises:
        Untested: no head moves names, or only heads of the first layer do.
    """
    looks, looks_null, effect = (blank(len(prompts), anatomy) for _ in range(3))
    used: set[Head] = set()
    half_N = np.array([(n // 2) % 2 for n in range(len(prompts))])  # both orders in both halves
    for half in (0, 1):
        chosen = best_movers(movers.values_NLH[half_N != half])
        used |= set(chosen)
        some = np.flatnonzero(half_N == half)
        for chunk, ids_BT in by_length([prompts[i] for i in some], anatomy.unembed.weight.device, most=512):
            here = some[chunk]
            _measure(anatomy, [prompts[i] for i in here], ids_BT, chosen, rng, here, (looks, looks_null, effect))
    pull = np.tanh(effect / 2)
    return Sampled("s_inhibition", "", looks * pull, looks_null * pull[rng.permutation(len(prompts))]), sorted(used)


def best_movers(values_NLH: np.ndarray) -> list[Head]:
    """The heads that move names best, of those that do.

    Raises:
        Untested: none does.
    """
    mean_LH = values_NLH.mean(0)
    order = np.argsort(-mean_LH, axis=None, kind="stable")[:MOVERS]
    heads = [(int(l), int(h)) for l, h in zip(*np.unravel_index(order, mean_LH.shape))]
    found = [(l, h) for l, h in heads if mean_LH[l, h] >= LEAST_MOVER and l > 0]
    if not found:
        raise Untested(f"no head above the first layer moves names by {LEAST_MOVER} or more, so none can be turned away")
    return found


def _measure(anatomy: Anatomy, prompts: Sequence[Prompt], ids_BT: Tensor, movers: Sequence[Head], rng: np.random.Generator,
             here: np.ndarray, into: tuple[np.ndarray, ...]) -> None:  # fmt: skip
    """Write attention to S2, to a random position, and e into rows `here`."""
    looks, looks_null, effect = into
    seen = capture(anatomy, ids_BT, grad=True)
    other = capture(anatomy, torch.tensor([p.facts["other"].ids for p in prompts], device=ids_BT.device))
    below = max(layer for layer, _ in movers)
    reads = [layer.graph[0] for layer in seen.layers[:below]]
    grads = torch.autograd.grad(odds_B(seen, prompts, movers).sum(), reads)
    effect[here] = 0.0
    for i, (grad, layer, without) in enumerate(zip(grads, seen.layers, other.layers)):
        grad_BHd = grad.view(layer.z_BTHd.shape)[:, -1]
        effect[here, i] = -((layer.z_BTHd - without.z_BTHd)[:, -1] * grad_BHd).sum(-1).detach().double().cpu().numpy()
    for row, (n, p) in enumerate(zip(here, prompts)):
        spans = [range(*p.spans[mark]) for mark in ("S2", "IO", "S1")]
        places = rng.choice([k for k in range(1, len(p.ids)) if not any(k in s for s in spans)], len(spans[0]))
        for i, layer in enumerate(seen.layers):
            end_HK = layer.pattern_BHTT[row, :, -1].detach().double().cpu().numpy()
            looks[n, i], looks_null[n, i] = end_HK[:, list(spans[0])].sum(1), end_HK[:, places].sum(1)


def odds_B(seen: Capture, prompts: Sequence[Prompt], movers: Sequence[Head]) -> Tensor:
    """F: mean over the movers of the log odds of looking at S rather than at IO, per prompt, in nats."""
    total = []
    for layer, head in movers:
        end_BK = seen.layers[layer].pattern_BHTT[:, head, -1]
        mass = [[end_BK[row, slice(*p.spans[mark])].sum() for mark in ("S1", "S2", "IO")] for row, p in enumerate(prompts)]
        total.append(torch.stack([(s1 + s2).clamp_min(FLOOR).log() - io.clamp_min(FLOOR).log() for s1, s2, io in mass]))
    return torch.stack(total).mean(0)
