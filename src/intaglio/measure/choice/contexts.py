"""One word in two contexts: the words of a text, which of them is worth following, where else it stands. Pure.

Which words carry content is a heuristic: letters only, at least three, not in a list of English and
Russian function words.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from intaglio.measure.choice import pieces

FUNCTION_WORDS = frozenset(
    """a an the and or but nor not no so than then that this these those there here it its he him his she her hers they them
    their we us our you your i me my who whom whose which what when where why how is are was were be been being am do does did
    done has have had will would can could may might must shall should of in on at to from by with about into over under after
    before for as if because while up down out off again very just also too only own same such more most some any each all both
    и а но или не ни же ли бы что чтобы как так то это этот эта эти тот та те там тут где куда когда если потому поэтому он она
    оно они его её ее их ему ей им них нее нём ней я мы ты вы мне нам тебе вам меня нас тебя вас мой моя наш ваш свой себя кто
    был была было были есть быть будет в во на с со к ко у о об от до из за под над при про для без через между по ещё еще уже
    только тоже также очень все всё весь вся сам сама один одна одно""".split()
)
CONTENT = 3  # letters


@dataclass(frozen=True)
class Word:
    """Tokens `begin` to `end` (not included) of a text that make a word, without marks at its ends."""

    begin: int
    end: int
    ids: tuple[int, ...]
    text: str

    @property
    def weight(self) -> tuple[bool, int]:
        """How worth following it is, to be compared: whether it carries content, and its letters."""
        word = self.text.strip()
        content = len(word) >= CONTENT and word.isalpha() and word.lower() not in FUNCTION_WORDS
        return content, sum(c.isalpha() for c in word)


def words_of(ids: Sequence[int], spelt: Sequence[bytes], special: Set[int] = frozenset()) -> list[Word]:
    """The words of a text that hold a letter.

    Args:
        spelt: each token's bytes.
        special: positions of tokens that are no text.
    """
    found = []
    for begin, end in pieces.words([b.decode("utf-8", "replace") for b in spelt], special):
        while begin < end and _is_mark(spelt[begin]) and not _is_its_space(spelt[begin : min(begin + 2, end)]):
            begin += 1
        while begin < end and _is_mark(spelt[end - 1]):
            end -= 1
        text = b"".join(spelt[begin:end]).decode("utf-8", "replace")
        if any(c.isalpha() for c in text):
            found.append(Word(begin, end, tuple(ids[begin:end]), text))
    return found


def is_cyrillic(text: str) -> bool:
    """Whether any letter of the text is Cyrillic."""
    return any("\u0400" <= c <= "\u04ff" for c in text)


def _is_mark(spelt: bytes) -> bool:
    """Whether a token is whole letters none of which belongs to a word."""
    try:
        return not any(c.isalnum() for c in spelt.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _is_its_space(two: Sequence[bytes]) -> bool:
    """Whether the first of two tokens is a word's own space, a token by itself."""
    return two[0] == b" " and len(two) == 2 and not _is_mark(two[1])


def shared(a: Sequence[Word], b: Sequence[Word], ids_a: Sequence[int], ids_b: Sequence[int]) -> tuple[Word, Word] | None:
    """The weightiest word of two texts, where it stands last in each; what precedes it differs."""
    last_a, last_b = ({w.ids: w for w in words if w.end > 1} for words in (a, b))
    both = [(w, last_b[ids]) for ids, w in last_a.items() if ids in last_b]
    both = [(x, y) for x, y in both if list(ids_a[: x.begin]) != list(ids_b[: y.begin])]
    return max(both, key=lambda p: (p[0].weight, p[0].begin), default=None)


def repeated(words: Sequence[Word]) -> tuple[Word, Word] | None:
    """The weightiest content word that a text holds twice: where it stands first and last."""
    first: dict[tuple[int, ...], Word] = {}
    for word in words:
        if word.end > 1:  # the state of a text's first token is like no other's
            first.setdefault(word.ids, word)
    twice = [(first[w.ids], w) for w in words if w.end > 1 and first[w.ids] is not w and w.weight[0]]
    return max(twice, key=lambda p: (p[0].weight, p[1].begin), default=None)


def weightiest(words: Sequence[Word], among: Sequence[Word] = ()) -> Word | None:
    """The weightiest word; content words that also stand in another text go first."""
    known = {w.ids for w in among}
    return max((w for w in words if w.end > 1), key=lambda w: (w.ids in known and w.weight[0], w.weight, w.begin), default=None)
