"""Sentences with their dependency trees, from CoNLL-U files. Standard library only.

Strict: what breaks the format's rules is refused with the line's number. Read are the words and the basic tree; multiword tokens
(`4-5`) say how their words are written together, empty nodes (`8.1`) and the columns of features, enhanced dependencies and
anything in MISC but SpaceAfter=No are checked in form and left.
Format: Universal Dependencies, https://universaldependencies.org/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from intaglio.errors import DataError

COLUMNS = 10
MOST_BYTES = 512 * 2**20  # of a file
_WORD, _RANGE, _EMPTY = re.compile(r"[1-9]\d{0,5}"), re.compile(r"([1-9]\d{0,5})-([1-9]\d{0,5})"), re.compile(r"\d{1,6}\.\d{1,6}")


@dataclass(frozen=True)
class Word:
    """A syntactic word.

    Attributes:
        head: number of the word it depends on, from 0 in this sentence; -1 for the root.
        relation: without its subtype (nsubj for nsubj:pass).
        begin, end: its characters in the sentence's text. Words of one multiword token that are not written in it as they
            are (French au = à + le) all have the whole token's.
    """

    form: str
    upos: str
    head: int
    relation: str
    begin: int
    end: int


@dataclass(frozen=True)
class Sentence:
    """A sentence as it is written, and its words."""

    text: str
    words: tuple[Word, ...]


def read_conllu(path: str | Path, most: int | None = None) -> list[Sentence]:
    """The sentences of a file, in its order.

    Args:
        most: stop after so many.

    Raises:
        DataError: the file cannot be read, holds no sentence, or breaks the format's rules.
    """
    path, found = Path(path), []
    for first, lines in _blocks(path):
        found.append(_sentence(path, first, lines))
        if len(found) == most:
            break
    if not found:
        raise DataError(f"{path} holds no sentence", expected="CoNLL-U")
    return found


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of each sentence."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} is too large for a treebank", got=f"{path.stat().st_size} bytes",
                            expected=f"at most {MOST_BYTES}")  # fmt: skip
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8", got=f"byte {error.object[error.start]:#04x} at {error.start}") from None
    first, lines = 1, []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield first, lines
            lines = []
    if lines:
        yield first, lines


@dataclass
class _Row:
    line: int
    fields: list[str]

    @property
    def space_after(self) -> bool:
        return "SpaceAfter=No" not in self.fields[9].split("|")


def _sentence(path: Path, first: int, lines: list[str]) -> Sentence:
    words, ranges = [], {}
    for number, line in enumerate(lines, first):
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != COLUMNS or not all(f.strip() for f in fields):
            raise _wrong(path, number, "not ten filled columns between tabs", line)
        if _EMPTY.fullmatch(fields[0]):
            continue
        if found := _RANGE.fullmatch(fields[0]):
            begin, end = int(found[1]), int(found[2])
            if begin != len(words) + 1 or end <= begin or begin <= max((e for _, e, _ in ranges.values()), default=0):
                raise _wrong(path, number, "a multiword token that does not stand before its words", fields[0])
            ranges[begin] = (begin, end, _Row(number, fields))
        elif _WORD.fullmatch(fields[0]) and int(fields[0]) == len(words) + 1:
            words.append(_Row(number, fields))
        else:
            raise _wrong(path, number, "words are not numbered 1, 2, 3", fields[0])
    if not words:
        raise _wrong(path, first, "a sentence without words", lines[0])
    for _, end, row in ranges.values():
        if end > len(words):
            raise _wrong(path, row.line, "a multiword token over words that are not there", row.fields[0])
    _check_tree(path, words)
    return _laid_out(words, ranges)


def _check_tree(path: Path, rows: list[_Row]) -> None:
    """One root, heads within the sentence, no circle."""
    heads = []
    for row in rows:
        head = row.fields[6]
        if not re.fullmatch(r"0|[1-9]\d{0,5}", head) or int(head) > len(rows) or int(head) == int(row.fields[0]):
            raise _wrong(path, row.line, f"a head that is not another of the sentence's {len(rows)} words", head)
        heads.append(int(head))
    if heads.count(0) != 1:
        raise _wrong(path, rows[0].line, "a sentence needs one root", f"{heads.count(0)} roots")
    good = {0}
    for start in range(1, len(rows) + 1):
        way, at = [], start
        while at not in good and at not in way:
            way.append(at)
            at = heads[at - 1]
        if at not in good:
            raise _wrong(path, rows[at - 1].line, "heads that run in a circle", rows[at - 1].fields[1])
        good.update(way)


def _laid_out(rows: list[_Row], ranges: dict[int, tuple[int, int, _Row]]) -> Sentence:
    text, places, number = "", [], 1
    while number <= len(rows):
        _, end, row = ranges.get(number, (number, number, rows[number - 1]))
        form = row.fields[1]
        places += _within(form, [r.fields[1] for r in rows[number - 1 : end]], len(text))
        text += form + (" " if row.space_after else "")
        number = end + 1
    words = (
        Word(r.fields[1], r.fields[3], int(r.fields[6]) - 1, r.fields[7].split(":")[0], begin, end)
        for r, (begin, end) in zip(rows, places)
    )  # fmt: skip
    return Sentence(text.rstrip(" "), tuple(words))


def _within(form: str, parts: list[str], at: int) -> list[tuple[int, int]]:
    """Where the words of a token are written; all of them its whole where they are written otherwise."""
    if "".join(parts) != form:
        return [(at, at + len(form))] * len(parts)
    found = []
    for part in parts:
        found.append((at, at + len(part)))
        at += len(part)
    return found


def _wrong(path: Path, number: int, what: str, got: str) -> DataError:
    return DataError(f"{path}, line {number}: {what}", got=got[:80], expected="CoNLL-U")
