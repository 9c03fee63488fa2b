"""Teachers of a head: planted credits come back ranked, summed over the window alone, beside their null and movement."""

import numpy as np
import pytest

from intaglio.analyse.heads.teachers import Window, birth_window, groups_of, share_of_top, teachers_of
from intaglio.errors import InputError
from intaglio.store.run import RunWriter, open_run

HEADS = [f"L{layer}.attn.H{head}" for layer in range(2) for head in range(4)]
HEAD = "L1.attn.H2"
STEPS, SLOTS = 6, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Text e0 teaches the head, e1 moves it without teaching, e2 teaches all heads alike, e3 unteaches it."""
    out = tmp_path_factory.mktemp("planted") / "run"
    writer = RunWriter(out, {"probes": {"repeat": {}, "other": {}}})
    writer.append_rows("examples", [
        {"example": f"e{i}", "group": "good" if i in (0, 2) else "bad", "preview": f"text {i}"} for i in range(SLOTS)
    ])  # fmt: skip
    for step in range(STEPS):
        for slot in range(SLOTS):
            where = {"step": step, "slot": slot}
            writer.append_rows("visits", [where | {"example": f"e{slot}"}])
            writer.append_rows("visit_parts", [where | {"address": a, "shift": (-1) ** step * shift_of(slot, a)} for a in HEADS])
            for probe, scale in (("repeat", 1.0), ("other", 100.0)):
                writer.append_rows("visit_credits", [
                    where | {"probe": probe, "example": f"e{slot}", "address": a, "credit_nats": scale * credit_of(slot, a)}
                    for a in (*HEADS, "L1.mlp", "embed")
                ])  # fmt: skip
    writer.finish()
    return open_run(out)


def credit_of(slot, address):
    mine = {0: 3.0, 1: 0.0, 2: 1.0, 3: -2.0}[slot]
    others = {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.0}[slot]
    return mine if address == HEAD else others + 0.01 * HEADS.index(address) if address in HEADS else 50.0


def shift_of(slot, address):
    return {0: 1.0, 1: 9.0, 2: 1.0, 3: 1.0}[slot] if address == HEAD else 0.5


def test_ranked_by_credit_in_the_window_with_movement_and_null_beside(run):
    rows = teachers_of(run, HEAD, probe="repeat", window=(1, 4))
    assert [r["example"] for r in rows] == ["e0", "e2", "e1", "e3"]
    assert [r["rank"] for r in rows] == [0, 1, 2, 3]
    assert [r["credit_nats"] for r in rows] == pytest.approx([9.0, 3.0, 0.0, -6.0])
    assert [r["movement"] for r in rows] == pytest.approx([3.0, 3.0, 27.0, 3.0])  # lengths add up whatever their signs
    assert [r["visits"] for r in rows] == [3] * 4
    assert [r["preview"] for r in rows] == ["text 0", "text 2", "text 1", "text 3"]
    others = 3 * 0.01 * np.array([HEADS.index(a) for a in HEADS if a.startswith("L1") and a != HEAD])
    assert (rows[0]["null_low"], rows[0]["null_high"]) == pytest.approx(tuple(np.percentile(others, [5, 95])))
    assert rows[0]["credit_nats"] > rows[0]["null_high"] and rows[1]["credit_nats"] < rows[1]["null_high"]
    assert len(teachers_of(run, HEAD, probe="repeat", window=(1, 4), top=2)) == 2


def test_groups_sum_to_the_whole_and_say_which_taught(run):
    good, bad = groups_of(run, HEAD, probe="repeat", window=(0, 6))
    assert (good["group"], good["examples"], good["visits"], good["credit_nats"]) == ("good", 2, 12, pytest.approx(24.0))
    assert (bad["group"], bad["credit_nats"], bad["movement"]) == ("bad", pytest.approx(-12.0), pytest.approx(60.0))
    others = np.mean([0.01 * HEADS.index(a) for a in HEADS if a.startswith("L1") and a != HEAD])  # a visit, beside e2's own 1
    assert good["other_nats"] == pytest.approx(12 * others + 6 * 1.0) and bad["other_nats"] == pytest.approx(12 * others)
    assert good["per_visit_nats"] == pytest.approx(2.0) and good["low"] <= 2.0 <= good["high"]
    assert good["low"] == pytest.approx(1.0) and good["high"] == pytest.approx(3.0)  # two texts: each alone, or both


def test_a_credit_that_is_no_number_is_left_out(tmp_path):
    writer = RunWriter(tmp_path / "run", {"probes": {"repeat": {}}})
    for step, credit in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        writer.append_rows("visits", [{"step": step, "slot": 0, "example": "e"}])
        writer.append_rows("visit_credits", [{"step": step, "slot": 0, "probe": "repeat", "example": "e", "address": HEAD,
                                              "credit_nats": credit}])  # fmt: skip
    writer.finish()
    (row,) = teachers_of(open_run(tmp_path / "run"), HEAD, probe="repeat", window=(0, 4))
    assert row["credit_nats"] == pytest.approx(3.0) and row["null_low"] is row["null_high"] is None


def test_another_probe_has_its_own_credits(run):
    assert teachers_of(run, HEAD, probe="other", window=(0, 1))[0]["credit_nats"] == pytest.approx(300.0)


@pytest.mark.parametrize(("address", "probe", "window", "said"), [
    (HEAD, "none", (0, 3), "no such probe"), ("L1.attn.H9", "repeat", (0, 3), "no credit of"),
    (HEAD, "repeat", (6, 9), "no credit of"),
])  # fmt: skip
def test_what_is_not_there(run, address, probe, window, said):
    with pytest.raises(InputError, match=said):
        teachers_of(run, address, probe=probe, window=window)


def test_a_run_without_credits_by_part_says_how_to_have_them(tmp_path):
    RunWriter(tmp_path / "run", {"probes": {"repeat": {}}}).finish()
    with pytest.raises(InputError, match="--credit-parts"):
        teachers_of(open_run(tmp_path / "run"), HEAD, probe="repeat", window=(0, 3))


def test_the_share_of_the_best():
    rows = [{"credit_nats": c} for c in (6.0, 2.0, 1.0, 1.0, 0, 0, 0, -1, -2, -3)]
    assert share_of_top(rows) == pytest.approx(0.6)
    assert share_of_top([{"credit_nats": -1.0}]) is None


def history(scores, *, named_from=0.35):
    return [{"step": 10 * i, "address": HEAD, "role": "induction", "score": s, "null": 0.0, "named": s > named_from}
            for i, s in enumerate(scores)]  # fmt: skip


def test_the_window_of_a_birth_and_as_long_before_it():
    found = birth_window(history([0, 0, 0.02, 0.05, 0.3, 0.5, 0.8, 0.9, 0.85]), HEAD, "induction")
    assert found == Window(before=0, begun=30, end=70)  # under 0.09 last at 30, over 0.81 first at 70; not before 0
    assert found.whole == (0, 70)
    assert birth_window(history([0] * 6 + [0.5, 0.9, 0.9]), HEAD, "induction") == Window(30, 50, 70)


@pytest.mark.parametrize(("scores", "said"), [
    ([0, 0.1, 0.2], "never has the role"), ([0.8, 0.9, 0.9], "from the first checkpoint on"),
])  # fmt: skip
def test_a_head_without_a_birth_has_no_window(scores, said):
    with pytest.raises(InputError, match=said):
        birth_window(history(scores), HEAD, "induction")
