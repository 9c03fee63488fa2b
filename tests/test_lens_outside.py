"""Laws of the lenses that look at a choice from outside: temperature, sampling, context, position."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import math
import re
import shutil
import subprocess
from importlib import resources

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)  # fmt: skip

from conftest import byte_tokenizer
from families import FAMILIES, family, ids
from intaglio.analyse.choice import find
from intaglio.analyse.choice import sampling as analyse
from intaglio.choice import why
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.decoding import (
    Setting,
    beam_search,
    continuations,
    contrastive_search,
    penalised,
    processed,
    start,
)  # fmt: skip
from intaglio.measure.choice.lenses import Given, Skip, context, position, sampling, temperature
from intaglio.measure.choice.pieces import role, sentences, words
from intaglio.measure.choice.variants import rank_correlation, run_variants
from intaglio.model.proof import prove
from intaglio.report.choice.words import choice_catalogue
from intaglio.views import Trace

OURS = ("context", "position", "temperature", "sampling")
SOME = ("llama", "gpt2", "gemma2", "mistral", "bloom", "opt", "gpt_oss")


class Letters:
    """A tokenizer for tests: a token is its number."""

    def __len__(self) -> int:
        return 97


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    monkeypatch.setattr(Decision, "written", lambda self, token: f" {token}")
    monkeypatch.setattr(Decision, "text", lambda self, tokens: "".join(map(self.written, tokens)))


def decision(name: str, *, length: int = 13, against: int | None = 7, target: int | None = None) -> Decision:
    return decide(family(name), Letters(), ids(length)[0].tolist(), target=5 if target is None else target, against=against)


def planted(logits: list[float], **more) -> Decision:
    """A decision whose logits are given."""
    found = decision("llama", **more)
    found.__dict__["logits_V"] = torch.tensor(logits, dtype=torch.float64)
    return found


GIVEN = Given("", [5, 6, 7, 8, 9] * 20)


# temperature


def test_odds_reach_a_level_at_the_temperature_that_is_said():
    found = planted([3.0, 1.0, 0.0, -2.0] + [-9.0] * 93, target=0, against=3)
    seen = temperature.measure(found, GIVEN)
    (first, asked) = seen.tables["odds"]
    assert (first["behind"], asked["behind"]) == (" 1", " 3")
    for pair, behind in ((first, 1), (asked, 3)):
        for level in pair["levels"]:
            p = (found.logits_V / level["temperature"]).softmax(0)
            assert float(p[behind] / p[0]) == pytest.approx(level["level"], rel=1e-9)


def test_the_rest_overtakes_where_the_first_holds_half():
    # two tokens 2 apart and a third level with the second: 1 = 2 exp(-2/T) at T = 2/ln 2
    found = planted([2.0, 0.0, 0.0], target=0, against=1)
    n = temperature.measure(found, GIVEN).numbers
    assert n["rest_overtakes"] == pytest.approx(2 / math.log(2), rel=1e-6)
    assert temperature.measure(planted([1.0, 1.0, 0.0], target=0, against=1), GIVEN).numbers["rest_overtakes"] is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite"])
def test_temperature_is_plain_softmax_and_never_changes_the_order(name):
    found = decision(name)
    seen = temperature.measure(found, GIVEN)
    logits = found.base.logits_BTV[0, -1].double()
    for row in seen.tables["grid"]:
        p = torch.exp(logits / row["temperature"]) / torch.exp(logits / row["temperature"]).sum()
        assert row["entropy_nats"] == pytest.approx(float(-(p * p.log()).sum()), abs=1e-9)
        assert row["target"] == pytest.approx(float(p[found.target]), rel=1e-9)
        assert (p[logits.argsort(descending=True)].diff() <= 0).all()
    assert seen.numbers["same_order"]
    assert all(sum(c["p"][i] for c in seen.tables["curves"]) == pytest.approx(1) for i in range(len(temperature.GRID)))
    entropies = [r["entropy_nats"] for r in seen.tables["grid"]]
    assert entropies == sorted(entropies)


def test_entropy_rises_fastest_where_it_is_said():
    found = planted([2.0, 0.0, 0.0, 0.0], target=0, against=1)
    best = temperature.measure(found, GIVEN).numbers["steepest"]
    slope = [(temperature.entropy(found.logits_V, t * 1.001) - temperature.entropy(found.logits_V, t)) / t / 0.001
             for t in (best * 0.85, best, best * 1.18)]  # fmt: skip
    assert slope[1] > slope[0] and slope[1] > slope[2]


# sampling

PROCESSORS = {
    "temperature": (Setting("", temperature=0.6), [TemperatureLogitsWarper(0.6)]),
    "top_k": (Setting("", top_k=7), [TopKLogitsWarper(7)]), "top_p": (Setting("", top_p=0.7), [TopPLogitsWarper(0.7)]),
    "min_p": (Setting("", min_p=0.1), [MinPLogitsWarper(0.1)]),
    "penalty": (Setting("", penalty=1.3), [RepetitionPenaltyLogitsProcessor(1.3)]),
    "all": (Setting("", temperature=1.4, top_k=30, top_p=0.9, min_p=0.02, penalty=1.2),
            [RepetitionPenaltyLogitsProcessor(1.2), TemperatureLogitsWarper(1.4), TopKLogitsWarper(30),
             TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("seed", range(5))
def test_processors_do_what_transformers_do(name, seed):
    setting, theirs = PROCESSORS[name]
    logits = 2 * torch.randn(97, generator=torch.Generator().manual_seed(seed))
    seen = ids(20, seed=seed)
    wanted = LogitsProcessorList(theirs)(seen, logits[None].clone())[0]
    torch.testing.assert_close(processed(logits, setting, seen[0].tolist()).float(), wanted)


def test_ties_and_extremes_of_the_cuts():
    tied = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert (processed(tied, Setting("", top_k=2)) > -math.inf).tolist() == [True, True, True, False]
    assert (processed(tied, Setting("", top_p=1e-9)) > -math.inf).sum() == 1
    assert (processed(tied, Setting("", min_p=1.0)) > -math.inf).sum() == 3
    assert penalised(torch.tensor([2.0, -2.0, 3.0]), 2.0, [0, 1, 500]).tolist() == [1.0, -4.0, 3.0]


def generated(model, given, **settings):
    neutral = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "num_beams": 1} | settings
    return model.generate(given, attention_mask=torch.ones_like(given), return_dict_in_generate=True, output_scores=True,
                          pad_token_id=0, **neutral)  # fmt: skip


WAYS = [
    (Setting("greedy", draw=False), {"do_sample": False}),
    (Setting("", draw=False, penalty=1.4), {"do_sample": False, "repetition_penalty": 1.4}),
    (Setting(""), {"do_sample": True}), (Setting("", top_k=5), {"do_sample": True, "top_k": 5}),
    (Setting("", temperature=0.7, top_p=0.8), {"do_sample": True, "temperature": 0.7, "top_p": 0.8}),
    (Setting("", temperature=1.5, min_p=0.1), {"do_sample": True, "temperature": 1.5, "min_p": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_continuations_are_those_of_generate(name):
    model = family(name)
    anatomy, given = prove(model), ids()
    wanted = [(s, seed) for s, _ in WAYS for seed in (0, 3)]
    ours = continuations(anatomy, start(anatomy, given[0].tolist()), wanted, steps=8, ends=frozenset())
    for i, (_, how) in enumerate(WAYS):
        for j, seed in enumerate((0, 3)):
            torch.manual_seed(seed)
            theirs = generated(model, given, max_new_tokens=8, eos_token_id=None, **how).sequences[0, 13:].tolist()
            drawn = ours[2 * i + j]
            assert drawn.tokens == theirs, how
            log_p = model(torch.tensor([[*given[0].tolist(), *theirs]])).logits[0, 12:-1].log_softmax(-1).detach()
            assert drawn.nats == pytest.approx(-float(log_p[range(8), theirs].sum()), abs=1e-3)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("ending", [False, True])
def test_beams_are_those_of_generate(name, ending):
    model = family(name)
    anatomy, given = prove(model), ids(11, seed=4)
    prompt = start(anatomy, given[0].tolist())
    likely = prompt.logits_BV[0].topk(3).indices.tolist()
    ends = frozenset(likely[1:3]) if ending else frozenset()
    ours = beam_search(anatomy, prompt, width=3, steps=6, ends=ends)
    theirs = generated(model, given, do_sample=False, num_beams=3, num_return_sequences=3, max_new_tokens=6,
                       eos_token_id=sorted(ends) or None)  # fmt: skip
    assert len(ours.finished) == 3
    for (score, text), wanted, there in zip(ours.finished, theirs.sequences_scores.tolist(), theirs.sequences[:, 11:].tolist()):
        assert score == pytest.approx(wanted, abs=1e-4)
        assert text == there[: len(text)]
    if ending:
        assert any(node.ended for nodes in ours.steps[:-1] for node in nodes), "no text ended before"
    for before, nodes in zip(ours.steps, ours.steps[1:]):
        assert all(not before[n.parent].ended and n.score <= before[n.parent].score for n in nodes)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_contrastive_search_is_its_definition(name):
    model = family(name)
    anatomy, given = prove(model), ids(9)
    ours = contrastive_search(anatomy, start(anatomy, given[0].tolist()), k=4, alpha=0.5, steps=5, ends=frozenset())
    text = given[0].tolist()
    for step in range(5):
        with torch.no_grad():
            top = model(torch.tensor([text])).logits[0, -1].softmax(0).topk(4)
            scores = []
            for p, token in zip(top.values, top.indices.tolist()):
                states = model(torch.tensor([[*text, token]]), output_hidden_states=True).hidden_states[-1][0]
                scores.append(0.5 * p - 0.5 * max(cosine_similarity(states[-1], s, dim=0) for s in states[:-1]))
        if not step:
            assert [s for *_, s in ours.first] == pytest.approx([float(s) for s in scores], abs=1e-4)
        text.append(int(top.indices[int(torch.stack(scores).argmax())]))
    assert ours.tokens == text[9:]


def test_survivors_and_thresholds_agree():
    found = decision("qwen2", target=40)
    shown = found.logits_V.argsort(descending=True)[:20].tolist()
    for row in sampling.thresholds(found, shown):
        for wider, narrower in (
            (Setting("", top_k=row["top_k"]), Setting("", top_k=row["top_k"] - 1)),
            (Setting("", top_p=row["top_p"] + 1e-9), Setting("", top_p=max(row["top_p"] - 1e-9, 1e-12))),
            (Setting("", min_p=row["min_p"] - 1e-9), Setting("", min_p=min(row["min_p"] + 1e-9, 1.0))),
        ):
            assert processed(found.logits_V, wider)[row["token"]] > -math.inf
            if row["token"] != shown[0]:
                assert processed(found.logits_V, narrower)[row["token"]] == -math.inf
    for setting in sampling.SETTINGS:
        row = sampling.survivors(found, setting, list(range(97)))
        assert sum(s or 0 for s in row["shares"]) == pytest.approx(1)
        assert sum(s is not None for s in row["shares"]) == row["kept"]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_penalty_that_takes_the_first_place(sign):
    logits = [sign * x for x in ([6.0, 5.0, 4.0] if sign > 0 else [1.0, 2.0, 3.0])] + [-30.0] * 94
    found = planted(logits, target=0, against=1)
    found.ids = [0, 1, 50]
    flip = sampling._flip(found)
    assert flip["first_seen"] and flip["flip_text"] == " 2" and flip["flip_penalty"] == pytest.approx(1.5 if sign > 0 else 3.0)
    for penalty, first in ((flip["flip_penalty"] - 1e-6, 0), (flip["flip_penalty"] + 1e-6, 2)):
        assert int(penalised(found.logits_V, penalty, found.ids).argmax()) == first
    found.ids = [50]
    assert not sampling._flip(found)["first_seen"]


def test_the_setting_shipped_with_a_model_is_shown():
    found = decision("llama")
    assert sampling.shipped(found.anatomy.model) == []
    found.anatomy.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=None)
    (own,) = sampling.shipped(found.anatomy.model)
    assert own == Setting("shipped", temperature=0.6, top_p=0.9)
    lens = {"numbers": (seen := sampling.measure(found, GIVEN)).numbers, "tables": seen.tables}
    assert "shipped" in [s.key for s in analyse.find(lens, {"target": {"token": 5, "text": " 5"}})]


def test_a_full_context_leaves_no_room_to_write():
    seen = sampling.measure(decision("gpt2", length=64), GIVEN)
    assert "texts" not in seen.tables and seen.tables["survivors"]
    assert len(sampling.measure(decision("gpt2", length=62), GIVEN).tables["texts"][0]["tokens"]) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_served_and_left_as_it_was(name):
    found = decision(name)
    model, given = found.anatomy.model, found.ids_BT
    with torch.no_grad():
        before = model(given).logits
    config, own = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    state = torch.get_rng_state()
    for lens in MODULES:
        first, second = lens.measure(found, GIVEN), lens.measure(found, GIVEN)
        assert json.dumps(first.numbers, allow_nan=False) == json.dumps(second.numbers, allow_nan=False), "not deterministic"
        assert json.dumps(first.tables, allow_nan=False) == json.dumps(second.tables, allow_nan=False)
    with torch.no_grad():
        assert torch.equal(model(given).logits, before)
    assert model.config.to_dict() == config.to_dict() and model.generation_config == own
    assert torch.equal(torch.get_rng_state(), state), "the random state was used"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p.grad is not None for p in model.parameters())



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


# words, toys, pages


@pytest.mark.parametrize("name", OURS)
def test_a_toy_prints_what_stands_beside_it(name):
    folder = resources.files("intaglio.report.choice") / "toys"
    code = (folder / f"{name}.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 15
    with torch.enable_grad(), torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, name, "exec"), {})
    assert said.getvalue() == (folder / f"{name}.out").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OURS)
def test_both_languages_say_the_same_things(name):
    english, russian = (
        {k: v for k, v in choice_catalogue()[lang].items() if k.startswith(f"{name}.")} for lang in ("en", "ru")
    )
    assert english.keys() == russian.keys()
    for key, text in english.items():
        assert sorted(set(re.findall(r"{(\w+)}", text))) == sorted(set(re.findall(r"{(\w+)}", russian[key]))), key
        if not key.endswith(("sources",)) and len(text) > 25:
            assert re.search("[а-я]{3}", russian[key]), key
    assert len(re.findall(r"[.?!](?:\s|$)", english[f"{name}.essence"])) <= 5


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
        text = re.sub(r'<(script|style|pre).*?</\1>|data-[a-z]+="[^"]*"', "", page, flags=re.DOTALL)
        assert not re.search(r"{[a-z_]{2,}}", text), "a name was left unfilled"
        for lens in OURS:
            assert f'id="{lens}"' in page or "skipped" in trace.lenses[lens]
    for lens in OURS:
        USED.update(f"{lens}.says.{s.key}" for s in find(lens, trace))
        reason = trace.lenses[lens].get("skipped")
        USED.update([f"{lens}.skip.{reason['reason']}"] if reason else [])


USED: set[str] = set()


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


MODULES = (temperature, sampling, context, position)
