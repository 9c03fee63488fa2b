"""What a page prints, read back: sentences as a reader sees them, numbers as numbers.

Of `analyse` and `report` only the sentences themselves are used, nothing for what is expected of them.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from intaglio.analyse.choice import find
from intaglio.analyse.choice.answer import answer
from intaglio.report.choice.words import Words
from intaglio.trace import TraceData

NUMBER = r"[+−-]?\d[\d,.]*(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?|[+−-]?10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+"
SIGNS = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


def read(number: str) -> float:
    plain = number.rstrip(".,").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")).replace(",", "")
    if "×10" in plain:
        return float(plain.replace("×10", "e"))
    return float(re.sub(r"^([+-]?)10(-\d+)$", r"\g<1>1e\2", plain))


def printed(text: str, pattern: str) -> list[float | str]:
    """What stands at the places marked # (a number) and @ (a word) of a sentence that is on the page, once."""
    expression = re.escape(pattern).replace(r"\#", f"({NUMBER})").replace("#", f"({NUMBER})").replace("@", r"(\S+)")
    places = re.findall(expression.replace(r"\ ", r"\s*"), text)
    assert len(places) == 1, f"{pattern!r} stands {len(places)} times"
    found = places[0] if isinstance(places[0], tuple) else (places[0],)
    return [read(x) if re.fullmatch(NUMBER, x) else x for x in found]


def about(value: float):
    """Three significant digits are printed, two of a power of ten."""
    return pytest.approx(value, rel=6e-3 if abs(value) >= 1e-3 else 6e-2, abs=1e-9)


def half(sizes: Sequence[float], total: float | None = None) -> int:
    """How many of some numbers, largest first, carry half of their sizes' sum (or of a `total` that holds more)."""
    total, running = sum(map(abs, sizes)) if total is None else total, 0.0
    for count, size in enumerate(sorted(map(abs, sizes), reverse=True), 1):
        running += size
        if running >= total / 2:
            return count
    raise AssertionError


@dataclass(frozen=True)
class Shown:
    """A number as it should stand on the page."""

    value: float | None
    kind: str

    @property
    def pattern(self) -> str:
        return r"(<?[+−-]?\d[\d,.]*%|—)" if self.kind == "percent" else f"((?:{NUMBER})(?: million)?|—)"

    def __eq__(self, text: object) -> bool:
        assert isinstance(text, str)
        if self.value is None or text == "—":
            return self.value is None and text == "—"
        if self.kind == "percent":
            size = 100 * self.value
            if 0 < abs(size) < 0.0995 or text.startswith("<"):
                return text == "<0.1%" and 0 < abs(size) < 0.1005
            return read(text[:-1]) == pytest.approx(size, abs=0.051 if abs(size) < 10 else 0.51)
        text = re.sub(" million$", "", text) if (millions := text.endswith(" million")) else text
        value = self.value / 1e6 if millions else self.value
        signs = text.startswith("+") == (self.kind == "signed" and self.value > 0)
        return signs and read(text) == about(value)

    __hash__ = None  # type: ignore[assignment]


def num(value: float | None) -> Shown:
    return Shown(value, "number")


def signed(value: float | None) -> Shown:
    return Shown(value, "signed")


def pct(share: float | None) -> Shown:
    return Shown(share, "percent")


def tok(text: str) -> str:
    """A token with its spaces and line breaks visible, other signs without a shape by their code point."""
    return "".join(f"⟨{ord(c):04X}⟩" if ord(c) < 32 or ord(c) == 127 else c for c in text.translate(SIGNS)) or "∅"


def toks(texts: Sequence[str]) -> str:
    return ", ".join(map(tok, texts))


class Said:
    """The sentences of one section of the page, each to be called once with what it should say.

        said("{} of {} parts", 3, 12);  said("it is {} logits", signed(-0.3));  said.end()

    Names and counts must be those given, numbers (`num`, `signed`, `pct`) as near as their digits tell.
    """

    def __init__(self, trace: TraceData, section: str, lang: str = "en") -> None:
        words, said = Words(lang), answer(trace) if section == "answer" else find(section, trace)
        marked = [(s.mark, str(words.sentence("page" if section == "answer" else section, s))) for s in said]
        self.section, self.left = section, [(mark, _flat(html.unescape(re.sub(r"<[^>]*>", "", text)))) for mark, text in marked]

    def __call__(self, pattern: str, *values: Shown | str | int, mark: str = "measured") -> None:
        """There is one such sentence, with this mark and these values."""
        pieces, expression = pattern.split("{}"), ""
        assert len(pieces) == len(values) + 1
        for piece, value in zip(pieces, [*values, ""]):
            known = f"{value:,}" if isinstance(value, int) else value
            expression += re.escape(piece) + (known.pattern if isinstance(known, Shown) else re.escape(_flat(known)))
        for i, (stands, text) in enumerate(self.left):
            found = re.fullmatch(expression, text)
            if found:
                wanted = [v for v in values if isinstance(v, Shown)]
                assert all(w == x for w, x in zip(wanted, found.groups(), strict=True)), (text, wanted)
                assert stands == mark, (text, stands)
                del self.left[i]
                return
        raise AssertionError(f"{self.section}: not said: {pattern} {values}\n" + "\n".join(x for _, x in self.left))

    def end(self) -> None:
        """Nothing else is said."""
        assert not self.left, self.left


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def ranks_agree(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, ties sharing their ranks; None where one side does not vary."""
    x, y = ([sum(o < v for o in side) + (sum(o == v for o in side) - 1) / 2 for v in side] for side in (a, b))
    x, y = ([v - sum(side) / len(side) for v in side] for side in (x, y))
    size = math.sqrt(sum(v * v for v in x) * sum(v * v for v in y))
    return sum(p * q for p, q in zip(x, y)) / size if size else None


def settled(holds: Sequence[bool]) -> int | None:
    """From which of them on all hold; None where the last does not."""
    at = len(holds)
    while at and holds[at - 1]:
        at -= 1
    return at if at < len(holds) else None


Check = Callable[[Any, dict[str, Any], dict[str, Any], Said], None]


def collected(checks: dict[str, Check]) -> Callable[[Check], Check]:
    """A decorator that keeps checks by their name, that of a lens."""
    def keep(check: Check) -> Check:
        checks[check.__name__] = check
        return check

    return keep


def checked(check: Check, trace: TraceData) -> None:
    """All that a lens says of a trace, where it applies, by its check: `check(trace, numbers, tables, said)`."""
    lens = trace.lenses.get(check.__name__, {"skipped": "not asked for"})
    if "skipped" in lens:
        return
    said = Said(trace, check.__name__)
    check(trace, lens["numbers"], lens["tables"], said)
    said.end()
