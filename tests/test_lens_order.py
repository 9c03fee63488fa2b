"""Laws of the lenses of context and position, and of many variants of a prompt at once."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from families import FAMILIES, family
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.lenses import Given, Skip, context, position
from intaglio.measure.choice.pieces import role, sentences, words
from intaglio.measure.choice.variants import rank_correlation, run_variants
from outside import GIVEN, Letters, decision, letters  # noqa: F401

# many variants of a prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_variants_side_by_side_are_plain_runs(name):
    found = decision(name)
    base, draw = found.ids, torch.Generator().manual_seed(2)
    variants = [base[:i] + base[i + 1 :] for i in range(13)] + [[*base[:i], 50, *base[i + 1 :]] for i in range(13)]
    variants += [base, base[:1], base[5:], [base[i] for i in torch.randperm(13, generator=draw).tolist()]]
    seen = run_variants(found.anatomy, base, variants, states=True)
    for variant, logits, states in zip(variants, seen.logits_NV, seen.states_NLD):
        with torch.no_grad():
            out = found.anatomy.model(torch.tensor([variant]), output_hidden_states=True)
        torch.testing.assert_close(logits.float(), out.logits[0, -1], atol=2e-4, rtol=1e-4)
        for layer in range(found.anatomy.n_layers):
            torch.testing.assert_close(states[layer], out.hidden_states[layer][0, -1], atol=2e-4, rtol=1e-4)


def test_rank_correlation_shares_ties():
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 1000.0]) == pytest.approx(1)
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert rank_correlation([1.0, 1.0, 3.0], [0.0, 1.0, 2.0]) == pytest.approx(math.sqrt(3) / 2)
    assert rank_correlation([1.0, 1.0], [0.0, 1.0]) is None


def test_sentences_words_and_roles():
    texts = ["<s>", "I", " am", ".", " Is", " it", "?\"", " Tell", " me", ",", " now"]
    found = sentences(texts, {0})
    assert [(p.begin, p.end, p.role) for p in found] == [(1, 4, "statement"), (4, 7, "question"), (7, 11, "instruction")]
    clauses = sentences([" one", ",", " two"])
    assert [(p.begin, p.end) for p in clauses] == [(0, 2), (2, 3)], "a single sentence is cut at its clauses"
    assert len(sentences([" a", "."] * 40)) == 12 and sum(p.end - p.begin for p in sentences([" a", "."] * 40)) == 80
    assert words(["<s>", "Un", "able", " to", " go", "."], {0}) == [(1, 3), (3, 4), (4, 6)]
    assert role("He left, because it rained.") == "explanation" and role("Напишите письмо.") == "instruction"
    assert role("Он ушёл, потому что шёл дождь.") == "explanation" and role("It rained.") == "statement"
    assert role("Tellers count.") == "statement", "a word that begins like an instruction is none"


# context


def of(model, given, target=5, against=7) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([given])).logits[0, -1].double()
    return float(logits[target] - (logits.mean() if against is None else logits[against]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite", "bloom", "opt"])
@pytest.mark.parametrize("against", [7, None])
def test_the_four_metrics_are_what_plain_runs_give(name, against):
    found = decision(name, against=against)
    model, base = found.anatomy.model, found.ids
    seen = context.measure(found, GIVEN)
    embedding, now = model.get_input_embeddings(), of(model, base, against=against)
    swap = context.replacements(found, GIVEN, list(range(13)))
    with torch.no_grad():
        states = [h[0, -1] for h in model(torch.tensor([base]), output_hidden_states=True).hidden_states]
    for i, row in enumerate(seen.tables["tokens"]):
        without, other = base[:i] + base[i + 1 :], [*base[:i], swap[i], *base[i + 1 :]]
        assert row["influence_logits"] == pytest.approx(now - of(model, without, against=against), abs=3e-4)
        with torch.no_grad():
            loss = [-float(model(torch.tensor([x])).logits[0, -1].double().log_softmax(0)[5]) for x in (base, other)]
            gone = model(torch.tensor([without]), output_hidden_states=True).hidden_states
        assert swap[i] != base[i] and row["loss_nats"] == pytest.approx(loss[1] - loss[0], abs=3e-4)
        layer = seen.tables["layers"][1]
        wanted = float((gone[layer["layer"]][0, -1] - states[layer["layer"]]).norm() / states[layer["layer"]].norm())
        assert layer["moved"][i] == pytest.approx(wanted, abs=2e-4)
    # a gradient is the slope along a direction: nudge one embedding and look
    model.double()
    try:
        embeds, step = embedding(torch.tensor([base])).detach(), 1e-4
        for i in (0, 6, 12):
            direction = embedding.weight[swap[i]] - embedding.weight[base[i]]
            scale = embeds[0, i].norm() / embedding.weight[base[i]].norm()  # Gemma's embedding scales itself
            ends = []
            for sign in (1, -1):
                moved = embeds.clone()
                moved[0, i] += sign * step * direction.detach() * scale
                with torch.no_grad():
                    logits = model(inputs_embeds=moved).logits[0, -1].double()
                ends.append(-float(logits.log_softmax(0)[5]))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert seen.tables["tokens"][i]["loss_estimate_nats"] == pytest.approx(slope, abs=2e-3, rel=2e-2)
            ends = []
            for sign in (1, -1):
                moved = embeds.clone()
                moved[0, i] *= 1 + sign * step
                with torch.no_grad():
                    logits = model(inputs_embeds=moved).logits[0, -1].double()
                ends.append(float(logits[5] - (logits.mean() if against is None else logits[7])))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert seen.tables["tokens"][i]["grad_times_input"] == pytest.approx(slope, abs=2e-3, rel=2e-2)
    finally:
        model.float()


class Prose(Letters):
    """Token 10 is a full stop, 11 a question mark, 12 a beginning; all else are words."""

    all_special_ids = [12]


@pytest.fixture
def prose(monkeypatch):
    signs = {10: ".", 11: "?", 12: "<s>"}
    monkeypatch.setattr(Decision, "written", lambda self, token: signs.get(token, f" w{token}"))


def told(given: list[int], name: str = "llama") -> Decision:
    return decide(family(name), Prose(), given, target=5, against=7)


def test_sentences_are_left_out_and_moved_whole(prose):
    given = [12, 20, 21, 10, 30, 31, 11, 40, 41, 42, 10, 50, 51]
    found = told(given)
    seen = context.measure(found, GIVEN).tables
    model, now = found.anatomy.model, of(found.anatomy.model, given)
    assert [(r["begin"], r["end"], r["role"]) for r in seen["sentences"]] == [
        (1, 4, "statement"), (4, 7, "question"), (7, 11, "statement"), (11, 13, "statement")]  # fmt: skip
    for row in seen["sentences"]:
        alone = of(model, given[: row["begin"]] + given[row["end"] :])
        assert row["influence_logits"] == pytest.approx(now - alone, abs=3e-4)
    assert sum(r["sentences"] for r in seen["roles"]) == 3, "the last sentence is not counted"
    moving = seen["needle"][0]["moving"]
    parts = [given[1:4], given[4:7], given[7:11], given[11:]]
    needle, rest = parts[moving], parts[:moving] + parts[moving + 1 :]
    for row in seen["needle"]:
        order = [12, *itertools.chain(*rest[: row["place"]], needle, *rest[row["place"] :])]
        assert row["difference_logits"] == pytest.approx(of(model, order), abs=3e-4)
    own = next(r for r in seen["needle"] if r["own"])
    assert own["difference_logits"] == pytest.approx(now, abs=3e-4)
    total = sum(abs(r["influence_logits"]) for r in seen["tokens"][1:])
    assert sum(r["share"] for r in seen["distances"]) == pytest.approx(1)
    assert seen["distances"][0]["share"] == pytest.approx(abs(seen["tokens"][-1]["influence_logits"]) / total)
    assert sum(r["tokens"] for r in seen["distances"]) == 12


def test_a_token_that_is_never_read_has_no_influence():
    found = decision("llama")
    with torch.no_grad():
        for block in found.anatomy.blocks:
            block.out.weight.zero_()  # attention writes nothing: only the last token counts
    found = decide(found.anatomy.model, Letters(), found.ids, target=5, against=7)
    rows = context.measure(found, GIVEN).tables["tokens"]
    assert all(abs(r["influence_logits"]) < 1e-5 and r["grad_norm"] < 1e-9 and abs(r["loss_nats"]) < 1e-5 for r in rows[:-1])
    assert abs(rows[-1]["influence_logits"]) > 1e-3 < rows[-1]["grad_norm"]


def test_context_says_when_it_does_not_apply():
    with pytest.raises(Skip, match="one_token"):
        context.measure(decision("llama", length=1), GIVEN)
    with pytest.raises(Skip, match="no_reference"):
        context.measure(decision("llama"), Given("", []))


# position


def test_swaps_and_shuffles_are_plain_runs_of_the_other_order(prose):
    given = [12, 20, 21, 10, 30, 31, 11, 40, 41, 42, 10, 50, 51]
    found = told(given)
    seen, model = position.measure(found, GIVEN), found.anatomy.model
    now = of(model, given)
    assert len(seen.tables["swaps"]) == 8  # nine words, marks stay with theirs
    row = next(r for r in seen.tables["swaps"] if r["left"] == " w21.")
    swapped = [12, 20, 30, 21, 10, 31, 11, 40, 41, 42, 10, 50, 51]
    assert row["difference_logits"] == pytest.approx(of(model, swapped), abs=3e-4)
    assert row["change_logits"] == pytest.approx(of(model, swapped) - now, abs=6e-4)
    turned = [12, 40, 41, 42, 10, 30, 31, 11, 20, 21, 10, 50, 51]
    assert seen.numbers["reversed"] == pytest.approx(of(model, turned), abs=3e-4)
    for order in position._shuffled(13, words([found.written(i) for i in given], {0}), 0):
        assert sorted(order) == list(range(13)) and order[0] == 0 and order[-1] == 12


def test_a_bag_of_words_does_not_care_for_order():
    found = decision("llama")
    with torch.no_grad():
        for block in found.anatomy.blocks:
            block.out.weight.zero_()
    found = decide(found.anatomy.model, Letters(), found.ids, target=5, against=7)
    rows = position.measure(found, GIVEN).tables["swaps"]
    assert all(abs(r["change_logits"]) < 1e-5 for r in rows[:-1]) and abs(rows[-1]["change_logits"]) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_only_learnt_places_feel_a_shift(name):
    found = decision(name)
    seen = position.measure(found, GIVEN)
    kind, shifts = seen.numbers["kind"], seen.tables["shifts"]
    assert kind == {"gpt2": "learnt", "gpt_neo": "learnt", "opt": "learnt", "bloom": "fixed"}.get(name, "relative")
    assert [r["shift"] for r in shifts] == ([] if kind == "fixed" else [1, 8])  # the context holds 64
    for row in shifts:
        assert (abs(row["change_logits"]) > 1e-3) == (kind == "learnt"), row
        with torch.no_grad():
            places = torch.arange(13)[None] + row["shift"]
            logits = found.anatomy.model(found.ids_BT, position_ids=places).logits[0, -1]
        assert row["difference_logits"] == pytest.approx(float(logits[5] - logits[7]), abs=1e-4)


def test_position_says_when_there_is_nothing_to_swap():
    with pytest.raises(Skip, match="one_word"):
        position.measure(decision("llama", length=1), GIVEN)

