"""The page: complete in both languages, self-contained, honest about what is missing, safe against its own data."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import altair as alt
import pytest

from intaglio.analyse import analyse_run
from intaglio.commands.report import report as report_command
from intaglio.errors import InputError
from intaglio.findings import Interval
from intaglio.report import render
from intaglio.report.captions import MEASURED
from intaglio.report.charts.base import axis, svg
from intaglio.report.numbers import Numbers
from intaglio.report.shift.answer import understood
from intaglio.report.shift.movement import _agreement
from intaglio.report.texts import Texts
from intaglio.report.view import View
from intaglio.store.run import open_run
from reader import SECTIONS, Reader, sections_of
from sample_findings import HOSTILE, bare, sample
from synthetic import World, write_run


@pytest.fixture(scope="module", params=["en", "ru"])
def page(request, findings) -> str:
    return render(findings, lang=request.param)


def test_page_needs_no_network(page):
    for tag, attributes in Reader(page).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", page)


def test_hostile_data_stays_text(page):
    seen = Reader(page)
    assert page.count("<script>") == 1 and page.count("</script>") == 1
    assert "<!--" not in page
    assert all(not name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert HOSTILE.strip()[:30] in seen.text


def test_sections_stand_in_the_order_of_the_story(page):
    assert sections_of(page) == SECTIONS


def test_every_figure_has_a_caption_with_a_unit(page):
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert len(figures) == len(MEASURED) - 3  # one of the four volatility maps
    for figure in figures:
        assert "<figcaption>" in figure and "<svg" in figure, figure[:200]


def test_answer_names_the_group_that_moved_most(page):
    text = Reader(page).text
    answer = text[text.index("noise") - 300 : text.index("noise") + 300]
    assert "u" in answer and "1000" in answer


def test_russian_page_is_russian(findings):
    text = Reader(render(findings, lang="ru")).text
    assert not re.search(
        r"\b(the|not measured|example|examples|movement)\b",
        re.sub(r"\{.*\}", "", text.split("leaps-and-bridges", 2)[2])[:4000],
    )


def test_unknown_language_is_refused(findings):
    with pytest.raises(InputError, match="language"):
        render(findings, lang="de")


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_what_was_not_measured_is_said_and_never_zero(findings, lang):
    text = Reader(render(bare(findings), lang=lang)).text
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
    text = Reader(render(sample(target=False))).text
    assert "cannot be said" in text


def test_groups_whose_intervals_overlap_are_not_ranked(findings):
    wide = [
        replace(g, shift_abs_u_per_1000_tokens=Interval(900.0 + i, 1.0, 5000.0)) for i, g in enumerate(findings.groups)
    ]
    assert "no group stands out" in Reader(render(replace(findings, groups=wide))).text


def test_few_visits_change_the_map(findings):
    few = replace(findings, examples=[replace(e, dispersion=None) for e in findings.examples])
    text = Reader(render(few)).text
    assert "needs at least five visits per example" in text


@pytest.mark.parametrize("examples", [[], None])
def test_empty_runs_still_make_a_page(findings, examples):
    empty = replace(bare(findings), examples=[], groups=[])
    assert "</html>" in render(empty)


def test_a_thousand_examples_stay_under_five_megabytes():
    page = render(sample(per_group=200))
    assert len(page.encode("utf-8")) < 5_000_000


def test_a_long_text_is_cut_to_what_was_trained(findings):
    e, text = findings.examples[0], findings.texts[findings.examples[0].example]
    n = 3000
    long = replace(text, pieces=["x"] * n, shift_u=[1.0] * n, surprise_nats=[1.0] * n, entropy_nats=[1.0] * n,
                   trained=[i > 2000 for i in range(n)], confident_conflict=[False] * n)  # fmt: skip
    page = render(replace(findings, texts={e.example: long}))
    assert "2,680 more tokens of this text are not shown." in Reader(page).text


def test_nothing_learnt_is_not_called_carried_over(findings):
    known = replace(findings, examples=[replace(e, verdict="known") for e in findings.examples], imitation_gap=0.004)
    text = Reader(render(known)).text
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
    examples = [replace(e, verdict="understood") for e in findings.examples]
    gapped = replace(findings, imitation_gap=gap, examples=examples)
    for lang, said in {"en": english, "ru": russian}.items():
        sentence = str(understood(View(gapped, lang)))
        assert said in re.sub("<[^>]+>", "", sentence) and "&lt;" not in sentence


@pytest.mark.parametrize("gap", [0.09, 0.03, 0.0004, -0.05])
def test_two_small_falls_are_not_called_carried_over(findings, gap):
    """Where both losses fell by little they differ by little: the verdicts beside it say what that shows."""
    examples = [replace(e, verdict="imitated") for e in findings.examples[:-1]]
    few = replace(findings, imitation_gap=gap, examples=[*examples, replace(findings.examples[-1], verdict="understood")])
    for lang, said in {"en": "does not show that what was learnt carries over.", "ru": "это не показывает."}.items():
        sentence = re.sub("<[^>]+>", "", str(understood(View(few, lang))))
        assert sentence.endswith(said) and "&lt;" not in sentence


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_ticks_of_a_narrow_axis_are_told_apart(lang):
    """Of 0.9985, 0.999, 0.9995 and 1 (a CKA that hardly fell) three digits would make two pairs."""
    rows = alt.Data(values=[{"x": x, "y": 1 - x * 3e-4} for x in range(6)])
    chart = alt.Chart(rows).mark_line().encode(x=alt.X("x:Q", axis=None), y=alt.Y(
        "y:Q", axis=axis(None, lang, tickCount=5), scale=alt.Scale(zero=False)))  # fmt: skip
    labels = re.findall(r">([01](?:[.,]\d+)?)<", svg(chart, name="cka", label="CKA", lang=lang))
    assert len(labels) >= 3 and len(set(labels)) == len(labels), labels


def test_only_layers_that_moved_are_counted(findings):
    totals = {"leap": {"L28.attn": 1.0, "L29.mlp": 2.0}}
    assert "layer 29 (counted from 0; 2 moved)" in Reader(render(replace(findings, visit_part_totals=totals))).text


def test_report_command_writes_both_languages(tmp_path):
    run = write_run(tmp_path / "run", World(epochs=6))
    for lang in ("en", "ru"):
        report_command(run, out=tmp_path / f"{lang}.html", lang=lang)
        assert sections_of((tmp_path / f"{lang}.html").read_text(encoding="utf-8")) == SECTIONS


def test_a_page_takes_the_place_of_a_page_alone(tmp_path, monkeypatch):
    from intaglio.commands.compare import compare

    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", World(epochs=6))
    manifest, data, empty = run / "manifest.json", tmp_path / "mine.jsonl", tmp_path / "new.html"
    data.write_text('{"text": "dear to me"}\n')
    empty.touch()
    before = manifest.read_bytes()
    for place in (data, manifest, tmp_path):
        with pytest.raises(InputError, match=r"no page|folder"):
            report_command(run, out=place)
        with pytest.raises(InputError, match=r"no page|folder"):
            compare(run, run, out=place)
    assert manifest.read_bytes() == before and "dear to me" in data.read_text()
    for lang in ("en", "ru"):  # an empty file, then the page itself
        report_command(run, out=empty, lang=lang)
        assert f'lang="{lang}"' in empty.read_text(encoding="utf-8")


def test_report_imports_no_torch_store_or_analysis():
    barred = ("torch", "intaglio.store", "intaglio.analyse")
    code = f"import sys, intaglio.report; print([m for m in sys.modules if m in {barred}])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_what_the_probes_cost_stands_beside_them_and_in_the_terminal(findings):
    from rich.console import Console

    from intaglio.commands.summary import print_summary

    page = render(findings)
    assert "seconds per measurement" in page and "share of the run" in page and "3.4%" in page
    assert "pairs of visits: " in page and "секунд на измерение" in render(findings, lang="ru")
    console = Console(record=True, width=300)
    print_summary(None, findings, console)
    assert "0.42 s each, 3.4% of the run" in console.export_text()


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_run_of_a_few_steps_is_measured_but_unsettled(lang, tmp_path):
    run = write_run(tmp_path / "run", World(examples=12, epochs=2))
    text, t = Reader(render(analyse_run(open_run(run)), lang=lang)).text, Texts(lang)
    for key in ("fact.data_share.unsettled", "fact.data_share.unsettled_means", "movement.agreement_few"):
        assert str(t(key)) in text, key
    books = text[text.index(t("check.settled.name")) :][:200]
    assert t("check.settled.unsettled") in books and t("missing") not in books.split(t("check.settled.means"))[0]
    assert str(t("empty_figure")) not in text.split(str(t("figure.agreement")))[1][:300]


def test_why_the_datas_share_is_small_speaks_of_the_runs_own_momentum(findings):
    said = lambda **found: Reader(render(replace(findings, carry_share=0.8, **found))).text  # noqa: E731
    assert "β₁ = 0.95, this step's examples fill about 5% of that average; the other 95%" in said(momentum=0.95)
    assert "about 10% of that average; the other 90%" in said(momentum=0.9)
    assert "β₁ =" not in said(momentum=None) and "Why is the data's own share so small?" in said(momentum=None)
    assert "Why is the data's own share so small?" not in Reader(render(replace(findings, carry_share=0.1))).text


def test_a_run_that_is_finished_meanwhile_gets_its_page_at_its_final_place(tmp_path, monkeypatch):
    from intaglio.commands import report as module
    from intaglio.store.run import open_run

    write_run(tmp_path / "run", World(killed=True))
    going = open_run(tmp_path / "run")
    assert going.folder.name == "run.partial"
    plain = module.write_text
    monkeypatch.setattr(module, "write_text", lambda path, page: (
        going.folder.exists() and going.folder.rename(going.final), plain(path, page)))  # fmt: skip
    _, path = module.write_report(going)
    assert path == tmp_path / "run" / "report.html" and path.exists()


def test_a_power_of_ten_is_rounded_before_it_is_split():
    n = Numbers("en")
    assert n.signed(9.96e-6) == "+10⁻⁵" and n(9.94e-6) == "9.9×10⁻⁶" and n(2.1e-6) == "2.1×10⁻⁶" and n(-1e-7) == "−10⁻⁷"


def test_an_interval_that_is_open_or_missing_leaves_no_empty_brackets(findings):
    """Agreement whose interval holds 0 has a noise scale without an upper end; one batch over and over has no interval."""
    for alpha, noise in ((Interval(0.01, -0.01, 0.04), Interval(99.0, 24.0, None)), (Interval(0.5), Interval(1.0))):
        told = replace(findings, agreement=alpha, noise_scale=noise)
        for lang, nothing in (("en", "no interval"), ("ru", "без интервала")):
            said = re.sub("<[^>]+>", "", str(_agreement(View(told, lang))[0]))
            assert "()" not in said and "(;" not in said
            assert ("24…∞" in said) if noise.low else said.count(nothing) == 2
