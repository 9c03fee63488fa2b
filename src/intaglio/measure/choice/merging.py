"""Where the pieces of a word become one word: who reads them, what their last state is like, who needs them.  [torch]

    likeness(l) = (c(l) - n(l)) / (1 - n(l));  c: cosine of the last piece's state with that of the word in one token,
        n: mean cosine of the prompt's other states with it, after l layers
    swap(l) = KL(choice | choice when the earlier pieces are read as another word's from layer l on)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from intaglio.data.vocab import token_bytes
from intaglio.measure.choice.contexts import Word, is_cyrillic, words_of
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given
from intaglio.measure.choice.lenses.trajectory import settled
from intaglio.measure.choice.pair import kl_nats
from intaglio.measure.choice.runs import ROWS, Kept, keys_and_values, resumed
from intaglio.measure.choice.variants import run_variants
from intaglio.model.capture import Capture, capture
from intaglio.model.modes import evaluating

SWAPPED = 240  # positions run for the swap; fewer layers where they would be more
DRAWS = 2  # other words whose pieces are put in
HALF = 0.5  # likeness from which on the pieces count as one word
MATTERS = 0.1  # share of the swap's effect at the first layer below which the earlier pieces no longer matter


def merging(
    found: Decision, given: Given, word: Word, likeliest: tuple[int, ...] | None, form: tuple[int, bool] | None
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """How the pieces of a word are put together, and from which layer on the earlier ones no longer matter.

    Args:
        likeliest: the word's likeliest way in several tokens, followed where the tokenizer's own is one; None: there is none.
        form: the word in one token, as `one_token_form` gives it.
    """
    way = word.ids if len(word.ids) > 1 else likeliest
    if way is None:
        return {"why_not": "one_piece"}, {"attention": [], "merging": [], "swap": []}
    ids = [*found.ids[: word.begin], *way, *found.ids[word.end :]]
    run = found.base if way == word.ids else capture(found.anatomy, torch.tensor([ids], device=found.ids_BT.device))
    last = word.begin + len(way) - 1
    layers = _attended(found, run, word.begin, last)
    numbers: dict[str, Any] = {
        "tokens": [found.written(i) for i in way], "own": way == word.ids, "layers": len(layers),
        "even": (last - word.begin) / (last + 1), "most": max(range(len(layers)), key=lambda i: layers[i]["attention"]),
        "whole": None if form is None else found.written(form[0]), "same_bytes": None if form is None else form[1],
    }  # fmt: skip
    merged = [] if form is None else merged_states(found, run, word.begin, way, form[0])
    if merged:
        likeness = [r["likeness"] for r in merged]
        numbers |= {"best": max(range(len(merged)), key=lambda i: merged[i]["pieces"]),
                    "one_word": None if None in likeness else settled([x >= HALF for x in likeness])}  # fmt: skip
    numbers["swap"], swap = _swap(found, given, run, ids, word, last)
    return numbers, {"attention": layers, "merging": merged, "swap": swap}


def one_token_form(spelt: bytes, vocabulary: Sequence[tuple[int, bytes]]) -> tuple[int, bool] | None:
    """The token that writes the word whole, and whether with the very same bytes; else with a space more or less in front."""
    other = spelt[1:] if spelt[:1] == b" " else b" " + spelt
    forms = {b: i for i, b in reversed(vocabulary) if b in (spelt, other)}
    return next(((forms[b], b == spelt) for b in (spelt, other) if b in forms), None)


def _attended(found: Decision, run: Capture, begin: int, last: int) -> list[dict[str, Any]]:
    """How much the last piece looks at the word's other pieces, layer by layer: mean over heads, and the head that does most."""
    rows = []
    for i, layer in enumerate(run.layers):
        share_H = layer.pattern_BHTT[0, :, last, begin:last].sum(-1).double()
        rows.append({"layer": i, "attention": float(share_H.mean()), "head": int(share_H.argmax()),
                     "head_attention": float(share_H.max())})  # fmt: skip
    return rows


@torch.no_grad()
def merged_states(found: Decision, run: Capture, begin: int, way: tuple[int, ...], whole: int) -> list[dict[str, Any]]:
    """Cosine with the one-token form's state, after every layer.

    Returns:
        pieces: of the last piece's state; alone: of that piece's without the others before it; others: mean of the states
        of the prompt's other tokens (the first left out) and likeness beyond it, None where there are none.
    """
    last, before = begin + len(way) - 1, found.ids[:begin]
    short = run_variants(found.anatomy, found.ids, [[*before, whole], [*before, way[-1]]], states=True).states_NLD.double()
    others = [i for i in range(1, run.ids_BT.shape[1]) if not begin <= i <= last]
    rows = []
    for i, mine_TD in enumerate([*(layer.resid_BTD[0] for layer in run.layers), run.final_BTD[0]]):
        whole_D, alone_D = short[:, i]
        cosine_T = cosine_similarity(mine_TD.double(), whole_D[None], dim=-1)
        pieces, null = float(cosine_T[last]), float(cosine_T[others].mean()) if others else None
        rows.append({
            "after": f"L{i - 1}" if i else "embed", "pieces": pieces, "alone": float(cosine_similarity(alone_D, whole_D, dim=0)),
            "others": null, "likeness": None if null is None else (pieces - null) / max(1 - null, 1e-9),
        })  # fmt: skip
    return rows


def _swap(
    found: Decision, given: Given, run: Capture, ids: list[int], word: Word, last: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    begin = word.begin
    if found.anatomy.bypasses:
        return {"why_not": "unseen"}, []
    draws = _other_pieces(found, given, ids[begin:last], is_cyrillic(word.text))
    if not draws:
        return {"why_not": "no_reference"}, []
    every = max(1, -(-DRAWS * found.anatomy.n_layers * (len(ids) - last) // SWAPPED))
    layers = list(range(0, found.anatomy.n_layers, every))
    log_p = run.logits_BTV[0, -1].double().log_softmax(-1)
    was, first = float(found.question.of(run.logits_BTV[:, -1].double())), int(log_p.argmax())
    replaced = torch.tensor([[*ids[:begin], *other] for other in draws], device=found.ids_BT.device)
    theirs = keys_and_values(found.anatomy, capture(found.anatomy, replaced), last)
    logits = [
        swapped_logits(found, run, {at: (k[i : i + 1], v[i : i + 1]) for at, (k, v) in theirs.items()}, begin, last, layers)
        for i in range(len(draws))
    ]
    kl_L = torch.stack([kl_nats(log_p, x.log_softmax(-1)) for x in logits]).clamp_min(0).mean(0)
    difference_L = torch.stack([found.question.of(x) for x in logits]).mean(0)
    changed_L = sum((x.argmax(-1) != first).long() for x in logits)
    rows = [
        {"layer": at, "kl_nats": float(kl_L[i]), "difference_logits": float(difference_L[i]), "first_changed": int(changed_L[i])}
        for i, at in enumerate(layers)
    ]
    over = settled([k <= MATTERS * float(kl_L[0]) for k in kl_L.tolist()] + [True])
    return {
        "was_logits": was, "draws": [[found.written(i) for i in other] for other in draws], "every": every,
        "over": layers[over] if over < len(layers) else None, "last_tested": layers[-1],
    }, rows  # fmt: skip


def _other_pieces(found: Decision, given: Given, mine: list[int], cyrillic: bool) -> list[list[int]]:
    """Beginnings of other words of the script in the reference text, as many tokens as the earlier pieces, drawn by the seed."""
    ids, length = given.reference_ids, len(mine)
    words = words_of(ids, [token_bytes(found.tokenizer, i) for i in ids])
    words = [w for w in words if is_cyrillic(w.text) == cyrillic] or words
    starts = [w.begin for w in words if w.begin + length <= len(ids) and ids[w.begin] != mine[0]]
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(given.seed)).tolist()
    return [ids[starts[i] : starts[i] + length] for i in order[:DRAWS]]


@torch.no_grad()
def swapped_logits(found: Decision, run: Capture, theirs: Kept, begin: int, last: int, layers: list[int]) -> Tensor:
    """(layers, V) logits when, from each layer on, positions `begin` to `last` - 1 are read as another run left them."""
    anatomy = found.anatomy
    mine = keys_and_values(anatomy, run, last)
    chunks = []
    for start in range(0, len(layers), ROWS):
        some = layers[start : start + ROWS]
        kept: Kept = {}
        for i, block in enumerate(anatomy.blocks):
            taken = torch.tensor([i >= at for at in some], device=found.ids_BT.device)[:, None, None, None]
            pair = []
            for m, t in zip(mine[block.attn], theirs[block.attn]):
                there = m.clone()
                there[:, :, begin:last] = t[:, :, begin:last]
                pair.append(torch.where(taken, there, m))
            kept[block.attn] = tuple(pair)
        with evaluating(anatomy.model):
            chunks.append(resumed(anatomy, run, len(some), 0, last, run.ids_BT.shape[1], kept).double())
    return torch.cat(chunks)
