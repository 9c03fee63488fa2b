"""From scores to names: the test, its correction, the smallest effect, and what a head is called."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from intaglio.analyse.heads.choosing import strongest
from intaglio.analyse.heads.naming import head_rows, holm, score_rows
from intaglio.atlas import UNRESOLVED, Sampled

RNG = np.random.default_rng(0)


def sampled(role: str, means: list[float], *, null: float = 0.05, texts: int = 10, detail: str = "", noise: float = 0.01):
    """One layer whose heads have these mean scores."""
    shape = (texts, 1, len(means))
    return Sampled(role, detail, np.array(means) + RNG.normal(0, noise, shape), np.full(shape, null))


def test_numbers_are_those_of_scipy():
    one = sampled("induction", [0.4, 0.06, 0.04])
    rows = score_rows([one])
    raw = stats.ttest_rel(one.values_NLH, one.null_NLH, axis=0, alternative="greater").pvalue[0]
    for head, row in enumerate(rows):
        values = one.values_NLH[:, 0, head]
        assert row["score"] == pytest.approx(values.mean())
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert [r["p"] for r in rows] == pytest.approx(stats_holm(raw))
    assert [r["named"] for r in rows] == [True, False, False]


def stats_holm(p: np.ndarray) -> list[float]:
    """Holm step by step, as in the paper."""
    found, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        found[i] = running
    return found


def test_holm_counts_what_was_tested_and_nothing_else():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    assert holm(p).tolist() == pytest.approx([0.04, np.nan, 0.09, 0.09, 0.5], nan_ok=True)
    assert holm(np.array([])).size == 0


def test_texts_that_do_not_test_a_role_do_not_count():
    one = sampled("induction", [0.5, 0.5], texts=8)
    one.values_NLH[3:, 0, 0] = np.nan
    one.values_NLH[:, 0, 1] = np.nan
    (row,) = score_rows([one])
    assert row["address"] == "L0.attn.H0"
    assert row["samples"] == 3
    assert row["score"] == pytest.approx(one.values_NLH[:3, 0, 0].mean())


def test_one_text_is_no_evidence():
    (row,) = score_rows([sampled("induction", [0.9], texts=1)])
    assert row["low"] is row["high"] is row["p"] is None
    assert not row["named"]


def test_sure_but_small_is_not_named():
    (row,) = score_rows([sampled("previous_token", [0.2], texts=200)])
    assert row["p"] < 1e-6 and not row["named"]
    (row,) = score_rows([sampled("previous_token", [0.2], texts=200)], smallest={"previous_token": 0.1})
    assert row["named"]


def test_large_but_unsure_is_not_named():
    one = sampled("induction", [0.0], texts=4, noise=0.0)
    one.values_NLH[:, 0, 0] = [0.05, 0.05, 0.95, 0.95]
    (row,) = score_rows([one])
    assert row["score"] - row["null"] > 0.4 and not row["named"]


def test_the_same_on_every_text_is_sure():
    (row,) = score_rows([sampled("self", [1.0], texts=4, noise=0.0)])
    assert row["p"] == 0 and row["named"]
    (row,) = score_rows([sampled("self", [0.05], texts=4, noise=0.0)])
    assert row["p"] == pytest.approx(0.5) and not row["named"]


def test_a_head_is_called_by_its_strongest_role_and_resting_comes_last():
    scores = score_rows([sampled("induction", [0.5, 0.05, 0.05]), sampled("previous_token", [0.7, 0.05, 0.05]),
                         sampled("first_token", [0.9, 0.9, 0.06])])  # fmt: skip
    rows = head_rows(scores, layers=1, heads=3, features={"L0.attn.H1": {"sink": 0.9}})
    assert [r["role"] for r in rows] == ["previous_token", "first_token", UNRESOLVED]
    assert rows[0]["roles"] == ["previous_token", "induction", "first_token"]
    assert rows[0]["evidence"] == pytest.approx((rows[0]["score"] - 0.05) / 0.95)
    assert rows[2]["score"] is None and rows[2]["roles"] == [] and rows[2]["evidence"] == 0
    assert [r["sink"] for r in rows] == [None, 0.9, None]


def test_a_role_with_several_details_is_one_role_of_a_head():
    scores = score_rows([sampled("syntax", [0.5], detail="nsubj"), sampled("syntax", [0.8], detail="obj")])
    (row,) = head_rows(scores, layers=1, heads=1)
    assert row["roles"] == ["syntax"] and row["score"] > 0.7
    assert strongest(scores) == {"syntax": (["L0.attn.H0"], [])}


def test_the_strongest_heads_come_first_in_a_check():
    scores = score_rows([sampled("induction", [0.5, 0.9, 0.7, 0.02])])
    assert strongest(scores, most=2) == {"induction": (["L0.attn.H1", "L0.attn.H2"], ["L0.attn.H0"])}
