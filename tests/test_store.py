"""A run on disk: whole or not at all, readable after a kill, never replaced unasked."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from intaglio.errors import StoreError
from intaglio.measure.ledger import Ledger
from intaglio.store import run as store
from intaglio.store.run import Run, RunWriter, check_free, open_run, schema_of
from intaglio.tables import SCHEMA_VERSION, TABLES
from tiny import batch, build, texts


def rows(*steps):
    return [{"step": s, "lr": 0.1 * s} for s in steps]


def write(writer, *steps):
    for s in steps:
        writer.append_rows("steps", rows(s))
        writer.flush(s + 1)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_a_run_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "a" / "run"
    writer = RunWriter(out, {"seed": 3})
    write(writer, 0, 1)
    assert not out.exists() and (tmp_path / "a" / "run.partial").exists()
    going = open_run(out)
    assert not going.complete and going.name == "run"
    assert going.table("steps")["step"].to_pylist() == [0, 1]
    writer.append_rows("steps", rows(2))
    assert open_run(out).table("steps").num_rows == 2  # buffered rows are not there yet
    assert writer.finish(steps=3) == out
    run = open_run(out)
    assert run.complete and run.manifest["seed"] == 3 and run.manifest["steps"] == 3
    assert run.table("steps")["step"].to_pylist() == [0, 1, 2]
    assert files(out) == ["manifest.json", "steps/all.parquet"]
    assert not (tmp_path / "a" / "run.partial").exists()


def test_every_table_of_the_contract_can_be_written_empty_and_read(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    for name, table in TABLES.items():
        writer.append(name, {table.key[0]: ["x"] if schema_of(name).field(table.key[0]).type == "string" else [1]})
    writer.finish()
    run = open_run(tmp_path / "run")
    for name in TABLES:
        found = run.table(name)
        assert found.num_rows == 1 and found.schema.equals(schema_of(name))
    with pytest.raises(StoreError, match="unknown table"):
        run.table("secrets")


def test_a_column_that_an_older_run_did_not_have_is_null(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append_rows("scans", [{"step": 0, "example": "old", "push": 1.0}])
    writer.flush(0)
    (part,) = writer.folder.glob("scans/part-*")
    pq.write_table(pq.ParquetFile(part).read().drop_columns("push_kind"), part)
    writer.append_rows("scans", [{"step": 0, "example": "new", "push": 2.0, "push_kind": "token_sum"}])
    writer.flush(1)
    for finish in (False, True):  # before and after its parts are joined
        run = open_run(writer.finish() if finish else tmp_path / "run")
        found = run.table("scans")
        assert found.schema.equals(schema_of("scans"))
        assert found.select(["push", "push_kind"]).to_pylist() == [
            {"push": 1.0, "push_kind": None}, {"push": 2.0, "push_kind": "token_sum"}]  # fmt: skip
        assert run.sql("select count(push_kind) from scans").fetchall() == [(1,)]


def test_not_a_number_becomes_null_never_zero(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append_rows("steps", [{"step": 0, "lr": float("nan"), "closure": None}])
    writer.finish()
    assert open_run(tmp_path / "run").table("steps").select(["lr", "closure", "update_l2"]).to_pylist() == [
        {"lr": None, "closure": None, "update_l2": None}
    ]


def test_a_part_is_replaced_atomically(tmp_path, monkeypatch):
    """Writing fails halfway: no part, no file aside, the earlier parts and the buffered rows are kept."""
    writer = RunWriter(tmp_path / "run", {})
    write(writer, 0)
    before = files(writer.folder)
    whole = pq.write_table

    def full(table, path, **options):
        Path(path).write_bytes(b"PAR1 half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.pq, "write_table", full)
    writer.append_rows("steps", rows(1))
    with pytest.raises(StoreError, match="No space left"):
        writer.flush(2)
    assert files(writer.folder) == before
    monkeypatch.setattr(store.pq, "write_table", whole)
    writer.flush(2)
    assert open_run(tmp_path / "run").table("steps")["step"].to_pylist() == [0, 1]


def test_compacting_may_fail_and_the_run_is_whole(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "run", {})
    write(writer, 0, 1)
    writer.append_rows("steps", rows(2))
    writer.flush(3)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.pq, "write_table", full)
    writer.finish()
    run = open_run(tmp_path / "run")
    assert run.complete and run.table("steps")["step"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("when", ["write_manifest", "replace", "unlink"])
def test_killed_while_finishing_nothing_is_lost_or_twice(when, tmp_path):
    """The process dies at each moment of `finish`; what is left reads the same and can be resumed."""
    code = f"""
        import os
        from intaglio.store import run as store
        writer = store.RunWriter({str(tmp_path / "run")!r}, {{}})
        for s in range(3):
            writer.append_rows("steps", [{{"step": s}}])
            writer.flush(s + 1)
        def die(*_, **__): os._exit(9)
        if {when!r} == "write_manifest": store.RunWriter.write_manifest = die
        if {when!r} == "unlink": store.Path.unlink = die
        if {when!r} == "replace":
            replace = os.replace
            store.os.replace = lambda a, b: die() if str(a).endswith(".partial") else replace(a, b)
        writer.finish()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 9
    run = open_run(tmp_path / "run")
    assert run.table("steps")["step"].to_pylist() == [0, 1, 2]
    if not (tmp_path / "run").exists():
        writer = RunWriter(tmp_path / "run", {}, resume=True)
        writer.drop_after(2)
        write(writer, 2)
        writer.finish()
        assert open_run(tmp_path / "run").table("steps")["step"].to_pylist() == [0, 1, 2]
        assert open_run(tmp_path / "run").complete


def test_a_killed_process_loses_at_most_the_last_flush(tmp_path):
    code = f"""
        import os
        from intaglio.store.run import RunWriter
        writer = RunWriter({str(tmp_path / "run")!r}, {{"seed": 5}})
        for s in range(4):
            writer.append_rows("steps", [{{"step": s}}])
            if s == 2: writer.flush(3)
        (writer.folder / "steps" / ".part-00000004-0.parquet.tmp").write_bytes(b"half")
        os._exit(9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    run = open_run(tmp_path / "run")
    assert not run.complete and run.manifest["seed"] == 5
    assert run.table("steps")["step"].to_pylist() == [0, 1, 2]
    assert run.sql("select count(*) from steps").fetchall() == [(3,)]


def test_resuming_drops_what_will_be_written_again(tmp_path):
    writer = RunWriter(tmp_path / "run", {"seed": 5})
    write(writer, 0, 1, 2, 3)
    again = RunWriter(tmp_path / "run", {"hardware": "other"}, resume=True)
    assert again.manifest["seed"] == 5 and again.manifest["hardware"] == "other"
    again.drop_after(2)
    write(again, 2, 3, 4)
    again.finish()
    assert open_run(tmp_path / "run").table("steps")["step"].to_pylist() == [0, 1, 2, 3, 4]


def test_ranks_write_side_by_side_and_drop_only_their_own(tmp_path):
    first = RunWriter(tmp_path / "run", {})
    second = RunWriter(tmp_path / "run", {}, resume=True, rank=1)
    write(first, 0, 1)
    write(second, 0, 1)
    second.drop_after(1)
    assert [f for f in files(first.folder) if "steps" in f] == [
        "steps/part-00000001-0.parquet", "steps/part-00000001-1.parquet", "steps/part-00000002-0.parquet",
    ]  # fmt: skip


# -- refusals


def finished(path):
    writer = RunWriter(path, {"seed": 1})
    write(writer, 0)
    return writer.finish()


def test_an_existing_run_is_not_replaced_unasked(tmp_path):
    finished(tmp_path / "run")
    with pytest.raises(StoreError, match=r"exists already.*--force"):
        RunWriter(tmp_path / "run", {})
    with pytest.raises(StoreError, match="exists already"):
        RunWriter(tmp_path / "run", {}, resume=True)
    assert open_run(tmp_path / "run").manifest["seed"] == 1


def test_an_unfinished_run_is_not_replaced_unasked(tmp_path):
    write(RunWriter(tmp_path / "run", {"seed": 1}), 0)
    with pytest.raises(StoreError, match=r"unfinished.*--resume.*--force"):
        RunWriter(tmp_path / "run", {})
    assert open_run(tmp_path / "run").table("steps").num_rows == 1
    RunWriter(tmp_path / "run", {"seed": 2}, force=True)
    assert open_run(tmp_path / "run").manifest["seed"] == 2
    assert open_run(tmp_path / "run").table("steps").num_rows == 0


def test_force_keeps_the_old_run_until_the_new_one_is_whole(tmp_path):
    finished(tmp_path / "run")
    writer = RunWriter(tmp_path / "run", {"seed": 2}, force=True)
    assert open_run(tmp_path / "run").manifest["seed"] == 1
    writer.finish()
    assert open_run(tmp_path / "run").manifest["seed"] == 2


@pytest.mark.parametrize("what", ["folder", "file"])
def test_force_never_replaces_what_is_no_run(what, tmp_path):
    place = tmp_path / "precious"
    if what == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    else:
        place.write_text("years of work")
    with pytest.raises(StoreError):
        RunWriter(place, {}, force=True)
    with pytest.raises(StoreError):
        check_free(place)
    assert files(tmp_path) == (["precious/thesis.tex"] if what == "folder" else ["precious"])


@pytest.mark.parametrize("manifest, said", [
    (json.dumps({"schema_version": SCHEMA_VERSION + 1}), f"expected {SCHEMA_VERSION}"),
    (json.dumps({}), "schema version"), (json.dumps([1]), "schema version"), ('{"schema_version": 1', "cannot read"),
    (None, "no manifest"),
])  # fmt: skip
def test_an_unknown_schema_or_a_broken_manifest_is_one_clear_line(manifest, said, tmp_path):
    path = finished(tmp_path / "run")
    (path / "manifest.json").unlink()
    if manifest is not None:
        (path / "manifest.json").write_text(manifest)
    with pytest.raises(StoreError, match=said) as caught:
        open_run(path)
    assert "\n" not in str(caught.value)


def test_resuming_a_run_of_another_schema_is_refused_and_changes_nothing(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    write(writer, 0)
    (writer.folder / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(StoreError, match="another schema"):
        RunWriter(tmp_path / "run", {}, resume=True)
    assert json.loads((writer.folder / "manifest.json").read_text()) == {"schema_version": 99}


def test_no_run_is_one_clear_line(tmp_path):
    with pytest.raises(StoreError, match="no such run"):
        open_run(tmp_path / "nothing")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot"):
        RunWriter(tmp_path / "file" / "run", {})
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match="cannot write to"):
        RunWriter(tmp_path / "run", {})
    assert files(tmp_path) == ["file"]


# -- the ledger on a disk that fills, and resumed


def step(model, optimizer, seed):
    model(**batch(texts(seed=seed))).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_training_goes_on_when_the_disk_is_full(tmp_path, monkeypatch):
    model = build("llama_gqa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.warns(RuntimeWarning, match="No space left"):
        with Ledger(model, optimizer, out=tmp_path / "run", quiet=True) as ledger:
            step(model, optimizer, 0)
            ledger.flush()
            monkeypatch.setattr(store.pq, "write_table", full)
            monkeypatch.setattr("intaglio.measure.ledger.FLUSH_SECONDS", -1.0)
            before = model.lm_head.weight.detach().clone()
            step(model, optimizer, 1)
            step(model, optimizer, 2)
    assert not torch.equal(before, model.lm_head.weight)
    run = open_run(tmp_path / "run")
    assert not run.complete and run.table("steps").num_rows == 1


def test_a_ledger_over_an_existing_run_is_refused_before_training(tmp_path):
    finished(tmp_path / "run")
    model = build("llama_gqa")
    with pytest.raises(StoreError, match="exists already"):
        Ledger(model, torch.optim.SGD(model.parameters(), lr=0.1), out=tmp_path / "run")


def test_a_second_flush_of_a_step_is_a_part_of_its_own_in_order(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    for n in range(12):
        writer.append_rows("scans", [{"step": 0, "example": str(n)}])
        writer.flush(0)
    first = (writer.folder / "scans" / "part-00000000-0.parquet").read_bytes()
    writer.append_rows("scans", [{"step": 5, "example": "late"}])
    writer.flush(5)
    assert (writer.folder / "scans" / "part-00000000-0.parquet").read_bytes() == first
    assert Run(writer.folder).column("scans", "example") == [*map(str, range(12)), "late"]
    writer.drop_after(0)
    assert Run(writer.folder).column("scans", "example") == [*map(str, range(12))]
    assert Run(writer.finish()).column("scans", "example") == [*map(str, range(12))]


def test_rows_that_are_not_wanted_go_and_other_parts_stay_as_they_are(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    for names in ("ab", "cd", "ef"):
        writer.append_rows("scans", [{"step": 0, "example": n} for n in names])
        writer.flush(0)
    before = {p.name: p.stat().st_mtime_ns for p in (writer.folder / "scans").iterdir()}
    writer.keep_rows("scans", lambda rows: [e in "abc" for e in rows.column("example").to_pylist()], ["example"])
    after = {p.name: p.stat().st_mtime_ns for p in (writer.folder / "scans").iterdir()}
    assert Run(writer.folder).column("scans", "example") == ["a", "b", "c"]
    assert after.keys() == {"part-00000000-0.parquet", "part-00000000-0-1.parquet"}
    assert after["part-00000000-0.parquet"] == before["part-00000000-0.parquet"]


def test_a_table_written_anew_is_read_alone_even_where_its_parts_were_left(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "run", {})
    for n in "ab":
        writer.append_rows("scans", [{"step": 0, "example": n}])
        writer.flush(0)
    whole = Run(writer.folder).table("scans")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.replace("scans", whole)
    assert len(list((writer.folder / "scans").iterdir())) == 3
    assert Run(writer.folder).column("scans", "example") == ["a", "b"]
    run = Run(writer.finish())
    assert run.column("scans", "example") == ["a", "b"] and [p.name for p in run.files("scans")] == ["all.parquet"]
    assert len(list((run.folder / "scans").iterdir())) == 1


@pytest.mark.parametrize("how", ["resume", "force"])
def test_a_run_that_another_process_writes_is_left_alone(how, tmp_path):
    code = "import sys, time; from intaglio.store.run import RunWriter; "
    code += "w = RunWriter(sys.argv[1], {}); print('on', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"on\n"
            with pytest.raises(StoreError, match="being written by another process"):
                RunWriter(tmp_path / "run", {}, **{how: True})
            assert (tmp_path / "run.partial" / "manifest.json").exists()
        finally:
            other.kill()
    RunWriter(tmp_path / "run", {}, **{how: True}).finish()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_a_process_that_writes_no_more_leaves_its_unfinished_run_to_others(tmp_path):
    code = "import sys; from intaglio.store.run import RunWriter; RunWriter(sys.argv[1], {}, resume=True)"
    other = [sys.executable, "-c", code, str(tmp_path / "run")]
    writer = RunWriter(tmp_path / "run", {})
    assert b"being written by another process" in subprocess.run(other, capture_output=True).stderr
    writer.let_go()
    assert subprocess.run(other, capture_output=True).returncode == 0
