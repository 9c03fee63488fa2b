"""Laws of composition: scores of whole matrices, a null that random directions keep, planted pairs, a real model's circuit."""

from __future__ import annotations

import pytest
import torch

from families import family
from intaglio.measure.heads.circuits import measure_weights
from intaglio.measure.heads.composition import SIDES, compositions, null_moments
from intaglio.measure.heads.proved import read_heads
from intaglio.model.proof import prove
from test_laws_head_weights import LETTERS, llama
from truth import circuits as truth


@pytest.fixture(autouse=True)
def no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_composition_is_that_of_the_whole_matrices(name):
    layers = read_heads(prove(family(name)))
    found = compositions(layers)
    for side in SIDES:
        for (i, r), (j, w) in (((1, 0), (0, 3)), ((2, 3), (0, 1)), ((2, 1), (1, 1))):
            wanted = truth.composition(layers[i], r, layers[j], w, side)
            assert float(found[side][0][4 * i + r, 4 * j + w]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("read", "written"), [((1,), (1,)), ((1, 1, 1, 1), (3, 1)), ((5, 1, 0.5), (2, 2, 1, 0.1))])
def test_the_null_of_composition_is_that_of_random_directions(read, written):
    spectra = [torch.tensor(x, dtype=torch.double) for x in (read, written)]
    drawn = truth.random_composition(*spectra, 24, 4000)
    shares = [(s.square() / s.square().sum()).square().sum() for s in spectra]
    mean, sd = null_moments(*shares, 24)
    assert float(mean) == pytest.approx(float(drawn.mean()), rel=0.04)
    assert float(sd) == pytest.approx(float(drawn.std()), rel=0.08)
    assert float((drawn.square()).mean()) == pytest.approx(1 / 24, rel=0.05)


def test_the_nulls_root_is_smooth_where_its_series_takes_over():
    concentration = torch.tensor([1e-4, 1e-3], dtype=torch.double)
    mean, sd = null_moments(concentration, concentration, 100_000)
    assert ((mean - 100_000**-0.5).abs() < 1e-6).all() and (sd > 0).all() and (sd < mean).all()


def test_an_induction_pair_stands_out_by_its_keys_alone():
    model = llama(disturbed=0.0, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=3)
    written = torch.linalg.qr(torch.randn(64, 16))[0]
    model.model.layers[0].self_attn.o_proj.weight[:, 16:32] = written  # head 0.1 writes where
    model.model.layers[2].self_attn.k_proj.weight[32:48] = written.T  # the keys of head 2.2 are read
    rows = [r for r in measure_weights(prove(model), LETTERS)["composition"] if r["reader"] == "L2.attn.H2"]
    first = {side: next(r for r in rows if r["side"] == side) for side in SIDES}
    assert first["k"]["writer"] == "L0.attn.H1" and first["k"]["excess"] > 20 and first["k"]["apart"] > 10
    assert all(abs(first[side]["excess"]) < 5 for side in "qv")


def test_random_heads_compose_as_the_null_says():
    heads = read_heads(prove(llama(disturbed=0.0, hidden_size=64, num_attention_heads=8, num_key_value_heads=8)))
    for score_RW, null_RW, sd_RW in compositions(heads).values():
        excess = ((score_RW - null_RW) / sd_RW)[~torch.eye(24, dtype=torch.bool)]
        assert abs(float(excess.mean())) < 0.25 and 0.7 < float(excess.std()) < 1.3


@pytest.mark.real
def test_previous_token_heads_feed_the_keys_of_induction_heads():
    from intaglio.model.subject import load_subject

    anatomy = prove(load_subject("smollm2").model)
    layers = read_heads(anatomy)[10:19]
    score_RW = compositions(layers)["k"][0]
    for reader in ((17, 3), (17, 4), (17, 5), (18, 6), (18, 7)):
        earlier = score_RW[(reader[0] - 10) * 9 + reader[1], : (17 - 10) * 9]
        assert int(earlier.argmax()) == (16 - 10) * 9, "head 16.0 attends to the previous token"
        assert float(earlier.max()) > 2 * float(earlier.quantile(0.95))
