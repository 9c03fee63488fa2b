"""Laws of what weights alone say of a head: slices, copying, matching, ranks, distance profiles, token pairs."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from conftest import byte_tokenizer
from families import FAMILIES, VOCAB, family
from intaglio.atlas import AtlasData
from intaglio.errors import SubjectError
from intaglio.measure.heads import circuits, matrices
from intaglio.measure.heads.circuits import effective_rank, measure_weights, product_spectrum, strongest
from intaglio.measure.heads.proved import read_heads
from intaglio.model.proof import prove
from truth import circuits as truth

LETTERS = byte_tokenizer()
SCALARS = ("ov_copying", "ov_copying_null", "qk_matching", "qk_matching_null", "ov_rank", "qk_rank", "ov_l2", "qk_l2")


@pytest.fixture(autouse=True)
def no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def llama(*, disturbed: float = 0.1, **changes) -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(config | changes))).eval()
    for p in model.parameters():
        p.add_(torch.randn_like(p) * disturbed)
    return model


def weights(model) -> list[dict]:
    return measure_weights(prove(model), LETTERS)["weights"]


@functools.cache
def measured(name: str) -> dict[str, list[dict]]:
    return measure_weights(prove(family(name)), LETTERS)


# --- slices --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_heads_read(name):
    found = measured(name)
    assert len(found["weights"]) == 12 and len(found["reads"]) == 12 * 15
    assert len(found["composition"]) == 3 * 4 * (4 + 4)
    assert all(max(heads.errors.values()) < 1e-4 for heads in read_heads(prove(family(name))))
    assert {row["profile_offset"] is None for row in found["weights"]} == {name in ("bloom", "gptj")}
    tables = AtlasData({}, found)
    for table, rows in found.items():
        assert tables.rows_of(table).num_rows == len(rows)


@pytest.mark.parametrize(("name", "layout"), [("gpt_neox", "qkv"), ("phi3", "per_head"), ("gpt2", "per_head"), ("bloom", "qkv")])
def test_wrong_slices_are_refused(name, layout, monkeypatch):
    anatomy = prove(family(name))
    monkeypatch.setattr(matrices, "FUSED", dict.fromkeys(matrices.FUSED, layout))
    with pytest.raises(SubjectError, match=r"not proved|not known"):
        read_heads(anatomy)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_weights_in_sixteen_bits_are_read_alike(name):
    found = weights(family(name).to(torch.bfloat16))
    for half, whole in zip(found, measured(name)["weights"], strict=True):
        assert half["ov_copying"] == pytest.approx(whole["ov_copying"], abs=0.05)
        assert half["ov_l2"] == pytest.approx(whole["ov_l2"], rel=0.02)


def test_a_model_of_one_layer_composes_nothing():
    found = measure_weights(prove(llama(num_hidden_layers=1)), LETTERS)
    assert found["composition"] == [] and len(found["weights"]) == 4


# --- copying and matching ------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_those_of_the_whole_matrices(tied):
    model = llama(tie_word_embeddings=tied)
    rows = weights(model)
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        row = rows[layer * 4 + head]
        assert row["address"] == f"L{layer}.attn.H{head}"
        assert row["ov_copying"] == pytest.approx(truth.eigen_score(truth.full_ov(model, layer, head)), abs=1e-4)
        assert row["qk_matching"] == pytest.approx(truth.eigen_score(truth.full_qk(model, layer, head)), abs=1e-4)


def planted_ov(sign: float) -> LlamaForCausalLM:
    """Head 1.0 passes on what it reads, times `sign`; tokens are orthogonal, so that they are raised alone."""
    model = llama(disturbed=0.0, vocab_size=16, hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    model.model.embed_tokens.weight.copy_(torch.eye(16, 32))
    model.lm_head.weight.copy_(torch.eye(16, 32))
    attn = model.model.layers[1].self_attn
    attn.v_proj.weight[:16] = torch.eye(16, 32)
    attn.o_proj.weight[:, :16] = sign * torch.eye(32, 16)
    return model


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_copying_head_scores_one_and_its_opposite_minus_one(sign):
    row = weights(planted_ov(sign))[2]
    assert row["ov_copying"] == pytest.approx(sign, abs=1e-6)
    assert row["ov_copying_null"] < 0.7
    others = [r["ov_copying"] for r in weights(planted_ov(sign)) if r["address"] != "L1.attn.H0"]
    assert max(map(abs, others)) < 0.9


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_copying_head_reads_and_writes_the_same_token(sign):
    found = [r for r in measure_weights(prove(planted_ov(sign)), LETTERS)["reads"] if r["address"] == "L1.attn.H0"]
    same = {r["circuit"]: r["source"] == r["token"] for r in found if r["rank"] == 0 and r["circuit"] != "qk"}
    assert same == {"ov": sign > 0, "ov_down": sign < 0}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_head_that_looks_for_its_like_matches(sign):
    model = planted_ov(1.0)
    attn = model.model.layers[0].self_attn
    attn.q_proj.weight[:16], attn.k_proj.weight[:16] = torch.eye(16, 32), sign * torch.eye(16, 32)
    assert weights(model)[0]["qk_matching"] == pytest.approx(sign, abs=1e-6)


def test_random_heads_are_beyond_the_null_no_more_often_than_it_says():
    model = llama(disturbed=0.0, num_hidden_layers=10, num_attention_heads=8, num_key_value_heads=8, hidden_size=64)
    rows = weights(model)
    for name in ("ov_copying", "qk_matching"):
        beyond = sum(abs(r[name]) > r[f"{name}_null"] for r in rows)
        assert beyond <= 10, f"{beyond} of 80 heads by chance, where 4 are to be expected"
        assert sum(abs(r[name]) > r[f"{name}_null"] / 3 for r in rows) > 20, "a null that is far too wide finds nothing"


@pytest.mark.parametrize(("ruled", "work", "within"), [(0.0, 10**9, 0.12), (6.0, 10**9, 0.12), (0.0, 0, 0.25)])
def test_the_null_of_copying_is_that_of_random_directions(ruled, work, within, monkeypatch):
    """Also where one direction rules the embeddings; and where eigenvalues of few draws must do."""
    monkeypatch.setattr(circuits, "_WORK", work)
    model = llama(disturbed=0.0)
    for matrix in (model.model.embed_tokens.weight, model.lm_head.weight):
        matrix.add_(ruled * matrix.std() * torch.randn(VOCAB)[:, None] * torch.randn(32))
    wanted = float(truth.random_copying(model, 1, 2, 500).quantile(0.95))
    assert weights(model)[6]["ov_copying_null"] == pytest.approx(wanted, rel=within)


# --- what must not matter ------------------------------------------------------------------


def turn(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


def same(ours: list[dict], theirs: list[dict], names=SCALARS) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=2e-3, abs=2e-4), (a["address"], name)
        assert a["profile"] == pytest.approx(b["profile"], abs=1e-3)


def test_a_heads_own_basis_does_not_matter():
    torch.manual_seed(2)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    turned = copy.deepcopy(model)
    attn = turned.transformer.h[1].attn
    for part, seed in ((0, 1), (32, 1), (64, 2)):  # queries and keys of head 1 alike, its values by another turn
        own = slice(part + 16, part + 32)
        attn.c_attn.weight[:, own] = attn.c_attn.weight[:, own] @ turn(16, seed)
        attn.c_attn.bias[own] = attn.c_attn.bias[own] @ turn(16, seed)
    attn.c_proj.weight[16:] = turn(16, 2).T @ attn.c_proj.weight[16:]
    before, after = (measure_weights(prove(m), LETTERS) for m in (model, turned))
    same(before["weights"], after["weights"])
    for a, b in zip(before["composition"], after["composition"], strict=True):
        assert (a["reader"], a["writer"], a["side"]) == (b["reader"], b["writer"], b["side"])
        assert a["score"] == pytest.approx(b["score"], rel=1e-4)


def test_what_a_softmax_does_not_see_does_not_matter():
    model, shifted = llama(), llama()
    shifted.lm_head.weight.add_(torch.randn(32))
    same(weights(model), weights(shifted))


def test_a_gain_can_be_moved_from_the_norm_into_the_matrices():
    model, moved = llama(), llama()
    block, gain_D = moved.model.layers[1], torch.rand(32) + 0.5
    block.input_layernorm.weight.div_(gain_D)
    for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
        projection.weight.mul_(gain_D)
    same(weights(model), weights(moved))


def test_lengths_and_ranks_are_those_of_the_whole_matrices():
    heads = read_heads(prove(llama()))[1]
    for h, row in enumerate(weights(llama())[4:8]):
        ov = heads.o_HDd[h] @ heads.v_HdD[h]
        qk = heads.q_HdD[h].T @ heads.k_HdD[h] * heads.scaling
        assert row["ov_l2"] == pytest.approx(float(ov.norm()), rel=1e-4)
        assert row["qk_l2"] == pytest.approx(float(qk.norm()), rel=1e-4)
        assert row["ov_rank"] == pytest.approx(truth.effective_rank(ov), rel=1e-3)
        assert row["qk_rank"] == pytest.approx(truth.effective_rank(qk), rel=1e-3)


def test_the_rank_of_equal_directions_is_their_number_and_of_nothing_zero():
    left_HDd, right_HdD = torch.zeros(2, 12, 4), torch.zeros(2, 4, 12)
    left_HDd[0, :3, :3], right_HdD[0, :3, :3] = torch.eye(3), torch.eye(3)
    spectrum_Hd = product_spectrum(left_HDd, right_HdD)
    assert effective_rank(spectrum_Hd).tolist() == pytest.approx([3.0, 0.0], abs=1e-6)


# --- distance profiles ---------------------------------------------------------------------


def rotated(model: LlamaForCausalLM, x_Td: torch.Tensor) -> torch.Tensor:
    """`x_Td` at positions 0, 1, 2, ..., by the model's own rotary module."""
    positions = torch.arange(len(x_Td))[None]
    cos, sin = model.model.rotary_emb(x_Td[None], positions)
    return apply_rotary_pos_emb(x_Td[None, None], x_Td[None, None], cos, sin)[0][0, 0]


@pytest.mark.parametrize("offset", [1, 4])
def test_a_head_built_to_look_back_so_far_prefers_that_distance(offset):
    model = llama(attention_bias=True, num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    attn, key_d = model.model.layers[1].self_attn, torch.ones(8)
    attn.k_proj.bias[8:16] = 20 * key_d
    forth_d = rotated(model, key_d.expand(offset + 1, 8))[offset]
    attn.q_proj.bias[8:16] = 20 * torch.cat([forth_d[4:], forth_d[:4]])  # of equal halves: the turn the other way
    assert weights(model)[5]["profile_offset"] == offset


@pytest.mark.parametrize("theta", [100.0, 10000.0])
def test_the_profile_is_the_mean_score_of_all_pairs_at_each_distance(theta):
    model = llama(attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": theta})
    ids = [i for i in range(VOCAB) if i > 4]  # the byte tokenizer's control tokens are the first five
    rows = measure_weights(prove(model), LETTERS)["weights"]
    e_ND = truth.normed_embeddings(model)[ids].float()
    block = model.model.layers[2]
    attn, hidden_ND = block.self_attn, e_ND * block.input_layernorm.weight
    q_N, k_N = attn.q_proj(hidden_ND)[:, 24:32], attn.k_proj(hidden_ND)[:, 8:16]  # head 3 uses key head 1
    q_FNd = torch.stack([rotated(model, q.expand(65, 8)) for q in q_N], 1)  # every query, so far behind
    wanted_F = torch.einsum("fne,me->fnm", q_FNd, k_N).mean((1, 2)) * attn.scaling
    assert rows[11]["profile"] == pytest.approx((wanted_F - wanted_F.mean()).tolist(), abs=2e-4)


# --- token pairs ---------------------------------------------------------------------------


def test_the_strongest_pairs_are_those_of_the_whole_matrix():
    left, right = torch.randn(700, 5), torch.randn(300, 5)
    whole = left @ right.T
    up, down = strongest(left, right)
    order = whole.amax(1).argsort(descending=True)[:5].tolist()
    assert [row for row, _, _ in up] == order and all(column == int(whole[row].argmax()) for row, column, _ in up)
    lowest = whole.amin(1).argsort()[:5].tolist()
    assert [row for row, _, _ in down] == lowest
    assert [value for *_, value in down] == pytest.approx([float(whole[row].min()) for row in lowest], rel=1e-5)


def test_tokens_are_letters_and_bytes_of_letters():
    words = {r["source"] for r in measured("llama")["reads"]} | {r["token"] for r in measured("llama")["reads"]}
    assert words and all(len(w) == 1 or (w.startswith("<") and w.endswith(">") and len(w) == 4) for w in words)
    assert not any("Ġ" in w or "<s>" in w or ("|" in w and len(w) > 1) for w in words)
