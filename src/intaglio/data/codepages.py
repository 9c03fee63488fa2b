"""Bytes in an older code page: read where it is certain which, refused otherwise.

Every reading (a language in one of its code pages) is given the log-likelihood of the words that
hold a byte beyond ASCII, under a model of the letters and their neighbours in that language. A
reading is certain when there is enough of it, when it looks like its language, and when every
reading that would make another text of the same bytes is clearly less likely. Pure.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intaglio.data.languages import ALPHABETS, PAGES, SAMPLES

_CLEAR_NATS = 12.0  # odds of 160,000 to 1 against every other text
_AGAINST_NATS = 8.0  # a passage that is this much likelier as another text speaks against its file's code page
_TYPICAL_NATS = (-3.4, 9.0)  # per character, and how much more over all; verse has -2.6, other languages and noise -4
_ODD_NATS = (-3.9, -6.0)  # the same for one passage of a file that is certain as a whole
_NEVER = -9.0  # a character that the language does not have there
_SIGN = -4.5  # a quotation mark or its like, at the side of the word where it belongs
_FOREIGN = -5.0  # a Latin letter within a word of another script: a slip of the keyboard
_PLAIN = -2.9  # a letter of a wholly Latin word in a language of another script: as likely as any other
_TOLD = {"cp1251", "koi8-r", "koi8-u", "cp866", "iso8859-5", "cp1253", "iso8859-7", "cp1255", "cp1252"}
_LEAST_CHARACTERS = 12  # of words with letters beyond ASCII; fewer are not certain, whatever they look like
_PASSAGE = 8  # words
_WORD = re.compile(rb"[A-Za-z\x80-\xff]+")
_AGAIN = re.compile(r"([^\w\ufffd])\1+")  # a row of dots
_OPENING, _CLOSING = frozenset("«„“‘‚‹¿¡(—–•№§£€"), frozenset("»”“’‘›…—–°®©™€·²³ªº%")
_INNER = dict.fromkeys("’‘‑–—\xa0…·«»“”„", " ")  # signs that may part two words without a space
_LATIN = frozenset("abcdefghijklmnopqrstuvwxyz")
READINGS = tuple((language, page) for language, pages in PAGES.items() for page in pages)
_IS_LATIN = np.array(["a" in ALPHABETS[language] for language, _ in READINGS])


@dataclass(frozen=True, slots=True)
class Uncertain(Exception):
    """No code page is certain for the passage at this place of those given."""

    index: int


def certain_page(lines: Sequence[bytes]) -> str:
    """The one code page that all the lines are certainly written in.

    Central European and Turkish pages are known here only to be refused: their neighbours that have no
    passage here (Lithuanian, Icelandic, Croatian) look too much like them.

    Raises:
        Uncertain: too few letters, no language that is known here, or two texts that are both likely; or a
            passage of one line that contradicts the rest.
    """
    words = [_WORD.findall(line) for line in lines]
    scores = _scores([word for line in words for word in line])
    best = int(np.argmax(scores.total))
    page = READINGS[best][1]
    if page not in _TOLD or not scores.look_right(best) or scores.lead(best, lines) < _CLEAR_NATS:
        raise Uncertain(_oddest(words, best))
    for index, (line, own) in enumerate(zip(lines, words)):
        if not _defined(line, page) or not all(_fits(passage, page) for passage in _passages(own)):
            raise Uncertain(index)
    return page


@dataclass(frozen=True)
class _Scores:
    total: np.ndarray  # nats by reading
    characters: int

    def look_right(self, reading: int) -> bool:
        mean, more = _TYPICAL_NATS
        enough = self.characters >= _LEAST_CHARACTERS
        return enough and float(self.total[reading]) >= mean * self.characters + more

    def could_be(self, reading: int) -> bool:
        mean, more = _ODD_NATS
        return float(self.total[reading]) >= mean * self.characters + more

    def lead(self, reading: int, lines: Sequence[bytes]) -> float:
        """Nats over the likeliest reading that makes another text."""
        text = _decode(lines, READINGS[reading][1])
        others = (float(s) for s, (_, page) in zip(self.total, READINGS) if _decode(lines, page) != text)
        return float(self.total[reading]) - max(others, default=-np.inf)


def _scores(words: Sequence[bytes]) -> _Scores:
    """Words with letters beyond ASCII count for every reading; the others only between Latin languages."""
    high = [word for word in words if not word.isascii()]
    plain = [word for word in words if word.isascii()]
    total = sum((_word_nats(word) * n for word, n in Counter(high).items()), np.zeros(len(READINGS)))
    context = sum((_word_nats(word) * n for word, n in Counter(plain).items()), np.zeros(len(READINGS)))
    total = total + np.where(_IS_LATIN, context - context[_IS_LATIN].max(), 0.0)
    return _Scores(total, sum(len(word) + 1 for word in high))


@functools.lru_cache(maxsize=1 << 16)
def _word_nats(word: bytes) -> np.ndarray:
    """Log-likelihood of one word by reading."""
    return np.array([_nats(word.decode(page, "replace"), language) for language, page in READINGS])


def _nats(word: str, language: str) -> float:
    """Of the word's characters, and of its end."""
    word = _AGAIN.sub(r"\1", word)
    core = word.replace("\xad", "").strip("\xa0")
    nats = _SIGN * len(word)
    while core and core[0] in _OPENING:
        core = core[1:]
    while core and core[-1] in _CLOSING:
        core = core[:-1]
    nats -= _SIGN * len(core)
    if not core:
        return nats
    known, unknown = _model(language)
    script = not all(c.isascii() or not c.isalpha() for c in core)
    latin = unknown if "a" in unknown else dict.fromkeys(_LATIN, _FOREIGN if script else _PLAIN)
    before = " "
    for place, char in enumerate(core):
        if place and char.isupper() and core[place - 1].islower():
            nats += _NEVER
        char = _INNER.get(char) or (_lower(char, language))
        nats += known.get((before, char)) or unknown.get(char) or latin.get(char, _NEVER)
        before = char
    return nats + known.get((before, " "), unknown[" "])


def _lower(char: str, language: str) -> str:
    return {"İ": "i", "I": "ı"}.get(char, char.lower()) if language == "turkish" else char.lower()[:1]


@functools.cache
def _model(language: str) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """log p(character | the one before) where the pair was seen, and log p where it was not; a space ends a word."""
    alphabet = set(ALPHABETS[language])
    text = "".join(c if c in alphabet else " " for c in SAMPLES[language].lower())
    words = [f" {word} " for word in text.split()]
    pairs = Counter((a, b) for word in words for a, b in itertools.pairwise(word))
    firsts = Counter(a for word in words for a in word[:-1])
    alone = Counter(b for word in words for b in word[1:])
    n = sum(alone.values()) + 0.5 * (len(alphabet) + 1)
    share = {c: (alone[c] + 0.5) / n for c in (*alphabet, " ")}
    known = {(a, b): float(np.log((k + 12 * share[b]) / (firsts[a] + 12))) for (a, b), k in pairs.items()}
    return known, {c: float(np.log(share[c]) - 0.7) for c in share}


def _fits(words: Sequence[bytes], page: str) -> bool:
    """Whether a passage could be of this code page: it looks like a language there, and no better in another."""
    if all(word.isascii() for word in words):
        return True
    scores = _scores(words)
    best = max((n for n, (_, p) in enumerate(READINGS) if p == page), key=lambda n: scores.total[n])
    return scores.could_be(best) and scores.lead(best, words) > -_AGAINST_NATS


def _passages(words: Sequence[bytes]) -> list[Sequence[bytes]]:
    high = [word for word in words if not word.isascii()]
    return [high[n : n + _PASSAGE] for n in range(0, len(high), _PASSAGE)]


def _oddest(words: Sequence[Sequence[bytes]], reading: int) -> int:
    """The line that fits the reading least."""
    scores = [_scores(own) for own in words]
    return int(np.argmin([s.total[reading] / max(s.characters, 1) for s in scores]))


def _decode(lines: Sequence[bytes], page: str) -> str:
    return b"\n".join(lines).decode(page, "replace")


def _defined(line: bytes, page: str) -> bool:
    try:
        line.decode(page)
    except UnicodeDecodeError:
        return False
    return True
