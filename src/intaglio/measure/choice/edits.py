"""A prompt with one stretch of its text changed, as token ids again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from intaglio.measure.choice.decision import Decision


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in the middle of another: nothing is put around it."""
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]] if text else []


def comes_back(found: Decision, begin: int, end: int) -> bool:
    """Whether the text of these tokens, tokenised by itself, gives the very same tokens."""
    ids = found.ids[begin:end]
    return encoded(found.tokenizer, found.text(ids)) == ids


def exchanged(found: Decision, first: tuple[int, int], second: tuple[int, int]) -> dict[str, list[int]]:
    """The prompt with two spans in each other's place, and without the first, the second, both.

    White space at the spans' ends stays where it is. Where the tokenizer gives the stretch's tokens
    back, the changed text is tokenised anew; else the tokens themselves are moved.

    Returns:
        Ids by name: swapped, no_first, no_second, neither.
    """
    begin, end = first[0], second[1]
    head, tail = found.ids[:begin], found.ids[end:]
    if comes_back(found, begin, end):
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
        "no_second": lead + first + rest.rstrip() + end, "neither": lead + rest.strip() + end,
    }  # fmt: skip


def _leading(text: str) -> tuple[str, str]:
    cut = len(text) - len(text.lstrip())
    return text[:cut], text[cut:]


def _trailing(text: str) -> tuple[str, str]:
    cut = len(text.rstrip())
    return text[:cut], text[cut:]


def alike(found: Decision, token: int, changed: Callable[[str], str]) -> int | None:
    """The token whose notation is that of `token` with its letters changed; None if there is none."""
    tokenizer = found.tokenizer
    piece = tokenizer.convert_ids_to_tokens(token)
    other = tokenizer.convert_tokens_to_ids(changed(piece))
    same = other is not None and tokenizer.convert_ids_to_tokens(other) == changed(piece)
    return int(other) if same and len(found.written(other)) == len(found.written(token)) else None
