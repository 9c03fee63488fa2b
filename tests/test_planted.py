"""The planted case holds what it says it holds."""

from __future__ import annotations

from planted import planted


def test_the_truth_names_every_row_once():
    rows, truth = planted()
    places = (*truth.clean, *truth.mislabelled, *truth.duplicate, *truth.canary)
    assert len(rows) == 60 and sorted(places) == list(range(60))
    assert len(truth.mislabelled) == 6


def test_mislabelled_rows_carry_another_rows_output():
    rows, truth = planted(seed=1)
    clean, _ = planted(seed=1, mislabelled=2)
    assert sorted(truth.donor) == sorted(truth.donor.values()) == sorted(truth.mislabelled)
    assert all(row != donor for row, donor in truth.donor.items())
    right = {row["instruction"]: row["output"] for row in clean if row["group"] == "clean"}
    for number in truth.mislabelled:
        row = rows[number]
        if row["instruction"] in right:
            assert row["output"] != right[row["instruction"]]


def test_the_duplicate_is_exact_and_the_canary_repeats_the_secret():
    rows, truth = planted(seed=2)
    first, second = truth.duplicate
    assert rows[first] == rows[second]
    assert all(truth.secret in rows[n]["output"] for n in truth.canary)
    assert sum(truth.secret in row["output"] for row in rows) == len(truth.canary) == 3


def test_the_seed_alone_decides():
    assert planted(seed=3) == planted(seed=3)
    assert planted(seed=3)[0] != planted(seed=4)[0]
