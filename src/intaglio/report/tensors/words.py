"""Everything the pages about tensors say. The sentences live in `texts/LANG/PAGE.toml`."""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources

from markupsafe import Markup

from intaglio.report.choice.words import Words
from intaglio.report.texts import LANGUAGES, flatten
from intaglio.sentences import Sentence

PAGES = ("diff", "walk")


@functools.cache
def tensors_catalogue() -> dict[str, dict[str, str]]:
    """Every text: language -> "page.key" -> text."""
    folder = resources.files("intaglio.report.tensors") / "texts"
    found: dict[str, dict[str, str]] = {lang: {} for lang in LANGUAGES}
    for lang in LANGUAGES:
        for name in PAGES:
            text = (folder / lang / f"{name}.toml").read_text(encoding="utf-8")
            found[lang] |= dict(flatten(tomllib.loads(text), f"{name}."))
    return found


class TensorWords(Words):
    """The texts of one language, with the numbers and tokens in them written out."""

    def __init__(self, lang: str) -> None:
        super().__init__(lang)
        self._texts = {**self._texts, **tensors_catalogue()[lang]}

    def plain(self, page: str, said: Sentence) -> str:
        """A finding for a terminal: the same words without markup."""
        return bare(self.sentence(page, said))


def bare(text: Markup) -> str:
    """Markup as the plain text it shows; tokens stand between quotes."""
    text = re.sub(r'<span class="tk">(.*?)</span>', r"“\1”", str(text), flags=re.DOTALL)
    return Markup(re.sub(r"<br>", "\n", text)).striptags() if "<" in text else Markup(text).unescape()
