"""Chain of thought: the answer's probability as the steps come in, what each step is worth, what samples say.  [torch]

    p after t tokens = p(target | the text with only the first t tokens of its steps)
    change by a step = ln p(target | step left out, corrupted or reworded) - ln p(target | as it is)
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import torch

from intaglio.measure.choice.decision import Decision, ends_of, prompt_ids
from intaglio.measure.choice.decoding import Drawn, Setting, Started, continuations, start
from intaglio.measure.choice.edits import corrupted, encoded, reworded
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.lenses.context import sentences_of
from intaglio.measure.choice.pieces import SENTENCE, Piece
from intaglio.measure.choice.variants import run_variants

POINTS = 32  # places along the steps at which the answer is asked for: after every token, where they have fewer
CHANGED = 6  # steps changed one by one, the last ones
SAMPLES, LENGTH = 16, 5  # continuations drawn, tokens of each
WAYS = ("drop", "corrupt", "reword")
TOOL_MARK = re.compile(
    r"<[|｜]?(?:start[_▁])?(?:tool|function)[_▁]?calls?(?:[_▁](?:section[_▁])?(?:begin|start))?[|｜]?>|<\|python_tag\|>|\[TOOL_CALLS\]"
)


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """The answer's probability along the steps, each step's worth, sampled answers with and without steps, tool calls.

    Raises:
        Skip: no finished sentence stands before the last one.
    """
    steps = steps_of(found, given)
    if not steps:
        raise Skip("no_steps")
    along = path(found, steps)
    changed = changes(found, given, steps)
    numbers = {
        "target": found.written(found.target), "steps": len(steps), "changed": len(changed), "points": len(along),
        "tokens": sum(p.end - p.begin for p in steps), "p": along[-1]["p"], "first": along[-1]["first"],
        "template": bool(getattr(found.tokenizer, "chat_template", None)),
    }  # fmt: skip
    ends = [r for r in along if r["end_of"] is not None]
    rows = [
        {"number": i + 1, "text": p.text, "tokens": p.end - p.begin, "p": after["p"],
         "gain_nats": after["log_p"] - before["log_p"]}
        for i, (p, (before, after)) in enumerate(zip(steps, pairwise(ends)))
    ]  # fmt: skip
    words, sampled = samples(found, given, steps)
    return Measured(
        {**numbers, **sampled},
        {"path": along, "steps": rows, "changes": changed, "words": words, "tools": tools(found)},
    )


def steps_of(found: Decision, given: Given) -> list[Piece]:
    """The finished sentences that lead to the decision; what comes after the last of them is asked every time.

    In a chat they are those of the model's own answer so far, or where it has none those of the message but the last.
    """
    pieces = sentences_of(found)
    spans = _turns(found, given) or [(0, len(found.ids))]
    for begin, end in reversed(spans):
        inside = [_clipped(found, p, begin, end) for p in pieces if p.begin < end and p.end > begin]
        steps = [p for p in inside[:-1] if SENTENCE.search(p.text) and p.text.strip()]
        if steps:
            return steps
    return []


def _clipped(found: Decision, piece: Piece, begin: int, end: int) -> Piece:
    begin, end = max(piece.begin, begin), min(piece.end, end)
    return piece if (begin, end) == (piece.begin, piece.end) else Piece(begin, end, found.text(found.ids[begin:end]), piece.role)


def _turns(found: Decision, given: Given) -> list[tuple[int, int]]:
    """In a chat: where the message stands and where the answer so far does."""
    if not given.chat or not given.prompt.strip() or not getattr(found.tokenizer, "chat_template", None):
        return []
    asked = prompt_ids(found.tokenizer, given.prompt, chat=True)
    if found.ids[: len(asked)] != asked:
        return []
    before, message, _ = found.text(asked).rpartition(given.prompt.strip())
    ends = [len(found.text(asked[: i + 1])) for i in range(len(asked))]
    begin = next((i for i, e in enumerate(ends) if e > len(before)), 0)
    end = next((i + 1 for i, e in enumerate(ends) if e >= len(before) + len(message)), len(asked))
    return [(begin, end), (len(asked), len(found.ids))]


def with_tokens(found: Decision, steps: list[Piece], count: int) -> list[int]:
    """The text with only the first `count` tokens of its steps; all that is no step stays."""
    places = [i for p in steps for i in range(p.begin, p.end)]
    gone = set(places[count:])
    return [t for i, t in enumerate(found.ids) if i not in gone]


def path(found: Decision, steps: list[Piece]) -> list[dict[str, Any]]:
    """The answer asked for after none, some and all tokens of the steps: their ends first, then evenly between."""
    places = [i for p in steps for i in range(p.begin, p.end)]
    ends = {0: 0}
    for number, p in enumerate(steps):
        ends[max(ends) + p.end - p.begin] = number + 1
    counts = points(len(places), sorted(ends))
    seen = run_variants(found.anatomy, found.ids, [with_tokens(found, steps, c) for c in counts[:-1]])
    log_p = torch.cat([seen.logits_NV, found.logits_V[None]]).log_softmax(-1)
    return [
        {"tokens": count, "position": places[count - 1] if count else None,
         "text": found.written(found.ids[places[count - 1]]) if count else "", "end_of": ends.get(count),
         "log_p": float(row[found.target]), "p": float(row[found.target].exp()), "first_p": float(row.max().exp()),
         "rank": int((row > row[found.target]).sum()), "first": found.written(int(row.argmax()))}
        for count, row in zip(counts, log_p)
    ]  # fmt: skip


def points(tokens: int, ends: list[int]) -> list[int]:
    """Counts of tokens at which to ask: all ends, then evenly spaced ones as long as there is room."""
    room = max(0, min(POINTS, tokens + 1) - len(ends))
    others = [c for c in range(tokens + 1) if c not in ends]
    return sorted({*ends, *(others[(2 * i + 1) * len(others) // (2 * room)] for i in range(room))})


def changes(found: Decision, given: Given, all_steps: list[Piece]) -> list[dict[str, Any]]:
    """What the absence, false content or other wording of each of the last steps does to ln p of the answer, nats."""
    draw, room = random.Random(given.seed), _room(found)
    first = max(0, len(all_steps) - CHANGED)
    steps = all_steps[first:]
    made: list[dict[str, list[int] | None]] = [
        {"drop": found.ids[: p.begin] + found.ids[p.end :], "corrupt": corrupted(found, p, given.reference_ids, draw),
         "reword": reworded(found, p)}
        for p in steps
    ]  # fmt: skip
    asked = [(i, way) for i, ways in enumerate(made) for way in WAYS if ways[way] and len(ways[way]) <= len(found.ids) + room]
    seen = run_variants(found.anatomy, found.ids, [made[i][way] for i, way in asked])
    log_p, now = seen.logits_NV.log_softmax(-1), float(found.logits_V.log_softmax(-1)[found.target])
    rows = [{"number": first + i + 1, "text": p.text, **{k: None for way in WAYS for k in (f"{way}_nats", f"{way}_first")}}
            for i, p in enumerate(steps)]  # fmt: skip
    for (i, way), row in zip(asked, log_p):
        rows[i] |= {f"{way}_nats": float(row[found.target]) - now, f"{way}_first": found.written(int(row.argmax()))}
    for row, p, ways in zip(rows, steps, made):
        row["corrupt_text"] = found.text(ways["corrupt"][p.begin : p.end]) if ways["corrupt"] else None
    return rows


def _room(found: Decision) -> int:
    """Tokens that the context still holds."""
    return max(0, found.context - len(found.ids))


def samples(found: Decision, given: Given, steps: list[Piece]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """First words of sampled continuations after the whole text and after its first step alone, and the target's own word.

    The target's word is what the model goes on to write when it must begin with the target; a sample agrees when
    its first word is that one.
    """
    length = min(LENGTH, _room(found))
    if not length:
        return [], {"samples": 0}
    whole = start(found.anatomy, found.ids)
    kept = steps[0].end - steps[0].begin if len(steps) > 1 else 0
    bare = start(found.anatomy, with_tokens(found, steps, kept))
    word = first_word(found, _forced(found, whole, length)[0].tokens)
    with_all, without = (Counter(_drawn(found, given, prompt, length)) for prompt in (whole, bare))
    order = sorted(with_all | without, key=lambda w: (-with_all[w], -without[w], w))
    rows = [{"word": w, "with_steps": with_all[w], "bare": without[w], "agrees": w == word} for w in order]
    top, most = min(with_all.items(), key=lambda item: (-item[1], item[0]))
    return rows, {
        "samples": SAMPLES, "length": length, "word": word, "agree": with_all[word], "agree_bare": without[word], "top": top,
        "top_count": most, "different": len(with_all), "bare_steps": int(len(steps) > 1),
    }  # fmt: skip


def _forced(found: Decision, prompt: Started, length: int) -> list[Drawn]:
    """What the model writes when it must begin with the target, by its likeliest tokens."""
    only = torch.full_like(prompt.logits_BV, float("-inf"))
    only[:, found.target] = 0.0
    forced = dataclasses.replace(prompt, logits_BV=only)
    ends = ends_of(found.anatomy.model)
    return continuations(found.anatomy, forced, [(Setting("greedy", draw=False), None)], steps=length, ends=ends)


def _drawn(found: Decision, given: Given, prompt: Started, length: int) -> list[str]:
    wanted = [(Setting("unchanged"), given.seed + i) for i in range(SAMPLES)]
    drawn = continuations(found.anatomy, prompt, wanted, steps=length, ends=ends_of(found.anatomy.model))
    return [first_word(found, d.tokens) for d in drawn]


def first_word(found: Decision, tokens: list[int]) -> str:
    """The first word of a continuation, or its first sign; "" where it is nothing but space or special tokens."""
    special = set(getattr(found.tokenizer, "all_special_ids", []))
    match = re.match(r"\s*(\w+|[^\w\s])", found.text([t for t in tokens if t not in special]))
    return match[1] if match else ""


def tools(found: Decision) -> list[dict[str, Any]]:
    """Marks that open a tool call, in the tokenizer's added tokens and chat template, and how likely they are here."""
    added = [t.content for t in getattr(found.tokenizer, "added_tokens_decoder", {}).values()]
    text = "\n".join([*added, str(getattr(found.tokenizer, "chat_template", None) or "")])
    p = found.logits_V.softmax(-1)
    rows = []
    for mark in dict.fromkeys(TOOL_MARK.findall(text)):
        ids = encoded(found.tokenizer, mark)
        if ids and ids[0] < len(p):
            rows.append({"mark": mark, "pieces": len(ids), "p": float(p[ids[0]]), "rank": int((p > p[ids[0]]).sum())})
    return rows
