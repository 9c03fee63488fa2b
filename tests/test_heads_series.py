"""A series of checkpoints: each measured as if it stood alone, found by run or by folders, refused where shapes differ."""

import shutil

import numpy as np
import pytest
import torch

from conftest import save_subject
from intaglio.analyse.heads.history import history_rows
from intaglio.atlas import BASIC
from intaglio.errors import InputError, SubjectError
from intaglio.history import history_of, series_of, states_of
from intaglio.measure.heads.basic import measure_basic
from intaglio.measure.heads.tasks import run_tasks
from intaglio.model.proof import prove
from intaglio.model.subject import load_subject


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models of one shape: ckpt-5, ckpt-20 and ckpt-100."""
    base = tmp_path_factory.mktemp("series")
    for seed, step in enumerate((100, 5, 20)):
        save_subject(base / f"ckpt-{step}", seed=seed)
    return base


def test_steps_are_read_from_names_and_put_in_order(folders):
    paths = [folders / f"ckpt-{step}" for step in (100, 5, 20)]
    run, states, _ = states_of(paths)
    assert run is None and [step for step, _ in states] == [5, 20, 100]
    copied = folders / "copy"
    shutil.copytree(paths[0], copied, dirs_exist_ok=True)
    assert [step for step, _ in states_of([copied, *paths])[1]] == [0, 1, 2, 3]  # some name has no number: their places


def test_every_state_is_measured_as_if_it_stood_alone(folders):
    _, states, subject = states_of([folders / f"ckpt-{step}" for step in (5, 20, 100)])
    series = series_of(subject, states, texts=2, roles=BASIC)
    for (step, folder), sampled in zip(states, series.sampled, strict=True):
        alone = load_subject(folder)
        ordinary = [i for i in range(len(alone.tokenizer)) if i not in alone.tokenizer.all_special_ids]
        wanted = measure_basic(prove(alone.model), texts=2, length=50, ordinary=ordinary)
        for mine, theirs in zip(sampled, wanted, strict=True):
            assert (mine.role, mine.detail) == (theirs.role, theirs.detail)
            assert np.array_equal(mine.values_NLH, theirs.values_NLH, equal_nan=True), step
    assert {(r["step"], r["task"]) for r in series.losses} == {(s, t) for s in (5, 20, 100) for t in ("text", "repeat", "first")}


def test_roles_of_tasks_are_scored_at_every_state_as_if_it_stood_alone(folders):
    _, states, subject = states_of([folders / "ckpt-5", folders / "ckpt-100"])
    series = series_of(subject, states, texts=2, roles=["induction", "copying"])
    for (_, folder), sampled in zip(states, series.sampled, strict=True):
        alone = load_subject(folder)
        wanted = run_tasks(prove(alone.model), alone.tokenizer, roles=["copying"]).sampled
        assert [s.role for s in sampled] == ["induction", *(s.role for s in wanted)] and wanted
        for mine, theirs in zip(sampled[1:], wanted):
            assert np.array_equal(mine.values_NLH, theirs.values_NLH, equal_nan=True)


def test_losses_of_the_copies_are_those_of_their_tokens(folders):
    """The slow twin: log-probabilities of one state, token by token."""
    from intaglio.measure.heads.repeats import repeats

    _, states, subject = states_of([folders / "ckpt-5", folders / "ckpt-20"])
    series = series_of(subject, states, texts=2, roles=BASIC)
    model = load_subject(folders / "ckpt-20").model
    ordinary = [i for i in range(len(subject.tokenizer)) if i not in subject.tokenizer.all_special_ids]
    given = repeats(prove(model), texts=2, length=50, ordinary=ordinary)
    with torch.no_grad():
        log_p = model(given.ids_BT).logits.log_softmax(-1)
    copies = {"repeat": range(given.second + 1, given.second + given.length), "first": range(given.first, given.second)}
    for task, places in copies.items():
        wanted = np.mean([[-float(log_p[b, t - 1, given.ids_BT[b, t]]) for t in places] for b in range(2)])
        row = next(r for r in series.losses if r["step"] == 20 and r["task"] == task)
        assert row["loss_nats"] == pytest.approx(wanted, rel=1e-5)


def test_the_atlas_of_the_last_with_its_history(folders):
    atlas = history_of([folders / "ckpt-5", folders / "ckpt-100"], texts=2, roles=["induction", "previous_token"])
    assert {r["step"] for r in atlas.rows["history"]} == {5, 100} == set(atlas.about["steps"])
    assert atlas.rows["events"] == [] and "teachers" not in atlas.rows  # random weights have no roles
    assert {r["role"] for r in atlas.rows["scores"]} == {"induction", "previous_token"}
    last = {(r["address"], r["role"], r["detail"]): r["score"] for r in atlas.rows["history"] if r["step"] == 100}
    for row in atlas.rows["scores"]:
        assert last[row["address"], row["role"], row["detail"]] == pytest.approx(row["score"], rel=1e-6)


def test_the_last_state_is_measured_once_and_as_the_others_are(folders, monkeypatch):
    """Its scores come from the look at its heads; they are those that the series would have found."""
    from intaglio import history, looking
    from intaglio.measure.heads import series as module

    paths, roles, calls = [folders / "ckpt-5", folders / "ckpt-100"], ["copying", "induction", "self"], []
    _, states, subject = states_of(paths)
    alone = series_of(subject, states, texts=2, roles=roles)
    for where, name in ((module, "measure_basic"), (looking, "measure_basic"), (history, "run_tasks"), (looking, "run_tasks")):
        plain = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, name=name, plain=plain, **k: (calls.append(name), plain(*a, **k))[1])
    atlas = history_of(paths, texts=2, roles=roles)
    assert sorted(calls) == ["measure_basic"] * 2 + ["run_tasks"] * 2
    assert atlas.rows["history"] == history_rows(alone.steps, alone.sampled)
    assert atlas.rows["losses"] == alone.losses
    assert {row["role"] for row in atlas.rows["history"] if row["step"] == 100} == set(roles)


def test_other_shapes_are_one_clear_line(folders, tmp_path, refused):
    save_subject(tmp_path / "ckpt-7", hidden_size=32)
    with pytest.raises(InputError, match=r"different shapes: .* in .*ckpt-7"):
        states_of([folders / "ckpt-5", tmp_path / "ckpt-7"])
    assert "different shapes" in refused("heads", folders / "ckpt-5", tmp_path / "ckpt-7")


def test_one_checkpoint_is_no_history(folders):
    with pytest.raises(InputError, match="needs two checkpoints"):
        states_of([folders / "ckpt-5"])
    with pytest.raises(SubjectError, match="no such checkpoint"):
        states_of([folders / "ckpt-5", folders / "nowhere"])


def test_a_checkpoint_that_stands_twice_is_refused(folders, tmp_path, refused):
    one, link = folders / "ckpt-5", tmp_path / "ckpt-9"
    link.symlink_to(one)
    for paths in ([one, one], [one, f"{folders}/./ckpt-5"], [one, folders / "ckpt-20", link]):
        assert "stands twice in the series" in refused("heads", *paths)
        assert "stands twice in the series" in refused("heads", *paths, "--plan")


def test_a_runs_states_begin_with_its_subject(folders, tmp_path, intaglio, data, no_page):
    intaglio("train", folders / "ckpt-5", data, "--out", tmp_path / "run", "--steps", 4, "--checkpoint-every", 2)
    run, states, subject = states_of(tmp_path / "run")
    assert [step for step, _ in states] == [0, 2, 4] and states[0][1] is None
    series = series_of(subject, states, texts=2, roles=BASIC)
    first = series_of(*two_states(folders), texts=2)
    assert np.array_equal(series.sampled[0][0].values_NLH, first.sampled[0][0].values_NLH)
    assert run is not None and run.name == "run"


def two_states(folders):
    _, states, subject = states_of([folders / "ckpt-5", folders / "ckpt-20"])
    subject = load_subject(folders / "ckpt-5")
    return subject, states


def test_adapters_have_no_history_here(folders, tmp_path, intaglio, data, no_page):
    intaglio("train", folders / "ckpt-5", data, "--out", tmp_path / "run", "--steps", 2, "--lora", 2, "--checkpoint-every", 1)
    with pytest.raises(InputError, match="kept adapters"):
        states_of(tmp_path / "run")
