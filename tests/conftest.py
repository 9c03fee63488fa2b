"""What the tests share: offline, the public data beside the repository, a tiny subject on disk, the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub reads it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

pytest.register_assert_rewrite("training")  # a failure there shows what differs

SHARED = Path(os.environ.get("INTAGLIO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = ("the cat sat", "a dog ran far", "one two three", "red and blue", "I see it", "no more rain", "the end")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data; a test that needs it is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no public data at {SHARED} (set INTAGLIO_SHARED)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A real model of 260,000 parameters, trained on children's stories."""
    return shared / "models" / "stories260k"


@pytest.fixture(scope="session")
def smollm2_anatomy():
    """The built-in model's parts; read, never changed."""
    from intaglio.model.proof import prove
    from intaglio.model.subject import load_subject

    return prove(load_subject("smollm2").model)


def byte_tokenizer(*, chat: bool = False):
    """One token per byte, with a beginning and an end; no file is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", *letters])}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )  # fmt: skip
    if chat:
        found.chat_template = CHAT
    return found


def save_subject(folder: Path, *, chat: bool = False, seed: int = 0, **changes: object) -> Path:
    """A tiny Llama with random weights, saved as a person would have it: safetensors and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    tokenizer = byte_tokenizer(chat=chat)
    config = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(config | changes)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny subject without a chat template; read, never written."""
    return save_subject(tmp_path_factory.mktemp("subject") / "tiny")


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    return save_subject(tmp_path_factory.mktemp("subject") / "tiny-chat", chat=True)


@pytest.fixture(scope="session")
def findings():
    """A run of planted findings; read, never changed."""
    from sample_findings import sample

    return sample()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def write_words(path: Path, words: Iterable[str] = WORDS) -> Path:
    """Plain texts as rows, by turns of group a and b."""
    return write_jsonl(path, ({"text": t, "group": "ab"[i % 2]} for i, t in enumerate(words)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few short texts of two groups."""
    return write_words(tmp_path / "data.jsonl")


@pytest.fixture
def longer(tmp_path: Path) -> Path:
    """The same and one long text, which a small budget for memory cannot hold."""
    return write_jsonl(tmp_path / "longer.jsonl", [*({"text": t} for t in WORDS), {"text": "and so on, " * 4}])


@pytest.fixture
def probe(tmp_path: Path) -> str:
    """A probe as the command line names it."""
    return f"anchor={write_jsonl(tmp_path / 'anchor.jsonl', [{'text': 'a cat ran'}, {'text': 'two dogs'}])}"


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end without the summary and the page, which have tests of their own."""
    from intaglio.commands import summary

    monkeypatch.setattr(summary, "conclude", lambda *_, **__: None)


@pytest.fixture
def intaglio() -> Callable[..., None]:
    """Run the command line in this process; it must succeed."""
    from intaglio.cli import main

    def run(*words: object) -> None:
        try:
            main([str(w) for w in words])
        except SystemExit as stopped:
            assert not stopped.code, f"exit code {stopped.code}"

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, which must stop with exit code 2 and one line; returns that line."""
    from intaglio.cli import main

    def run(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(w) for w in words])
        said = capsys.readouterr().err
        assert stopped.value.code == 2, said
        assert "Traceback" not in said
        line = said.rstrip("\n").rsplit("\n", 1)[-1]
        assert line.startswith("intaglio: "), said
        assert said.count("intaglio: ") == 1, said
        return line

    return run
