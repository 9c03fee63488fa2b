"""A credit restricted to parts of the model: the parts sum to the whole, and a head's is that of its own slices."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW

from intaglio.errors import InputError
from intaglio.measure.ledger import Ledger
from study import train
from tiny import batch, build, micro, micro_packed, texts
from truth.gradients import token_losses
from truth.optimizers import Adam as TrueAdam
from truth.optimizers import Twin

ADAMW = dict(lr=3e-3, weight_decay=0.1, eps=1e-5)
PROBE = texts((8, 5, 11), seed=77)
STEPS = [
    [micro(texts((6, 9, 4), seed=1), side="left"), micro_packed([texts((5, 7), seed=2)])],
    [micro(texts((6, 9, 4), seed=3)), micro(texts((8,), seed=4))],
]
FAMILIES = ["gpt2", "llama_gqa", "llama_bias", "gemma3", "neox"]
HEADS = ["L0.attn.H0", "L1.attn.H1"]


@pytest.fixture(scope="module", params=FAMILIES)
def study(request, tmp_path_factory):
    model = build(request.param)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = train(model, AdamW(model.parameters(), **ADAMW), STEPS, tmp_path_factory.mktemp("run") / "run",
                  twin=Twin(lambda n: TrueAdam(**ADAMW, decoupled=True)), probes={"target": batch(PROBE)}, probe_every=1,
                  credit_parts=True, token_parts=HEADS)  # fmt: skip
    found.model, found.family, found.start = model, request.param, start
    return found


def test_credits_of_parts_sum_to_the_credit(study):
    total, size = defaultdict(float), defaultdict(float)
    for r in study.rows("visit_credits"):
        total[r["step"], r["slot"]] += r["credit_nats"]
        size[r["step"], r["slot"]] += abs(r["credit_nats"])
    rows = study.rows("credits")
    assert len(rows) == len(total) == 9
    for r in rows:
        key = r["step"], r["slot"]
        assert total[key] == pytest.approx(r["credit_nats"], abs=1e-6 * size[key])
    heads = {r["address"] for r in study.rows("visit_credits")}
    assert set(HEADS) <= heads


def test_a_heads_credit_is_the_gradient_held_against_its_own_slices(study):
    """The slow twin: the probe's gradient times the oracle's part of the step, cut by hand."""
    cuts = CUTS.get(study.family)
    if cuts is None:
        pytest.skip("its slices are cut by hand for two families only")
    model, head = build(study.family), 1
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(study.start[n])
    params = dict(model.named_parameters())
    loss = torch.cat([token_losses(model, t) for t in PROBE]).mean()
    gradient = dict(zip(params, torch.autograd.grad(loss, list(params.values()), allow_unused=True)))
    truth = study.truths[0]
    for slot in range(5):
        wanted = 0.0
        for name, index, share in cuts(model, 1, head):
            wanted -= share * float((gradient[name].double()[index] * truth.accounts[name].parts[slot].double()[index]).sum())
        got = study.rows("visit_credits", step=0, slot=slot, address="L1.attn.H1")
        scale = sum(abs(r["credit_nats"]) for r in study.rows("visit_credits", step=0, slot=slot))
        assert [r["credit_nats"] for r in got] == [pytest.approx(wanted, abs=1e-4 * scale)]


def llama_slices(model, layer, head):
    """Own rows of q and columns of o; rows of k and v shared with the other heads of the group."""
    config, base = model.config, f"model.layers.{layer}.self_attn"
    dim = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    rows, shared = slice(head * dim, (head + 1) * dim), slice(head // group * dim, (head // group + 1) * dim)
    yield f"{base}.q_proj.weight", rows, 1.0
    yield f"{base}.o_proj.weight", (slice(None), rows), 1.0
    for name in "kv":
        yield f"{base}.{name}_proj.weight", shared, 1 / group


def gpt2_slices(model, layer, head):
    base, width = f"transformer.h.{layer}.attn", model.config.n_embd
    dim = width // model.config.n_head
    for third in range(3):
        yield f"{base}.c_attn.weight", (slice(None), slice(third * width + head * dim, third * width + (head + 1) * dim)), 1.0
    yield f"{base}.c_proj.weight", slice(head * dim, (head + 1) * dim), 1.0


CUTS = {"llama_gqa": llama_slices, "gpt2": gpt2_slices}


def test_shifts_of_tokens_in_a_head_sum_to_the_visits_shift_there(study):
    total = defaultdict(float)
    for r in study.rows("token_parts"):
        total[r["step"], r["slot"], r["address"]] += r["shift"]
    assert {address for *_, address in total} == set(HEADS)
    for r in study.rows("visit_parts"):
        if r["address"] in HEADS:
            scale = study.truths[r["step"]].update_l2
            assert total[r["step"], r["slot"], r["address"]] == pytest.approx(r["shift"], abs=2e-6 * scale)


def test_positions_of_token_parts_are_those_of_tokens(study):
    def places(table):
        return {(r["step"], r["slot"], r["position"]) for r in study.rows(table)}

    assert places("token_parts") == places("tokens")


def test_nothing_of_it_is_kept_unless_asked_for(tmp_path):
    model = build("llama_gqa")
    study = train(model, SGD(model.parameters(), lr=0.01), [[micro(texts())]], tmp_path / "run",
                  probes={"target": batch(PROBE)}, probe_every=1)  # fmt: skip
    assert study.rows("credits") and not study.rows("visit_credits") and not study.rows("token_parts")


def test_only_the_examples_asked_for(tmp_path):
    model = build("llama_gqa")
    one = train(model, SGD(model.parameters(), lr=0.01), [[micro(texts())]], tmp_path / "one")
    wanted = one.rows("visits")[2]["example"]
    model = build("llama_gqa")
    two = train(model, SGD(model.parameters(), lr=0.01), [[micro(texts())]], tmp_path / "two",
                token_parts=["L0.attn.H0"], token_examples=[wanted])  # fmt: skip
    assert {r["slot"] for r in two.rows("token_parts")} == {2}


def test_a_part_that_the_model_has_not_is_refused(tmp_path):
    model = build("llama_gqa")
    with pytest.raises(InputError, match=r"L7\.attn\.H0"):
        Ledger(model, SGD(model.parameters(), lr=0.01), out=tmp_path / "run", token_parts=["L7.attn.H0"], quiet=True)


def test_credits_are_unchanged_by_asking_for_their_parts(tmp_path):
    found = []
    for parts in (False, True):
        model = build("gpt2")
        study = train(model, SGD(model.parameters(), lr=0.01), [[micro(texts())]], tmp_path / str(parts),
                      probes={"target": batch(PROBE)}, probe_every=1, credit_parts=parts)  # fmt: skip
        found.append(study.column("credits", "credit_nats"))
    assert np.array_equal(*found)
