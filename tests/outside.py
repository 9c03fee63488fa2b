"""Decisions in which a token is its number, for the lenses that look at a choice from outside."""

from __future__ import annotations

import pytest
import torch

from families import family, ids
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.lenses import Given

SOME = ("llama", "gpt2", "gemma2", "mistral", "bloom", "opt", "gpt_oss")


class Letters:
    """A tokenizer for tests: a token is its number."""

    def __len__(self) -> int:
        return 97


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    monkeypatch.setattr(Decision, "written", lambda self, token: f" {token}")
    monkeypatch.setattr(Decision, "text", lambda self, tokens: "".join(map(self.written, tokens)))


def decision(name: str, *, length: int = 13, against: int | None = 7, target: int | None = None) -> Decision:
    return decide(family(name), Letters(), ids(length)[0].tolist(), target=5 if target is None else target, against=against)


def planted(logits: list[float], **more) -> Decision:
    """A decision whose logits are given."""
    found = decision("llama", **more)
    found.__dict__["logits_V"] = torch.tensor(logits, dtype=torch.float64)
    return found


GIVEN = Given("", [5, 6, 7, 8, 9] * 20)


