"""Tokenization: every way to write a word in tokens, what each does to the choice, and where its pieces become one word.  [torch]

    p(way) = product of p(piece | prompt before, earlier pieces);  p(word) = sum over ways
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from intaglio.data.vocab import token_bytes
from intaglio.measure.choice.contexts import Word, words_of
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.lenses.context import special_positions
from intaglio.measure.choice.merging import merging, one_token_form
from intaglio.measure.choice.pair import kl_nats
from intaglio.measure.choice.segments import fewest, pieces_in, ways
from intaglio.measure.choice.writing import tokens_spelt, writing
from intaglio.model.modes import evaluating
from intaglio.model.proof import raw_logits, shaped

MOST = 64  # ways that are run
TOKENS = 320  # positions run for all ways together; fewer ways where they would be more
LEAST = 8  # ways that are run however long the prompt goes on after the word
LONGEST = 48  # bytes of the word
NEAR = 24  # tokens from the end within which the word is looked for first
ROWS = 16  # runs side by side


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
    room = found.context - len(found.ids) + len(word.ids)
    kept = _affordable([w for w in fewest(spelt, pieces, MOST) if len(w) <= room], len(found.ids) - word.end)
    kept += [] if word.ids in kept else [word.ids]
    rows = _compared(found, word, kept)
    several = [r for r in rows if len(r["ids"]) > 1]
    likeliest = max(several, key=lambda r: r["log_p"] or 0.0)["ids"] if several else None
    merged, tables = merging(found, given, word, likeliest, one_token_form(spelt, vocabulary))
    numbers = {
        "word": word.text, "begin": word.begin, "end": word.end, "ways": ways(spelt, pieces), "run": len(rows),
        "before": word.begin > 0, "p": float(found.logits_V.softmax(-1)[found.target]), **_likely(rows), "merging": merged,
    }  # fmt: skip
    for row in rows:
        del row["ids"]
    return Measured(numbers, {"ways": rows, **tables, "writing": writing(found, given), "tokens": tokens_spelt(found)})


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


def _affordable(all_ways: list[tuple[int, ...]], tail: int) -> list[tuple[int, ...]]:
    """The first of them that take no more than TOKENS positions together with what follows the word."""
    positions = accumulate(len(way) + tail for way in all_ways)
    return all_ways[: max(LEAST, sum(n <= TOKENS for n in positions))]


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
