"""Bad input, each one clear line and exit code 2; nothing lost, nothing half-written that looks whole."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from conftest import save_subject, write_jsonl
from intaglio import checkpoint
from intaglio.store.run import open_run

ROWS = [{"text": "the cat sat"}, {"text": "a dog ran far"}, {"text": "one two three"}]
BOTH = pytest.mark.parametrize("command", ["train", "scan"])

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def data(tmp_path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", ROWS)


def nothing(out: Path) -> bool:
    return not list(out.parent.glob(out.name + "*")) and not list(out.parent.glob(f".{out.name}*"))


# --- subjects ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("spec", ["no-such-model", "./no-such-folder", "nobody/no-such-model", "missing.gguf", "data.jsonl"])
def test_an_unknown_model(command, spec, data, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(command, spec, data, "--out", tmp_path / "run")
    assert ("such model" in said or "model" in said) and (spec in said)
    assert nothing(tmp_path / "run")


def test_a_malformed_gguf(shared, data, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("INTAGLIO_CACHE", str(tmp_path / "cache"))
    path = shared / "models" / "malformed" / "onegin.gguf"
    assert "onegin.gguf" in refused("train", path, data, "--out", tmp_path / "run")
    assert nothing(tmp_path / "run") and not list((tmp_path / "cache").rglob("*.safetensors"))


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ.get("EVIL", "evil"),)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_pickle_is_refused_and_never_run(as_file, tiny, data, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    said = refused("train", folder / "pytorch_model.bin" if as_file else folder, data, "--out", tmp_path / "run")
    assert "pickle" in said and not (tmp_path / "evil").exists() and nothing(tmp_path / "run")


@pytest.mark.parametrize("harm", ["cut short", "not json", "no config", "no tokenizer"])
def test_a_damaged_folder(harm, tiny, data, refused, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny, folder)
    if harm == "cut short":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    elif harm == "not json":
        (folder / "config.json").write_text("{")
    else:
        for path in folder.glob("config.json" if harm == "no config" else "tokenizer*"):
            path.unlink()
    assert "damaged" in refused("train", folder, data, "--out", tmp_path / "run")
    assert nothing(tmp_path / "run")


# --- data and probes -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("content, words", [
    ("", ["empty"]), ("\n\n", ["empty"]), ('{"text": "a b"}\n{"text": ""}\n', ["row 1"]),
    ('{"text": "a b"}\n{"text": null}\n', ["row 1"]), ('{"text": "a b"}\n{"title": "a"}\n', ["row 1"]),
    ('{"text": "a b"}\n{"text": 3}\n', ["row 1"]), ('{"text": "a b"}\n["a"]\n', ["row 1"]),
    ('{"text": "a b"}\n{"text": \n', ["data.jsonl"]), ('{"text": "' + "long " * 60 + '"}\n', ["row 0", "too long"]),
    ('{"text": "a b"}\n{"messages": [{"role": "user", "content": "x"}]}\n', ["row 1"]),
    ('{"text": "a b"}\n{"text": "c \\ud800 d"}\n', ["row 1"]), ('{"text": "a b", "note": "\\udc00"}\n', ["row 0"]),
    ('{"text": "a b", "group": "\\ud800"}\n', ["row 0"]),
    ('{"prompt": "a"}\n', ["row 0"]), ('{"prompt": "a", "completion": ""}\n', ["row 0"]), ("\x00\xff", ["data.jsonl"]),
])  # fmt: skip
def test_data_that_cannot_be_trained_on(command, content, words, tiny, refused, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content.encode("latin-1"))
    said = refused(command, tiny, path, "--out", tmp_path / "run")
    assert all(word in said for word in words), said
    assert nothing(tmp_path / "run")


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "no-such-set", "nobody/no-such-set"])
def test_unknown_data(name, tiny, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name in refused("train", tiny, name, "--out", "run")
    assert not list(tmp_path.iterdir())


def test_a_long_row_is_cut_only_when_asked(tiny, refused, intaglio, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", [*ROWS, {"text": "far too long " * 12}])
    said = refused("train", tiny, data, "--out", tmp_path / "run", "--steps", 1)
    assert "row 3" in said and "158" in said and "--truncate" in said
    intaglio("train", tiny, data, "--out", tmp_path / "run", "--steps", 1, "--truncate", "--batch-size", 4)
    assert max(open_run(tmp_path / "run").table("examples").column("tokens").to_pylist()) == 128


@BOTH
def test_what_is_wrong_with_a_probe_is_said_before_any_work(command, tiny, data, intaglio, tmp_path, capsys):
    misread = "Привет, это довольно длинная строка".encode().decode("cp1251", "replace")
    rows = [ROWS[0], {"text": "quite another text"}, {"text": "far too long " * 12}, {"text": misread}]
    probe = write_jsonl(tmp_path / "p.jsonl", rows)
    intaglio(command, tiny, data, "--out", tmp_path / "run", "--probe", f"target={probe}", "--truncate", "--plan")
    said = " ".join(capsys.readouterr().err.split())
    assert "probe target: 1 of 4 texts trained on too: no evidence" in said
    assert "probe target: 1 of 4 texts cut to the longest" in said
    assert "probe target: 1 of 4 texts of a broken encoding, repaired" in said
    clean = write_jsonl(tmp_path / "clean.jsonl", rows[1:2])
    intaglio(command, tiny, data, "--out", tmp_path / "run", "--probe", f"target={clean}", "--plan")
    assert "probe target:" not in capsys.readouterr().err


@BOTH
@pytest.mark.parametrize("spec, words", [
    ("anchor=empty.txt", ["anchor", "empty"]), ("anchor=missing.txt", ["missing.txt"]), ("anchor", ["NAME=FILE"]),
    ("=d.txt", ["NAME=FILE"]),
    ("anchor=", ["NAME=FILE"]), ("a b=d.txt", ["NAME=FILE"]), ("anchor=long.txt", ["anchor", "too long"]),
    ("anchor=one.jsonl", ["anchor", "empty"]), ("../x=d.txt", ["NAME=FILE"]),
])  # fmt: skip
def test_a_probe_that_shows_nothing(command, spec, words, stories, data, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("long.txt").write_text("too long " * 300)
    Path("one.jsonl").write_text('{"prompt": "x", "completion": " "}\n')
    said = refused(command, stories, data, "--out", "run", "--max-tokens", 100, "--probe", spec)
    assert all(word in said for word in words), said
    assert nothing(tmp_path / "run")


def test_two_probes_of_one_name(tiny, data, refused, tmp_path):
    said = refused("train", tiny, data, "--out", tmp_path / "run", "--probe", f"a={data}", "--probe", f"a={data}")
    assert "two probes" in said and nothing(tmp_path / "run")


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [
    "--layers 1", "--layers a:b", "--layers 2:1", "--layers 0:9", "--layers -1:2", "--memory lots", "--memory -1GiB",
    "--memory 1TiB3",
    "--level all", "--lr 0", "--lr nan", "--lr inf", "--lr -1", "--steps 0", "--steps -3", "--epochs 0", "--epochs nan",
    "--epochs inf", "--epochs 1 --steps 1", "--batch-size 0", "--batch-size -2", "--accumulate 0", "--momentum 1.5",
    "--weight-decay -1", "--clip -1", "--warmup 2", "--warmup nan", "--lora 0", "--lora -4", "--seed -1", "--every 0",
    "--probe-every 0",
    "--checkpoint-every 0", "--checkpoint-every -5", "--keep-tokens 2", "--keep-tokens -1", "--keep-tokens nan",
    "--rescan -1", "--max-tokens 1", "--max-tokens 100000", "--group-momentum --lora 2", "--lang xx",
])  # fmt: skip
def test_a_value_that_makes_no_sense(words, tiny, data, refused, tmp_path):
    refused("train", tiny, data, "--out", tmp_path / "run", *words.split())
    assert nothing(tmp_path / "run")


# --- the folder of the run -----------------------------------------------------------------------


@BOTH
def test_an_existing_run_stays_unless_forced(command, tiny, data, refused, intaglio, tmp_path):
    words = [command, tiny, data, "--out", tmp_path / "run", *(["--steps", 1] if command == "train" else [])]
    intaglio(*words)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert "--force" in refused(*words)
    assert "--force" in refused(*words, "--resume")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    intaglio(*words, "--force")
    assert open_run(tmp_path / "run").complete and not (tmp_path / "run.partial").exists()


@BOTH
def test_a_folder_that_is_no_run_is_never_replaced(command, tiny, data, refused, tmp_path):
    for name in ("run", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    for out in ("run", "other"):
        refused(command, tiny, data, "--out", tmp_path / out, "--force")
    assert (tmp_path / "run" / "thesis.txt").exists() and (tmp_path / "other.partial" / "thesis.txt").exists()


@BOTH
@pytest.mark.parametrize("out", ["data.jsonl", "data.jsonl/run", ".", "..", "/", "/proc/run", "a" * 300])
def test_a_place_where_no_run_can_stand(command, out, tiny, data, refused, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(data, "data.jsonl")
    refused(command, tiny, data, "--out", out)
    refused(command, tiny, data, "--out", out, "--force")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["data.jsonl", "data.jsonl", "here"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(tiny, data, refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "writable" in refused("train", tiny, data, "--out", tmp_path / "closed" / "run")


def test_a_folder_of_another_owner(tiny, data, refused, tmp_path, monkeypatch):
    """What the superuser never meets, played."""
    plain = os.access
    monkeypatch.setattr(os, "access", lambda p, mode, **k: not (mode & os.W_OK and Path(p) == tmp_path) and plain(p, mode, **k))
    assert "writable" in refused("train", tiny, data, "--out", tmp_path / "run")


@pytest.mark.parametrize("command", ["report", "rows", "query", "compare"])
def test_reading_what_is_no_run(command, refused, tmp_path):
    more = {"rows": ["--out", tmp_path / "o"], "query": ["select 1"], "compare": [tmp_path]}.get(command, [])
    for folder in (tmp_path / "nothing", tmp_path):
        assert "run" in refused(command, folder, *more)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    assert "schema version" in refused(command, tmp_path, *more)
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json" in refused(command, tmp_path, *more)


# --- while it runs -------------------------------------------------------------------------------


def poisoned(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_loss_that_is_no_number_names_the_batch_and_keeps_the_run(tiny, data, refused, intaglio, tmp_path):
    said = refused("train", poisoned(tiny, tmp_path / "nan"), data, "--out", tmp_path / "run", "--batch-size", 2)
    assert "nan" in said and "step 0" in said and "rows" in said and f"kept in {tmp_path / 'run.partial'}" in said
    assert open_run(tmp_path / "run").manifest["nonfinite"] == {"step": 0}
    assert not (tmp_path / "run").exists() and open_run(tmp_path / "run").table("steps").num_rows == 0


def test_a_loss_that_becomes_no_number_keeps_what_came_before(tiny, data, refused, intaglio, tmp_path):
    words = ["train", tiny, data, "--out", tmp_path / "run", "--lr", 1e30, "--optimizer", "sgd", "--clip", 0,
             "--schedule", "constant", "--warmup", 0, "--steps", 12, "--batch-size", 2, "--checkpoint-every", 1]  # fmt: skip
    said = refused(*words)
    run = open_run(tmp_path / "run")
    assert not run.complete and run.folder.name == "run.partial"
    taken = run.table("steps").num_rows
    assert 1 <= taken < 12 and f"step {taken}" in said and " on rows " in said
    intaglio("query", tmp_path / "run", "select count(*) from visits")
    intaglio("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000
    assert said.split("on rows")[1] == refused(*words, "--resume").split("on rows")[1]


def test_scan_of_a_poisoned_model(tiny, data, refused, tmp_path):
    said = refused("scan", poisoned(tiny, tmp_path / "nan"), data, "--out", tmp_path / "run")
    assert "nan" in said and not (tmp_path / "run").exists()


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@BOTH
@pytest.mark.parametrize("where", ["parquet", "rename", "state", "originals"])
def test_a_disk_that_fills(command, where, tiny, data, refused, intaglio, tmp_path, monkeypatch):
    steps = ["--steps", 3, "--checkpoint-every", 1] if command == "train" else []
    words = [command, tiny, data, "--out", tmp_path / "run", *steps]
    if where == "state" and command == "scan":
        pytest.skip("a scan keeps no state")
    with monkeypatch.context() as patch:
        if where == "parquet":
            patch.setattr(pq, "write_table", no_space)
        elif where == "rename":
            plain = os.replace
            patch.setattr(os, "replace", lambda a, b: no_space() if "part-" in Path(b).name else plain(a, b))
        elif where == "state":
            from safetensors import SafetensorError

            def full(*_, **__):
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

            patch.setattr(checkpoint, "save_file", full)
        else:
            from intaglio import files

            patch.setattr(files, "json", SimpleNamespace(dumps=no_space))  # there alone: reading uses it, too
        said = refused(*words)
    assert "No space left" in said
    assert not (tmp_path / "run").exists(), "it looks whole"
    assert not [p for p in (tmp_path / "run.partial").rglob(".*.tmp")]
    for path in (tmp_path / "run.partial").rglob("*.parquet"):
        pq.read_table(path)
    intaglio(*words, "--resume")
    assert open_run(tmp_path / "run").complete
    assert len((tmp_path / "run" / "rows.jsonl").read_text().splitlines()) == len(ROWS)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting needs the superuser")
def test_a_disk_that_is_really_full(tiny, data, refused, intaglio, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        words = ["train", tiny, data, "--out", disk / "run", "--steps", 20, "--checkpoint-every", 1]
        assert "No space left" in refused(*words)
        assert not (disk / "run").exists() and (disk / "run.partial" / "manifest.json").exists()
        run = open_run(disk / "run")
        states = [int(step) for step in run.manifest.get("checkpoints", {})]
        kept = {table: run.column(table, "step") for table in ("steps", "visits", "tokens", "parts")}
        assert kept["steps"] == list(range(len(kept["steps"]))) and len(kept["steps"]) >= max(states, default=0)
        assert kept["steps"], "what was written before the disk was full is kept"
        for table, steps in kept.items():
            assert {s for s in steps if s < max(states, default=0)} == set(range(max(states, default=0))), table
        assert not list(disk.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_page_that_cannot_be_written_leaves_nothing(tiny, data, intaglio, refused, tmp_path, monkeypatch):
    intaglio("train", tiny, data, "--out", tmp_path / "run", "--steps", 1)
    plain = Path.write_text

    def full(self, text, **options):
        if self.name.endswith(".html.tmp"):
            plain(self, text[:100], **options)
            no_space()
        return plain(self, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left" in refused("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert not list(tmp_path.glob("*page*"))
    assert "no such folder" in refused("report", tmp_path / "run", "--out", tmp_path / "missing" / "page.html")


def test_a_state_cut_short_is_not_taken_for_whole(tiny, data, intaglio, tmp_path):
    """A state without moments, or half renamed, is passed over for the one before it."""
    run = tmp_path / "run.partial"
    intaglio("train", tiny, data, "--out", tmp_path / "run", "--steps", 3, "--checkpoint-every", 1)
    (tmp_path / "run").rename(run)
    newest = checkpoint.states(run)[-1]
    (newest / "optimizer.safetensors").unlink()
    assert checkpoint.resumable(run) == checkpoint.states(run)[-2]
    (checkpoint.states(run)[-2] / "state.json").unlink()
    assert checkpoint.resumable(run) is None


def test_damaged_tables_are_named(tiny, data, intaglio, refused, tmp_path):
    intaglio("train", tiny, data, "--out", tmp_path / "run", "--steps", 1)
    for path in (tmp_path / "run" / "visits").glob("*.parquet"):
        path.write_bytes(b"PAR1 not really")
    for words in (["report"], ["query", "select * from visits"], ["rows", "--out", tmp_path / "o.jsonl"]):
        assert "visits" in refused(words[0], tmp_path / "run", *words[1:])


def test_the_exit_code_of_the_process(tmp_path):
    words = [sys.executable, "-m", "intaglio.cli", "report", str(tmp_path / "none")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("intaglio: no such run") and done.stderr.count("\n") == 1


def test_a_model_that_is_no_language_model(data, tmp_path, refused):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    LlamaForSequenceClassification(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                                               vocab_size=300)).save_pretrained(tmp_path / "classifier")  # fmt: skip
    save_subject(tmp_path / "tokens")
    for path in (tmp_path / "tokens").glob("tokenizer*"):
        shutil.copy(path, tmp_path / "classifier")
    assert "classifier" in refused("train", tmp_path / "classifier", data, "--out", tmp_path / "run")
    assert nothing(tmp_path / "run")


# --- before any work -----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [
    ("--steps", 0), ("--layers", "abc"), ("--layers", "3:3"), ("--lora", 0), ("--warmup", 2), ("--batch-size", 0),
    ("--accumulate", 0), ("--lr", -1), ("--momentum", 1), ("--clip", -1), ("--seed", -1), ("--epochs", 0),
    ("--weight-decay", -1), ("--max-tokens", 1), ("--probe", "nothing"), ("--resume",), ("--every", 0),
], ids=str)  # fmt: skip
def test_options_are_checked_before_a_model_is_loaded(words, data, refused, tmp_path, monkeypatch):
    from intaglio.model import subject

    monkeypatch.setattr(subject, "load_subject", lambda *_, **__: pytest.fail("the model was loaded"))
    refused("train", "no-such-model", data, "--out", tmp_path / "run", *words)
    assert nothing(tmp_path / "run")


@pytest.mark.parametrize("words", [
    ("--batch-size", 0), ("--epochs", 0), ("--epochs", "nan"), ("--lr", 0), ("--lr", "inf"), ("--seed", -1),
    ("--batch-size", -2, "--rotation", "both"), ("--batch-size", 0, "--plan"),
], ids=str)  # fmt: skip
def test_options_of_steps_are_checked_before_a_model_is_loaded(words, refused, tmp_path, monkeypatch):
    from intaglio.commands import job
    from intaglio.model import subject

    monkeypatch.setattr(subject, "load_subject", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setattr(job.Job, "load", lambda *_: pytest.fail("the model was loaded"))
    said = refused("steps", "no-such-model", "--out", tmp_path / "run", *words)
    assert "expected" in said and not list(tmp_path.glob("run*"))


@BOTH
def test_a_folder_that_cannot_be_made_is_refused_before_a_model_is_loaded(command, data, refused):
    assert "cannot write to /proc" in refused(command, "no-such-model", data, "--out", "/proc/x/y")


@BOTH
def test_nothing_to_resume_is_one_line(command, data, refused, tmp_path):
    said = refused(command, "no-such-model", data, "--out", tmp_path / "run", "--resume")
    assert "there is no unfinished run at" in said and nothing(tmp_path / "run")


def test_an_unknown_model_is_one_line_alone(data, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "intaglio", "train", "nosuchmodel", str(data), "--out", str(tmp_path / "run")],
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("intaglio: no such model") and done.stderr.count("\n") == 1, done.stderr


def test_lora_says_nothing_of_what_a_library_will_rename(tiny, data, tmp_path, recwarn):
    from intaglio.commands import train

    train.train(str(tiny), str(data), out=tmp_path / "run", steps=1, lora=2)
    assert not [w for w in recwarn if "is_gradient_checkpointing" in str(w.message)]
