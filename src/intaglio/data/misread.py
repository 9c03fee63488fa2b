"""Bytes of an older code page that were read as another one: "Ïðèâåò" or "оПХБЕР" for "Привет".

Unlike UTF-8 such a text does not check itself. So only what no ordinary text looks like is looked at (words all of
accented Latin letters, small letters before capitals, signs within words), and read again only where
`certain_page` is certain of its bytes. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from intaglio.data.codepages import Uncertain, certain_page

_PAGES = ("cp1252", "latin-1", "cp1251", "koi8-r", "cp866")  # what a text may have been read as
_ACCENTED = re.compile(r"[\x80-\xff]{3,}")
_INVERTED = re.compile(r"\b[а-яё][А-ЯЁ]{2,}")
_DRAWN = re.compile(r"[А-яЁё][\u2500-\u259f№¤¦§©¬®\xad]|[\u2500-\u259f№¤¦§©¬®\xad][А-яЁё]")
_PLAIN_LETTERS = 12  # in words of four letters and more, all accented: no language has so many


@dataclass(frozen=True, slots=True)
class Misread:
    """How a text came about: its bytes are of page `own` and were read as `read_as`."""

    own: str
    read_as: str

    def __str__(self) -> str:
        return f"{self.own} read as {self.read_as}"

    def undone(self, text: str) -> str | None:
        """The text in its own page; None where it cannot have come about so."""
        data = _bytes(text, self.read_as)
        try:
            return None if data is None else data.decode(self.own)
        except UnicodeDecodeError:
            return None


def find_misread(text: str) -> Misread | None:
    """How the text was misread, if that is certain; None where it looks ordinary or nothing is certain."""
    if not _looks_odd(text):
        return None
    for read_as in _PAGES:
        data = _bytes(text, read_as)
        if data is None:
            continue
        try:
            own = certain_page([data])
        except Uncertain:
            continue
        if own != read_as and data.decode(own) != text:
            return Misread(own, read_as)
    return None


def parse_misread(name: str) -> Misread | None:
    """The inverse of `str`; None for the name of a single code page."""
    own, between, read_as = name.partition(" read as ")
    return Misread(own, read_as) if between else None


def is_plainly_misread(text: str) -> bool:
    """Whether most of the letters beyond ASCII stand in words of nothing but accented Latin letters."""
    words = re.findall(r"[À-ÿ]{4,}", text)
    letters = sum(map(len, words))
    return len(words) > 1 and letters >= _PLAIN_LETTERS and letters > sum(c > "\x7f" for c in text) / 2


def _looks_odd(text: str) -> bool:
    foreign = [c for c in text if c > "\x7f"]
    accented = sum(map(len, _ACCENTED.findall(text)))
    capitals = sum("А" <= c <= "Я" for c in foreign)
    inverted = bool(_INVERTED.search(text)) and capitals > len(foreign) / 2
    return accented > len(foreign) / 2 or inverted or len(_DRAWN.findall(text)) >= 2


def _bytes(text: str, page: str) -> bytes | None:
    try:
        return text.encode(page)
    except UnicodeEncodeError:
        return None
