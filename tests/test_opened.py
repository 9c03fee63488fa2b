"""What a click opens, and the two sides next to each other: every number against the trace's own tables."""

from __future__ import annotations

import json
import re

import pytest

from conftest import save_subject
from families import family
from intaglio.choice import why
from intaglio.commands.why import _link
from intaglio.errors import InputError
from intaglio.measure.choice.rows import upstream_rows
from intaglio.measure.choice.upstream import trace_upstream
from intaglio.model.subject import load_subject
from intaglio.report.choice.opened import SOURCES, opened
from intaglio.report.choice.words import Words

PROMPT = "the cat sat on a red"


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(save_subject(tmp_path_factory.mktemp("opened") / "subject", num_hidden_layers=3))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return load_subject(save_subject(tmp_path_factory.mktemp("other") / "second", seed=1, num_hidden_layers=2))


@pytest.fixture(scope="module")
def trace(subject, other):
    beside = dict(versus=other, versus_prompt="the dog sat on a red", versus_target="c")
    return why(subject, PROMPT, target="b", against="a", lenses=[], **beside)


@pytest.fixture(scope="module")
def data(trace):
    return json.loads(re.search(r'id="parts">(.*?)</script>', trace.to_html(), re.DOTALL)[1])


def near(value):
    return pytest.approx(value, rel=1e-5, abs=1e-12)


def test_every_side_holds_its_own_votes(trace, data):
    assert len(data["sides"]) == 4 and data["sides"][0]["name"] == "this choice"
    for side, kept in zip((trace, *trace.beside), data["sides"]):
        votes = {r["address"]: r for r in side.rows["votes"]}
        assert kept["parts"].keys() == votes.keys()
        for address, (vote, effect, metric) in kept["parts"].items():
            assert metric is None
            assert vote == near(votes[address]["part_logits"])
            assert effect == (None if votes[address]["effect_logits"] is None else near(votes[address]["effect_logits"]))
        for head, reads in kept["reads"].items():
            rows = sorted((r for r in side.rows["votes"] if r["address"] == head), key=lambda r: -abs(r["vote_logits"]))
            assert len(reads) == min(SOURCES, len(rows))
            for (source, vote, attention), row in zip(reads, rows):
                assert (source, vote, attention) == (row["source"], near(row["vote_logits"]), near(row["attention"]))
        for layer, neurons in kept["neurons"].items():
            rows = [r for r in side.rows["neurons"] if r["layer"] == int(layer)]
            assert [n[0] for n in neurons] == [r["neuron"] for r in rows] and neurons[0][2] == near(rows[0]["vote_logits"])


def test_a_part_s_books_are_those_of_the_effects(trace, data):
    booked = data["sides"][0]["booked"]
    assert len(booked) == len({r["address"] for r in trace.rows["effects"]})
    for row in trace.rows["effects"]:
        (kept,) = (b for b in booked[row["address"]] if b["how"] == row["ablation"])
        assert all(kept[n] == near(row[f"{n}_logits"]) for n in ("effect", "own", "others", "norm", "shape"))
        terms = [r for r in trace.rows["effect_terms"] if (r["address"], r["ablation"]) == (row["address"], row["ablation"])]
        assert [c[0] for c in kept["changed"]] == [r["part"] for r in terms[:6]]
    assert {b["how"] for parts in booked.values() for b in parts} == {"mean", "resample"}
    assert all(not side["booked"] for side in data["sides"][1:])


def test_why_a_head_looked_there_is_what_upstream_says(trace, data):
    rows = trace.rows["upstream"]
    assert rows and {r["head"] for r in rows} == data["sides"][0]["upstream"].keys()
    found = trace.decision
    for row in rows:
        assert row["query"] == len(found.ids) - 1
        layer, head = (int(x) for x in re.findall(r"\d+", row["head"]))
        whole = trace_upstream(found.anatomy, found.base, layer, head, query=row["query"], key=row["key"])
        side = {"query": whole.query, "key": whole.key}[row["side"]]
        expected = side.bias if row["part"] == "bias" else dict(zip(map(str, side.addresses), side.parts_P.tolist()))[row["part"]]
        assert row["share"] == pytest.approx(expected, abs=1e-9) and row["score"] == pytest.approx(whole.score)
        sources = [r for r in trace.rows["votes"] if r["address"] == row["head"]]
        assert row["key"] == max(sources, key=lambda r: abs(r["vote_logits"]))["source"]
        kept = data["sides"][0]["upstream"][row["head"]]
        assert [row["part"], near(row["share"]), row["source"]] in kept["by"][row["side"]]
    assert trace.table("upstream").num_rows == len(rows)


def test_a_family_whose_queries_are_hidden_has_none():
    from conftest import byte_tokenizer
    from intaglio.measure.choice.decision import Decision
    from intaglio.model.proof import prove

    assert upstream_rows(Decision(prove(family("bloom")), byte_tokenizer(), [5, 6, 7], 5, 7)) == []


def test_the_sides_are_decisions_of_their_own(subject, other, trace):
    model, prompt, target = trace.beside
    assert [s.about["kind"] for s in trace.beside] == ["model", "prompt", "target"]
    ids = {text: subject.tokenizer(text, return_tensors="pt").input_ids for text in (PROMPT, "the dog sat on a red")}
    b, a, c = (subject.tokenizer(x).input_ids[-1] for x in "bac")
    for side, logits, token in (
        (model, other.model(ids[PROMPT]).logits, b), (prompt, subject.model(ids["the dog sat on a red"]).logits, b),
        (target, subject.model(ids[PROMPT]).logits, c),
    ):  # fmt: skip
        last = logits[0, -1].detach()
        assert side.about["difference_logits"] == pytest.approx(float(last[token] - last[a]), abs=1e-4)
        assert sum(r["vote_logits"] for r in side.rows["votes"]) == pytest.approx(float(last[token] - last[a]), abs=1e-3)
    kept = json.loads(trace.to_json())["beside"]
    assert [s["kind"] for s in kept] == ["model", "prompt", "target"] and kept[2]["tables"]["votes"]


def test_all_pictures_have_one_scale_and_every_side_its_own_candidates(trace):
    page = trace.to_html()
    cells = re.findall(r'<div data-side="(\d)">(.*?)(?=<div data-side|<figure class="block" id="sidevotes")', page, re.DOTALL)
    assert [number for number, _ in cells] == ["0", "1", "2", "3"]
    tops = set(re.findall(r'data-top="([\d.]+)"', "".join(cell for _, cell in cells)))
    assert len(tops) == 1
    for (_, cell), side in zip(cells, (trace, *trace.beside)):
        edges = re.findall(r'stroke-width="([\d.]+)" data-v="([\d.]+)"', cell)
        assert edges
        for width, vote in edges:
            assert float(width) == pytest.approx(0.6 + 7.5 * float(vote) / float(min(tops)), abs=0.02)
        shares = re.findall(r'class="r num">([\d.]+)%', cell)
        expected = [100 * r["probability"] for r in side.rows["candidates"][:8]]
        assert [float(s) for s in shares] == pytest.approx(expected, rel=0.06)


def test_a_second_target_must_be_a_third_token(subject):
    for named, said in (("a", "already"), ("b", "already"), ("two words", "not one token")):
        with pytest.raises(InputError, match=said):
            why(subject, PROMPT, target="b", against="a", versus_target=named, lenses=[], effects=False)


def test_data_cannot_end_the_script(subject):
    page = why(subject, "</script><b>x", effects=False, lenses=[]).to_html()
    assert page.count("</script>") == page.count("<script") and "</script><b>" not in page


def test_tokens_without_a_shape_are_seen():
    from intaglio.report.choice.words import visible

    assert visible(" a\n\t") == "·a⏎⇥" and visible("") == "∅" and visible("й") == "й" and visible("и\u0306") == "и\u0306"
    assert visible("\u200b") == "⟨200B⟩" and visible("\u0301") == "◌\u0301" and visible("\x00\xa0") == "⟨0000⟩⍽"
    assert visible("\u202eabc") == "⟨202E⟩abc" and visible("🙂") == "🙂"


def test_a_head_links_to_its_card_in_the_atlas(trace):
    pages = lambda: [side["page"] for side in opened(Words("en"), trace)["sides"]]  # noqa: E731
    assert pages() == [None] * 4
    trace.about["heads_page"] = "./heads.html"
    try:
        assert pages() == ["./heads.html", None, "./heads.html", "./heads.html"]  # another model has heads of its own
        assert '"page":"./heads.html"' in trace.to_html()
    finally:
        del trace.about["heads_page"]


def test_the_link_to_the_atlas_is_relative_to_the_page(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "my heads.html").write_text("", encoding="utf-8")
    assert _link(tmp_path / "my heads.html", tmp_path / "a" / "why.html") == "./../my%20heads.html"
    with pytest.raises(InputError, match="--heads needs a page"):
        _link(tmp_path / "my heads.html", None)
    with pytest.raises(InputError, match="no such page"):
        _link(tmp_path / "none.html", tmp_path / "why.html")
