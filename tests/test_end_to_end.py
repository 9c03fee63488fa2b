"""From a file of texts to a page, through the command line alone, as a person would."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import write_jsonl
from intaglio.analyse import analyse_run
from intaglio.cli import main
from intaglio.store.run import open_run
from planted import planted

QUERY = "select example, sum(shift) from visits group by 1 order by 2 desc limit 10"  # the README's own
HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "{{ 7 * 7 }} {% raw %}", "&lt;b&gt; \u2028 \u202e \x00",
    "Она читает «Онегина» — и смеётся", "ordinary text about a cat", "another one about a dog", "<!--", "']]>\"", "𝕏 😀 e\u0301",
]  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def visible(page: str) -> str:
    """What a reader sees: no styles, no scripts, no tags."""
    page = re.sub(r"<(script|style)\b[^>]*>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


# --- any data, a tiny model ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tiny, tmp_path_factory) -> Path:
    """A finished run on texts that would break a careless page."""
    folder = tmp_path_factory.mktemp("hostile")
    data = write_jsonl(folder / "data.jsonl", ({"text": t, "group": t[:12]} for t in HOSTILE))
    anchor = write_jsonl(folder / "anchor.jsonl", [{"text": HOSTILE[0]}, {"text": "plain"}])
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(tiny), str(data), "--out", str(folder / "run"), "--epochs", "5", "--lr", "1e-3",
              "--probe", f"anchor={anchor}", "--checkpoint-every", "5"])  # fmt: skip
    assert not stopped.value.code
    return folder / "run"


def test_training_ends_with_a_summary_and_the_path_of_a_page(tiny, intaglio, tmp_path, capsys):
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": "the cat sat"}, {"text": "a dog ran"}])
    intaglio("train", tiny, data, "--out", tmp_path / "run", "--steps", 2)
    out, err = capsys.readouterr()
    assert out.strip().splitlines()[-1] == str(tmp_path / "run" / "report.html")
    assert "books close" in (out + err) and "trained on" in err


def test_nothing_in_the_data_becomes_part_of_the_page(hostile, intaglio, tmp_path):
    for lang in ("en", "ru"):
        intaglio("report", hostile, "--lang", lang, "--out", tmp_path / f"{lang}.html")
        page = (tmp_path / f"{lang}.html").read_text(encoding="utf-8")
        assert "<script>alert" not in page and "<img src=x" not in page and "<!--<" not in page
        assert "{{ 7 * 7 }}" in visible(page), "the text itself is shown as it is"
        assert "Она читает «Онегина»" in visible(page)
        assert not re.search(r"""(?:src|href)=["']?https?://""", page), "the page asks the network for something"
        assert len(page.encode()) < 5_000_000


def test_the_readmes_query_works_as_written(hostile, intaglio, capsys):
    intaglio("query", hostile, QUERY)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["example", "sum(shift)"] and len(table) == 1 + min(10, len(HOSTILE))
    sums = [float(line.split()[1]) for line in table[1:]]
    assert sums == sorted(sums, reverse=True)


def test_rows_part_the_data_in_two(hostile, intaglio, tmp_path):
    intaglio("rows", hostile, "--worst", 4, "--out", tmp_path / "review.jsonl", "--drop", tmp_path / "rest.jsonl")
    worst, rest = lines(tmp_path / "review.jsonl"), lines(tmp_path / "rest.jsonl")
    assert len(worst) == 4 and len(rest) == len(HOSTILE) - 4
    chosen = {w["intaglio"]["row"] for w in worst}
    assert [r["text"] for r in rest] == [t for n, t in enumerate(HOSTILE) if n not in chosen]
    assert all(w["text"] == HOSTILE[w["intaglio"]["row"]] and w["intaglio"]["rank_by_loss"] for w in worst)


def test_a_run_that_is_still_going_has_a_page_and_rows(tiny, intaglio, tmp_path, monkeypatch, capsys):
    from intaglio import train as module

    plain, seen = module.train, []

    def train(*args, after_step, **options):
        def after(step, loss):
            after_step(step, loss)
            if step == 7:
                seen.append(open_run(tmp_path / "run").folder)
                raise KeyboardInterrupt

        return plain(*args, after_step=after, **options)

    monkeypatch.setattr(module, "train", train)
    data = write_jsonl(tmp_path / "d.jsonl", ({"text": t} for t in HOSTILE))
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(tiny), str(data), "--out", str(tmp_path / "run"), "--epochs", "5"])
    assert stopped.value.code == 130 and "kept" in capsys.readouterr().err
    assert seen == [tmp_path / "run.partial"] and not (tmp_path / "run").exists()
    intaglio("report", tmp_path / "run", "--out", tmp_path / "page.html")
    intaglio("query", tmp_path / "run", QUERY)
    intaglio("rows", tmp_path / "run", "--worst", 3, "--out", tmp_path / "w.jsonl", "--drop", tmp_path / "rest.jsonl")
    assert len(lines(tmp_path / "w.jsonl")) == 3 and len(lines(tmp_path / "rest.jsonl")) == len(HOSTILE) - 3
    assert "<html" in (tmp_path / "page.html").read_text()


def test_a_scan_has_a_page_and_rows_and_can_be_compared(tiny, hostile, intaglio, tmp_path, capsys):
    data = write_jsonl(tmp_path / "d.jsonl", ({"text": t} for t in HOSTILE))
    anchor = write_jsonl(tmp_path / "a.jsonl", [{"text": "plain words"}])
    intaglio("scan", tiny, data, "--out", tmp_path / "scan", "--probe", f"anchor={anchor}")
    assert (tmp_path / "scan" / "report.html").stat().st_size > 10_000
    intaglio("rows", tmp_path / "scan", "--worst", 3, "--out", tmp_path / "w.jsonl")
    assert len(lines(tmp_path / "w.jsonl")) == 3
    intaglio("compare", hostile, tmp_path / "scan", "--out", tmp_path / "both.html")
    assert "<script>alert" not in (tmp_path / "both.html").read_text()
    capsys.readouterr()


def test_leaps_and_bridges_on_any_model(stories, intaglio, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    intaglio("steps", stories, "--epochs", 1, "--level", "norms")
    assert capsys.readouterr().out.strip().endswith("runs/steps-stories260k-a/report.html")
    groups = set(open_run("runs/steps-stories260k-a").table("examples").column("group").to_pylist())
    assert groups == {"leap", "bridge", "conflict", "control", "noise"}


# --- what was planted is found -------------------------------------------------------------------


def auc(order: list[int], planted_rows: tuple[int, ...]) -> float:
    """Chance that a planted row stands before another one."""
    places = [n for n, row in enumerate(order) if row in planted_rows]
    pairs = len(places) * (len(order) - len(places))
    return 1 - (sum(places) - len(places) * (len(places) - 1) / 2) / pairs


def table_of(page: str) -> dict[int, dict[str, float]]:
    """The page's table of all examples: first data row -> its numbers by column."""
    found = {}
    keys = re.findall(r'<th scope="col" data-key="([^"]+)"[^>]* class="n"', page)
    for line in re.findall(r'<tr id="e-\w+">.*?</tr>', page, re.S):
        cells = re.findall(r'data-v="([^"]*)"', line)
        row = int(re.search(r'data-tip="[^"]*? data rows (\d+)', line)[1])
        found[row] = {key: float(v) for key, v in zip(keys, cells, strict=True) if v}
    return found


def listed(page: str, title: str) -> list[int]:
    """The first data rows of the examples in one of the page's lists, in order."""
    row_of = {e: int(r) for e, r in re.findall(r'<tr id="e-(\w+)">.*?data-tip="[^"]*? data rows (\d+)', page, re.S)}
    part = page.split(f"<h3>{title}</h3>", 1)[1].split("<h3>", 1)[0]
    return [row_of[e] for e in dict.fromkeys(re.findall(r'href="#e-(\w+)"', part))]


@pytest.mark.real
def test_what_was_planted_in_real_data_is_where_the_page_says(intaglio, tmp_path, capsys):
    """Ten seconds of training on the last two layers of the built-in model, with loss alone beside it.

    Printed, not asserted: which of the two orders is better. On data as clean as this, with wrong
    answers that are plainly off the question, loss alone finds them at least as well.
    """
    rows, truth = planted(seed=1, n=30)
    data, run = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "run"
    intaglio("train", "smollm2", data, "--out", run, "--layers", "28:30", "--epochs", 2, "--lr", 2e-4)
    said = " ".join(capsys.readouterr().err.split())
    intaglio("rows", run, "--worst", 30, "--out", tmp_path / "all.jsonl")
    found = [line["intaglio"] for line in lines(tmp_path / "all.jsonl")]
    assert sorted(f["row"] for f in found) == list(range(30))

    others = {*truth.canary, *truth.duplicate}
    orders = {"all six orders": found, "loss alone": sorted(found, key=lambda f: f["rank_by_loss"])}
    with capsys.disabled():
        for name, order in orders.items():
            places = [f["row"] for f in order if f["row"] not in others]
            hits = np.mean([row in truth.mislabelled for row in places[: len(truth.mislabelled)]])
            print(f"\n  mislabelled, {name}: AUC {auc(places, truth.mislabelled):.2f}, among the first six {hits:.0%}", end="")
            assert auc(places, truth.mislabelled) > 0.65, f"{name} is hardly better than chance"

    a, b = truth.duplicate
    assert f"{a} = {b}" in said, "the copy is named before training"
    assert [a, b] in open_run(run).table("examples").column("row").to_pylist()
    assert " = ".join(map(str, truth.canary)) in said, "the secret's rows are named as near duplicates"

    source = (run / "report.html").read_text(encoding="utf-8")
    table, moved = table_of(source), listed(source, "Moved the model most")
    by_loss = sorted(table, key=lambda row: -(table[row]["first"] + table[row]["last"]))
    places = [row for row in by_loss if row not in others]
    with capsys.disabled():
        print(f"\n  on the page, by first + last loss: AUC {auc(places, truth.mislabelled):.2f}; under 'Moved the model most': "
              f"{sum(row in truth.mislabelled for row in moved)} mislabelled of {len(moved)}", end="")  # fmt: skip
    assert auc(places, truth.mislabelled) > 0.9, "the table of all examples, sorted by its losses, has them at its top"
    share = lambda rows: sum(row in moved for row in rows) / len(rows)  # noqa: E731
    assert share(truth.mislabelled) > 2 * share(truth.clean), "they stand in the list of what moved the model most"

    findings, page = analyse_run(open_run(run)), visible(source)
    groups = {g.group: g for g in findings.groups}
    per_token = {name: g.shift_abs_u_per_1000_tokens.value for name, g in groups.items()}
    assert per_token["mislabelled"] > 1.3 * per_token["clean"], "wrong answers move the model more"
    assert max(open_run(run).table("steps").column("closure").to_pylist()) < 1e-4, "the books close"
    near = page[page.index("Near duplicates") :][:600]
    assert len(set(re.findall(r"(Ana|Boris|Chidi) asks", near))) >= 2, "the page shows the secret's rows as alike"
