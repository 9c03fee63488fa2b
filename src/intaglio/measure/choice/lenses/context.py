"""What each token and each sentence of the context does to the choice: four metrics, all on the model itself.  [torch]

    TokenGrad         |dD/de_i| and e_i . dD/de_i, D the logit difference, e_i the token's embedding
    influence         D(all) - D(without token i)
    loss sensitivity  -ln p(target) with another token in i's place, minus as it was; its estimate: dL/de_i . (e' - e_i)
    delta hidden      |h_l(all) - h_l(without i)| / |h_l(all)|, before every layer l, at the last token
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.pieces import Piece, sentences
from intaglio.measure.choice.variants import rank_correlation, run_variants
from intaglio.model.modes import evaluating

MOST = 100  # tokens looked at, the last ones
DEPTHS = 12  # layers shown
NEEDLE = range(3, 9)  # numbers of sentences for which moving one is cheap
BY_ROLE = ("grad_norm", "grad_times_input", "influence_logits", "loss_nats", "delta_last")  # metrics of tokens told by role
FURTHEST = (1, 2, 4, 8, 16, 32, 64)  # upper ends of the distances told apart


def measure(found: Decision, given: Given) -> Measured:
    """The metrics of every token, the effect of every sentence, roles, near against far, the needle."""
    length = len(found.ids)
    if length < 2:
        raise Skip("one_token")
    at = list(range(max(0, length - MOST), length))
    texts = [found.written(i) for i in found.ids]
    now = float(found.question.of(found.logits_V[None]))
    gone = run_variants(found.anatomy, found.ids, [found.ids[:i] + found.ids[i + 1 :] for i in at], states=True)
    influence = (now - found.question.of(gone.logits_NV)).tolist()
    swap = replacements(found, given, at)
    changed = run_variants(found.anatomy, found.ids, [[*found.ids[:i], t, *found.ids[i + 1 :]] for i, t in zip(at, swap)])
    loss = (surprise(found.logits_V[None], found.target) - surprise(changed.logits_NV, found.target)).neg().tolist()
    slopes = gradients(found, at, swap)
    delta_NL = moved(found, gone.states_NLD)
    tokens = [
        {"position": i, "token": found.ids[i], "text": texts[i], "grad_norm": slopes["norm"][n],
         "grad_times_input": slopes["times_input"][n], "influence_logits": influence[n],
         "first_without": int(gone.logits_NV[n].argmax()), "swapped_for": found.written(swap[n]), "loss_nats": loss[n],
         "loss_estimate_nats": slopes["estimate"][n], "delta_last": delta_NL[n][-1]}
        for n, i in enumerate(at)
    ]  # fmt: skip
    pieces = sentences_of(found)
    left_out = without(found, pieces, tokens, now)
    return Measured(
        {
            "difference_logits": now, "looked_at": len(at), "tokens": length, "first": int(found.logits_V.argmax()),
            "estimate_agrees": rank_correlation([r["loss_estimate_nats"] for r in tokens], loss),
            "gradient_agrees": rank_correlation([r["grad_times_input"] for r in tokens], influence),
            "size_agrees": rank_correlation([r["grad_norm"] for r in tokens], [abs(x) for x in influence]),
            **_depth(delta_NL, influence),
        },
        {
            "tokens": tokens, "layers": _layers(delta_NL), "distances": distances(tokens, length), "sentences": left_out,
            "roles": _roles(left_out, tokens), "needle": needle(found, pieces, left_out, now),
        },
    )  # fmt: skip


def sentences_of(found: Decision) -> list[Piece]:
    """The prompt's sentences."""
    ids = found.ids
    return sentences([found.text([i]) for i in ids], special_positions(found), lambda begin, end: found.text(ids[begin:end]))


def special_positions(found: Decision) -> frozenset[int]:
    """Where the prompt holds tokens that are no text (beginning of text, turns of a chat)."""
    special = set(getattr(found.tokenizer, "all_special_ids", []))
    return frozenset(i for i, t in enumerate(found.ids) if t in special)


def surprise(logits_NV: Tensor, token: int) -> Tensor:
    """(N,) -ln p of the token, nats."""
    return -logits_NV.log_softmax(-1)[:, token]


def replacements(found: Decision, given: Given, at: list[int]) -> list[int]:
    """For each position another token drawn from ordinary text: one of the same kind (`_kind`) where there is any."""
    special = set(getattr(found.tokenizer, "all_special_ids", []))
    pool = {t: _kind(found.written(t)) for t in given.reference_ids if t not in special}
    draw = torch.Generator().manual_seed(given.seed)
    swap = []
    for i in at:
        others = [t for t in given.reference_ids if t in pool and t != found.ids[i]]
        alike = [t for t in others if pool[t] == _kind(found.written(found.ids[i]))] or others
        if not alike:
            raise Skip("no_reference")
        swap.append(alike[int(torch.randint(len(alike), (), generator=draw))])
    return swap


def _kind(text: str) -> tuple[bool, bool, bool]:
    """Begins a word, is ASCII, is made of letters."""
    return text[:1].isspace(), text.isascii(), text.strip().isalpha()


def gradients(found: Decision, at: list[int], swap: list[int]) -> dict[str, list[float]]:
    """First-order numbers of every token, from one run and two backward passes."""
    model = found.anatomy.model
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        embeds = embedding(found.ids_BT)
        step = embedding(torch.tensor(swap, device=embeds.device)) - embeds[0, at]
    with torch.enable_grad(), evaluating(model):
        embeds.requires_grad_(True)
        logits = model(inputs_embeds=embeds, use_cache=False).logits[:, -1]
        (of_difference,) = torch.autograd.grad(found.question.of(logits).sum(), embeds, retain_graph=True)
        (of_loss,) = torch.autograd.grad(surprise(logits.double(), found.target).sum(), embeds)
    grad, inputs = of_difference[0, at].double(), embeds.detach()[0, at].double()
    return {
        "norm": grad.norm(dim=-1).tolist(), "times_input": (grad * inputs).sum(-1).tolist(),
        "estimate": (of_loss[0, at].double() * step.double()).sum(-1).tolist(),
    }  # fmt: skip


def moved(found: Decision, states_NLD: Tensor) -> list[list[float]]:
    """Per removed token and layer: how far the last token's state moved, in units of its own length."""
    was = torch.stack([*(a.resid_BTD[0, -1] for a in found.base.layers), found.base.final_BTD[0, -1]])
    return ((states_NLD - was).norm(dim=-1) / was.norm(dim=-1).clamp_min(1e-30)).tolist()


def _layers(delta_NL: list[list[float]]) -> list[dict[str, Any]]:
    depths = len(delta_NL[0])
    chosen = sorted({round(i * (depths - 1) / (min(DEPTHS, depths) - 1)) for i in range(min(DEPTHS, depths))})
    return [{"layer": i, "moved": [round(row[i], 4) for row in delta_NL]} for i in chosen]


def _depth(delta_NL: list[list[float]], influence: list[float]) -> dict[str, Any]:
    """Where the state notices that the most influential token is missing."""
    top = max(range(len(influence)), key=lambda n: abs(influence[n]))
    row = delta_NL[top]
    return {"top": top, "top_half_layer": next(i for i, x in enumerate(row) if x >= max(row) / 2), "top_moved": max(row),
            "top_moved_layer": row.index(max(row)), "depths": len(row)}  # fmt: skip


def distances(tokens: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """Influence by distance from the end; the very first token is left out, for heads park attention on it."""
    total = sum(abs(r["influence_logits"]) for r in tokens if r["position"]) or 1.0
    rows, begin, far = [], 0, max((length - r["position"] for r in tokens if r["position"]), default=0)
    for end in (*FURTHEST, length):
        sizes = [abs(r["influence_logits"]) for r in tokens if r["position"] and begin < length - r["position"] <= end]
        if sizes:
            share, mean = sum(sizes) / total, sum(sizes) / len(sizes)
            rows.append({"nearest": begin + 1, "furthest": min(end, far), "tokens": len(sizes), "share": share,
                         "mean_logits": mean})  # fmt: skip
        begin = max(begin, end)
    return rows


def without(found: Decision, pieces: list[Piece], tokens: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
    """The effect of leaving out each sentence whole, beside the sum over its tokens left out one by one."""
    if len(pieces) < 2:
        return []
    variants = [found.ids[: p.begin] + found.ids[p.end :] for p in pieces]
    seen = run_variants(found.anatomy, found.ids, variants)
    single = {r["position"]: r["influence_logits"] for r in tokens}
    return [
        {"begin": p.begin, "end": p.end, "text": p.text, "role": p.role, "influence_logits": now - after,
         "tokens_one_by_one": sum(single[i] for i in range(p.begin, p.end)) if p.begin in single else None,
         "first_without": found.written(int(logits.argmax())), "holds_end": p.end == len(found.ids)}
        for p, after, logits in zip(pieces, found.question.of(seen.logits_NV).tolist(), seen.logits_NV)
    ]  # fmt: skip


def _roles(left_out: list[dict[str, Any]], tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sentences by role: the effect of leaving each out, and every metric's mean over those of their tokens looked at."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in (r for r in left_out if not r["holds_end"]):
        found.setdefault(row["role"], []).append(row)
    known = {r["position"]: r for r in tokens}
    by_role = []
    for role, rows in found.items():
        inside = [known[i] for r in rows for i in range(r["begin"], r["end"]) if i in known]
        means = {f"mean_{name}": sum(r[name] for r in inside) / len(inside) if inside else None for name in BY_ROLE}
        by_role.append({
            "role": role, "sentences": len(rows), "tokens": sum(r["end"] - r["begin"] for r in rows), "looked_at": len(inside),
            "influence_logits": sum(r["influence_logits"] for r in rows), **means,
        })  # fmt: skip
    return by_role


def needle(found: Decision, pieces: list[Piece], left_out: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
    """The most influential sentence but the last, moved to every place before the last."""
    if len(pieces) not in NEEDLE:
        return []
    moving = max(range(len(pieces) - 1), key=lambda i: abs(left_out[i]["influence_logits"]))
    spans = [found.ids[p.begin : p.end] for p in pieces]
    rest = spans[:moving] + spans[moving + 1 :]
    head = found.ids[: pieces[0].begin]
    if sum(map(len, spans)) + len(head) != len(found.ids):
        return []  # special tokens stand between sentences: moving text over them would change the turns
    orders = [[head, *rest[:slot], spans[moving], *rest[slot:]] for slot in range(len(rest))]
    variants = [list(itertools.chain(*order)) for order in orders]
    seen = run_variants(found.anatomy, found.ids, variants)
    return [
        {"place": slot, "moving": moving, "difference_logits": d, "own": slot == moving}
        for slot, d in enumerate(found.question.of(seen.logits_NV).tolist())
    ]  # fmt: skip
