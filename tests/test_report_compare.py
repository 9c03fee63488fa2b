"""The page of two runs side by side: complete and self-contained, and it says what cannot be compared."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from intaglio.analyse import compare
from intaglio.commands.compare import compare as compare_command
from intaglio.findings import Findings
from intaglio.report import render_compare
from intaglio.report.captions import MEASURED_OF_TWO
from intaglio.report.numbers import Numbers
from intaglio.report.texts import Texts
from reader import SECTIONS, Reader, sections_of
from sample_findings import HOSTILE, bare, sample
from synthetic import World, write_run


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
    assert sections_of(two) == SECTIONS


def test_comparison_needs_no_network_and_keeps_hostile_data_text(two):
    seen = Reader(two)
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


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_probes_of_one_name_and_size_but_other_texts_are_not_called_the_same(findings, lang):
    def watched(**prints: str) -> Findings:
        roles = {p.role: p.probe for p in findings.probes}
        probes = {roles[r]: {"items": 8, "role": r, "fingerprint": found} for r, found in prints.items()}
        return replace(findings, manifest={**findings.manifest, "probes": probes})

    said = Texts(lang)
    a = watched(target="t1", anchor="a1")
    for b, others in ((watched(target="t1", anchor="a1"), []), (watched(target="t1", anchor="a2"), ["anchor"]),
                      (watched(target="t2", anchor="a2"), ["target", "anchor"])):  # fmt: skip
        found = compare(a, b)
        assert next(t["same"] for t in found["terms"] if t["term"] == "probes") is (not others)
        page = Reader(render_compare(a, b, found, lang=lang)).text
        for role in ("target", "anchor"):
            assert (str(said(f"compare.other_{role}")) in page) == (role in others)
    unknown = watched(target="t1", anchor=None)
    assert compare(a, unknown)["other_texts"] == []


def test_comparison_joins_examples_by_id(findings, other):
    shared = len({e.example for e in findings.examples} & {e.example for e in other.examples})
    for lang in ("en", "ru"):
        page = side_by_side(findings, other, lang)
        assert str(Texts(lang).count("examples", shared)) in Reader(page).text
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
    text = Reader(side_by_side(findings, other)).text
    assert "One thing differs: learning rate." in text
    assert "more movement at the higher rate is no finding" in text
    assert "Its learning rate was" in text or "Yet its learning rate was" in text


def carried_of(page: str) -> list[list[str]]:
    """Cells of the table of carried momentum, row by row, without its head; none where it is not there."""
    table = re.search(r'<h3 id="carried">.*?<tbody>(.*?)</tbody>', page, re.S)
    rows = re.findall(r"<tr.*?</tr>", table[1], re.S) if table else []
    return [[Reader(cell).text.strip().replace("\u00a0", " ") for cell in re.findall(r"<td.*?</td>", row, re.S)
             if "barcell" not in cell] for row in rows]  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_momentum_by_group_stands_side_by_side_where_both_have_it(findings, other, lang):
    t, percent = Texts(lang), lambda share: Numbers(lang).percent(share).replace("\u00a0", " ")
    a = replace(findings, group_carry={"leap": 0.5, "bridge": -0.25, "(decay)": 0.02, "(earlier)": 1e-5})
    b = replace(other, group_carry={"leap": 0.125}, group_carry_settled=False)
    gone = str(t("compare.only_here"))
    page = side_by_side(a, b, lang)
    assert carried_of(page) == [
        ["leap", percent(0.5), percent(0.125)],
        [str(t("groups.carried_decay")), percent(0.02), gone],
        ["bridge", percent(-0.25), gone],
        [str(t("groups.carried_sum")), percent(0.27001), percent(0.125)],
    ]
    assert re.findall(r'barcell"><span class="bar"><i class="(neg)?" style="width:([\d.]+)%', page.split('id="carried"')[1]) == [
        ("", "100.0"), ("", "25.0"), ("", "4.0"), ("neg", "50.0")]  # fmt: skip
    said = Reader(page).text
    assert str(t("compare.carried_unsettled")).replace("{run}", "B") in said
    assert str(t("compare.carried_unsettled")).replace("{run}", "A") not in said


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_momentum_by_group_in_one_run_alone_is_not_set_beside_nothing(findings, other, lang):
    split = replace(findings, group_carry={"leap": 0.5})
    said = re.sub("<[^>]+>", "", str(Texts(lang)("compare.no_carry")))
    for a, b, letter in ((split, other, "B"), (other, split, "A")):
        page = side_by_side(a, b, lang)
        assert not carried_of(page) and said.replace("{run}", letter) in Reader(page).text
    assert said.split("{run}")[1] not in Reader(side_by_side(findings, other, lang)).text


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_different_subjects_are_not_set_side_by_side_in_u(findings, other, lang):
    foreign = replace(other, manifest={**other.manifest, "subject": {"name": "another", "fingerprint": "1"}},
                      examples=[replace(e, example="x" + e.example) for e in other.examples])  # fmt: skip
    page, t = side_by_side(findings, foreign, lang), Texts(lang)
    text = Reader(page).text
    for key in ("compare.can.subject", "compare.places_foreign", "compare.probes_foreign", "compare.texts_none_shared"):
        assert re.sub("<[^>]+>", "", str(t(key))) in text, key
    assert 'id="f-head_differences"' not in page and 'id="f-same"' not in page


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_bare_run_beside_a_full_one_is_said_in_words(findings, lang):
    empty = replace(bare(findings), manifest={"level": "norms", "subject": "smollm2"}, name="norms")
    for a, b in ((findings, empty), (empty, findings)):
        page, t = side_by_side(a, b, lang), Texts(lang)
        text = Reader(page).text
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
    assert sections_of(page) == SECTIONS
    text = Reader(page).text
    assert "24 примера" in text and "ж" in text and "\N{REPLACEMENT CHARACTER}" not in text
    assert ("norms, где нет" in text) == (len(set(levels)) == 2)
    assert capsys.readouterr().out.strip().endswith("compare.html")
