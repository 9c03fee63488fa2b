"""`intaglio train`: the states that are kept, and what is measured on the way."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import WORDS, save_subject, write_jsonl
from intaglio import checkpoint
from intaglio.analyse import analyse_run
from intaglio.commands import train as command
from intaglio.report import render
from intaglio.store.run import open_run
from training import LONG_THIRD, rows, train, weights

pytestmark = pytest.mark.usefixtures("no_page")


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


def folder_bytes(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))


@pytest.mark.parametrize("options", [{}, {"rescan": 3, "probe_every": 2}, {"level": "norms"}, {"level": "exact"}])
def test_the_plan_knows_what_the_tables_will_take(options, tiny, data, probe, tmp_path, monkeypatch, capsys):
    from intaglio.commands import disk, plan
    from intaglio.model.layout import build_layout
    from intaglio.tables import TABLES

    seen = {}
    monkeypatch.setattr(plan, "print_plan", lambda job, console: seen.update(disk.table_bytes(job, build_layout(job.model))))
    options |= {"steps": 12, "probe": [f"target={data}", probe] if "rescan" in options else None}
    command.train(str(tiny), str(data), out=tmp_path / "run", plan=True, **options)
    run = train(tiny, data, tmp_path / "run", batch_size=4, **options)
    written = {name: folder_bytes(run.folder / name) for name in TABLES if (run.folder / name).exists()}
    assert seen.keys() >= written.keys() - {"spikes"}
    assert 1 / 1.5 < sum(seen.values()) / sum(written.values()) < 1.5, (seen, written)
    for name in ("scans", "probes", "probe_items", "drift", "credits"):
        assert (name in written) == (name in seen)


@pytest.mark.parametrize("rows", [30, 150])
def test_the_plan_knows_how_large_the_page_becomes(rows, tiny, tmp_path, monkeypatch):
    from intaglio.commands import disk, plan

    seen = {}
    monkeypatch.setattr(plan, "print_plan", lambda job, console: seen.update(page=disk.page_bytes(job.data.data)))
    texts = [{"text": f"Once upon a time there were {n} little birds who sang to the sun all day.", "group": f"g{n % 3}"}
             for n in range(rows)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(text) for text in texts))
    for planned in (True, False):
        command.train(str(tiny), str(tmp_path / "rows.jsonl"), out=tmp_path / "run", epochs=1, plan=planned)
    page = len(render(analyse_run(open_run(tmp_path / "run")), lang="en").encode())
    assert page / 1.6 < seen["page"] < page * 1.6, (page, seen)


def test_the_plan_times_probes_and_rescans(tiny, data, probe, tmp_path, capsys):
    command.train(str(tiny), str(data), out=tmp_path / "run", probe=[probe], rescan=2, steps=20, plan=True)
    said = " ".join(capsys.readouterr().err.split())
    assert ", probes " in said and "(11 times 1)" in said and ", 2 rescans " in said, said


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
    run = train(tiny, longer, tmp_path / "run", memory="150KiB", batch_size=1, seed=LONG_THIRD, steps=9)
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


@pytest.mark.parametrize("steps", [14, 6])
def test_the_page_says_whose_earlier_gradients_the_steps_carried(steps, tiny, data, tmp_path):
    from intaglio.analyse import analyse_run
    from intaglio.report import render
    from intaglio.report.numbers import Numbers
    from reader import Reader

    run = train(tiny, data, tmp_path / "run", group_momentum=True, steps=steps)
    settled = {r["step"]: r["update_l2"] for r in rows(run, "steps") if steps < 10 or not r["unsettled"]}
    shares: dict[str, float] = {}
    for r in rows(run, "group_carry"):
        shares[r["group"]] = shares.get(r["group"], 0.0) + r["carry_shift"] * (r["step"] in settled)
    shares = {group: carry / sum(settled.values()) for group, carry in shares.items()}
    findings = analyse_run(run)
    assert findings.group_carry == pytest.approx(shares) and findings.group_carry_settled == (steps > 10)
    if steps > 10:
        assert sum(shares.values()) == pytest.approx(findings.carry_share, abs=1e-5)
    for lang in ("en", "ru"):
        text = " ".join(Reader(render(findings, lang=lang)).text.split())
        part = text.split("--group-momentum", 1)[1][:400]
        for group in ("a", "b"):
            assert f"{group}{Numbers(lang).percent(shares[group])}".replace("\u00a0", " ") in part
    plain = train(tiny, data, tmp_path / "plain", steps=2)
    assert not analyse_run(plain).group_carry and 'id="carried"' not in render(analyse_run(plain))


def test_momentum_by_group_needs_groups(tiny, tmp_path):
    from intaglio.errors import RecipeError

    data = write_jsonl(tmp_path / "d.jsonl", [{"text": "the cat sat"}, {"text": "a dog ran"}])
    with pytest.raises(RecipeError, match="`group` column, and this data has none"):
        train(tiny, data, tmp_path / "run", group_momentum=True)
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize("options", [dict(lora=2), dict(level="norms"), dict(every=2)])
def test_momentum_by_group_is_refused_where_it_cannot_be_and_leaves_nothing(options, tiny, data, tmp_path):
    from intaglio.errors import IntaglioError

    with pytest.raises(IntaglioError, match="group momentum"):
        train(tiny, data, tmp_path / "run", group_momentum=True, **options)
    assert not list(tmp_path.glob("run*"))
