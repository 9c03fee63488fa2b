"""Laws of the rotary lens: found and proved by numbers, other angles, distance profiles, scores by pairs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from conftest import byte_tokenizer
from families import FAMILIES, family, ids
from intaglio.analyse.choice.rotary import held
from intaglio.choice import why
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Skip, rotary
from intaglio.measure.choice.rotation import rotations_of, run_turned, turned
from intaglio.model.proof import prove
from intaglio.report.choice.words import Words
from intaglio.report.texts import LANGUAGES
from intaglio.views import Trace
from lens_checks import check_named, check_said

TARGET, AGAINST = 5, 7
OTHERS = {"gpt2": "learnt", "opt": "learnt", "gpt_neo": "learnt", "bloom": "alibi", "gptj": "unseen"}
TURNING = sorted(set(FAMILIES) - set(OTHERS))
GIVEN = Given("a prompt", [])


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def decision(name_or_model, length: int = 13) -> Decision:
    model = family(name_or_model) if isinstance(name_or_model, str) else name_or_model
    return Decision(prove(model), byte_tokenizer(), ids(length)[0].tolist(), TARGET, AGAINST)


def mixed(name: str) -> nn.Module:
    """Layers that do not all turn alike: Gemma 3's two bases, SmolLM3's layers without a turn."""
    more = {"gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 6},
            "smollm3": {"no_rope_layers": [1, 0, 1]}}[name]  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **FAMILIES[name], **more)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.1))
    return model


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_it_measures_or_names_the_positions_of_every_family_and_leaves_it_as_it_was(name):
    model = family(name)
    before, weights = model(ids()).logits, {k: v.clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}
    if name in OTHERS:
        with pytest.raises(Skip, match=OTHERS[name]):
            rotary.measure(decision(model), GIVEN)
        return
    seen, again = (rotary.measure(decision(model), GIVEN) for _ in range(2))
    assert seen.numbers == again.numbers and seen.tables == again.tables
    Trace({}, {}, {"rotary": {"numbers": seen.numbers, "tables": seen.tables}}).to_json()  # finite JSON values only
    assert torch.equal(model(ids()).logits, before) and hooks(model) == 0
    assert all(torch.equal(weights[k], v) for k, v in [*model.named_parameters(), *model.named_buffers()])
    assert seen.numbers["score_error"] < 1e-6 and seen.numbers["unscaled_error_logits"] < 2e-5


def scaled_by_hook(model: nn.Module, factor: float) -> torch.Tensor:
    """What the model says when its own rotary module is given scaled positions."""
    module = next(m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding"))

    def scale(m, args, kwargs):
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": kwargs["position_ids"] * factor}
        return (args[0], args[1] * factor, *args[2:]), kwargs

    handle = module.register_forward_pre_hook(scale, with_kwargs=True)
    try:
        return model(ids()).logits[0, -1].double()
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*TURNING, "mixed gemma3_text", "mixed smollm3"])
def test_scaled_positions_are_what_the_models_own_rotary_module_makes_of_them(name):
    model = mixed(name.split()[1]) if " " in name else family(name)
    found = decision(model)
    factors = (0.5, 1.5, 4.0)
    logits = run_turned(found, rotations_of(found), [(c, 1.0) for c in factors])
    for row, factor in zip(logits, factors):
        torch.testing.assert_close(row, scaled_by_hook(model, factor), atol=3e-5, rtol=1e-4)
        assert not torch.allclose(row, found.logits_V, atol=1e-4)


def scaled_base(parameters: dict, factor: float) -> dict:
    if "rope_theta" in parameters:
        return {**parameters, "rope_theta": parameters["rope_theta"] * factor}
    return {k: scaled_base(v, factor) if isinstance(v, dict) else v for k, v in parameters.items()}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi", "stablelm", "cohere", "olmo2", "mixed gemma3_text"])
def test_a_scaled_base_is_a_model_built_with_that_base(name):
    model = mixed(name.split()[1]) if " " in name else family(name)
    found = decision(model)
    for factor in (0.25, 16.0):
        config = copy.deepcopy(model.config)
        config.rope_parameters = scaled_base(config.rope_parameters, factor)
        other = type(model)(config).eval()
        other.load_state_dict(model.state_dict())
        row = run_turned(found, rotations_of(found), [(1.0, factor)])[0]
        torch.testing.assert_close(row, other(ids()).logits[0, -1].double(), atol=3e-5, rtol=1e-4)
        assert not torch.allclose(row, found.logits_V, atol=1e-4)


def test_rows_of_scales_say_what_was_run():
    found = decision("llama")
    rows = rotary.measure(found, GIVEN).tables["scales"]
    base = found.logits_V.log_softmax(-1)
    for row in rows:
        scale = (row["factor"], 1.0) if row["way"] == "positions" else (1.0, row["factor"])
        log_p = run_turned(found, rotations_of(found), [scale])[0].log_softmax(-1)
        assert row["probability"] == pytest.approx(float(log_p[TARGET].exp()), rel=1e-4)
        assert row["difference_logits"] == pytest.approx(float(log_p[TARGET] - log_p[AGAINST]), abs=1e-4)
        assert row["kl_nats"] == pytest.approx(float((base.exp() * (base - log_p)).sum()), abs=1e-6)
    assert {r["way"] for r in rows} == {"positions", "base"}


def test_layers_that_turn_otherwise_or_not_at_all_are_told_apart():
    gemma = rotary.measure(decision(mixed("gemma3_text")), GIVEN)
    assert [k["layers"] for k in gemma.tables["kinds"]] == [[0, 2], [1]]
    assert gemma.tables["kinds"][1]["base"] == pytest.approx(1e6, rel=1e-3)
    smol = rotary.measure(decision(mixed("smollm3")), GIVEN)
    assert smol.numbers["turning"] == 2 and smol.tables["kinds"][0]["layers"] == [0, 2] and smol.numbers["heads"] == 8
    phi = rotary.measure(decision("phi"), GIVEN).tables["kinds"][0]
    assert phi["pairs"] == 3 and phi["base"] == pytest.approx(1e4, rel=1e-3)  # half of 12 coordinates
    assert phi["shortest_tokens"] == pytest.approx(2 * math.pi)
    assert rotary.measure(decision("gpt_oss"), GIVEN).tables["kinds"][0]["base"] is None  # YaRN bends its frequencies


@pytest.mark.parametrize("name", sorted(set(TURNING) - {"gemma2", "gpt_oss"}))
def test_pairs_sum_to_the_score_and_its_lead_is_that_of_the_attention(name):
    found = decision(name)
    for edge in rotary.measure(found, GIVEN).tables["edges"]:
        assert edge["fast"] + edge["slow"] + edge["unturned"] == pytest.approx(edge["over"], abs=1e-9)
        layer, head = (int(x[1:]) for x in (edge["address"].split(".")[0], edge["address"].split(".")[2]))
        met = found.base.layers[layer].attention
        score = float(met.q_BHTd[0, head, -1] @ met.k_BHTd[0, head, edge["position"]]) * met.scaling
        assert edge["score"] == pytest.approx(score, abs=1e-4)
        logs = found.base.layers[layer].pattern_BHTT[0, head, -1].double().log()
        seen = [t for t in range(1, 13) if t != edge["position"] and logs[t] > -math.inf]
        assert edge["over"] == pytest.approx(float(logs[edge["position"]] - logs[seen].mean()), abs=2e-4)
        turning = sum(p["over"] for p in edge["pairs"])
        assert turning + edge["unturned"] == pytest.approx(edge["over"], abs=1e-9)
        assert [p["tokens_per_turn"] for p in edge["pairs"]] == sorted(p["tokens_per_turn"] for p in edge["pairs"])


@pytest.mark.parametrize("name", ["llama", "phi", "cohere", "gpt_oss"])
def test_the_expected_score_is_the_mean_query_turned_to_each_distance(name):
    rotation = rotations_of(decision(name))[1]
    q, k = rotation.q_Hd[2], rotation.k_Hd[2]
    distances = [0, 1, 5, 11]
    found = rotary.expected_scores(rotation, q, k, distances)
    for distance, score in zip(distances, found):
        for place in (0, 40):  # where the two stand does not matter
            ends = (turned(rotation, x[None, None], torch.tensor([float(p)]).double())[0, 0]
                    for x, p in ((q, place + distance), (k, place)))  # fmt: skip
            assert float(score) == pytest.approx(float(next(ends) @ next(ends)), abs=1e-9)


def test_a_planted_head_that_knows_distance_only_follows_its_profile():
    model = family("qwen2")
    attn = model.model.layers[1].self_attn
    attn.q_proj.weight.zero_(), attn.k_proj.weight.zero_()
    found = decision(copy.deepcopy(model))
    rotations = rotations_of(found)
    for head in range(4):
        profile = rotary._Profile(found, 1, head, rotations[1])
        assert profile.correlation == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(profile.alone, profile.measured, atol=1e-5, rtol=1e-4)
        other = rotary._Profile(found, 2, head, rotations[2])
        assert other.correlation < 0.999 and float(other.alone.sum()) == pytest.approx(1)


def test_a_window_hides_what_lies_behind_it():
    found = decision("mistral")  # a window of 6
    profile = rotary._Profile(found, 0, 0, rotations_of(found)[0])
    assert profile.distances == [0, 1, 2, 3, 4, 5]


def test_a_turn_that_is_not_the_models_own_is_refused(monkeypatch):
    real = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, *more: (real(q, k, cos, sin)[0], k))
    with pytest.raises(Skip, match="unproved"):
        rotary.measure(decision("llama"), GIVEN)


def test_tables_that_no_buffer_explains_are_refused():
    found = decision("llama")
    assert found.base is not None
    for buffer in found.anatomy.model.buffers():
        buffer.mul_(1.01)
    with pytest.raises(Skip, match="unproved"):
        rotary.measure(found, GIVEN)


def test_one_token_has_no_distance():
    with pytest.raises(Skip, match="one_token"):
        rotary.measure(decision("llama", 1), GIVEN)
    assert rotary.measure(decision("llama", 2), GIVEN).numbers["median_correlation"] is None


def test_held_is_what_stays_around_the_model_as_it_is():
    def rows(turned):
        return [{"factor": f, "first_changed": f in turned} for f in (0.25, 0.5, 1, 2, 4)]

    assert held(rows(())) == (0.25, 4) and held(rows((0.25, 4))) == (0.5, 2) and held(rows((0.5, 2))) == (1, 1)


# toys, texts, pages


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    """A Cyrillic prompt in models of several kinds."""
    made = {}
    for model, name in ((family("llama"), "llama"), (family("phi"), "phi"), (mixed("gemma3_text"), "gemma"),
                        (mixed("smollm3"), "smol"), (family("bloom"), "bloom")):  # fmt: skip
        model.resize_token_embeddings(261)
        made[name] = why((model, byte_tokenizer()), "Да «нет»", against=9, effects=False, lenses=("rotary",))
    return made


def test_every_text_is_reached(traces):
    lenses = [t.lenses["rotary"] for name, t in traces.items() if name != "bloom"]
    for changed in (True, False):
        lens = copy.deepcopy(lenses[0])
        lens["numbers"]["median_correlation"] = None
        for row in lens["tables"]["scales"]:
            row["first_changed"] = changed and row["factor"] != 1
        lenses.append(lens)
    check_said("rotary", traces["llama"], lenses)
    check_named("rotary")


def test_a_token_that_begins_a_letter_is_shown_as_the_letter(traces):
    for trace in (traces["llama"], traces["phi"]):
        for edge in trace.lenses["rotary"]["tables"]["edges"]:
            shown = trace.rows["prompt"][edge["position"]]
            assert edge["token"] == (shown["letters"] or shown["text"])


def test_pages_render_in_both_languages_with_skips(traces):
    for name, trace in traces.items():
        for lang in LANGUAGES:
            page, words = trace.to_html(lang=lang), Words(lang)
            assert str(words("rotary.title")) in page
            assert (str(words("rotary.skip.alibi")) in page) == (name == "bloom")
            assert "{" not in "".join(part.split("</figcaption>")[0] for part in page.split("<figcaption>")[1:])
            for reason in ("learnt", "sinusoidal", "alibi", "unseen", "unfound", "one_token"):
                assert words.skipped("rotary", {"reason": reason})
            assert "L3" in words.skipped("rotary", {"reason": "unproved", "layer": "L3", "error": "2.0e-01"})
        assert len(trace.to_html()) < 500_000
