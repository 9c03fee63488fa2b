"""The page's words: the same in both languages, none missing, none unused; and its numbers."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from intaglio.analyse.compare import _TERMS
from intaglio.findings import VERDICTS, WHY_KEYS
from intaglio.report import texts_catalogue
from intaglio.report.captions import MEASURED, MEASURED_OF_SCAN, MEASURED_OF_TWO
from intaglio.report.charts.steps import ACCOUNTS
from intaglio.report.numbers import Numbers
from intaglio.report.texts import Texts

# what `analyse` correlates with what
MEASURES = (
    "level",
    "level_residual",
    "dispersion",
    "shift_abs",
    "shift_net",
    "alignment",
    "csl",
    "first_loss",
    "length",
    "relative_shift",
)
REPORT = Path(str(resources.files("intaglio.report")))


def test_both_languages_say_the_same_things():
    catalogue = texts_catalogue()
    plural = re.compile(r"^count\.(\w+)\.\w+$")
    keys = {
        lang: {plural.sub(r"count.\1", k) for k in texts if not k.startswith("means.")}
        for lang, texts in catalogue.items()
    }
    assert keys["en"] == keys["ru"]
    names = lambda text: set(re.findall(r"{(\w+)}", text))  # noqa: E731
    for key, text in catalogue["en"].items():
        if key in catalogue["ru"] and not key.startswith("count."):
            assert names(text) == names(catalogue["ru"][key]), key


def test_counted_nouns_have_every_form():
    for lang, forms in {"en": {"one", "other"}, "ru": {"one", "few", "many"}}.items():
        found: dict[str, set[str]] = {}
        for key in texts_catalogue()[lang]:
            if key.startswith("count."):
                found.setdefault(key.split(".")[1], set()).add(key.split(".")[2])
        assert all(has == forms for has in found.values()), found


def _source() -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in REPORT.rglob("*") if p.suffix in (".py", ".jinja"))


def test_no_text_is_unused():
    source = _source()
    quoted = set(re.findall(r"[\"']([\w. -]+)[\"']", source))
    prefixes = {*re.findall(r"[\"']([a-z_.]+\.)[\"'{]", source), "count.", "means.", "units."}
    prefixes |= {f"{page}{kind}." for page in ("", "compare.", "scan.") for kind in ("figure", "reading")}
    from_data = {
        *VERDICTS,
        *ACCOUNTS,
        *MEASURED,
        "sum",
        "step",
        "difference",
        "data",
        "state",
        "both",
        "unknown",
        "answer",
        "same",
        *MEASURED_OF_TWO,
        *MEASURED_OF_SCAN,
        *_TERMS,
    }
    rules = {f"rule_{name}" for name in quoted} | {f"{kind}_{i}" for kind in ("for", "against") for i in range(5)}
    roles = {f"compare.{word}_{role}" for word in ("no", "other") for role in ("anchor", "target")}
    notes = {f"{name}{end}" for name in quoted | from_data for end in ("_note", "_none", "_means", "_key")}

    def used(key: str) -> bool:
        head, _, tail = key.rpartition(".")
        prefix = (
            key.startswith(("count.", "means.", "units.", "fact.", "check."))
            or f"{head}." in prefixes
            or head in ("texts", "limits", "compare.text", "compare.can")
        )
        return (
            key in quoted
            or key in roles | set(WHY_KEYS)
            or key.removeprefix("measure.") in MEASURES
            or (prefix and (key[:5] in ("count", "means", "units") or tail in quoted | from_data | rules | notes))
        )

    assert [key for key in texts_catalogue()["en"] if not used(key)] == []


def test_texts_built_from_data_are_all_there():
    english, russian = texts_catalogue()["en"], texts_catalogue()["ru"]
    needed = [*WHY_KEYS, *(f"{p}.{v}" for v in VERDICTS for p in ("verdict_name", "verdict_means")),
              *(f"account.{a}{end}" for a in (*ACCOUNTS, "sum", "step", "difference") for end in ("", "_means")),
              *(f"{kind}.{figure}" for figure in MEASURED for kind in ("figure", "reading")),
              *(f"scan.{kind}.{figure}" for figure in MEASURED_OF_SCAN for kind in ("figure", "reading")),
              *(f"spike.{v}" for v in ("data", "state", "both", "unknown"))]  # fmt: skip
    for key in needed:
        assert key in english and key in russian, key
    columns = {c for figures in (MEASURED, MEASURED_OF_SCAN) for columns in figures.values() for c in columns}
    assert {k.removeprefix("means.") for k in russian if k.startswith("means.")} == columns
    assert all(Texts("en").means(c) for c in columns)


def test_why_sentences_show_the_numbers_of_the_evidence():
    for key, sentence in WHY_KEYS.items():
        assert set(re.findall(r"{(\w+)", sentence)) == set(re.findall(r"{(\w+)}", texts_catalogue()["en"][key])), key


@pytest.mark.parametrize(
    "value, english, russian",
    [
        (1_234_567, "1.23\u00a0million", "1,23\u00a0млн"),
        (999_999, "1\u00a0million", "1\u00a0млн"),
        (18_412, "18,400", "18\u202f400"),
        (1840, "1,840", "1840"),
        (-3.14159, "−3.14", "−3,14"),
        (0.0341, "0.0341", "0,0341"),
        (2.13e-6, "2.1×10⁻⁶", "2,1×10⁻⁶"),
        (0, "0", "0"),
        (None, "—", "—"),
        (float("nan"), "—", "—"),
    ],
)
def test_numbers_read_like_a_person_wrote_them(value, english, russian):
    assert Numbers("en")(value) == english
    assert Numbers("ru")(value) == russian


def test_russian_plurals():
    t = Texts("ru")
    assert [str(t.count("examples", n)) for n in (1, 2, 5, 11, 21, 112, 1004)] == [
        "1 пример", "2 примера", "5 примеров", "11 примеров", "21 пример", "112 примеров", "1004 примера"]  # fmt: skip
    assert str(t.amount("times", 3.14)) == "3,1 раза" and str(t.amount("times", 12.2)) == "12 раз"


def test_percent():
    assert Numbers("ru").percent(0.414) == "41\u00a0%" and Numbers("en").percent(0.0004) == "<0.1%"


def test_a_change_has_its_sign_however_small():
    assert [Numbers("en").signed_percent(x) for x in (0.414, 0.0004, 0.0, -0.0004, -0.001, -0.414, None)] == [
        "+41%", "+<0.1%", "0%", "−<0.1%", "−0.1%", "−41%", "—"]  # fmt: skip
    assert [Numbers("ru").cosine(x) for x in (0.1, -0.034, -0.001, None)] == ["+0,10", "−0,03", "0,00", "—"]
