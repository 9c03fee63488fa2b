"""Everything the page of the heads says, and what a role looks like on it. The sentences live in `texts/LANG/*.toml`."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from typing import Any

from markupsafe import Markup

from intaglio.atlas import ROLES, UNRESOLVED
from intaglio.report.texts import LANGUAGES, Texts, flatten

FILES = ("page", "roles", "card")
LEVELS = "texts_levels"  # the essence of each level of the architecture, a file of its own per language
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
COLOURS = {
    "position": 0,
    "sink": 5,
    "repetition": 1,
    "copying": 2,
    "names": 3,
    "language": 4,
}  # a family's colour of the page
FAMILY = {
    "previous_token": "position",
    "fixed_offset": "position",
    "self": "position",
    "first_token": "sink",
    "duplicate_token": "repetition",
    "induction": "repetition",
    "retrieval": "repetition",
    "copying": "copying",
    "copy_suppression": "copying",
    "successor": "copying",
    "name_mover": "names",
    "s_inhibition": "names",
    "coreference": "language",
    "syntax": "language",
    "temporal": "language",
}


@functools.cache
def heads_catalogue() -> dict[str, dict[str, str]]:
    """Every text: language -> "page.key", "roles.ROLE.key" or "card.key" -> text."""
    folder = resources.files("intaglio.report.heads")
    found: dict[str, dict[str, str]] = {}
    for lang in LANGUAGES:
        found[lang] = {}
        for name in FILES:
            text = (folder / "texts" / lang / f"{name}.toml").read_text(encoding="utf-8")
            found[lang] |= dict(flatten(tomllib.loads(text), f"{name}."))
        levels = folder / f"{LEVELS}_{lang}.toml"
        if levels.is_file():
            found[lang] |= dict(_level_texts(tomllib.loads(levels.read_text(encoding="utf-8"))))
    return found


def _level_texts(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, text) of the levels' file: "levels.embed.stores"; sources by their names written out."""
    sources = tree.pop("sources", {})
    for level in tree.get("levels", {}).values():
        level["sources"] = "; ".join(sources.get(name, name) for name in level.get("sources", ())) or "—"
    yield from flatten(tree.pop("levels", {}), "levels.")
    yield from flatten(tree, "levels.")


class HeadWords(Texts):
    """The page's texts of one language.

    Raises:
        InputError: there is no catalogue for `lang`.
    """

    def __init__(self, lang: str) -> None:
        super().__init__(lang)
        self._texts = {**self._texts, **heads_catalogue()[lang]}

    def count(self, noun: str, count: int) -> Markup:
        """A counted noun in its right form: "5 heads", «5 голов»."""
        return self(f"page.count.{noun}.{self.numbers.plural(count)}", n=self.numbers.whole(count))

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin so."""
        return [key for key in self._texts if key.startswith(prefix)]

    def role(self, role: str, detail: str = "") -> Markup:
        """A role as it is called, with its offset or relation."""
        name = self(f"roles.{role}.name") if f"roles.{role}.name" in self else Markup.escape(role)
        return Markup("{} ({})").format(name, detail) if detail else name

    def said(self, text: str) -> Markup:
        """What the measuring said in English (a task, a reason), in this page's language where it is known."""
        key = "page.said." + _NUMBER.sub("#", text)
        if key not in self:
            return Markup.escape(text)
        numbers = iter(self.numbers(float(found)) for found in _NUMBER.findall(text))
        return Markup(re.sub("#", lambda place: next(numbers), str(self(key))))

    def code(self, role: str) -> str:
        """At most five letters for a cell of the wall."""
        return str(self(f"roles.{role}.code")) if f"roles.{role}.code" in self else role[:4]


def colour(role: str | None) -> int | None:
    """The page's colour of a role's family; None for an unresolved head and for a role that is not known here."""
    return COLOURS[FAMILY[role]] if role in FAMILY else None


def in_order(roles: Any) -> list[str]:
    """Roles as pages list them, those not known here at the end, without the unresolved."""
    given = set(roles) - {UNRESOLVED, None, ""}
    return [r for r in ROLES if r in given] + sorted(given - set(ROLES))
