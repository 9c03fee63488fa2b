"""`intaglio scan`: an interrupted scan is the same scan; what it measures is what training would."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import WORDS, save_subject, write_jsonl, write_words
from intaglio.commands import prepare as ready
from intaglio.commands import scan as command
from intaglio.commands import scoring
from intaglio.commands import train as training
from intaglio.errors import InputError, RecipeError
from intaglio.store.run import Run, RunWriter, open_run

TABLES = ("scans", "scan_credits", "sketches", "examples", "vocab", "probes", "probe_items")
TEXTS = (*WORDS, WORDS[0])  # one of them twice

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def data(tmp_path) -> Path:
    return write_words(tmp_path / "data.jsonl", TEXTS)


@pytest.fixture
def probes(tmp_path) -> list[str]:
    anchor = write_jsonl(tmp_path / "anchor.jsonl", [{"text": "a cat ran"}, {"text": "two dogs"}])
    return [f"anchor={anchor}", f"target={write_jsonl(tmp_path / 'target.jsonl', [{'text': 'red and blue'}])}"]


def scan(subject: Path, data: Path, out: Path, **options) -> Run:
    command.scan(str(subject), str(data), out=out, **({"batch_size": 2} | options))
    return open_run(out)


def rows(run: Run, table: str) -> list[dict]:
    return sorted(run.table(table).to_pylist(), key=lambda r: json.dumps(r, default=repr, sort_keys=True))


def keys(run: Run, table: str) -> list[tuple]:
    names = [c for c in ("step", "slot", "example", "probe", "item", "token") if c in run.table(table).column_names]
    return [tuple(r[n] for n in names) for r in rows(run, table)]


def assert_same(a: Run, b: Run) -> None:
    for table in TABLES:
        assert rows(a, table) == rows(b, table), table
        assert len(set(keys(a, table))) == len(keys(a, table)), f"two rows of one key in {table}"
    assert a.complete and b.complete


class Killed(Exception):
    """No part of Intaglio expects it."""


@pytest.fixture
def every_batch_is_flushed(monkeypatch):
    monkeypatch.setattr(scoring, "FLUSH_SECONDS", -1.0)


def stops_in_flush(monkeypatch, number: int, table: str) -> None:
    """Stop in the flush of one table, so that its fellows are on disk and it is not."""
    import pyarrow.parquet as pq

    plain, seen = pq.write_table, []

    def write(rows, path, **options):
        if Path(path).parent.name == table:
            seen.append(path)
            if len(seen) == number:
                raise Killed
        plain(rows, path, **options)

    monkeypatch.setattr(pq, "write_table", write)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("table", ["scans", "scan_credits", "sketches", "examples", "probes"])
def test_interrupted_is_uninterrupted(table, number, tiny, data, probes, tmp_path, monkeypatch, every_batch_is_flushed):
    if table in ("examples", "probes") and number > 1:
        pytest.skip("they are written once")
    with monkeypatch.context() as patch:
        stops_in_flush(patch, number, table)
        with pytest.raises(Killed):
            scan(tiny, data, tmp_path / "cut", probe=probes)
    assert not open_run(tmp_path / "cut").complete
    assert_same(scan(tiny, data, tmp_path / "cut", probe=probes, resume=True), scan(tiny, data, tmp_path / "whole", probe=probes))


def test_killed_while_aligning(tiny, data, probes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "align", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            scan(tiny, data, tmp_path / "cut", probe=probes)
    assert_same(scan(tiny, data, tmp_path / "cut", probe=probes, resume=True), scan(tiny, data, tmp_path / "whole", probe=probes))


def test_a_killed_process_goes_on(tiny, data, probes, tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from intaglio.commands import scan, scoring
        from intaglio.measure.scan import Scorer
        scoring.FLUSH_SECONDS, plain, seen = -1.0, Scorer.score, []
        def score(self, batch):
            seen.append(1)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, batch)
        Scorer.score = score
        scan.scan({str(tiny)!r}, {str(data)!r}, out=Path({str(tmp_path / "cut")!r}), probe={probes!r}, batch_size=2)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr[-600:]
    assert open_run(tmp_path / "cut").table("scans").num_rows == 4
    assert_same(scan(tiny, data, tmp_path / "cut", probe=probes, resume=True), scan(tiny, data, tmp_path / "whole", probe=probes))


def test_stopped_by_hand_keeps_all_that_was_scored(tiny, data, tmp_path, monkeypatch):
    from intaglio.measure.scan import Scorer

    plain, seen = Scorer.score, []

    def score(self, batch):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", score)
        with pytest.raises(KeyboardInterrupt):
            scan(tiny, data, tmp_path / "cut")
    assert open_run(tmp_path / "cut").table("scans").num_rows == 6
    assert_same(scan(tiny, data, tmp_path / "cut", resume=True), scan(tiny, data, tmp_path / "whole"))


@pytest.mark.parametrize("table", ["scans", "sketches"])
def test_stopped_between_two_tables_of_a_flush_and_flushed_again(table, tiny, data, probes, tmp_path, monkeypatch,
                                                                 every_batch_is_flushed):  # fmt: skip
    """Ctrl-C just after a table's file stands and before its rows are forgotten: they are written a second time."""
    from intaglio.store import run as store

    plain, seen = store.write_table, []

    def write(path, rows):
        plain(path, rows)
        if path.parent.name == table:
            seen.append(path)
            if len(seen) == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_table", write)
        with pytest.raises(KeyboardInterrupt):
            scan(tiny, data, tmp_path / "cut", probe=probes)
    ids = open_run(tmp_path / "cut").column(table, "example")
    assert len(ids) > len(set(ids)), "rows stand twice, which going on must mend"
    assert_same(scan(tiny, data, tmp_path / "cut", probe=probes, resume=True), scan(tiny, data, tmp_path / "whole", probe=probes))


def test_a_flush_writes_what_is_new_and_touches_nothing_else(tiny, data, tmp_path, monkeypatch, every_batch_is_flushed):
    from intaglio.store import run as store

    plain, written = store.write_table, []
    monkeypatch.setattr(store, "write_table", lambda path, rows: written.append((path.name, len(rows))) or plain(path, rows))
    monkeypatch.setattr(RunWriter, "finish", lambda self: None)
    monkeypatch.setattr(command.scoring, "align", lambda *_: None)
    command.scan(str(tiny), str(data), out=tmp_path / "run", batch_size=2)
    parts = [(name, n) for name, n in written if n == 2]
    assert len(parts) == len({*parts}) * 2 == 2 * 3, "scans and sketches, three whole batches each"
    assert max(n for _, n in written if "part-" in _) <= 300
    run = open_run(tmp_path / "run")
    assert [p.name for p in run.files("scans")] == [f"part-00000000-0{s}.parquet" for s in ("", "-1", "-2", "-3")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_low_precision_is_close_and_said(precision, tiny, data, probes, tmp_path, monkeypatch):
    """What a GPU does, on the CPU: the forward under autocast."""
    whole = scan(tiny, data, tmp_path / "whole", probe=probes)
    monkeypatch.setattr(ready, "precision", lambda: precision)
    run = scan(tiny, data, tmp_path / "run", probe=probes)
    assert run.manifest["precision"] == precision
    for table, column in (("scans", "push"), ("scans", "loss_nats"), ("scan_credits", "credit_nats")):
        exact = {(r["example"], r.get("probe")): r[column] for r in rows(whole, table)}
        found = {(r["example"], r.get("probe")): r[column] for r in rows(run, table)}
        size = max(abs(v) for v in exact.values())
        off = max(abs(found[k] - exact[k]) for k in exact) / size
        assert off == 0 if precision == "float32" else 0 < off < 0.05, (table, column, off)


def test_another_precision_is_not_gone_on_with(tiny, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "align", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            scan(tiny, data, tmp_path / "cut")
    monkeypatch.setattr(ready, "precision", lambda: "bfloat16")
    with pytest.raises(RecipeError, match="other precision"):
        scan(tiny, data, tmp_path / "cut", resume=True)


def test_probes_of_a_scan_are_compared_by_content(tiny, data, probes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "align", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            scan(tiny, data, tmp_path / "cut", probe=probes)
    (tmp_path / "anchor.jsonl").write_text('{"text": "a cat hid"}\n{"text": "two dogs"}\n')
    with pytest.raises(RecipeError, match="other probes"):
        scan(tiny, data, tmp_path / "cut", probe=probes, resume=True)


def test_another_scan_is_not_gone_on_with(tiny, data, probes, tmp_path, monkeypatch, every_batch_is_flushed):
    with monkeypatch.context() as patch:
        stops_in_flush(patch, 3, "scans")
        with pytest.raises(Killed):
            scan(tiny, data, tmp_path / "cut", probe=probes)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "something else"}])
    subject = save_subject(tmp_path / "tiny", seed=5)
    for words in (dict(seed=1), dict(probe=probes[:1]), dict(data=other), dict(subject=subject)):
        found = dict(subject=tiny, data=data, probe=probes) | words
        with pytest.raises(RecipeError, match="was begun with other"):
            scan(found.pop("subject"), found.pop("data"), tmp_path / "cut", resume=True, **found)


def test_every_example_is_scored_once(tiny, data, tmp_path):
    run = scan(tiny, data, tmp_path / "run", batch_size=3)
    assert run.table("scans").num_rows == len(set(TEXTS)) == run.table("examples").num_rows
    assert sorted(r["row"] for r in rows(run, "examples") if len(r["row"]) > 1) == [[0, 7]]
    assert {r["group"] for r in rows(run, "examples")} == {"a", "b"}


def test_push_and_surprise_are_those_of_a_first_visit(tiny, data, tmp_path):
    run = scan(tiny, data, tmp_path / "scan")
    training.train(str(tiny), str(data), out=tmp_path / "train", steps=4, batch_size=2, lr=1e-12, layers=None)
    seen = {r["example"]: r for r in open_run(tmp_path / "train").table("visits").to_pylist()}
    scanned = {r["example"]: r for r in rows(run, "scans")}
    assert scanned.keys() == seen.keys()
    for example, row in scanned.items():
        assert row["push"] == pytest.approx(seen[example]["push"], rel=1e-5)
        assert row["loss_nats"] == pytest.approx(seen[example]["loss_nats"], rel=1e-5)


def test_batches_change_nothing(tiny, data, probes, tmp_path):
    one, all_ = (scan(tiny, data, tmp_path / str(b), batch_size=b, probe=probes) for b in (1, 8))
    for name, columns in {"scans": ("loss_nats", "push", "alignment"), "scan_credits": ("credit_nats", "cosine")}.items():
        a, b = ({(r["example"], r.get("probe")): r for r in rows(run, name)} for run in (one, all_))
        assert a.keys() == b.keys()
        for key in a:
            for column in columns:
                assert a[key][column] == pytest.approx(b[key][column], rel=1e-4, abs=1e-6)


def test_a_texts_credit_at_itself_is_the_length_of_its_own_mean_gradient(tiny, data, probes, tmp_path):
    run = scan(tiny, data, tmp_path / "run", probe=probes)
    (same,) = [r["example"] for r in rows(run, "examples") if r["preview"] == "red and blue"]
    targets = next(r["targets"] for r in rows(run, "examples") if r["example"] == same)
    push = next(r["push"] for r in rows(run, "scans") if r["example"] == same)
    found = [r for r in rows(run, "scan_credits") if r["probe"] == "target"]
    own = next(r for r in found if r["example"] == same)
    assert own["credit_nats"] == pytest.approx(push / targets, rel=1e-4) and own["cosine"] == pytest.approx(1, abs=1e-4)
    assert own["credit_nats"] == max(r["credit_nats"] for r in found)


def test_credit_foretells_what_one_small_step_does(tiny, data, probes, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from intaglio.measure.probes import probe_loss

    run = scan(tiny, data, tmp_path / "run", probe=probes)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    probe = ready.read_probes(ready.parse_probes(probes), tokenizer, max_tokens=64, truncate=False)["anchor"]
    model = AutoModelForCausalLM.from_pretrained(tiny).double()
    before, length = probe_loss(model, probe), 1e-4
    credits = {r["example"]: r["credit_nats"] for r in rows(run, "scan_credits") if r["probe"] == "anchor"}
    for row in rows(run, "examples"):
        moved = copy.deepcopy(model)
        ids = torch.tensor([row["token_ids"]])
        moved(input_ids=ids, labels=ids.masked_fill(~torch.tensor([row["target_mask"]]), -100)).loss.backward()
        norm = sum(float(p.grad.square().sum()) for p in moved.parameters() if p.grad is not None) ** 0.5
        with torch.no_grad():
            for p in moved.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=length / norm)
        fall = (before - probe_loss(moved, probe)) / length
        assert fall == pytest.approx(credits[row["example"]], rel=0.02, abs=2e-3)


def test_a_scorer_touches_neither_weights_nor_gradients_nor_chance(tiny, data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from intaglio.data.encode import collate
    from intaglio.measure.scan import Scorer

    model = AutoModelForCausalLM.from_pretrained(tiny, attention_dropout=0.5).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    found = ready.read_data(str(data), tokenizer, max_tokens=64, truncate=False)
    probe = ready.make_probe("anchor", found.data[:2], 1)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    chance, hooks = torch.get_rng_state(), [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    scored = Scorer(model, [probe]).score(collate(found.data, 1))
    assert np.isfinite(scored.push).all() and len(scored.ids) == len(TEXTS)
    assert all(torch.equal(p, weights[n]) and (p.grad == 7).all() for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), chance) and model.training
    assert [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()] == hooks


def test_a_loss_that_is_no_sum_over_tokens_is_flagged_as_in_training(tiny, data, probes, tmp_path, monkeypatch):
    from torch.nn.functional import cross_entropy
    from transformers.loss.loss_utils import LOSS_MAPPING

    def kinds(name: str) -> tuple[set[str], ...]:
        run = scan(tiny, data, tmp_path / f"scan {name}", probe=probes)
        training.train(str(tiny), str(data), out=tmp_path / f"train {name}", steps=4, batch_size=2, rescan=1)
        trained = open_run(tmp_path / f"train {name}")
        return tuple({r["push_kind"] for r in rows(*found)}
                     for found in ((run, "scans"), (trained, "scans"), (trained, "visits")))  # fmt: skip

    def rising(logits, labels, **_):
        """Later tokens weigh more."""
        nats_BT = cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")
        return (nats_BT * torch.arange(1.0, nats_BT.shape[1] + 1)).mean()

    assert kinds("plain") == ({"token_sum"},) * 3
    monkeypatch.setitem(LOSS_MAPPING, "ForCausalLM", rising)
    assert kinds("rising") == ({"as_weighted"},) * 3


def test_alignment_is_with_all_the_others_whatever_the_order(tiny, data, tmp_path):
    run = scan(tiny, data, tmp_path / "run")
    sketches = {r["example"]: np.array(r["sketch"], dtype=float) for r in rows(run, "sketches")}
    total = sum(sketches.values())
    for row in rows(run, "scans"):
        own = sketches[row["example"]]
        expected = own @ (total - own) / np.linalg.norm(own) / np.linalg.norm(total - own)
        assert row["alignment"] == pytest.approx(expected, rel=1e-6)


def test_the_plan_writes_nothing(tiny, data, probes, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    command.scan(str(tiny), str(data), out=tmp_path / "run", probe=probes, plan=True)
    said = capsys.readouterr().err
    assert all(word in said for word in ("time:", "memory:", "disk:", "trained on")), said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("n", [0, 60])
def test_the_plan_knows_what_the_scan_will_take_on_disk(n, tiny, probes, tmp_path, capsys):
    """With probes and without, a few rows and many: table by table, and in all."""
    from intaglio.commands import disk
    from intaglio.commands.report import report
    from intaglio.measure.budget import parse_bytes
    from intaglio.tables import TABLES

    data = write_words(tmp_path / "many.jsonl", [*TEXTS, *(f"the {i} of them went {i * i} far" for i in range(n))])
    chosen, seen = probes if n else None, []
    with pytest.MonkeyPatch.context() as patch:
        plain = disk.scan_table_bytes
        patch.setattr(disk, "scan_table_bytes", lambda *words: seen.append(plain(*words)) or seen[-1])
        command.scan(str(tiny), str(data), out=tmp_path / "run", probe=chosen, plan=True)
    said = re.search(r"disk: tables about (.*?), the page (.*)", " ".join(capsys.readouterr().err.split()))
    tables, page = (parse_bytes(amount.strip()) for amount in said.groups())
    run = scan(tiny, data, tmp_path / "run", probe=chosen)
    report(run.folder)
    written = {name: size for name in TABLES if (size := sum(p.stat().st_size for p in run.files(name)))}
    assert seen[0].keys() == written.keys()
    for name in {"scans", "sketches", "scan_credits"} & written.keys():  # numbers; texts may compress to anything
        assert 1 / 1.5 < seen[0][name] / written[name] < 1.5, (name, seen[0][name], written[name])
    assert 1 / 1.5 < tables / (sum(written.values()) + (run.folder / "rows.jsonl").stat().st_size) < 1.5
    assert 1 / 1.5 < page / (run.folder / "report.html").stat().st_size < 1.5


@pytest.mark.parametrize("words", [dict(batch_size=0), dict(seed=-1), dict(max_tokens=1), dict(max_tokens=999)])
def test_wrong_values_are_refused_and_leave_nothing(words, tiny, data, tmp_path):
    with pytest.raises(InputError):
        scan(tiny, data, tmp_path / "run", **words)
    assert not list(tmp_path.glob("run*"))


def test_one_example_has_no_rest_to_agree_with(tiny, tmp_path):
    run = scan(tiny, write_jsonl(tmp_path / "d.jsonl", [{"text": "alone"}]), tmp_path / "run")
    (row,) = rows(run, "scans")
    assert row["alignment"] is None and row["push"] > 0


def test_a_full_disk_leaves_an_unfinished_scan_that_goes_on(tiny, data, tmp_path, monkeypatch):
    from intaglio.errors import StoreError

    plain = RunWriter.flush

    def full(self, step):
        raise StoreError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "flush", full)
        with pytest.raises(StoreError):
            scan(tiny, data, tmp_path / "cut")
    assert RunWriter.flush is plain and not (tmp_path / "cut").exists()
    assert_same(scan(tiny, data, tmp_path / "cut", resume=True), scan(tiny, data, tmp_path / "whole"))
