"""Everything the choice page says, by lens and language. The sentences live in `texts/LANG/LENS.toml`."""

from __future__ import annotations

import functools
import tomllib
import unicodedata
from importlib import resources
from typing import Any

from markupsafe import Markup, escape

from intaglio.report.texts import LANGUAGES, Texts, flatten
from intaglio.sentences import Sentence, Shown
from intaglio.trace import LENSES

PAGE = "page"  # texts of the page itself
_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
MARKS = ("measured", "known", "heuristic", "unknown")


@functools.cache
def choice_catalogue() -> dict[str, dict[str, str]]:
    """Every text: language -> "lens.key" -> text."""
    folder = resources.files("intaglio.report.choice") / "texts"
    found: dict[str, dict[str, str]] = {}
    for lang in LANGUAGES:
        found[lang] = {}
        for name in (PAGE, *LENSES):
            path = folder / lang / f"{name}.toml"
            if path.is_file():
                found[lang] |= dict(flatten(tomllib.loads(path.read_text(encoding="utf-8")), f"{name}."))
    return found


class Words(Texts):
    """The choice page's texts of one language, with the numbers and tokens in them written out."""

    def __init__(self, lang: str) -> None:
        super().__init__(lang)
        self._texts = {**self._texts, **choice_catalogue()[lang]}

    def sentence(self, lens: str, said: Sentence) -> Markup:
        """A finding in words."""
        return self(f"{lens}.says.{said.key}", **{name: self.shown(value) for name, value in said.values.items()})

    def skipped(self, lens: str, reason: dict[str, Any]) -> Markup:
        """Why a lens does not apply."""
        values = {k: v for k, v in reason.items() if k != "reason"}
        return self(f"{lens}.skip.{reason['reason']}", **values)

    def shown(self, value: Shown) -> Markup:
        """A value as a reader sees it."""
        n, what = self.numbers, value.value
        match value.kind:
            case "token":
                return token(str(what))
            case "tokens":
                return Markup(", ").join(token(str(t)) for t in what)
            case "part":
                return part(str(what))
            case "parts":
                return Markup(", ").join(part(str(a)) for a in what)
            case "text":
                return escape(str(what))
            case "whole":
                text = n.whole(int(what))
            case "percent":
                text = n.percent(what)
            case "fine":
                text = n.fine_percent(what)
            case "signed":
                text = n.signed(what)
            case _:
                text = n(what)
        return Markup('<b class="num">{}</b>').format(text)


def token(text: str) -> Markup:
    """A token with its spaces and line breaks visible."""
    return Markup('<span class="tk">{}</span>').format(visible(text))


def visible(text: str) -> str:
    """Spaces as dots, line breaks as signs, what has no shape by its code point; an accent that comes first on a circle."""
    shown = "".join(_SIGNS.get(c) or (f"⟨{ord(c):04X}⟩" if _shapeless(c) else c) for c in text)
    return ("◌" if text and unicodedata.combining(text[0]) else "") + shown or "∅"


def _shapeless(c: str) -> bool:
    return c != " " and unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs")


def part(address: str) -> Markup:
    """A part's address."""
    return Markup('<code class="addr">{}</code>').format(address)
