"""Prompts with marked words, as tokens: where each marked word lies, whatever the tokenizer.

A prompt begins with the model's own start token where it has one, for many heads rest on the first position,
which should not be a word that a role asks about.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intaglio.data.align import Span, tokens_of, tokens_of_words
from intaglio.data.vocab import is_special
from intaglio.model.anatomy import Anatomy

BATCH_TOKENS = 1024  # run side by side


class Untested(Exception):
    """No fault: a role that this model cannot be asked about; the message says why, for the page."""


@dataclass(frozen=True)
class Prompt:
    """A text's tokens and the places of its marked words.

    Attributes:
        ids: token ids, the start token first.
        spans: mark to the word's tokens, first and one past the last.
        facts: whatever else a role must remember about it.
    """

    text: str
    ids: tuple[int, ...]
    spans: dict[str, Span]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def last(self, mark: str) -> int:
        """Position of the marked word's last token: the first that has read all of it."""
        return self.spans[mark][1] - 1

    def first_id(self, mark: str) -> int:
        """The token that begins the marked word."""
        return self.ids[self.spans[mark][0]]


def start_ids(tokenizer: Any) -> tuple[int, ...]:
    """The start token, or the end token where there is none (GPT-2), or a new line."""
    for found in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return (int(found),)
    return tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])[:1]


def prompt_of(tokenizer: Any, template: str, words: Mapping[str, str], facts: Mapping[str, Any] | None = None) -> Prompt | None:
    """A template with its `{MARK}`s filled in; None where a marked word has no token of its own.

    The space before a word counts as part of its token, as tokenizers have it.
    """
    text, marks, places = "", [], []
    for literal, mark, _, _ in string.Formatter().parse(template):
        text += literal
        if mark is not None:
            marks.append(mark)
            places.append((len(text), len(text) + len(words[mark])))
            text += words[mark]
    start = start_ids(tokenizer)
    ids, spans = tokens_of(tokenizer, text)
    held = tokens_of_words(text, spans, places)
    if not all(held):
        return None
    found = {m: (h[0] + len(start), h[-1] + 1 + len(start)) for m, h in zip(marks, held)}
    return Prompt(text, (*start, *ids), found, facts or {})


def longest(anatomy: Anatomy) -> int:
    """The longest text in tokens that the model was made for; longer ones ask nothing of it."""
    return int(getattr(anatomy.model.config.get_text_config(), "max_position_embeddings", None) or 10**9)


def word_ids(tokenizer: Any, word: str) -> tuple[int, ...]:
    """The word's tokens where it follows a space."""
    return tuple(tokenizer(f" {word}", add_special_tokens=False)["input_ids"])


def fitting(tokenizer: Any, words: Sequence[str], least: int) -> list[str]:
    """The words that are single tokens; where fewer than `least` are, the largest group of equally long ones, if there are
    so many; else all of them.

    Then prompts speak of a word's first or last token, and roles drop what is ambiguous.
    """
    by_size: dict[int, list[str]] = {}
    for word in words:
        ids = word_ids(tokenizer, word)
        by_size.setdefault(len(ids) if not any(is_special(tokenizer, i) for i in ids) else 0, []).append(word)
    single, largest = by_size.get(1, []), max((g for n, g in by_size.items() if n), key=len, default=[])
    return next((group for group in (single, largest) if len(group) >= least), list(words))


def by_length(prompts: Sequence[Prompt], device: torch.device | str = "cpu", most: int = BATCH_TOKENS
              ) -> Iterator[tuple[list[int], Tensor]]:  # fmt: skip
    """Batches of equally long prompts: their numbers and ids_BT; short ones first."""
    lengths = [len(p.ids) for p in prompts]
    for length in sorted(set(lengths)):
        here = [i for i, n in enumerate(lengths) if n == length]
        size = max(1, most // length)
        for start in range(0, len(here), size):
            chunk = here[start : start + size]
            yield chunk, torch.tensor([prompts[i].ids for i in chunk], device=device)


def masked(prompts: Sequence[Prompt], mark: str, device: torch.device | str = "cpu") -> list[tuple[Tensor, Tensor]]:
    """Batches for a loss that counts the tokens of one marked word."""
    found = []
    for chunk, ids_BT in by_length(prompts, device):
        mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, i in enumerate(chunk):
            begin, end = prompts[i].spans[mark]
            mask_BT[row, max(begin, 1) : end] = True
        found.append((ids_BT, mask_BT))
    return found
