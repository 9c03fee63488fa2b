"""Lenses that ask where a choice comes from: n-grams of the prompt and of a corpus, copies; and what other models say."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from conftest import byte_tokenizer
from families import FAMILIES, family, ids
from intaglio.choice import why
from intaglio.data.suffixes import Suffixes, suffix_array
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Skip, corpus
from intaglio.measure.choice.lenses.distribution import company
from intaglio.measure.choice.lenses.neurons import promoted
from intaglio.model.proof import prove
from intaglio.report.choice.sides import Side, sides
from intaglio.report.choice.words import Words
from intaglio.views import Trace
from lens_checks import bytes_model, check_named, check_said, unfilled

NAMES = ("corpus", "models")
TARGET, AGAINST = 5, 7


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def decision(name_or_model, tokens=None, against=AGAINST) -> Decision:
    model = family(name_or_model) if isinstance(name_or_model, str) else name_or_model
    return Decision(prove(model), byte_tokenizer(), ids()[0].tolist() if tokens is None else list(tokens), TARGET, against)


def planted(logits: list[float], tokens: list[int]) -> Decision:
    """A decision whose logits are given."""
    found = decision("llama", tokens)
    found.__dict__["logits_V"] = torch.tensor(logits, dtype=torch.float64)
    return found


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# suffixes, beside a plain scan


def scan(sequence: list[int], run: list[int]) -> list[int]:
    """The slow twin: every place, one after the other."""
    n = len(run)
    return [i + n for i in range(len(sequence) - n) if sequence[i : i + n] == run]


@pytest.mark.parametrize("seed", range(60))
def test_suffixes_find_what_a_plain_scan_finds(seed):
    rng = np.random.default_rng(seed)
    sequence = rng.integers(0, 1 + seed % 4, int(rng.integers(1, 50))).tolist()
    depth = int(rng.integers(1, 55))
    order = suffix_array(np.array(sequence), depth)
    assert sorted(order) == list(range(len(sequence)))
    heads = [sequence[i : i + depth] for i in order]
    assert heads == sorted(heads)
    text = Suffixes(sequence, depth)
    for length in range(min(depth, 8) + 1):
        run = rng.integers(0, 4, length).tolist()
        assert text.following(run).tolist() == scan(sequence, run)
    asked = rng.integers(0, 4, depth).tolist()
    longest = text.longest(asked)
    assert not longest or scan(sequence, asked[-longest:])
    assert longest == depth or not scan(sequence, asked[-longest - 1 :])


def test_a_sequence_of_one_item_and_none():
    assert Suffixes([], 5).longest([1, 2]) == 0 and Suffixes([], 5).following([]).tolist() == []
    same = Suffixes([4] * 1000, 600)
    assert same.longest([4] * 600) == 600 and len(same.following([4] * 600)) == 400
    assert Suffixes([1, 2, 3], 3).longest([3]) == 0, "nothing follows the last item"


def test_a_corpus_is_cut_at_line_breaks_and_nothing_is_lost():
    text = "a line\n\n  more\nand more\n" * 400 + "end"
    pieces = list(corpus.cut(text, 1000))
    assert "".join(pieces) == text and len(pieces) > 5
    assert all(p.endswith("\n") and not q[0].isspace() for p, q in itertools.pairwise(pieces))
    tokenizer = byte_tokenizer()
    assert corpus.corpus_ids(tokenizer, text).tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert corpus.corpus_ids(tokenizer, "").tolist() == []


@pytest.mark.parametrize("prompt", ["I gave a drink to", "the  king\n of", "О, дядя! Мой", "zebra", "it is: the", "don't go to"])
def test_the_company_of_words_is_what_a_plain_search_finds(prompt):
    text = (
        "He gave a drink to me. A drink to you; drink to, no. drink\nTo ME! The king of all, the king\nof it. Мой дядя. "
        "Мой  ДЯДЯ! мой кот: дядя! Мой друг. it is: the end, is: the END. don't go to it's. so don't go to bed"
    )
    rows = company(prompt, text)
    words = prompt.split()
    assert len(rows) == min(4, len(re.findall(r"[\w']+|[^\w\s]", prompt)))
    for length in range(1, len(words) + 1):
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words[-length:])) + r"\s+(\w+(?:'\w+)?)"
        found = Counter(w.lower() for w in re.findall(pattern, text))
        for row in rows:
            if row["ending"] == " ".join(words[-length:]):
                assert row["times"] == found.total() and {f["word"]: f["times"] for f in row["followed_by"]} == found


# n-grams


def test_shares_of_planted_n_grams():
    # the ending (8, 9) stands twice: once before 5, once before 6; 9 alone also before 7 twice
    tokens = [8, 9, 5, 9, 7, 8, 9, 6, 9, 7, 3, 8, 9]
    logits = [-math.inf] * 97
    for token, p in ((5, 0.2), (6, 0.7), (7, 0.1)):
        logits[token] = math.log(p)
    seen = corpus.measure(planted(logits, tokens), Given("", []))
    n = seen.numbers["context"]
    assert (n["longest"], n["times"], n["tokens"]) == (2, 2, 13) and seen.numbers["corpus"] is None
    assert n["p_target"] == 0.5 and n["overlap"] == pytest.approx(0.7) and seen.numbers["either"] == pytest.approx(0.7)
    rows = {r["length"]: r for r in seen.tables["lengths"]}
    assert rows[1]["times"] == 4 and rows[1]["p_target"] == 0.25 and rows[1]["overlap"] == pytest.approx(0.2 + 0.25 + 0.1)
    assert rows[0]["times"] == 13 and rows[0]["distinct"] == 6
    assert [m["position"] for m in seen.tables["matches"]] == [2, 7]


def test_overlap_is_one_less_total_variation_and_either_takes_the_larger():
    letters = "abcab"
    tokenizer = byte_tokenizer()
    tokens = tokenizer(letters, add_special_tokens=False)["input_ids"]
    model = family("llama")
    model.resize_token_embeddings(261)
    found = decision(model, tokens)
    seen = corpus.measure(found, Given(letters, [], corpus="xabd\nabd\nabe\n"))
    p = found.logits_V.softmax(0).tolist()
    context, text = Counter("c"), Counter("dde")
    share = [{tokenizer.convert_tokens_to_ids(c): k / c_.total() for c, k in c_.items()} for c_ in (context, text)]
    for name, own in zip(("context", "corpus"), share):
        variation = sum(abs(p[y] - own.get(y, 0)) for y in range(261)) / 2
        assert seen.numbers[name]["overlap"] == pytest.approx(1 - variation) and seen.numbers[name]["longest"] == 2
    either = sum(min(p[y], max(s.get(y, 0) for s in share)) for y in range(261))
    assert seen.numbers["either"] == pytest.approx(either)
    by_text = {r["text"]: r for r in seen.tables["candidates"]}
    assert by_text["c"]["context"] == 1 and by_text["d"]["corpus"] == pytest.approx(2 / 3)
    assert by_text["e"]["p"] == pytest.approx(p[tokenizer.convert_tokens_to_ids("e")])
    places = [m for m in seen.tables["matches"] if m["source"] == "corpus"]
    assert [(m["match"], m["next"]) for m in places] == [("ab", "d"), ("ab", "d"), ("ab", "e")]
    assert places[0]["before"] == "x" and places[1]["before"] == "xabd\n" and places[2]["after"] == "\n"


def test_what_either_gives_is_not_the_sum():
    tokens = [8, 9, 5, 8, 9, 6, 8, 9]  # 5 and 6 by halves
    text = byte_tokenizer().decode([8, 9, 5] * 3 + [8, 9, 7, 8, 9, 6])
    logits = [-math.inf] * 97
    for token, p in ((5, 0.8), (6, 0.15), (7, 0.05)):
        logits[token] = math.log(p)
    n = corpus.measure(planted(logits, tokens), Given("", [], corpus=text)).numbers
    assert n["context"]["overlap"] == pytest.approx(0.5 + 0.15) and n["corpus"]["overlap"] == pytest.approx(0.6 + 0.15 + 0.05)
    assert n["either"] == pytest.approx(0.6 + 0.15 + 0.05) and n["corpus"]["p_target"] == 0.6


def test_what_never_occurred_explains_nothing():
    seen = corpus.measure(decision("llama", [9, 8, 7, 6]), Given("", [], corpus="zzz"))
    n = seen.numbers
    assert n["context"]["longest"] == n["corpus"]["longest"] == 0 and n["either"] == 0 and not seen.tables["matches"]
    with pytest.raises(Skip, match="one_token"):
        corpus.measure(decision("llama", [9]), Given("", []))


# copies


def test_positions_are_told_apart():
    spelled = {5: " Cat", 6: "cat", 7: " dog", 8: " the", 9: " a"}
    found = decision("llama", [5, 9, 6, 8, 5, 8, 7, 8, 9, 8])
    found.written = lambda token: spelled[token]
    assert corpus.kinds_of(found) == [
        "copy", "other", "alike", "other", "followed_copy", "other", "rival", "other", "followed", "other",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_measured_votes_sum_and_nothing_is_left_behind(name):
    model = family(name)
    before = model(ids()).logits
    tokens = ids()[0].tolist()
    tokens[3] = tokens[8] = TARGET
    tokens[7] = tokens[-1]
    found = decision(model, tokens)
    seen = corpus.measure(found, Given("", [], corpus="some text"))
    heads = sum(float(v) for a, v in zip(found.votes.addresses, found.votes.votes_BP[0]) if a.head is not None)
    rows = seen.tables["kinds"]
    assert sum(r["for_logits"] + r["against_logits"] for r in rows) == pytest.approx(heads, abs=1e-5)
    assert sum(r["share"] for r in rows) == pytest.approx(1) and sum(r["positions"] for r in rows) == len(tokens)
    assert seen.numbers["places"] == 2 and seen.numbers["induced"] == next(
        r["share"] for r in rows if r["kind"] == "followed_copy")  # fmt: skip
    for row in seen.tables["heads"]:
        layer, head = (int(x[1:]) for x in (row["address"].split(".")[0], row["address"].split(".")[2]))
        logits = promoted(found, corpus.read_from(found, layer, head, [3, 8]))
        assert float(logits[TARGET] - logits[AGAINST]) == pytest.approx(row["read_logits"], abs=2e-5)
        assert row["place"] == int((logits > logits[TARGET]).sum()) + 1
    again = corpus.measure(decision(model, tokens), Given("", [], corpus="some text"))
    assert again.numbers == seen.numbers and again.tables == seen.tables
    json.dumps([seen.numbers, seen.tables], allow_nan=False)
    assert torch.equal(model(ids()).logits, before) and hooks(model) == 0


def test_a_planted_copying_head_is_named_first():
    model = family("llama")
    tokens = ids()[0].tolist()
    tokens[6] = TARGET
    found = decision(model, tokens)
    read_d = found.base.layers[2].pattern_BHTT[0, 1, -1, 6] * found.base.layers[2].v_BHTd[0, 1, 6]
    model = copy.deepcopy(model)
    unembed = model.lm_head.weight[TARGET] / model.model.norm.weight
    model.model.layers[2].self_attn.o_proj.weight[:, 12:24] = 5 * torch.outer(unembed, read_d / read_d.norm() ** 2)
    row = corpus.measure(decision(model, tokens, against=None), Given("", [])).tables["heads"][0]
    assert row["address"] == "L2.attn.H1" and row["place"] == 1 and row["read_logits"] > 0.5


# toys, texts, pages


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    """The lens without a corpus, with one, and where nothing came before; in Cyrillic and hostile letters."""
    pair = (bytes_model("llama"), byte_tokenizer())
    prompt = "<b>да</b> нет & да"
    return {
        "plain": why(pair, prompt, effects=False, lenses=["corpus"]),
        "corpus": why(pair, prompt, target="a", effects=True, lenses=["corpus"], corpus="кот & да, & да! & да?\n<i>"),
        "one": why(pair, [9], effects=False, lenses=["corpus"]),
    }


def corpus_variants(lens: dict) -> list[dict]:
    """The lens as measured and with numbers that lead to every other sentence."""
    found = [lens]
    for change in (
        {"context": lens["numbers"]["context"] | {"longest": 0}, "corpus": lens["numbers"]["corpus"] | {"longest": 0}},
        {"corpus": lens["numbers"]["corpus"] | {"times": 99}, "places": 0, "alike": 0.0}, {"places": 0, "alike": 0.1},
        {"places": 2},
    ):  # fmt: skip
        found.append(copy.deepcopy(lens))
        found[-1]["numbers"] |= change
    found[-1]["tables"]["heads"] = [{"address": "L0.attn.H0", "read_logits": 1.0, "place": 1, "attention": 0.5}]
    for share in (0.1, 0.9):
        found.append(copy.deepcopy(lens))
        for name in ("context", "corpus"):
            row = [r for r in found[-1]["tables"]["lengths"] if r["source"] == name][-1]
            row["followed_by"], found[-1]["numbers"][name]["p_target"] = [{"text": "x", "p": 0.9}], share
    return found


def test_texts_of_continuation(traces):
    plain, seen = traces["plain"], traces["corpus"]
    check_said("corpus", seen, [plain.lenses["corpus"], *corpus_variants(seen.lenses["corpus"])])
    check_named("corpus")


def test_pages_of_continuation_in_both_languages(traces):
    for name, trace in traces.items():
        for lang in ("en", "ru"):
            page = trace.to_html(lang=lang)
            assert str(Words(lang)("corpus.title")) in page and not unfilled(page) and "<b>да" not in page
            assert (str(Words(lang)("corpus.skip.one_token")) in page) == (name == "one")
            assert (str(Words(lang)("corpus.series.corpus")) in page) == (name == "corpus")


def test_bars_side_by_side():
    rows = [Side("<n>", [0.5, None], ["5", "none"], tip='"'), Side("m", [2.0, 0.0], ["2", "0"])]
    drawn = str(sides(["<one>", "two"], rows, top=1))
    assert "<one>" not in drawn and "<n>" not in drawn and "none" not in drawn
    assert drawn.count('class="side"') == 3 and "width:44.00%" in drawn and "width:88.00%" in drawn and "width:0.00%" in drawn
