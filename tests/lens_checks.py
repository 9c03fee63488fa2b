"""What must hold of the texts of every lens: said in both languages, reached by something, nothing left unfilled."""

from __future__ import annotations

import re
from importlib import resources

from torch import nn

from families import family
from intaglio.analyse.choice import find
from intaglio.report.choice.words import Words, choice_catalogue
from intaglio.report.texts import LANGUAGES
from intaglio.views import Trace


def bytes_model(name: str) -> nn.Module:
    """A tiny model of a family over bytes: any text, any language."""
    model = family(name)
    model.resize_token_embeddings(261)
    return model


def texts(lens: str, lang: str) -> dict[str, str]:
    """The catalogue's texts of one lens, by their keys below its name."""
    return {k.removeprefix(f"{lens}."): v for k, v in choice_catalogue()[lang].items() if k.startswith(f"{lens}.")}


def names_in(text: str) -> set[str]:
    """The names that a text leaves to be filled."""
    return set(re.findall(r"{(\w+)}", text))


def unfilled(page: str) -> list[str]:
    """Names that a page shows in place of what they stand for."""
    text = re.sub(r'<(script|style|pre).*?</\1>|data-[a-z]+="[^"]*"', "", page, flags=re.DOTALL)
    return re.findall(r"{[a-z_]{2,}}", text)


def check_said(lens: str, trace: Trace, measured: list[dict]) -> None:
    """Every sentence of the lens is said by one of `measured`, is worded in both languages and lacks no value."""
    english, said = texts(lens, "en"), set()
    for one in measured:
        for sentence in find(lens, Trace(trace.about, trace.rows, {lens: one})):
            said.add(sentence.key)
            assert sentence.values.keys() >= names_in(english[f"says.{sentence.key}"]), sentence.key
            for lang in LANGUAGES:
                assert "{" not in Words(lang).sentence(lens, sentence), sentence.key
    assert said == {k.removeprefix("says.") for k in english if k.startswith("says.")}


def check_named(lens: str) -> None:
    """Every other text is asked for by name in the code that shows or measures the lens; one that nothing names is dead."""
    shows = (resources.files("intaglio.report.choice") / "lenses" / f"{lens}.py").read_text(encoding="utf-8") + '"scheme" "all" '
    folder = resources.files("intaglio.measure.choice")
    files = [folder / "lenses" / f"{lens}.py", *(f for f in folder.iterdir() if f.name.endswith(".py"))]
    measures = "".join(f.read_text(encoding="utf-8") for f in files)
    for kind, key in (k.split(".")[:2] for k in texts(lens, "en") if "." in k):
        code = shows if kind in ("figure", "column", "scheme", "axis", "tip", "key", "line") else measures + shows
        assert kind == "says" or re.search(rf"[\".]{key}\"|{key}\"", code), (kind, key)
