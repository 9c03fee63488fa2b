"""Laws of the lens of conflict; the texts, toys and pages of both lenses of an argument inside the text."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from conftest import byte_tokenizer
from families import FAMILIES
from intaglio.choice import why
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.edits import encoded, exchanged
from intaglio.measure.choice.lenses import Given, Skip, interference
from intaglio.measure.choice.lenses.context import sentences_of
from intaglio.model.proof import prove
from intaglio.report.choice.words import Words
from intaglio.report.texts import LANGUAGES
from intaglio.trace import TraceData
from intaglio.views import Trace
from lens_checks import bytes_model, check_named, check_said, unfilled

NAMES = ("interference", "reasoning")
TOKENIZER = byte_tokenizer()
AB, BA = "in x. in y. in ", "in y. in x. in "
REFERENCE = encoded(TOKENIZER, "Some words 12 of plain text stand here. Ещё немного слов.")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def asked(name_or_model: str | nn.Module, text: str, target: str = "x", against: str | None = "y") -> Decision:
    model = bytes_model(name_or_model) if isinstance(name_or_model, str) else name_or_model
    return decide(model, TOKENIZER, text, target=target, against=against)


def given(text: str = "", **more) -> Given:
    return Given(text, REFERENCE, **more)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def lead(model: nn.Module, text: str) -> float:
    logits = model(torch.tensor([TOKENIZER(text)["input_ids"]])).logits[0, -1].double()
    return float(logits[encoded(TOKENIZER, "x")[0]] - logits[encoded(TOKENIZER, "y")[0]])


# conflict


@pytest.mark.parametrize("name", FAMILIES)
def test_exchanging_and_leaving_out_are_runs_on_the_changed_text(name):
    model = bytes_model(name)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    seen = interference.measure(asked(model, AB), given())
    again = interference.measure(asked(model, AB), given())
    assert seen.numbers == again.numbers and seen.tables == again.tables
    TraceData({}, {}, {"interference": {"numbers": seen.numbers, "tables": seen.tables}}).to_json()
    assert hooks(model) == 0 and all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    texts = {"as_is": AB, "swapped": BA, "no_target": "in y. in ", "no_against": "in x. in ", "neither": "in "}
    assert [r["run"] for r in seen.tables["orders"]] == list(texts)
    for row in seen.tables["orders"]:
        assert row["difference_logits"] == pytest.approx(lead(model, texts[row["run"]]), abs=3e-4)
    assert seen.numbers["pair"]["recency_logits"] == pytest.approx(lead(model, BA) - lead(model, AB), abs=5e-4)
    assert seen.numbers["pair"]["content_logits"] == pytest.approx((lead(model, BA) + lead(model, AB)) / 2, abs=5e-4)


def test_recency_and_content_do_not_depend_on_the_order_that_was_given():
    model = bytes_model("llama")
    one, other = (interference.measure(asked(model, text), given()).numbers["pair"] for text in (AB, BA))
    assert one["target_first"] and not other["target_first"] and abs(one["recency_logits"]) > 1e-3
    for name in ("recency_logits", "content_logits", "same_heads"):
        assert one[name] == pytest.approx(other[name], abs=5e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "granite", "cohere"])
def test_tokens_heads_layers_and_statements_are_sums_of_the_same_votes(name):
    found = asked(name, AB)
    seen = interference.measure(found, given())
    n, layers = seen.numbers, seen.tables["layers"]
    heads = n["heads_for"] + n["heads_against"]
    assert sum(r["vote_logits"] for r in seen.tables["tokens"]) == pytest.approx(heads, abs=1e-6)
    assert sum(r["heads_for"] + r["heads_against"] for r in layers) == pytest.approx(heads, abs=1e-6)
    assert layers[-1]["running_logits"] + n["end_logits"] == pytest.approx(n["difference_logits"], abs=1e-4)
    pair = n["pair"]
    assert pair["read_target"] + pair["read_against"] + pair["read_elsewhere"] == pytest.approx(heads, abs=1e-6)
    assert layers[-1]["read_target"] == pytest.approx(pair["read_target"], abs=1e-9)
    at = next(p for p in sentences_of(found) if "x" in p.text)
    inside = sum(r["vote_logits"] for r in seen.tables["tokens"] if at.begin <= r["position"] < at.end)
    assert pair["read_target"] == pytest.approx(inside, abs=1e-6)
    for row in seen.tables["conflicts"]:
        total, said = row["for_logits"] + row["against_logits"], row["for_logits"] - row["against_logits"]
        assert row["conflict"] == pytest.approx(1 - abs(total) / said)
    by = {r["over"]: r["conflict"] for r in seen.tables["conflicts"]}
    assert by["reads"] >= max(by["heads"], by["tokens"]) - 1e-9


def test_the_running_sum_is_the_state_along_the_asked_direction():
    model = bytes_model("llama")
    found = asked(model, AB)
    states = model(found.ids_BT, output_hidden_states=True).hidden_states
    kept = []
    handle = model.model.norm.register_forward_pre_hook(lambda m, a: kept.append(a[0][0, -1].double()))
    model(found.ids_BT)
    handle.remove()
    scale = (kept[0].square().mean() + model.config.rms_norm_eps).rsqrt()
    asked_for = model.lm_head.weight[found.target] - model.lm_head.weight[found.against]
    direction = (model.model.norm.weight * asked_for).double()
    rows = interference.measure(found, given()).tables["layers"]
    for row, state in zip(rows, [*(h[0, -1].double() for h in states[1:-1]), kept[0]]):
        assert row["running_logits"] == pytest.approx(float(scale * state @ direction), abs=1e-4)


def test_the_heads_listed_are_the_loudest_of_their_side_and_their_swapped_votes_those_of_the_swapped_text():
    model = bytes_model("llama")
    found, other = asked(model, AB), asked(model, BA)
    votes, swapped = (d.ledger.source_votes(d.base, d.votes) for d in (found, other))
    rows = interference.measure(found, given()).tables["heads"]
    for side, sign in (("target", 1), ("against", -1)):
        own = [r for r in rows if r["side"] == side]
        loudest = sorted((v for v in (sign * votes.sum(-1)).flatten().tolist() if v > 0), reverse=True)[:6]
        assert [sign * r["vote_logits"] for r in own] == pytest.approx(loudest)
        for r in own:
            layer, head = (int(x[1:]) for x in (r["address"].split(".")[0], r["address"].split(".")[2]))
            assert r["position"] == int((sign * votes[layer, head]).argmax())
            assert r["swapped_logits"] == pytest.approx(float(swapped[layer, head].sum()), abs=1e-5)
            where = {True: "target", False: "against"}[r["position"] < 6] if r["position"] < 12 else None
            assert r["statement"] == (None if r["position"] == 0 else where)


def test_conflict_of_planted_votes():
    of = interference.conflict
    assert of(torch.tensor([1.0, 2.0])) == 0 and of(torch.tensor([1.0, -1.0])) == 1 and of(torch.zeros(2)) == 0
    assert of(torch.tensor([3.0, -1.0])) == 0.5


def test_without_a_rival_the_runner_up_stands_for_it():
    model = bytes_model("llama")
    found = decide(model, TOKENIZER, AB)
    first, second = found.logits_V.topk(2).indices.tolist()
    assert (found.target, interference.sided(found).against) == (first, second)
    named = Decision(found.anatomy, TOKENIZER, found.ids, second, None)
    assert interference.sided(named).against == first
    assert interference.measure(named, given()).numbers["difference_logits"] < 0


@pytest.mark.parametrize(("text", "named"), [
    (AB, (1, 1)), ("in x y. in y. in ", (0, 1)), ("in xa. in y. in ", (0, 1)), ("in x, in y, in ", (1, 1)),
    ("in x and y ", (0, 0)), ("in x. in z. in y", (1, 0)),
])  # fmt: skip
def test_a_statement_names_a_token_as_a_word_and_only_one_of_the_two(text, named):
    n = interference.measure(asked("llama", text), given()).numbers
    assert (n["name_target"], n["name_against"]) == named and (n["pair"] is None) == (0 in named)


def test_a_mark_names_nothing_and_a_word_may_begin_with_the_token():
    found = asked("llama", "a .b. c d. e ")
    pieces = sentences_of(found)[:-1]
    assert interference.naming(found, pieces, encoded(TOKENIZER, ".")[0]) == []
    assert interference.naming(found, pieces, encoded(TOKENIZER, "c")[0]) == [pieces[-1]]
    assert len(interference.naming(found, pieces, encoded(TOKENIZER, " ")[0])) == 2  # not "b.", which begins a word without one


def test_spans_are_exchanged_as_text_or_where_that_fails_as_tokens(monkeypatch):
    found = asked("llama", "A b. C d.\nE f. G")
    one, _, three, _ = ((p.begin, p.end) for p in sentences_of(found))
    made = {k: found.text(v) for k, v in exchanged(found, one, three).items()}
    assert made == {"swapped": "<s>E f. C d.\nA b. G", "no_first": "<s>C d.\nE f. G", "no_second": "<s>A b. C d. G",
                    "neither": "<s>C d. G"}  # fmt: skip
    back = Decision(found.anatomy, TOKENIZER, exchanged(found, one, three)["swapped"], found.target, found.against)
    first, _, last, _ = ((p.begin, p.end) for p in sentences_of(back))
    assert found.text(exchanged(back, first, last)["swapped"]) == found.text(found.ids)
    later = asked("llama", "Z z. A b.\n C d. G")
    _, *inner, _ = ((p.begin, p.end) for p in sentences_of(later))
    made = {k: later.text(v) for k, v in exchanged(later, *inner).items()}
    assert made == {"swapped": "<s>Z z. C d.\n A b. G", "no_first": "<s>Z z. C d. G", "no_second": "<s>Z z. A b. G",
                    "neither": "<s>Z z. G"}  # fmt: skip
    monkeypatch.setattr("intaglio.measure.choice.edits.comes_back", lambda *args: False)
    moved = exchanged(found, one, three)
    assert sorted(moved["swapped"]) == sorted(found.ids) and found.text(moved["swapped"]) == "<s>E f. C d.\nA b. G"


def test_one_token_cannot_disagree():
    found = Decision(prove(bytes_model("llama")), TOKENIZER, [9], 10, 11)
    with pytest.raises(Skip, match="one_token"):
        interference.measure(found, given())


# texts, toys, pages, of both lenses


PROMPTS = {
    "two": ("llama", "in x. in y. in ", "x", "y"), "none": ("gpt2", "Кот, спал", "x", None),
    "russian": ("llama", "Она ж. Он ш 2. Вот ", " ", None), "hidden": ("bloom", "a\u200b.\u0007 <b>1</b>. x y", "x", "y"),
    "one": ("llama", "in x 5. in ", "x", None),
}  # fmt: skip


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {
        case: why((bytes_model(name), TOKENIZER), text, target=target, against=against, effects=False, lenses=NAMES)
        for case, (name, text, target, against) in PROMPTS.items()
    }


@pytest.mark.parametrize("case", PROMPTS)
def test_pages_of_both_languages_stand(case, traces):
    trace = traces[case]
    trace.to_json()
    assert ("skipped" in trace.lenses["reasoning"]) == (case == "none")
    for lang in LANGUAGES:
        page = trace.to_html(lang=lang)
        assert not unfilled(page)
        assert "<b>1</b>." not in page and all(str(Words(lang)(f"{name}.title")) in page for name in ("interference",))
        assert (str(Words(lang)("reasoning.skip.no_steps")) in page) == (case == "none")


def variants(name: str, traces: dict[str, Trace]) -> list[dict]:
    """What was measured, and numbers that lead to every other sentence."""
    found = [t.lenses[name] for t in traces.values() if "numbers" in t.lenses[name]]

    def vary(case, change):
        lens = copy.deepcopy(traces[case].lenses[name])
        change(lens["numbers"], lens["tables"])
        found.append(lens)

    if name == "interference":
        for recency in (-2.0, 0.0, 2.0):
            vary("two", lambda n, t, recency=recency: n["pair"].update(recency_logits=recency))
        for swapped in (-1.0, 1.0):
            vary("two", lambda n, t, swapped=swapped: t["orders"][1].update(
                difference_logits=swapped * t["orders"][0]["difference_logits"]))  # fmt: skip
        for side in ("target", "against"):
            vary("none", lambda n, t, side=side: t.update(heads=[r for r in t["heads"] if r["side"] == side]))
        vary("none", lambda n, t: [r.update(running_logits=n["difference_logits"]) for r in t["layers"]])
    else:
        for gain, drop, corrupt in ((3.0, -3.0, -3.0), (0.0, 0.0, 0.0)):
            vary("one", lambda n, t, gain=gain, drop=drop, corrupt=corrupt: (
                t["steps"][0].update(gain_nats=gain), t["changes"][0].update(drop_nats=drop, corrupt_nats=corrupt)))  # fmt: skip
        for ranks in ((0, 0), (1, 0), (0, 1)):
            vary("two", lambda n, t, ranks=ranks: [
                r.update(rank=ranks[i == len(t["path"]) - 1]) for i, r in enumerate(t["path"])])  # fmt: skip
        for pieces in (1, 3):
            mark = {"mark": "<tool_call>", "pieces": pieces, "p": 0.1, "rank": 3}
            vary("one", lambda n, t, mark=mark: t.update(tools=[mark]))
        vary("one", lambda n, t: n.update(template=True))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_reached(name, traces):
    check_said(name, traces["two"], variants(name, traces))
    check_named(name)
