"""Each fact with itself: leap against bridge over both rotations, with the interval taken over the facts."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import save_subject
from intaglio.analyse.pairs import fact_pairs, mean_difference
from intaglio.commands.summary import print_pairs
from intaglio.data.leaps import training_rows
from intaglio.errors import RecipeError
from intaglio.store.run import RunWriter, open_run

TABLES = ("visits", "probe_items", "steps")
CLOCKS = ("seconds", "measure_seconds")


# --- the measure


def planted(folder, moved, fell):
    """A run in which each (group, fact) moved so many u per 1000 tokens and fell so many nats in other words."""
    writer = RunWriter(folder, {"unit_length": 2.0})
    for i, ((group, fact), size) in enumerate(moved.items()):
        targets, shift = 4 + i, (size or 0.0) * 2.0 * (4 + i) / 1000
        writer.append_rows("examples", [{"example": str(i), "group": group, "fact": fact}])
        writer.append_rows("visits", [
            {"step": s, "slot": i, "example": str(i), "targets": targets,
             "shift": None if size is None or part is None else part * shift}
            for s, part in enumerate((0.5, -1.5, None))  # the third visit was not measured
        ])  # fmt: skip
        if fell.get(fact) is not None:
            writer.append_rows("probe_items", [
                {"step": s, "probe": "target", "item": item, "fact": fact, "loss_nats": 9.0 - s * (fell[fact] + d)}
                for item, d in ((2 * i, 0.25), (2 * i + 1, -0.25)) for s in (0, 1)
            ])  # fmt: skip
    return open_run(writer.finish())


FACTS = [f"{lang}-{n}" for lang in ("en", "ru") for n in range(6)]


def world(tmp_path, rng):
    """Facts differ widely, leap less bridge is 3 u and -0.2 nats on average with little spread."""
    base, gap = rng.uniform(5, 500, 12), rng.normal(3.0, 0.5, 12)
    fall, lack = rng.uniform(0, 4, 12), rng.normal(-0.2, 0.05, 12)
    runs = []
    for name, first in (("a", range(0, 12, 2)), ("b", range(1, 12, 2))):
        arm = {i: "leap" if i in first else "bridge" for i in range(12)}
        told = {i: (base[i] + gap[i] * (arm[i] == "leap"), fall[i] + lack[i] * (arm[i] == "leap")) for i in range(12)}
        runs.append(planted(tmp_path / name, {(arm[i], FACTS[i]): told[i][0] for i in range(12)},
                            {FACTS[i]: told[i][1] for i in range(12)}))  # fmt: skip
    return runs, gap, lack


def test_the_planted_difference_is_found_within_facts_though_facts_differ_far_more(tmp_path):
    runs, gap, lack = world(tmp_path, np.random.default_rng(0))
    pairs = fact_pairs(runs)
    assert [p.fact for p in pairs] == sorted(FACTS)
    assert [p.difference("moved_u") for p in pairs] == pytest.approx(gap)
    assert [p.difference("fell_nats") for p in pairs] == pytest.approx(lack)
    moved, fell = mean_difference(pairs, "moved_u"), mean_difference(pairs, "fell_nats")
    assert moved.value == pytest.approx(gap.mean()) and moved.low < gap.mean() < moved.high and moved.low > 2
    assert fell.value == pytest.approx(lack.mean()) and fell.high < 0 and moved.null == fell.null == 0
    normal = 1.96 * gap.std(ddof=1) / 12**0.5
    assert (moved.high - moved.low) / 2 == pytest.approx(normal, rel=0.15), "the interval of a mean of twelve"


def test_the_order_of_runs_and_of_arms_does_what_it_says(tmp_path):
    runs, *_ = world(tmp_path, np.random.default_rng(1))
    one, other = fact_pairs(runs), fact_pairs(runs[::-1])
    assert one == other
    turned = fact_pairs(runs, ("bridge", "leap"))
    assert [p.difference("moved_u") for p in turned] == pytest.approx([-p.difference("moved_u") for p in one])


def test_noise_alone_is_inside_the_interval_about_as_often_as_promised(tmp_path):
    from intaglio.analyse.pairs import FactPair, Told

    rng, inside = np.random.default_rng(2), 0
    for _ in range(200):
        pairs = [FactPair(str(i), (Told(x, None), Told(0.0, None))) for i, x in enumerate(rng.normal(size=12))]
        found = mean_difference(pairs, "moved_u")
        inside += found.low <= 0 <= found.high
    assert 0.85 < inside / 200 < 0.98  # a percentile bootstrap of twelve is somewhat narrow


def test_what_was_not_measured_is_left_out_and_never_zero(tmp_path, capsys):
    from rich.console import Console

    a = planted(tmp_path / "a", {("leap", "en-0"): None, ("leap", "en-1"): 5.0, ("leap", "en-2"): 1.0}, {"en-0": 1.0})
    b = planted(tmp_path / "b", {("bridge", "en-0"): 7.0, ("bridge", "en-1"): 4.0, ("control", "en-2"): 1.0}, {"en-0": 0.5})
    pairs = fact_pairs([a, b])
    assert [p.fact for p in pairs] == ["en-0", "en-1"], "a fact that lacks a way is no pair"
    assert pairs[0].ways[0].moved_u is None and np.isnan(pairs[0].difference("moved_u"))
    assert mean_difference(pairs, "moved_u").value == pytest.approx(1.0) and mean_difference(pairs, "moved_u").low is None
    assert pairs[1].ways[0].fell_nats is None
    assert mean_difference([], "moved_u").value is None and fact_pairs([]) == []
    print_pairs(pairs, Console(width=160))
    assert "- | 7" in capsys.readouterr().out


# --- the command


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A tiny subject that the built-in rows fit into, one token per byte."""
    return save_subject(tmp_path_factory.mktemp("roomy") / "roomy", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def both(roomy, tmp_path_factory):
    """Both rotations, and what was printed."""
    import contextlib
    import io

    from intaglio.commands.steps import steps

    folder, said = tmp_path_factory.mktemp("both"), io.StringIO()
    out, err = io.StringIO(), said
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        steps(str(roomy), out=folder / "run", rotation="both", epochs=1)
    return folder, out.getvalue(), err.getvalue()


def rows(run, table):
    return [{k: v for k, v in r.items() if k not in CLOCKS} for r in run.table(table).to_pylist()]


def test_both_rotations_are_two_runs_and_each_fact_stands_beside_itself(both):
    folder, out, said = both
    runs = [open_run(folder / f"run-{r}") for r in "ab"]
    assert [r.manifest["rotation"] for r in runs] == ["a", "b"] and all(r.complete for r in runs)
    assert out.split() == [str(folder / f"run-{r}" / "report.html") for r in "ab"]
    pairs = fact_pairs(runs)
    expected = {r["fact"] for r in training_rows("a") if r["group"] in ("leap", "bridge")}
    assert {p.fact for p in pairs} == expected and len(pairs) == 12
    assert all(w.moved_u > 0 and w.fell_nats is not None for p in pairs for w in p.ways)
    for fact in expected:
        assert fact in said
    assert "mean of 12 facts: movement" in said and "mean of 6 facts (en)" in said and "mean of 6 facts (ru)" in said
    leap = {r["fact"]: "ab"[i] for i, x in enumerate("ab") for r in training_rows(x) if r["group"] == "leap"}
    sql = """select 1000 * sum(abs(shift)) / sum(v.targets) from visits v join examples using (example)
             where "group" = 'leap' and fact = '{}'"""
    for pair in pairs:
        run = runs["ab".index(leap[pair.fact])]
        (size,) = run.sql(sql.format(pair.fact)).fetchall()[0]
        assert pair.ways[0].moved_u == pytest.approx(size / run.manifest["unit_length"])


def test_the_second_rotation_starts_from_the_subject_and_not_from_the_first(both, roomy, tmp_path, intaglio, capsys):
    folder, *_ = both
    intaglio("steps", roomy, "--rotation", "b", "--epochs", 1, "--out", tmp_path / "alone")
    assert capsys.readouterr().out.split() == [str(tmp_path / "alone" / "report.html")], "one rotation: one run"
    alone, second = open_run(tmp_path / "alone"), open_run(folder / "run-b")
    for table in TABLES:
        assert rows(alone, table) == rows(second, table), table


def test_going_on_keeps_the_finished_rotation_and_takes_up_the_other(both, roomy, tmp_path, monkeypatch, capsys):
    from intaglio import train as loop
    from intaglio.commands.steps import steps

    folder, *_ = both
    plain, runs = loop.train, []

    def stops(*args, after_step, **options):
        runs.append(1)

        def after(done, loss):
            after_step(done, loss)
            if len(runs) == 2 and done == 3:
                raise KeyboardInterrupt

        return plain(*args, after_step=after, **options)

    options = dict(out=tmp_path / "run", rotation="both", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", stops)
        with pytest.raises(KeyboardInterrupt):
            steps(str(roomy), **options)
    before = (tmp_path / "run-a" / "manifest.json").stat().st_mtime_ns
    with pytest.raises(RecipeError, match=r"the run at .*run-a was begun with other settings"):
        steps(str(roomy), **options, resume=True, seed=3)
    steps(str(roomy), **options, resume=True)
    assert (tmp_path / "run-a" / "manifest.json").stat().st_mtime_ns == before
    said = " ".join(capsys.readouterr().err.split())
    assert "is finished and stays as it is" in said and "mean of 12 facts" in said
    for r in "ab":
        for table in TABLES:
            assert rows(open_run(tmp_path / f"run-{r}"), table) == rows(open_run(folder / f"run-{r}"), table), (r, table)


def test_an_existing_second_run_is_refused_before_the_first_is_begun(roomy, tmp_path, refused):
    (tmp_path / "run-b").mkdir()
    assert "run-b exists already" in refused("steps", roomy, "--rotation", "both", "--out", tmp_path / "run")
    assert not list(tmp_path.glob("run-a*"))


def test_the_plan_of_both_writes_nothing(roomy, tmp_path, monkeypatch, intaglio, capsys):
    monkeypatch.chdir(tmp_path)
    intaglio("steps", roomy, "--rotation", "both", "--plan", "--epochs", 1)
    assert capsys.readouterr().err.count("time: about") == 2 and not list(tmp_path.iterdir())
