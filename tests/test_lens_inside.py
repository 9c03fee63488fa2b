"""Lenses of a model's inside: self-attention, the residual stream, neurons, the way of the state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from conftest import byte_tokenizer
from families import BYPASSING, FAMILIES, family, ids
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Skip, heads, neurons, residual, trajectory
from intaglio.model.anatomy import matrix_of
from intaglio.model.proof import prove
from intaglio.views import Trace

TARGET, AGAINST = 5, 7
NAMES = ("heads", "residual", "neurons", "trajectory")
SEEN = sorted(set(FAMILIES) - BYPASSING)
DENSE = sorted(set(FAMILIES) - {"gpt_oss"})
REFERENCE = ids(40, seed=9)[0].tolist()
MEASURES = {"heads": heads, "residual": residual, "neurons": neurons, "trajectory": trajectory}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def decision(name_or_model, tokens=None, against=AGAINST) -> Decision:
    model = family(name_or_model) if isinstance(name_or_model, str) else name_or_model
    given = ids()[0].tolist() if tokens is None else tokens
    return Decision(prove(model), byte_tokenizer(), given, TARGET, against)


def given(**more) -> Given:
    return Given("a prompt", REFERENCE, **more)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# every lens, every family


@pytest.mark.parametrize("name", FAMILIES)
def test_every_lens_measures_every_family_and_leaves_it_as_it_was(name):
    model = family(name)
    before, weights = model(ids()).logits, {k: v.clone() for k, v in model.state_dict().items()}
    found = decision(model)
    for lens, module in MEASURES.items():
        if (lens, name) == ("neurons", "gpt_oss"):
            with pytest.raises(Skip, match="experts"):
                module.measure(found, given())
            continue
        seen = module.measure(found, given())
        again = module.measure(decision(model), given())
        assert seen.numbers == again.numbers and seen.tables == again.tables
        Trace({}, {}, {lens: {"numbers": seen.numbers, "tables": seen.tables}}).to_json()  # finite JSON values only
    assert torch.equal(model(ids()).logits, before) and hooks(model) == 0
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


# self-attention


def test_votes_by_source_are_attention_times_value_times_output():
    model = family("llama")
    found = decision(model)
    seen = model(ids(), output_hidden_states=True)
    attn, norm = model.model.layers[1].self_attn, model.model.layers[1].input_layernorm
    model.set_attn_implementation("eager")
    pattern = model(ids(), output_attentions=True).attentions[1][0, :, -1]
    values = attn.v_proj(norm(seen.hidden_states[1]))[0].view(13, 2, 12).repeat_interleave(2, 1)
    last = model.model.layers[2](seen.hidden_states[2], position_embeddings=model.model.rotary_emb(
        seen.hidden_states[2], torch.arange(13)[None]))  # fmt: skip
    x = (last if isinstance(last, torch.Tensor) else last[0])[0, -1]
    scale = (x.square().mean() + model.config.rms_norm_eps).rsqrt()
    asked = scale * model.model.norm.weight * (model.lm_head.weight[TARGET] - model.lm_head.weight[AGAINST])
    rows = {r["address"]: r for r in heads.measure(found, given()).tables["heads"]}
    for head in range(4):
        row, out = rows[f"L1.attn.H{head}"], attn.o_proj.weight[:, 12 * head : 12 * head + 12]
        by_source = pattern[head] * (values[:, head] @ out.T @ asked)
        assert row["vote_logits"] == pytest.approx(float(by_source.sum()), abs=1e-5)
        for read in row["read"]:
            assert read["vote_logits"] == pytest.approx(float(by_source[read["position"]]), abs=1e-5)
        for look in row["looks"]:
            assert look["share"] == pytest.approx(float(pattern[head, look["position"]]), abs=1e-6)
        assert row["looks"][0]["position"] == int(pattern[head].argmax())


@pytest.mark.parametrize("name", SEEN)
def test_what_query_and_key_matched_on_sums_to_the_difference_of_scores(name):
    found = decision(name)
    for row in heads.measure(found, given()).tables["matched"]:
        for side in (row["query"], row["key"]):
            total = sum(p["score"] for p in side["parts"]) + side["rest"] + side["bias"]
            assert total == pytest.approx(row["difference"], abs=2e-4)
            towards = [p["score"] * math.copysign(1, row["difference"]) for p in side["parts"]]
            assert towards == sorted(towards, reverse=True)
        if name != "gemma2":  # which caps its scores
            ratio = row["source"]["share"] / row["rival"]["share"]
            assert row["difference"] == pytest.approx(math.log(ratio), abs=2e-4) and row["ratio"] == pytest.approx(ratio)


def test_a_planted_sink_is_seen_and_reading_elsewhere_is_counted():
    looks, votes = torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)
    looks[..., 0], looks[..., 3] = 0.9, 0.1
    looks[0, 0] = torch.tensor([0.1, 0.0, 0.0, 0.9, 0.0])
    votes[..., 3], votes[1, 2, 0] = 2.0, -10.0
    found = heads._sink(votes.double(), looks.double())
    assert found["first_most"] == 5 and found["elsewhere"] == 4
    assert found["first_mean"] == pytest.approx((5 * 0.9 + 0.1) / 6) and found["first_vote_share"] == pytest.approx(10 / 22)
    assert heads._read(torch.tensor([1.0, -3.0, 0.5]))[0] == 1 and heads._read(torch.tensor([1.0, -0.5, 0.6]))[0] == 0


def test_one_token_leaves_nothing_to_look_at():
    with pytest.raises(Skip, match="one_token"):
        heads.measure(decision("llama", [9]), given())


# residual stream


@pytest.mark.parametrize("name", FAMILIES)
def test_writes_shares_and_coordinates_sum_to_the_state_and_the_vote(name):
    found = decision(name)
    seen, writes = residual.measure(found, given()), residual.writes_of(found)
    torch.testing.assert_close(writes.total_D.float(), found.base.final_BTD[0, -1], atol=2e-5, rtol=1e-4)
    rows, n = seen.tables["writes"], seen.numbers
    assert sum(r["share"] for r in rows) == pytest.approx(1, abs=1e-6)
    inside = [float(v) for a, v in zip(found.votes.addresses, found.votes.votes_BP[0]) if a.part not in ("norm", "unembed.bias")]
    for total in (sum(r["vote_logits"] for r in rows), n["plus_logits"] + n["minus_logits"], n["coordinates_logits"]):
        assert total == pytest.approx(sum(inside), abs=2e-4)
    gram = writes.writes_WD @ writes.writes_WD.T
    for pair in seen.tables["pairs"]:
        i, j = writes.names.index(pair["first"]), writes.names.index(pair["second"])
        assert pair["share"] == pytest.approx(float(2 * gram[i, j] / gram.sum()), rel=1e-6)
    assert seen.tables["pairs"][0]["share"] == pytest.approx(float(2 * gram.triu(1).max() / gram.sum()), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
def test_sizes_and_directions_are_those_that_plain_hooks_see(name):
    model, caught = family(name), []
    layers = model.model.layers
    parts = ("self_attn", "mlp") if name != "gemma2" else ("post_attention_layernorm", "post_feedforward_layernorm")
    added = [[getattr(block, part) for part in parts] for block in layers]
    handles = [m.register_forward_hook(lambda m, i, o: caught.append((o[0] if isinstance(o, tuple) else o)[0, -1])) for p in added
               for m in p]  # fmt: skip
    states = model(ids(), output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    times = 0.5 if name == "granite" else 1.0
    rows = residual.measure(decision(model), given()).tables["writes"][1:]
    before = states[0][0, -1].double()
    for row, write in zip(rows, caught):
        write = times * write.double()
        assert row["length"] == pytest.approx(float(write.norm()), rel=1e-4)
        assert row["cos_before"] == pytest.approx(float(torch.cosine_similarity(write, before, 0)), abs=1e-4)
        assert row["relative"] == pytest.approx(float(write.norm() / before.norm()), rel=1e-4)
        before = before + write


@pytest.mark.parametrize(("name", "one"), [("llama", 1.0), ("gemma", 0.0), ("gpt2", 1.0)])
def test_a_gain_of_two_everywhere_turns_nothing_and_a_planted_one_is_seen(name, one):
    model = family(name)
    norm = prove(model).norm
    norm.weight.fill_(one + 1)
    model = copy.deepcopy(model)
    even = residual.measure(decision(model), given()).numbers
    assert even["even_difference"] == pytest.approx(even["difference"], abs=1e-5) and even["even_same"]
    assert even["turn_degrees"] == pytest.approx(0, abs=1e-3) and even["gain_least"] == even["gain_most"]
    planted = copy.deepcopy(model)
    prove(planted).norm.weight[11] = one - 1 - 9  # a gain of -9
    planted = copy.deepcopy(planted)
    found = residual.measure(decision(planted), given())
    assert found.numbers["gain_most"] == 9 and found.numbers["gain_negative"] == 1 and found.numbers["turn_degrees"] > 1
    assert found.numbers["even_difference"] != pytest.approx(found.numbers["difference"], abs=1e-3)


# neurons


@pytest.mark.parametrize("name", DENSE)
def test_a_neurons_promotion_of_the_two_tokens_differs_by_its_vote(name):
    found = decision(name)
    for row in neurons.measure(found, given()).tables["neurons"]:
        layer, neuron = (int(x[1:]) for x in (row["address"].split(".")[0], row["address"].split(".")[2]))
        logits = neurons.promoted(found, neurons.write_of(found, layer, neuron))
        assert float(logits[TARGET] - logits[AGAINST]) == pytest.approx(row["vote_logits"], abs=1e-5)
        assert row["promotes"][0]["logits"] == pytest.approx(float(logits.max())) and abs(float(logits.mean())) < 1e-9


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "bloom"])
def test_effects_and_activations_are_those_of_plain_hooks(name):
    model = family(name)
    found = decision(model)
    seen = neurons.measure(found, given())
    for row in seen.tables["neurons"]:
        layer, neuron = (int(x[1:]) for x in (row["address"].split(".")[0], row["address"].split(".")[2]))
        down = found.anatomy.blocks[layer].down

        def silence(module, args, neuron=neuron):
            x = args[0].clone()
            x.view(-1, x.shape[-1])[-1, neuron] = 0
            return (x,)

        handle = down.register_forward_pre_hook(silence)
        logits = model(ids()).logits[:, -1]
        handle.remove()
        wanted = float(found.votes.difference_B[0] - found.question.of(logits)[0])
        assert row["effect_logits"] == pytest.approx(wanted, abs=2e-5)
        kept = []
        handle = down.register_forward_pre_hook(lambda m, a: kept.append(a[0].reshape(-1, a[0].shape[-1])))  # noqa: B023
        model(torch.tensor([REFERENCE]))
        handle.remove()
        fired = kept[0][1:, neuron] * math.copysign(1, row["activation"])
        own = [c for c in seen.tables["contexts"] if c["address"] == row["address"]]
        assert row["as_strong"] == pytest.approx(float((fired >= abs(row["activation"])).double().mean()), abs=1 / 39 + 1e-9)
        if float(fired.max()) > 0:
            assert own[0]["position"] == int(fired.argmax()) + 1
            assert abs(own[0]["activation"]) == pytest.approx(float(fired.max()), rel=1e-4)


def test_a_planted_neuron_is_found_with_its_token():
    model = family("llama")
    weight = model.lm_head.weight[TARGET] - model.lm_head.weight.mean(0)
    model.model.layers[2].mlp.down_proj.weight[:, 17] = 30 * weight / weight.norm()
    norm = model.model.layers[2].post_attention_layernorm
    key = norm.weight * decision(model).base.layers[2].resid_BTD[0, -1]
    model.model.layers[2].mlp.gate_proj.weight[17] = key
    model.model.layers[2].mlp.up_proj.weight[17] = key
    model = copy.deepcopy(model)
    seen = neurons.measure(decision(model, against=None), given())
    first = seen.tables["neurons"][0]
    assert first["address"] == "L2.mlp.N17" and first["vote_logits"] > 1
    assert first["target_rank"] == 0 and first["promotes"][0]["text"] == byte_tokenizer().decode([TARGET])


def test_without_a_reference_text_neurons_are_left_out():
    with pytest.raises(Skip, match="no_reference"):
        neurons.measure(decision("llama"), Given("a", []))


# the way of the state


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "phi", "olmo2"])
def test_the_lens_is_the_models_own_norm_and_output_matrix(name):
    model = family(name)
    found = decision(model)
    base = model.transformer if name == "gpt2" else model.model
    norm = {"gpt2": "ln_f", "phi": "final_layernorm"}.get(name, "norm")
    rows = trajectory.measure(found, given()).tables["states"]
    states = [h[0, -1] for h in model(ids(), output_hidden_states=True).hidden_states[:-1]]
    for row, state in zip(rows, states):
        logits = model.get_output_embeddings()(getattr(base, norm)(state)).double()
        p = logits.softmax(-1)
        assert row["target"] == pytest.approx(float(p[TARGET]), rel=1e-4) and row["token"] == int(p.argmax())
        assert row["rank"] == int((p > p[TARGET]).sum()) and row["against_rank"] == int((p > p[AGAINST]).sum())
        assert row["candidates"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-4)
        assert row["length"] == pytest.approx(float(state.norm()), rel=1e-5)
    for row, before, after in zip(rows[1:], states, states[1:]):
        assert row["step"] == pytest.approx(float((after - before).norm()), rel=1e-4)
        wanted = math.degrees(math.acos(float(torch.cosine_similarity(after.double(), before.double(), 0))))
        assert row["turn_degrees"] == pytest.approx(wanted, abs=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_lens_is_the_models_own_distribution(name):
    found = decision(name)
    row = trajectory.measure(found, given()).tables["states"][-1]
    p = found.logits_V.softmax(-1)
    assert row["target"] == pytest.approx(float(p[TARGET]), rel=1e-4) and row["kl_nats"] == pytest.approx(0, abs=1e-9)
    assert row["token"] == int(p.argmax()) and row["to_end_degrees"] == 0


def test_settled_is_the_first_state_after_which_it_stays():
    assert trajectory.settled([True, False, True, True]) == 2 and trajectory.settled([True, True]) == 0
    assert trajectory.settled([True, False]) is None and trajectory.settled([False, True]) == 1


def test_exponential_of_entropy_counts_planted_candidates():
    found = decision("llama")
    log_p = torch.full((2, 97), -torch.inf, dtype=torch.float64)
    log_p[0, :4], log_p[1, 5] = math.log(0.25), 0.0
    assert [round(r["candidates"], 9) for r in trajectory._read(found, log_p)] == [4, 1]


def other_of(found: Decision, last: int | None = None) -> Decision:
    tokens = list(found.ids)
    tokens[4], tokens[8] = 50, 51
    tokens[-1] = tokens[-1] if last is None else last
    return Decision(found.anatomy, found.tokenizer, tokens, TARGET, AGAINST)


@pytest.mark.parametrize("name", SEEN)
def test_swapping_all_keys_and_values_is_the_other_prompt_and_its_own_change_nothing(name):
    found = decision(name)
    other = other_of(found)
    swapped = trajectory.swapped_logits(found, other, "from")
    torch.testing.assert_close(swapped[0], other.base.logits_BTV[0, -1], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(swapped[0], found.base.logits_BTV[0, -1], atol=1e-3)
    for way in ("only", "from"):
        same = trajectory.swapped_logits(found, found, way)
        torch.testing.assert_close(same, found.base.logits_BTV[0, -1].expand_as(same), atol=2e-5, rtol=1e-4)
    last = trajectory.swapped_logits(found, other, "only")[-1]
    torch.testing.assert_close(last, swapped[-1], atol=1e-6, rtol=1e-6)


def test_a_swap_in_one_layer_is_what_a_cache_of_transformers_gives():
    model = family("llama")
    found = decision(model)
    other = other_of(found)
    rows = trajectory.measure(found, given(versus_prompt=other)).tables["swap"]
    for layer, row in enumerate(rows):
        cache, theirs = DynamicCache(), DynamicCache()
        model(found.ids_BT[:, :-1], past_key_values=cache, use_cache=True)
        model(other.ids_BT[:, :-1], past_key_values=theirs, use_cache=True)
        cache.layers[layer].keys, cache.layers[layer].values = theirs.layers[layer].keys, theirs.layers[layer].values
        logits = model(found.ids_BT[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
        assert row["only_logits"] == pytest.approx(float(found.question.of(logits)[0]), abs=2e-5)


def test_why_nothing_is_swapped_is_said():
    found = decision("llama")

    def reason(other, found=found):
        return trajectory.measure(found, given(versus_prompt=other)).numbers["swap"]

    assert reason(None) == {"why_not": "no_versus"}
    assert reason(decision("llama", found.ids[:-1])) == {"why_not": "length", "tokens": 13, "others": 12}
    assert reason(Decision(found.anatomy, found.tokenizer, [*found.ids[:-1], 40], TARGET, AGAINST)) == {"why_not": "same"}
    bloom = decision("bloom")
    assert reason(other_of(bloom), bloom) == {"why_not": "unseen"}


def test_matrix_rows_are_as_the_anatomy_says():
    """A guard for the neuron lens: columns of the output matrix are neurons, whichever way the module stores it."""
    for name in ("gpt2", "llama"):
        block = prove(family(name)).blocks[0]
        assert matrix_of(block.down).shape[0] == 48
