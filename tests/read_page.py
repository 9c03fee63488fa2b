"""A page as a reader has it: its words, what hovering shows, and whether a line with its numbers stands there."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

from intaglio.analyse import analyse_run
from intaglio.report import render
from intaglio.store.run import Run

NUMBER = r"<?[+-]?\d+(?:\.\d+)?(?:e-?\d+)?"


class Page(HTMLParser):
    """What a reader sees (`words`) and what hovering shows (`tips`), with numbers as Python writes them."""

    def __init__(self, run: Run, lang: str = "en") -> None:
        super().__init__()
        self._found: list[str] = []
        self._tips: list[str] = []
        self._hidden, self._lang = 0, lang
        self.feed(render(analyse_run(run), lang=lang))
        self.words, self.tips = (self._plain(" ".join(x)) for x in (self._found, self._tips))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._hidden += tag in ("script", "style", "title")
        self._tips += [f"| {value} |" for name, value in attrs if name == "data-tip"]

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "title")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._found.append(data)

    def _plain(self, text: str) -> str:
        text = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-"))
        thousands, point = (",", r"\.") if self._lang == "en" else ("\u202f", ",")
        text = re.sub(rf"(?<=\d){thousands}(?=\d\d\d)", "", text)
        text = re.sub(rf"(?<=\d){point}(?=\d)", ".", text).replace("\u00a0%", "%")
        text = re.sub(r"(\d)×10(-\d)", r"\1e\2", re.sub(r"(?<![\d×])10(-\d)", r"1e\1", text))
        return re.sub(r" ([,;:.)])", r"\1", re.sub(r"\s+", " ", text))

    def part(self, start: str, end: str) -> str:
        return self.words.split(start, 1)[1].split(end, 1)[0]


def prints(text: str, line: str, **values: float | str) -> None:
    """The line stands in the text, once, and its numbers are the values, within the rounding of what is printed."""
    pieces = re.split(r"\{(\w+)([~%]*)\}", line)
    pattern, wanted = re.escape(pieces[0]), []
    for name, kind, literal in zip(pieces[1::3], pieces[2::3], pieces[3::3]):
        if isinstance(values[name], str):
            pattern += re.escape(str(values[name]))
        else:
            pattern += f"({NUMBER}){'%' * ('%' in kind)}"
            wanted.append((name, kind, values[name]))
        pattern += re.escape(literal)
    places = list(re.finditer(rf"(?<![\w.]){pattern}" if re.match(r"[\w{]", line) else pattern, text))
    assert len(places) == 1, f"{line!r} stands {len(places)} times on the page: {[p.group() for p in places]}"
    for printed, (name, kind, value) in zip(places[0].groups(), wanted):
        assert same(printed, float(value), kind), f"{name}: {value} is not {printed} of {places[0].group()!r}"


def same(printed: str, value: float, kind: str = "") -> bool:
    """Whether a number rounded like the page's (per cent: to 0.1 under ten, else to 1) reads like this."""
    value *= 100 if "%" in kind else 1
    if printed.startswith("<"):
        return 0 < abs(value) < float(printed[1:])
    size = abs(value)
    digits = 2 if "~" in kind or size < 1e-3 else 3
    unit = 10.0 ** (math.floor(math.log10(size)) - digits + 1) if size else 1e-12
    if kind == "%":
        unit = 0.1 if size < 10 else 1.0
    elif digits == 3 and 1e3 <= size < 1e4:
        unit = 1.0  # four digits stand there anyway
    return abs(float(printed) - value) <= 0.501 * unit
