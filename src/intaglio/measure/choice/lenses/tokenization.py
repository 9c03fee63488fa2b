"""Tokenization: every way to write a word in tokens, what each does to the choice, and where its pieces become one word.  [torch]

    p(way) = product of p(piece | prompt before, earlier pieces);  p(word) = sum over ways
    likeness(l) = (c(l) - n(l)) / (1 - n(l));  c: cosine of the last piece's state with that of the word in one token,
        n: mean cosine of the prompt's other states with it, after l layers
    swap(l) = KL(choice | choice when the earlier pieces are read as another word's from layer l on)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from intaglio.data.vocab import is_special, letters, token_bytes
from intaglio.measure.choice.contexts import Word, words_of
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.lenses.context import special_positions
from intaglio.measure.choice.lenses.trajectory import settled
from intaglio.measure.choice.pair import kl_nats
from intaglio.measure.choice.runs import Kept, keys_and_values, resumed
from intaglio.measure.choice.segments import fewest, pieces_in, ways
from intaglio.model.capture import Capture, capture
from intaglio.model.modes import evaluating
from intaglio.model.proof import raw_logits, shaped

MOST = 64  # ways that are run
TOKENS = 500  # positions run for all ways together, and again for the swap; fewer ways or layers where they would be more
LEAST = 8  # ways that are run however long the prompt goes on after the word
LONGEST = 48  # bytes of the word
NEAR = 24  # tokens from the end within which the word is looked for first
ROWS = 16  # runs side by side
DRAWS = 2  # other words whose pieces are put in
HALF = 0.5  # likeness from which on the pieces count as one word
MATTERS = 0.1  # share of the swap's effect at the first layer below which the earlier pieces no longer matter


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Ways to write one word, its pieces' way to one state, and what writing costs here and in ordinary text.

    Raises:
        Skip: the prompt holds no word.
    """
    word = chosen(found, given)
    if word is None:
        raise Skip("no_word")
    spelt = b"".join(token_bytes(found.tokenizer, i) for i in word.ids)
    vocabulary = _vocabulary(found)
    pieces = pieces_in(spelt, vocabulary)
    tail = len(found.ids) - word.end
    kept = fewest(spelt, pieces, min(MOST, max(LEAST, TOKENS // (tail + 4))))
    kept += [] if word.ids in kept else [word.ids]
    rows = _compared(found, word, kept)
    merging, tables = _merging(found, given, word, rows, one_token_form(spelt, vocabulary))
    numbers = {
        "word": word.text, "begin": word.begin, "end": word.end, "ways": ways(spelt, pieces), "run": len(rows),
        "before": word.begin > 0, "p": float(found.logits_V.softmax(-1)[found.target]), **_likely(rows), "merging": merging,
    }  # fmt: skip
    for row in rows:
        del row["ids"]
    return Measured(numbers, {"ways": rows, **tables, "writing": writing(found, given), "tokens": _spelt(found)})


def chosen(found: Decision, given: Given) -> Word | None:
    """The word nearest to the end that is several tokens; else the longest. In a chat, one that the user wrote."""
    words = words_of(found.ids, [token_bytes(found.tokenizer, i) for i in found.ids], special_positions(found))
    words = [w for w in words if len(w.text.encode()) <= LONGEST and (not given.chat or w.text.strip() in given.prompt)]
    near = [w for w in words if w.end > len(found.ids) - NEAR] or words
    several = [w for w in near if len(w.ids) > 1]
    return several[-1] if several else max(near, key=lambda w: (w.begin > 0, w.weight, w.begin), default=None)


def _vocabulary(found: Decision) -> list[tuple[int, bytes]]:
    size = min(len(found.tokenizer), found.anatomy.embed.weight.shape[0])
    special = set(getattr(found.tokenizer, "all_special_ids", []))
    return [(i, token_bytes(found.tokenizer, i)) for i in range(size) if i not in special]


# what each way does


def _compared(found: Decision, word: Word, kept: Sequence[tuple[int, ...]]) -> list[dict[str, Any]]:
    logits_NV, log_p = run_ways(found, word, kept)
    log_NV = logits_NV.log_softmax(-1)
    own = kept.index(word.ids)
    kl_N = kl_nats(log_NV[own], log_NV).clamp_min(0)
    difference_N, first_N = found.question.of(logits_NV), logits_NV.argmax(-1)
    return [
        {"ids": way, "tokens": [found.written(i) for i in way], "own": i == own, "log_p": None if log_p is None else log_p[i],
         "p": float(log_NV[i, found.target].exp()), "difference_logits": float(difference_N[i]), "kl_nats": float(kl_N[i]),
         "first": found.written(int(first_N[i])), "first_changed": int(first_N[i]) != int(first_N[own])}
        for i, way in enumerate(kept)
    ]  # fmt: skip


@torch.no_grad()
def run_ways(found: Decision, word: Word, kept: Sequence[tuple[int, ...]]) -> tuple[Tensor, list[float] | None]:
    """The word written in each of N ways, the rest of the prompt as it is.

    Returns:
        (N, V) logits of the choice, in double precision.
        ln p of each way's tokens after what stands before, nats; None where nothing does.
    """
    anatomy, device, tail = found.anatomy, found.ids_BT.device, found.ids[word.end :]
    order = sorted(range(len(kept)), key=lambda i: len(kept[i]))
    logits: list[Any] = [None] * len(kept)
    log_p = [0.0] * len(kept)
    with evaluating(anatomy.model):
        cache = anatomy.base(found.ids_BT[:, : word.begin], use_cache=True).past_key_values if word.begin else None
        for start in range(0, len(order), ROWS):
            some = order[start : start + ROWS]
            rows = [[*kept[i], *tail] for i in some]
            width = max(map(len, rows))
            padded = torch.tensor([r + r[-1:] * (width - len(r)) for r in rows], device=device)  # what follows is never read
            mine = copy.deepcopy(cache)
            if mine is not None:
                mine.batch_repeat_interleave(len(some))
            states_BTD = anatomy.base(padded, past_key_values=mine, use_cache=mine is not None).last_hidden_state
            at = [(b, t) for b, (i, row) in enumerate(zip(some, rows)) for t in (*range(len(kept[i]) - 1), len(row) - 1)]
            read_NV = shaped(anatomy, raw_logits(anatomy, states_BTD[tuple(zip(*at))]))
            first = 0
            for i in some:
                inside, (last_V,) = read_NV[first : first + len(kept[i])].split([len(kept[i]) - 1, 1])
                first += len(kept[i])
                logits[i] = last_V.double()
                log_p[i] = float((inside[range(len(inside)), list(kept[i][1:])] - inside.logsumexp(-1)).double().sum())
    if not word.begin:
        return torch.stack(logits), None
    first_V = found.base.logits_BTV[0, word.begin - 1].double().log_softmax(-1)
    return torch.stack(logits), [p + float(first_V[way[0]]) for p, way in zip(log_p, kept)]


def _likely(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How the model spreads the word's probability over the ways that were run."""
    if rows[0]["log_p"] is None:
        return {"own_log_p": None, "word_log_p": None, "own_rank": None, "own_share": None}
    own = next(r["log_p"] for r in rows if r["own"])
    total = float(torch.tensor([r["log_p"] for r in rows], dtype=torch.float64).logsumexp(0))
    for row in rows:
        row["share"] = float(torch.tensor(row["log_p"] - total, dtype=torch.float64).exp())
    return {
        "own_log_p": own, "word_log_p": total, "own_rank": sum(r["log_p"] > own for r in rows),
        "own_share": next(r["share"] for r in rows if r["own"]),
    }  # fmt: skip


# where the pieces become one word


def _merging(
    found: Decision, given: Given, word: Word, rows: list[dict[str, Any]], form: tuple[int, bool] | None
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    several = [r for r in rows if len(r["ids"]) > 1]
    if not several:
        return {"why_not": "one_piece"}, {"attention": [], "merging": [], "swap": []}
    way = word.ids if len(word.ids) > 1 else max(several, key=lambda r: r["log_p"] or 0.0)["ids"]
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
    both = capture(found.anatomy, torch.tensor([[*before, whole], [*before, way[-1]]], device=found.ids_BT.device))
    others = [i for i in range(1, run.ids_BT.shape[1]) if not begin <= i <= last]
    rows = []
    for i, (mine_TD, both_2D) in enumerate(zip(_states(run), _states(both))):
        whole_D, alone_D = both_2D[-1].double()
        cosine_T = cosine_similarity(mine_TD[:, 0].double(), whole_D[None], dim=-1)
        pieces, null = float(cosine_T[last]), float(cosine_T[others].mean()) if others else None
        rows.append({
            "after": i - 1 if i else None, "pieces": pieces, "alone": float(cosine_similarity(alone_D, whole_D, dim=0)),
            "others": null, "likeness": None if null is None else (pieces - null) / max(1 - null, 1e-9),
        })  # fmt: skip
    return rows


def _states(seen: Capture) -> list[Tensor]:
    """(T, B, D) each: the residual as it enters the first layer, then after every layer."""
    return [x.transpose(0, 1) for x in (*(layer.resid_BTD for layer in seen.layers), seen.final_BTD)]


def _swap(
    found: Decision, given: Given, run: Capture, ids: list[int], word: Word, last: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    begin = word.begin
    if found.anatomy.bypasses:
        return {"why_not": "unseen"}, []
    draws = _other_pieces(found, given, ids[begin:last], _cyrillic(word.text))
    if not draws:
        return {"why_not": "no_reference"}, []
    every = max(1, -(-DRAWS * found.anatomy.n_layers * (len(ids) - last) // TOKENS))
    layers = list(range(0, found.anatomy.n_layers, every))
    log_p = run.logits_BTV[0, -1].double().log_softmax(-1)
    was, first = float(found.question.of(run.logits_BTV[:, -1].double())), int(log_p.argmax())
    kl, difference, changed = [], [], []
    for other in draws:
        replaced = torch.tensor([[*ids[:begin], *other]], device=found.ids_BT.device)
        logits_LV = swapped_logits(found, run, capture(found.anatomy, replaced), begin, last, layers)
        kl.append(kl_nats(log_p, logits_LV.log_softmax(-1)).clamp_min(0))
        difference.append(found.question.of(logits_LV))
        changed.append(logits_LV.argmax(-1) != first)
    kl_L = torch.stack(kl).mean(0)
    rows = [
        {"layer": at, "kl_nats": float(kl_L[i]), "difference_logits": float(torch.stack(difference).mean(0)[i]),
         "first_changed": int(torch.stack(changed)[:, i].sum())}
        for i, at in enumerate(layers)
    ]  # fmt: skip
    over = settled([k <= MATTERS * float(kl_L[0]) for k in kl_L.tolist()] + [True])
    return {
        "was_logits": was, "draws": [[found.written(i) for i in other] for other in draws], "every": every,
        "over": layers[over] if over < len(layers) else None, "last_tested": layers[-1],
    }, rows  # fmt: skip


def _other_pieces(found: Decision, given: Given, mine: list[int], cyrillic: bool) -> list[list[int]]:
    """Beginnings of other words of the script in the reference text, as many tokens as the earlier pieces, drawn by the seed."""
    ids, length = given.reference_ids, len(mine)
    words = words_of(ids, [token_bytes(found.tokenizer, i) for i in ids])
    words = [w for w in words if _cyrillic(w.text) == cyrillic] or words
    starts = [w.begin for w in words if w.begin + length <= len(ids) and ids[w.begin] != mine[0]]
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(given.seed)).tolist()
    return [ids[starts[i] : starts[i] + length] for i in order[:DRAWS]]


@torch.no_grad()
def swapped_logits(found: Decision, run: Capture, other: Capture, begin: int, last: int, layers: list[int]) -> Tensor:
    """(layers, V) logits when, from each layer on, positions `begin` to `last` - 1 are read as in the other run."""
    anatomy = found.anatomy
    mine, theirs = keys_and_values(anatomy, run, last), keys_and_values(anatomy, other, last)
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


# what writing costs


def writing(found: Decision, given: Given) -> list[dict[str, Any]]:
    """Tokens, bytes, letters and words of the prompt and of the reference text's halves."""
    ids, cut = given.reference_ids, _first_cyrillic(found, given.reference_ids)
    texts = [("prompt", found.ids), ("english", ids[:cut]), ("russian", ids[cut:])]
    return [{"text": name, **_counted(found, some)} for name, some in texts if some]


def _counted(found: Decision, ids: list[int]) -> dict[str, Any]:
    ids = [i for i in ids if not is_special(found.tokenizer, i)]
    spelt = [token_bytes(found.tokenizer, i) for i in ids]
    text = b"".join(spelt).decode("utf-8", "ignore")
    return {
        "tokens": len(ids), "bytes": sum(map(len, spelt)), "letters": sum(c.isalpha() for c in text),
        "words": sum(any(c.isalpha() for c in w) for w in text.split()), "parts": sum(_is_part(b) for b in spelt),
    }  # fmt: skip


def _is_part(spelt: bytes) -> bool:
    """Whether a token holds a letter only in part."""
    try:
        spelt.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _first_cyrillic(found: Decision, ids: list[int]) -> int:
    for begin, _, text in letters([token_bytes(found.tokenizer, i) for i in ids]):
        if _cyrillic(text):
            return begin
    return len(ids)


def _cyrillic(text: str) -> bool:
    return any("\u0400" <= c <= "\u04ff" for c in text)


def _spelt(found: Decision) -> list[dict[str, Any]]:
    rows = []
    for token, shown in zip(found.ids, found.letters()):
        spelt = token_bytes(found.tokenizer, token)
        rows.append({"text": found.written(token), "letters": shown, "bytes": spelt.hex(" ").upper(), "part": _is_part(spelt)})
    return rows
