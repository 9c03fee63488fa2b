"""Models and data sets of the Hub, fetched from a stand-in on this machine that speaks its protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import save_subject
from tests.hub import hub

from intaglio.store.run import open_run

Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    root = tmp_path_factory.mktemp("hub")
    save_subject(root / "models" / "someone" / "tiny")
    save_subject(root / "models" / "gated" / "tiny")
    pickled = save_subject(root / "models" / "someone" / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    facts = root / "datasets" / "someone" / "facts"
    (facts / "ru").mkdir(parents=True)
    rows = [{"text": f"row {i}: the square is {i * i}", "group": "ab"[i % 2]} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), facts / "train.parquet")
    pq.write_table(pa.table({"text": [f"солнце {i}" for i in range(8)]}), facts / "ru" / "train.parquet")
    (facts / "ru" / "broken.parquet").write_bytes(b"PAR1 no table PAR1")
    (facts / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: train.parquet\n  default: true\n"
        "- config_name: ru\n  data_files: ru/train.parquet\n"
        "- config_name: bad\n  data_files: ru/broken.parquet\n---\n"
    )
    with hub(root) as found:
        yield found


@pytest.fixture
def command(served: tuple[str, list[str]], tmp_path: Path) -> Command:
    """`intaglio` in a process of its own, since the libraries read the hub's address as they are imported."""
    def run(*words: object, **env: str) -> subprocess.CompletedProcess:
        env = {"HF_ENDPOINT": served[0], "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*",
               "no_proxy": "*", **env}  # fmt: skip
        env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "INTAGLIO_CACHE": str(tmp_path / "cache"), **env}
        served[1].clear()
        return subprocess.run([sys.executable, "-m", "intaglio.cli", *map(str, words)], env=env, cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)  # fmt: skip

    return run


def test_a_model_and_a_data_set_of_the_hub_are_fetched_once(command: Command, served, tmp_path: Path) -> None:
    words = ("train", "someone/tiny", "someone/facts:en", "--steps", 2, "--probe", "anchor=someone/facts:ru")
    first = command(*words, "--out", "a")
    assert first.returncode == 0, first.stderr
    assert "fetching someone/tiny" in first.stderr
    assert any("model.safetensors" in line for line in served[1]) and any("train.parquet" in line for line in served[1])
    run = open_run(tmp_path / "a")
    assert {row["group"] for row in run.table("examples").to_pylist()} == {"a", "b"}
    assert run.sql("select max(closure) from steps").fetchall()[0][0] < 1e-4
    assert run.sql("select count(*) from probes").fetchall()[0][0] > 0

    again = command(*words, "--out", "b")
    assert again.returncode == 0 and "fetching" not in again.stderr
    fetched = [line for line in served[1] if line.startswith("GET") and "/resolve/" in line and "README" not in line]
    assert fetched == []

    away = command(*words, "--out", "c", HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 2 and "HF_HUB_OFFLINE=1" in away.stderr.splitlines()[-1]
    offline = command(*words, "--out", "c", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and served[1] == [], offline.stderr
    losses = [open_run(tmp_path / name).table("steps")["loss_nats"] for name in "abc"]
    assert losses[0] == losses[1] == losses[2]


def test_what_the_hub_has_not_or_keeps_is_one_line(command: Command, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"text": "one"}\n')
    for subject, rows, said in (
        ("someone/else", data, "no such model, neither as a folder nor on the hub"),
        ("gated/tiny", data, "gated"),
        ("someone/pickled", data, "safetensors"),
        ("someone/tiny", "someone/nothing", "no such data, neither as a file nor on the hub"),
        ("someone/tiny", "someone/facts:de", "BuilderConfig 'de' not found"),
        ("someone/tiny", "someone/facts:bad", "cannot be read: Parquet"),
    ):
        done = command("train", subject, rows, "--out", "run")
        assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr
        assert done.stderr.splitlines()[-1].startswith("intaglio: ") and "Traceback" not in done.stderr
        assert not list(tmp_path.glob("run*"))
    assert not list(tmp_path.rglob("*.bin")), "a pickle was fetched"


def test_a_scan_streams_a_data_set_of_the_hub(command: Command, tmp_path: Path) -> None:
    done = command("scan", "someone/tiny", "someone/facts:ru", "--out", "scan")
    assert done.returncode == 0, done.stderr
    assert open_run(tmp_path / "scan").table("examples").num_rows == 8

