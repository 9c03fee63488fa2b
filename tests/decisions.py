"""Decisions of tiny models, each traced once with all lenses: what pages are checked on."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import byte_tokenizer
from families import FAMILIES, VOCAB
from intaglio.choice import reference_ids, why
from intaglio.measure.choice.tuned import fit, save_lens
from intaglio.model.proof import prove
from intaglio.trace import TraceData
from intaglio.views import Trace
from wordy import word_tokenizer

CORPUS = "The x is a. So it is x. The y is b. So it is y then. It is so. " * 4
ARGUMENT, OTHER = "The x is a. The y is b. So it is ", "The z is a. The y is b. So it is "
STEPS = "Two and 3 is 5. Then five and 4 is 9, because it is. What is it? Say it. The answer is "
BANK = " the bank ran by the river. the river ran by the"
RUSSIAN = "Кот сел на стол. Пёс лёг, потому что ночь. Кот сел на "


def model_of(name: str, vocabulary: int, *, seed: int = 1, loud: float = 2.0, spread: float = 0.1, **changes) -> nn.Module:
    """A random model of a family; its output matrix makes it `loud`, so that its choices differ."""
    torch.manual_seed(seed)
    room = {"n_positions": 256} if name in ("gpt2", "gptj") else {"max_position_embeddings": 256}
    config = FAMILIES[name] | room | {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1} | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **config)).eval().float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (3 * spread if p.ndim == 1 else spread))
        model.get_output_embeddings().weight.mul_(loud)
    return model


def bytes_pair(name: str, **how):
    """A model whose tokens are bytes."""
    return model_of(name, 261, **how), byte_tokenizer()


def words_pair(name: str, **how):
    """A model of 97 tokens, some of them words: its table of candidates holds them all."""
    return model_of(name, VOCAB, **how), word_tokenizer()


def favour(pair, prompt: str, **logits: float):
    """The same model with the logits of some bytes raised after a prompt."""
    model, tokenizer = pair
    with torch.no_grad():
        anatomy = prove(model)
        seen = []
        handle = anatomy.norm.register_forward_hook(lambda module, inputs, output: seen.append(output[0, -1]))
        model(torch.tensor([tokenizer(prompt)["input_ids"]]))
        handle.remove()
        for text, more in logits.items():
            (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
            anatomy.unembed.weight[token] += more * seen[0] / seen[0].square().sum()
    return model, tokenizer


def argument(name: str = "llama", *, seed: int = 1, text: str = ARGUMENT, x: float = 6.0, y: float = 5.5, **more) -> Trace:
    """Two statements that name a side each."""
    return why(favour(bytes_pair(name, seed=seed), text, x=x, y=y), text, target="x", against="y", **more)


def _argument() -> Trace:
    return argument(versus=bytes_pair("llama", seed=2), versus_prompt=OTHER, corpus=CORPUS)


def _russian() -> Trace:
    subject = bytes_pair("gpt2", loud=1.0)
    return why(subject, RUSSIAN, versus=[words_pair("llama", seed=3), bytes_pair("gpt2", seed=4)], versus_prompt="Кот ел. Пёс",
               corpus="Кот сел на стул. Пёс сел на пол.\n")  # fmt: skip


def _steps() -> Trace:
    subject = model_of("qwen2", 261, seed=5), byte_tokenizer(chat=True)
    found = prove(subject[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lens"
        save_lens(fit(found, reference_ids(subject[1]) * 3, steps=0), found, path)
        return why(subject, STEPS, target="9", against="5", tuned=path, versus=bytes_pair("llama", seed=6), versus_target="4")


def _words() -> Trace:
    return why(words_pair("smollm3", no_rope_layers=[1, 0, 1]), BANK, versus=[words_pair("llama")],
               versus_prompt=BANK[:-3] + "er")


def _experts() -> Trace:
    """Sinks and experts; nothing replaced, no other model; a corpus that holds nothing of the prompt."""
    return why(bytes_pair("gpt_oss"), "a cat sat on a red", target="b", effects=False, corpus="WHY? NO!", lenses=None)


def _hidden() -> Trace:
    """Attention out of sight, no positions from outside; effects by a metric of the user's."""
    def gap(logits):
        return logits[:, 92] - logits[:, 93]

    trace = why(bytes_pair("bloom"), ARGUMENT, target="x", versus_prompt=OTHER, metric=gap)
    for row in trace.lenses["architecture"]["tables"]["heads"]:  # as if the difference had risen without these heads
        row["difference_logits"] += 9 * (row["order"] == "strong")
    return trace


def _kinds() -> Trace:
    types = ["sliding_attention", "full_attention", "full_attention"]
    return why(bytes_pair("gemma3_text", layer_types=types), "He saw x. Please say x. Is it", target="X", against="y",
               versus_prompt="He saw x. Please say x. Is is")  # fmt: skip


def _biased() -> Trace:
    """One token far above all others, which alone has a logit above 0; a part of each head is not turned."""
    model = model_of("phi", 262, partial_rotary_factor=0.5)
    with torch.no_grad():
        model.lm_head.bias -= 30
        model.lm_head.bias[92] += 50
    model.generation_config.update(do_sample=True, top_k=7, temperature=0.5)
    tokenizer = byte_tokenizer(chat=True)
    tokenizer.add_tokens(["<tool_call>"])
    same = copy.deepcopy(model)
    with torch.no_grad():
        same.lm_head.weight.mul_(1.0001)
    return why((model, tokenizer), "Is it x? Say it. So x", versus=[(model, tokenizer), (same, tokenizer)], versus_target="y",
               corpus="So x is x. So xx. " * 3)  # fmt: skip


def _long() -> Trace:
    text = "Tell me of water. " + "What is it? " * 9
    model, tokenizer = bytes_pair("mistral", sliding_window=40, max_position_embeddings=len(text) + 1)
    tokenizer.chat_template = "{{ messages }} [TOOL_CALLS]"
    return why((model, tokenizer), text, target="~", lenses=["context", "position", "sampling", "reasoning", "heads", "rotary",
                                                          "embedding"])


def _short() -> Trace:
    return why(bytes_pair("llama", num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1), "ab", against="a",
               versus=bytes_pair("llama"), effects=False)  # fmt: skip


def _token() -> Trace:
    return why(bytes_pair("llama", seed=2), [70], against="a", versus=bytes_pair("llama"), effects=False)


def _turns() -> Trace:
    return argument(x=6.0, y=7.75, text=ARGUMENT, effects=False, corpus="it is x. ", lenses=["interference", "votes", "corpus",
                                                                                                "distribution"])  # fmt: skip


def _little() -> Trace:
    return argument(seed=2, x=9.0, y=8.0, effects=False, versus_prompt="It is y. Yes, x is. So is it not",
                    lenses=["interference", "trajectory", "heads", "embedding", "corpus", "instruction"])  # fmt: skip


def _plain() -> Trace:
    """Layers that write little: the choice stands with the embedding."""
    return why(bytes_pair("llama", spread=0.01, loud=3.0, tie_word_embeddings=True), "water runs. It is risen", target="r",
               effects=False,
               lenses=["architecture", "trajectory", "embedding", "tokenization", "reasoning"])  # fmt: skip


def _pieces() -> Trace:
    """A word at the very beginning, in several tokens, that one token could write."""
    _, tokenizer = words_pair("llama")
    ids = tokenizer(" riv", add_special_tokens=False)["input_ids"]
    subject = words_pair("llama", seed=3)
    return why(subject, ids, versus=subject, effects=False, lenses=["tokenization", "models", "tuning"])


def _sink() -> Trace:
    return why(bytes_pair("llama"), [70, 71], effects=False, lenses=["heads", "context", "rotary", "neurons"])


def _one_head() -> Trace:
    one = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    return why(bytes_pair("llama", seed=7, **one), "ab", against="a", effects=False, lenses=["interference", "heads",
                                                                                             "architecture",
                                                                                            "trajectory"])  # fmt: skip


def _tail() -> Trace:
    """The least likely token, and two that share the first place."""
    model, tokenizer = bytes_pair("llama", loud=6.0)
    first = why((model, tokenizer), "It is water", effects=False, lenses=[]).about["target"]["token"]
    with torch.no_grad():
        model.lm_head.weight[first - 1] = model.lm_head.weight[first]
    return why((model, tokenizer), "It is water", target="~", versus=[(model, tokenizer), bytes_pair("llama")], effects=False,
               lenses=["sampling", "temperature", "embedding", "models", "distribution", "tuning", "position"])  # fmt: skip


def _twin() -> Trace:
    """The model beside itself."""
    subject = bytes_pair("llama")
    return why(subject, "So it is", versus=subject, effects=False, lenses=["models", "tuning"])


def _carried(seed: int) -> Trace:
    other = "QQQZZZ?*!" + ARGUMENT[9:]
    return why(bytes_pair("llama", seed=seed, spread=0.15), ARGUMENT, versus_prompt=other, effects=False, lenses=["trajectory"])


def _edited() -> Trace:
    """Tables as other models might give them.

    Another way to write the word is likelier, neurons fire before one word, no Russian text stands beside; writes erase what
    stands there, none of them against another, and no coordinate is large; an MLP makes one layer's sides loud.
    """
    trace = why(words_pair("gpt2", spread=0.2), " the riveranker" + " the" * 20, target=" the", effects=False,
                lenses=["tokenization", "neurons", "embedding", "residual", "interference"])  # fmt: skip
    n, tables = (trace.lenses["tokenization"][k] for k in ("numbers", "tables"))
    rows = sorted(tables["ways"], key=lambda r: r["log_p"])
    own = next(r for r in rows if r["own"])
    for key in ("log_p", "share"):
        own[key], rows[0][key] = rows[0][key], own[key]
    n |= {"own_rank": sum(r["log_p"] > own["log_p"] for r in rows), "own_share": own["share"]}
    tables["writing"] = [r for r in tables["writing"] if r["text"] != "russian"]
    for i, row in enumerate(trace.lenses["neurons"]["tables"]["contexts"]):
        row |= {"token": "abcdefgh"[i % 8], "next": " Then" if i % 4 else " not"}
    n, tables = (trace.lenses["residual"][k] for k in ("numbers", "tables"))
    for row, cosine in zip(tables["writes"][1:], (-0.4, -0.5, -0.35)):
        row["cos_before"] = cosine
    tables["pairs"] = [r for r in tables["pairs"] if r["share"] > 0]
    n["largest_before"] = 0.03
    n, tables = (trace.lenses["interference"][k] for k in ("numbers", "tables"))
    for row, (plus, minus, mlp) in zip(tables["layers"], ((1.0, -1.0, 0.0), (0.2, -3.0, 2.0), (3.0, -0.2, -1.9))):
        row |= {"heads_for": plus, "heads_against": minus, "mlp": mlp}
    (heads,) = (r for r in tables["conflicts"] if r["over"] == "heads")
    n |= {"heads_for": 4.2, "heads_against": -4.2}
    heads |= {"for_logits": 4.2, "against_logits": -4.2, "conflict": 1.0}
    return trace


def _asked(seed: int) -> Trace:
    """A step longer than a sentence shows; marks of tools, and changes of content that weigh a little more than twice."""
    text = ("He saw x, and then he saw it all again, as far as anyone can say who was not there to see it at the time. Please "
            "say "
            "it. Is it")  # fmt: skip
    trace = why(bytes_pair("llama", seed=seed), text, target="X", effects=False, lenses=["context", "reasoning", "residual"])
    tables = trace.lenses["reasoning"]["tables"]
    tables["tools"] = [{"mark": f"<{i}>", "pieces": 1 + i, "p": (0.05, 0.21, 0.11)[i], "rank": i} for i in range(3)]
    for row, corrupt, reword in zip(tables["changes"], (0.5, -0.5), (-0.2, 0.2)):
        row |= {"corrupt_nats": corrupt, "reword_nats": reword, "corrupt_text": row["corrupt_text"] or "?", "corrupt_first": "?"}
    trace.lenses["residual"]["tables"]["pairs"] = [r for r in trace.lenses["residual"]["tables"]["pairs"] if r["share"] < 0]
    return trace


MADE: dict[str, Callable[[], Trace]] = {
    "argument": _argument, "russian": _russian, "steps": _steps, "words": _words, "experts": _experts, "hidden": _hidden,
    "kinds": _kinds, "biased": _biased, "long": _long, "short": _short, "token": _token, "turns": _turns, "little": _little,
    "plain": _plain, "pieces": _pieces, "sink": _sink, "one_head": _one_head, "tail": _tail,
    "carried": lambda: _carried(2), "not carried": lambda: _carried(1), "edited": _edited,
    "twin": _twin, "asked": lambda: _asked(5),
                                        "asked far": lambda: _asked(2),
}  # fmt: skip


@functools.cache
def traced(case: str) -> Trace:
    torch.set_num_threads(1)
    return MADE[case]()


def logits_of(trace: Trace) -> np.ndarray:
    return trace.decision.logits_V.numpy()


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    e = np.exp((logits - logits.max()) / temperature)
    return e / e.sum()


def entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def by_head(trace: Trace) -> dict[str, list[dict]]:
    """Every head's votes by source."""
    heads: dict[str, list[dict]] = defaultdict(list)
    for row in trace.rows["votes"]:
        if row["source"] is not None:
            heads[row["address"]].append(row)
    return heads


def whole(rows: list[dict]) -> float:
    return sum(r["vote_logits"] for r in rows)


def beside(trace: Trace, kind: str) -> TraceData:
    """The other side that is a `model`, with the same tokens, or a `prompt`."""
    return next(t for t in trace.beside if t.about["kind"] == kind and t.about["vocabulary"] == trace.about["vocabulary"])
