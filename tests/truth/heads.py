"""Scores of heads on texts of our own, the slow way: one text at a time, everything kept, loops and plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from intaglio.model.anatomy import Anatomy, matrix_of
from intaglio.model.capture import Capture, capture

PREDICTED_BEST, COMMON = 0.1, 0.25


def seen(anatomy: Anatomy, ids: Sequence[int]) -> Capture:
    return capture(anatomy, torch.tensor([list(ids)]))


def write(anatomy: Anatomy, run: Capture, layer: int, head: int, source: int) -> torch.Tensor:
    """What the head would add from one source at full attention, the norm behind it at scale 1."""
    block = anatomy.blocks[layer]
    dim = anatomy.head_dim
    part = matrix_of(block.out).detach()[:, head * dim : (head + 1) * dim]
    vector = part @ run.layers[layer].v_BHTd[0, head, source]
    if block.attn_post is None:
        return vector
    return anatomy.kinds[block.attn_post].apply(vector, torch.tensor(1.0)) - anatomy.kinds[block.attn_post].bias_D


def says(anatomy: Anatomy, vector: torch.Tensor, token: int) -> float:
    """What the vector does to a token's logit, the final norm at scale 1 and without its bias."""
    kind = anatomy.kinds[anatomy.norm]
    return float((kind.apply(vector, torch.tensor(1.0)) - kind.bias_D) @ anatomy.unembed.weight.detach()[token])


def looks(run: Capture, layer: int, head: int, query: int, keys: Sequence[int]) -> float:
    return sum(float(run.layers[layer].pattern_BHTT[0, head, query, k]) for k in keys)


def stands(values: dict[int, float], asked: int) -> float:
    less = sum(v < values[asked] for v in values.values())
    more = sum(v > values[asked] for v in values.values())
    return (less - more) / (len(values) - 1)


def copying(anatomy: Anatomy, texts: Sequence[Sequence[int]], which: int, layer: int, head: int) -> tuple[float, float]:
    """Copying and copy suppression of one head on one of the texts."""
    ids = list(texts[which])
    run = seen(anatomy, ids)
    usual = {t for t in ids if sum(t in set(other) for other in texts) > COMMON * len(texts)}
    copied = suppressed = whole = 0.0
    for t in range(len(ids)):
        residual = run.layers[layer].resid_BTD[0, t]
        kind = anatomy.kinds[anatomy.norm]
        shape = kind.gain_D * (residual - residual.mean() if kind.centred else residual)
        expected = {y: float(shape @ anatomy.unembed.weight.detach()[y]) for y in set(ids)}
        for s in range(t + 1):
            if s > 0 and ids[s] in usual:
                continue
            vector = write(anatomy, run, layer, head, s)
            weight = looks(run, layer, head, t, [s]) * float(vector.norm())
            whole += weight
            if 0 < s < t:
                r = stands({y: says(anatomy, vector, y) for y in set(ids)}, ids[s])
                copied += weight * r
                if ids[s] != ids[t] and stands(expected, ids[s]) >= 1 - 2 * PREDICTED_BEST:
                    suppressed -= weight * r
    return copied / whole, suppressed / whole


def successor(anatomy: Anatomy, ids: Sequence[int], sources: dict[int, int], firsts: dict[int, int], layer: int, head: int
              ) -> float:  # fmt: skip
    run, end = seen(anatomy, ids), len(ids) - 1
    hits = whole = 0.0
    for s in range(len(ids)):
        vector = write(anatomy, run, layer, head, s)
        weight = looks(run, layer, head, end, [s]) * float(vector.norm())
        whole += weight
        if s in sources:
            best = max(firsts, key=lambda member: says(anatomy, vector, firsts[member]))
            hits += weight * (best == sources[s] + 1)
    return hits / whole


def name_mover(anatomy: Anatomy, ids: Sequence[int], spans: dict[str, tuple[int, int]], io: int, s: int, layer: int, head: int
               ) -> float:  # fmt: skip
    run, end = seen(anatomy, ids), len(ids) - 1
    vector = sum(looks(run, layer, head, end, [k]) * write(anatomy, run, layer, head, k) for k in range(len(ids)))
    look = {mark: looks(run, layer, head, end, range(*span)) for mark, span in spans.items()}
    raises = says(anatomy, vector, io) > says(anatomy, vector, s)
    return (look["IO"] - look["S1"] - look["S2"]) * raises


def turned(anatomy: Anatomy, ids: Sequence[int], other: Sequence[int], spans: dict[str, tuple[int, int]],
           movers: Sequence[tuple[int, int]], layer: int, head: int, step: float = 0.1) -> float:  # fmt: skip
    """By how many nats the movers' odds of S would rise without what the head knows of S2, by a step of it both ways: the
    pattern is in single precision, so a smaller one drowns."""

    def odds(run: Capture) -> float:
        end, total = len(ids) - 1, 0.0
        for l, h in movers:
            mass = {m: run.layers[l].pattern_BHTT[0, h, end, slice(*span)].sum() for m, span in spans.items()}
            total += float((mass["S1"] + mass["S2"]).log() - mass["IO"].log())
        return total / len(movers)

    plain, third = seen(anatomy, ids), seen(anatomy, other)
    towards = (third.layers[layer].z_BTHd - plain.layers[layer].z_BTHd)[0, -1, head]
    dim = anatomy.head_dim

    def at(share: float) -> float:
        def moved(module, args):
            z = args[0].clone()
            z[..., -1, head * dim : (head + 1) * dim] += share * towards
            return (z,)

        handle = anatomy.blocks[layer].out.register_forward_pre_hook(moved)
        try:
            return odds(seen(anatomy, ids))
        finally:
            handle.remove()

    return (at(step) - at(-step)) / (2 * step)


def stays(anatomy: Anatomy, pairs, layer: int, head: int) -> float:
    """The share of attention that stays over pairs of prompts with their aligned positions."""
    kept = whole = 0.0
    for a, b, aligned in pairs:
        first, second = seen(anatomy, a.ids), seen(anatomy, b.ids)
        for q, r in aligned:
            whole += looks(first, layer, head, q, range(1, len(a.ids))) + looks(second, layer, head, r, range(1, len(b.ids)))
            for k, m in aligned:
                kept += min(looks(first, layer, head, q, [k]), looks(second, layer, head, r, [m]))
    return 2 * kept / whole


def arcs_found(run: Capture, tokens: Sequence[Sequence[int]], heads: Sequence[int], relations: Sequence[str], relation: str,
               from_head: bool, layer: int, head: int) -> list[bool]:  # fmt: skip
    """For each word with an arc of this relation and direction that points back: whether the head chose it."""
    found = []
    for w in range(len(tokens)):
        if from_head:
            right = {d for d in range(w) if heads[d] == w and relations[d] == relation and tokens[d]}
        else:
            right = {heads[w]} if relations[w] == relation and 0 <= heads[w] < w and tokens[heads[w]] else set()
        if right and tokens[w]:
            mass = {j: looks(run, layer, head, tokens[w][-1], tokens[j]) for j in range(w) if tokens[j]}
            found.append(max(mass, key=mass.get) in right)
    return found
