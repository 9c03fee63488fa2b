"""What a settled step of adapters holds: their directions, one for every head, and what it takes to make them."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from intaglio.measure import ledger as module
from intaglio.measure import lora
from intaglio.measure.ledger import Ledger
from study import train
from test_budget import live_bytes
from tiny import batch, micro, texts


def adapted(heads: int, targets: str | list[str], *, rank: int = 8):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=53, hidden_size=256, intermediate_size=384, num_hidden_layers=3, num_attention_heads=heads,
                    num_key_value_heads=max(1, heads // 4), max_position_embeddings=64)
    )  # fmt: skip
    model = get_peft_model(model, LoraConfig(r=rank, target_modules=targets))
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def peak_bytes(seen: profile) -> int:
    """Most bytes that were taken and not yet given back, over those held at the start."""
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("together", [1, 1 << 14, 1 << 20])
@pytest.mark.parametrize(("heads", "targets"), [(32, ["q_proj"]), (32, ["o_proj"]), (1, "all-linear"), (16, "all-linear")])
def test_making_the_directions_takes_no_more_than_is_predicted(heads, targets, together, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "TOGETHER", together)
    (model, optimizer), taken, plain = adapted(heads, targets), [], module.settle

    def settle(*args, **options):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            books = plain(*args, **options)
        taken.append(peak_bytes(seen))
        return books

    monkeypatch.setattr(module, "settle", settle)
    with warnings.catch_warnings(), Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True) as ledger:
        warnings.simplefilter("ignore", UserWarning)  # of the profiler
        predicted = lora.lora_bytes(ledger.layout)
        for seed in range(2):
            model(**batch(texts((3,), seed=seed))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(taken) == 2 and 0.5 * predicted < max(taken) < predicted


def test_a_settled_step_of_many_heads_stays_below_the_budget(tmp_path, monkeypatch):
    """With 32 heads the directions are as large as all copies many times over."""
    (model, optimizer), held, plain = adapted(32, ["q_proj", "o_proj"]), [], module.agreement_of

    def known() -> set[int]:
        training = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None),
                    *(v for s in optimizer.state.values() for v in s.values())]  # fmt: skip
        return {tensor.untyped_storage().data_ptr() for tensor in training}

    def agreement_of(*args):
        held.append(live_bytes(known()) - before)
        return plain(*args)

    monkeypatch.setattr(module, "agreement_of", agreement_of)
    before = live_bytes(known())
    copies = 2 * sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    study = train(model, optimizer, [[micro(texts((3,), seed=s))] for s in range(2)], tmp_path / "run",
                  memory=50 * copies, probes={"target": batch(texts(seed=9))}, probe_every=1)  # fmt: skip
    said = study.run.manifest["memory"]
    predicted = said["copies_bytes"] + said["probe_bytes"] + 3 * said["factor_bytes_per_token"]
    assert [r["measured"] for r in study.rows("steps")] == ["full", "full"]
    assert 5 * copies < max(held) < predicted + 10 * said["sketch_bytes_per_forward"]
