"""A prompt with one stretch of its text changed, as token ids again."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.pieces import Piece, words

DIGIT, CYRILLIC = re.compile("[0-9]"), re.compile("[а-яё]", re.IGNORECASE)
OPENINGS = {"en": "That is,", "ru": "То есть,"}
SPLIT = "\ufffd"  # what part of a letter reads as
LONG = 4  # letters of a word that is worth replacing
TRIES = 20
ANEW = 8  # tokens by which a text may grow where it is tokenised anew


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in the middle of another: nothing is put around it."""
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]] if text else []


def comes_back(found: Decision, begin: int, end: int) -> bool:
    """Whether the text of these tokens, tokenised by itself, gives the very same tokens."""
    ids = found.ids[begin:end]
    return encoded(found.tokenizer, found.text(ids)) == ids


def as_text(found: Decision, begin: int, end: int) -> bool:
    """Whether spans within these tokens are moved as text, tokenised anew: the tokens come back and the context has room."""
    return len(found.ids) + ANEW <= found.context and comes_back(found, begin, end)


def exchanged(found: Decision, first: tuple[int, int], second: tuple[int, int]) -> dict[str, list[int]]:
    """The prompt with two spans in each other's place, and without the first, the second, both.

    White space at the spans' ends stays where it is. Where the tokenizer gives the stretch's tokens
    back (`as_text`), the changed text is tokenised anew; else the tokens themselves are moved.

    Returns:
        Ids by name: swapped, no_first, no_second, neither.
    """
    begin, end = first[0], second[1]
    head, tail = found.ids[:begin], found.ids[end:]
    if as_text(found, begin, end):
        one, two, between = (found.text(found.ids[b:e]) for b, e in (first, second, (first[1], second[0])))
        made = {name: encoded(found.tokenizer, text) for name, text in _texts(one, between, two).items()}
        if not made["neither"] and not one[:1].isspace() and comes_back(found, end, len(found.ids)):
            tail_alone = encoded(found.tokenizer, found.text(tail).lstrip())  # it is what the text begins with now
            return {name: [*head, *(inside + tail if inside else tail_alone)] for name, inside in made.items()}
        return {name: [*head, *inside, *tail] for name, inside in made.items()}
    a, between, b = (found.ids[x:y] for x, y in (first, (first[1], second[0]), second))
    made = {"swapped": b + between + a, "no_first": between + b, "no_second": a + between, "neither": between}
    return {name: [*head, *inside, *tail] for name, inside in made.items()}


def _texts(one: str, between: str, two: str) -> dict[str, str]:
    lead, first = _leading(one)
    gap, second = _leading(two)
    (first, after), (second, end) = _trailing(first), _trailing(second)
    middle = after + between + gap
    rest = "" if not middle.strip() else middle
    return {
        "swapped": lead + second + middle + first + end, "no_first": lead + rest.lstrip() + second + end,
        "no_second": lead + first + rest.rstrip() + end,
        "neither": lead + rest.strip() + end if rest else end if lead else "",
    }  # fmt: skip


def _leading(text: str) -> tuple[str, str]:
    cut = len(text) - len(text.lstrip())
    return text[:cut], text[cut:]


def _trailing(text: str) -> tuple[str, str]:
    cut = len(text.rstrip())
    return text[:cut], text[cut:]


def corrupted(found: Decision, piece: Piece, reference_ids: Sequence[int], draw: random.Random) -> list[int] | None:
    """The prompt with a sentence's digits replaced by other digits, or where it has none its longer words by other words.

    As many tokens stand in the same places; the words come from `reference_ids`. None where nothing could be replaced.
    """
    ids = list(found.ids)
    for i in range(piece.begin, piece.end):
        ids[i] = _other_number(found, ids[i], draw)
    if ids == found.ids:
        pool = {tuple(reference_ids[b:e]) for b, e in _longer_words(found, reference_ids, 0, len(reference_ids))}
        for b, e in _longer_words(found, ids, piece.begin, piece.end):
            word = tuple(ids[b:e])
            others = sorted(w for w in pool if w != word and _kind(found, w) == _kind(found, word))
            ids[b:e] = draw.choice(others) if others else word
    return None if ids == found.ids else ids


def _other_number(found: Decision, token: int, draw: random.Random) -> int:
    """A token whose digits are others, none of them 0; the token itself where it has none or there is no such token."""
    text, piece = found.written(token), found.tokenizer.convert_ids_to_tokens(token)
    if not DIGIT.search(text) or len(DIGIT.findall(text)) != len(DIGIT.findall(piece)):
        return token
    for _ in range(TRIES):
        wanted = DIGIT.sub(lambda m: draw.choice([d for d in "123456789" if d != m[0]]), piece)
        other = found.tokenizer.convert_tokens_to_ids(wanted)
        if other is not None and found.tokenizer.convert_ids_to_tokens(other) == wanted:
            return int(other)
    return token


def _longer_words(found: Decision, ids: Sequence[int], begin: int, end: int) -> list[tuple[int, int]]:
    """Words of at least four letters; where all are shorter, the longest. A mark behind a word is no part of it."""
    spans = []
    for b, e in words([found.text([i]) for i in ids[begin:end]]):
        b, e = begin + b, begin + e
        while e > b + 1 and not any(c.isalnum() or c == SPLIT for c in found.text(ids[e - 1 : e])):
            e -= 1
        if (text := found.text(ids[b:e]).strip()).isalpha():
            spans.append((len(text), b, e))
    least = min(LONG, max((length for length, _, _ in spans), default=LONG))
    return [(b, e) for length, b, e in spans if length >= least]


def _kind(found: Decision, word: Sequence[int]) -> tuple[int, bool, bool]:
    """How many tokens, whether a space stands before it, whether it is ASCII."""
    text = found.text(word)
    return len(word), text[:1].isspace(), text.isascii()


def reworded(found: Decision, piece: Piece) -> list[int] | None:
    """The prompt with "That is," put before a sentence; None where its text does not give its own tokens back."""
    if not comes_back(found, piece.begin, piece.end):
        return None
    lead, text = _leading(found.text(found.ids[piece.begin : piece.end]))
    opening = OPENINGS["ru" if CYRILLIC.search(text) else "en"]
    return [*found.ids[: piece.begin], *encoded(found.tokenizer, f"{lead}{opening} {text}"), *found.ids[piece.end :]]
