"""Broken encodings: found, repaired where certain, refused otherwise.

Four kinds. Text: UTF-8 that was read as another code page ("РџСЂРёРІРµС‚" for "Привет"), or an
older code page read as another (misread.py). Bytes: a file in an older code page. Lost: letters
already replaced by U+FFFD or "?", which nothing brings back.

UTF-8 checks itself: a lead byte says how many continuation bytes follow. So a text that, put back
into a code page's bytes, is valid UTF-8 in *every* non-ASCII run, and whose characters before were
odd where those after are ordinary, was UTF-8. Legitimate text fails this at its first accented or
Cyrillic small letter. Pure.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from intaglio.data.codepages import Uncertain, certain_page
from intaglio.data.misread import Misread, find_misread, parse_misread
from intaglio.errors import DataError

CODE_PAGES = ("cp1251", "cp1252", "latin-1", "koi8-r", "cp866")
_RUN = re.compile(r"[^\x00-\x7f]+")
_UTF8_LETTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_LOST = re.compile(r"\?{3,}")
_SIGNS = frozenset("¡¢£¤¥¦§¨©ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿×÷‚„†‡•‰‹›€™№ƒˆ˜")  # odd within a word
_ODD_LETTERS = frozenset("ЂЃѓЉЌЋЏђљќћџЅѕ") | {chr(c) for c in range(0x180, 0x2B0)}  # of few languages
_CLEARLY = 4  # a reading is better when the oddities fall by more than this factor
_ROUNDS = 3  # a text may have been misread more than once


@dataclass(frozen=True, slots=True)
class Repair:
    """A text as it should be, and the code page it had been misread as (None: it was whole)."""

    text: str
    code_page: str | None = None


def repair_text(text: str, *, expect: str | None = None) -> Repair:
    """The text with UTF-8 that was read as another code page put right, where that is certain.

    Args:
        expect: the code page that most of the text's companions had been misread as; a short text
            that fits it is then put right too, though by itself it would not be certain.

    Raises:
        DataError: letters are already lost, or the damage is plain but cannot be undone.
    """
    if text.isascii():
        _check_lost(text)
        return Repair(text)
    code_page = None
    for n in range(_ROUNDS):
        better = _best(text, None if n else expect)  # a short text put right may fit that page once more
        if better is None:
            break
        text, code_page = better.text, better.code_page
    if code_page is None and (misread := _misread(text, expect)):
        text, code_page = misread.undone(text) or text, str(misread)
    _check_lost(text)
    return Repair(text, code_page)


class BrokenLine(DataError):
    """A line that is not UTF-8 and cannot be read with certainty; `line` counts from 0."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what, expected="a UTF-8 file")
        self.line = line


def decode(data: bytes, *, parting: bytes = b"\n") -> tuple[str, frozenset[int]]:
    """A file's bytes as text, and the numbers of the lines (from 0) that were not UTF-8.

    Lines that are UTF-8 stay; the others are read in the one code page that is certain for all of them.

    Args:
        parting: what parts two lines; of a text an empty line, so that a paragraph is looked at as a whole.

    Raises:
        BrokenLine: UTF-8 with bytes missing, or a code page that cannot be told with certainty.
        DataError: a damaged UTF-16.
    """
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return _decode_whole(data, name), frozenset()
    try:
        return data.decode("utf-8"), frozenset()
    except UnicodeDecodeError:
        lines = data.split(parting)
    broken = [n for n, line in enumerate(lines) if not _is_utf8(line)]
    try:
        code_page = certain_page([lines[n] for n in broken])
    except Uncertain as error:
        n = broken[error.index]
        cut = "not whole UTF-8: bytes are missing, so letters are lost"
        what = cut if _is_cut(lines[n]) else "not UTF-8, and no older code page is certain for it"
        raise BrokenLine(what, n) from None
    bad = frozenset(broken)
    text = (line.decode(code_page if n in bad else "utf-8") for n, line in enumerate(lines))
    return parting.decode().join(text), bad


def _is_cut(line: bytes) -> bool:
    """Whether it is UTF-8 of which bytes are missing: more of it is whole than not."""
    high = sum(byte >= 0x80 for byte in line)
    return sum(map(len, _UTF8_LETTER.findall(line))) > high / 2


# --- text that was misread -----------------------------------------------------------------


def _misread(text: str, expect: str | None) -> Misread | None:
    """How an older code page was read as another; what most companions had is taken where the text can be so."""
    expected = parse_misread(expect or "")
    if expected is not None:
        new = expected.undone(text)
        if new is not None and new != text and _oddity(new) == 0:
            return expected
    return find_misread(text)


def _best(text: str, expect: str | None) -> Repair | None:
    """The most ordinary reading of the text, if one is certainly better than the text itself.

    Raises:
        DataError: some of the text is certainly misread, and some of that cannot be put right.
    """
    whole = [Repair(new, p) for p in CODE_PAGES if (new := _reread_whole(text, p, expected=p == expect)) is not None]
    readings = [r for r in whole if r.text != text] or [r for p in CODE_PAGES if (r := _reread_part(text, p))]
    best = min(readings, key=lambda r: (r not in whole and _damage(r), _oddity(r.text), len(r.text)), default=None)
    if best and best not in whole and _damage(best):
        raise DataError(f"broken encoding: UTF-8 read as {best.code_page}, with letters lost", got=repr(text[:40]))
    return best


def _reread_part(text: str, code_page: str) -> Repair | None:
    """A text put together from two sources: only its misread runs put right.

    One long misread run has to be there for certainty; then the shorter ones go with it.
    """
    pairs = [(run, _reread_run(run, code_page)) for run in _RUN.findall(text)]
    if not any(_is_certain(run, new, letters=3, oddities=2) for run, new in pairs):
        return None
    certain = [new if _is_certain(run, new, letters=1, oddities=1) else None for run, new in pairs]
    return Repair(_replace_runs(text, certain), code_page)


def _damage(repair: Repair) -> int:
    """How many runs still look misread: they hold letters of UTF-8 beside bytes that are none."""
    page = repair.code_page or ""
    runs = (run for run in _RUN.findall(repair.text) if _reread_run(run, page) is None)
    return sum(_misread_share(run, page, letters=2) > 0.6 for run in runs)


def _is_certain(run: str, new: str | None, *, letters: int, oddities: int) -> bool:
    return new is not None and len(new) >= letters and _oddity(run) >= max(oddities, _CLEARLY * _oddity(new) + 1)


def _reread_whole(text: str, code_page: str, *, expected: bool) -> str | None:
    """All runs put right, more than once if the text was misread more than once."""
    new = text
    for _ in range(_ROUNDS):
        decoded = [_reread_run(run, code_page) for run in _RUN.findall(new)]
        if None in decoded:
            return None
        new = _replace_runs(new, decoded)
        if expected or _oddity(text) > _CLEARLY * _oddity(new):
            return new
    return None


def _replace_runs(text: str, new: Sequence[str | None]) -> str:
    replacements = iter(new)
    return _RUN.sub(lambda m: next(replacements) or m[0], text)


def _reread_run(run: str, code_page: str) -> str | None:
    try:
        return bytes(_bytes_of(code_page)[c] for c in run).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


@functools.cache
def _bytes_of(code_page: str) -> dict[str, int]:
    """Character -> byte. Bytes a code page leaves undefined pass as control characters, as browsers do."""
    table = {}
    for byte in range(0x80, 0x100):
        try:
            table[bytes([byte]).decode(code_page)] = byte
        except UnicodeDecodeError:
            table[chr(byte)] = byte
    return table


def _oddity(text: str) -> int:
    """How many non-ASCII characters no ordinary text would have where they stand."""
    return sum(_is_odd(text, n) for n, c in enumerate(text) if c > "\x7f")


def _is_odd(text: str, n: int) -> bool:
    char = text[n]
    if unicodedata.category(char) in ("Cc", "Cn", "Co") or "─" <= char <= "▟" or char in _ODD_LETTERS:
        return True
    after = text[n + 1 : n + 2] or " "
    if "À" <= char <= "ÿ":
        return after in _SIGNS or (after > "\x7f" and not after.isalpha())
    before = text[n - 1 : n] or " "
    return char in _SIGNS and before > "\x7f" and before.isalpha() and (after.isalpha() or after in _SIGNS)


def _check_lost(text: str) -> None:
    if "\ufffd" in text:
        raise DataError("letters are lost: the text holds U+FFFD", got=_around(text, "\ufffd"))
    marks = sum(len(run) for run in _LOST.findall(text))
    rest = sum(c.isalnum() for c in text)
    if marks >= 6 and marks > rest:
        raise DataError("letters are lost: most of the text is question marks", got=_around(text, "???"))
    if not text.isascii():
        _check_undone(text)


def _check_undone(text: str) -> None:
    """Refuse a text that is plainly misread but can no longer be put right."""
    controls = [c for c in text if "\x80" <= c <= "\x9f" and c != "\x85"]
    if controls:
        raise DataError("broken encoding: the text holds control characters", got=_around(text, controls[0]))
    for page in CODE_PAGES:
        misread = "".join(run for run in _RUN.findall(text) if _misread_share(run, page) > 0.6)
        if len(misread) >= 8 and _oddity(misread) >= 3:
            raise DataError(f"broken encoding: UTF-8 read as {page}, with letters lost", got=_around(text, misread[:4]))


def _misread_share(run: str, code_page: str, *, letters: int = 1) -> float:
    """The share of the run that is UTF-8 in this code page; 0 where that makes fewer letters than `letters`."""
    table = _bytes_of(code_page)
    data = bytes(table.get(c, 0) for c in run)
    found = _UTF8_LETTER.findall(data)
    return sum(map(len, found)) / len(data) if len(found) >= letters else 0.0


def _around(text: str, what: str) -> str:
    at = max(text.find(what), 0)
    return repr(text[max(at - 20, 0) : at + 20])


# --- bytes in an older code page -----------------------------------------------------------


def _decode_whole(data: bytes, name: str) -> str:
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        raise DataError(f"broken {name} at byte {error.start}") from None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
