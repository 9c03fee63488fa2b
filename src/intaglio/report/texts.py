"""Everything a page says, by key and language. The sentences live in `catalogue/*.toml`."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from typing import Any

from markupsafe import Markup

from intaglio.errors import InputError
from intaglio.report.numbers import Numbers
from intaglio.tables import TABLES

LANGUAGES = ("en", "ru")


@functools.cache
def texts_catalogue() -> dict[str, dict[str, str]]:
    """Every text of every language: language -> dotted key -> text."""
    return {lang: dict(flatten(_load(lang))) for lang in LANGUAGES}


def _load(lang: str) -> dict[str, Any]:
    path = resources.files("intaglio.report") / "catalogue" / f"{lang}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def flatten(tree: dict[str, Any], prefix: str = ""):
    """(dotted key, text on one line) of a catalogue's tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", " ".join(value.split())


class Texts:
    """Texts of one language: `t("books.title")`, `t.count("examples", 5)`, `t.means("steps.loss_nats")`.

    Texts are trusted markup; every value put into them is escaped.

    Raises:
        InputError: there is no catalogue for `lang`.
    """

    def __init__(self, lang: str) -> None:
        if lang not in LANGUAGES:
            raise InputError("unknown language of the page", got=lang, expected=" or ".join(LANGUAGES))
        self.lang, self._texts = lang, texts_catalogue()[lang]
        self.numbers = Numbers(lang, missing=self._texts["missing"])

    def __contains__(self, key: str) -> bool:
        return key in self._texts

    def __call__(self, key: str, **values: Any) -> Markup:
        """The text of `key` with its `{names}` filled in, each value escaped."""
        text = Markup(self._texts[key])
        return text.format(**values) if values else text

    def count(self, noun: str, count: int) -> Markup:
        """A counted noun in its right form: "5 examples", «5 примеров»."""
        return self(f"count.{noun}.{self.numbers.plural(count)}", n=self.numbers.whole(count))

    def amount(self, noun: str, value: float | None) -> Markup:
        """A counted noun for a measured number, two digits: "3.1 times", «3,1 раза», «12 раз»."""
        if value is None:
            return Markup.escape(self.numbers.missing)
        text = self.numbers(value, 2)
        plain = text.replace("\u202f", "")
        form = self.numbers.plural(int(plain)) if plain.isdigit() and int(plain) > 1 else self.numbers.fraction_form
        return self(f"count.{noun}.{form}", n=text)

    def means(self, column: str) -> str:
        """What a column of the contract means, "table.column"; the English text is the contract's own."""
        if self.lang != "en":
            return self._texts[f"means.{column}"]
        table, name = column.split(".")
        return TABLES[table].column(name).means
