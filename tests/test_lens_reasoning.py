"""Laws of the lens of reasoning: steps cut off, left out, falsified, reworded, and answers drawn."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from conftest import byte_tokenizer
from families import FAMILIES
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.edits import corrupted, encoded, reworded
from intaglio.measure.choice.lenses import Given, Skip, reasoning
from intaglio.measure.choice.lenses.context import sentences_of
from intaglio.trace import TraceData
from lens_checks import bytes_model

TOKENIZER, CHAT = byte_tokenizer(), byte_tokenizer(chat=True)
TEXT = "in x 5. Here. at "
REFERENCE = encoded(TOKENIZER, "Some words of plain text stand here. Ещё немного слов, много слов.")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def asked(name_or_model: str | nn.Module, text: str = TEXT, target: str = "x", **more) -> Decision:
    model = bytes_model(name_or_model) if isinstance(name_or_model, str) else name_or_model
    return decide(model, CHAT if more.get("chat") else TOKENIZER, text, target=target, **more)


def given(text: str = TEXT, **more) -> Given:
    return Given(text, REFERENCE, **more)


def log_p(model: nn.Module, text: str) -> torch.Tensor:
    return model(torch.tensor([TOKENIZER(text)["input_ids"]])).logits[0, -1].double().log_softmax(-1)


X = encoded(TOKENIZER, "x")[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_is_a_run_on_the_changed_text(name):
    model = bytes_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen = reasoning.measure(asked(model), given())
    again = reasoning.measure(asked(model), given())
    assert seen.numbers == again.numbers and seen.tables == again.tables
    TraceData({}, {}, {"reasoning": {"numbers": seen.numbers, "tables": seen.tables}}).to_json()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert hooks == 0 and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    steps, now = "in x 5. Here.", log_p(model, TEXT)
    for row in seen.tables["path"]:
        wanted = log_p(model, steps[: row["tokens"]] + " at ")
        assert row["log_p"] == pytest.approx(float(wanted[X]), abs=2e-4)
        assert row["rank"] == int((wanted > wanted[X]).sum())
        assert row["first_p"] == pytest.approx(float(wanted.max().exp()), abs=1e-4)
    first, second = seen.tables["changes"]
    assert first["corrupt_text"].startswith("in x ") and first["corrupt_text"] != "in x 5."
    texts = {"drop": (" Here. at ", "in x 5. at "),
             "reword": ("That is, in x 5. Here. at ", "in x 5. That is, Here. at "),
             "corrupt": (first["corrupt_text"] + " Here. at ", "in x 5." + second["corrupt_text"] + " at ")}  # fmt: skip
    for way, changed in texts.items():
        for row, text in zip((first, second), changed):
            assert row[f"{way}_nats"] == pytest.approx(float((log_p(model, text) - now)[X]), abs=4e-4), way


def test_the_path_ends_at_the_decision_and_its_gains_sum():
    found = asked("llama")
    seen = reasoning.measure(found, given())
    path, steps = seen.tables["path"], seen.tables["steps"]
    assert path[0]["tokens"] == 0 and path[0]["end_of"] == 0 and path[-1]["end_of"] == 2
    assert path[-1]["p"] == pytest.approx(float(found.logits_V.softmax(-1)[found.target]), abs=1e-12)
    assert sum(r["gain_nats"] for r in steps) == pytest.approx(path[-1]["log_p"] - path[0]["log_p"], abs=1e-9)
    assert [r["p"] for r in steps] == [r["p"] for r in path if r["end_of"]]
    assert steps[1]["gain_nats"] == pytest.approx(-seen.tables["changes"][1]["drop_nats"], abs=1e-4)  # the last step


@pytest.mark.parametrize(("tokens", "ends"), [(3, [0, 3]), (50, [0, 7, 50]), (400, [0, *range(20, 260, 20), 400]), (1, [0, 1])])
def test_places_asked_hold_all_ends_and_no_more_than_there_is_room_for(tokens, ends):
    counts = reasoning.points(tokens, ends)
    assert counts == sorted(set(counts)) and set(ends) <= set(counts) and counts[0] == 0 and counts[-1] == tokens
    assert len(counts) == max(len(ends), min(reasoning.POINTS, tokens + 1))


@pytest.mark.parametrize(("text", "steps"), [
    ("A b. C d. E", ["A b.", " C d."]), ("A b, c d, e", []), ("A b.", []), ("A b. C", ["A b."]), ("A\nB\nC", ["A\n", "B\n"]),
    ("A b. C d.", ["A b."]),
])  # fmt: skip
def test_steps_are_finished_sentences_before_the_last(text, steps):
    assert [p.text for p in reasoning.steps_of(asked("llama", text), given(text))] == steps
    if not steps:
        with pytest.raises(Skip, match="no_steps"):
            reasoning.measure(asked("llama", text), given(text))


def test_in_a_chat_steps_are_the_messages_or_the_answers_own():
    message = "A b. C d. Who?"
    found = asked("llama", message, chat=True)
    assert [p.text for p in reasoning.steps_of(found, given(message, chat=True))] == ["A b.", " C d."]
    cut = found.text(reasoning.with_tokens(found, reasoning.steps_of(found, given(message, chat=True)), 0))
    assert cut == found.text(found.ids).replace("A b. C d.", "")
    answer = encoded(TOKENIZER, "So e. Then f")
    longer = Decision(found.anatomy, CHAT, [*found.ids, *answer], found.target, None)
    steps = reasoning.steps_of(longer, given(message, chat=True))
    assert [p.text.strip() for p in steps] == ["So e."] and steps[0].begin >= len(found.ids)


def test_false_content_changes_digits_or_else_longer_words_and_keeps_the_tokens_places():
    short = asked("llama")
    text = "He has 35 cats. Then some more cats. Ох, Ещё раз слон. a b. So "
    found = Decision(short.anatomy, TOKENIZER, TOKENIZER(text)["input_ids"], X, None)
    one, two, three, four, _ = sentences_of(found)
    for seed in range(5):
        ids = corrupted(found, one, REFERENCE, random.Random(seed))
        changed = [i for i, (a, b) in enumerate(zip(ids, found.ids)) if a != b]
        assert len(ids) == len(found.ids) and found.text([found.ids[i] for i in changed]) == "35"
        assert all(found.text([ids[i]]) in set("123456789") - {was} for i, was in zip(changed, "35"))
        said = found.text(corrupted(found, two, REFERENCE, random.Random(seed))[two.begin : two.end])
        assert said[0] == " " and said[-1] == "." and len(said.split()) == 4 and set(said[:-1].split()) <= {"text", "here"}
        cyrillic = corrupted(found, three, REFERENCE, random.Random(seed))
        assert found.text(cyrillic[three.begin : three.end]) == " Ох, Ещё раз слов." and len(cyrillic) == len(found.ids)
    assert corrupted(found, four, encoded(TOKENIZER, "longer text"), random.Random(0)) is None


def test_rewording_only_puts_an_opening_before(monkeypatch):
    found = asked("llama", "Tom has 3. Он ест. So ")
    one, two, _ = sentences_of(found)
    assert found.text(reworded(found, one)) == "<s>That is, Tom has 3. Он ест. So "
    assert found.text(reworded(found, two)) == "<s>Tom has 3. То есть, Он ест. So "
    monkeypatch.setattr("intaglio.measure.choice.edits.comes_back", lambda *args: False)
    assert reworded(found, one) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_samples_are_those_of_generate_and_the_targets_word_its_greedy_spelling(name):
    model = bytes_model(name)
    found = asked(model)
    rows, n = reasoning.samples(found, given(seed=3), reasoning.steps_of(found, given()))
    assert sum(r["with_steps"] for r in rows) == sum(r["bare"] for r in rows) == reasoning.SAMPLES
    how = {"max_new_tokens": reasoning.LENGTH, "pad_token_id": 0, "eos_token_id": None, "top_k": 0}

    def words(text: str) -> list[str]:
        ids, out = torch.tensor([TOKENIZER(text)["input_ids"]]), []
        for i in range(reasoning.SAMPLES):
            torch.manual_seed(3 + i)
            drawn = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, **how)
            out.append(drawn[0, ids.shape[1] :].tolist())
        return [reasoning.first_word(found, t) for t in out]

    model.generation_config.eos_token_id = None
    for field, text in (("with_steps", TEXT), ("bare", "in x 5. at ")):
        drawn = words(text)
        assert {r["word"]: r[field] for r in rows if r[field]} == {w: drawn.count(w) for w in set(drawn)}
    ids = torch.tensor([[*found.ids, X]])
    rest = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                          **how | {"max_new_tokens": reasoning.LENGTH - 1})[0, len(found.ids) :].tolist()  # fmt: skip
    assert n["word"] == reasoning.first_word(found, rest) and n["word"].startswith("x")
    assert n["agree"] == sum(r["with_steps"] for r in rows if r["agrees"])


def test_a_sure_model_agrees_with_itself_every_time():
    model = bytes_model("gpt2")
    found = asked(model)
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    model.lm_head.weight[X] = 400 * found.base.normed_BTD[0, -1] / found.base.normed_BTD[0, -1].norm()
    sure = asked(model)
    _, n = reasoning.samples(sure, given(), reasoning.steps_of(sure, given()))
    assert n["agree"] == n["top_count"] == reasoning.SAMPLES and n["word"] == n["top"] and n["top"].startswith("x")


def test_first_words():
    found = asked("llama")
    of = lambda text: reasoning.first_word(found, encoded(TOKENIZER, text))  # noqa: E731
    assert [of(t) for t in (" box, a", "5.5", " — нет", "\n", "Он ест", "<s> a")] == ["box", "5", "—", "", "Он", "a"]


def test_a_full_context_leaves_no_room_for_samples_or_longer_text():
    text = ("a b. " * 13)[:62] + "c"  # with <s> 64 tokens
    seen = reasoning.measure(asked("gpt2", text), given(text))
    assert seen.numbers["samples"] == 0 and seen.tables["words"] == []
    assert all(r["reword_nats"] is None and r["drop_nats"] is not None for r in seen.tables["changes"])


def test_marks_of_tool_calls_are_found_in_tokens_and_templates():
    found = asked("llama")
    assert reasoning.tools(found) == []
    marked = byte_tokenizer()
    marked.chat_template = "{% if tools %}<tool_call>{...}</tool_call>[TOOL_CALLS]{% endif %}"
    marked.add_tokens(["<|python_tag|>"], special_tokens=True)
    other = Decision(found.anatomy, marked, found.ids, found.target, None)
    other.__dict__["logits_V"] = torch.cat([found.logits_V, found.logits_V.new_tensor([50.0])])
    rows = {r["mark"]: r for r in reasoning.tools(other)}
    assert rows.keys() == {"<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"}
    assert rows["<|python_tag|>"]["pieces"] == 1 and rows["<|python_tag|>"]["rank"] == 0
    assert rows["<tool_call>"]["pieces"] == 11
    p = other.logits_V.softmax(-1)[encoded(marked, "<")[0]]
    assert rows["<tool_call>"]["p"] == pytest.approx(float(p))
