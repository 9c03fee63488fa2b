"""One decision of one model: the tokens before it, the token that won, and the run that led there.  [torch]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any

import torch
from torch import Tensor

from intaglio.data.vocab import letters, spelled, token_bytes
from intaglio.errors import InputError
from intaglio.measure.choice.votes import Ending, Ledger, Question, Votes, ending_of
from intaglio.model.anatomy import Anatomy
from intaglio.model.capture import Capture, capture
from intaglio.model.proof import prove


@dataclass(eq=False)
class Decision:
    """A model about to choose the token after `ids`.

    Attributes:
        ids: token ids the model sees, exactly.
        target: the token asked about: the one it holds likeliest unless another was named.
        against: the token it is weighed against; None is the mean over the vocabulary.
    """

    anatomy: Anatomy
    tokenizer: Any
    ids: list[int]
    target: int
    against: int | None

    @cached_property
    def ids_BT(self) -> Tensor:
        return torch.tensor([self.ids], device=self.anatomy.unembed.weight.device)

    def asking(self, target: int, against: int | None) -> Decision:
        """The same run, asked about other tokens."""
        other = Decision(self.anatomy, self.tokenizer, self.ids, target, against)
        other.__dict__["base"] = self.base
        return other

    @cached_property
    @torch.no_grad()
    def base(self) -> Capture:
        """The unchanged run."""
        return capture(self.anatomy, self.ids_BT)

    @property
    def context(self) -> int:
        """The most tokens that the model can read."""
        return context_of(self.anatomy.model)

    @property
    def question(self) -> Question:
        return Question(self.target, self.against)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.anatomy, self.question)

    @cached_property
    def ending(self) -> Ending:
        return ending_of(self.base)

    @cached_property
    @torch.no_grad()
    def votes(self) -> Votes:
        return self.ledger.votes(self.ending)

    @cached_property
    def logits_V(self) -> Tensor:
        """Logits of the decision, in double precision."""
        return self.base.logits_BTV[0, -1].double()

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens side by side as one text; bytes that make no letter become a replacement sign."""
        return b"".join(token_bytes(self.tokenizer, t) for t in tokens).decode("utf-8", "replace")

    def written(self, token: int) -> str:
        """A token as letters; bytes that are part of a letter as <D0>."""
        return spelled(token_bytes(self.tokenizer, token))

    def run(self, tokens: Sequence[int]) -> str:
        """Tokens side by side; where they begin or end within a letter, its bytes as <D0>."""
        return spelled(b"".join(token_bytes(self.tokenizer, t) for t in tokens))

    def letters(self) -> list[str]:
        """The prompt's tokens as they are read: a letter stands at its first token, "" at those that go on with it."""
        found = [""] * len(self.ids)
        for start, _, text in letters([token_bytes(self.tokenizer, i) for i in self.ids]):
            found[start] = text
        return found


def decide(
    model: Any, tokenizer: Any, prompt: Any, *, target: str | int | None = None,
    against: str | int | None = None, chat: bool = False, at: int = 0, first_piece: bool = False,
) -> Decision:  # fmt: skip
    """The decision after `prompt` and `at` tokens of the model's own greedy answer.

    Args:
        prompt: text, or token ids.
        target, against: a token's text or id; the target is the likeliest token if not named.
        chat: put the prompt through the chat template as the user's message.
        at: explain the token after so many tokens of the answer (0: its first).
        first_piece: where `target` or `against` is several tokens, take the first.

    Raises:
        InputError: an empty prompt, one longer than the context, or a token that is several.
        SubjectError: the family's parts are not known, or the map of them is not proved.
    """
    anatomy = prove(model)
    ids = prompt_ids(tokenizer, prompt, chat=chat) if isinstance(prompt, str) else given_ids(anatomy, prompt, chat=chat)
    if at < 0:
        raise InputError("--at counts tokens of the answer from 0", got=at)
    if len(ids) + at > context_of(model):
        got = f"{len(ids) + at} tokens"
        raise InputError("the prompt is longer than the model's context", got=got, expected=f"at most {context_of(model)}")
    named = {
        "target": target if target is None else token_of(tokenizer, target, "target", first_piece),
        "against": against if against is None else token_of(tokenizer, against, "against", first_piece),
    }
    ids += answer(anatomy, ids, at, ends_of(model))
    found = Decision(anatomy, tokenizer, ids, -1, named["against"])
    found.target = named["target"] if named["target"] is not None else int(found.logits_V.argmax())
    if found.target == found.against:
        raise InputError("target and against are the same token", got=found.written(found.target), expected="two tokens")
    return found


def context_of(model: Any) -> int:
    """The most tokens that a model can read; very many where its config names no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def given_ids(anatomy: Anatomy, prompt: Any, *, chat: bool) -> list[int]:
    """A prompt that is token ids already.

    Raises:
        InputError: there are none, one that the model does not have, or a chat message, which is text.
    """
    try:
        ids = [index(i) for i in prompt]
    except TypeError:
        got = type(prompt).__name__
        raise InputError("the prompt is neither text nor token ids", got=got, expected="a string or whole numbers") from None
    if chat:
        raise InputError("a chat message cannot be token ids", expected="text, or ids that hold the template's tokens already")
    if not ids:
        raise InputError("the prompt is empty", expected="at least one token id")
    size = len(anatomy.embed.weight)
    if wrong := [i for i in ids if not 0 <= i < size]:
        raise InputError("no such token id in the prompt", got=wrong[0], expected=f"0 to {size - 1}")
    return ids


def prompt_ids(tokenizer: Any, prompt: str, *, chat: bool) -> list[int]:
    """The ids the model sees, special tokens as the tokenizer adds them.

    Raises:
        InputError: nothing to go on, or no chat template.
    """
    if not prompt:
        raise InputError("the prompt is empty", expected="some text")
    check_letters(prompt, "the prompt")
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("this tokenizer has no chat template", expected="a prompt without --chat")
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise InputError("the prompt has no token", got=repr(prompt), expected="some text")
    return [int(i) for i in ids]


def check_letters(text: str, what: str) -> None:
    """Refuse half a letter, as a broken command line or file gives it: no tokenizer can read it.

    Raises:
        InputError: the text cannot be written as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not text in UTF-8", got=ascii(text[error.start : error.end])) from None


def token_of(tokenizer: Any, named: str | int, what: str, first_piece: bool = False) -> int:
    """The token that a text names.

    Raises:
        InputError: it is no token, or several.
    """
    if isinstance(named, int):
        if 0 <= named < len(tokenizer):
            return named
        raise InputError(f"no such token id for {what}", got=named, expected=f"0 to {len(tokenizer) - 1}")
    check_letters(named, what)
    ids = tokenizer(named, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 or (ids and first_piece):
        return int(ids[0])
    pieces = " + ".join(repr(token_bytes(tokenizer, i).decode("utf-8", "replace")) for i in ids)
    raise InputError(
        f"{what} is not one token", got=f"{named!r}, which splits into {len(ids)}: {pieces}" if ids else repr(named),
        expected="one token, often with its leading space; or --first-piece",
    )  # fmt: skip


@torch.no_grad()
def answer(anatomy: Anatomy, ids: list[int], length: int, ends: frozenset[int]) -> list[int]:
    """The first `length` tokens of the greedy answer.

    Raises:
        InputError: the answer ends before.
    """
    model, found, cache = anatomy.model, [], None
    given = torch.tensor([ids], device=anatomy.unembed.weight.device)
    for _ in range(length):
        out = model(given, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, int(out.logits[0, -1].argmax())
        if token in ends:
            got = f"{len(found)} tokens"
            raise InputError("the answer ends before that token", got=got, expected=f"--at at most {len(found)}")
        found.append(token)
        given = given.new_tensor([[token]])
    return found


def ends_of(model: Any) -> frozenset[int]:
    """The tokens that end an answer, as the model ships them."""
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    return frozenset([ends] if isinstance(ends, int) else ends or [])
