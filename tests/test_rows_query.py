"""`intaglio rows` and `intaglio query`: original rows with reasons; SQL that can only read the run."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tests.synthetic import World, write_run

from intaglio.analyse.worst import _is_reason
from intaglio.cli import main
from intaglio.store.run import open_run

WORLD = World(noisy=(3, 7), killed=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_run(folder, WORLD)
    rows = [{"text": f"line {i}\u2028«ж»", "group": "x", "extra": {"n": i}} for i in range(WORLD.examples)]
    (open_run(folder).folder / "rows.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")  # fmt: skip
    return folder


def intaglio(*words) -> None:
    """Run the command line, which must succeed."""
    try:
        main([str(w) for w in words])
    except SystemExit as stopped:
        assert not stopped.code


def fails(capsys, *words) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(w) for w in words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("intaglio: ")
    return said


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_rows_are_the_originals_with_reason_evidence_and_both_ranks(run, tmp_path, capsys):
    intaglio("rows", run, "--worst", 5, "--out", tmp_path / "w.jsonl", "--drop", tmp_path / "rest.jsonl")
    worst, rest = lines(tmp_path / "w.jsonl"), lines(tmp_path / "rest.jsonl")
    assert len(worst) == 5 and len(rest) == WORLD.examples - 5
    assert {w["intaglio"]["row"] for w in worst[:2]} == {3, 7}
    for line in worst:
        added = line.pop("intaglio")
        assert line == {"text": f"line {added['row']}\u2028«ж»", "group": "x", "extra": {"n": added["row"]}}
        assert added["reason"] and added["rank_by_loss"] and added["evidence"]
    numbers = [r["extra"]["n"] for r in rest]
    assert numbers == sorted(numbers) and not {3, 7} & set(numbers)
    assert "5 rows" in capsys.readouterr().out


def test_reasons_say_what_was_measured(run, tmp_path):
    intaglio("rows", run, "--worst", 2, "--out", tmp_path / "w.jsonl")
    for line in lines(tmp_path / "w.jsonl"):
        assert "100% of its tokens contradict" in line["intaglio"]["reason"]
        assert "fell by only 0%" in line["intaglio"]["reason"]


def test_a_number_that_is_nothing_is_no_reason():
    everyone = np.linspace(0.0, 0.001, 20)
    assert not _is_reason("level_residual", 1e-16, everyone) and _is_reason("level_residual", 0.4, everyone)
    short, long = -np.linspace(0.0, 0.015, 20), -np.linspace(0.0, 0.9, 20)
    assert not _is_reason("not_learnt", 0.0, short) and _is_reason("not_learnt", 0.0, long)


def test_without_the_originals_previews_serve_but_the_rest_cannot_be_written(tmp_path, capsys):
    bare = write_run(tmp_path / "bare")
    intaglio("rows", bare, "--worst", 1, "--out", tmp_path / "w.jsonl")
    assert lines(tmp_path / "w.jsonl")[0]["preview"].startswith("text ")
    fails(capsys, "rows", bare, "--out", tmp_path / "v.jsonl", "--drop", tmp_path / "d.jsonl")
    assert not (tmp_path / "v.jsonl").exists()


def test_more_rows_than_there_are_is_all_of_them(run, tmp_path):
    intaglio("rows", run, "--worst", 999, "--out", tmp_path / "w.jsonl", "--drop", tmp_path / "d.jsonl")
    assert len(lines(tmp_path / "w.jsonl")) == WORLD.examples and lines(tmp_path / "d.jsonl") == []


def test_rows_refuses_in_one_line(run, tmp_path, capsys):
    out = tmp_path / "w.jsonl"
    assert "at least 1" in fails(capsys, "rows", run, "--worst", 0, "--out", out)
    assert "no such run" in fails(capsys, "rows", tmp_path / "none", "--out", out)
    assert "never written into" in fails(capsys, "rows", run, "--out", open_run(run).folder / "w.jsonl")
    assert "same file" in fails(capsys, "rows", run, "--out", out, "--drop", out)
    assert "no such folder" in fails(capsys, "rows", run, "--out", tmp_path / "no" / "w.jsonl")
    assert not out.exists()


@pytest.mark.parametrize("option", ["--out", "--drop"])
def test_rows_never_replaces_the_data_it_came_from(option, tmp_path, capsys):
    folder, data, other = tmp_path / "run", tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    data.write_text('{"text": "dear to me"}\n')
    write_run(folder, World())
    place = open_run(folder).folder
    (place / "rows.jsonl").write_text('{"text": "dear to me"}\n' * World().examples)
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | {"data": {"name": str(data)}}))
    words = ["--out", data] if option == "--out" else ["--out", other, "--drop", data]
    assert "the data that the run was made from" in fails(capsys, "rows", folder, *words)
    assert data.read_text() == '{"text": "dear to me"}\n' and not other.exists()
    intaglio("rows", folder, "--out", other)


SQL = "select step, example, shift from visits order by step, slot limit 2"


def test_query_prints_a_table_csv_and_json(run, capsys):
    truth = open_run(run).sql(SQL).fetchall()
    intaglio("query", run, SQL)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["step", "example", "shift"] and truth[0][1] in table[1]
    intaglio("query", run, SQL, "--format", "csv")
    assert capsys.readouterr().out.splitlines()[1] == ",".join(str(v) for v in truth[0])
    intaglio("query", run, SQL, "--format", "json")
    assert [tuple(r.values()) for r in json.loads(capsys.readouterr().out)] == truth


def test_query_json_keeps_columns_of_one_name(run, capsys):
    intaglio("query", run, "select 1 a, 2 a, 3 a_2, 4 a, sum(step), sum(step) from visits", "--format", "json")
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row.items())[:4] == [("a", 1), ("a_3", 2), ("a_2", 3), ("a_4", 4)]
    assert row["sum(step)"] == row["sum(step)_2"]


def test_query_limits_and_says_how_much_is_left(run, capsys):
    intaglio("query", run, "select * from visits")
    assert "94 more rows" in capsys.readouterr().out
    intaglio("query", run, "select * from visits", "--format", "csv", "--limit", 3)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_query_json_survives_bytes_and_nan(run, capsys):
    sql = r"select '\xC3\xA9\xC3'::blob as b, ['\xC3\xA9'::blob] as l, 'nan'::double as x from vocab limit 1"
    intaglio("query", run, sql, "--format", "json")
    assert json.loads(capsys.readouterr().out)[0] == {"b": "é\ufffd", "l": ["é"], "x": None}
    intaglio("query", run, sql, "--format", "csv", "--limit", 1)
    assert capsys.readouterr().out.splitlines()[1].startswith("é\ufffd,")


def test_query_shows_the_tables_alone_and_changes_none(run, capsys):
    intaglio("query", run, "show tables", "--format", "csv")
    names = capsys.readouterr().out.split()[1:]
    assert "visits" in names and not [n for n in names if n.startswith("_")]
    for sql in ("drop view steps", "create table a as select 1", "select 1; drop view steps", "set threads = 1"):
        assert "a query only reads" in fails(capsys, "query", run, sql)
    for sql in ("describe steps", "with a as (select 1) select * from a", "from steps", "explain select 1"):
        intaglio("query", run, sql)


@pytest.mark.parametrize("sql", ["selec", "select nope from visits", "select * from nowhere", ""])
def test_bad_sql_is_one_line(run, capsys, sql):
    fails(capsys, "query", run, sql)


def test_sql_can_neither_write_nor_read_elsewhere(run, tmp_path, capsys):
    folder = open_run(run).folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    visits = next(folder.glob("visits/*.parquet"))
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for sql in (
        f"copy (select 1) to '{visits}' (format parquet, use_tmp_file false)",
        f"copy (select 1) to '{tmp_path / 'out.csv'}'",
        f"export database '{tmp_path / 'out'}'",
        f"attach '{tmp_path / 'out.db'}'",
        f"explain analyze copy (select 1) to '{tmp_path / 'out.csv'}'",
        f"select * from read_csv('{secret}')",
        f"select * from read_text('{secret}')",
        f"select * from '{secret}'",
        f"select * from '{visits}'",
        f"select * from glob('{tmp_path}/*')",
        "set enable_external_access = true",
        "reset enable_external_access",
        "install httpfs",
    ):
        fails(capsys, "query", run, sql)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret.csv"]


@pytest.mark.parametrize("command", ["rows", "query"])
def test_help_shows_an_example_and_loads_no_torch(command):
    code = f"import sys; from intaglio.cli import app; app(['{command}', '--help'], result_action='return_value'); " \
           "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules), sys.modules.keys()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-400:]
    assert f"intaglio {command} runs/mine" in done.stdout and "[required]" in done.stdout


def test_a_run_that_knows_no_rows_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", World())
    monkeypatch.setattr("intaglio.commands.rows.worst_rows", lambda ranked, worst: [])
    with pytest.raises(SystemExit) as stop:
        main(["rows", str(tmp_path / "run"), "--out", str(tmp_path / "out.jsonl")])
    assert run is not None and stop.value.code == 2 and not (tmp_path / "out.jsonl").exists()
    assert "does not say which rows" in capsys.readouterr().err
