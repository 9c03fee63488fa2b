"""Every lens draws a scheme, and the sizes in it are the model's own: all of them differ, so none can stand for another."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from tokenizers import processors
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import byte_tokenizer
from intaglio.choice import why
from intaglio.measure.choice.lenses.sampling import SETTINGS, WRITTEN
from intaglio.report.choice.words import Words, choice_catalogue
from intaglio.trace import LENSES
from intaglio.views import Trace

PROMPT, OTHER = "The key is in a. The key is in b. The key is in", "The key is in b. The key is in"
CORPUS = "The key is in a. The cat is in b.\n" * 7
LAYERS, HEADS, KEY_HEADS, SIZE, WIDTH, NEURONS, VOCABULARY = 5, 6, 2, 22, 36, 71, 277
TOKENS, REPLACED = len(PROMPT) + 1, LAYERS * (HEADS + 1)
PARTS = REPLACED + 3  # the embedding, the biases of the norm and of the output matrix
ELSEWHERE = {"embedding", "tokenization"}  # their sizes are tested with them


def model(layers: int, width: int, vocabulary: int, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=NEURONS, num_hidden_layers=layers, head_dim=SIZE,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, max_position_embeddings=128, initializer_range=0.3,
    )).eval()  # fmt: skip


def without_a_beginning():
    """Another vocabulary, and one token less."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["zz"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    return tokenizer


@pytest.fixture(scope="module")
def subject():
    return model(LAYERS, WIDTH, VOCABULARY), byte_tokenizer()


@pytest.fixture(scope="module")
def trace(subject) -> Trace:
    peers = [(model(LAYERS, 54, 293, seed=1), byte_tokenizer()), (model(3, 60, 281, seed=2), without_a_beginning())]
    return why(subject, PROMPT, target="a", against="b", versus=peers, versus_prompt=OTHER, corpus=CORPUS)


def boxes(trace: Trace, name: str, lang: str = "en") -> list[tuple[str, str]]:
    """Words and sizes of a lens's scheme as they stand on its page."""
    title = re.escape(str(Words(lang)(f"{name}.figure.scheme.title")))
    page = trace.lens(name).to_html(lang=lang)
    (drawn,) = re.findall(rf'<div class="figtitle">{title}</div><div class="chart">(.*?)</div></div>', page, re.DOTALL)
    return re.findall(r"<b>(.*?)</b><i>(.*?)</i>", drawn)


def x(*counts: int) -> str:
    return " × ".join(map(str, counts))


def wanted(subject, trace: Trace) -> dict[str, list[str]]:
    """Sizes of every scheme, from the models' making and from counting in the texts."""
    logits = subject[0](torch.tensor([trace.about["ids"]])).logits[0, -1].double()
    shares, top = logits.softmax(0).sort(descending=True).values.cumsum(0), logits.topk(5).indices.tolist()
    a, b = subject[1].convert_tokens_to_ids(["a", "b"])
    pairs = len({frozenset(top[:2]), frozenset((a, b))})
    tables = {name: lens.get("tables") for name, lens in trace.lenses.items()}
    changed = sum(v is not None for r in tables["reasoning"]["changes"] for k, v in r.items() if k.endswith("_first"))
    text = PROMPT.split(" ")
    swaps = len(text) - 2  # the first word has no space before it and stays
    runs = swaps + 4 + 1 + 3  # words shuffled, sentences reversed, 1, 8 and 64 places on
    ending = next(n for n in range(len(PROMPT), 0, -1) if PROMPT[-n:] in PROMPT[:-1])
    in_corpus = next(n for n in range(len(PROMPT), 0, -1) if PROMPT[-n:] in CORPUS)
    times = [len(re.findall(f"(?={re.escape(PROMPT[-n:])}.)", t, re.DOTALL)) for n, t in ((ending, PROMPT), (in_corpus, CORPUS))]
    return {
        "distribution": [x(TOKENS), x(LAYERS, WIDTH), x(VOCABULARY), x(VOCABULARY),
                         "; ".join(str(int((shares < share).sum()) + 1) for share in (0.5, 0.9)), "4", "14; 14; 7; 7"],
        "heads": [x(HEADS, SIZE), x(KEY_HEADS, TOKENS, SIZE), x(HEADS, TOKENS), x(KEY_HEADS, TOKENS, SIZE), x(HEADS, SIZE),
                  x(HEADS, WIDTH), x(HEADS, TOKENS)],
        "context": [x(TOKENS), x(TOKENS, TOKENS - 1), x(TOKENS, LAYERS + 1, WIDTH), x(TOKENS, TOKENS), x(2, TOKENS, WIDTH),
                    x(TOKENS, 4), "3", "2"],
        "position": [x(TOKENS), x(swaps, TOKENS), x(4, TOKENS), x(1, TOKENS), x(3, TOKENS), x(runs, VOCABULARY), x(runs)],
        "votes": [x(LAYERS, HEADS), x(LAYERS), "3", x(WIDTH), x(1, PARTS), x(REPLACED, PARTS), x(REPLACED)],
        "residual": [x(WIDTH), x(2, LAYERS, WIDTH), x(WIDTH), "1", x(WIDTH), x(WIDTH), "1"],
        "neurons": [x(WIDTH), x(NEURONS, WIDTH), x(NEURONS), x(WIDTH, NEURONS), x(WIDTH), x(NEURONS)],
        "rotary": [x(TOKENS, SIZE), x(SIZE // 2, 2), x(TOKENS, SIZE // 2), x(TOKENS, TOKENS)],
        "temperature": [x(TOKENS), x(VOCABULARY), x(12, VOCABULARY), x(len({*top, a, b}) + 1, 12), x(pairs), x(pairs, 4)],
        "interference": [x(TOKENS), x(LAYERS, HEADS, TOKENS), x(LAYERS, HEADS), "4", "2", "2", x(5, VOCABULARY)],
        "sampling": [x(TOKENS), x(VOCABULARY), x(len(SETTINGS), VOCABULARY), x(sum(n for _, n in WRITTEN), 12),
                     x(4, VOCABULARY), x(4, 8), x(4, TOKENS), "8"],
        "architecture": [x(VOCABULARY, WIDTH), x(LAYERS, HEADS), x(LAYERS, NEURONS), x(WIDTH), x(VOCABULARY)],
        "tuning": [x(TOKENS), x(LAYERS, WIDTH), x(LAYERS, 54), f"{x(TOKENS, VOCABULARY)}; {x(TOKENS, 293)}", x(TOKENS),
                   x(2, LAYERS + 1), x(2, PARTS)],
        "instruction": [x(TOKENS), x(len(OTHER) + 1), x(LAYERS, HEADS, SIZE), x(2, VOCABULARY), x(2, LAYERS + 1, VOCABULARY),
                        x(2, PARTS)],
        "reasoning": [x(TOKENS), "2", x(len("The key is in a. The key is in b.")), x(32, VOCABULARY), x(changed, VOCABULARY),
                      x(2, 16, 5), x(len(tables["reasoning"]["words"]))],
        "corpus": [x(TOKENS), x(ending, times[0]), x(VOCABULARY), x(len(CORPUS)), x(in_corpus, times[1]), x(VOCABULARY),
                   x(LAYERS, HEADS, Counter(PROMPT)["a"])],
        "models": [x(TOKENS), x(LAYERS, WIDTH), x(TOKENS, VOCABULARY), x(TOKENS), x(LAYERS, 54), x(TOKENS, 293), x(TOKENS - 1),
                   x(3, 60), x(TOKENS - 1, 281), x(TOKENS - 2), x(3, TOKENS - 1, 257)],
        "trajectory": [x(WIDTH), f"{LAYERS} × (+ {WIDTH})", x(WIDTH), x(WIDTH), x(VOCABULARY, WIDTH), x(VOCABULARY)],
    }  # fmt: skip


def test_every_lens_draws_its_own_sizes(subject, trace):
    expected = wanted(subject, trace)
    assert set(LENSES) - ELSEWHERE == set(expected)
    for name in expected:
        assert "skipped" not in trace.lenses[name], name
        english, russian = boxes(trace, name), boxes(trace, name, "ru")
        assert [size.replace(",", "") for _, size in english] == [size.replace(",", "") for size in expected[name]], name
        sizes = [re.sub("[\u202f,]", "", size) for _, size in russian]
        assert sizes == [size.replace(",", "") for size in expected[name]], name
        for lang, drawn in (("en", english), ("ru", russian)):
            worded = {text for key, text in choice_catalogue()[lang].items() if key.startswith(f"{name}.scheme.")}
            assert {word for word, _ in drawn} == worded, (name, lang)


@pytest.mark.parametrize("name", sorted(set(LENSES) & ELSEWHERE))
def test_the_other_lenses_draw_one_too(name, trace):
    assert boxes(trace, name) and boxes(trace, name, "ru")


def test_what_was_not_run_has_no_box(subject):
    """One sentence, no corpus, no part replaced; another model of other depth."""
    few = why(subject, "a b a c a b", versus=(model(3, 54, 293, seed=1), byte_tokenizer()), effects=False)
    assert few.lenses["reasoning"]["skipped"]["reason"] == "no_steps"
    counts = {"distribution": 5, "context": 6, "position": 6, "votes": 5, "interference": 5, "tuning": 5, "corpus": 4}
    for name, count in counts.items():
        assert len(boxes(few, name)) == len(boxes(few, name, "ru")) == count, name
    full = why(subject, "a b c " * 21 + "a", effects=False, lenses=["sampling", "position"])
    assert full.lenses["sampling"]["numbers"]["steps"] == 0
    assert [size for _, size in boxes(full, "sampling")] == ["128", "277", f"{len(SETTINGS)} × 277"]
