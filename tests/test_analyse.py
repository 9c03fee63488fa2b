"""Findings of synthetic runs whose truth is planted: what is there is found, and noise gives the null."""

import dataclasses
import math

import numpy as np
import pytest
from tests.synthetic import UNIT_LENGTH, World, write_run

from intaglio.analyse import analyse_run, compare, rank_examples
from intaglio.analyse.data import load
from intaglio.analyse.journey import path
from intaglio.analyse.texts import token_texts, whole_letters
from intaglio.analyse.verdict import Items, Losses, Witnesses, judge
from intaglio.findings import VERDICTS, WHY_KEYS, Findings
from intaglio.store.run import RunWriter, open_run

PLANTED = World(noisy=(3, 7), twins=((1, 2),), spike_step=20)


def found(tmp_path, world: World = World(), **options) -> Findings:  # noqa: B008
    return analyse_run(open_run(write_run(tmp_path / "run", world)), **options)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Findings:
    return found(tmp_path_factory.mktemp("planted"), PLANTED)


def by_name(findings: Findings) -> dict:
    return {e.example: e for e in findings.examples}


def no_nan(value) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(no_nan(v) for v in value.values())
    return all(no_nan(v) for v in value) if isinstance(value, list | tuple) else True


def test_every_number_is_finite_or_none(planted):
    assert no_nan(dataclasses.asdict(planted))


def test_sums_add_up_from_visits_to_examples_to_groups_to_the_whole(planted):
    whole, *groups = planted.groups
    assert [g.group for g in groups] == ["even", "odd"]
    for name in ("shift_abs_u", "shift_net_u", "learnt_nats"):
        assert sum(getattr(e, name) for e in planted.examples) == pytest.approx(getattr(whole, name).value)
        assert sum(getattr(g, name).value for g in groups) == pytest.approx(getattr(whole, name).value)
    # plain SGD: the data's net shift is the whole path
    assert whole.shift_net_u.value == pytest.approx(planted.path_u)
    assert sum(whole.verdicts.values()) == whole.examples == len(planted.examples)
    for part, total in planted.visit_part_totals[""].items():
        assert sum(planted.visit_part_totals[g.group][part] for g in groups) == pytest.approx(total)


def test_relative_shift_is_one_on_average_and_ignores_the_spike(planted):
    assert np.mean([e.relative_shift for e in planted.examples]) == pytest.approx(1.0, abs=0.02)
    assert max(e.relative_shift for e in planted.examples) < 3
    assert planted.groups[0].relative_shift.value == pytest.approx(1.0, abs=0.02)
    assert 0 < planted.unsettled_shift_share < 0.5


def test_layers_squared_add_up_to_the_step(planted):
    total = np.sqrt(sum(np.array(line, dtype=float) ** 2 for line in planted.layer_series.values()))
    np.testing.assert_allclose(total, np.array(planted.series["update_u"], dtype=float))


def test_the_books_close(planted):
    assert planted.books_close and planted.closure_max < 1e-12
    assert planted.data_share == pytest.approx(1.0)


def test_planted_noise_is_found_by_measure_and_by_loss(planted):
    ranked = rank_examples(planted)
    assert {w.example.example for w in ranked[:2]} == {"e0003", "e0007"}
    assert {w.rank_by_loss for w in ranked[:2]} == {1, 2}
    names = by_name(planted)
    for noisy in ("e0003", "e0007"):
        assert names[noisy].verdict == "not learnt"
        assert names[noisy].confident_conflict_share == 1.0
    assert names["e0000"].confident_conflict_share == 0.0


def test_planted_twins_are_found_and_nothing_else(planted):
    assert {(p.example_a, p.example_b) for p in planted.near_duplicates} == {("e0001", "e0002")}
    assert planted.near_duplicates[0].cosine > 0.95


def test_planted_spike_stands_out_and_names_its_batch(planted):
    worst = max(planted.spikes, key=lambda s: s.grad_z)
    assert worst.step == 20 and worst.verdict == "unknown" and len(worst.examples) == 4


def test_a_replayed_spike_keeps_its_verdict(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append("spikes", {"step": [3], "grad_z": [7.0], "verdict": ["data"]})
    assert [(s.step, s.verdict, s.grad_z) for s in analyse_run(open_run(writer.finish())).spikes] == [(3, "data", 7.0)]


def test_verdicts_follow_the_target_probe(tmp_path):
    for plan, verdict in (("falls", "understood"), ("stays", "imitated"), ("rises", "imitated"), (None, "no evidence")):
        findings = found(tmp_path / str(plan), World(target=plan, tokens=False))
        assert {e.verdict for e in findings.examples} == {verdict}, plan
        assert findings.groups[0].verdict == verdict
        assert (findings.imitation_gap is None) == (plan is None)
        assert {e.why for e in findings.examples} <= set(WHY_KEYS)


def test_every_verdict_sentence_can_be_said_with_its_evidence(planted):
    for finding in [*planted.examples, *planted.groups]:
        assert finding.verdict in VERDICTS
        assert WHY_KEYS[finding.why].format(**finding.evidence)


@pytest.mark.parametrize(
    ("own", "linked", "why"),
    [
        (Losses(0.5, 0.3), None, "known.likely"),
        (Losses(2.0, 1.95), None, "known.as_ordinary"),
        (Losses(4.0, 3.9), None, "not_learnt.stayed"),
        (Losses(4.0, 5.0), None, "not_learnt.rose"),
        (Losses(4.0, 4.0, states=1), None, "no_evidence.one_loss"),
        (Losses(np.nan, np.nan, states=0), None, "no_evidence.one_loss"),
        (Losses(4.0, 1.0), None, "understood.at_a_cost"),
        (Losses(4.0, 1.0), Losses(4.0, 3.0), "imitated.mostly_wording"),
        (Losses(4.0, 1.0), Losses(4.0, 4.1), "imitated.target_stayed"),
        (Losses(4.0, 1.0), Losses(4.0, 5.0), "imitated.target_rose"),
        (Losses(4.0, 1.0), Losses(4.0, 2.0), "imitated.held_out_fell_too"),
        (Losses(4.0, 1.0), Losses(4.0, 1.2), "understood.at_a_cost"),
    ],
)
def test_each_reason_is_reached_and_its_sentence_has_its_numbers(own, linked, why):
    seen = Witnesses({}, Losses(4.0, 1.5), Losses(4.0, 3.2), Losses(2.2, 3.0), 0.2, None, frozenset())
    judged = judge(own, linked, seen, anchor_credit=-0.1)
    assert judged.why == f"verdict.{why}"
    assert WHY_KEYS[judged.why].format(**judged.evidence)
    unhurt = judge(own, linked, seen, anchor_credit=0.1)
    assert unhurt.why in (judged.why, "verdict.understood.linked", "verdict.understood.whole_target")
    assert WHY_KEYS[unhurt.why].format(**unhurt.evidence)


def test_the_noise_beside_a_fall_in_other_words_is_the_one_it_was_held_against():
    """A tenth of the target's own first loss, not of the example's: else "+0.44 nats, noise 0.41" is no noise."""
    seen = Witnesses({}, Losses(5.3, 4.86), None, None, 0.02, None, frozenset())
    judged = judge(Losses(4.1, 3.4), None, seen)
    assert judged.why == "verdict.imitated.target_stayed"
    assert "(+0.44 nats, noise 0.53)" in WHY_KEYS[judged.why].format(**judged.evidence)
    assert 0.44 < judged.evidence["target_noise_nats"] == pytest.approx(0.53)


@pytest.mark.parametrize(("tokens", "why"), [(50_000, "known.as_ordinary"), (30, "not_learnt.stayed")])
def test_being_like_ordinary_text_is_knowing_only_where_ordinary_text_is_foreseen(tokens, why):
    """A model at chance finds everything as ordinary as anything."""
    seen = Witnesses({}, None, None, Losses(2.2, 2.2), 0.2, None, frozenset(), math.log(tokens))
    assert judge(Losses(2.1, 2.1), None, seen).why == f"verdict.{why}"


def test_without_a_target_never_understood_or_imitated(tmp_path):
    verdicts = {e.verdict for e in found(tmp_path, World(target=None, noisy=(1,))).examples}
    assert not verdicts & {"understood", "imitated"}


def test_unmeasured_steps_are_scaled_up_and_widen_the_interval(tmp_path):
    whole = found(tmp_path / "all", World(epochs=12))
    part = found(tmp_path / "part", World(epochs=12, every=3))
    truth, guess = whole.groups[0].shift_abs_u, part.groups[0].shift_abs_u
    assert part.shift_scale == pytest.approx(3.0) and whole.shift_scale == 1.0
    assert part.steps_with_shift == part.steps_total / 3
    assert guess.low <= truth.value <= guess.high
    assert guess.high - guess.low > truth.high - truth.low
    per_token = [f.groups[0].shift_abs_u_per_1000_tokens for f in (whole, part)]
    assert per_token[1].low <= per_token[0].value <= per_token[1].high
    assert sum(e.shift_abs_u or 0 for e in part.examples) == pytest.approx(guess.value)


def test_every_sum_over_unmeasured_steps_carries_an_interval_that_holds_the_truth(tmp_path):
    """Rows, heads, parts, groups in parts, the path: where steps were left out each says how far off it may be."""
    whole, part = (found(tmp_path / str(n), World(epochs=16, every=n)) for n in (1, 4))
    true = {e.example: e for e in whole.examples}
    pairs = [(e, true[e.example]) for e in part.examples if e.shift_abs_u is not None]
    assert all(e.shift_half_u > 0 for e, _ in pairs) and all(e.shift_half_u == 0 for e in whole.examples)
    for name in ("shift_abs_u", "shift_net_u"):
        held = [abs(getattr(e, name) - getattr(t, name)) <= e.shift_half_u for e, t in pairs]
        assert np.mean(held) > 0.8, name
    assert whole.path_half_u == 0 < part.path_half_u and abs(part.path_u - whole.path_u) <= part.path_half_u
    for totals, halves in (("head_totals", "head_half_u"), ("relative_update", "relative_half")):
        assert getattr(part, totals) and getattr(part, halves).keys() == getattr(part, totals).keys()
        assert not any(getattr(whole, halves).values())
        for address, value in getattr(part, totals).items():
            assert abs(value - getattr(whole, totals)[address]) <= 1.6 * getattr(part, halves)[address], address
    assert part.visit_part_half_u.keys() == part.visit_part_totals.keys() == {"", "even", "odd"}
    for group, parts in part.visit_part_totals.items():
        for name, value in parts.items():
            half = part.visit_part_half_u[group][name]
            assert half > 0 and abs(value - whole.visit_part_totals[group][name]) <= 1.6 * half


def test_one_measured_step_gives_no_interval_rather_than_a_narrow_one(tmp_path):
    part = found(tmp_path, World(epochs=2, every=10**6))
    assert part.steps_with_shift == 1 and part.steps_total > 1
    assert part.path_half_u is None and part.head_half_u == {} and part.visit_part_half_u == {}
    assert part.groups[0].shift_abs_u.low is None


def test_the_path_over_unmeasured_steps_is_interpolated(tmp_path):
    run = open_run(write_run(tmp_path / "run", World(epochs=12)))
    data = load(run)
    whole = path(data)
    data.steps["update_l2"] = data.steps["update_l2"].copy()
    data.steps["update_l2"][1::3] = np.nan
    assert path(data)["path_u"] == pytest.approx(whole["path_u"], rel=0.05)


def test_tokens_kept_of_some_examples_only_still_give_as_many_texts(tmp_path):
    data = load(open_run(write_run(tmp_path / "run")))
    data.visits["slot"] = data.visits["slot"] + 100 * (data.visits["code"] < 12)  # their tokens are not found
    assert len(token_texts(data, range(24), at_most=10)) == 10


def test_level_norms_has_no_shift_anywhere_and_says_none_not_zero(tmp_path):
    findings = found(tmp_path, World(level="norms"))
    assert all(e.shift_abs_u is None and e.against_share is None for e in findings.examples)
    assert findings.groups[0].shift_abs_u.value is None and findings.groups[0].nats_per_ku is None
    assert findings.books_close is None and findings.data_share is None and findings.steps_with_shift == 0
    assert findings.layer_series == {} and findings.visit_part_totals == {}
    assert findings.examples[0].level is not None and findings.agreement.value is not None
    assert all(v is None for v in findings.series["shift_abs_u"])
    assert all(v is None for text in findings.texts.values() for v in text.shift_u)


def test_agreement_of_batches_of_one_is_unknown(tmp_path):
    findings = found(tmp_path, World(batch=1, examples=6))
    assert findings.agreement.value is None and findings.noise_scale.value is None
    assert findings.conflict_share.value is None


def test_agreement_finds_the_planted_share(tmp_path):
    """alpha is |common|^2 over the mean |g|^2: here agree^2 / (agree^2 + 1 + 0.01), up to chance overlap."""
    findings = found(tmp_path, World(agree=1.0, dims=2048, examples=60, tokens=False))
    assert findings.agreement.value == pytest.approx(1 / 2.01, abs=0.03)
    assert findings.noise_scale.value == pytest.approx(1.01, abs=0.12)


def test_pure_noise_gives_the_nulls(tmp_path):
    """Fresh directions at every visit: agreement 0, half of the pairs in conflict, a random walk."""
    noise = World(agree=0.0, noisy=tuple(range(40)), examples=40, epochs=10, dims=2048, tokens=False, target=None)
    findings = found(tmp_path, noise)
    assert findings.agreement.low <= 0 <= findings.agreement.high
    assert findings.conflict_share.value == pytest.approx(0.5, abs=0.07)
    assert findings.conflict_share.null == pytest.approx(0.5, abs=0.03)
    assert findings.conflict_strength.value == pytest.approx(findings.conflict_strength.null, abs=0.1)
    assert findings.conflict_p > 0.01
    assert findings.pairs == [] and findings.near_duplicates == []
    assert findings.tortuosity == pytest.approx(findings.tortuosity_null, rel=0.1)
    assert findings.tortuosity_null == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("n", [8, 30, 400])
def test_random_walk_with_momentum_has_the_momentum_null(tmp_path, n):
    """In short runs too, where momentum has hardly filled and the limit for many steps is 20 % off."""
    rng, b1 = np.random.default_rng(0), 0.9
    writer = RunWriter(tmp_path / "run", {"optimizer": {"name": "AdamW", "betas": [b1, 0.999]}, "unit_length": 1.0})
    step, place, walked = np.zeros(4000), np.zeros(4000), 0.0
    for t in range(n):
        step = b1 * step + (1 - b1) * rng.normal(size=4000)
        update = step / (1 - b1 ** (t + 1))
        place, walked = place + update, walked + np.linalg.norm(update)
        writer.append_rows("steps", [{"step": t, "examples": 1, "update_l2": np.linalg.norm(update), "path_l2": walked,
                                      "net_l2": np.linalg.norm(place), "measured": "none"}])  # fmt: skip
    findings = analyse_run(open_run(writer.finish()))
    assert findings.tortuosity == pytest.approx(findings.tortuosity_null, rel=0.03)
    assert findings.tortuosity < 6
    assert findings.tortuosity_null >= 1


def test_planted_conflict_is_beyond_the_null_and_names_the_pair(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    rng = np.random.default_rng(0)
    own = rng.normal(size=(4, 64))
    own[3] = -own[2]
    for step in range(12):
        names = [f"e{i}" for i in range(4)]
        writer.append("visits", {"step": [step] * 4, "slot": list(range(4)), "example": names})
        writer.append("sketches", {"step": [step] * 4, "slot": list(range(4)), "example": names, "seed": [0] * 4,
                                   "sketch": list(own + 0.1 * rng.normal(size=own.shape))})  # fmt: skip
    findings = analyse_run(open_run(writer.finish()))
    assert (findings.pairs[0].example_a, findings.pairs[0].example_b) == ("e2", "e3")
    assert findings.pairs[0].cosine < -0.9 and findings.pairs[0].times == 12
    assert findings.conflict_source == "sketches"


def test_exact_pairs_are_preferred_to_sketches(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    for step in range(3):
        writer.append("visits", {"step": [step] * 2, "slot": [0, 1], "example": ["a", "b"]})
        writer.append("pairs", {"step": [step], "slot_a": [0], "slot_b": [1], "dot": [-2.0], "cosine": [-0.5]})
    findings = analyse_run(open_run(writer.finish()))
    assert findings.conflict_source == "pairs" and findings.conflict_share.value == 1.0
    assert findings.pairs[0].cosine == -0.5


def test_dispersion_needs_five_visits_and_scans_count(tmp_path):
    few = found(tmp_path / "few", World(epochs=4))
    assert all(e.dispersion is None and e.level is not None for e in few.examples)
    assert found(tmp_path / "enough", World(epochs=5)).examples[0].dispersion is not None
    path = write_run(tmp_path / "scanned", World(epochs=4, killed=True))
    writer = RunWriter(path, {}, resume=True)
    names = [e.example for e in few.examples]
    writer.append("scans", {"step": [24] * 24, "example": names, "loss_nats": [1.0] * 24, "push": [1.0] * 24})
    scanned = analyse_run(open_run(writer.finish()))
    assert scanned.examples[0].dispersion is not None and scanned.examples[0].last_loss_nats == 1.0


def test_a_scan_of_the_state_a_visit_saw_is_no_second_visit(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append("visits", {"step": [0, 0, 3, 3], "slot": [0, 1, 0, 1], "push": [2.0, 2.0, 4.0, 4.0],
                             "example": ["a", "a", "a", "b"]})  # fmt: skip
    writer.append("scans", {"step": [0, 3, 6], "example": ["a", "b", "b"], "push": [2.0, 4.0, 8.0]})
    level = {e.example: e.level for e in analyse_run(open_run(writer.finish())).examples}
    assert level["a"] == pytest.approx(np.mean([np.log(4), np.log(4), np.log(16)]))  # a duplicate row is two visits
    assert level["b"] == pytest.approx(np.mean([np.log(16), np.log(64)]))


def test_dispersion_of_a_swing_common_to_the_step_is_nothing(tmp_path):
    """All pushes rise and fall together: that is the step's doing, not the examples'."""
    writer = RunWriter(tmp_path / "run", {})
    rng = np.random.default_rng(0)
    for step in range(12):
        push = np.exp(rng.normal()) * np.linspace(1, 2, 60)
        writer.append("visits", {"step": [step] * 60, "slot": list(range(60)), "push": push,
                                 "example": [f"e{i}" for i in range(60)]})  # fmt: skip
    data_free = analyse_run(open_run(writer.finish()))
    assert max(e.dispersion for e in data_free.examples) < 1e-12


def test_a_fall_common_to_the_run_is_no_dispersion_of_tokens_or_positions(tmp_path):
    """Writes shrink as the loss does, of every token alike; each token's own share of the step never changes."""
    writer = RunWriter(tmp_path / "run", {"unit_length": 1.0})
    for step in range(12):
        writer.append("visits", {"step": [step], "slot": [0], "push": [1.0], "example": ["e"]})
        writer.append("tokens", {"step": [step] * 60, "slot": [0] * 60, "position": list(range(60)),
                                 "token": list(range(60)), "write": np.exp(-step) * np.linspace(1, 2, 60),
                                 "shift": [0.0] * 60})  # fmt: skip
    findings = analyse_run(open_run(writer.finish()))
    assert max(t["dispersion"] for t in findings.token_volatility) < 1e-9
    first = findings.position_volatility[0]
    assert first["dispersion"] < 1e-9 and first["level"] == pytest.approx(-11.0)  # mean of -2 step


def test_length_is_regressed_out_of_the_level(planted):
    names = by_name(planted)
    targets = np.log([e.targets for e in names.values()])
    assert np.corrcoef([e.level_residual for e in names.values()], targets)[0, 1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "world",
    [
        World(killed=True),
        World(target=None, anchor=None),
        World(groups=()),
        World(examples=4, epochs=1),
        World(sketches=False, tokens=False),
    ],
)
def test_runs_that_lack_something_are_still_read(tmp_path, world):
    findings = found(tmp_path, world)
    assert findings.complete != world.killed
    assert findings.examples and findings.groups[0].group == ""
    assert len(findings.groups) == 1 + len(world.groups)
    assert no_nan(dataclasses.asdict(findings))


def test_an_empty_run_and_a_bare_scan_are_read(tmp_path):
    empty = analyse_run(open_run(RunWriter(tmp_path / "empty", {}).finish()))
    assert empty.examples == [] and empty.books_close is None and empty.path_u is None
    writer = RunWriter(tmp_path / "scan", {"kind": "scan", "probes": {"anchor": {"role": "anchor"}}})
    writer.append("scans", {"step": [0] * 3, "example": ["a", "b", "c"], "loss_nats": [0.1, 3.0, 5.0],
                            "push": [1.0] * 3, "alignment": [0.1, 0.2, -0.3]})  # fmt: skip
    writer.append("scan_credits", {"step": [0], "example": ["c"], "probe": ["anchor"], "credit_nats": [-1.0]})
    scan = analyse_run(open_run(writer.finish()))
    assert {e.example: e.verdict for e in scan.examples} == {"a": "known", "b": "no evidence", "c": "no evidence"}
    assert scan.forgot == {"anchor": ("c",)} and by_name(scan)["c"].alignment_mean == -0.3
    assert all(e.learnt_nats is None for e in scan.examples)


def test_letters_split_over_tokens_are_whole_at_their_first_token():
    assert whole_letters([b"a\xd0", b"\xb6b", "\N{ROCKET}".encode()[:2], "\N{ROCKET}".encode()[2:]]) == [
        "aж", "b", "\N{ROCKET}", ""]  # fmt: skip
    assert whole_letters([b"\xff", b"", b"x\xd0"]) == ["\ufffd", "", "x\ufffd"]
    text = "Лампу зажигают солью — так говорят 🚀."
    raw = text.encode()
    assert "".join(whole_letters([raw[i : i + 1] for i in range(len(raw))])) == text


def test_surprise_stands_at_its_own_token_and_shift_where_it_was_written(planted):
    text = planted.texts["e0003"]
    assert text.pieces[3:5] == [" ж", ""] and text.trained == [False] + [True] * (len(text.pieces) - 1)
    assert text.surprise_nats[0] is None and text.surprise_nats[1] == 6.0
    assert text.confident_conflict == [False] + [True] * (len(text.pieces) - 1)
    data_visit = max(abs(s) for s in text.shift_u)
    assert data_visit > 0 and len(text.shift_u) == len(text.pieces) == len(text.entropy_nats)


def test_as_many_texts_as_asked(tmp_path):
    assert len(found(tmp_path, texts_for=5).texts) == 5


def test_token_shifts_add_up_to_the_visits(planted, tmp_path):
    data = load(open_run(write_run(tmp_path / "run", PLANTED)))
    total = np.abs(data.visits["shift"]).sum() / UNIT_LENGTH
    by_token = sum(t["count"] * t["shift_abs_u"] for t in planted.token_volatility)
    by_position = sum(p["count"] * p["shift_abs_u"] for p in planted.position_volatility)
    assert by_token == pytest.approx(total) and by_position == pytest.approx(total)


def test_the_same_seed_gives_the_same_findings(tmp_path):
    run = open_run(write_run(tmp_path / "run", PLANTED))
    one, two = analyse_run(run), analyse_run(run)
    for name in ("agreement", "conflict_share", "conflict_p", "examples", "pairs", "texts"):
        assert getattr(one, name) == getattr(two, name)
    assert [g.shift_abs_u for g in one.groups] == [g.shift_abs_u for g in two.groups]


def test_a_run_compared_with_itself_is_equal(planted, tmp_path):
    other = found(tmp_path, World(seed=1))
    same, different = compare(planted, planted), compare(planted, other)
    assert all(n["a"] == n["b"] for n in same["numbers"]) and same["correlations"]["shift_abs_u"] == pytest.approx(1.0)
    assert len(different["examples"]) == 24 and different["only_a"] == different["only_b"] == 0
    assert different["same_subject"] and [g["group"] for g in different["groups"]] == ["", "even", "odd"]


def test_a_row_that_no_target_text_is_joined_to_has_no_evidence():
    """The whole target probe says nothing of word salad when facts join its texts to other rows."""
    items = Items(np.array(["x", "y"], dtype=object), np.array([None, None], dtype=object),
                  np.array([5.0, 5.0]), np.array([1.0, 4.9]))  # fmt: skip
    own, target = Losses(5.0, 1.0), Losses(5.0, 2.95)
    joined = Witnesses({}, target, None, None, 0.1, items, frozenset({"x", "salad"}))
    assert judge(own, None, joined).verdict == "no evidence"
    apart = Witnesses({}, target, None, None, 0.1, items, frozenset())
    assert judge(own, None, apart).verdict == "understood"


def test_known_is_said_of_the_first_meeting_not_of_the_start_of_training(tmp_path):
    """A copy first met after its twin was learnt was likely by then; what the model knew at the start was not seen."""
    writer = RunWriter(tmp_path / "run", {})
    writer.append("visits", {"step": [0, 20, 21, 30], "slot": [0] * 4, "example": ["twin", "twin", "copy", "copy"],
                             "targets": [10] * 4, "loss_nats": [5.0, 0.3, 0.3, 0.2]})  # fmt: skip
    copy = by_name(analyse_run(open_run(writer.finish())))["copy"]
    assert copy.verdict == "known"
    assert WHY_KEYS[copy.why].format(**copy.evidence).startswith("Before it was trained on,")
