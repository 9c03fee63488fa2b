"""Planted series of checkpoints: births, deaths and hand-overs are found where they were put, and nowhere else."""

import numpy as np
import pytest

from intaglio.analyse.heads.history import birth_of, death_of, event_rows, history_rows
from intaglio.atlas import Sampled

STEPS = [0, 10, 20, 40, 80, 160, 320, 640]
TEXTS, LAYERS, HEADS = 12, 2, 3


def sampled(curves, *, role="induction", noise=0.02, seed=0):
    """A series in which some heads follow given scores (one per checkpoint), and all others stay at the null."""
    rng, series = np.random.default_rng(seed), []
    for at in range(len(STEPS)):
        values = 0.05 + noise * rng.standard_normal((TEXTS, LAYERS, HEADS))
        for (layer, head), curve in curves.items():
            values[:, layer, head] += curve[at]
        series.append([Sampled(role, "", values, np.full(values.shape, 0.05))])
    return series


def test_a_planted_birth_is_found_at_its_checkpoint_and_nothing_else_is():
    series = sampled({(1, 2): [0, 0, 0, 0.1, 0.6, 0.8, 0.9, 0.9]})
    events = event_rows(STEPS, series)
    assert [(e["event"], e["address"], e["step"], e["after_step"]) for e in events] == [("birth", "L1.attn.H2", 80, 40)]
    assert events[0]["low_step"] == events[0]["high_step"] == 80  # every draw of texts says so: nothing is near the line


def test_a_birth_near_the_line_has_a_wide_interval():
    series = sampled({(1, 2): [0, 0, 0, 0.28, 0.31, 0.33, 0.9, 0.9]}, noise=0.08)
    (event,) = event_rows(STEPS, series)
    assert event["low_step"] < event["high_step"]
    assert event["low_step"] <= event["step"] <= event["high_step"]


def test_a_lasting_role_that_is_lost_dies_and_a_flicker_does_not():
    lost = [0, 0.6, 0.7, 0.7, 0.1, 0, 0, 0]
    flicker = [0, 0, 0.7, 0, 0, 0, 0, 0]
    events = event_rows(STEPS, sampled({(0, 1): lost, (1, 0): flicker}))
    assert [(e["event"], e["address"], e["step"], e["other"]) for e in events] == [("death", "L0.attn.H1", 80, "")]


def test_a_role_that_goes_over_to_another_head():
    old = [0, 0.6, 0.7, 0.7, 0.3, 0.1, 0, 0]
    new = [0, 0, 0, 0, 0.3, 0.7, 0.8, 0.8]
    far = [0, 0, 0, 0, 0, 0, 0, 0.5]  # born long after: nothing went over to it
    events = event_rows(STEPS, sampled({(0, 1): old, (1, 0): new, (1, 1): far}))
    handed = [e for e in events if e["event"] == "handover"]
    assert [(e["address"], e["other"]) for e in handed] == [("L0.attn.H1", "L1.attn.H0")]
    assert not [e for e in events if e["event"] == "death"]
    assert {e["address"] for e in events if e["event"] == "birth"} == {"L1.attn.H0", "L1.attn.H1"}


def test_a_role_held_from_the_first_checkpoint_on_has_no_birth_here():
    assert event_rows(STEPS, sampled({(0, 0): [0.8] * 8})) == []


def test_nothing_but_noise_has_no_event():
    for seed in range(5):
        assert event_rows(STEPS, sampled({}, noise=0.2, seed=seed)) == []


def test_a_role_in_two_heads_is_two_births_and_no_handover():
    rising = [0, 0, 0, 0, 0.7, 0.8, 0.8, 0.8]
    events = event_rows(STEPS, sampled({(1, 0): rising, (1, 1): rising}))
    assert [(e["event"], e["address"]) for e in events] == [("birth", "L1.attn.H0"), ("birth", "L1.attn.H1")]


def test_a_detail_that_changes_is_one_role():
    """A head that prefers another distance at every checkpoint has the fixed offset all the time."""
    series = []
    for at in range(len(STEPS)):
        values = np.full((TEXTS, LAYERS, HEADS), np.nan)
        values[:, 0, 0] = 0.05 if at < 3 else 0.8
        series.append([Sampled("fixed_offset", str(2 + at % 2), values, np.where(np.isfinite(values), 0.05, np.nan))])
    (event,) = event_rows(STEPS, series)
    assert (event["event"], event["step"], event["role"]) == ("birth", 40, "fixed_offset")


def test_rows_of_the_history_are_those_of_the_scores_with_their_step():
    series = sampled({(1, 2): [0, 0, 0, 0, 0.6, 0.8, 0.9, 0.9]})
    rows = history_rows(STEPS, series)
    assert len(rows) == len(STEPS) * LAYERS * HEADS
    for row in rows:
        at, (layer, head) = STEPS.index(row["step"]), (int(row["address"][1]), int(row["address"][-1]))
        assert row["score"] == pytest.approx(series[at][0].values_NLH[:, layer, head].mean())
        assert row["named"] == (row["address"] == "L1.attn.H2" and row["step"] >= 80)


def test_p_is_corrected_for_the_whole_series():
    """A head named on its own may be lost among many checkpoints: more tests ask for more."""
    values = 0.05 + 0.36 + 0.25 * np.array([-1.0, 1, -1, 1, -1, 1]).reshape(6, 1, 1)  # p is about 0.01
    one = Sampled("induction", "", values, np.full(values.shape, 0.05))
    alone = history_rows([0], [[one]])
    many = history_rows(list(range(40)), [[one]] * 40)
    assert alone[0]["named"] and not any(r["named"] for r in many)


@pytest.mark.parametrize(("named", "birth", "death"), [
    ([0, 0, 1, 1], 2, None), ([1, 1, 1, 1], None, None), ([0, 0, 0, 0], None, None), ([0, 1, 0, 1], 3, None),
    ([0, 1, 1, 0], None, 3), ([0, 1, 0, 0], None, None), ([1, 1, 0, 0], None, 2), ([1, 0, 1, 0], None, None),
    ([1, 0, 0, 0], None, None), ([0, 0, 0, 1], 3, None),
])  # fmt: skip
def test_births_and_deaths_of_short_series(named, birth, death):
    named = np.array(named, dtype=bool)
    assert (birth_of(named), death_of(named)) == (birth, death)


def test_roles_with_fewer_texts_and_texts_that_do_not_test_a_head_have_births_too():
    """One role has 16 texts, the other 9, of which a third do not test it: both births and their intervals are found."""
    steps, random = [0, 10, 20, 30, 40], np.random.default_rng(3)
    series = []
    for i in range(len(steps)):
        many = random.normal(0, 0.01, (16, 2, 2))
        few = random.normal(0, 0.01, (9, 2, 2))
        many[:, 0, 1] += 0.9 if i >= 2 else 0.0
        few[:, 1, 0] += 0.8 if i >= 3 else 0.0
        few[::3] = np.nan
        series.append([Sampled("induction", "", many, np.zeros_like(many)), Sampled("retrieval", "en", few, np.zeros_like(few))])
    events = event_rows(steps, series, seed=0)
    assert [(e["event"], e["role"], e["address"], e["after_step"], e["step"]) for e in events] == [
        ("birth", "induction", "L0.attn.H1", 10, 20), ("birth", "retrieval", "L1.attn.H0", 20, 30)
    ]  # fmt: skip
    assert [(e["low_step"], e["high_step"]) for e in events] == [(20, 20), (30, 30)]
