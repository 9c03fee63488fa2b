"""The page in a real browser: it runs without errors, its controls work, nothing sticks out at any width."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import browser
from intaglio.analyse import compare
from intaglio.report import render, render_compare
from sample_findings import sample, sample_scan

pytestmark = [pytest.mark.page, pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")]

# Runs in the page before its own script, then drives it and leaves what it saw in the title.
WATCH = "<script>window.faults=[];addEventListener('error',e=>faults.push(String(e.message)))</script>"
DRIVE = "<script>" + (Path(__file__).parent / "drive_page.js").read_text(encoding="utf-8") + "</script>"


@pytest.fixture(scope="module")
def pages(findings) -> dict[str, str]:
    other = sample(seed=1)
    other = replace(other, name="a-run-with-a-rather-long-name-2026-11-22", examples=[
        replace(x, example=y.example) for x, y in zip(other.examples, findings.examples)])  # fmt: skip
    pages = {f"page-{lang}": render(findings, lang=lang) for lang in ("en", "ru")}
    pages |= {f"scan-{lang}": render(sample_scan(), lang=lang) for lang in ("en", "ru")}
    return pages | {
        f"compare-{lang}": render_compare(findings, other, compare(findings, other), lang=lang) for lang in ("en", "ru")
    }


def visit(page: str, folder: Path, width: int, place: str = "") -> dict:
    """What the script of these tests saw on a page."""
    return browser.visit(page, folder, width, watch=WATCH, drive=DRIVE, place=place)


@pytest.mark.parametrize("width", [1440, 900, 500])
@pytest.mark.parametrize("name", ["page-en", "page-ru", "compare-en", "compare-ru", "scan-en", "scan-ru"])
def test_nothing_sticks_out(pages, name, width, tmp_path):
    seen = visit(pages[name], tmp_path, width)
    assert seen["faults"] == []
    assert seen["width"] <= 0
    assert seen["clipped"] == []
    assert seen["theme"]


def test_controls_work(pages, tmp_path):
    seen = visit(pages["page-en"], tmp_path, 1440)
    assert seen["tip"] and "movement" in seen["tip"]
    assert "shift" in seen["token"]
    assert seen["view"] and seen["down"] and seen["up"] and seen["dim"]
    assert 0 < seen["found"] < 60


def test_controls_of_a_scan_work(pages, tmp_path):
    seen = visit(pages["scan-en"], tmp_path, 1440)
    assert seen["down"] and seen["up"] and seen["dim"]
    assert 0 < seen["found"] < 60


def test_one_example_lights_up_in_both_runs(pages, tmp_path):
    seen = visit(pages["compare-en"], tmp_path, 1440)
    assert seen["twins"] >= 3  # in A's map, in B's and in A against B
    assert seen["down"] and seen["up"] and seen["dim"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory) -> dict[str, object]:
    """Real decisions of a tiny model: one with everything, one of Russian letters."""
    from conftest import save_subject
    from intaglio.choice import why
    from intaglio.model.subject import load_subject

    subject = load_subject(save_subject(tmp_path_factory.mktemp("page") / "subject"))
    long = "the cat sat on a red mat, and the dog ran far away <b>&amp;"
    trace = why(subject, long, against="a", versus=subject, versus_prompt="one " + long, versus_target="b", corpus=long)
    return {"long": trace, "кот": why(subject, "Кот на окне", effects=False)}


@pytest.fixture(scope="module")
def decisions(traces) -> dict[str, str]:
    return {f"{name}-{lang}": t.to_html(lang=lang) for name, t in traces.items() for lang in ("en", "ru")}


@pytest.mark.parametrize("width", [1440, 900, 500])
@pytest.mark.parametrize("name", ["long-en", "long-ru", "кот-ru"])
def test_a_decision_stands_in_its_page(decisions, name, width, tmp_path):
    seen = visit(decisions[name], tmp_path, width)
    assert seen["faults"] == [] and seen["theme"]
    assert seen["width"] <= 0 and seen["open_width"] <= 0
    assert seen["clipped"] == [] and seen["open_clipped"] == []
    most, some, top = seen["edges"]
    assert most > some >= top >= 1 and seen["opened"] >= 2
    assert seen.get("sampled", True)


@pytest.mark.parametrize("width", [1440, 900, 500])
@pytest.mark.parametrize("lang", ["en", "ru"])
def test_any_part_opens_in_place_with_both_sides(decisions, lang, width, tmp_path):
    seen = visit(decisions[f"long-{lang}"], tmp_path, width)
    found = seen["parts"]
    assert seen["faults"] == [] and found["width"] <= 0 and found["both"] <= 0
    assert re.fullmatch(r"L\d+", found["edge"][0]) and found["edge"][0] == found["edge"][1]
    assert re.fullmatch(r"L\d+\.attn\.H\d+", found["head"][0]) and found["head"][0] == found["head"][1] and found["inside"]
    assert found["reads"] >= 2 and ("Replaced by" in found["head"][2]) == (lang == "en")
    assert re.fullmatch(r"L\d+\.mlp", found["stem"][0]) and re.fullmatch(r"L\d+\.mlp\.N\d+", found["neuron"][0])
    assert found["row"][0] == found["row"][1] and found["row"][2]
    assert len(found["columns"]) == len(found["other"]) == 2 and found["columns"][1] != found["other"][1]
    assert found["shown"] == ["0,1", "0,2", "3,2"] and "side=2" in found["side"] and "left=3" in found["side"] and found["closed"]


def test_the_votes_of_any_two_sides_stand_next_to_each_other(decisions, traces, tmp_path):
    tables = visit(decisions["long-en"], tmp_path, 1440)["parts"]["votes"]
    sides = [{r["address"]: r["part_logits"] for r in side.rows["votes"]} for side in (traces["long"], *traces["long"].beside)]
    for rows, (left, right) in zip(tables, ((0, 1), (0, 2), (3, 2))):
        a, b = sides[left], sides[right]
        loud = sorted(a.keys() | b.keys(), key=lambda p: (-max(abs(a.get(p, 0)), abs(b.get(p, 0))), p))
        assert sorted(r[0] for r in rows) == sorted(loud[: len(rows)]) and len(rows) == min(20, len(loud))
        for address, *cells in rows:
            for cell, value in zip(cells, (a[address], b[address], b[address] - a[address])):
                assert float(cell.replace("−", "-").replace(",", "")) == pytest.approx(value, rel=0.006, abs=1e-9)


def test_without_a_second_side_a_part_opens_alone(decisions, tmp_path):
    found = visit(decisions["кот-ru"], tmp_path, 1440)["parts"]
    assert "columns" not in found and found["closed"] and "Заменить" not in found["head"][2]


@pytest.fixture(scope="module")
def real_decision():
    """A Russian decision of the built-in model, with everything that needs no second model."""
    from intaglio.choice import why

    prompt = "Ключ лежит в ящике. Ключ лежит в кармане. Ключ лежит в"
    return why("smollm2", prompt, versus_prompt="Ключ лежит в ящике. Ключ лежит в", versus_target=" и", corpus=prompt * 3)


@pytest.mark.real
@pytest.mark.parametrize(("lang", "width"), [("ru", 900), ("en", 1440)])
def test_every_section_of_a_real_decision_stands_in_a_browser(real_decision, lang, width, tmp_path):
    skipped = {name for name, lens in real_decision.lenses.items() if "skipped" in lens}
    assert skipped == {"tuning", "models"}
    page = real_decision.to_html(lang=lang)
    assert len(page.encode()) < 5_000_000 * len(real_decision.about["ids"]) / 100
    seen = visit(page, tmp_path, width)
    assert seen["faults"] == [] and seen["opened"] == 18 and seen["sampled"]
    assert seen["width"] <= 0 and seen["open_width"] <= 0 and seen["clipped"] == [] and seen["open_clipped"] == []
    assert seen["parts"]["closed"] and len(seen["parts"]["columns"]) == 2


@pytest.mark.parametrize(("place", "shown"), [
    ("", "01"), ("#side=2", "02"), ("#side=7", "03"), ("#side=x&part=y", "01"),
    ("#left=-1&side=-5", "01"), ("#left=2&side=1", "12"),
])  # fmt: skip
def test_a_link_to_a_side_that_is_not_there_shows_one_that_is(decisions, tmp_path, place, shown):
    seen = visit(decisions["long-en"], tmp_path, 1440, place)
    assert seen["faults"] == [] and set(seen["sides"]) == set(shown)
