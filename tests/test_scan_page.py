"""The page of a scan: what the data would do, with the numbers of its tables; and its lines in the terminal."""

from __future__ import annotations

import re

import numpy as np
import pytest

from conftest import WORDS, write_jsonl, write_words
from intaglio.analyse import analyse_run
from intaglio.commands import scan as command
from intaglio.report import render
from intaglio.report.numbers import Numbers
from intaglio.report.texts import Texts
from intaglio.store.run import Run, open_run
from read_page import Page, prints
from reader import Reader, sections_of
from sample_findings import HOSTILE

SECTIONS = ["answer", "map", "agreement", "probes", "groups", "rows", "limits", "table"]
PROBES = ("target", "anchor")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Run:
    """A scan of some words against both kinds of probe."""
    folder = tmp_path_factory.mktemp("scan")
    data = write_words(folder / "data.jsonl", [*WORDS, HOSTILE])
    anchor = write_jsonl(folder / "anchor.jsonl", [{"text": "a cat ran"}, {"text": "two dogs"}])
    target = write_jsonl(folder / "target.jsonl", [{"text": "red and blue"}])
    command.scan(str(tiny), str(data), out=folder / "run", probe=[f"anchor={anchor}", f"target={target}"])
    return open_run(folder / "run")


@pytest.fixture(scope="module")
def truth(run) -> dict:
    """By example: the rows of its tables."""
    found = {r["example"]: r for r in run.table("scans").to_pylist()}
    for r in run.table("examples").to_pylist():
        found[r["example"]] |= r
    for r in run.table("scan_credits").to_pylist():
        found[r["example"]][r["probe"]] = (r["cosine"], r["credit_nats"])
    return found


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_scan_has_a_page_of_its_own_with_nothing_left_unmeasured(run, lang):
    page = render(analyse_run(run), lang=lang)
    seen = Reader(page)
    assert sections_of(page) == SECTIONS
    assert Texts(lang)("missing") not in seen.text
    assert not re.search(r"https?:|@import|fetch\(", page) and "<!--" not in page and page.count("<script>") == 1
    assert HOSTILE.strip()[:30] in seen.text
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert len(figures) == 4 and all("<svg" in f and "<figcaption>" in f for f in figures)
    assert all("data-tip" in f for f in figures)


def test_the_three_sentences_say_what_the_tables_hold(run, truth):
    words, rows = Page(run).words, list(truth.values())
    nats, targets = (np.array([r[k] for r in rows]) for k in ("loss_nats", "targets"))
    loss = float((nats * targets).sum() / targets.sum())
    prints(words, "the model's loss on them is {loss} nats per token, as if it picked each token out of {choices~} equally",
           loss=loss, choices=float(np.exp(loss)))  # fmt: skip
    against = sum(r["alignment"] < 0 for r in rows)
    assert f"{against} of {len(rows)} rows pull against the rest" in words
    helping = {p: sum(r[p][0] > 0 for r in rows) for p in PROBES}
    assert f"(probe target) for {helping['target']} of {len(rows)} rows" in words
    assert f"(probe anchor) would suffer from {len(rows) - helping['anchor']} of {len(rows)} rows" in words
    for probe in PROBES:
        mean = float(np.mean([r[probe][0] for r in rows]))
        assert f"mean cosine {Numbers('en').cosine(mean)}".replace("\u2212", "-") in words


def test_credits_stand_in_their_own_unit_beside_their_cosines(run, truth):
    page = render(analyse_run(run))
    assert "in nats, per unit of parameter length moved along a row's own gradient" in Reader(page).text
    for example, row in truth.items():
        line = re.search(rf'<tr id="e-{example}">.*?</tr>', page, re.S)
        values = [float(v) for v in re.findall(r'data-v="([^"]*)"', line[0])]
        assert values == pytest.approx([row["targets"], row["loss_nats"], row["push"], row["alignment"],
                                        *row["target"], *row["anchor"]], rel=1e-4)  # fmt: skip


def test_the_lists_name_the_rows_that_teach_and_cost_most(run, truth):
    page = render(analyse_run(run))
    for title, probe, sign in (("Would teach target most", "target", -1), ("Would cost anchor most", "anchor", 1)):
        listed = re.findall(r'href="#e-(\w+)"', page.split(title, 1)[1].split("<h3>", 1)[0].split("</section>", 1)[0])
        wanted = sorted((e for e in truth if sign * truth[e][probe][0] < 0), key=lambda e: sign * truth[e][probe][0])
        assert listed == wanted[:8]


def test_credits_of_a_scan_are_never_summed_in_nats(run):
    findings = analyse_run(run)
    assert findings.scanned and all(not e.credits_nats and e.credit_rates for e in findings.examples)
    assert all(not g.credits_nats for g in findings.groups)
    assert [e.push_mean for e in findings.examples] == sorted((e.push_mean for e in findings.examples), reverse=True)


def test_without_probes_groups_or_company_it_says_so(tiny, tmp_path):
    for name, texts in (("three", WORDS[:3]), ("one", WORDS[:1])):
        data = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": t} for t in texts])
        command.scan(str(tiny), str(data), out=tmp_path / name)
        text = Reader(render(analyse_run(open_run(tmp_path / name)))).text
        assert "the scan was given no probes" in text and "no group column" in text
        assert ("it needs at least two rows" in text) == (name == "one")


def test_the_terminal_shows_every_rows_credits_and_each_probe(tiny, intaglio, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    anchor = write_jsonl(tmp_path / "anchor.jsonl", [{"text": "a cat ran"}])
    intaglio("scan", tiny, write_words(tmp_path / "data.jsonl"), "--out", tmp_path / "run", "--probe", f"anchor={anchor}")
    said = "".join(capsys.readouterr())
    assert "anchor:" in said and "(cosine)" in said and "per unit of parameter length" in " ".join(said.split())
    assert re.search(r"probe anchor: a small plain step on one row would help it for \d+ of 7 rows", said)
