"""Spikes: the verdict of a replay from an earlier state, which the subject itself always is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from conftest import save_subject, write_jsonl
from intaglio.analyse import analyse_run
from intaglio.commands import spikes
from intaglio.commands import train as command
from intaglio.store.run import Run, open_run

STEPS, SHAKEN = 40, 30
BAD = {"prompt": "of all that is not to be said here, ", "completion": "Q"}  # two targets: nothing averages out

pytestmark = pytest.mark.usefixtures("no_page")


def texts(n: int) -> list[dict[str, str]]:
    return [{"text": f"line {i:02d} of the long and quiet book of days"} for i in range(n)]


@pytest.fixture
def calm(tmp_path) -> Path:
    return write_jsonl(tmp_path / "calm.jsonl", texts(STEPS))


@pytest.fixture
def planted(tmp_path) -> Path:
    """One row whose gradient is long at any state of the model."""
    return write_jsonl(tmp_path / "planted.jsonl", [*texts(STEPS - 1), BAD])


def train(subject: Path, data: Path, out: Path, **options) -> Run:
    settings = {"steps": STEPS, "batch_size": 1, "lr": 3e-3, "schedule": "constant", "seed": 1, "level": "norms"}
    command.train(str(subject), str(data), out=out, **(settings | options))
    return open_run(out)


def shaken(monkeypatch, factors: dict[int, float]) -> None:
    """The model's last gain is multiplied when so many steps are taken."""
    from intaglio import train as module

    plain = module.train

    def shakes(model, *args, after_step, **options):
        gain = next(p for n, p in model.named_parameters() if n.endswith("model.norm.weight"))

        def after(done, loss):
            with torch.no_grad():
                gain.mul_(factors.get(done, 1.0))
            after_step(done, loss)

        return plain(model, *args, after_step=after, **options)

    monkeypatch.setattr(module, "train", shakes)


def of_bad_row(run: Run) -> list[int]:
    """The steps in which the planted row stood."""
    found = run.sql("select v.step from visits v join examples e using (example) where e.preview like '%Q%'").fetchall()
    return [step for (step,) in found]


def biggest(run: Run) -> dict:
    return max(run.table("spikes").to_pylist(), key=lambda r: r["grad_z"])


@pytest.mark.parametrize("options", [{}, {"lora": 2}, {"lora": 2, "layers": "0:1"}, {"layers": "1:2"}], ids=str)
def test_a_batch_that_is_long_everywhere_is_the_datas_fault(options, tiny, planted, tmp_path):
    run = train(tiny, planted, tmp_path / "run", **options)
    found = biggest(run)
    assert found["step"] in of_bad_row(run) and found["step"] >= spikes.FIRST_STEP
    assert (found["verdict"], found["replay_step"]) == ("data", 0) and found["replay_z"] > 4


@pytest.mark.parametrize("options", [{}, {"lora": 2, "lr": 3e-2}], ids=str)
def test_an_ordinary_batch_at_a_shaken_state_is_the_states_fault(options, tiny, calm, tmp_path, monkeypatch):
    shaken(monkeypatch, {SHAKEN: 30.0, SHAKEN + 1: 1 / 30})
    run = train(tiny, calm, tmp_path / "run", **options)
    found = biggest(run)
    assert (found["step"], found["verdict"], found["replay_step"]) == (SHAKEN, "state", 0)
    assert found["replay_z"] < 2 < 4 < found["grad_z"]


def test_a_start_whose_gradients_are_all_long_does_not_say_data(calm, tmp_path, monkeypatch):
    """Against the run's own lengths every batch would stand out at this start."""
    import numpy as np
    from safetensors.torch import load_file, save_file

    loud = save_subject(tmp_path / "loud")
    tensors = load_file(loud / "model.safetensors")
    tensors["model.norm.weight"] *= 30
    save_file(tensors, loud / "model.safetensors", metadata={"format": "pt"})
    shaken(monkeypatch, {1: 1 / 30, SHAKEN: 8.0, SHAKEN + 1: 1 / 8})
    run = train(loud, calm, tmp_path / "run")
    length = np.log(np.array(run.table("steps")["grad_l2"]))
    middle = np.median(length)
    assert length[0] - middle > 4 * 1.4826 * np.median(np.abs(length - middle)), "the start has much longer gradients"
    (found,) = [r for r in run.table("spikes").to_pylist() if r["step"] == SHAKEN]
    assert found["verdict"] == "state" and found["replay_step"] == 0


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"accumulate": 3, "batch_size": 2}, {"layers": "0:1"}], ids=str)
def test_the_first_batch_replayed_from_the_start_is_as_long_as_it_was(options, tiny, calm, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(spikes, "record_spikes", lambda job, *_: found.append(spikes._lengths(job, None, [0], [0, 1])))
    run = train(tiny, calm, tmp_path / "run", steps=3, clip=0.0, **options)
    (((replayed,), (again, _)),) = found
    assert replayed == again == pytest.approx(run.table("steps")["grad_l2"][0].as_py(), rel=1e-5)


def test_the_nearest_kept_state_is_taken_and_the_start_before_it(tiny, planted, tmp_path):
    run = train(tiny, planted, tmp_path / "run", checkpoint_every=8)
    found = biggest(run)
    assert found["replay_step"] == max(s for s in range(0, STEPS, 8) if s <= found["step"] - spikes.EARLIER) > 0
    assert found["verdict"] == "data"


def test_the_replay_leaves_the_model_and_the_run_as_they_are(tiny, planted, tmp_path, monkeypatch):
    """With the replay and without it: the same last state, the same tables."""
    from safetensors.torch import load_file

    one = train(tiny, planted, tmp_path / "one")
    monkeypatch.setattr(spikes, "record_spikes", lambda *_: None)
    two = train(tiny, planted, tmp_path / "two")
    a, b = (load_file(next((r.folder / "checkpoints").glob("*/model.safetensors"))) for r in (one, two))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert one.table("visits").equals(two.table("visits")) and two.table("spikes").num_rows == 0


def test_how_many_are_replayed_is_bounded_and_said(tiny, tmp_path, monkeypatch, capsys):
    data = write_jsonl(tmp_path / "d.jsonl", [*texts(52), *({**BAD, "completion": c} for c in "QXZWVKJH")])
    lengths = []
    plain = spikes._length
    monkeypatch.setattr(spikes, "_length", lambda job, step: lengths.append(step) or plain(job, step))
    run = train(tiny, data, tmp_path / "run", steps=60)
    said = " ".join(capsys.readouterr().err.split())
    assert run.table("spikes").num_rows == spikes.MOST and len(lengths) == spikes.MOST + spikes.ORDINARY
    assert "steps that stand out: " in said and "; replayed, the largest first: 3" in said
    assert "data (its batch at the state of step 0: z " in said and "against 12 ordinary batches there)" in said


def test_the_page_says_from_which_state(tiny, planted, tmp_path, intaglio):
    run = train(tiny, planted, tmp_path / "run")
    spike = next(s for s in analyse_run(run).spikes if s.step in of_bad_row(run))
    assert (spike.verdict, spike.replay_step) == ("data", 0) and spike.replay_z > 4
    for lang, said in (("en", "replayed from the state of step 0"), ("ru", "повтор из состояния шага 0")):
        intaglio("report", tmp_path / "run", "--lang", lang, "--out", tmp_path / f"{lang}.html")
        assert said in (tmp_path / f"{lang}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("harm", ["gone", "another"])
def test_without_its_subject_the_run_is_whole_and_the_verdict_unknown(harm, planted, tmp_path, monkeypatch, capsys):
    subject = save_subject(tmp_path / "subject")
    plain = spikes.record_spikes

    def record(*args):
        shutil.rmtree(subject)
        if harm == "another":
            save_subject(subject, seed=9)
        plain(*args)

    monkeypatch.setattr(spikes, "record_spikes", record)
    run = train(subject, planted, tmp_path / "run")
    assert run.complete and biggest(run)["verdict"] == "unknown" and biggest(run)["replay_step"] is None
    assert "nothing is replayed from it" in " ".join(capsys.readouterr().err.split())


def test_what_the_replay_says():
    ordinary = [1.0, 1.1, 0.9, 1.05, 0.95, 1.2]
    assert spikes.judged(1.1, ordinary, 3.0)["verdict"] == "state"
    assert spikes.judged(20.0, ordinary, 3.0)["verdict"] == "data"
    assert spikes.judged(1.9, ordinary, 3.0)["verdict"] == "both", "it stands out, but by far less than in the run"
    assert spikes.judged(1.9, ordinary, 0.8)["verdict"] == "data"
    alike = spikes.judged(1.01, [1.0] * 6, 3.0)
    assert alike["verdict"] == "state" and alike["replay_z"] < 1, "batches that hardly differ are alike"
