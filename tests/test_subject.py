"""Subjects: what is found, what is refused, and that a local one asks nothing of any hub."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from intaglio.cache import cache_folder
from intaglio.errors import IntaglioError, SubjectError, UnmeasurableError
from intaglio.model import subject

SHARED = Path(os.environ.get("INTAGLIO_SHARED", Path(__file__).parents[1].parent / "shared"))


@pytest.fixture
def shared() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no public data at {SHARED} (set INTAGLIO_SHARED)")
    return SHARED / "data"


@pytest.fixture
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with random weights, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                         vocab_size=40, tie_word_embeddings=False)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_line(error: IntaglioError, *words: str) -> None:
    text = str(error)
    assert "\n" not in text and "Traceback" not in text
    assert all(word in text for word in words), text


def test_a_folder_loads_without_network(stories: Path, no_network: None) -> None:
    loaded = subject.load_subject(stories)
    assert loaded.name == "stories260k" and loaded.folder == stories
    assert not loaded.model.training and loaded.context_tokens == 512
    assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    ids = loaded.tokenizer("One day, a little boy named Tim went to the park with his mom. He saw a big red ball.",
                           return_tensors="pt").input_ids  # fmt: skip
    with torch.no_grad():
        assert loaded.model(ids, labels=ids).loss.item() == pytest.approx(0.487, abs=0.002)


def test_a_fingerprint_is_of_content_not_of_the_object(stories: Path) -> None:
    first, second = subject.load_subject(stories), subject.load_subject(stories)
    assert first.fingerprint == second.fingerprint == subject.fingerprint(first.model)
    with torch.no_grad():
        next(second.model.parameters()).view(-1)[3] += 1e-7
    assert subject.fingerprint(second.model) != first.fingerprint
    assert subject.load_subject(stories, dtype="bfloat16").fingerprint != first.fingerprint


def test_sharding_does_not_change_the_fingerprint(stories: Path, tmp_path: Path) -> None:
    whole = subject.load_subject(stories)
    whole.model.save_pretrained(tmp_path, max_shard_size="300KB")
    whole.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert subject.load_subject(tmp_path).fingerprint == whole.fingerprint


def test_the_malformed_gguf_is_refused_and_leaves_nothing(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTAGLIO_CACHE", str(tmp_path))
    with pytest.raises(SubjectError) as caught:
        subject.load_subject(shared / "models" / "malformed" / "onegin.gguf")
    one_line(caught.value, "onegin.gguf is a malformed GGUF", "shapes")
    assert not [p for p in (tmp_path / "models").iterdir() if p.is_dir()]


@pytest.mark.parametrize("data, words", [
    (b"", "is no GGUF"), (b"PK\x03\x04" * 50, "is no GGUF"), (b"GGUF", "is a malformed GGUF: it is cut short"),
])  # fmt: skip
def test_what_only_has_the_name_of_a_gguf(data: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTAGLIO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(SubjectError) as caught:
        subject.load_subject(tmp_path / "m.gguf")
    one_line(caught.value, words)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "state.pkl"])
def test_pickles_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    for spec in (folder, folder / name):
        with pytest.raises(SubjectError) as caught:
            subject.load_subject(spec)
        one_line(caught.value, "pickle", "can execute code", "safetensors")


@pytest.mark.parametrize(
    "changes, kind, words",
    [
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, SubjectError, ["auto_map", "never run"]),
        ({"model_type": "mine"}, SubjectError, ["does not know", "mine"]),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, SubjectError, ["not a causal", "Masked"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, SubjectError, ["not a causal"]),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, UnmeasurableError,
         ["quantised", "bitsandbytes, 4 bit"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, UnmeasurableError, ["gptq, 8 bit"]),
    ],
)  # fmt: skip
def test_a_configuration_is_refused_by_name(folder: Path, changes: dict, kind: type, words: list[str]) -> None:
    edit_config(folder, **changes)
    with pytest.raises(kind) as caught:
        subject.load_subject(folder)
    one_line(caught.value, *words)


def test_broken_folders_are_refused(stories: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stories / name, folder / name)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(SubjectError) as caught:
        subject.load_subject(folder)
    one_line(caught.value, "cannot load")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SubjectError, match="holds no weights"):
        subject.load_subject(folder)
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(SubjectError, match="LoRA adapter"):
        subject.load_subject(folder)
    with pytest.raises(SubjectError, match=r"no config\.json"):
        (tmp_path / "model.safetensors").touch()
        subject.load_subject(tmp_path)


def test_missing_tensors_are_refused(stories: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stories / name, folder / name)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SubjectError, match=r"lacks 1 .*lm_head"):
        subject.load_subject(folder)


@pytest.mark.parametrize("spec", ["./nowhere", "/nowhere/at/all", "nowhere.gguf", "a/b/c"])
def test_a_path_that_is_not_there_never_asks_a_hub(spec: str, no_network: None) -> None:
    with pytest.raises(SubjectError) as caught:
        subject.load_subject(spec)
    one_line(caught.value, "no such model", spec, "smollm2")


def test_an_unknown_id_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise OSError("offline\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(SubjectError) as caught:
        subject.load_subject("nobody/no-such-model")
    one_line(caught.value, "nobody/no-such-model", "hub cannot be reached")


def test_what_is_made_once_is_whole_or_not_there(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        (aside / "half").touch()
        raise SubjectError("no")

    with pytest.raises(SubjectError):
        subject._make_once(tmp_path / "made", fail)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    made = [subject._make_once(tmp_path / "made", lambda aside: (aside / "x").touch()) for _ in range(2)]
    assert made[0] == made[1] and (made[0] / "x").exists()


def test_a_file_that_is_not_the_known_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"not it")
    with pytest.raises(SubjectError, match="not the file that is known"):
        subject._check_sha256(tmp_path / "x.whl", "0" * 64)


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INTAGLIO_CACHE", raising=False)
    assert cache_folder("models") == tmp_path / "intaglio" / "models"
    monkeypatch.setenv("INTAGLIO_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"


@pytest.mark.real
def test_the_builtin_model_knows_paris(request: pytest.FixtureRequest) -> None:
    subject.ensure_builtin()
    request.getfixturevalue("no_network")  # from here on it is a local subject
    loaded = subject.load_subject("smollm2")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        probability, token = loaded.model(ids).logits[0, -1].softmax(-1).max(-1)
    assert loaded.tokenizer.decode(token) == " Paris" and probability.item() == pytest.approx(0.7725, abs=5e-4)
    assert loaded.name == "smollm2" and loaded.context_tokens == 8192
    assert loaded.model.get_input_embeddings().padding_idx == loaded.tokenizer.eos_token_id == 2
    assert loaded.model.config.tie_word_embeddings


@pytest.mark.real
def test_the_builtin_tokenizer_kept_its_template_and_russian() -> None:
    tokenizer = subject.load_tokenizer("smollm2")
    turns = [{"role": "user", "content": "hi"}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    text = "Привет, мир! Ёлка — 25 рублей."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
