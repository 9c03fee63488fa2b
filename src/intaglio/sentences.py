"""Sentences that an analysis makes from numbers: plain values, worded later by a catalogue.

Every sentence carries a mark that says what it rests on. Pure: no torch, no html.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["measured", "known", "heuristic", "unknown"]
Kind = Literal["number", "signed", "percent", "fine", "whole", "token", "tokens", "part", "parts", "text"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A value and how it is to be written: a number, a token, a part's address."""

    value: object
    kind: Kind


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing found: the catalogue's text `key` with its `values`.

    Attributes:
        mark: measured (here, on this model and prompt), known (with a source), heuristic, or unknown.
        key: of the text, below the lens's own name.
    """

    mark: Mark
    key: str
    values: dict[str, Shown]


def measured(key: str, **values: Shown) -> Sentence:
    """A sentence that rests on numbers measured here."""
    return Sentence("measured", key, values)


def heuristic(key: str, **values: Shown) -> Sentence:
    """A sentence that reads more into the numbers than they prove."""
    return Sentence("heuristic", key, values)


def known(key: str, **values: Shown) -> Sentence:
    """A sentence from the literature; the lens's sources name it."""
    return Sentence("known", key, values)


def unknown(key: str, **values: Shown) -> Sentence:
    """A sentence that says what cannot be told."""
    return Sentence("unknown", key, values)


def num(value: float | None) -> Shown:
    """Three significant digits."""
    return Shown(value, "number")


def signed(value: float | None) -> Shown:
    """The same, with its sign."""
    return Shown(value, "signed")


def pct(share: float | None) -> Shown:
    """A share as percent."""
    return Shown(share, "percent")


def fine(share: float | None) -> Shown:
    """A share as percent with two digits, however small."""
    return Shown(share, "fine")


def whole(count: int) -> Shown:
    """A count."""
    return Shown(count, "whole")


def tok(text: str) -> Shown:
    """One token, between quotes, its spaces visible."""
    return Shown(text, "token")


def toks(texts: list[str]) -> Shown:
    """Several tokens."""
    return Shown(list(texts), "tokens")


def part(address: str) -> Shown:
    """A part of the model."""
    return Shown(address, "part")


def parts(addresses: list[str]) -> Shown:
    """Several parts."""
    return Shown(list(addresses), "parts")


def plain(text: str) -> Shown:
    """Text as it is."""
    return Shown(text, "text")
