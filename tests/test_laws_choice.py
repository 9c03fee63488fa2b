"""Laws of the vote ledger and of measured effects, on a tiny model of every family."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import byte_tokenizer
from families import BYPASSING, FAMILIES, family, ids
from intaglio.address import Address
from intaglio.errors import SubjectError
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.effects import (
    all_parts,
    estimate_effects,
    means_over,
    measure_effects,
    to_mean,
    to_other,
)  # fmt: skip
from intaglio.measure.choice.upstream import trace_tree, trace_upstream
from intaglio.measure.choice.votes import Ledger, Question, ending_of
from intaglio.model import proof
from intaglio.model.anatomy import anatomy_of
from intaglio.model.capture import capture
from intaglio.model.proof import examine, prove

TARGET, AGAINST = 5, 7
SEEN = sorted(set(FAMILIES) - BYPASSING)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_the_map_of_every_family_is_proved(name):
    model = family(name)
    _, lines = examine(anatomy_of(model))
    assert len(lines) >= 7 and all(line.holds and line.error < 1e-5 for line in lines), lines


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("part", ["mlp_BTD", "attn_BTD", "attn_raw_BTD", "v_BHTd", "pattern_BHTT"])
def test_a_map_that_leaves_a_part_out_is_not_believed(name, part, monkeypatch):
    def without(*args, **kwargs):
        seen = capture(*args, **kwargs)
        setattr(seen.layers[1], part, torch.zeros_like(getattr(seen.layers[1], part)))
        return seen

    monkeypatch.setattr(proof, "capture", without)
    with pytest.raises(SubjectError, match="not proved"):
        prove(family(name))


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "llama"])
def test_weights_that_changed_since_are_seen(name, monkeypatch):
    """Gains of the form 1 + w are kept as copies; a step of training between two questions must not leave old ones."""
    model = family(name)
    prove(model)
    with monkeypatch.context() as patch:
        patch.setattr(proof, "examine", lambda anatomy: pytest.fail("it was proved already"))
        prove(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1).add_(0.05)
    found = Decision(prove(model), byte_tokenizer(), ids()[0].tolist(), 5, 7)
    assert float(found.votes.closure_B[0]) < 1e-3


def test_a_model_that_nobody_holds_goes():
    model = family("llama")
    prove(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_family_that_is_not_known_is_named():
    with pytest.raises(SubjectError, match="no layers is known"):
        model = family("llama")
        model.model.layers, model.model.strange = None, model.model.layers
        anatomy_of(model)


@pytest.mark.parametrize("against", [AGAINST, None])
@pytest.mark.parametrize("name", FAMILIES)
def test_votes_sum_to_the_models_own_difference(name, against):
    model = family(name)
    given = ids()
    logits = model(given).logits[0, -1].double()
    anatomy, question = prove(model), Question(TARGET, against)
    seen = capture(anatomy, given)
    ledger = Ledger(anatomy, question)
    for position in (-1, 4):
        ending = ending_of(seen, position)
        votes = ledger.votes(ending)
        total = votes.votes_BP.sum(1) + votes.scaling_B + votes.softcap_B
        here = model(given).logits[0, position].double()
        wanted = here[TARGET] - (here.mean() if against is None else here[against])
        assert float(total) == pytest.approx(float(wanted), abs=1e-5) and float(votes.closure_B) < 1e-5
        by_source = ledger.source_votes(seen, votes, position)
        column = {a: i for i, a in enumerate(votes.addresses)}
        for layer in range(anatomy.n_layers):
            for head in range(anatomy.n_heads):
                whole = float(votes.votes_BP[0, column[Address("attn", layer, head=head)]])
                assert float(by_source[layer, head].sum()) == pytest.approx(whole, abs=1e-5)
            if ending.layers[layer].neurons_BN is not None:
                whole = float(votes.votes_BP[0, column[Address("mlp", layer)]])
                assert float(ledger.neuron_votes(ending, votes, layer).sum()) == pytest.approx(whole, abs=1e-5)
    assert torch.equal(model(given).logits[0, -1].double(), logits)


def test_a_missing_part_opens_the_books():
    model = family("llama")
    anatomy = prove(model)
    short = replace(anatomy, blocks=anatomy.blocks[:1] + anatomy.blocks[2:])
    seen = capture(anatomy, ids())
    ending = ending_of(seen)
    ending = replace(ending, layers=ending.layers[:1] + ending.layers[2:])
    assert float(Ledger(short, Question(TARGET, AGAINST)).votes(ending).closure_B) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_three_ways_to_the_same_effects_and_every_effect_is_booked(name):
    anatomy, question = prove(family(name)), Question(TARGET, AGAINST)
    given = ids()
    other = given.clone()
    other[0, 5], other[0, 8] = 50, 51
    base, second = capture(anatomy, given), capture(anatomy, other)
    parts = all_parts(anatomy)
    means = means_over(anatomy, ids(24, seed=3))
    for changes in (to_mean(anatomy, base, means, parts), to_other(anatomy, base, second, parts)):
        naive, batched, prefix = (
            measure_effects(anatomy, base, question, changes, way=way) for way in ("naive", "batched", "prefix")
        )
        assert naive.effect_C.abs().max() > 1e-2 and naive.addresses == batched.addresses == prefix.addresses
        for fast in (batched, prefix):
            torch.testing.assert_close(fast.effect_C, naive.effect_C, atol=5e-6, rtol=1e-5)
            torch.testing.assert_close(fast.own_C, naive.own_C, atol=5e-6, rtol=1e-5)
            torch.testing.assert_close(fast.others_CP, naive.others_CP, atol=5e-6, rtol=1e-5)
        assert prefix.closure_C.max() < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_an_effect_is_what_a_plain_hook_measures(name):
    """Against nothing of ours: one head zeroed by hand, the model called as users call it."""
    model = family(name)
    anatomy, question, given = prove(model), Question(TARGET, AGAINST), ids()
    base = capture(anatomy, given)
    means = means_over(anatomy, ids(24, seed=3))
    zero = replace(means, z_LHd=torch.zeros_like(means.z_LHd), mlp_LD=torch.zeros_like(means.mlp_LD))
    found = measure_effects(anatomy, base, question, to_mean(anatomy, base, zero, all_parts(anatomy)))
    size = anatomy.head_dim

    def without(module, args):
        z = args[0].clone().view(1, given.shape[1], -1)
        z[:, 1:, 2 * size : 3 * size] = 0
        return (z.view(args[0].shape),)

    handle = anatomy.blocks[1].out.register_forward_pre_hook(without)
    logits = model(given).logits[:, -1]
    handle.remove()
    wanted = float(question.of(base.logits_BTV[:, -1]) - question.of(logits))
    measured = dict(zip(found.addresses, found.effect_C.tolist()))[Address("attn", 1, head=2)]
    assert measured == pytest.approx(wanted, abs=1e-5) and abs(wanted) > 1e-4


@pytest.mark.parametrize("name", SEEN[::3])
def test_patching_a_run_into_itself_does_nothing(name):
    anatomy = prove(family(name))
    base = capture(anatomy, ids())
    found = measure_effects(anatomy, base, Question(TARGET), to_other(anatomy, base, base, all_parts(anatomy)))
    assert found.effect_C.abs().max() < 2e-6


def test_the_first_order_estimate_is_the_slope_of_the_effect():
    anatomy, question, given = prove(family("llama")), Question(TARGET, AGAINST), ids()
    base = capture(anatomy, given)
    parts = all_parts(anatomy)
    means = means_over(anatomy, ids(24, seed=3))
    off = []
    for share in (0.1, 0.05):
        changes = [
            replace(c, value_TX=now + share * (c.value_TX - now))
            for c in to_mean(anatomy, base, means, parts)
            for now in [base.layers[c.layer].mlp_BTD[0] if c.head is None else base.layers[c.layer].z_BTHd[0, :, c.head]]
        ]
        exact = measure_effects(anatomy, base, question, changes).effect_C
        estimate = estimate_effects(anatomy, given, question.of, changes)
        off.append(float((exact - estimate).abs().max()))
        assert off[-1] < 0.1 * float(exact.abs().max())
    assert off[1] < 0.35 * off[0]  # a second-order remainder falls with the square


@pytest.mark.parametrize("name", SEEN)
def test_a_score_is_the_sum_of_what_wrote_its_two_sides(name):
    anatomy = prove(family(name))
    seen = capture(anatomy, ids())
    for layer, head, query, key in ((2, 1, 12, 4), (1, 3, 6, 6), (0, 0, 12, 0)):
        found = trace_upstream(anatomy, seen, layer, head, query=query, key=key)
        met = seen.layers[layer].attention
        score = float(met.q_BHTd[0, head, query].double() @ met.k_BHTd[0, head, key].double()) * met.scaling
        assert found.score == pytest.approx(score, abs=1e-5)
        for side in (found.query, found.key):
            assert float(side.parts_P.sum()) + side.bias == pytest.approx(score, abs=2e-5)
            assert len(side.addresses) == len(side.parts_P)
            assert all(a.layer is None or a.layer < layer for a in side.addresses)
            shares = dict(zip(side.addresses, side.parts_P.tolist()))
            for earlier in range(layer):
                for h in range(anatomy.n_heads):
                    total = float(side.by_source_LHT[earlier, h].sum())
                    assert total == pytest.approx(shares[Address("attn", earlier, head=h)], abs=1e-5)


def test_upstream_is_followed_to_the_heads_that_gave_most():
    anatomy = prove(family("llama"))
    seen = capture(anatomy, ids())
    rows = trace_tree(anatomy, seen, 2, 1, query=12, key=4, depth=3, width=4)
    top = trace_upstream(anatomy, seen, 2, 1, query=12, key=4)
    first = [r for r in rows if r["depth"] == 0 and r["side"] == "query"]
    assert first[0]["share"] == pytest.approx(float(top.query.parts_P[top.query.parts_P.abs().argmax()]))
    for row in rows:
        if row["source"] is not None and row["depth"] < 2:
            follow = [r for r in rows if r["head"] == row["part"] and r["key"] == row["source"]]
            assert follow and row["source"] <= (row["query"] if row["side"] == "query" else row["key"])
    assert {r["depth"] for r in rows} == {0, 1, 2}


def test_a_planted_head_decides_alone():
    """Every other head and MLP writes nothing, so the ledger must say: the embedding and this head."""
    model = family("llama")
    planted = Address("attn", 1, head=2)
    size = 12
    for i, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.weight.zero_()
        keep = layer.self_attn.o_proj.weight[:, 2 * size : 3 * size].clone()
        layer.self_attn.o_proj.weight.zero_()
        if i == planted.layer:
            layer.self_attn.o_proj.weight[:, 2 * size : 3 * size] = 5 * keep
    anatomy, question = prove(model), Question(TARGET, AGAINST)
    base = capture(anatomy, ids())
    votes = Ledger(anatomy, question).votes(ending_of(base))
    said = dict(zip(votes.addresses, votes.votes_BP[0].tolist()))
    others = [abs(v) for a, v in said.items() if a not in (planted, Address("embed"))]
    assert max(others) < 1e-9 < 1e-2 < abs(said[planted])
    means = means_over(anatomy, ids(24, seed=3))
    found = measure_effects(anatomy, base, question, to_mean(anatomy, base, means, all_parts(anatomy)))
    assert found.addresses[int(found.effect_C.abs().argmax())] == planted
    assert found.effect_C.abs().sort().values[-2] < 1e-6


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_the_model_is_left_as_it_was(name):
    model = family(name)
    model.train()
    model.set_attn_implementation("sdpa" if name == "llama" else "eager")
    model.eval()
    before = model(ids()).logits
    model.train()
    weights = {n: p.clone() for n, p in model.named_parameters()}
    anatomy = prove(model)
    base = capture(anatomy, ids())
    changes = to_other(anatomy, base, base, all_parts(anatomy))
    measure_effects(anatomy, base, Question(TARGET), changes)
    with pytest.raises(RuntimeError):
        measure_effects(anatomy, base, Question(TARGET), [replace(changes[0], value_TX=torch.zeros(3, 999))])
    assert hooks(model) == 0 and all(m.training for m in model.modules())
    assert model.config._attn_implementation == ("sdpa" if name == "llama" else "eager")
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    assert torch.equal(model(ids()).logits, before)
