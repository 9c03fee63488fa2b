"""Laws of the levels: every parameter once, exact spectra, movement and its rank; the texts that stand beside them."""

from __future__ import annotations

import copy
import tomllib
from importlib import resources

import pytest
import torch

from families import FAMILIES, family
from intaglio.atlas import AtlasData
from intaglio.errors import InputError
from intaglio.measure.heads.levels import LEVELS, level_rows, squared_spectrum
from intaglio.model.anatomy import anatomy_of
from intaglio.tables import ATLAS_TABLES
from truth.circuits import effective_rank

LANGUAGES = ("en", "ru")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def levels(model, other=None) -> dict[str, dict]:
    return {r["level"]: r for r in level_rows(anatomy_of(model), other and anatomy_of(other))}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_stands_at_one_level(name):
    model = family(name)
    found = levels(model)
    assert sum(r["parameters"] for r in found.values()) == sum(p.numel() for p in model.parameters())
    assert sum(r["share"] for r in found.values()) == pytest.approx(1)
    lengths = [r["weight_l2"] ** 2 for r in found.values() if r["shared_with"] is None]
    assert sum(lengths) == pytest.approx(sum(float(p.square().sum()) for p in model.parameters()), rel=1e-5)
    assert {"embed", "q", "k", "v", "o", "up", "down", "norm", "unembed"} <= found.keys()
    assert ("other" in found) == (name == "gpt_oss"), "its router and its sinks"
    assert AtlasData({}, {"levels": list(found.values())}).rows_of("levels").num_rows == len(found)


@pytest.mark.parametrize(("name", "gated"), [("llama", True), ("phi3", True), ("gpt_oss", True), ("gpt2", False), ("opt", False)])
def test_gates_are_told_apart(name, gated):
    found = levels(family(name))
    assert ("gate" in found) == gated
    if gated:
        assert found["gate"]["parameters"] == found["up"]["parameters"]


def test_fused_projections_count_as_separate_ones():
    model, found = family("phi3"), levels(family("phi3"))
    weight = model.model.layers[0].self_attn.qkv_proj.weight
    assert [found[r]["parameters"] // 3 for r in "qkv"] == [48 * 48, 24 * 48, 24 * 48]
    keys = [layer.self_attn.qkv_proj.weight[48:72] for layer in model.model.layers]
    assert found["k"]["weight_l2"] == pytest.approx(float(torch.stack(keys).norm()), rel=1e-5) and len(weight) == 96
    assert found["k"]["effective_rank"] == pytest.approx(sum(map(effective_rank, keys)) / 3, rel=1e-4)


def test_heads_side_by_side_in_one_matrix_are_split_by_head():
    model, found = family("gpt_neox"), levels(family("gpt_neox"))
    rows = [layer.attention.query_key_value.weight.view(4, 3, 12, 48)[:, 1].reshape(48, 48) for layer in model.gpt_neox.layers]
    biases = [layer.attention.query_key_value.bias.view(4, 3, 12)[:, 1] for layer in model.gpt_neox.layers]
    assert found["k"]["weight_l2"] ** 2 == pytest.approx(float(sum(x.square().sum() for x in (*rows, *biases))), rel=1e-5)
    assert found["k"]["top_share"] == pytest.approx(
        sum(float(torch.linalg.svdvals(x)[0] ** 2 / x.square().sum()) for x in rows) / 3, rel=1e-4
    )


def test_tied_embeddings_are_counted_once():
    found = levels(family("gemma"))
    assert found["unembed"]["parameters"] == 0 and found["unembed"]["shared_with"] == "embed"
    assert found["unembed"]["effective_rank"] == found["embed"]["effective_rank"]


@pytest.mark.parametrize("shape", [(40, 9), (9, 40), (9, 9)])
def test_spectra_are_the_singular_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.linalg.svdvals(x.double()).square().flip(0)
    assert squared_spectrum(x).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


def test_movement_and_its_rank_are_what_was_planted():
    model, before = family("llama"), family("llama")
    delta = torch.outer(torch.randn(96), torch.randn(48)) * 0.1
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.add_(delta)
    found = levels(model, before)
    assert found["up"]["moved_rank"] == pytest.approx(1, abs=1e-3)
    assert found["up"]["moved"] == pytest.approx(float(delta.norm()) * 3**0.5 / found["up"]["weight_l2"], rel=1e-4)
    assert all(r["moved"] == 0 and (r["moved_rank"] or 0) == 0 for level, r in found.items() if level != "up")
    assert all(r["moved"] is None and r["moved_rank"] is None for r in levels(model).values())


def test_checkpoints_of_other_models_are_refused():
    with pytest.raises(InputError, match="different models"):
        levels(family("llama"), family("qwen2"))
    other = copy.deepcopy(family("llama"))
    other.model.norm.weight = torch.nn.Parameter(torch.ones(47))
    with pytest.raises(InputError, match="different shapes"):
        levels(family("llama"), other)


# --- the texts beside the numbers ----------------------------------------------------------


def essence(lang: str) -> dict:
    path = resources.files("intaglio.report") / "heads" / f"texts_levels_{lang}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_level_says_what_it_stores_how_it_is_written_and_by_whom_that_was_found(lang):
    found = essence(lang)
    assert set(found["levels"]) == set(LEVELS)
    for name, level in found["levels"].items():
        assert set(level) == {"title", "stores", "written", "gradient", "sources"}, name
        assert all(level[key].strip() for key in level if key != "sources"), name
        assert set(level["sources"]) <= set(found["sources"]), name
    used = {s for level in found["levels"].values() for s in level["sources"]}
    assert used == set(found["sources"]), "no source stands unused"


def test_both_languages_cite_the_same_and_write_the_same_formulas():
    one, other = map(essence, LANGUAGES)
    assert one["sources"] == other["sources"]
    for name in LEVELS:
        for key in ("gradient", "sources"):
            assert one["levels"][name][key] == other["levels"][name][key]


def test_the_gradients_written_of_attention_are_those_that_training_takes():
    torch.manual_seed(0)
    x_TD, scale = torch.randn(6, 5), 0.7
    q, k, v, o = (torch.randn(shape, requires_grad=True) for shape in ((3, 5), (3, 5), (3, 5), (5, 3)))
    with torch.enable_grad():
        blind = torch.full((6, 6), -torch.inf).triu(1)
        a_TT = (scale * (x_TD @ q.T) @ (x_TD @ k.T).T + blind).softmax(-1)
        z_Td = a_TT @ (x_TD @ v.T)
        given_TD = z_Td @ o.T
        loss = (given_TD * torch.randn(6, 5)).sum() + given_TD.square().sum()
        wanted = torch.autograd.grad(loss, (q, k, v, o, given_TD))
    delta_TD = wanted[4]
    dz_Td = delta_TD @ o
    gain_TT = dz_Td @ (x_TD @ v.T).T
    moved_TT = a_TT * (gain_TT - (a_TT * gain_TT).sum(-1, keepdim=True))
    ours = {
        "q": (scale * moved_TT @ (x_TD @ k.T)).T @ x_TD, "k": (scale * moved_TT.T @ (x_TD @ q.T)).T @ x_TD,
        "v": (a_TT.T @ dz_Td).T @ x_TD, "o": delta_TD.T @ z_Td,
    }  # fmt: skip
    for (level, made), taken in zip(ours.items(), wanted):
        assert torch.allclose(made, taken, atol=1e-4), level
    said = {level: essence("en")["levels"][level]["gradient"] for level in "qkvo"}
    assert "A_ts (g_ts − Σ_u A_tu g_tu) k_s" in said["q"] and "A_ts (g_ts − Σ_u A_tu g_tu) q_t" in said["k"]
    assert "(Σ_t A_ts δz_t) x_sᵀ" in said["v"] and "δ_t z_tᵀ" in said["o"]


def test_the_gradients_written_of_the_mlp_and_the_ends_are_those_that_training_takes():
    torch.manual_seed(1)
    x_TD, next_T, eps = torch.randn(6, 5), torch.randint(0, 7, (6,)), 1e-9
    gate, up, down, gain, rows = (torch.randn(s, requires_grad=True) for s in ((8, 5), (8, 5), (5, 8), (5,), (7, 5)))
    with torch.enable_grad():
        g_TN, u_TN = x_TD @ gate.T, x_TD @ up.T
        h_TN = torch.nn.functional.silu(g_TN) * u_TN
        y_TD = h_TN @ down.T
        hat_TD = y_TD / (y_TD.square().mean(-1, keepdim=True) + eps).sqrt()
        last_TD = hat_TD * gain
        loss = torch.nn.functional.cross_entropy(last_TD @ rows.T, next_T, reduction="sum")
        *wanted, dh_TN, dy_TD, dlast_TD = torch.autograd.grad(loss, (gate, up, down, gain, rows, h_TN, y_TD, last_TD))
    s_TN = g_TN.sigmoid()
    slope_TN = s_TN * (1 + g_TN * (1 - s_TN))
    error_TV = (last_TD @ rows.T).softmax(-1) - torch.eye(7)[next_T]
    ours = {
        "gate": (dh_TN * u_TN * slope_TN).T @ x_TD, "up": (dh_TN * g_TN * s_TN).T @ x_TD, "down": dy_TD.T @ h_TN,
        "norm": (dlast_TD * hat_TD).sum(0), "unembed": error_TV.T @ last_TD,
    }  # fmt: skip
    for (level, made), taken in zip(ours.items(), wanted, strict=True):
        assert torch.allclose(made, taken, atol=1e-4), level


def test_the_levels_are_named_in_the_contract():
    meaning = ATLAS_TABLES["levels"].columns[0].means
    assert all(level in meaning for level in LEVELS)
