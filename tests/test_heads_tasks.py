"""Roles on texts of our own: planted heads score near 1 and others near 0; what cannot be tested is skipped with a reason."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

from intaglio.data.heads import prose, read
from intaglio.errors import InputError
from intaglio.measure.heads.tasks import run_tasks
from intaglio.model.proof import prove
from planted_tasks import OneHot, attending, members, word_tokenizer, words_of

STRONG = 40.0
NAMES = set(read("indirect")["names"])


def prose_words() -> list[str]:
    return [w for language in ("en", "ru") for text in prose(language) for w in re.findall(r"\w+|[^\w\s]+", text)]


def scores(results, role: str, detail: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(L, H) means of the score and of its null."""
    (found,) = [s for s in results.sampled if (s.role, s.detail) == (role, detail)]
    assert found.values_NLH.shape == found.null_NLH.shape
    return np.nanmean(found.values_NLH, 0), np.nanmean(found.null_NLH, 0)


def only(mean_LH: np.ndarray, at: tuple[int, int], *, least: float, most: float) -> None:
    """One head has the role, no other has."""
    assert mean_LH[at] >= least, mean_LH.round(2)
    rest = np.delete(mean_LH.ravel(), np.ravel_multi_index(at, mean_LH.shape))
    assert rest.max() <= most, mean_LH.round(2)


def looker(model: OneHot, layer: int, head: int, at: list[str]) -> None:
    """Looks at the given words from everywhere, by weights, else at the start: a constant query, a key that knows them."""
    bias = torch.zeros(model.size)
    bias[0] = STRONG
    k = torch.zeros(len(model.words), model.size)
    k[[model.id(w) for w in at], 0] = STRONG
    k[0, 0] = STRONG / 2
    model.plant(layer, head, q_bias=bias, k=k)


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_head_that_looks_at_words_of_time_is_temporal(language: str) -> None:
    words = words_of("temporal")
    model = OneHot(words)
    looker(model, 1, 2, list(members("temporal", language)["adverbs"]))
    results = run_tasks(prove(model.model), word_tokenizer(words), roles=["temporal"])
    values, null = scores(results, "temporal", language)
    only(values, (1, 2), least=0.95, most=0.05)
    assert np.abs(null).max() < 0.05


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_head_that_matches_gender_finds_the_antecedent(language: str) -> None:
    words, data = words_of("coreference"), members("coreference", language)
    model = OneHot(words)
    q, k = torch.zeros(len(words), model.size), torch.zeros(len(words), model.size)
    for gender in (0, 1):
        q[model.id(data["pronouns"][gender]), gender] = STRONG
        for pair in data["pairs"]:
            for form in [pair[gender]] if language == "en" else pair[gender]:
                k[model.id(form), gender] = STRONG
    model.plant(1, 1, q=q, k=k)
    looker(model, 0, 3, [data["pairs"][0][0]] if language == "en" else data["pairs"][0][0])  # men only: no better than chance
    results = run_tasks(prove(model.model), word_tokenizer(words), roles=["coreference"])
    values, null = scores(results, "coreference", language)
    only(values, (1, 1), least=1.0, most=0.6)
    assert (null == 0.5).all()


def test_a_head_that_writes_the_next_member_is_a_successor() -> None:
    words = words_of("successor")
    model = OneHot(words, size=160)
    following = {a: b for m in members("successor").values() for a, b in itertools.pairwise(m)}
    model.plant_map(0, 0, following)
    model.plant_map(0, 1)
    anatomy = prove(model.model)
    itself = {(0, h): (lambda text: {q: {q: 1.0} for q in range(len(text))}) for h in (0, 1)}
    with attending(anatomy, words, itself):
        results = run_tasks(anatomy, word_tokenizer(words), roles=["successor"])
    values, null = scores(results, "successor", "en")
    only(values, (0, 0), least=0.95, most=0.2)  # I is a letter and a Roman numeral
    assert null[0, 0] < 0.2 and values[0, 1] < 0.01  # a head that copies is none


def _uniform(text: list[str]) -> dict[int, dict[int, float]]:
    return {q: {k: 1 / q for k in range(q)} for q in range(1, len(text))}


def test_copying_and_its_opposite_on_ordinary_text() -> None:
    words = words_of(more=prose_words())
    model = OneHot(words, layers=1, size=200)
    model.plant_map(0, 0)
    model.plant_map(0, 1, sign=-1.0)
    torch.manual_seed(3)
    model.plant(0, 2, v=torch.randn(len(words), model.size) / 9, o=torch.randn(model.size, len(words)) / 9)
    anatomy = prove(model.model)
    with attending(anatomy, words, {(0, h): _uniform for h in range(3)}):
        results = run_tasks(anatomy, word_tokenizer(words), roles=["copying"])
    values, null = scores(results, "copying")
    only(values, (0, 0), least=0.85, most=0.15)  # what it writes from the start token counts below the line
    assert values[0, 1] == pytest.approx(-values[0, 0], abs=0.05)
    assert np.abs(null).max() < 0.1


def test_copy_suppression_is_lowering_what_is_expected() -> None:
    """Layer 0 makes a word expected that stood earlier; layer 1 looks at that word and lowers it."""
    words = words_of(more=prose_words())
    model = OneHot(words, layers=2, size=200)
    model.plant_map(0, 0, sign=0.5 / model.width**0.5)  # less than the word itself has
    model.plant_map(1, 0, sign=-1.0)
    model.plant_map(1, 1, sign=-1.0)
    model.plant_map(1, 2)

    def chosen(text: list[str]) -> dict[int, dict[int, float]]:
        found = {}
        for q in range(4, len(text)):
            k = 1 + (q // 4) % (q - 2)
            if text[k] != text[q]:
                found[q] = {k: 1.0}
        return found

    def another(text: list[str]) -> dict[int, dict[int, float]]:
        taken = chosen(text)
        return {q: {next(k for k in range(1, q) if text[k] != text[j] and text[k] != text[q]): 1.0}
                for q, look in taken.items() for j in look}  # fmt: skip

    anatomy = prove(model.model)
    with attending(anatomy, words, {(0, 0): chosen, (1, 0): chosen, (1, 1): another, (1, 2): chosen}):
        results = run_tasks(anatomy, word_tokenizer(words), roles=["copy_suppression"])
    values, null = scores(results, "copy_suppression")
    assert {s.role for s in results.sampled} == {"copy_suppression"}
    assert values[1, 0] > 0.85, values.round(2)
    assert values[1, 1] < 0.25 and values[1, 2] < -0.85  # lowers something else; raises what is expected
    assert np.abs(null).max() < 0.1


def _end(role: str):
    """Looks from the end at the indirect object or at the name that came again."""

    def rule(text: list[str]) -> dict[int, dict[int, float]]:
        names = [k for k, w in enumerate(text) if w in NAMES]
        again = [k for k in names if text.index(text[k]) < k]
        if not again:
            return {}
        right = [k for k in names if text[k] != text[again[0]]]
        return {len(text) - 1: {(right if role == "io" else again)[0]: 1.0}}

    return rule


def test_a_name_mover_and_the_head_that_turns_it() -> None:
    words = words_of("indirect")
    model = OneHot(words, layers=3, size=64)
    names = sorted(NAMES)
    model.plant_map(2, 1)  # the mover copies
    q, k, v = (torch.zeros(len(words), model.size) for _ in range(3))
    bias = torch.zeros(model.size)
    bias[len(names)] = STRONG / 2  # looks at names
    for n, name in enumerate(names):
        q[model.id(name), n] = -0.5  # but not at the one that the end was told
        k[model.id(name), n], k[model.id(name), len(names)] = 1.0, 1.0
        v[model.id(name), n] = 1.0
    model.plant(0, 0, v=v, o=v.T / model.width**0.5)  # tells the end who came again
    model.plant(2, 1, q=q, k=k, q_bias=bias)
    model.plant_map(1, 3, sign=-0.001)  # looks where the mover looks, but writes against it
    anatomy = prove(model.model)
    with attending(anatomy, words, {(0, 0): _end("s"), (1, 3): _end("io")}):
        results = run_tasks(anatomy, word_tokenizer(words), roles=["name_mover", "s_inhibition"])
    movers, null = scores(results, "name_mover")
    only(movers, (2, 1), least=0.95, most=0.1)
    assert np.abs(null).max() < 0.1
    turning, null = scores(results, "s_inhibition")
    only(turning, (0, 0), least=0.9, most=0.05)
    assert np.abs(null).max() < 0.1
    assert results.notes["s_inhibition"] == {"movers": ["2.1"]}


def test_without_movers_nobody_turns_them() -> None:
    words = words_of("indirect")
    results = run_tasks(prove(OneHot(words).model), word_tokenizer(words), roles=["name_mover", "s_inhibition"])
    assert {s.role for s in results.sampled} == {"name_mover"}
    assert "no head" in results.skipped["s_inhibition"]


def _retrieves(text: list[str]) -> dict[int, dict[int, float]]:
    """From every position at the word behind the last earlier copy of the same word, of the same two words where there is one."""
    found = {}
    for q in range(2, len(text)):
        fits = [k for k in range(2, q) if text[k] == text[q]]
        fits = [k for k in fits if text[k - 1] == text[q - 1]] or fits
        if fits:
            found[q] = {fits[0] + 1: 1.0}
    return found


def test_a_head_that_copies_the_needle_retrieves() -> None:
    words = words_of("retrieval", "prose", more=prose_words())
    model = OneHot(words, layers=1, size=250)
    model.plant_map(0, 0, sign=20.0)
    anatomy = prove(model.model)
    with attending(anatomy, words, {(0, 0): _retrieves, (0, 1): _uniform}):
        results = run_tasks(anatomy, word_tokenizer(words), roles=["retrieval"])
    values, null = scores(results, "retrieval", "en")
    only(values, (0, 0), least=0.99, most=0.1)
    assert null[0, 0] < 0.1


def test_a_model_that_copies_nothing_is_not_asked_what_it_retrieves() -> None:
    words = words_of("retrieval", "prose", more=prose_words())
    results = run_tasks(prove(OneHot(words, layers=1).model), word_tokenizer(words), roles=["retrieval"])
    assert not results.sampled and "never copies" in results.skipped["retrieval"]


def test_false_paths_follow_the_template_and_true_ones_the_words() -> None:
    words = words_of("indirect")
    model = OneHot(words, layers=1)

    def previous(text: list[str]) -> dict[int, dict[int, float]]:
        return {q: {q - 1: 1.0} for q in range(2, len(text))}

    def first_copy(text: list[str]) -> dict[int, dict[int, float]]:
        names = [k for k, w in enumerate(text) if w in NAMES]
        return {q: {text.index(text[names[-1]]): 1.0} for q in range(names[-1], len(text))}

    anatomy = prove(model.model)
    with attending(anatomy, words, {(0, 0): previous, (0, 1): first_copy, (0, 2): lambda text: {}}):
        shares = run_tasks(anatomy, word_tokenizer(words), roles=["shares"]).shares
    assert shares["template_share"][0, 0] == pytest.approx(1) and shares["content_share"][0, 0] < 0.5
    assert shares["content_share"][0, 1] == pytest.approx(1) and shares["template_share"][0, 1] < 0.05
    assert shares["template_share"][0, 2] == 0  # all on the start token: nothing is left to compare
    assert (shares["template_null"][0, :2] < 0.4).all() and (shares["content_null"][0, :2] < 0.4).all()


def test_each_task_draws_for_itself() -> None:
    words = words_of("indirect", "temporal", "coreference", "successor")
    anatomy, tokenizer = prove(OneHot(words).model), word_tokenizer(words)
    both = run_tasks(anatomy, tokenizer, roles=["temporal", "name_mover"], seed=3)
    alone = run_tasks(anatomy, tokenizer, roles=["name_mover"], seed=3)
    for a, b in zip([s for s in both.sampled if s.role == "name_mover"], alone.sampled, strict=True):
        np.testing.assert_array_equal(a.null_NLH, b.null_NLH)


def test_an_unknown_task_is_refused() -> None:
    words = words_of("temporal")
    with pytest.raises(InputError, match="no such task; got induction"):
        run_tasks(prove(OneHot(words).model), word_tokenizer(words), roles=["induction"])


def test_without_a_treebank_syntax_is_skipped() -> None:
    words = words_of("temporal")
    results = run_tasks(prove(OneHot(words).model), word_tokenizer(words), roles=["syntax"])
    assert results.skipped == {"syntax": "no treebank was given"}
