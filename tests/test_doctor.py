"""`intaglio doctor`: sound models pass, a part that is not measured or measured wrongly is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from intaglio.commands.doctor import doctor
from intaglio.errors import InputError
from intaglio.measure import doctor as the_doctor
from intaglio.measure.doctor import diagnose
from intaglio.model.layout import build_layout

SIZES = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
STORIES = Path(os.environ.get("INTAGLIO_SHARED", Path(__file__).parents[2] / "shared")) / "data/models/stories260k"


def _gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=16, n_layer=2, n_head=4, n_positions=64))


def _neox():
    config = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**config))


FAMILIES = {
    "gpt2": _gpt2,
    "gpt_neox": _neox,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, pad_token_id=0)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16)),
}


def tiny(family: str = "llama") -> torch.nn.Module:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_models_are_supported_and_given_back(family: str) -> None:
    model = tiny(family).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = diagnose(model)
    assert found.healthy, found.verdict
    assert found.measured == found.parameters == sum(p.numel() for p in model.parameters())
    assert len(found.closures) == the_doctor.STEPS and max(found.closures) < 1e-4
    assert found.push_error < 1e-4 and found.logits_identical and not found.hooks_left
    assert all(part.gradient_match < 1e-5 for part in found.parts)
    assert found.verdict.endswith("this model is supported") and "measured 100 %" in found.verdict
    assert model.training and all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_adapters_are_measured_on_the_product() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules="all-linear"))
    found = diagnose(model)
    assert found.healthy and found.lora, found.verdict
    assert found.push_error < 1e-4 and "trained parameters" in found.verdict


class Bent(torch.nn.Linear):
    """A linear layer of another class: nothing says that its gradient is a sum of writes."""


def test_an_unknown_module_is_named() -> None:
    model = tiny()
    old = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = Bent(old.in_features, old.out_features, bias=False)
    found = diagnose(model)
    assert not found.healthy and "model.layers.1.mlp.up_proj.weight" in found.verdict
    mlp = next(part for part in found.parts if part.part == "MLP")
    assert mlp.parameters - mlp.measured == old.weight.numel()
    assert max(found.closures) < 1e-4  # it stands in the books under its own name


def test_a_matrix_dropped_from_the_map_breaks_the_books(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*args: object):
        layout = build_layout(*args)
        layout.sites = [s for s in layout.sites if not s.name.endswith("0.self_attn.o_proj")]
        for i, site in enumerate(layout.sites):
            site.index = i
        return layout

    monkeypatch.setattr("intaglio.measure.ledger.build_layout", forgetful)
    found = diagnose(tiny())
    assert not found.healthy and max(found.closures) > 1e-3
    assert "model.layers.0.self_attn.o_proj.weight" in found.verdict  # counted by the doctor, not by the map


def test_a_wrong_write_is_named_by_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from intaglio.measure.collect import Collector

    right = Collector._linear

    def wrong(self, record, site, a, b):
        right(self, record, site, a, b * 1.01 if site.name.endswith("1.mlp.down_proj") else b)

    monkeypatch.setattr(Collector, "_linear", wrong)
    found = diagnose(tiny())
    assert not found.healthy
    assert "the gradient of MLP is not the sum of the examples'" in found.verdict


def test_what_cannot_be_measured_at_all_says_so() -> None:
    model = tiny().requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    found = diagnose(model)
    assert found.parts  # a gain alone is measured
    model.model.norm.weight.requires_grad_(False)
    assert "cannot be measured: none of its parameters requires a gradient" in diagnose(model).verdict


@pytest.mark.skipif(not STORIES.exists(), reason="shared models are not here")
@pytest.mark.parametrize("lora", [None, 2])
def test_the_command_on_a_real_model(lora: int | None, capsys: pytest.CaptureFixture) -> None:
    doctor(str(STORIES), lora=lora)
    said = capsys.readouterr().out
    assert "gradient match" in said and said.rstrip().endswith("this model is supported")
    assert ("260,032 parameters" in said) == (lora is None)


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(InputError):
        doctor("smollm2", lora=0)
