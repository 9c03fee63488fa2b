"""Pages of the lenses that look at a choice from outside: temperature, sampling, context, position."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from importlib import resources

import pytest
import torch

from conftest import byte_tokenizer
from intaglio.choice import why
from intaglio.measure.choice.decision import decide
from intaglio.measure.choice.decoding import (
    Setting,
    processed,
)  # fmt: skip
from intaglio.report.choice.words import choice_catalogue
from intaglio.views import Trace
from lens_checks import unfilled

OURS = ("context", "position", "temperature", "sampling")


def pages(trace: Trace) -> tuple[str, str]:
    return trace.to_html(), trace.to_html(lang="ru")


@pytest.fixture(scope="module")
def bytes_model():
    """A tiny model over bytes: any text, any language."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    torch.manual_seed(3)
    llama = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128)  # fmt: skip
    gpt2 = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=48)
    models = {"llama": LlamaForCausalLM(llama), "gpt2": GPT2LMHeadModel(gpt2)}
    with torch.no_grad():
        for model in models.values():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.3)
    return models, tokenizer


PROMPTS = {
    "english": ("llama", "He left. Because it rained. Tell me: is it wet? Yes"), "russian": ("gpt2", "Кот спал. Пёс? Да, "),
    "hostile": ("llama", "<script>alert(1)</script> & \"x\" {a}\n $'"), "single": ("llama", "a"),
    "full": ("gpt2", "a b c. d e f. g h i j. k l m n o p q r s t u vw"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPTS)
@pytest.mark.parametrize("against", [None, "Z"])
def test_pages_of_both_languages_stand(case, against, bytes_model, monkeypatch):
    monkeypatch.undo()
    models, tokenizer = bytes_model
    name, prompt = PROMPTS[case]
    trace = why((models[name], tokenizer), prompt, target="b", against=against, effects=False, lenses=OURS)
    trace.to_json()
    if case == "single":
        assert trace.lenses["position"] == {"skipped": {"reason": "one_word"}}
        trace.lenses["context"] = {"skipped": {"reason": "one_token"}}
    for page in pages(trace):
        assert "<script>alert" not in page
        assert not unfilled(page)
        for lens in OURS:
            assert f'id="{lens}"' in page or "skipped" in trace.lenses[lens]


def test_every_text_is_reachable():
    """Each key is named in the code that says it; a key that nothing names is dead."""
    root = resources.files("intaglio")
    for name in OURS:
        code = {kind: (root / folder / f"{name}.py").read_text(encoding="utf-8") for kind, folder in (
            ("says", "analyse/choice"), ("shows", "report/choice/lenses"), ("skip", "measure/choice/lenses"))}  # fmt: skip
        for key in (k.split(".", 1)[1] for k in choice_catalogue()["en"] if k.startswith(f"{name}.")):
            kind, last = key.split(".")[0], key.split(".")[-1]
            if kind == "says":
                assert last in code["says"] or last.startswith("role_"), key
            elif kind == "skip":
                assert f'"{last}"' in code["skip"], key
            elif kind == "figure":
                assert f'("{key.split(".")[1]}"' in code["shows"] or key.split(".")[1] == "scheme", key
            elif kind == "scheme":
                assert f'"{last}"' in code["shows"], key
            elif kind == "column":
                assert last in code["shows"] or last.startswith("at"), key


@pytest.mark.page
@pytest.mark.parametrize("query", [
    {}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.6, "temperature": 1.3}, {"top_k": 9, "top_p": 0.5}, {"min_p": 0.3},
    {"temperature": 1.95, "top_k": 40, "top_p": 0.9, "min_p": 0.05}, {"temperature": 2.0, "top_p": 0.99}, {"min_p": 0.01},
])  # fmt: skip
def test_the_sliders_show_what_the_processors_give(query, bytes_model, monkeypatch, tmp_path):
    chromium = shutil.which("chromium") or pytest.skip("no chromium")
    monkeypatch.undo()
    models, tokenizer = bytes_model
    pair = (models["llama"], tokenizer)
    trace = why(pair, "He left", effects=False, lenses=["sampling"])
    trace.to_html(tmp_path / "page.html")
    address = f"file://{tmp_path}/page.html#open=sampling" + "".join(f"&{k}={v}" for k, v in query.items())
    dom = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", address],
                         capture_output=True, text=True, check=True, timeout=60).stdout  # fmt: skip
    shown = re.findall(r'<div class="cand( cut)?">.*?<span>([\d.]+)%</span></div>', dom)
    logits = decide(*pair, "He left").logits_V
    scores = processed(logits, Setting("", **query))
    order = logits.argsort(descending=True)[:14]
    wanted = scores.softmax(0)[order]
    assert len(shown) == 14
    for (cut, percent), score, share in zip(shown, scores[order], wanted):
        assert bool(cut) == bool(score == -math.inf)
        assert float(percent) == pytest.approx(100 * float(share), abs=0.06)
    kept = int((scores > -math.inf).sum())
    beyond = 200 < kept < len(logits)
    assert ("stored in this page: they all can be drawn" if beyond else f"{kept} of {len(logits)} tokens can be drawn") in dom
    assert beyond == (query == {"temperature": 2.0, "top_p": 0.99})
