"""Decisions beside one: after another prompt, of another token, of another model.  [torch]"""

from __future__ import annotations

from typing import Any

from intaglio.errors import InputError
from intaglio.measure.choice.decision import Decision, decide, token_of
from intaglio.measure.choice.lenses import Peer


def second_prompt(found: Decision, prompt: str, chat: bool, at: int) -> Decision:
    """The same question after another prompt, and as many tokens of the model's answer to that one."""
    return asked_alike(decide(found.anatomy.model, found.tokenizer, prompt, chat=chat, at=at), found)


def second_target(found: Decision, named: str | int, first_piece: bool) -> Decision:
    """The same run, asked about another token.

    Raises:
        InputError: it is no token, or one of the two already asked about.
    """
    token = token_of(found.tokenizer, named, "the second target", first_piece)
    if token in (found.target, found.against):
        raise InputError("the second target is already one of the two tokens", got=found.written(token), expected="a third token")
    return found.asking(token, found.against)


def peer_of(found: Decision, model: Any, tokenizer: Any, name: str, text: str) -> Peer:
    """The same tokens in another model; where its tokenizer is another one, the same text, with its own likeliest token.

    Raises:
        InputError: a text that the other model cannot read, or a family that is not known.
    """
    same = tokenizer.get_vocab() == found.tokenizer.get_vocab()
    try:
        seen = decide(model, tokenizer, found.ids if same else text)
    except InputError as error:
        raise type(error)(f"the second model {name} cannot be asked: {error}") from None
    return Peer(name, asked_alike(seen, found) if same else seen, same_tokenizer=same)


def asked_alike(second: Decision, found: Decision) -> Decision:
    """Another decision, asked the first one's question.

    Raises:
        InputError: its model has no such tokens.
    """
    rows = second.anatomy.unembed.weight.shape[0]
    for token in (found.target, found.against):
        if token is not None and token >= rows:
            raise InputError("the second model has no such token", got=token, expected=f"below {rows}")
    second.target, second.against = found.target, found.against
    return second


def plain_text(found: Decision) -> str:
    """What the model read, without marks such as that of the beginning."""
    special = set(found.tokenizer.all_special_ids)
    return found.text([i for i in found.ids if i not in special])
