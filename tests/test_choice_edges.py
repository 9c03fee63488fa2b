"""`why` at its edges: prompts at the end of the context, token ids, misuse; nothing is left behind in the model."""

from __future__ import annotations

import hashlib
import json
import random
import sys

import numpy as np
import pytest
import torch

from conftest import save_subject
from families import FAMILIES, family
from intaglio import choice
from intaglio.errors import InputError
from intaglio.measure.choice.edits import as_text
from intaglio.measure.choice.lenses import architecture
from intaglio.model.subject import load_subject
from intaglio.trace import LENSES
from wordy import ids_of, word_tokenizer, wordy

TEXT = "the river ran by the bank. the bank ran."
OLD = ["gpt2", "opt", "gpt_neo", "gptj"]  # what they know of positions ends with the context


def filling(tokens: int) -> str:
    """A text of so many tokens, the mark of its beginning among them."""
    found = word_tokenizer().decode(ids_of((TEXT + " ") * 20)[: tokens - 1])
    assert len(word_tokenizer()(found)["input_ids"]) == tokens
    return found


def seen_of(model) -> dict[str, object]:
    """What a run must leave as it was."""
    weights = hashlib.sha256()
    for _, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        weights.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        "weights": weights.hexdigest(), "config": model.config.to_json_string(), "attention": model.config._attn_implementation,
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "grads": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "torch": torch.get_rng_state().tolist(), "python": random.getstate(), "numpy": str(np.random.get_state()),
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_lens_measures_or_skips_and_leaves_nothing_behind(name):
    model = family(name)
    model.train()
    before = seen_of(model)
    trace = choice.why((model, word_tokenizer()), TEXT, corpus=TEXT * 2, versus_prompt="the bank.")
    after = seen_of(model)
    if "beartype" in sys.modules:
        before.pop("python")  # it draws which items of a list it checks
    for what, was in before.items():
        assert after[what] == was, what
    assert list(trace.lenses) == list(LENSES) and trace.about["closes"]
    json.loads(trace.to_json(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("name", OLD)
def test_a_prompt_that_fills_the_context(name):
    full = choice.why((family(name), word_tokenizer()), filling(64))
    assert full.about["tokens"] == 64 and "skipped" not in full.lenses["tokenization"]
    assert not full.lenses["sampling"]["numbers"]["steps"]
    with pytest.raises(InputError, match="longer than the model's context"):
        choice.why((family(name), word_tokenizer()), filling(65))


def test_a_word_as_long_as_the_context_is_not_put_behind_another_text():
    long = "abcdefghij" * 6
    found = choice.why((family("gpt2"), word_tokenizer()), long, lenses=["embedding"], effects=False).lens("embedding")
    assert found.numbers["contexts"]["kind"] == "nothing"
    short = choice.why((family("gpt2"), word_tokenizer()), "abcdefghij" * 4, lenses=["embedding"], effects=False)
    assert short.lens("embedding").numbers["contexts"]["kind"] == "placed"


def test_the_reference_text_fits_the_context():
    assert len(choice.reference_ids(word_tokenizer(), 64)) == 64
    found = wordy("gpt2", TEXT)
    given = choice.Given(TEXT, choice.reference_ids(word_tokenizer()))
    assert architecture._means(found, given).z_LHd.shape[0] == found.anatomy.n_layers


def test_text_is_moved_as_tokens_where_it_might_outgrow_the_context():
    found = wordy("gpt2", TEXT)
    assert as_text(found, 1, 9)
    full = wordy("gpt2", filling(60))
    assert not as_text(full, 1, 9)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([], "the prompt is empty"), ([-1, 3], "no such token id in the prompt; got -1"), ([3, 97], "got 97; expected 0 to 96"),
     ([3.5], "neither text nor token ids"), (None, "neither text nor token ids"), (torch.ones(1, 3).long(), "neither text"),
     ("a\ud800", "not text in UTF-8")],
)  # fmt: skip
def test_a_prompt_that_is_none(prompt, said):
    with pytest.raises(InputError, match=said):
        choice.why((family("llama"), word_tokenizer()), prompt, lenses=[], effects=False)


@pytest.mark.parametrize("prompt", [[3, 4], (3, 4), np.array([3, 4]), torch.tensor([3, 4])])
def test_token_ids_of_any_kind(prompt):
    trace = choice.why((family("llama"), word_tokenizer()), prompt, lenses=[], effects=False)
    assert trace.about["ids"] == [3, 4]
    with pytest.raises(InputError, match="a chat message cannot be token ids"):
        choice.why((family("llama"), word_tokenizer()), prompt, chat=True, lenses=[], effects=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"lenses": ["votes", "nosuch"]}, "no such lens"), ({"lenses": ["tuning"]}, "lens tuning lacks what it needs"),
     ({"lenses": ["instruction"]}, "lens instruction lacks"), ({"lenses": ["models"]}, "lens models lacks"),
     ({"seed": -1}, "no such seed"), ({"seed": 1 << 64}, "no such seed"), ({"target": "\udcff"}, "target is not text in UTF-8")],
)  # fmt: skip
def test_misuse_is_refused_before_anything_is_replaced(monkeypatch, given, said):
    monkeypatch.setattr(choice, "_means", lambda *_: pytest.fail("the sweep has begun"))
    with pytest.raises(InputError, match=said):
        choice.why((family("llama"), word_tokenizer()), TEXT, **given)


def catching(monkeypatch) -> list[choice.Given]:
    """What the lenses would be given."""
    seen: list[choice.Given] = []
    monkeypatch.setattr(choice, "measure_lenses", lambda found, given, *_: seen.append(given) or {})
    return seen


def test_the_ending_looked_for_in_a_corpus_is_what_stands_before_the_choice(monkeypatch, tiny_chat):
    seen, one = catching(monkeypatch), (family("llama"), word_tokenizer())
    trace = choice.why(one, TEXT, at=2, effects=False)
    answered = trace.decision.text(trace.about["ids"][-2:])
    choice.why(one, trace.about["ids"], effects=False)
    choice.why(one, trace.about["ids"][:-2], at=2, effects=False)
    assert answered and [given.ending for given in seen] == 3 * [TEXT + answered]
    chat = load_subject(tiny_chat)
    first = choice.why(chat, "who?", chat=True, effects=False)
    later = choice.why(chat, "who?", chat=True, at=2, effects=False)
    assert seen[-2].ending == "who?" and seen[-1].ending == later.decision.text(later.about["ids"][-2:])
    assert later.about["ids"][:-2] == first.about["ids"]


def test_a_second_model_that_cannot_be_asked_is_named(tiny):
    pair, short = (family("llama"), word_tokenizer()), load_subject(tiny)
    with pytest.raises(InputError, match=r"the second model .*tiny cannot be asked: the prompt is longer"):
        choice.why(pair, filling(60), versus=short, lenses=[], effects=False)
    with pytest.raises(InputError, match="cannot be asked: the prompt is empty"):
        choice.why(pair, [0], versus=short, lenses=[], effects=False)


def test_rotary_tells_of_every_head_how_far_it_follows_distance():
    found = choice.why((family("llama"), word_tokenizer()), TEXT, lenses=["rotary"], effects=False).lens("rotary")
    heads = found.tables["heads"].to_pylist()
    assert len({r["address"] for r in heads}) == len(heads) == found.numbers["heads"] == 12
    for name in ("near_measured", "near_alone"):
        assert sum(r[name] for r in heads) / len(heads) == pytest.approx(found.numbers[name])
    assert max(r["correlation"] for r in heads) == pytest.approx(found.numbers["best_correlation"])


def test_a_metric_without_a_gradient_leaves_out_the_estimates(monkeypatch):
    def place(logits):
        return (logits > logits[:, :1]).sum(-1)

    one = family("llama"), word_tokenizer()
    trace = choice.why(one, TEXT, metric=place, lenses=[])
    effects = trace.rows["effects"]
    assert len(effects) == 15 and all(r["estimate_logits"] is None for r in effects)
    assert "place" in trace.to_html()
    monkeypatch.setattr(choice, "ALL_PRODUCTS", 0)
    with pytest.raises(InputError, match="the metric has no gradient"):
        choice.why(one, TEXT, metric=place, lenses=[])
    with pytest.raises(InputError, match="no finite number"):
        choice.why(one, TEXT, metric=lambda logits: logits[:, 0] * float("nan"), lenses=[])


def test_the_four_metrics_by_role_are_means_over_their_tokens(tiny):
    text = "The cat sat. Name the dog? Write a word. The dog ran. So the"
    seen = choice.why(load_subject(tiny), text, lenses=["context"], effects=False)
    tables = {name: rows.to_pylist() for name, rows in seen.lens("context").tables.items()}
    by_role = {r["role"]: r for r in tables["roles"]}
    assert set(by_role) == {"statement", "question", "instruction"}
    assert "The four metrics by role" in seen.to_html() and "Четыре меры по ролям" in seen.to_html(lang="ru")
    known = {r["position"]: r for r in tables["tokens"]}
    for role, row in by_role.items():
        spans = [r for r in tables["sentences"] if r["role"] == role and not r["holds_end"]]
        inside = [known[i] for r in spans for i in range(r["begin"], r["end"])]
        assert row["looked_at"] == len(inside) == row["tokens"]
        for name in ("grad_norm", "grad_times_input", "influence_logits", "loss_nats", "delta_last"):
            assert row[f"mean_{name}"] == pytest.approx(sum(r[name] for r in inside) / len(inside))


def test_a_lens_named_twice_runs_once():
    trace = choice.why((family("llama"), word_tokenizer()), TEXT, lenses=["votes", "heads", "votes"], effects=False)
    assert list(trace.lenses) == ["heads", "votes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_subject(tmp_path_factory.mktemp("edges") / "m")


def test_the_command_refuses_what_it_cannot_do(folder, refused, tmp_path):
    ask = ("why", folder, "the cat sat")
    assert "this is a folder" in refused(*ask, "--out", tmp_path)
    assert "this is a folder" in refused(*ask, "--json", tmp_path)
    assert "the same file" in refused(*ask, "--out", tmp_path / "x.html", "--json", tmp_path / "x.html")
    assert "no such seed" in refused(*ask, "--seed", "99999999999999999999")
    assert "no such lens" in refused(*ask, "--lens", "") and "no such lens" in refused(*ask, "--plan", "--lens", "nosuch")


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--out", "x.html"), "--out cannot go with"), (("--lens", "votes"), "--lens cannot"), (("--plan",), "--plan cannot"),
     (("--versus", "x", "--versus-target", "y"), "--versus, --versus-target cannot")],
)  # fmt: skip
def test_a_set_of_prompts_refuses_what_it_would_not_use(folder, refused, tmp_path, more, said):
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "the cat"}\n')
    assert said in refused("why", folder, "--prompts", path, *more)


@pytest.mark.parametrize("value", ['["a"]', "true", "1.5"])
def test_a_set_of_prompts_with_a_target_that_is_none(folder, refused, tmp_path, value):
    path = tmp_path / "set.jsonl"
    path.write_text(f'{{"prompt": "the cat", "target": {value}}}\n')
    assert "line 0 of set.jsonl names no target" in refused("why", folder, "--prompts", path)


def test_a_set_of_prompts_behind_a_byte_order_mark(folder, intaglio, tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "the cat"}\n')
    intaglio("why", folder, "--prompts", path, "--no-effects", "--json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["prompts"] == [{"prompt": "the cat"}]


def test_an_empty_corpus_is_refused():
    with pytest.raises(InputError, match="corpus is empty"):
        choice.why((family("llama"), word_tokenizer()), TEXT, corpus=" \n", effects=False)


def test_a_second_model_without_the_tokens_asked_about_is_refused():
    small = family("llama")
    small.resize_token_embeddings(40)
    asked = next(i for i in range(len(word_tokenizer()) - 1, 0, -1) if i >= 40)
    beginning = [i for i in ids_of(TEXT) if i < 40]
    with pytest.raises(InputError, match="no such token"):
        choice.why((family("llama"), word_tokenizer()), beginning, target=asked, versus=(small, word_tokenizer()), effects=False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_models_in_double_precision_are_taken_apart(name):
    trace = choice.why((family(name).double(), word_tokenizer()), TEXT, lenses=["votes", "trajectory"])
    assert trace.about["closure_logits"] < 1e-5
