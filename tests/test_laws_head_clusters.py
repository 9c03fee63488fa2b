"""Laws of heads grouped by their patterns: features of planted patterns, planted groups found, chance worth nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conftest import byte_tokenizer
from families import family
from intaglio.analyse.heads.clusters import cluster_heads, cluster_rows, hypergeometric, jaccard, names_of, silhouette
from intaglio.atlas import UNRESOLVED, AtlasData
from intaglio.errors import InputError
from intaglio.measure.heads.clusters import FEATURES, _masks, cluster_features, features_of
from intaglio.model.proof import prove


def features(pattern_TT: torch.Tensor, ids: list[int], marks: list[bool] | None = None) -> dict[str, float]:
    marks = marks or [False] * len(ids)
    found = features_of(pattern_TT[None, None].float(), _masks(torch.tensor([ids]), torch.tensor([marks])))
    assert found.shape == (1, 1, len(FEATURES))
    return dict(zip(FEATURES, found[0, 0].tolist()))


# --- features ------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "band"), [(0, "self"), (1, "back_1"), (2, "back_2"), (4, "back_4"), (7, "back_8")])
def test_a_head_that_looks_back_by_one_distance(offset, band):
    places = torch.arange(20)
    found = features(torch.eye(20)[(places - offset).clamp_min(0)], list(range(20)))
    assert found["entropy"] == 0 and found["diagonal"] == pytest.approx(1)
    assert found["first"] == pytest.approx(offset / 19) and found[band] == pytest.approx(1 - offset / 19)
    assert sum(value for name, value in found.items() if name.startswith(("first", "self", "back"))) == pytest.approx(1)


def test_a_head_that_rests_on_the_first_token():
    found = features(torch.eye(12)[torch.zeros(12).long()], list(range(12)))
    assert found == pytest.approx({name: float(name == "first") for name in FEATURES})


def test_a_head_that_looks_everywhere_alike():
    found = features(torch.ones(40, 40).tril() / torch.arange(1, 41)[:, None], list(range(40)))
    assert found["entropy"] == pytest.approx(1, abs=1e-6)
    assert found["self"] == pytest.approx(found["back_1"] + 1 / 39 * sum(1 / (q + 1) for q in (1,)), abs=1e-6)


def test_repeats_and_marks():
    ids = [9, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    same, after = torch.eye(10), torch.eye(10)
    for q in range(4, 10):
        same[q], after[q] = torch.eye(10)[q - 3], torch.eye(10)[q - 2]
    assert features(same, ids)["same"] == pytest.approx(6 / 9) and features(same, ids)["after_same"] == 0
    assert features(after, ids)["after_same"] == pytest.approx(6 / 9) and features(after, ids)["same"] == 0
    assert features(same, ids, [True] * 3 + [False] * 7)["mark"] == pytest.approx((2 + 2) / 9)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_features_of_a_model_are_those_of_its_patterns(name):
    from intaglio.model.capture import capture

    anatomy, tokenizer = prove(family(name)), byte_tokenizer()
    texts = ["".join(chr(33 + (i * k) % 40) for i in range(20)) for k in (3, 7)]
    found = cluster_features(anatomy, tokenizer, texts=texts)
    assert found.values_NLHF.shape == (2, 3, 4, len(FEATURES)) and len(found.ids[0]) == 21
    with torch.no_grad():
        pattern_TT = capture(anatomy, torch.tensor([found.ids[1]])).layers[2].pattern_BHTT[0, 3]
    marks = [not chr(33 + i).isalnum() for i in range(94)]
    wanted = features(pattern_TT, found.ids[1], [False, *(marks[ord(c) - 33] for c in texts[1])])
    got = dict(zip(FEATURES, found.values_NLHF[1, 2, 3]))
    assert {k: got[k] for k in wanted if k != "mark"} == pytest.approx({k: v for k, v in wanted.items() if k != "mark"}, abs=1e-5)
    assert 0 < got["mark"] < 1


def test_too_little_text_is_refused():
    with pytest.raises(InputError, match="too little text"):
        cluster_features(prove(family("llama")), byte_tokenizer(), texts=["abcdefgh"])
    with pytest.raises(InputError, match="the shortest of 3"):
        cluster_features(prove(family("llama")), byte_tokenizer(), texts=["abcdefgh", "ab"])


# --- groups --------------------------------------------------------------------------------


def planted(groups: int = 5, each: int = 12, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, M, F) features of heads in groups of different sizes, each text with noise of its own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(groups), [each + 3 * (groups - g) for g in range(groups)])
    centres = rng.normal(size=(groups, 8)) * 2
    return centres[labels] + rng.normal(size=(9, len(labels), 8)) * noise, labels


def test_planted_groups_are_found_and_stable():
    values, truth = planted()
    found = cluster_heads(values, "abcdefgh")
    assert (found.labels_M == truth).all() and len(found.stability_C) == 5
    assert found.stability_C.min() > 0.95 and found.silhouette > 0.6


def test_heads_that_are_alike_in_no_two_texts_are_in_no_stable_group():
    values, _ = planted()
    rng = np.random.default_rng(1)
    exchanged = np.stack([text[rng.permutation(len(text))] for text in values])
    found = cluster_heads(exchanged, "abcdefgh")
    assert abs(found.stability_C.mean()) < 0.15


def test_the_seed_alone_decides_and_the_order_of_heads_does_not():
    values, _ = planted(noise=2.0)
    order = np.random.default_rng(2).permutation(values.shape[1])
    one, again, other = (cluster_heads(x, "abcdefgh") for x in (values, values, values[:, order]))
    assert (one.labels_M == again.labels_M).all() and (one.stability_C == again.stability_C).all()
    assert (jaccard(one.labels_M[order], other.labels_M).max(1) == 1).all()


def test_heads_all_alike_are_not_grouped():
    assert cluster_heads(np.ones((4, 30, 3)), "abc") is None


def test_a_silhouette_by_hand():
    x = np.array([[0.0], [1.0], [10.0]])
    wanted = ((10 - 1) / 10 + (9 - 1) / 9 + 0) / 3  # the third is alone
    assert silhouette(x, np.array([0, 0, 1])) == pytest.approx(wanted)


def test_overlap_by_hand():
    assert jaccard(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])).tolist() == [[2 / 3, 1 / 4], [0, 1 / 2]]


# --- names ---------------------------------------------------------------------------------


def test_the_hypergeometric_law_by_hand():
    assert hypergeometric(2, 10, 3, 4) == pytest.approx(1 / 3)  # (C(3,2) C(7,2) + C(3,3) C(7,1)) / C(10,4) = 70 / 210


def test_a_group_is_named_by_the_role_it_has_too_many_of():
    labels = np.repeat([0, 1, 2], [20, 10, 10])
    roles = [{"self"} if i % 2 else set() for i in range(20)] + [{"induction", "self"} if i < 8 else set() for i in range(10)]
    roles += [{"self"} if i % 2 else set() for i in range(10)]
    assert names_of(labels, roles) == [UNRESOLVED, "induction", UNRESOLVED]


def test_roles_at_random_name_groups_seldom():
    rng, named = np.random.default_rng(3), 0
    for _ in range(100):
        roles = [set(rng.choice(["a", "b", "c", "d"], 1)) if rng.random() < 0.3 else set() for _ in range(100)]
        named += any(name != UNRESOLVED for name in names_of(rng.integers(0, 8, 100), roles))
    assert named <= 10, "5 in 100 at the most are to be expected"


def test_rows_fit_their_table():
    values, _ = planted()
    found = cluster_heads(values, "abcdefgh")
    names = [f"L{i // 20}.attn.H{i % 20}" for i in range(values.shape[1])]
    heads = [{"address": a, "roles": ["induction"] if label == 2 else []} for a, label in zip(names, found.labels_M)]
    rows = cluster_rows(found, names, heads)
    assert AtlasData({}, {"clusters": rows}).rows_of("clusters").num_rows == 5
    assert [r["name"] for r in rows] == [UNRESOLVED, UNRESOLVED, "induction", UNRESOLVED, UNRESOLVED]
    assert sum(r["heads"] for r in rows) == len(names) and set(json.loads(rows[0]["features"])) == set("abcdefgh")
