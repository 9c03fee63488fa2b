"""Small faults that must not pass: score in place of excess, ends swapped, a null left out, a step too far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from families import family
from intaglio.analyse.heads.choosing import strongest
from intaglio.analyse.heads.history import _event, _redrawn, event_rows, lines_of
from intaglio.analyse.heads.lottery import births_of
from intaglio.analyse.heads.naming import evidence, head_rows, score_rows
from intaglio.analyse.heads.teachers import Window, birth_window
from intaglio.atlas import Sampled
from intaglio.measure.heads import causal
from intaglio.measure.heads.basic import diagonals, measure_basic, reduced
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.repeats import repeats
from intaglio.measure.heads.slopes import leaning
from intaglio.model.proof import prove

ROLE = RoleLoss("induction", "second copy", [])


def texts_of(mean: float, null: float, *, role: str = "induction", texts: int = 12) -> Sampled:
    values = mean + 0.01 * np.tile([-1.0, 1.0], texts // 2)[:, None, None]
    return Sampled(role, "", values, np.full(values.shape, null))


# --- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "null", "named"), [(0.35, 0.1, False), (0.45, 0.1, True), (0.29, 0.0, False), (0.31, 0.0, True)]
)
def test_the_smallest_effect_is_of_the_excess_not_of_the_score(mean, null, named):
    (row,) = score_rows([texts_of(mean, null)])
    assert row["named"] == named and row["null"] == pytest.approx(null)


def test_the_null_is_over_the_texts_that_test_the_role():
    one = texts_of(0.6, 0.1)
    one.values_NLH[:6] = np.nan
    one.null_NLH[:6] = 0.9
    (row,) = score_rows([one])
    assert row["null"] == pytest.approx(0.1) and row["samples"] == 6


def test_a_high_score_over_a_high_null_is_less_than_a_lower_one_over_none():
    high, low = texts_of(0.9, 0.85, role="coreference"), texts_of(0.6, 0.0, role="copying")
    scores = score_rows([high, low], smallest={"coreference": 0.01})
    (row,) = head_rows(scores, layers=1, heads=1)
    assert row["role"] == "copying" and row["roles"] == ["copying", "coreference"]
    assert evidence(scores[0]) == pytest.approx(0.05 / 0.15)
    rows = [{"address": f"L0.attn.H{i}", "role": "coreference", "named": True, "score": s, "null": n}
            for i, (s, n) in enumerate([(0.9, 0.85), (0.8, 0.1)])]  # fmt: skip
    assert strongest(rows, most=1) == {"coreference": (["L0.attn.H1"], ["L0.attn.H0"])}


# --- history -----------------------------------------------------------------------------------------------------------


def test_a_line_is_the_largest_excess_and_any_name_of_its_details():
    def row(detail: str, score: float, null: float, named: bool) -> dict:
        return {"step": 5, "role": "r", "address": "a", "detail": detail, "score": score, "null": null, "named": named}

    given = [row("1", 0.5, 0.1, True), row("2", 0.9, 0.8, False), row("3", 0.3, 0.2, False)]
    for rows in (given, given[::-1]):
        named_C, excess_C = lines_of([0, 5], rows)["r", "a"]
        assert named_C.tolist() == [False, True]
        assert excess_C.tolist() == [-np.inf, pytest.approx(0.4)]


@pytest.mark.parametrize(("again", "low", "high"), [
    ([5] * 200, 4, 5), ([2] * 200, 2, 4), ([4] * 200, 4, 4), ([2] * 6 + [4] * 188 + [6] * 6, 2, 6),
    ([2] * 4 + [4] * 192 + [6] * 4, 4, 4), ([None] * 100 + [3] * 100, 3, 4), ([None] * 200, 4, 4),
])  # fmt: skip
def test_an_interval_holds_95_of_100_draws_and_the_estimate(again, low, high):
    steps = [0, 10, 20, 30, 40, 50, 60]
    event = _event("r", "a", "birth", 4, again, steps)
    assert (event["after_step"], event["step"]) == (30, 40)
    assert (event["low_step"], event["high_step"]) == (10 * low, 10 * high)


def test_redrawn_names_are_those_of_the_test_made_draw_by_draw():
    """The slow twin: every draw's texts written out, and tested by scipy's t at the level of all tests."""
    rng, texts, draws = np.random.default_rng(5), 9, 60
    null = rng.uniform(0.0, 0.3, (texts, 1, 3))
    values = null + np.array([0.30, 0.5, 0.45]) + rng.normal(0, 1, null.shape) * [0.05, 0.45, 0.3]
    values[:2, 0, 2] = np.nan
    series = [[Sampled("induction", "", values, null)], [Sampled("induction", "", values[::-1] + 0.02, null[::-1])]]
    found = _redrawn([0, 10], series, None, 7, draws)
    picks = np.random.default_rng(7).integers(texts, size=(draws, texts))
    for head in range(3):
        wanted = np.zeros((draws, 2), dtype=bool)
        for at, (one,) in enumerate(series):
            excess = (one.values_NLH - one.null_NLH)[:, 0, head]
            line = stats.t.ppf(1 - 0.05 / 6, np.isfinite(excess).sum() - 1)  # six tests in all
            for r, pick in enumerate(picks):
                drawn = excess[pick][np.isfinite(excess[pick])]
                t = drawn.mean() / (drawn.std(ddof=1) / np.sqrt(len(drawn)))
                wanted[r, at] = drawn.mean() >= 0.3 and t > line
        assert 0 < wanted.sum() < wanted.size
        assert np.array_equal(found["induction", f"L0.attn.H{head}"], wanted)


def test_a_role_goes_over_to_a_head_born_as_the_fall_begins_however_long_it_lasts():
    steps, old = list(range(0, 120, 10)), [0, 0.7, 0.8, 0.8, 0.6, 0.55, 0.5, 0.45, 0.4, 0.1, 0.0, 0.0]
    new = [0, 0, 0, 0, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    series = []
    for a, b in zip(old, new):
        noise = 0.01 * np.tile([-1.0, 1.0], 6)[:, None]
        values = np.stack([a + noise, b + noise], -1)
        series.append([Sampled("induction", "", values, np.zeros(values.shape))])
    (handed,) = [e for e in event_rows(steps, series) if e["event"] == "handover"]
    assert (handed["address"], handed["other"], handed["after_step"], handed["step"]) == ("L0.attn.H0", "L0.attn.H1", 80, 90)


def test_births_of_one_step_come_by_their_excess_at_that_step():
    excess = np.zeros((4, 1, 3))
    excess[1:, 0, 0], excess[1:, 0, 1], excess[2:, 0, 2] = 0.4, [0.6, 0.5, 0.5], 0.9
    excess[3, 0, 0] = 0.99
    found = births_of([0, 10, 20, 30], excess)
    assert [(b.address, b.step, b.excess) for b in found] == [
        ("L0.attn.H1", 10, 0.6), ("L0.attn.H0", 10, 0.4), ("L0.attn.H2", 20, 0.9)
    ]  # fmt: skip


def test_the_window_of_a_birth_is_of_the_excess():
    rows = [{"step": 10 * i, "address": "a", "role": "r", "score": s + 0.4, "null": 0.4, "named": s > 0.35}
            for i, s in enumerate([0, 0, 0.02, 0.2, 0.3, 0.5])]  # fmt: skip
    assert birth_window(rows, "a", "r") == Window(0, 20, 50)


# --- basic roles -------------------------------------------------------------------------------------------------------


def test_what_a_biased_model_does_by_construction_is_its_null():
    """BLOOM whose queries and keys say nothing attends by its bias alone: more to the token before than evenly, but no role."""
    model = family("bloom")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query_key_value" in name:
                weight.zero_()
    anatomy = prove(model)
    given = repeats(anatomy, texts=2, length=12)
    lean_BHTT = leaning(anatomy, given.ids_BT.shape[1])
    visible_T = torch.arange(1, given.ids_BT.shape[1] + 1)
    by_bias, evenly = reduced(lean_BHTT, diagonals(given), visible_T)[:, 0, 0].numpy()  # of the token before
    assert (by_bias > evenly + 0.01).any()
    found = {one.role: one for one in measure_basic(anatomy, texts=2, length=12)}
    for one in found.values():
        known = np.isfinite(one.values_NLH)
        assert known.any() and (one.values_NLH - one.null_NLH)[known].max() < 1e-6, one.role
    assert np.abs(found["previous_token"].values_NLH[0, 0] - by_bias).max() < 1e-6


# --- causal check ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "ablated", "random", "holds"), [
    (3.0, 5.0, [3.1, 4.0, 3.2, 3.9, 4.9], True), (3.0, 5.0, [3.1, 5.1, 3.2, 3.0, 3.0], False),
    (3.0, 2.9, [2.1, 2.2, 2.3, 2.4, 2.8], False), (3.0, 3.1, [2.1, 2.2, 2.3, 2.4, 9.0], False), (3.0, 3.0, [3.0] * 5, False),
])  # fmt: skip
def test_a_check_holds_only_beyond_every_draw_and_beyond_the_whole_model(monkeypatch, whole, ablated, random, holds):
    planned = iter([whole, ablated, *random])
    monkeypatch.setattr(causal, "loss_of", lambda *_: next(planned))
    monkeypatch.setattr(causal, "removed", lambda *_: pytest.MonkeyPatch.context())
    monkeypatch.setattr(causal, "random_groups", lambda *_, draws, **__: [()] * draws)
    row = causal.check_role(prove(family("llama")), ["L0.attn.H1"], ROLE, torch.zeros(3, 4, 12), draws=5)
    assert row["holds"] is holds and row["draws"] == 5 and next(planned, None) is None
    assert (row["loss_nats"], row["ablated_nats"]) == (whole, ablated)
    assert row["random_nats"] == pytest.approx(sum(random) / 5)
    assert (row["random_low"], row["random_high"]) == (min(random), max(random))
