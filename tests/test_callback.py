"""LedgerCallback: under Trainer and TRL's trainers the books close, the log shows it, and nothing stays behind."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of the hub is imported: the tests ask no network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import intaglio
from intaglio.callback import LedgerCallback, scalars, sources_of
from intaglio.errors import InputError, StoreError, UnmeasurableError

VOCAB = 64
SCALARS = {"intaglio/shift", "intaglio/update_l2", "intaglio/data_share", "intaglio/agreement", "intaglio/closure"}


def tiny(*, tied: bool = False, vocab: int = VOCAB) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied)
    )  # fmt: skip


def rows(n: int = 8) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, VOCAB, (4 + i % 4,), generator=generator).tolist() for i in range(n)]
    texts[-1] = texts[0]  # one duplicate
    return [{"input_ids": t, "attention_mask": [1] * len(t), "labels": [-100, *t[1:]]} for t in texts]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(r["input_ids"]) for r in batch)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {k: torch.tensor([r[k] + [v] * (longest - len(r[k])) for r in batch]) for k, v in fill.items()}


class Reporter(TrainerCallback):
    """Stands where W&B's or TensorBoard's callback stands: before the user's callbacks."""

    def __init__(self) -> None:
        self.sent: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.sent.append(dict(logs))


def arguments(folder: Path, **changes) -> dict:
    return {
        "output_dir": str(folder / "trainer"), "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1,
        "learning_rate": 1e-3, "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, **changes,
    }  # fmt: skip


def trainer(folder: Path, callback: LedgerCallback, *, model=None, data=None, collator=collate, before=(), **changes):
    return Trainer(
        model or tiny(), TrainingArguments(**arguments(folder, **changes)), train_dataset=data or rows(),
        data_collator=collator, callbacks=[*before, callback],
    )  # fmt: skip


def hooks(model: nn.Module) -> int:
    """How many hooks of ours stand on a model (checkpointing leaves some of its own)."""
    found = [h for m in model.modules() for d in (m._forward_hooks, m._forward_pre_hooks) for h in d.values()]
    found += [h for p in model.parameters() for h in (p._post_accumulate_grad_hooks or {}).values()]
    return sum(getattr(h, "func", h).__module__.startswith("intaglio") for h in found)


def check_books(path: Path, *, steps: int, tolerance: float = 1e-4) -> intaglio.Run:
    run = intaglio.open_run(path)
    assert run.complete and "fault" not in run.manifest
    found = run.table("steps").to_pylist()
    assert [r["step"] for r in found] == list(range(steps))
    assert max(r["closure"] for r in found) < tolerance
    assert max(r["gradient_match"] for r in found) < tolerance
    return run


def check_rows(run: intaglio.Run, n: int) -> None:
    known = [row for rows in run.table("examples")["row"].to_pylist() for row in rows]
    assert sorted(known) == list(range(n))


# -- Trainer


def test_books_close_scalars_are_reported_and_rows_are_known(tmp_path: Path) -> None:
    model, report, callback = tiny(), Reporter(), LedgerCallback(tmp_path / "run")
    made = trainer(tmp_path, callback, model=model, before=[report], gradient_accumulation_steps=2, max_grad_norm=0.05)
    made.train()
    run = check_books(tmp_path / "run", steps=4)
    check_rows(run, 8)
    assert [0, 7] in run.table("examples")["row"].to_pylist()  # the duplicate is one example
    assert max(run.table("steps")["clip_scale"].to_pylist()) < 0.2
    with_loss = [line for line in report.sent if "loss" in line]
    assert len(with_loss) == 4 and all(set(line) >= SCALARS for line in with_loss)
    assert [line["intaglio/closure"] for line in with_loss] == run.table("steps")["closure"].to_pylist()
    assert all(set(line) >= SCALARS for line in made.state.log_history if "loss" in line)
    losses = run.table("steps")["loss_nats"].to_pylist()
    assert losses == pytest.approx([line["loss"] for line in with_loss], rel=1e-4)
    assert hooks(model) == 0 and "_run_epoch" not in vars(made)
    assert made.callback_handler.callbacks[0] is callback


def test_measuring_does_not_change_the_training(tmp_path: Path) -> None:
    plain, measured = tiny(), tiny()
    Trainer(plain, TrainingArguments(**arguments(tmp_path)), train_dataset=rows(), data_collator=collate).train()
    trainer(tmp_path, LedgerCallback(tmp_path / "run"), model=measured).train()
    for p, q in zip(plain.parameters(), measured.parameters()):
        assert torch.equal(p, q)


def test_evaluation_during_training_is_no_example(tmp_path: Path) -> None:
    made = Trainer(
        tiny(), TrainingArguments(**arguments(tmp_path, eval_strategy="steps", eval_steps=1, eval_on_start=True)),
        train_dataset=rows(), eval_dataset=rows(3), data_collator=collate,
        callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    made.train()
    run = check_books(tmp_path / "run", steps=4)
    assert run.table("visits").num_rows == 8
    assert not any("intaglio/shift" in line for line in made.state.log_history if "eval_loss" in line)


def test_gradient_checkpointing_and_tied_embeddings(tmp_path: Path) -> None:
    model = tiny(tied=True)
    trainer(tmp_path, LedgerCallback(tmp_path / "run"), model=model, gradient_checkpointing=True).train()
    check_books(tmp_path / "run", steps=4)


def test_bf16_autocast(tmp_path: Path) -> None:
    trainer(tmp_path, LedgerCallback(tmp_path / "run"), bf16=True).train()
    run = check_books(tmp_path / "run", steps=4, tolerance=1e-2)
    assert run.manifest["tolerance"] == 1e-2  # pages hold the books against this


def test_flattened_batches_are_taken_apart(tmp_path: Path) -> None:
    data = [{"input_ids": r["input_ids"], "labels": r["labels"]} for r in rows()]
    trainer(tmp_path, LedgerCallback(tmp_path / "run"), data=data, collator=DataCollatorWithFlattening()).train()
    run = check_books(tmp_path / "run", steps=4)
    assert run.table("visits").num_rows == 8
    check_rows(run, 8)


def test_adapters(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules="all-linear"))
    trainer(tmp_path, LedgerCallback(tmp_path / "run"), model=model).train()
    run = check_books(tmp_path / "run", steps=4)
    assert run.manifest["lora"] and run.manifest["coverage"] == 1.0
    assert hooks(model) == 0


def test_label_smoothing_is_not_called_a_token_sum(tmp_path: Path) -> None:
    model = tiny()
    model.lm_head.weight.data.mul_(40)  # near uniform predictions smoothing only scales the gradient
    trainer(tmp_path, LedgerCallback(tmp_path / "run"), model=model, label_smoothing_factor=0.3).train()
    run = check_books(tmp_path / "run", steps=4)
    assert set(run.table("visits")["push_kind"].to_pylist()) == {"as_weighted"}


def test_groups_come_from_the_data_set(tmp_path: Path) -> None:
    named = [{"group": f"g{i % 2}", "fact": f"f{i}"} for i in range(8)]
    trainer(tmp_path, LedgerCallback(tmp_path / "run", dataset=named)).train()
    found = intaglio.open_run(tmp_path / "run").table("examples").to_pylist()
    assert all(r["group"] == f"g{r['row'][0] % 2}" and r["fact"] == f"f{r['row'][0]}" for r in found)
    with pytest.raises(InputError):
        trainer(tmp_path, LedgerCallback(tmp_path / "other", dataset=named[:3])).train()


def test_momentum_by_group_needs_groups(tmp_path: Path) -> None:
    named = [{"group": f"g{i % 2}"} for i in range(8)]
    trainer(tmp_path, LedgerCallback(tmp_path / "run", dataset=named, group_momentum=True)).train()
    carried = intaglio.open_run(tmp_path / "run").table("group_carry")["group"].to_pylist()
    assert {"g0", "g1"} <= set(carried)
    for options in ({}, {"dataset": named, "max_rows": 0}):
        one = trainer(tmp_path, LedgerCallback(tmp_path / "other", group_momentum=True, **options))
        with pytest.raises(InputError, match="`group` column, and this data has none"):
            one.train()
        assert hooks(one.model) == 0 and not list(tmp_path.glob("other*"))


def test_looking_rows_up_keeps_random_states_and_limits() -> None:
    def drawing(batch):
        np.random.rand(), torch.rand(1)
        return collate(batch)

    loader = torch.utils.data.DataLoader(rows(), batch_size=2, collate_fn=drawing)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state()  # random's own is drawn from by type checks
    assert len(sources_of(loader)) == 7
    assert states[0] == np.random.get_state()[1].tolist() and torch.equal(states[1], torch.get_rng_state())
    assert sources_of(loader, max_rows=7) == {}
    with pytest.warns(RuntimeWarning, match="were not looked up"):
        assert sources_of(loader, max_seconds=-1.0) == {}

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows())

    assert sources_of(torch.utils.data.DataLoader(Stream(), batch_size=2, collate_fn=collate)) == {}


def test_agreement_is_averaged_before_it_is_divided() -> None:
    step = {"data_shift": 1.0, "update_l2": 2.0, "closure": 1e-8}
    found = scalars([step | {"agreement_gg": gg, "agreement_s": 3.0} for gg in (-1.0, 3.0)])
    assert found["intaglio/agreement"] == pytest.approx(0.25)
    assert found["intaglio/data_share"] == 0.5
    norms = scalars([{"update_l2": None, "agreement_gg": 1.0, "agreement_s": 1.0}])
    assert norms == {"intaglio/agreement": 0.5}


# -- endings


def test_the_end_is_the_last_step_not_the_best_checkpoint(tmp_path: Path) -> None:
    model, probe = tiny(), collate(rows(3))
    made = Trainer(
        model, TrainingArguments(**arguments(
            tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, learning_rate=0.5,
            load_best_model_at_end=True, max_steps=3,
        )),
        train_dataset=rows(), eval_dataset=rows(3), data_collator=collate,
        callbacks=[LedgerCallback(tmp_path / "run", probes={"anchor": probe})],
    )  # fmt: skip
    made.train()
    run = check_books(tmp_path / "run", steps=3)
    losses = [line["eval_loss"] for line in made.state.log_history if "eval_loss" in line]
    assert min(losses) < 0.9 * losses[-1]  # this learning rate spoils the model
    assert run.table("probes")["loss_nats"].to_pylist()[-1] == pytest.approx(losses[-1], rel=0.05)


class Breaks(TrainerCallback):
    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.at:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of luck")])
def test_a_broken_training_leaves_a_readable_partial_run_and_no_hooks(tmp_path: Path, error: BaseException) -> None:
    model, callback = tiny(), LedgerCallback(tmp_path / "run")
    made = trainer(tmp_path, callback, model=model, before=[Breaks(2, error)])
    with pytest.raises(type(error)):
        made.train()
    run = intaglio.open_run(tmp_path / "run")
    assert not run.complete and run.table("steps")["step"].to_pylist() == [0, 1]
    assert hooks(model) == 0 and callback.ledger is None and "_run_epoch" not in vars(made)


def test_a_dropped_callback_takes_its_hooks_along(tmp_path: Path) -> None:
    model, callback = tiny(), LedgerCallback(tmp_path / "run")
    made = trainer(tmp_path, callback, model=model)
    made.create_optimizer()
    callback.on_train_begin(made.args, made.state, made.control, model=model, optimizer=made.optimizer)
    assert hooks(model) > 0
    made.callback_handler.callbacks.clear()
    del callback, made
    import gc

    gc.collect()
    assert hooks(model) == 0
    assert not intaglio.open_run(tmp_path / "run").complete


def test_resuming_continues_the_partial_run(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    whole = tiny()
    trainer(tmp_path / "a", LedgerCallback(tmp_path / "whole"), model=whole, **saving).train()
    callback = LedgerCallback(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "b", callback, before=[Breaks(5, KeyboardInterrupt())], **saving).train()
    again = tiny()
    made = trainer(tmp_path / "b", LedgerCallback(tmp_path / "run"), model=again, **saving)
    made.train(resume_from_checkpoint=True)
    run = check_books(tmp_path / "run", steps=6)
    other = check_books(tmp_path / "whole", steps=6)
    for table, column in (("steps", "data_shift"), ("visits", "shift"), ("steps", "path_l2")):
        ours, theirs = (r.table(table)[column].to_pylist() for r in (run, other))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-9)
    assert run.manifest["unit_length"] == other.manifest["unit_length"]


def test_what_a_resumed_training_no_longer_sees_is_not_measured(tmp_path: Path) -> None:
    """The Trainer loads the checkpoint before its callbacks begin: the weights of step 0 are gone."""
    ids = torch.arange(3, 11)[None]
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    options = {"probes": {"anchor": {"input_ids": ids}}, "probe_every": 1}
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, LedgerCallback(tmp_path / "run", **options), before=[Breaks(5, KeyboardInterrupt())],
                model=tiny(), **saving).train()  # fmt: skip
    made = trainer(tmp_path, LedgerCallback(tmp_path / "run", **options), model=tiny(), **saving)
    made.train(resume_from_checkpoint=True)
    run = check_books(tmp_path / "run", steps=6)
    steps, probes = (sorted(run.table(t).to_pylist(), key=lambda r: r["step"]) for t in ("steps", "probes"))
    assert [r["net_l2"] is None for r in steps] == [False] * 4 + [True] * 2
    assert [r["kl_nats"] is None for r in probes] == [False] * 4 + [True] * 3
    assert all(r["loss_nats"] > 0 and r["residual_nats"] is not None for r in probes[:6])
    assert set(run.column("drift", "step")) == {0, 1, 2, 3}


def test_an_existing_run_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer(tmp_path, LedgerCallback(tmp_path / "run")).train()
    model = tiny()
    with pytest.raises(StoreError):
        trainer(tmp_path, LedgerCallback(tmp_path / "run"), model=model).train()
    assert hooks(model) == 0
    trainer(tmp_path, LedgerCallback(tmp_path / "run", force=True)).train()


def test_a_fault_inside_lets_training_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from intaglio.measure import ledger

    def fails(*args, **kwargs):
        raise ZeroDivisionError("a fault of the instrument")

    monkeypatch.setattr(ledger, "settle", fails)
    model = tiny()
    made = trainer(tmp_path, LedgerCallback(tmp_path / "run"), model=model)
    with pytest.warns(RuntimeWarning, match="training goes on"):
        made.train()
    assert made.state.global_step == 4 and hooks(model) == 0
    assert "ZeroDivisionError" in intaglio.open_run(tmp_path / "run").manifest["fault"]


def test_other_ways_of_distributing_are_refused_by_name(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from intaglio.callback import _check_way

    with pytest.raises(UnmeasurableError, match="DataParallel"):
        _check_way(SimpleNamespace(world_size=1, n_gpu=2))
    with pytest.raises(UnmeasurableError, match="fsdp"):
        _check_way(SimpleNamespace(world_size=2, n_gpu=1, fsdp="full_shard"))
    with pytest.raises(UnmeasurableError, match="torch_compile"):
        _check_way(SimpleNamespace(world_size=1, n_gpu=0, torch_compile=True))


# -- accelerate


def test_an_accelerate_loop_with_the_plain_ledger(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = tiny()
    loader = torch.utils.data.DataLoader(rows(), batch_size=2, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader)
    with intaglio.Ledger(model, optimizer, out=tmp_path / "run", sources=sources_of(loader), quiet=True, strict=True):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    run = check_books(tmp_path / "run", steps=2)
    check_rows(run, 8)
    assert hooks(model) == 0


# -- a loss that bypasses the head


class Bypassing(LlamaForCausalLM):
    """A fused loss as Liger's kernels make it: the head's matrix is used, its module is not called."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **kwargs):
        from transformers.modeling_outputs import CausalLMOutputWithPast

        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, :-1]
        loss = nn.functional.cross_entropy((hidden @ self.lm_head.weight.T).flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss)


@pytest.mark.parametrize("tied", [False, True])
def test_a_fused_loss_stands_in_the_books_by_name(tmp_path: Path, tied: bool) -> None:
    model = Bypassing(tiny(tied=tied).config)
    made = trainer(tmp_path, LedgerCallback(tmp_path / "run"), model=model)
    with pytest.warns(RuntimeWarning, match="a fused loss bypasses the head"):
        made.train()
    run = check_books(tmp_path / "run", steps=4)
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert run.manifest["unmeasured"] == [name] and run.manifest["coverage"] < 0.9
    assert min(run.table("steps")["unmeasured_shift"].to_pylist()) > 0
    assert run.table("visits")["loss_nats"].null_count == run.table("visits").num_rows
    assert set(run.table("visits")["push_kind"].to_pylist()) == {"as_weighted"}
    check_rows(run, 8)


# -- TRL: heads that are not called, packing, preference pairs

TEXTS = ["Once upon a time", "The cat sat on the mat", "A dog ran", "Tom and Lily went home", "She said hi"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<eos>", "<unk>", *(chr(i) for i in range(32, 127))]
    made = Tokenizer(WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    made.pre_tokenizer = Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def trl_model(folder: Path, *, tied: bool) -> LlamaForCausalLM:
    tiny(tied=tied, vocab=128).save_pretrained(folder / "model")  # DPO loads its reference from the model's folder
    return LlamaForCausalLM.from_pretrained(folder / "model")


def lora_config(wanted: bool):
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if wanted else None


@pytest.mark.parametrize("how", ["plain", "packed", "completion only, tied", "lora", "dft", "checkpointing"])
def test_sft(tmp_path: Path, tokenizer, how: str) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    prompted = "completion" in how
    columns = {"prompt": TEXTS, "completion": [t[::-1] for t in TEXTS]} if prompted else {"text": TEXTS}
    config = trl.SFTConfig(
        **arguments(tmp_path, max_steps=3, gradient_checkpointing=how == "checkpointing"), max_length=48,
        packing=how == "packed", loss_type="dft" if how == "dft" else "nll", bf16=False,
    )  # fmt: skip
    model = trl_model(tmp_path, tied="tied" in how)
    made = trl.SFTTrainer(
        model, args=config, train_dataset=datasets.Dataset.from_dict(columns), processing_class=tokenizer,
        peft_config=lora_config(how == "lora"), callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    made.train()
    run = check_books(tmp_path / "run", steps=3)
    assert run.manifest["coverage"] == 1.0 and "headless" not in run.manifest
    visits = run.table("visits").to_pylist()
    kind = "as_weighted" if how == "dft" else "token_sum"
    assert {v["push_kind"] for v in visits} == {kind}
    if how != "dft":
        losses = [line["loss"] for line in made.state.log_history if "loss" in line]
        assert run.table("steps")["loss_nats"].to_pylist() == pytest.approx(losses, rel=1e-4)
    if how == "packed":
        assert len({v["example"] for v in visits}) == 5
    else:
        check_rows(run, 5)
    assert hooks(made.model) == 0


@pytest.mark.parametrize("lora", [False, True])
def test_dpo(tmp_path: Path, tokenizer, lora: bool) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    pairs = {"prompt": TEXTS, "chosen": [t[::-1] for t in TEXTS], "rejected": [f"no {t}" for t in TEXTS]}
    model = trl_model(tmp_path, tied=False)
    made = trl.DPOTrainer(
        model, args=trl.DPOConfig(**arguments(tmp_path, max_steps=3, bf16=False), max_length=48),
        train_dataset=datasets.Dataset.from_dict(pairs), processing_class=tokenizer, peft_config=lora_config(lora),
        callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    made.train()
    run = check_books(tmp_path / "run", steps=3)
    visits = run.sql("select * from visits join examples using (example)").arrow().read_all().to_pylist()
    assert len(visits) == 10  # two texts of each pair; the reference's forwards do not count
    assert {v["push_kind"] for v in visits} == {"token_sum"}
    assert all((v["loss_weight"] > 0) == (v["group"] == "chosen") for v in visits)  # the rejected text is unlearnt
    assert hooks(made.model) == 0


def test_dpo_push_is_of_the_texts_own_loss(tmp_path: Path, tokenizer) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    pairs = {"prompt": TEXTS[:1], "chosen": ["blue"], "rejected": ["green"]}
    model = trl_model(tmp_path, tied=True)
    oracle = trl_model(tmp_path, tied=True)
    made = trl.DPOTrainer(
        model, args=trl.DPOConfig(**arguments(tmp_path, max_steps=1, bf16=False), max_length=48),
        train_dataset=datasets.Dataset.from_dict(pairs), processing_class=tokenizer,
        callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    made.train()
    run = intaglio.open_run(tmp_path / "run")
    found = run.sql("select * from visits join examples using (example)").arrow().read_all().to_pylist()
    for visit in found:
        ids, mask = torch.tensor([visit["token_ids"]]), torch.tensor(visit["target_mask"])
        labels = ids.masked_fill(~mask, -100)
        oracle.zero_grad()
        (oracle(input_ids=ids, labels=labels).loss * int(mask.sum())).backward()
        own = sum(float(p.grad.double().square().sum()) for p in oracle.parameters()) ** 0.5
        assert visit["push"] == pytest.approx(own, rel=1e-3)
