"""Adapters merged on the fly, from their two files alone, against peft's own merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from families import family
from intaglio.analyse.tensors.diff import find
from intaglio.errors import SubjectError
from intaglio.measure.tensors.diff import diff
from intaglio.measure.tensors.pair import Merged, open_pair

CASES: dict[str, tuple[str, dict]] = {
    "plain": ("llama", {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"]}),
    "rank_stabilised": ("llama", {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["v_proj"]}),
    "patterns": ("llama", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj"],
                           "rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"k_proj": 32}}),
    "conv1d": ("gpt2", {"r": 2, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "embedding": ("llama", {"r": 2, "lora_alpha": 6, "target_modules": ["embed_tokens", "o_proj"]}),
    "saved_module": ("llama", {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "trained_biases": ("qwen2", {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "bias": "lora_only"}),
    "fused": ("phi3", {"r": 2, "lora_alpha": 2, "target_modules": ["qkv_proj", "gate_up_proj"]}),
}  # fmt: skip


def _adapted(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Save a base and an adapter on it; the state that peft merges them to."""
    kind, settings = CASES[name]
    model = family(kind)
    model.save_pretrained(folder / "base")
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    adapted.save_pretrained(folder / "adapter")
    return {n: p.detach().numpy() for n, p in adapted.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_merge_is_pefts(name: str, tmp_path: Path):
    merged = _adapted(name, tmp_path)
    pair = open_pair(tmp_path / "base", tmp_path / "adapter")
    assert isinstance(pair, Merged)
    before = load_file(tmp_path / "base/model.safetensors")
    moved = set()
    for tensor, entry in pair.base.entries.items():
        rows = entry.shape[0] if entry.shape else 1
        for span in ((0, rows), (rows // 3, rows // 2)):
            _, b, d = pair.both(tensor, *span)
            wanted = merged[tensor][slice(*span)] if len(entry.shape) > 1 else merged[tensor][None, slice(*span)]
            np.testing.assert_allclose(b, wanted.reshape(b.shape), rtol=1e-5, atol=2e-6, err_msg=tensor)
            change = wanted.reshape(b.shape) - before[tensor].numpy()[slice(*span)].reshape(b.shape)
            np.testing.assert_allclose(d(slice(None)), change, rtol=1e-3, atol=2e-6)
        if not pair.still(tensor):
            moved.add(tensor)
            assert np.abs(merged[tensor] - before[tensor].numpy()).max() > 1e-4
    assert moved


@pytest.mark.filterwarnings("ignore")
def test_an_adapters_change_has_its_rank_and_all_else_stays(tmp_path: Path):
    _adapted("plain", tmp_path)
    found = diff(tmp_path / "base", tmp_path / "adapter")
    moved = [r for r in found.rows["tensors"] if r["changed"]]
    assert {r["part"] for r in moved} == {"q", "down"} and len(moved) == 6 and found.about["adapter"]
    assert all(1 <= r["rank"] <= 3.001 and len([v for v in r["top_values"] if v > 1e-5 * r["top_values"][0]]) == 3 for r in moved)
    assert "adapter" in [s.key for s in find(found.about, found.rows)["limits"]]


@pytest.mark.filterwarnings("ignore")
def test_the_same_as_the_merged_model_saved(tmp_path: Path):
    merged = _adapted("embedding", tmp_path)
    shutil.copytree(tmp_path / "base", tmp_path / "merged")
    save_file({n: torch.from_numpy(v).contiguous() for n, v in merged.items()}, tmp_path / "merged/model.safetensors")
    on_the_fly, saved = (diff(tmp_path / "base", tmp_path / n) for n in ("adapter", "merged"))
    for a, b in zip(on_the_fly.rows["tensors"], sorted(saved.rows["tensors"], key=lambda r: r["tensor"]), strict=True):
        assert a["tensor"] == b["tensor"] and a["relative"] == pytest.approx(b["relative"], rel=1e-4)
        if a.get("rank"):
            assert a["rank"] == pytest.approx(b["rank"], rel=1e-3)
    assert any(r["relative"] for r in saved.rows["tensors"]) and any(r["relative"] for r in saved.rows["heads"])
    for a, b in zip(on_the_fly.rows["heads"], saved.rows["heads"], strict=True):
        assert a["address"] == b["address"] and a["relative"] == pytest.approx(b["relative"], rel=1e-4)


def _config(folder: Path, **changes: object) -> None:
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    _adapted("plain", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("changes", "says"), [
    ({"use_dora": True}, "not merged here; got DoRA"), ({"peft_type": "IA3"}, "not merged here; got IA3"),
    ({"lora_alpha": None}, "does not say lora_alpha"), ({"lora_alpha": "8"}, "does not say lora_alpha"),
    ({"alpha_pattern": {"(a+)+(b+)+$": 1}}, "is not one that adapters need"),
])  # fmt: skip
def test_adapters_that_are_not_merged_here(adapted: Path, changes: dict, says: str):
    _config(adapted, **changes)
    with pytest.raises(SubjectError, match=says) as found:
        open_pair(adapted / "base", adapted / "adapter")
    assert "\n" not in str(found.value)


def _weights(folder: Path, change: dict) -> None:
    path = folder / "adapter/adapter_model.safetensors"
    held = load_file(path)
    save_file({n: t for n, t in (held | change).items() if t is not None}, path)


def test_adapters_that_do_not_fit(adapted: Path):
    stem = "base_model.model.model.layers.1.self_attn.q_proj"
    for change, says in (
        ({f"{stem}.lora_A.weight": None}, "lacks one of the two factors"),
        ({f"{stem}.lora_A.weight": torch.ones(3, 40)}, "does not fit the base"),
        ({f"{stem}.lora_A.weight": torch.ones(2, 48)}, "do not fit each other"),
        ({"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(3, 48)}, "no such tensor"),
        ({f"{stem}.lora_magnitude_vector": torch.ones(48)}, "got DoRA"),
        ({"base_model.model.lm_head.weight": torch.ones(3, 48)}, "does not fit the base: lm_head.weight"),
    ):
        shutil.rmtree(adapted / "tried", ignore_errors=True)
        shutil.copytree(adapted / "adapter", adapted / "tried/adapter")
        _weights(adapted / "tried", change)
        with pytest.raises(SubjectError, match=says):
            open_pair(adapted / "base", adapted / "tried/adapter")
    (adapted / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(SubjectError, match=r"has no adapter_model\.safetensors"):
        open_pair(adapted / "base", adapted / "adapter")
