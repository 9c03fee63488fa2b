"""LedgerCallback under TRL's other trainers: KTO and GRPO are measured, a reward model is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import intaglio
from intaglio.callback import LedgerCallback
from intaglio.errors import UnmeasurableError
from test_callback import TEXTS, arguments, check_books, check_rows, hooks, lora_config, tiny, tokenizer, trl_model

trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
assert tokenizer  # the fixture of test_callback, used below by its name


def joined(path: Path) -> list[dict]:
    run = intaglio.open_run(path)
    return run.sql("select * from visits join examples using (example)").arrow().read_all().to_pylist()


def check_pushes(oracle: torch.nn.Module, visits: list[dict]) -> None:
    """Of the first step, against a backward of its own for every text."""
    first = [v for v in visits if v["step"] == 0]
    assert first
    for visit in first:
        ids, mask = torch.tensor([visit["token_ids"]]), torch.tensor(visit["target_mask"])
        oracle.zero_grad()
        (oracle(input_ids=ids, labels=ids.masked_fill(~mask, -100)).loss * int(mask.sum())).backward()
        own = sum(float(p.grad.double().square().sum()) for p in oracle.parameters()) ** 0.5
        assert visit["push"] == pytest.approx(own, rel=1e-3)
        assert visit["loss_nats"] == pytest.approx(
            float(oracle(input_ids=ids, labels=ids.masked_fill(~mask, -100)).loss), rel=1e-4
        )


def letters(text: str) -> str:
    return text.replace(" ", "")  # the small tokenizer sets one after every letter


@pytest.mark.parametrize("lora", [False, True])
def test_kto(tmp_path: Path, tokenizer, lora: bool) -> None:
    wanted = [True, False, True, False]
    data = {"prompt": TEXTS[:4], "completion": [t[::-1] for t in TEXTS[:4]], "label": wanted}
    made = trl.KTOTrainer(
        trl_model(tmp_path, tied=False), args=trl.KTOConfig(**arguments(tmp_path, max_steps=2, bf16=False), max_length=48),
        train_dataset=datasets.Dataset.from_dict(data), processing_class=tokenizer, peft_config=lora_config(lora),
        callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    made.train()
    check_rows(check_books(tmp_path / "run", steps=2), 4)  # the forwards for the KL term and the reference do not count
    visits = joined(tmp_path / "run")
    assert {v["push_kind"] for v in visits} == {"token_sum"}
    assert all((v["loss_weight"] > 0) == wanted[v["row"][0]] for v in visits)
    if not lora:
        check_pushes(trl_model(tmp_path, tied=False), visits)
    assert hooks(made.model) == 0


@pytest.mark.parametrize("how", ["plain", "lora", "accumulated, with a reference"])
def test_grpo(tmp_path: Path, tokenizer, how: str) -> None:
    """Every completion is an example: its prompt is no target, and its weight has its advantage's sign."""
    rewards: dict[str, float] = {}

    def reward(prompts, completions, **kwargs) -> list[float]:
        found = [float(sum(map(ord, c)) % 7) for c in completions]
        mean = sum(found) / len(found)
        rewards.update({letters(p + c): r - mean for p, c, r in zip(prompts, completions, found)})
        return found

    more = {"gradient_accumulation_steps": 2, "num_iterations": 2, "beta": 0.1} if "accumulated" in how else {"beta": 0.0}
    steps = 1 if how == "plain" else 2
    config = arguments(tmp_path, max_steps=steps, bf16=False, per_device_train_batch_size=4, num_generations=4,
                       max_completion_length=8, **more)  # fmt: skip
    made = trl.GRPOTrainer(
        trl_model(tmp_path, tied=False), reward_funcs=reward, args=trl.GRPOConfig(**config),
        train_dataset=datasets.Dataset.from_dict({"prompt": TEXTS}), processing_class=tokenizer,
        peft_config=lora_config(how == "lora"), callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    made.train()
    check_books(tmp_path / "run", steps=steps)
    visits = joined(tmp_path / "run")
    assert len(visits) == steps * (8 if "accumulated" in how else 4)
    assert all(0 < sum(v["target_mask"]) <= 8 for v in visits)
    if how == "plain":
        assert {v["push_kind"] for v in visits} == {"token_sum"}
        signs = {letters(tokenizer.decode(v["token_ids"])): v["loss_weight"] > 0 for v in visits}
        assert signs == {text: advantage > 0 for text, advantage in rewards.items()}
        check_pushes(trl_model(tmp_path, tied=False), visits)
    assert hooks(made.model) == 0


def test_grpo_where_no_completion_is_better_than_another(tmp_path: Path, tokenizer) -> None:
    """No gradient at all: nothing moves, nothing is claimed, and training goes on."""
    config = arguments(tmp_path, max_steps=2, bf16=False, per_device_train_batch_size=4, num_generations=4,
                       max_completion_length=8, beta=0.0)  # fmt: skip
    made = trl.GRPOTrainer(
        trl_model(tmp_path, tied=False), reward_funcs=lambda completions, **kwargs: [1.0] * len(completions),
        args=trl.GRPOConfig(**config), train_dataset=datasets.Dataset.from_dict({"prompt": TEXTS}),
        processing_class=tokenizer, callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    made.train()
    run = intaglio.open_run(tmp_path / "run")
    assert run.complete and "fault" not in run.manifest
    for row in run.table("steps").to_pylist():
        assert row["update_l2"] == row["data_shift"] == 0 and row["closure"] is None


def test_a_reward_model_is_refused_when_training_begins(tmp_path: Path, tokenizer) -> None:
    from transformers import LlamaForSequenceClassification

    config = tiny(vocab=128).config
    config.num_labels, config.pad_token_id = 1, 0
    made = trl.RewardTrainer(
        LlamaForSequenceClassification(config), args=trl.RewardConfig(**arguments(tmp_path, bf16=False), max_length=48),
        train_dataset=datasets.Dataset.from_dict({"chosen": TEXTS, "rejected": [t[::-1] for t in TEXTS]}),
        processing_class=tokenizer, callbacks=[LedgerCallback(tmp_path / "run")],
    )  # fmt: skip
    with pytest.raises(UnmeasurableError, match="LlamaForSequenceClassification"):
        made.train()
    assert hooks(made.model) == 0 and not list(tmp_path.glob("run*"))
