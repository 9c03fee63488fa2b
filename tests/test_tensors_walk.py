"""The walk from an idea to the bytes: the printed code is run on the file's tensors and must give the model's own value."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES, family, ids
from intaglio.address import Address
from intaglio.errors import InputError, SubjectError
from intaglio.model.anatomy import Anatomy, matrix_of
from intaglio.model.capture import Capture, capture, head_writes
from intaglio.model.families import place
from intaglio.model.proof import prove
from intaglio.model.slices import places_of
from intaglio.model.tensors import open_checkpoint
from intaglio.model.walk import Walk, walk_of
from intaglio.model.walk.recipes import RECIPES
from intaglio.report.tensors import TensorWords, render_walk
from intaglio.report.tensors.walk import config_rows, place_rows, words_of

TOLERANCE = 3e-5  # in units of the largest number compared; the model rounds in another order
_GROUPED = FAMILIES["llama"]
VARIANTS = {  # settings that the tiny families leave at their defaults
    "llama3_rope": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}),
    "linear_rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma2_window": ("gemma2", {"sliding_window": 4}),
    "gemma3_mixed": ("gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention",
                                                                           "sliding_attention"]}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "smollm3_no_rope": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "neox_serial": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True}),
    "gpt2_scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "phi3_partial": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "tied": ("llama", {"tie_word_embeddings": True}),
}  # fmt: skip


def _model(name: str) -> torch.nn.Module:
    if name not in VARIANTS:
        return family(name)
    kind, changes = VARIANTS[name]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(FAMILIES[kind] | changes))).eval().float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.1))
    return model


def _run(walk: Walk, folder: Path, **given: torch.Tensor) -> torch.Tensor:
    """Execute the text that is printed, in the folder of the model."""
    before, names = Path.cwd(), dict(given)
    os.chdir(folder)
    try:
        exec("\n".join([*walk.setup, *walk.code]), names)
    finally:
        os.chdir(before)
    return names["out"]


def _norms(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What goes into and comes out of every norm inside a layer, by address."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    sandwich = any(n.endswith("post_feedforward_layernorm") for n, _ in model.named_modules())
    hooks = []
    for name, module in model.named_modules():
        address = place(name, sandwich=sandwich).address
        if address.part == "norm" and address.layer is not None:
            key = str(address)
            hooks.append(module.register_forward_hook(lambda m, i, o, key=key: seen.__setitem__(key, (i[0][0], o[0]))))
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return seen


def _wanted(anatomy: Anatomy, seen: Capture, layer: int, walk: Walk) -> tuple[torch.Tensor, torch.Tensor]:
    """What a part of a layer reads, and what it must add."""
    held, scale, address = seen.layers[layer], anatomy.residual_scale, walk.address
    before = held.resid_BTD[0]
    x = before if walk.reads == "residual" else before + scale * held.attn_BTD[0]
    if ".attn" in address:
        heads = head_writes(anatomy, held, layer)[0]
        return x, scale * (held.attn_BTD[0] if walk.kind == "attn" else heads[:, walk.values["head"]])
    if walk.kind == "mlp":
        return x, scale * held.mlp_BTD[0]
    neuron = walk.values["neuron"]
    return x, scale * held.neurons_BTN[0, :, neuron, None] * matrix_of(anatomy.blocks[layer].down)[:, neuron]


def _same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", [*RECIPES, *VARIANTS])
@torch.no_grad()
def test_the_printed_code_gives_the_models_own_value(name: str, tmp_path: Path):
    model = _model(name)
    model.save_pretrained(tmp_path)
    file, anatomy, batch = open_checkpoint(tmp_path), prove(model), ids(13)
    seen = capture(anatomy, batch)

    def walked(address: str) -> Walk:
        found = walk_of(file, address)
        assert 1 <= len(found.code) <= 8
        assert {p["tensor"] for p in places_of(file, address)} <= {*found.tensors, *_biases(file, found)}
        return found

    _same(_run(walked("embed"), tmp_path, ids=batch[0]), seen.tokens_BTD[0] * anatomy.embed_scale)
    if seen.positions_BTD is not None:
        _same(_run(walked("embed.pos"), tmp_path, ids=batch[0]), seen.positions_BTD[0])
    _same(_run(walked("norm"), tmp_path, x=seen.final_BTD[0]), seen.normed_BTD[0])
    _same(_run(walked("unembed"), tmp_path, x=seen.normed_BTD[0]), seen.logits_BTV[0])
    norms = _norms(anatomy.model, batch)
    for layer in (1, 2):
        for address in (f"L{layer}.attn", f"L{layer}.attn.H0", f"L{layer}.attn.H3", f"L{layer}.mlp", f"L{layer}.mlp.N7"):
            walk = walked(address)
            x, wanted = _wanted(anatomy, seen, layer, walk)
            _same(_run(walk, tmp_path, x=x), wanted)
        own = [key for key in norms if key.startswith(f"L{layer}.")]
        assert len(own) >= 1
        for key in own:
            _same(_run(walked(key), tmp_path, x=norms[key][0]), norms[key][1])


def _biases(file: object, walk: Walk) -> set[str]:
    """Biases of a part that the code of one of its heads or neurons leaves out, for they are nobody's."""
    return {n for n in file.entries if n.endswith(".bias")}


def test_mutated_weights_change_what_the_code_gives(tmp_path: Path):
    model = family("llama")
    model.save_pretrained(tmp_path)
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    before = _run(walk_of(open_checkpoint(tmp_path), "L1.attn.H2"), tmp_path, x=x)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 24:36] *= 2  # head 2 writes twice as much
    model.save_pretrained(tmp_path)
    after = walk_of(open_checkpoint(tmp_path), "L1.attn.H2")
    torch.testing.assert_close(_run(after, tmp_path, x=x), 2 * before)


@pytest.mark.real
@torch.no_grad()
def test_the_walk_of_the_builtin_model():
    from intaglio.model.subject import load_subject

    subject = load_subject("smollm2")
    file, anatomy = open_checkpoint(subject.folder), prove(subject.model)
    seen = capture(anatomy, torch.tensor([subject.tokenizer("The capital of France is")["input_ids"]]))
    walk = walk_of(file, "L18.attn.H6")
    x, wanted = _wanted(anatomy, seen, 18, walk)
    _same(_run(walk, subject.folder, x=x), wanted)
    assert walk.values["sharers"] == [6, 7, 8]
    assert [p["rows"] or p["columns"] for p in places_of(file, "L18.attn.H6")] == [[384, 448], [128, 192], [128, 192], [384, 448]]


def _refused(folder: Path, address: str, error: type[Exception] = SubjectError) -> str:
    with pytest.raises(error) as found:
        walk_of(open_checkpoint(folder), address)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    family("llama").save_pretrained(folder)
    return folder


def _changed(saved: Path, tmp_path: Path, **changes: object) -> Path:
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    config = json.loads((saved / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))
    return tmp_path


@pytest.mark.parametrize(("changes", "says"), [
    ({"model_type": "bloom"}, "the code of this family is not known here"),
    ({"model_type": None}, "the code of this family is not known here"),
    ({"hidden_act": "mish"}, "this activation is not known here"),
    ({"rms_norm_eps": "gone"}, "config.json has no rms_norm_eps"),
    ({"use_bidirectional_attention": True}, "both directions"), ({"model_type": ["llama"]}, "of this family is not known here"),
    ({"rms_norm_eps": "1e-6) or print(1"}, "rms_norm_eps in config.json is not a number"),
    ({"num_attention_heads": "4"}, "num_attention_heads in config.json is not a count"),
    ({"num_hidden_layers": 0}, "num_hidden_layers in config.json is not a count"),
    ({"hidden_act": ["silu"]}, "this activation is not known here"),
])  # fmt: skip
def test_what_is_not_written_down_is_refused_in_one_line(saved: Path, tmp_path: Path, changes: dict, says: str):
    assert says in _refused(_changed(saved, tmp_path, **changes), "L1.mlp")


@pytest.mark.parametrize(("changes", "says"), [
    ({"num_key_value_heads": 4}, "key heads"), ({"head_dim": 24}, "the heads of layer 1 do not fit the tensors"),
    ({"rope_parameters": {"rope_theta": "9; print(1)"}}, "rope_theta in config.json is not a number"),
    ({"rope_parameters": [1]}, "the rotary positions in config.json are not as they should be"),
    ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear"}}, "factor in config.json is not a number"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 3}}, "the share of a head that is turned"),
    ({"attn_logit_softcapping": "1) or print(1"}, "attn_logit_softcapping in config.json is not a number"),
])  # fmt: skip
def test_settings_of_attention_that_cannot_be_are_refused(saved: Path, tmp_path: Path, changes: dict, says: str):
    assert says in _refused(_changed(saved, tmp_path, **changes), "L1.attn.H0")


def test_names_that_would_be_code_are_refused(saved: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    evil = '"]; print(1); w["'
    folder = _changed(saved, tmp_path)
    save_file({n.replace("model.", evil + ".", 1): t for n, t in load_file(saved / "model.safetensors").items()},
              folder / "model.safetensors")  # fmt: skip
    assert "no layer is named" in _refused(folder, "L1.mlp")
    shard = tmp_path / "sharded"
    shard.mkdir()
    shutil.copy(saved / "config.json", shard)
    shutil.copy(saved / "model.safetensors", shard / 'a", print(1), ".safetensors')
    walk = walk_of(open_checkpoint(shard), "L1.mlp")
    assert _run(walk, shard, x=torch.ones(2, 48)).shape == (2, 48)


def test_files_without_a_configuration_and_gguf_are_refused(saved: Path, tmp_path: Path):
    shutil.copy(saved / "model.safetensors", tmp_path / "alone.safetensors")
    assert "no config.json" in _refused(tmp_path / "alone.safetensors", "L1.mlp")
    file = open_checkpoint(saved)
    file.path = Path("model.gguf")
    with pytest.raises(SubjectError, match="read safetensors"):
        walk_of(file, "L1.mlp")


def test_unknown_rotary_positions_are_refused(saved: Path, tmp_path: Path):
    folder = _changed(saved, tmp_path, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0})
    assert "rotary positions is not known here; got yarn" in _refused(folder, "L1.attn.H0")
    assert walk_of(open_checkpoint(folder), "L1.mlp").code  # the rest does not need them


def test_a_tensor_that_the_code_would_pass_over_is_refused(saved: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors") | {"model.layers.1.self_attn.q_norm.weight": torch.ones(12)}
    folder = _changed(saved, tmp_path)
    save_file(weights, folder / "model.safetensors")
    assert "q_norm" in _refused(folder, "L1.attn.H0")
    assert walk_of(open_checkpoint(folder), "L0.attn.H0").code


@pytest.mark.parametrize("address", ["L1.attn.H4", "L1.mlp.N96", "L1.attn.bias", "other", "L1.attn.H"])
def test_a_part_that_is_not_there(saved: Path, address: str):
    _refused(saved, address, InputError)


@pytest.mark.parametrize("address", ["L3.attn", "L1.norm.q", "embed.pos"])
def test_a_part_that_the_family_has_not(saved: Path, address: str):
    _refused(saved, address)


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_every_kind_of_part_has_its_words_and_its_page(saved: Path, lang: str):
    t, file = TensorWords(lang), open_checkpoint(saved)
    for address in ("embed", "unembed", "norm", "L1.norm.attn", "L1.attn", "L1.attn.H1", "L1.mlp", "L1.mlp.N3"):
        walk, places = asdict(walk_of(file, address)), places_of(file, address)
        said = words_of(t, walk)
        assert said["idea"] and said["reads"] and place_rows(t, places) and config_rows(t, walk)
        page = render_walk(walk, places, "<b>model</b>", lang=lang)
        assert "<b>model" not in page and "http" not in page.replace("http://www.w3.org", "")
        for row in places:
            assert f"{t.numbers.whole(row['start'])}–{t.numbers.whole(row['stop'])}" in page and row["tensor"] in page


def test_all_words_stand_in_both_languages():
    from intaglio.report.tensors import tensors_catalogue

    found = tensors_catalogue()
    assert found["en"].keys() == found["ru"].keys()
    import re

    for key, text in found["en"].items():
        assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", found["ru"][key])), key
    for why in ("width", "heads", "eps"):
        assert f"walk.why.{why}" in found["en"]


def test_every_word_that_a_walk_may_ask_for_is_there():
    """Keys that stand in the code of the walk, read from its source."""
    import re

    from intaglio.report.tensors import tensors_catalogue

    folder, held = Path(__file__).parents[1] / "src/intaglio/model/walk", tensors_catalogue()["en"]
    source = "".join(p.read_text() for p in folder.glob("*.py"))
    asked = re.compile(r"(?:f|facts|self)\.(?:take|number|count|of_layer)\([^,()]+(?:\([^)]*\))?, [\"'](\w+)[\"']")
    whys = {*asked.findall(source), "rope"}
    assert {"heads", "rope", "softcap"} <= whys
    assert not [w for w in whys if f"walk.why.{w}" not in held]
    notes = set(re.findall(r"notes\.append\(\"(\w+)\"\)", source))
    assert len(notes) > 5 and not [n for n in notes if f"walk.note.{n}" not in held]


def test_addresses_print_as_they_were_asked_for(saved: Path):
    assert walk_of(open_checkpoint(saved), str(Address("attn", 1, head=2))).address == "L1.attn.H2"
