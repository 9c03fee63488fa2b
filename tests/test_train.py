"""`intaglio train`: the loop's laws, and a run that was interrupted is the run that was not."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from conftest import save_subject, write_jsonl
from intaglio import checkpoint
from intaglio.commands import summary
from intaglio.commands import train as command
from intaglio.errors import RecipeError
from intaglio.store.run import Run, RunWriter, open_run
from intaglio.train import Recipe, batch_rows, check_recipe, learning_rate

CLOCKS = {"seconds", "measure_seconds"}
TABLES = ("visits", "steps", "tokens", "parts", "visit_parts", "sketches", "credits", "probes", "probe_items",
          "drift", "examples", "vocab", "pairs", "group_carry", "scans", "scan_credits", "checkpoints", "spikes")  # fmt: skip
WORDS = ("the cat sat", "a dog ran far", "one two three", "red and blue", "I see it", "no more rain", "the end")
SEED = 2  # the long text comes third
RECIPE = Recipe(
    steps=20, batch_size=2, accumulate=1, lr=1.0, schedule="linear", warmup_steps=4, optimizer="adamw",
    weight_decay=0.0, momentum=0.9, clip=1.0, seed=0, lora_rank=None, layers=None, precision="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """The page has tests of its own."""
    monkeypatch.setattr(summary, "conclude", lambda *_, **__: None)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", ({"text": t, "group": "ab"[i % 2]} for i, t in enumerate(WORDS)))


@pytest.fixture
def longer(tmp_path) -> Path:
    """The same and one long text, which a small budget for memory cannot hold."""
    return write_jsonl(tmp_path / "longer.jsonl", [*({"text": t} for t in WORDS), {"text": "and so on, " * 4}])


@pytest.fixture
def probe(tmp_path) -> str:
    return f"anchor={write_jsonl(tmp_path / 'anchor.jsonl', [{'text': 'a cat ran'}, {'text': 'two dogs'}])}"


def train(subject: Path, data: Path, out: Path, **options) -> Run:
    command.train(str(subject), str(data), out=out, **({"steps": 6, "batch_size": 2, "lr": 1e-3} | options))
    return open_run(out)


def rows(run: Run, table: str) -> list[dict]:
    """A table without its clocks, in the order of its key."""
    found = [{k: v for k, v in r.items() if k not in CLOCKS} for r in run.table(table).to_pylist()]
    return sorted(found, key=lambda r: json.dumps([r.get(k) for k in ("step", "slot", "position", "address", "probe")])
                  + json.dumps(r, default=repr, sort_keys=True))  # fmt: skip


def weights(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    folder = checkpoint.states(run.folder)[-1]
    return load_file(next(folder.glob("*model.safetensors")))


def assert_same(a: Run, b: Run) -> None:
    for table in TABLES:
        assert rows(a, table) == rows(b, table), table
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    assert a.complete and b.complete


class Killed(Exception):
    """Raised inside the loop; no part of Intaglio expects it."""


def interrupted_at(monkeypatch, step: int) -> None:
    """The next training stops right after `step` steps, before anything else is done for that step."""
    from intaglio import train as module

    plain = module.train

    def stops(*args, after_step, **options):
        def after(done, loss):
            if done == step:
                raise Killed
            after_step(done, loss)

        return plain(*args, after_step=after, **options)

    monkeypatch.setattr(module, "train", stops)


# --- interrupted = uninterrupted -----------------------------------------------------------------

CASES = {
    "adamw, probes, rescans": dict(steps=8, checkpoint_every=3, rescan=4, probe_every=2),
    "exact": dict(level="exact", checkpoint_every=2),
    "adam, accumulate": dict(optimizer="adam", accumulate=2, checkpoint_every=4, schedule="cosine"),
    "sgd without momentum": dict(optimizer="sgd", momentum=0.0, checkpoint_every=2),
    "lora": dict(lora=2, layers="0:1", checkpoint_every=2),
    "momentum by group": dict(group_momentum=True, checkpoint_every=4),
    "sgd, momentum by group": dict(group_momentum=True, checkpoint_every=4, optimizer="sgd"),
    "a budget that is passed": dict(memory="200KiB", checkpoint_every=4, batch_size=1, seed=SEED, steps=9, longer=True),
    "every third": dict(every=3, checkpoint_every=2),
    "norms": dict(level="norms", checkpoint_every=2),
    "no state was kept": dict(rescan=2),
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_is_uninterrupted(case, tiny, data, longer, probe, tmp_path, monkeypatch):
    options = dict(probe=[probe]) | CASES[case]
    data = longer if options.pop("longer", False) else data
    whole = train(tiny, data, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(Killed):
            train(tiny, data, tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists() and not open_run(tmp_path / "cut").complete
    assert_same(train(tiny, data, tmp_path / "cut", resume=True, **options), whole)


def test_a_step_half_written_down_is_forgotten(tiny, data, tmp_path, monkeypatch):
    """Stopped by hand while the rows of a step are being collected."""
    whole = train(tiny, data, tmp_path / "whole", checkpoint_every=2)
    plain = RunWriter.append_rows

    def stops(self, table, rows):
        if table == "steps" and rows[0]["step"] == 4:
            raise KeyboardInterrupt
        plain(self, table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "append_rows", stops)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, data, tmp_path / "cut", checkpoint_every=2)
    assert_same(train(tiny, data, tmp_path / "cut", checkpoint_every=2, resume=True), whole)


def test_a_model_with_dropout_goes_on_with_the_same_random_numbers(data, tmp_path, monkeypatch):
    subject = save_subject(tmp_path / "dropping", attention_dropout=0.3)
    whole = train(subject, data, tmp_path / "whole", checkpoint_every=2)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(Killed):
            train(subject, data, tmp_path / "cut", checkpoint_every=2)
    assert_same(train(subject, data, tmp_path / "cut", checkpoint_every=2, resume=True), whole)


def test_a_killed_process_goes_on(tiny, data, probe, tmp_path):
    """SIGKILL: no handler, no farewell."""
    options = dict(steps=7, checkpoint_every=2, probe=[probe], batch_size=2, lr=1e-3)
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from intaglio import train as module
        from intaglio.commands import train as command
        plain = module.train
        def train(*args, after_step, **options):
            def after(step, loss):
                after_step(step, loss)
                if step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, after_step=after, **options)
        module.train = train
        command.train({str(tiny)!r}, {str(data)!r}, out=Path({str(tmp_path / "cut")!r}), **{options!r})
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr[-600:]
    cut = open_run(tmp_path / "cut")
    assert not cut.complete and cut.table("steps").num_rows >= 4
    resumed = train(tiny, data, tmp_path / "cut", resume=True, **options)
    assert_same(resumed, train(tiny, data, tmp_path / "whole", **options))


def test_killed_while_finishing(tiny, data, tmp_path, monkeypatch):
    from intaglio.commands import spikes

    whole = train(tiny, data, tmp_path / "whole", checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(spikes, "record_spikes", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(tiny, data, tmp_path / "cut", checkpoint_every=3)
    assert_same(train(tiny, data, tmp_path / "cut", checkpoint_every=3, resume=True), whole)


@pytest.mark.parametrize("change", [
    dict(lr=2e-3), dict(batch_size=3), dict(seed=1), dict(optimizer="sgd"), dict(level="norms"), dict(steps=7),
    dict(every=2), dict(keep_tokens=0.5), dict(rescan=2), dict(probe=None), dict(probe_every=3), dict(lora=2),
    dict(group_momentum=True), dict(memory="64MiB"),
])  # fmt: skip
def test_another_recipe_is_refused_and_nothing_is_lost(change, tiny, cut):
    out, data, probe = cut
    before = {p: p.read_bytes() for p in open_run(out).folder.rglob("*.parquet")}
    with pytest.raises(RecipeError, match="has another"):
        train(tiny, data, out, resume=True, **(dict(probe=[probe], checkpoint_every=2) | change))
    assert before and {p: p.read_bytes() for p in open_run(out).folder.rglob("*.parquet")} == before


def test_other_data_or_another_model_is_refused(tiny, tmp_path, cut):
    out, data, probe = cut
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "something else"}])
    with pytest.raises(RecipeError, match="another data"):
        train(tiny, other, out, resume=True, probe=[probe], checkpoint_every=2)
    subject = save_subject(tmp_path / "tiny", seed=3)
    with pytest.raises(RecipeError, match="another subject"):
        train(subject, data, out, resume=True, probe=[probe], checkpoint_every=2)


def test_probes_are_compared_by_what_they_say_and_not_by_their_size(tiny, tmp_path, cut):
    out, data, probe = cut
    other = write_jsonl(tmp_path / "anchor.jsonl", [{"text": "a cat hid"}])  # as many texts, as many tokens
    with pytest.raises(RecipeError, match=r"another probes \(anchor\)"):
        train(tiny, data, out, resume=True, probe=[f"anchor={other}"], checkpoint_every=2)
    same = write_jsonl(tmp_path / "again.jsonl", [{"text": "a cat ran", "group": "of no matter"}])
    ids = {p: command.ready.read_probes({"anchor": str(p)}, _tokenizer(tiny), max_tokens=64, truncate=False)["anchor"]
           for p in (Path(probe.partition("=")[2]), other, same)}  # fmt: skip
    first, changed, equal = (p.fingerprint for p in ids.values())
    assert first == equal != changed


def test_a_probes_fingerprint_is_of_texts_and_labels_whatever_the_batches():
    from intaglio.measure.probes import as_probe
    from tiny import batch, texts

    items = texts()
    one = as_probe("x", batch(items)).fingerprint
    assert as_probe("x", [batch(items[:1], side="left"), batch(items[1:], length=40)]).fingerprint == one
    assert as_probe("x", batch(items[::-1])).fingerprint != one
    unmasked = texts(masked=False)
    assert as_probe("x", batch(unmasked)).fingerprint != one, "the same tokens with other labels"
    bare = {k: v for k, v in batch(unmasked).items() if k != "labels"}
    assert as_probe("x", bare).fingerprint == as_probe("x", batch(unmasked)).fingerprint, "no labels: every token"


def test_training_seconds_are_of_all_parts(tiny, data, tmp_path, monkeypatch):
    import time

    from intaglio import train as module

    plain = module.train

    def slow(*args, after_step, **options):
        def after(done, loss):
            time.sleep(0.2)
            if done == 5:
                raise Killed
            after_step(done, loss)

        return plain(*args, after_step=after, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", slow)
        with pytest.raises(Killed):
            train(tiny, data, tmp_path / "run", checkpoint_every=2)
    run = train(tiny, data, tmp_path / "run", checkpoint_every=2, resume=True)
    kept = 4 * 0.2  # of the fifth step nothing was kept
    assert kept <= run.manifest["training_seconds"] < kept + 3
    assert run.manifest["training_seconds"] > sum(run.table("steps").column("seconds").to_pylist()[4:]) + kept - 0.2


def _tokenizer(subject):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(subject)


@pytest.fixture(scope="module")
def cut(tiny, tmp_path_factory) -> tuple[Path, Path, str]:
    """A run that was stopped after five steps, its data and its probe; tests see that it stays as it is."""
    folder = tmp_path_factory.mktemp("cut")
    data = write_jsonl(folder / "data.jsonl", ({"text": t} for t in WORDS))
    probe = f"anchor={write_jsonl(folder / 'anchor.jsonl', [{'text': 'a cat ran'}])}"
    with pytest.MonkeyPatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(Killed):
            train(tiny, data, folder / "run", probe=[probe], checkpoint_every=2)
    return folder / "run", data, probe


# --- what is kept --------------------------------------------------------------------------------


def test_states_are_safetensors_and_the_last_two_keep_moments(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", checkpoint_every=1, steps=5)
    states = checkpoint.states(run.folder)
    assert [s.name for s in states] == [f"step-{n:08d}" for n in (1, 2, 3, 4, 5)]
    assert [(s / "optimizer.safetensors").exists() for s in states] == [False, False, False, True, True]
    kinds = {p.suffix for s in states for p in s.iterdir()}
    assert kinds <= {".safetensors", ".json", ".jinja"}, kinds
    assert [r["step"] for r in rows(run, "checkpoints")] == [1, 2, 3, 4, 5]
    assert all((run.folder / r["path"]).is_dir() for r in rows(run, "checkpoints"))
    assert run.manifest["checkpoints"].keys() == {"1", "2", "3", "4", "5"}
    assert not list(run.folder.rglob("*.tmp"))


def test_the_last_state_loads_with_transformers(tiny, data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(tiny, data, tmp_path / "run")
    folder = checkpoint.states(run.folder)[-1]
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    start = AutoModelForCausalLM.from_pretrained(tiny)
    moved = sum(float((p - q).double().square().sum()) for p, q in zip(model.parameters(), start.parameters())) ** 0.5
    assert moved == pytest.approx(run.table("steps").column("net_l2")[-1].as_py(), rel=1e-5)
    ids = AutoTokenizer.from_pretrained(folder)("the cat", return_tensors="pt")
    assert model(**ids).logits.isfinite().all()


def test_lora_keeps_adapters_that_peft_loads_and_stays_in_its_layers(tiny, data, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = train(tiny, data, tmp_path / "run", lora=2, layers="1:2")
    folder = checkpoint.states(run.folder)[-1]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    adapters = [n for n, p in model.named_parameters() if "lora_" in n]
    assert adapters and all(".layers.1." in n for n in adapters)
    assert any(p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n)
    assert {r["address"].split(".")[0] for r in rows(run, "parts") if r["update_l2"]} == {"L1"}


def test_layers_limit_full_fine_tuning(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", layers="0:1")
    assert {r["address"].split(".")[0] for r in rows(run, "parts") if r["update_l2"]} == {"L0"}


def test_a_model_whose_settings_transformers_will_not_write_is_kept_all_the_same(data, tmp_path):
    subject = save_subject(tmp_path / "odd")
    (subject / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "do_sample": False}))
    run = train(subject, data, tmp_path / "run", steps=1)
    assert (checkpoint.states(run.folder)[-1] / "model.safetensors").exists()


def test_the_plan_writes_nothing(tiny, data, probe, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    command.train(str(tiny), str(data), out=tmp_path / "run", probe=[probe], plan=True, memory="1GiB")
    said = capsys.readouterr().err
    assert all(word in said for word in ("time:", "memory:", "disk:", "trained on")), said
    assert sorted(tmp_path.rglob("*")) == before


# --- what is measured ----------------------------------------------------------------------------


def test_books_close_under_every_optimizer(tiny, data, tmp_path):
    for optimizer, lr in (("adamw", 1e-3), ("adam", 1e-3), ("sgd", 1e-2)):
        run = train(tiny, data, tmp_path / optimizer, optimizer=optimizer, lr=lr, accumulate=2, weight_decay=0.1, steps=4)
        assert run.table("visits").num_rows == 4 * 4
        assert max(run.table("steps").column("closure").to_pylist()) < 1e-4, optimizer
        assert max(run.table("steps").column("gradient_match").to_pylist()) < 0.2
        if optimizer != "sgd":
            assert run.manifest["optimizer"]["betas"][0] == 0.9


def test_equal_rows_share_an_id_and_stand_in_one_list(tiny, tmp_path):
    texts = ["the cat", "a dog", "the cat", "the cat", "rain"]
    data = write_jsonl(tmp_path / "d.jsonl", ({"text": t} for t in texts))
    run = train(tiny, data, tmp_path / "run", steps=5, batch_size=2)
    assert sorted(r["row"] for r in rows(run, "examples")) == [[0, 2, 3], [1], [4]]
    kept = [json.loads(line)["text"] for line in (run.folder / "rows.jsonl").read_text().splitlines()]
    assert kept == texts


@pytest.mark.parametrize("kind", ["text", "completion", "instruction", "messages"])
def test_every_shape_of_data_trains_on_the_answer_alone(kind, tiny, tiny_chat, tmp_path):
    row = {
        "text": {"text": "say yes"},
        "completion": {"prompt": "say ", "completion": "yes"},
        "instruction": {"instruction": "say", "input": "it", "output": "yes"},
        "messages": {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "yes"}]},
    }[kind]
    data = write_jsonl(tmp_path / "d.jsonl", [{**row, "group": "g"}] * 2)
    run = train(tiny_chat if kind == "messages" else tiny, data, tmp_path / "run", steps=2)
    (example,) = rows(run, "examples")
    trained = bytes(t - 5 for t, m in zip(example["token_ids"], example["target_mask"]) if m and t >= 5)
    assert len(trained) == len("say yes" if kind == "text" else "yes")
    assert example["group"] == "g" and example["targets"] == len(trained) + 1  # and the end


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet", "txt"])
def test_every_kind_of_file(suffix, tiny, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, path = ["the cat sat", "a dog ran"], tmp_path / f"d.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        path.write_text({"json": json.dumps([{"text": t} for t in texts]), "csv": "text\n" + "\n".join(texts) + "\n",
                         "txt": "\n\n".join(texts)}[suffix])  # fmt: skip
    run = train(tiny, path, tmp_path / "run", steps=1)
    assert all(t in " ".join(r["preview"] for r in rows(run, "examples")) for t in texts)


def test_rescans_score_all_data_at_states_along_the_way(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", rescan=3, steps=6)
    found = rows(run, "scans")
    assert {r["step"] for r in found} == {0, 2, 4}
    assert len(found) == 3 * len(WORDS) and all(r["push"] > 0 for r in found)
    plain = train(tiny, data, tmp_path / "plain", steps=6)
    assert rows(run, "visits") == rows(plain, "visits"), "a rescan changed the training"
    assert all(torch.equal(v, weights(plain)[n]) for n, v in weights(run).items())


def test_every_third_step_is_measured_in_full(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", every=3, steps=7)
    assert [r["measured"] for r in rows(run, "steps")] == ["full", "norms", "norms"] * 2 + ["full"]
    assert [r["update_l2"] is None for r in rows(run, "steps")] == [False, True, True] * 2 + [False]


def test_exact_has_churn_and_pairs_and_norms_has_neither_shift_nor_tokens_shift(tiny, data, tmp_path):
    exact, norms = (train(tiny, data, tmp_path / level, level=level, steps=3) for level in ("exact", "norms"))
    assert exact.table("pairs").num_rows == 3
    assert all(r["churn"] >= 0 and r["shift"] is not None for r in rows(exact, "visits"))
    assert all(r["shift"] is None and r["push"] > 0 for r in rows(norms, "visits"))
    assert [r["push"] for r in rows(norms, "visits")] == pytest.approx([r["push"] for r in rows(exact, "visits")], rel=1e-5)


def test_a_small_budget_gives_up_and_says_so(tiny, data, tmp_path, capsys):
    run = train(tiny, data, tmp_path / "run", memory="10KiB")
    assert "level norms" in capsys.readouterr().err
    assert "level norms" in run.manifest["memory"]["degraded"]
    assert {r["measured"] for r in rows(run, "steps")} == {"norms"}


def test_a_budget_that_a_long_text_passes_is_kept_from_there_on(tiny, longer, tmp_path):
    run = train(tiny, longer, tmp_path / "run", memory="150KiB", batch_size=1, seed=SEED, steps=9)
    assert [r["measured"] for r in rows(run, "steps")] == ["full"] * 2 + ["norms"] * 2 + (["full"] + ["norms"] * 3) + ["full"]
    assert "full on every 4th step only" in run.manifest["memory"]["degraded"]


def test_keep_tokens_keeps_whole_examples(tiny, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", ({"text": f"line {i} of many"} for i in range(40)))
    run = train(tiny, data, tmp_path / "run", keep_tokens=0.5, steps=10, batch_size=4)
    visits = run.table("visits").num_rows
    kept = {(r["step"], r["slot"]) for r in rows(run, "tokens")}
    assert visits == 40 and 8 <= len(kept) <= 32
    none = train(tiny, data, tmp_path / "none", keep_tokens=0.0, steps=2)
    assert none.table("tokens").num_rows == 0


def test_momentum_by_group_adds_up_to_the_carry(tiny, data, tmp_path):
    run = train(tiny, data, tmp_path / "run", group_momentum=True, steps=6)
    carry = {r["step"]: r["carry_shift"] for r in rows(run, "steps")}
    split: dict[int, float] = {}
    for r in rows(run, "group_carry"):
        split[r["step"]] = split.get(r["step"], 0.0) + r["carry_shift"]
    assert {r["group"] for r in rows(run, "group_carry")} >= {"a", "b"}
    for step, value in carry.items():
        assert split.get(step, 0.0) == pytest.approx(value, abs=1e-6 * max(1.0, abs(value)))


@pytest.mark.parametrize("options", [dict(lora=2), dict(level="norms"), dict(every=2)])
def test_momentum_by_group_is_refused_where_it_cannot_be_and_leaves_nothing(options, tiny, data, tmp_path):
    from intaglio.errors import IntaglioError

    with pytest.raises(IntaglioError, match="group momentum"):
        train(tiny, data, tmp_path / "run", group_momentum=True, **options)
    assert not list(tmp_path.glob("run*"))


# --- laws of the loop ----------------------------------------------------------------------------


def test_the_learning_rate_rises_then_falls_as_its_schedule_says():
    linear = [learning_rate(RECIPE, s) for s in range(20)]
    assert linear[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert linear[19] == pytest.approx(1 / 16) and all(a >= b for a, b in pairwise(linear[3:]))
    constant = [learning_rate(replace(RECIPE, schedule="constant"), s) for s in range(20)]
    assert constant[4:] == [1.0] * 16
    cosine = [learning_rate(replace(RECIPE, schedule="cosine"), s) for s in range(20)]
    assert cosine[12] == pytest.approx(0.5) and cosine[8] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    for schedule in ("constant", "linear", "cosine"):
        assert all(0 < learning_rate(replace(RECIPE, schedule=schedule), s) <= 1 for s in range(20)), schedule
    assert learning_rate(replace(RECIPE, warmup_steps=0), 0) == 1.0
    assert learning_rate(replace(RECIPE, warmup_steps=20), 19) == 1.0


def test_the_order_depends_on_seed_and_epoch_alone():
    n = 7

    def stream(recipe):
        return [r for s in range(14) for r in batch_rows(n, recipe, s)]

    one = stream(RECIPE)
    epochs = [tuple(one[i : i + n]) for i in range(0, len(one) - n + 1, n)]
    assert all(sorted(e) == list(range(n)) for e in epochs) and len(set(epochs)) > 1
    changed = replace(RECIPE, lr=0.1, optimizer="sgd", steps=99, schedule="cosine")
    assert stream(changed) == one
    by_four = [r for s in range(7) for r in batch_rows(n, replace(RECIPE, batch_size=4), s)]
    by_accumulation = [r for s in range(7) for r in batch_rows(n, replace(RECIPE, accumulate=2), s)]
    assert by_four == one == by_accumulation
    assert stream(replace(RECIPE, seed=1)) != one
    assert batch_rows(3, replace(RECIPE, batch_size=8), 0)[:3] != [] and len(batch_rows(3, replace(RECIPE, batch_size=8), 0)) == 8


def test_accumulation_changes_nothing_but_rounding(tiny, data, tmp_path):
    one = train(tiny, data, tmp_path / "one", batch_size=4, optimizer="sgd")
    two = train(tiny, data, tmp_path / "two", batch_size=2, accumulate=2, optimizer="sgd")
    for a, b in zip(rows(one, "visits"), rows(two, "visits")):
        assert a["example"] == b["example"] and a["push"] == pytest.approx(b["push"], rel=1e-4)
        assert a["shift"] == pytest.approx(b["shift"], rel=1e-3, abs=1e-7)
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(two)[name], atol=1e-6), name


@pytest.mark.parametrize("change", [
    dict(steps=0), dict(batch_size=0), dict(accumulate=-1), dict(lr=0.0), dict(lr=math.nan), dict(lr=math.inf),
    dict(momentum=1.0), dict(momentum=-0.1), dict(weight_decay=-1.0), dict(clip=-1.0), dict(clip=math.nan),
    dict(lora_rank=0), dict(seed=-1), dict(optimizer="lion"), dict(schedule="step"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_carried_out_is_refused(change):
    check_recipe(RECIPE)
    with pytest.raises(RecipeError):
        check_recipe(replace(RECIPE, **change))
