"""Two processes under DistributedDataParallel keep the books that one process keeps of the same global batch."""

from __future__ import annotations

import socket

import numpy as np
import pytest

import pair as jobs
import study
from intaglio.store.run import Run, open_run
from intaglio.tables import TABLES
from pair import Pair, model_of, optimizer_of
from tiny import micro, texts

ADAMW = {"name": "AdamW", "lr": 3e-3, "weight_decay": 0.1, "eps": 1e-5}
SGD = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
LENGTHS = ((6, 9, 4), (11, 5))  # of the texts of each process: neither as many nor as long
OWN = {"seconds", "measure_seconds", "rank", "closure", "gradient_match", "rounding_shift"}  # time, place and noise


@pytest.fixture(scope="module")
def pair():
    made = Pair()
    yield made
    made.close()


def plan(steps: int = 3, *, micros: int = 1, lengths=LENGTHS) -> list:
    """Steps, of processes, of micro-batches of texts; the first text of both processes is the same."""
    found = [[[texts(own, seed=100 * s + 10 * r + m) for m in range(micros)] for r, own in enumerate(lengths)]
             for s in range(steps)]  # fmt: skip
    for step in found:
        step[1][0][0] = step[0][0][0]
    return found


def alone(steps: list, settings: dict, out, *, kind: str = "", clip: float | None = None, **ledger) -> Run:
    """One process, to which every other's micro-batches are further ones: the same mean of the same losses."""
    model = model_of(kind)
    batches = [[micro(examples) for own in step for examples in own] for step in steps]
    return study.train(model, optimizer_of(model, settings), batches, out, clip=clip, **ledger).run


def check_same(ours: Run, theirs: Run, *, tables=TABLES, rel: float = 2e-4, leave: set = frozenset()) -> None:
    """Every number of every table, within `rel` of the column's size."""
    for name in tables:
        key = [(k, "ascending") for k in TABLES[name].key]
        a, b = (run.table(name).sort_by(key) for run in (ours, theirs))
        assert a.num_rows == b.num_rows, name
        for column in set(a.column_names) - OWN - leave:
            x, y = (t.column(column).to_pylist() for t in (a, b))
            if y and isinstance(next((v for v in y if v is not None), None), float):
                x, y = (np.array(v, dtype=float) for v in (x, y))
                size = np.nanmax(np.abs(y), initial=1e-12) if not np.isnan(y).all() else 1.0
                assert x == pytest.approx(y, abs=rel * size, rel=0, nan_ok=True), (name, column)
            elif column != "sketch":
                assert x == y, (name, column)


def check_books(run: Run, *, closed: float = 1e-4, match: float = 1e-5) -> list[dict]:
    steps = run.table("steps").to_pylist()
    assert run.complete and "fault" not in run.manifest and run.manifest["processes"] == 2
    assert [s["step"] for s in steps] == list(range(len(steps)))
    for step in steps:
        assert step["closure"] < closed and step["gradient_match"] < match
        assert step["data_shift"] == pytest.approx(
            sum(v["shift"] for v in run.table("visits").to_pylist() if v["step"] == step["step"]), rel=1e-9
        )
    return steps


WAYS = {
    "adamw": {"settings": ADAMW},
    "sgd, clipped": {"settings": SGD, "clip": 0.5},
    "accumulated": {"settings": ADAMW, "micros": 2, "clip": 0.5},
    "reduced at every micro-batch": {"settings": SGD, "micros": 2, "sync_all": True},
    "bucket views": {"settings": ADAMW, "micros": 2, "wrap": {"gradient_as_bucket_view": True}},
    "static graph": {"settings": ADAMW, "wrap": {"static_graph": True}},
    "adapters": {"settings": ADAMW, "kind": "lora"},
    "some tokens": {"settings": ADAMW, "keep_tokens": 0.5},
    "every second step": {"settings": ADAMW, "every": 2},
    "norms": {"settings": ADAMW, "level": "norms"},
}


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_keep_the_books_of_one(name, pair, tmp_path):
    how = dict(WAYS[name])
    steps = plan(micros=how.pop("micros", 1))
    probe = {"anchor": micro(texts((8, 5), seed=7)).inputs}
    found = pair(jobs.train, tmp_path, out=str(tmp_path / "two"), steps=steps, probes=probe, probe_every=2, **how)
    assert [f["raised"] for f in found] == ["", ""] and [f["hooks"] for f in found] == [0, 0]
    ours = open_run(tmp_path / "two")
    how = {k: v for k, v in how.items() if k not in ("sync_all", "wrap")}
    theirs = alone(steps, how.pop("settings"), tmp_path / "one", probes=probe, probe_every=2, **how)
    if how.get("level") != "norms" and how.get("every", 1) == 1:
        check_books(ours)
    check_same(ours, theirs, leave={"net_l2"} if "every" in how else frozenset())
    assert found[0]["latest"]["loss_nats"] == found[1]["latest"]["loss_nats"]
    ranks = ours.table("visits")["rank"].to_pylist()
    assert set(ranks) == {0, 1} and ours.table("visits").sort_by("slot")["rank"].to_pylist() == sorted(ranks)


def test_exact_compares_within_a_process(pair, tmp_path):
    steps = plan(2)
    pair(jobs.train, tmp_path, out=str(tmp_path / "two"), steps=steps, settings=ADAMW, level="exact")
    ours, theirs = open_run(tmp_path / "two"), alone(steps, ADAMW, tmp_path / "one", level="exact")
    check_books(ours)
    check_same(ours, theirs, tables=set(TABLES) - {"pairs"})
    pairs, every = (run.table("pairs").to_pylist() for run in (ours, theirs))
    assert len(pairs) == 2 * (3 + 1) and len(every) == 2 * 10
    known = {(p["step"], p["slot_a"], p["slot_b"]): p["dot"] for p in every}
    assert all(p["dot"] == pytest.approx(known[p["step"], p["slot_a"], p["slot_b"]], rel=1e-4) for p in pairs)


def test_a_text_that_both_saw_is_one_example(pair, tmp_path):
    pair(jobs.train, tmp_path, out=str(tmp_path / "run"), steps=plan(), settings=ADAMW)
    run = open_run(tmp_path / "run")
    examples = run.table("examples")["example"].to_pylist()
    assert len(examples) == len(set(examples)) == 3 * 4
    assert run.sql("select count(*) from visits join examples using (example)").fetchall()[0][0] == 3 * 5
    assert not list(run.folder.glob("*/part-*"))


def test_a_gradient_changed_in_other_ways_is_foreign(pair, tmp_path):
    """Clipping by value, and compression between the processes, are no factors: nothing is blamed on the data."""
    for name, how in {"value": {"clip_value": 1e-3}, "half": {"hook": "fp16_compress_hook"}}.items():
        pair(jobs.train, tmp_path, out=str(tmp_path / name), steps=plan(2), settings=ADAMW, **how)
        for step in open_run(tmp_path / name).table("steps").to_pylist():
            assert step["closure"] < 1e-4
            assert step["data_shift"] == 0 and step["agreement_gg"] is None
            assert step["unmeasured_shift"] > (0.9 if step["step"] == 0 else 0.4) * step["update_l2"]
            assert (step["carry_shift"] > 0.1 * step["update_l2"]) == (step["step"] > 0)
        assert open_run(tmp_path / name).manifest["gradients_changed"]["step"] == 0


def test_a_matrix_that_one_process_does_not_reach(pair, tmp_path):
    pair(jobs.train, tmp_path, out=str(tmp_path / "run"), steps=plan(2), settings=ADAMW, kind="unused",
         wrap={"find_unused_parameters": True})  # fmt: skip
    check_books(open_run(tmp_path / "run"))


def test_the_memory_budget_of_one_is_the_budget_of_all(pair, tmp_path):
    steps = plan(3, lengths=((4, 4), (30, 30)))
    for step in steps:
        step[1][0][0] = texts((30,), seed=5)[0]
    pair(jobs.train, tmp_path, out=str(tmp_path / "run"), steps=steps, settings=ADAMW, memory="200KiB")
    run = open_run(tmp_path / "run")
    assert run.complete and set(run.table("steps")["measured"].to_pylist()) == {"norms"}
    assert "process 1 passed its memory budget" in run.manifest["memory"]["degraded"]


# -- faults


@pytest.fixture(scope="module")
def unmeasured(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unmeasured")
    return pair(jobs.train, folder, out="", steps=plan(4), settings=ADAMW, measured=False)


@pytest.mark.parametrize("where", ["backward", "before", "after", "last"])
def test_a_fault_in_one_process_stops_measuring_in_all_and_training_in_none(where, pair, unmeasured, tmp_path):
    found = pair(jobs.train, tmp_path, out=str(tmp_path / "run"), steps=plan(4), settings=ADAMW, fault=where)
    for one, plain in zip(found, unmeasured):
        assert one["raised"] == "" and one["hooks"] == 0
        assert all(np.array_equal(a, b) for a, b in zip(one["weights"], plain["weights"]))
    assert [len(f["said"]) for f in found] == [1, 0]
    assert "process 1: StoreError: a fault of the instrument" in found[0]["said"][0]
    run = open_run(tmp_path / "run")
    assert run.complete and "process 1: StoreError" in run.manifest["fault"]
    assert run.table("steps")["step"].to_pylist() == ([0, 1] if where == "last" else [0])


def test_rows_that_one_process_cannot_write_at_the_end_leave_the_run_unfinished(pair, tmp_path):
    found = pair(jobs.train, tmp_path, out=str(tmp_path / "run"), steps=plan(2), settings=ADAMW, fault="writing")
    assert [f["raised"] for f in found] == ["", ""]
    run = open_run(tmp_path / "run")
    assert not run.complete and "process 1: StoreError: a fault of the instrument" in run.manifest["fault"]


def test_an_exception_of_the_users_in_one_process_leaves_nobody_waiting(pair, tmp_path):
    """Process 1 breaks off and leaves while process 0 is still in its block, and process 0 then leaves, too."""
    found = pair(jobs.train, tmp_path, out=str(tmp_path / "run"), steps=plan(2), settings=ADAMW, error_at=1)
    assert found[1]["raised"] == "ZeroDivisionError: the user's own" and found[0]["raised"] == ""
    assert "process 1 did not come to its block's end" in found[0]["said"][0]
    run = open_run(tmp_path / "run")
    assert not run.complete and run.table("visits").num_rows == 2 * 5
    assert run.table("examples").num_rows == 2 * 4  # a run that is not joined names each text once, too
    assert run.sql("select count(*) from visits join examples using (example)").fetchall()[0][0] == 2 * 5


def test_batches_that_run_out_in_one_process(pair, tmp_path):
    found = pair(jobs.uneven, tmp_path, out=str(tmp_path / "run"), step=[texts((5, 6))])
    assert [f["taken"] for f in found] == [3, 2]
    assert "join are not measured" in found[0]["said"][0]
    assert "join" in open_run(tmp_path / "run").manifest["fault"]


# -- refusals


@pytest.mark.parametrize("how, first, second", [
    ("bare", "UnmeasurableError: training over several processes is measured under", "UnmeasurableError"),
    ("outside", "UnmeasurableError: DistributedDataParallel does not add up", "UnmeasurableError"),
    ("different", "InputError: the processes have different every", "InputError: the processes have different every"),
    ("group momentum", "InputError: group momentum is measured in one process", "InputError"),
    ("one only", "UnmeasurableError: a ledger measures all processes or none; got none in process 1", ""),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_every_process(how, first, second, pair, tmp_path):
    found = pair(jobs.refused, tmp_path, out=str(tmp_path / "run"), how=how)
    assert found[0].startswith(first) and found[1].startswith(second)


def test_a_run_that_exists_is_refused_in_every_process(pair, tmp_path):
    (tmp_path / "run").mkdir()
    found = pair(jobs.refused, tmp_path, out=str(tmp_path / "run"), how="")
    assert found[0].startswith("StoreError") and "exists already" in found[0]
    assert found[1].startswith("UnmeasurableError: process 0 cannot measure") and "exists already" in found[1]
    found = pair(jobs.train, tmp_path, out=str(tmp_path / "new"), steps=plan(1), settings=ADAMW, fault="beginning")
    assert "process 1 cannot measure, so none does: StoreError" in found[0]["raised"]
    assert not (tmp_path / "new.partial").exists()


# -- trainers


def test_the_trainer_in_two_processes(pair, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = pair(jobs.under_trainer, tmp_path, out=str(tmp_path), port=port, gradient_accumulation_steps=2, max_grad_norm=0.05)
    run = open_run(tmp_path / "run")
    steps = check_books(run)
    assert len(steps) == 3 and max(s["clip_scale"] for s in steps) < 0.2
    assert run.table("steps")["loss_nats"].to_pylist() == pytest.approx([line["loss"] for line in found[0]["logs"]], rel=1e-4)
    assert all("intaglio/closure" in line for line in found[0]["logs"]) and [f["hooks"] for f in found] == [0, 0]
    rows = [row for rows in run.table("examples")["row"].to_pylist() for row in rows]
    assert sorted(rows) == list(range(8))
