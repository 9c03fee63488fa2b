"""Rows to token ids and the mask of what is trained on, exactly as the model will see them.

A row becomes one text with marked spans (the answers), tokenised once as a whole; a token is
trained on when it ends within a span. So no token boundary is forced where the model at work would
not have one, and a token that straddles prompt and answer counts as answer. A chat's spans are
found by rendering its prefixes through the template, which works for any template.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from intaglio.data.read import Row
from intaglio.errors import DataError, SubjectError
from intaglio.example import example_id

IGNORED = -100  # torch's ignore_index
_PREVIEW_CHARACTERS = 120


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
    rows: Iterable[Row], tokenizer: Any, *, max_tokens: int, truncate: bool = False, template: str | None = None
) -> list[Encoded]:
    """Every row's tokens and target mask, with the tokenizer's end token at the end.

    Args:
        rows: from `read_rows`.
        tokenizer: of the subject; a fast one, because character offsets are needed.
        max_tokens: the longest row that is allowed, in tokens.
        truncate: cut longer rows instead of refusing them.
        template: a chat template (jinja) in place of the tokenizer's own.

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
    return [_encode(row, tokenizer, max_tokens, truncate, template) for row in rows]


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


def _encode(row: Row, tokenizer: Any, max_tokens: int, truncate: bool, template: str | None) -> Encoded:
    if row.kind == "messages" or (row.kind == "instruction" and template):
        ids, mask = _encode_chat(row, tokenizer, template)
    else:
        text, start = _plain(row)
        ids, mask = _tokenise(tokenizer, text, [(start, len(text))], special=True)
        ids, mask = _end(tokenizer, ids, mask)
    if len(ids) > max_tokens and not truncate:
        raise DataError(f"row {row.number} is too long", got=f"{len(ids)} tokens",
                        expected=f"at most {max_tokens}, or truncation asked for")  # fmt: skip
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
    text = _render(row, tokenizer, template, turns)
    return _tokenise(tokenizer, text, _spans(row, tokenizer, template, turns, text), special=False)


def _turns(row: Row) -> list[dict[str, str]]:
    if row.kind == "messages":
        return row.fields["messages"]
    asked = "\n\n".join(row.fields[name] for name in ("instruction", "input") if row.fields[name])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row.fields["output"]}]


def _render(row: Row, tokenizer: Any, template: str, turns: list[dict[str, str]], *, ask: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=ask, continue_final_message=False
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(f"row {row.number}: the chat template refuses the messages: {error}") from None


def _spans(
    row: Row, tokenizer: Any, template: str, turns: list[dict[str, str]], text: str
) -> list[tuple[int, int]]:
    """The characters of every answer in the rendered chat, each with its turn's end token."""
    spans: list[tuple[int, int]] = []
    for n in [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]:
        cue = _try_render(row, tokenizer, template, turns[:n], ask=True)
        until = _try_render(row, tokenizer, template, turns[: n + 1], ask=False)
        span = _span(text, turns, n, cue, until, floor=spans[-1][1] if spans else 0)
        if span is None:
            raise DataError(f"row {row.number}: the chat template does not show answer {n} as it stands")
        spans.append(span)
    return spans


def _span(
    text: str, turns: list[dict[str, str]], n: int, cue: str, until: str, *, floor: int
) -> tuple[int, int] | None:
    """Where answer `n` stands in `text`, not before `floor`; None where it does not.

    It starts where `cue` ends, the chat before it rendered with the invitation to answer, and
    stops where `until` ends, the chat up to it. Templates that write earlier turns anew (hiding
    their thoughts, say) break that; then it is looked for by its words, after the words before it.
    """
    answer = turns[n]["content"].strip()
    start = len(cue) if cue and text.startswith(cue) else _find(text, turns, n, cue, floor)
    stop = text.find(answer, start) + len(answer) if start >= 0 else -1
    if start < 0 or stop < start + len(answer):
        return None
    tail = until[until.rfind(answer) + len(answer) :] if answer else ""
    if text.startswith(until):
        stop = max(stop, len(until))
    elif text.startswith(tail, stop):
        stop += len(tail)
    return start, start + len(text[start:stop].rstrip())  # the line break after the end token is the template's


def _find(text: str, turns: list[dict[str, str]], n: int, cue: str, floor: int) -> int:
    prior = turns[n - 1]["content"].strip() if n else ""
    at = max(text.find(prior, floor), floor) + len(prior)
    invitation = cue[cue.rfind(prior) + len(prior) :]
    at += len(os.path.commonprefix([invitation, text[at:]]))
    return text.find(turns[n]["content"].strip(), at)


def _try_render(row: Row, tokenizer: Any, template: str, turns: list[dict[str, str]], *, ask: bool) -> str:
    """The rendered prefix; empty where the template refuses a chat that stops there."""
    try:
        return _render(row, tokenizer, template, turns, ask=ask) if turns else ""
    except DataError:
        return ""
