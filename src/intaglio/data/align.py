"""Which tokens stand for which characters of a text, whatever the tokenizer. Pure.

A fast tokenizer says so itself. Any other is asked for its tokens, whose bytes are laid along the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intaglio.data.vocab import token_bytes
from intaglio.errors import DataError

Span = tuple[int, int]  # first and one past the last


def tokens_of(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """The ids of a text, without special tokens, and the characters that each stands for.

    Where letters are split over tokens, each of these tokens stands for the whole letter.

    Raises:
        DataError: the tokenizer changes the text, so that its tokens cannot be laid along it.
    """
    if getattr(tokenizer, "is_fast", False):
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        return list(made["input_ids"]), [(int(b), int(e)) for b, e in made["offset_mapping"]]
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids, _laid_along(text, [token_bytes(tokenizer, i) for i in ids])


def _laid_along(text: str, pieces: Sequence[bytes]) -> list[Span]:
    """Characters of every piece; a space that the tokenizer put in front is nobody's."""
    joined = b"".join(pieces)
    extra = len(joined) - len(text.encode())
    if joined[max(extra, 0) :] != text.encode() or joined[: max(extra, 0)].strip():
        raise DataError("the tokenizer changes the text, so its tokens cannot be laid along the words",
                        got=joined.decode("utf-8", "replace")[:60], expected=text[:60])  # fmt: skip
    letter = [i for i, c in enumerate(text) for _ in c.encode()]  # of every byte
    spans, at = [], -extra
    for piece in pieces:
        begin, end = max(at, 0), at + len(piece)
        spans.append((letter[begin], letter[end - 1] + 1) if end > begin else (0, 0))
        at = end
    return spans


def tokens_of_words(text: str, spans: Sequence[Span], words: Sequence[Span]) -> list[list[int]]:
    """For each word (as characters) the tokens that are its own, in order; [] where it has none.

    A token belongs to one word at most: the one with most of its characters, white space not counted, the first
    where two have as many.

    Args:
        spans: the characters of every token.
        words: the characters of every word, ascending and without overlap.
    """
    owner = [-1] * len(text)
    for w, (begin, end) in enumerate(words):
        owner[begin:end] = [w] * (end - begin)
    found: list[list[int]] = [[] for _ in words]
    for t, (begin, end) in enumerate(spans):
        held = [owner[i] for i in range(begin, end) if owner[i] >= 0 and not text[i].isspace()]
        if held:
            found[max(held, key=lambda w: (held.count(w), -w))].append(t)
    return found
