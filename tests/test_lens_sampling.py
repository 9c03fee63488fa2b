"""Laws of the lenses of temperature and sampling."""

from __future__ import annotations

import copy
import json
import math

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

from families import FAMILIES, family, ids
from intaglio.analyse.choice import sampling as analyse
from intaglio.measure.choice.decoding import (
    Setting,
    beam_search,
    continuations,
    contrastive_search,
    penalised,
    processed,
    start,
)  # fmt: skip
from intaglio.measure.choice.lenses import context, position, sampling, temperature
from intaglio.model.proof import prove
from outside import GIVEN, SOME, decision, letters, planted  # noqa: F401

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
    for lens in (temperature, sampling, context, position):
        first, second = lens.measure(found, GIVEN), lens.measure(found, GIVEN)
        assert json.dumps(first.numbers, allow_nan=False) == json.dumps(second.numbers, allow_nan=False), "not deterministic"
        assert json.dumps(first.tables, allow_nan=False) == json.dumps(second.tables, allow_nan=False)
    with torch.no_grad():
        assert torch.equal(model(given).logits, before)
    assert model.config.to_dict() == config.to_dict() and model.generation_config == own
    assert torch.equal(torch.get_rng_state(), state), "the random state was used"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p.grad is not None for p in model.parameters())


