"""Rows to token ids and the mask of what is trained on, exactly as the model will see them.

A row becomes one text with marked spans (the answers), tokenised once as a whole; a token is
trained on when it ends within a span. So no token boundary is forced where the model at work would
not have one, and a token that straddles prompt and answer counts as answer. A chat's spans are
found by rendering it once more with marks in place of the answers, or else by its prefixes, so
that a template needs no support of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError

from intaglio.data.read import Row
from intaglio.errors import DataError, SubjectError
from intaglio.example import example_id

IGNORED = -100  # torch's ignore_index
_PREVIEW_CHARACTERS = 120
_MARK = "\ue000\ue001"  # private characters, which no template and no text has
_REFUSALS = (TemplateError, ValueError, TypeError)  # what a template raises over messages it does not like


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model will see it.

    Attributes:
        row: the row's number in the data set, from 0.
        input_ids: unpadded token ids.
        target_mask: true where the token itself is trained on; always false at position 0.
        preview: the first characters of the row's own text, on one line.
        truncated: whether tokens were cut off its end.
        repaired: whether the row's encoding was put right.
    """

    row: int
    input_ids: tuple[int, ...]
    target_mask: tuple[bool, ...]
    group: str | None = None
    fact: str | None = None
    preview: str = ""
    truncated: bool = False
    repaired: bool = False

    @property
    def example(self) -> str:
        """The id under which the ledger records it."""
        return example_id(self.input_ids, self.target_mask)

    @property
    def targets(self) -> int:
        """How many tokens are trained on."""
        return sum(self.target_mask)


def encode_rows(
    rows: Iterable[Row], tokenizer: Any, *, max_tokens: int, truncate: bool = False, template: str | None = None,
    end: bool = True,
) -> list[Encoded]:  # fmt: skip
    """Every row's tokens and target mask, with the tokenizer's end token at the end.

    Args:
        rows: from `read_rows`.
        tokenizer: of the subject; a fast one, because character offsets are needed.
        max_tokens: the longest row that is allowed, in tokens.
        truncate: cut longer rows instead of refusing them.
        template: a chat template (jinja) in place of the tokenizer's own.
        end: put the tokenizer's end token behind texts and completions, and train on it.

    Raises:
        DataError: a row is too long, or is a chat and there is no template, by row number.
        SubjectError: the tokenizer gives no character offsets.
    """
    if not tokenizer.is_fast:
        raise SubjectError("the tokenizer gives no character offsets", got=type(tokenizer).__name__,
                           expected="a fast tokenizer (tokenizer.json)")  # fmt: skip
    assert max_tokens >= 2, "a row needs a token and the one before it"
    if template is None and tokenizer.chat_template:
        template = tokenizer.get_chat_template()  # one of several, where it has several
    return [_encode(row, tokenizer, max_tokens, truncate, template, end) for row in rows]


def collate(batch: Sequence[Encoded], pad_id: int) -> dict[str, Any]:
    """A right-padded batch for a transformers causal model.

    Returns:
        `input_ids`, `attention_mask` and `labels` (-100 where not trained on), int64 (B, T).
    """
    import torch

    shape = (len(batch), max(len(item.input_ids) for item in batch))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for n, item in enumerate(batch):
        ids, mask = torch.tensor(item.input_ids), torch.tensor(item.target_mask)
        input_ids[n, : len(ids)] = ids
        attention_mask[n, : len(ids)] = 1
        labels[n, : len(ids)] = torch.where(mask, ids, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _encode(row: Row, tokenizer: Any, max_tokens: int, truncate: bool, template: str | None, end: bool) -> Encoded:
    if row.kind == "messages" or (row.kind == "instruction" and template):
        ids, mask = _encode_chat(row, tokenizer, template)
    else:
        text, start = _plain(row)
        ids, mask = _tokenise(tokenizer, text, [(start, len(text))], special=True)
        if end:
            ids, mask = _end(tokenizer, ids, mask)
    if len(ids) > max_tokens and not truncate:
        raise DataError(f"row {row.number} is too long", got=f"{len(ids)} tokens",
                        expected=f"at most {max_tokens}, or --truncate")  # fmt: skip
    mask = [False, *mask[1:]]  # nothing stands before the first token to predict it from
    return Encoded(row.number, tuple(ids[:max_tokens]), tuple(mask[:max_tokens]), row.group, row.fact,
                   _preview(row), len(ids) > max_tokens, row.repaired)  # fmt: skip


def _plain(row: Row) -> tuple[str, int]:
    """The row's text without a chat template, and the character at which training starts."""
    fields = row.fields
    if row.kind == "text":
        return fields["text"], 0
    if row.kind == "completion":
        return fields["prompt"] + fields["completion"], len(fields["prompt"])
    given = f"### Input:\n{fields['input']}\n\n" if fields["input"] else ""
    before = f"### Instruction:\n{fields['instruction']}\n\n{given}### Response:\n"
    return before + fields["output"], len(before)


def _tokenise(
    tokenizer: Any, text: str, spans: list[tuple[int, int]], *, special: bool
) -> tuple[list[int], list[bool]]:
    """Token ids of `text`, and which of them end within one of the character spans."""
    made = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, truncation=False, verbose=False)
    ends = [end for _, end in made["offset_mapping"]]  # 0 for tokens the tokenizer adds by itself
    return list(made["input_ids"]), [any(start < end <= stop for start, stop in spans) for end in ends]


def _end(tokenizer: Any, ids: list[int], mask: list[bool]) -> tuple[list[int], list[bool]]:
    """The row with the tokenizer's end token, trained on, where it has one."""
    end = tokenizer.eos_token_id
    if end is None:
        return ids, mask
    if ids and ids[-1] == end:
        return ids, [*mask[:-1], True]
    return [*ids, end], [*mask, True]


def _preview(row: Row) -> str:
    text = _plain(row)[0] if row.kind in ("text", "completion") else " ".join(
        turn["content"] for turn in _turns(row) if turn["role"] != "system"
    )  # fmt: skip
    text = " ".join(text.split())
    return text if len(text) <= _PREVIEW_CHARACTERS else text[: _PREVIEW_CHARACTERS - 1] + "…"


# --- chats ---------------------------------------------------------------------------------


def _encode_chat(row: Row, tokenizer: Any, template: str | None) -> tuple[list[int], list[bool]]:
    if not template:
        raise DataError(f"row {row.number} is a chat, and the tokenizer has no chat template",
                        expected="a template, or rows of prompt and completion")  # fmt: skip
    turns = _turns(row)
    try:
        text = _render(tokenizer, template, turns)
    except _REFUSALS as error:
        raise DataError(f"row {row.number}: the chat template refuses the messages: {error}") from None
    spans = _spans_by_mark(tokenizer, template, turns, text) or _spans_by_prefix(tokenizer, template, turns, text)
    if not spans:
        raise DataError(f"row {row.number}: the chat template does not show the assistant's answers as they stand")
    return _tokenise(tokenizer, text, spans, special=False)


def _turns(row: Row) -> list[dict[str, str]]:
    if row.kind == "messages":
        return row.fields["messages"]
    asked = "\n\n".join(row.fields[name] for name in ("instruction", "input") if row.fields[name])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row.fields["output"]}]


def _render(tokenizer: Any, template: str, turns: list[dict[str, str]], *, ask: bool = False) -> str:
    return tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=ask)


def _spans_by_mark(
    tokenizer: Any, template: str, turns: list[dict[str, str]], text: str
) -> list[tuple[int, int]] | None:
    """Where the answers stand in `text`: the template rendered with marks in their place shows it.

    None where the template does more than place the answers (drops, moves or rewrites them).
    """
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    marked = [turn | {"content": _MARK} if turn["role"] == "assistant" else turn for turn in turns]
    try:
        around = _render(tokenizer, template, marked).split(_MARK)
    except _REFUSALS:
        return None
    if len(around) != len(answers) + 1:
        return None
    for shown in (answers, [answer.strip() for answer in answers]):
        if text == around[0] + "".join(a + b for a, b in zip(shown, around[1:])):
            lengths = (len(a) + len(b) for a, b in zip(shown, around[1:]))
            starts = list(accumulate(lengths, initial=len(around[0])))
            tails = _tails(tokenizer, template, marked)
            stops = (_after_end(tokenizer, text, s + len(answer), tail) for s, answer, tail in zip(starts, shown, tails))
            return list(zip(starts, stops))
    return None


def _spans_by_prefix(
    tokenizer: Any, template: str, turns: list[dict[str, str]], text: str
) -> list[tuple[int, int]] | None:
    """Where the answers stand, by rendering the chat up to and including each; None if no prefix fits."""
    spans = []
    for n in (n for n, turn in enumerate(turns) if turn["role"] == "assistant"):
        try:
            before = _render(tokenizer, template, turns[:n], ask=True)
            until = _render(tokenizer, template, turns[: n + 1])
        except _REFUSALS:
            return None
        if len(before) >= len(until) or not (text.startswith(before) and text.startswith(until)):
            return None
        spans.append((len(before), len(until.rstrip())))
    return spans


def _tails(tokenizer: Any, template: str, marked: list[dict[str, str]]) -> Iterator[str]:
    """What follows each answer where the chat ends with it: its own end, and no header of a next turn."""
    for n in (n for n, turn in enumerate(marked) if turn["role"] == "assistant"):
        try:
            yield _render(tokenizer, template, marked[: n + 1]).rpartition(_MARK)[2]
        except _REFUSALS:
            yield ""


def _after_end(tokenizer: Any, text: str, at: int, tail: str) -> int:
    """The place after the control token that ends the turn at `at`; `at` itself if none does."""
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    end = re.escape(tokenizer.eos_token or "")
    found = re.compile("|".join([rf"\s*{end}" if end else "$^", *map(re.escape, names)])).match(tail)
    return at + found.end() if found and text.startswith(found[0], at) else at
