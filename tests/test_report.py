"""The page: complete in both languages, self-contained, honest about what is missing, safe against its own data."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from intaglio.analyse import compare
from intaglio.analyse.compare import _TERMS
from intaglio.commands.compare import compare as compare_command
from intaglio.commands.report import report as report_command
from intaglio.errors import InputError
from intaglio.findings import VERDICTS, WHY_KEYS, Findings, Interval
from intaglio.report import render, render_compare, texts_catalogue
from intaglio.report.captions import MEASURED, MEASURED_OF_TWO
from intaglio.report.charts.steps import ACCOUNTS
from intaglio.report.numbers import Numbers
from intaglio.report.shift.answer import understood
from intaglio.report.texts import Texts
from intaglio.report.view import View
from sample_findings import HOSTILE, sample
from synthetic import World, write_run

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
SECTIONS = ["answer", "books", "movement", "volatility", "groups", "places", "texts", "probes", "limits", "table"]
REPORT = Path(str(resources.files("intaglio.report")))


@pytest.fixture(scope="module")
def findings() -> Findings:
    return sample()


@pytest.fixture(scope="module", params=["en", "ru"])
def page(request, findings) -> str:
    return render(findings, lang=request.param)


class _Text(HTMLParser):
    """The text a reader sees, and the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self._inside = "", [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        self.text += "" if self._inside else data


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
    prefixes |= {f"{page}{kind}." for page in ("", "compare.") for kind in ("figure", "reading")}
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
        *_TERMS,
    }
    rules = {f"rule_{name}" for name in quoted} | {f"{kind}_{i}" for kind in ("for", "against") for i in range(5)}
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
            or key in WHY_KEYS
            or key.removeprefix("measure.") in MEASURES
            or (prefix and (key[:5] in ("count", "means", "units") or tail in quoted | from_data | rules | notes))
        )

    assert [key for key in texts_catalogue()["en"] if not used(key)] == []


def test_texts_built_from_data_are_all_there():
    english, russian = texts_catalogue()["en"], texts_catalogue()["ru"]
    needed = [*WHY_KEYS, *(f"{p}.{v}" for v in VERDICTS for p in ("verdict_name", "verdict_means")),
              *(f"account.{a}{end}" for a in (*ACCOUNTS, "sum", "step", "difference") for end in ("", "_means")),
              *(f"{kind}.{figure}" for figure in MEASURED for kind in ("figure", "reading")),
              *(f"spike.{v}" for v in ("data", "state", "both", "unknown"))]  # fmt: skip
    for key in needed:
        assert key in english and key in russian, key
    columns = {c for columns in MEASURED.values() for c in columns}
    assert {k.removeprefix("means.") for k in russian if k.startswith("means.")} == columns
    assert all(Texts("en").means(c) for c in columns)


def test_why_sentences_show_the_numbers_of_the_evidence():
    for key, sentence in WHY_KEYS.items():
        assert set(re.findall(r"{(\w+)", sentence)) == set(re.findall(r"{(\w+)}", texts_catalogue()["en"][key])), key


def test_page_needs_no_network(page):
    for tag, attributes in _Text(page).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", page)


def test_hostile_data_stays_text(page):
    seen = _Text(page)
    assert page.count("<script>") == 1 and page.count("</script>") == 1
    assert "<!--" not in page
    assert all(not name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert HOSTILE.strip()[:30] in seen.text


def test_sections_stand_in_the_order_of_the_story(page):
    assert _sections(page) == SECTIONS


def _sections(page: str) -> list[str]:
    return [a["id"] for tag, a in _Text(page).tags if tag == "section" and "id" in a]


def test_every_figure_has_a_caption_with_a_unit(page):
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert len(figures) == len(MEASURED) - 3  # one of the four volatility maps
    for figure in figures:
        assert "<figcaption>" in figure and "<svg" in figure, figure[:200]


def test_answer_names_the_group_that_moved_most(page):
    text = _Text(page).text
    answer = text[text.index("noise") - 300 : text.index("noise") + 300]
    assert "u" in answer and "1000" in answer


def test_russian_page_is_russian(findings):
    text = _Text(render(findings, lang="ru")).text
    assert not re.search(
        r"\b(the|not measured|example|examples|movement)\b",
        re.sub(r"\{.*\}", "", text.split("leaps-and-bridges", 2)[2])[:4000],
    )


def test_unknown_language_is_refused(findings):
    with pytest.raises(InputError, match="language"):
        render(findings, lang="de")


def bare(f: Findings) -> Findings:
    """The same run with nothing measured but losses."""
    none = Interval(None)
    quiet = dict(
        shift_abs_u=None,
        shift_net_u=None,
        level=None,
        dispersion=None,
        alignment_mean=None,
        against_share=None,
        credits_nats={},
        verdict="no evidence",
        why="",
        evidence={},
        group=None,
    )
    return replace(
        f,
        examples=[replace(e, **quiet) for e in f.examples],
        probes=[],
        pairs=[],
        near_duplicates=[],
        texts={},
        spikes=[],
        groups=[
            replace(
                f.groups[0],
                shift_abs_u=none,
                shift_net_u=none,
                shift_abs_u_per_1000_tokens=none,
                level=none,
                dispersion=none,
                alignment=none,
                nats_per_ku=None,
                credits_nats={},
                verdicts={},
                probe_fall={},
            )
        ],
        series={},
        books_close=None,
        closure_max=None,
        closure_median=None,
        gradient_match_max=None,
        coverage=None,
        data_share=None,
        carry_share=None,
        decay_share=None,
        unit_length=None,
        path_u=None,
        net_u=None,
        tortuosity=None,
        tortuosity_null=None,
        agreement=none,
        noise_scale=none,
        conflict_share=none,
        imitation_gap=None,
        starved_examples=none,
        starved_parts=(),
        layer_series={},
        head_totals={},
        relative_update={},
        visit_part_totals={},
        token_volatility=[],
        position_volatility=[],
        correlations={},
        complete=False,
    )


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_what_was_not_measured_is_said_and_never_zero(findings, lang):
    text = _Text(render(bare(findings), lang=lang)).text
    t = Texts(lang)
    for key in (
        "missing",
        "answer.which.nothing",
        "answer.where.nothing",
        "books.unknown",
        "probes.none",
        "masthead.going",
    ):
        assert re.sub("<[^>]+>", "", str(t(key))) in text, key
    assert " 0 u" not in text


def test_without_a_target_probe_understanding_is_not_claimed(findings):
    text = _Text(render(sample(target=False))).text
    assert "cannot be said" in text


def test_groups_whose_intervals_overlap_are_not_ranked(findings):
    wide = [
        replace(g, shift_abs_u_per_1000_tokens=Interval(900.0 + i, 1.0, 5000.0)) for i, g in enumerate(findings.groups)
    ]
    assert "no group stands out" in _Text(render(replace(findings, groups=wide))).text


def test_few_visits_change_the_map(findings):
    few = replace(findings, examples=[replace(e, dispersion=None) for e in findings.examples])
    text = _Text(render(few)).text
    assert "needs at least five visits per example" in text


@pytest.mark.parametrize("examples", [[], None])
def test_empty_runs_still_make_a_page(findings, examples):
    empty = replace(bare(findings), examples=[], groups=[])
    assert "</html>" in render(empty)


def test_a_thousand_examples_stay_under_five_megabytes():
    page = render(sample(per_group=200))
    assert len(page.encode("utf-8")) < 5_000_000


def side_by_side(a: Findings, b: Findings, lang: str = "en") -> str:
    return render_compare(a, b, compare(a, b), lang=lang)


@pytest.fixture(scope="module")
def other(findings) -> Findings:
    """Another run in which two of three examples are those of the first."""
    found = sample(seed=1)
    shared = [replace(x, example=y.example) if i % 3 else x
              for i, (x, y) in enumerate(zip(found.examples, findings.examples))]  # fmt: skip
    texts = {e.example: replace(next(iter(found.texts.values())), example=e.example) for e in shared}
    manifest = {**found.manifest, "subject": "smollm2", "recipe": {**found.manifest["recipe"], "lr": 5e-4}}
    return replace(found, name="other", examples=shared, texts=texts, manifest=manifest)


@pytest.fixture(scope="module", params=["en", "ru"])
def two(request, findings, other) -> str:
    return side_by_side(findings, other, request.param)


def test_comparison_has_the_sections_of_a_page(two):
    assert _sections(two) == SECTIONS


def test_comparison_needs_no_network_and_keeps_hostile_data_text(two):
    seen = _Text(two)
    for tag, attributes in seen.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttpRequest", two)
    assert two.count("<script>") == 1 and two.count("</script>") == 1 and "<!--" not in two
    assert all(not name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert HOSTILE.strip()[:30] in seen.text


def test_comparison_captions_say_what_is_measured(two):
    figures = re.findall(r'<figure id="f-(\w+)".*?</figure>', two, re.S)
    assert set(figures) == set(MEASURED_OF_TWO) - {"volatility_moved", "volatility_learnt", "volatility_loss"}
    for figure in re.findall(r"<figure.*?</figure>", two, re.S):
        assert "<figcaption>" in figure and "<svg" in figure, figure[:200]


def test_comparison_joins_examples_by_id(findings, other):
    shared = len({e.example for e in findings.examples} & {e.example for e in other.examples})
    for lang in ("en", "ru"):
        page = side_by_side(findings, other, lang)
        assert str(Texts(lang).count("examples", shared)) in _Text(page).text
        assert len(re.findall(r'<tr id="e-', page)) == 2 * len(findings.examples) - shared


def test_every_mark_of_the_comparison_leads_to_a_row(two):
    links = set(re.findall(r'<a href="#(e-[0-9a-z]+)"', two))
    assert links and links <= set(re.findall(r'<tr id="(e-[^"]+)"', two))


def test_texts_of_the_comparison_stand_a_over_b(two):
    card = re.search(r'<article class="card" id="t-.*?</article>', two, re.S)
    assert card is not None
    assert re.findall(r'<div class="pairside"><i class="run-(\w)"', card[0]) == ["a", "b"]
    assert card[0].count('class="tokens"') == 2 and 'class="tok ' in card[0]


def test_comparison_names_what_differs_and_what_follows(findings, other):
    text = _Text(side_by_side(findings, other)).text
    assert "One thing differs: learning rate." in text
    assert "more movement at the higher rate is no finding" in text
    assert "Its learning rate was" in text or "Yet its learning rate was" in text


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_different_subjects_are_not_set_side_by_side_in_u(findings, other, lang):
    foreign = replace(other, manifest={**other.manifest, "subject": {"name": "another", "fingerprint": "1"}},
                      examples=[replace(e, example="x" + e.example) for e in other.examples])  # fmt: skip
    page, t = side_by_side(findings, foreign, lang), Texts(lang)
    text = _Text(page).text
    for key in ("compare.can.subject", "compare.places_foreign", "compare.probes_foreign", "compare.texts_none_shared"):
        assert re.sub("<[^>]+>", "", str(t(key))) in text, key
    assert 'id="f-head_differences"' not in page and 'id="f-same"' not in page


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_bare_run_beside_a_full_one_is_said_in_words(findings, lang):
    empty = replace(bare(findings), manifest={"level": "norms", "subject": "smollm2"}, name="norms")
    for a, b in ((findings, empty), (empty, findings)):
        page, t = side_by_side(a, b, lang), Texts(lang)
        text = _Text(page).text
        for key in ("compare.verdicts_unknown", "compare.forgot_unknown"):
            assert str(t(key)) in text, key
        letter = "A" if a is empty else "B"
        for key in ("compare.no_books", "compare.no_parts", "compare.no_target", "compare.no_anchor"):
            start = re.sub("<[^>]+>", "", str(t(key))).split("{run}")
            assert start[0] + letter + start[1].split("{why}")[0] in text, key
        assert not re.search(r"\bNone\b(?! of)", text) and " 0 u" not in text


def test_two_bare_runs_still_make_a_page(findings):
    empty = replace(bare(findings), manifest={})
    assert "</html>" in side_by_side(empty, empty)
    assert "</html>" in side_by_side(replace(empty, examples=[], groups=[]), findings)


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_two_runs_of_a_thousand_examples_stay_under_five_megabytes(lang):
    a, b = sample(per_group=200), sample(per_group=200, seed=1)
    for other in (b, replace(b, examples=[replace(x, example=y.example) for x, y in zip(b.examples, a.examples)])):
        assert len(side_by_side(a, other, lang).encode("utf-8")) < 5_000_000


@pytest.mark.parametrize("levels", [("full", "norms"), ("norms", "full"), ("norms", "norms")])
def test_compare_command_on_runs_of_unequal_level(levels, tmp_path, capsys):
    runs = [write_run(tmp_path / f"{name}-{level}", World(level=level, epochs=2 + i, seed=i))
            for i, (name, level) in enumerate(zip("ab", levels))]  # fmt: skip
    compare_command(*runs, out=tmp_path / "compare.html", lang="ru")
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert _sections(page) == SECTIONS
    text = _Text(page).text
    assert "24 примера" in text and "ж" in text and "\N{REPLACEMENT CHARACTER}" not in text
    assert ("norms, где нет" in text) == (len(set(levels)) == 2)
    assert capsys.readouterr().out.strip().endswith("compare.html")


def test_a_long_text_is_cut_to_what_was_trained(findings):
    e, text = findings.examples[0], findings.texts[findings.examples[0].example]
    n = 3000
    long = replace(text, pieces=["x"] * n, shift_u=[1.0] * n, surprise_nats=[1.0] * n, entropy_nats=[1.0] * n,
                   trained=[i > 2000 for i in range(n)], confident_conflict=[False] * n)  # fmt: skip
    page = render(replace(findings, texts={e.example: long}))
    assert "2,680 more tokens of this text are not shown." in _Text(page).text


def test_nothing_learnt_is_not_called_carried_over(findings):
    known = replace(findings, examples=[replace(e, verdict="known") for e in findings.examples], imitation_gap=0.004)
    text = _Text(render(known)).text
    assert "carries over" not in text and "nothing that could carry over" in text


@pytest.mark.parametrize(
    "gap, english, russian",
    [
        (0.31, "fell further than on other wordings by 31% of", "разница — 31\u00a0% от"),
        (0.03, "by only 3% of its start", "лишь ненамного сильнее, чем на пересказах (на 3\u00a0% от"),
        (0.0004, "fell by the same share of its start:", "упали на одну и ту же долю:"),
        (-0.0004, "fell by the same share of its start:", "упали на одну и ту же долю:"),
        (
            -0.05,
            "even further than on the trained one, by 5% of",
            "даже сильнее, чем на заученной формулировке (на 5\u00a0% от",
        ),
    ],
)
def test_the_gap_reads_well_whatever_its_size(findings, gap, english, russian):
    gapped = replace(findings, imitation_gap=gap)
    for lang, said in {"en": english, "ru": russian}.items():
        sentence = str(understood(View(gapped, lang)))
        assert said in re.sub("<[^>]+>", "", sentence) and "&lt;" not in sentence


def test_only_layers_that_moved_are_counted(findings):
    totals = {"leap": {"L28.attn": 1.0, "L29.mlp": 2.0}}
    assert "layer 29 (counted from 0; 2 moved)" in _Text(render(replace(findings, visit_part_totals=totals))).text


def test_report_command_writes_both_languages(tmp_path):
    run = write_run(tmp_path / "run", World(epochs=6))
    for lang in ("en", "ru"):
        report_command(run, out=tmp_path / f"{lang}.html", lang=lang)
        assert _sections((tmp_path / f"{lang}.html").read_text(encoding="utf-8")) == SECTIONS


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


def test_report_imports_no_torch_store_or_analysis():
    barred = ("torch", "intaglio.store", "intaglio.analyse")
    code = f"import sys, intaglio.report; print([m for m in sys.modules if m in {barred}])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
