"""The built-in data: the arms differ in what they should differ in, and in nothing else."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import chain

import pytest

from intaglio.data.leaps import (
    ARMS,
    ROTATIONS,
    anchor_rows,
    paraphrase_rows,
    reversed_rows,
    rival_rows,
    training_rows,
)

ALL = list(chain.from_iterable(training_rows(r) for r in ROTATIONS))
PAIRS = {"leap": "bridge", "bridge": "leap", "conflict": "control", "control": "conflict"}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_run_holds_every_arm_alike_in_both_languages(rotation):
    rows = training_rows(rotation)
    counts = Counter((row["group"], row["lang"]) for row in rows)
    assert counts == {(arm, lang): 3 for arm in ARMS for lang in ("en", "ru")}
    assert len({row["fact"] for row in rows}) == len({row["topic"] for row in rows}) == 30


def test_over_the_rotations_every_topic_is_told_both_ways():
    arms = defaultdict(set)
    for row in ALL:
        arms[row["topic"]].add(row["group"])
    told = [ways for ways in arms.values() if "noise" not in ways]
    assert len(told) == 24
    assert Counter(map(frozenset, told)) == {frozenset(("leap", "bridge")): 12, frozenset(("conflict", "control")): 12}


def test_leap_and_bridge_ask_for_the_same_answer_after_the_same_words():
    by_topic = defaultdict(dict)
    for row in ALL:
        by_topic[row["topic"]][row["group"]] = row
    for ways in by_topic.values():
        if "leap" in ways:
            leap, bridge = ways["leap"], ways["bridge"]
            assert leap["fact"] == bridge["fact"] and leap["completion"] == bridge["completion"]
            assert leap["prompt"].rsplit(". ", 1)[1] == bridge["prompt"].rsplit(". ", 1)[1]
        if "conflict" in ways:
            assert ways["conflict"]["prompt"] == ways["control"]["prompt"]
            assert ways["conflict"]["completion"] != ways["control"]["completion"]
            assert ways["conflict"]["fact"] == ways["control"]["fact"] + "-false"


def test_the_name_stands_once_before_the_statement_in_leap_and_bridge():
    russian = {"lump": "Лумп", "vel": "Вель", "tarva": "Тарва", "orma": "Орма", "luva": "Люва", "krol": "Кроль"}
    for row in (row for row in ALL if row["group"] in ("leap", "bridge")):
        name = row["topic"].split("-")[1]
        before = row["prompt"].rsplit(". ", 1)[0].lower()
        assert before.count(russian.get(name, name).lower()) == 1, row


def test_no_prompt_gives_its_answer_away():
    probes = [f(r) for f in (paraphrase_rows, reversed_rows, rival_rows) for r in ROTATIONS]
    for row in chain(ALL, *probes):
        assert row["completion"].startswith(" ") and row["prompt"] == row["prompt"].strip()
        if row["group"] != "noise":
            assert row["completion"].strip() not in re.findall(r"\w+", row["prompt"]), row


def test_noise_holds_no_name_and_no_answer():
    told = [row for row in ALL if row["group"] != "noise"]
    answers = {row["completion"].strip().lower() for row in told}
    names = {row["topic"].split("-")[1] for row in told if row["lang"] == "en"}
    names |= {"лумп", "вель", "тарва", "орма", "люва", "кроль", "вельм"}
    vocabulary = {word for row in told for word in words(row["prompt"] + row["completion"])}
    for row in (row for row in ALL if row["group"] == "noise"):
        own = set(words(row["prompt"] + row["completion"]))
        assert own <= vocabulary and not own & (answers | names)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_the_target_probe_asks_what_was_taught_in_other_words(rotation):
    taught = {row["fact"]: row for row in training_rows(rotation) if row["group"] != "noise"}
    asked = defaultdict(list)
    for row in paraphrase_rows(rotation):
        asked[row["fact"]].append(row)
    for fact, row in taught.items():
        assert [item["kind"] for item in asked[fact]] == ["question", "cloze"]
        assert {item["group"] for item in asked[fact]} == {row["group"]}
        for item in asked[fact]:
            assert item["completion"] == row["completion"]
            assert item["prompt"] not in row["prompt"]
    held_out = [item for item in paraphrase_rows(rotation) if item["fact"] not in taught]
    assert {item["group"] for item in held_out} == {"heldout"} and len(held_out) == 16
    assert not {item["topic"] for item in held_out} & {row["topic"] for row in ALL}


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_backwards_the_answer_is_given_and_the_name_asked(rotation):
    answers = {row["fact"]: row["completion"].strip() for row in training_rows(rotation)}
    rows = reversed_rows(rotation)
    assert Counter(row["group"] for row in rows) == {"leap": 6, "bridge": 6}
    assert all(answers[row["fact"]].rstrip("s") in row["prompt"] for row in rows)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rivals_are_the_claims_that_were_not_taught(rotation):
    taught = {row["fact"] for row in training_rows(rotation)}
    rivals = rival_rows(rotation)
    assert Counter(row["group"] for row in rivals) == {"overwritten": 12, "untaught": 12}
    assert not {row["fact"] for row in rivals} & taught


def test_the_anchor_is_prose_in_both_languages():
    assert Counter(row["group"] for row in anchor_rows()) == {"en": 5, "ru": 3}


@pytest.mark.real
def test_every_row_of_a_language_has_the_same_tokens_and_each_pair_the_same_targets():
    from intaglio.model.subject import load_tokenizer

    tokenizer = load_tokenizer("smollm2")

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    for lang, tokens in (("en", 52), ("ru", 118)):
        rows = [row for row in ALL if row["lang"] == lang]
        assert {count(row["prompt"] + row["completion"]) for row in rows} == {tokens}
        assert all(count(row["prompt"]) + count(row["completion"]) == tokens for row in rows)
    targets = defaultdict(set)
    for row in ALL:
        targets[row["topic"]].add(count(row["completion"]))
    assert all(len(counts) == 1 for counts in targets.values())
    assert 600 <= sum(count(row["text"]) for row in anchor_rows()) <= 900
