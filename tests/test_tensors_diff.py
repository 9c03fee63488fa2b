"""Two checkpoints side by side: laws, planted changes that must be found, and plain twins of every number."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import byte_tokenizer
from families import family
from intaglio.analyse.tensors.diff import find, levels, ranges
from intaglio.errors import SubjectError
from intaglio.measure.tensors import movement as movement_module
from intaglio.measure.tensors import reading as reading_module
from intaglio.measure.tensors import spectra as spectra_module
from intaglio.measure.tensors.diff import Difference, diff
from intaglio.measure.tensors.norms import norms
from intaglio.measure.tensors.spectra import effective_rank, principal_angles, spectrum, top_subspace
from intaglio.model.tensors import open_checkpoint
from intaglio.report.tensors import TensorWords, render_diff, tensors_catalogue
from intaglio.report.tensors.maps import Box, shelves, squarify
from truth import tensors as truth

Weights = dict[str, np.ndarray]
O, EMBED = "model.layers.1.self_attn.o_proj.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of bytes: 3 layers of 4 heads of 12, two key heads."""
    folder = tmp_path_factory.mktemp("base")
    family("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Callable[[Callable[[Weights], object]], Path]:
    def make(change: Callable[[Weights], object]) -> Path:
        folder = tmp_path / "tuned"
        shutil.copytree(base, folder)
        weights = {n: w.copy() for n, w in load_file(base / "model.safetensors").items()}
        change(weights)
        save_file(weights, folder / "model.safetensors")
        return folder

    return make


def _tensor(found: Difference, name: str) -> dict:
    return next(r for r in found.rows["tensors"] if r["tensor"] == name)


def _noise(weights: Weights, scale: float = 0.01) -> None:
    rng = np.random.default_rng(0)
    for name, w in weights.items():
        weights[name] = (w + scale * rng.standard_normal(w.shape)).astype(w.dtype)


# --- laws ----------------------------------------------------------------------------------


def test_a_checkpoint_against_itself_did_not_move_at_all(base: Path):
    found = diff(base, base)
    assert found.about["changed"] == 0 and found.about["still"] == found.about["n_tensors"] == len(found.rows["tensors"])
    assert found.about["relative"] == 0 and found.about["cosine"] == 1 and found.about["angle_deg"] == 0
    assert all(r["relative"] == 0 and r["cosine"] == 1 for r in found.rows["heads"]) and len(found.rows["heads"]) == 12
    assert found.rows["tokens"] == [] and found.rows["directions"] == []
    assert [s.key for s in find(found.about, found.rows)["answer"]] == ["same", "nowhere", "still_all"]


def test_movement_there_is_movement_back(base: Path, tuned: Callable):
    other = tuned(_noise)
    there, back = diff(base, other), diff(other, base)
    for a, b in zip(there.rows["tensors"], back.rows["tensors"]):
        assert a["moved_l2"] == pytest.approx(b["moved_l2"], rel=1e-6) and a["before_l2"] == pytest.approx(b["after_l2"])
        assert a["cosine"] == pytest.approx(b["cosine"]) and a["changed"] == b["changed"]
        if a.get("rank"):
            assert a["rank"] == pytest.approx(b["rank"], rel=1e-6)
            assert a["turned_left_deg"] == pytest.approx(b["turned_left_deg"], rel=1e-4, abs=1e-4)


def test_doubling_everything_moves_by_its_own_length_and_turns_nothing(base: Path, tuned: Callable):
    found = diff(base, tuned(lambda w: w.update({n: 2 * v for n, v in w.items()})))
    assert found.about["relative"] == pytest.approx(1) and found.about["angle_deg"] == pytest.approx(0, abs=1e-3)
    ranked = [r for r in found.rows["tensors"] if r.get("rank")]
    assert ranked and all(r["turned_left_deg"] < 1e-3 and r["shared_right"] == pytest.approx(1) for r in ranked)


def test_a_head_is_all_of_its_slices(base: Path, tuned: Callable):
    """Over distinct heads the squared movements of q and o sum to the matrices'; shared k and v count for every head."""
    found = diff(base, tuned(_noise))
    for role in "qo":
        name = f"model.layers.2.self_attn.{role}_proj.weight"
        heads = [r for r in found.rows["heads"] if r["layer"] == 2]
        assert sum(r["moved_l2_by"][role] ** 2 for r in heads) == pytest.approx(_tensor(found, name)["moved_l2"] ** 2)
    keys = sum(r["moved_l2_by"]["k"] ** 2 for r in heads)
    assert keys == pytest.approx(2 * _tensor(found, "model.layers.2.self_attn.k_proj.weight")["moved_l2"] ** 2)
    assert heads[0]["shared_with"] == ["L2.attn.H1"]


# --- what was planted is found ---------------------------------------------------------------


def test_a_planted_change_of_rank_one_in_one_head_is_found_there(base: Path, tuned: Callable):
    rng = np.random.default_rng(3)

    def plant(w: Weights) -> None:
        w[O][:, 24:36] += 0.1 * np.outer(rng.standard_normal(48), rng.standard_normal(12)).astype(np.float32)

    found = diff(base, tuned(plant))
    moved = [r["address"] for r in found.rows["heads"] if r["moved_l2"]]
    assert moved == ["L1.attn.H2"]
    head = next(r for r in found.rows["heads"] if r["moved_l2"])
    assert head["rank"] == pytest.approx(1, abs=1e-3) and head["rank_by"]["o"] == pytest.approx(1, abs=1e-3)
    assert head["relative_by"]["q"] == 0 and head["relative_by"]["o"] > 0
    row = _tensor(found, O)
    assert row["rank"] == pytest.approx(1, abs=1e-3) and row["exact"] and row["top_share"] == pytest.approx(1, abs=1e-4)
    assert row["changed"] == 48 * 12 and found.about["changed"] == 48 * 12
    assert found.about["still"] == found.about["n_tensors"] - 1
    said = find(found.about, found.rows)
    where = {k: v.value for k, v in said["answer"][1].values.items()}
    assert said["answer"][1].key == "where_heads" and (where["tensor"], where["head"], where["half"]) == (O, "L1.attn.H2", 1)
    assert where["relative"] == pytest.approx(row["relative"]) and where["share"] == pytest.approx(1)
    assert said["answer"][2].key == "still_layers" and said["answer"][2].values["layers"].value == "0, 2"


def test_a_planted_head_is_said_to_stand_out(base: Path, tuned: Callable):
    def plant(w: Weights) -> None:
        _noise(w, 0.001)
        w[O][:, 24:36] += 0.3

    found = diff(base, tuned(plant), spectra=False)
    said = find(found.about, found.rows)["answer"][1]
    assert said.key == "where_head" and said.values["head"].value == "L1.attn.H2"


def test_planted_rows_of_the_embedding_are_found_with_their_letters(base: Path, tuned: Callable):
    tokenizer = byte_tokenizer()
    rows = [tokenizer.convert_tokens_to_ids("A"), 40, 90]

    def plant(w: Weights) -> None:
        for size, row in zip((0.3, 0.2, 0.1), rows):
            w[EMBED][row] += size

    found = diff(base, tuned(plant), spectra=False)
    listed = [r for r in found.rows["tokens"] if r["tensor"] == EMBED]
    assert [r["token"] for r in listed] == rows and listed[0]["text"] == "A"
    assert {r["rows_moved"] for r in listed} == {3} and listed[0]["rows"] == 97
    assert listed[0]["moved_l2"] == pytest.approx(0.3 * 48**0.5, rel=1e-4)


def test_russian_letters_and_lone_bytes_are_readable(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models

    from intaglio.data.pieces import open_pieces

    names = ["<s>", "Ð¿ÑĢÐ¸", "Ð", "ĠÐ´Ð¾Ð¼"]  # при, one byte of a letter, " дом"
    core = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, []))
    core.decoder = decoders.ByteLevel()
    core.save(str(tmp_path / "tokenizer.json"))
    pieces = open_pieces(tmp_path)
    assert [pieces(i) for i in range(5)] == ["<s>", "при", "<D0>", " дом", None]
    (tmp_path / "tokenizer.json").write_text("{")
    assert open_pieces(tmp_path) is None and open_pieces(tmp_path / "none") is None


@pytest.mark.parametrize("angle", [0.5, 20.0, 75.0])
def test_a_planted_rotation_turns_the_subspace_by_its_angle(tmp_path: Path, angle: float):
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((40, 40)))[0] for _ in range(2))
    values = np.r_[np.linspace(9, 8, 8), np.linspace(1, 0.1, 32)]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turned = left.copy()
    turned[:, 0], turned[:, 20] = c * left[:, 0] + s * left[:, 20], -s * left[:, 0] + c * left[:, 20]
    for name, u in (("a", left), ("b", turned)):
        save_file({"w": ((u * values) @ right.T).astype(np.float32)}, tmp_path / f"{name}.safetensors")
    row = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").rows["tensors"][0]
    assert row["turned_left_deg"] == pytest.approx(angle, abs=0.02) and row["turned_right_deg"] < 0.02
    assert row["shared_left"] == pytest.approx((7 + c * c) / 8, abs=1e-4) and row["gap"] == pytest.approx(1 - 1 / 8, abs=1e-3)


def test_a_change_that_writes_a_token_is_named_and_noise_names_none(base: Path, tuned: Callable):
    token = 50

    def plant(w: Weights) -> None:
        rows = w["lm_head.weight"] - w["lm_head.weight"].mean(0)
        towards = rows[token] / w["model.norm.weight"]
        w[O] += 0.5 * np.outer(towards, np.random.default_rng(0).standard_normal(48)).astype(np.float32)

    found = diff(base, tuned(plant)).rows["directions"]
    assert [r["tensor"] for r in found] == [O] and found[0]["side"] == "writes"
    near = found[0]["towards"] + found[0]["away"]
    assert near[0]["token"] == token and near[0]["cosine"] == pytest.approx(1, abs=1e-4) and found[0]["null"] < 0.9


def test_noise_points_at_no_token_more_than_chance_allows(base: Path, tuned: Callable):
    found = diff(base, tuned(_noise)).rows["directions"]
    named = [r for r in found if r["towards"] or r["away"]]
    assert len(found) >= 10 and len(named) <= 0.25 * len(found)  # a fifth of 5 % each, several directions


# --- twins -----------------------------------------------------------------------------------


def test_streamed_numbers_are_the_whole_ones(base: Path, tuned: Callable, monkeypatch: pytest.MonkeyPatch):
    """However small the blocks, every number is what the plain twin gives."""
    monkeypatch.setattr(reading_module, "CHUNK", 100)
    monkeypatch.setattr(reading_module, "SPAN_BYTES", 2000)
    monkeypatch.setattr(spectra_module, "SPAN_BYTES", 3000)
    assert len(list(movement_module.spans((97, 48)))) > 5
    other = tuned(_noise)
    found = diff(base, other, workers=2)
    before, after = load_file(base / "model.safetensors"), load_file(other / "model.safetensors")
    for row in found.rows["tensors"]:
        a, b = before[row["tensor"]], after[row["tensor"]]
        for key, value in truth.movement(a, b).items():
            assert row[key] == pytest.approx(value, rel=1e-5), (row["tensor"], key)
        assert row["changed"] == int((a != b).sum())
        if a.ndim == 2:
            assert row["rank"] == pytest.approx(truth.effective_rank(b.astype(np.float64) - a), rel=1e-5)
            for side, x, y in zip(("left", "right"), truth.subspaces(a, 8), truth.subspaces(b, 8)):
                wanted = truth.angles(x, y)
                assert row[f"turned_{side}_deg"] == pytest.approx(wanted[0], rel=1e-3, abs=1e-3)
                assert row[f"shared_{side}"] == pytest.approx((np.cos(np.radians(wanted)) ** 2).mean(), rel=1e-4)
    held = {n: v.astype(np.float64) for n, v in before.items()}
    moved = after["model.layers.0.self_attn.q_proj.weight"][12:24] - held["model.layers.0.self_attn.q_proj.weight"][12:24]
    head = next(r for r in found.rows["heads"] if r["address"] == "L0.attn.H1")
    assert head["moved_l2_by"]["q"] == pytest.approx(np.linalg.norm(moved), rel=1e-5)
    assert head["rank_by"]["q"] == pytest.approx(truth.effective_rank(moved), rel=1e-5)
    columns = after["model.layers.0.self_attn.o_proj.weight"][:, 12:24] - held["model.layers.0.self_attn.o_proj.weight"][:, 12:24]
    assert head["moved_l2_by"]["o"] == pytest.approx(np.linalg.norm(columns), rel=1e-5)
    assert head["rank_by"]["o"] == pytest.approx(truth.effective_rank(columns), rel=1e-5)


def test_an_angle_stays_exact_where_the_cosine_is_all_but_one(tmp_path: Path):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200, 300)).astype(np.float32)
    b = a.copy()
    b[0, 0] += np.float32(2**-8)
    for name, w in (("a", a), ("b", b)):
        save_file({"w": w}, tmp_path / f"{name}.safetensors")
    row = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", spectra=False).rows["tensors"][0]
    assert row["angle_deg"] == pytest.approx(truth.movement(a, b)["angle_deg"], rel=1e-3) and row["angle_deg"] < 1e-2
    assert row["changed"] == 1


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "gemma2", "qwen2"])
def test_heads_of_other_families(name: str, tmp_path: Path):
    """Fused, transposed and biased layouts: only the head whose numbers were changed is said to have moved."""
    from intaglio.model.slices import places_of

    family(name).save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = {n: w.copy() for n, w in load_file(tmp_path / "a/model.safetensors").items()}
    for place in places_of(open_checkpoint(tmp_path / "a"), "L1.attn.H1"):
        if place["role"].startswith(("q", "o")):
            rows, columns = (slice(*place[n]) if place[n] else slice(None) for n in ("rows", "columns"))
            where = (rows, columns)[: weights[place["tensor"]].ndim]
            weights[place["tensor"]][where] += 0.25
    save_file(weights, tmp_path / "b/model.safetensors")
    found = diff(tmp_path / "a", tmp_path / "b")
    assert [r["address"] for r in found.rows["heads"] if r["moved_l2"]] == ["L1.attn.H1"]
    head = next(r for r in found.rows["heads"] if r["moved_l2"])
    assert head["rank_by"]["o"] == pytest.approx(1, abs=1e-3) and head["relative_by"]["v"] == 0


def test_different_types_are_compared_as_numbers(tmp_path: Path):
    import torch
    from safetensors.torch import save_file as save_torch

    exact = torch.arange(-64, 64).float().reshape(8, 16)
    save_torch({"w": exact}, tmp_path / "a.safetensors")
    save_torch({"w": exact.bfloat16()}, tmp_path / "b.safetensors")
    found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert found.about["changed"] == 0 and found.rows["tensors"][0]["other_dtype"] == "BF16"
    assert "dtypes" in [s.key for s in find(found.about, found.rows)["limits"]]


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_quantised_file_beside_the_model_it_was_made_from(kind: str, tmp_path: Path):
    """Rows of a GGUF lie in rotary pairs and blocks; read in passing they are still the model's own."""
    from test_tensors_gguf import Kind, tiny, write

    model = tiny()
    model.save_pretrained(tmp_path / "model")
    file = write(tmp_path / "model.gguf", model, getattr(Kind, kind))
    found = diff(file, tmp_path / "model")
    held, stored = load_file(tmp_path / "model/model.safetensors"), open_checkpoint(file)
    assert len(found.rows["tensors"]) == len(held) and found.rows["heads"]
    for row in found.rows["tensors"]:
        wanted = truth.movement(stored.read(row["tensor"]), held[row["tensor"]])
        assert row["moved_l2"] == pytest.approx(wanted["moved_l2"], rel=1e-5, abs=1e-9)
        assert row["relative"] < {"F16": 0.001, "Q8_0": 0.01, "Q4_0": 0.15}[kind]


# --- norms and spectra by themselves -----------------------------------------------------------


def test_norms(tmp_path: Path):
    x = np.random.default_rng(0).standard_normal((70, 33)).astype(np.float32)
    x[3, :5] = 0
    bad = np.array([1.0, np.inf, 2.0, np.nan], np.float32)
    save_file({"x": x, "bad": bad, "empty": np.empty((0, 3), np.float32), "one": np.array(3, np.float32)},
              tmp_path / "m.safetensors")  # fmt: skip
    found = norms(open_checkpoint(tmp_path / "m.safetensors"))
    assert found["x"].l2 == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-6)
    assert (found["x"].zeros, found["x"].nonfinite) == (5, 0) and found["x"].largest == np.abs(x).max()
    assert (found["bad"].nonfinite, found["bad"].zeros, found["bad"].l2) == (2, 0, pytest.approx(5**0.5))
    assert found["empty"].l2 == 0 and found["one"].l2 == 3


@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (30, 30), (1, 9)])
def test_exact_spectra(shape: tuple[int, int]):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = spectrum(lambda a, b: x[a:b], shape, k=4)
    left, values, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(found.values[: len(values)], values, rtol=1e-6)
    assert found.rank == pytest.approx(truth.effective_rank(x), rel=1e-6) and found.rank_low == found.rank_high and found.exact
    k = found.left_RK.shape[1]
    np.testing.assert_allclose(np.abs((found.left_RK * left[:, :k]).sum(0)), 1, rtol=1e-5)
    np.testing.assert_allclose(np.abs((found.right_CK * right[:k].T).sum(0)), 1, rtol=1e-5)
    top = top_subspace(lambda a, b: x[a:b], shape, 3)
    np.testing.assert_allclose(top.values, values[: len(top.values)], rtol=1e-6)


def test_a_sampled_spectrum_states_a_range_that_holds_the_truth():
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.standard_normal((300, 120)))[0], np.linalg.qr(rng.standard_normal((200, 120)))[0]
    for decay in (0.8, 0.97, 1.0):
        values = 10 * decay ** np.arange(120)
        x = ((u * values) @ v.T).astype(np.float32)
        found = spectrum(lambda a, b, x=x: x[a:b], x.shape, k=5, exact_up_to=50)
        exact = truth.effective_rank(x)
        assert not found.exact and found.rank_low <= exact * 1.001 and exact <= found.rank_high * 1.001
        assert found.total == pytest.approx((values**2).sum(), rel=1e-5)
        if decay < 1:
            np.testing.assert_allclose(found.values[:5], values[:5], rtol=1e-3)
            assert principal_angles(found.right_CK[:, :1], v[:, :1])[0] < 2


@pytest.mark.parametrize("rank", [90, 200])
def test_a_sampled_rank_of_noise_is_within_its_range(rank: int):
    """A flat spectrum is the hardest: its leading directions cannot be told apart."""
    rng = np.random.default_rng(rank)
    x = np.zeros((600, 200), np.float32)
    x[:rank] = rng.standard_normal((rank, 200))
    found = spectrum(lambda a, b: x[a:b], x.shape, exact_up_to=50)
    assert found.rank_low <= truth.effective_rank(x) <= found.rank_high


def test_effective_rank_of_equal_values_is_their_number():
    assert effective_rank(np.ones(7)) == pytest.approx(7) and effective_rank(np.r_[3.0, 0, 0]) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0


# --- bad input -------------------------------------------------------------------------------


def _line(base: Path, other: Path) -> str:
    with pytest.raises(SubjectError) as found:
        diff(base, other)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_checkpoints_of_different_shapes_are_refused_by_the_first_difference(base: Path, tuned: Callable, tmp_path: Path):
    other = tuned(lambda w: w.update({O: w[O][:, :24].copy()}))
    assert _line(base, other) == f"the checkpoints are not of one shape: {O} differs; got [48, 24]; expected [48, 48]"
    shutil.rmtree(other)
    assert "lacks a tensor; got no lm_head.weight" in _line(base, tuned(lambda w: w.pop("lm_head.weight")))
    shutil.rmtree(other)
    more = tuned(lambda w: w.update({"extra.weight": np.ones(3, np.float32)}))
    assert "has a tensor more; got extra.weight" in _line(base, more)
    assert "no such checkpoint" in _line(base, tmp_path / "none")


def test_numbers_that_are_not_finite_are_said_and_left_out(base: Path, tuned: Callable, tmp_path: Path):
    def spoil(w: Weights) -> None:
        w[O][0, 0] = np.nan
        w["model.norm.weight"] *= 2

    found = diff(base, tuned(spoil))
    assert found.about["nonfinite"] == [O] and found.about["relative"] > 0
    row = _tensor(found, O)
    assert row["relative"] is None and row["changed"] == 1 and "rank" not in row
    json.loads(found.to_json(tmp_path / "f.json"))
    assert "nonfinite" in [s.key for s in find(found.about, found.rows)["limits"]]
    assert O in render_diff(found.about, found.rows, find(found.about, found.rows), levels)


# --- words, scale, page ------------------------------------------------------------------------


def test_levels_are_steps_of_equal_ratio():
    steps, ends = levels([0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, None], 7)
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, 7, None]
    assert steps[1:-1] == sorted(steps[1:-1]) and np.allclose(np.diff(np.log(ends)), np.log(128) / 7)
    assert levels([0.0, None]) == ([0, None], []) and levels([0.5, 0.5, 0])[0] == [7, 7, 0]
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8" and ranges([]) == ""


@pytest.mark.parametrize("lay", [squarify, shelves])
def test_rectangles_fill_their_box_without_overlap(lay: Callable):
    sizes = [50, 30, 30, 5, 5, 1, 1, 0.5]
    boxes = lay(sizes, Box(10, 20, 300, 200))
    for size, box in zip(sizes, boxes):
        assert box.width * box.height == pytest.approx(size / sum(sizes) * 300 * 200)
        assert 10 - 1e-6 <= box.x and box.x + box.width <= 310 + 1e-6 and box.y + box.height <= 220 + 1e-6
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert min(across, down) < 1e-6
    assert lay([0, 0], Box(0, 0, 5, 5)) == [Box(0, 0, 0, 0)] * 2


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_the_page_says_what_was_found_and_asks_nothing_of_the_network(base: Path, tuned: Callable, lang: str):
    def plant(w: Weights) -> None:
        _noise(w, 0.001)
        w[O] += 0.1
        w["model.layers.0.mlp.up_proj.weight"] = load_file(base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]

    found = diff(base, tuned(plant), names=("<i>a</i>", "b"))
    said = find(found.about, found.rows)
    page = render_diff(found.about, found.rows, said, levels, lang=lang)
    t = TensorWords(lang)
    assert "<i>a" not in page and "http" not in page.replace("http://www.w3.org", "") and len(page) < 1_000_000
    assert page.count("<rect") >= len(found.rows["tensors"]) + 12 + 3 * 8
    assert str(t.numbers.fine_percent(_tensor(found, O)["relative"])) in page
    for sentences in said.values():
        for sentence in sentences:
            text = t.plain("diff", sentence)
            assert text and not re.search(r"</?(b|span|code)\b", text) and "{" not in text


def test_every_sentence_has_its_words_in_both_languages():
    import inspect

    from intaglio.analyse.tensors import diff as analyse

    keys = set(re.findall(r"(?:measured|known|heuristic|unknown)\(\s*\"(\w+)\"", inspect.getsource(analyse)))
    keys |= {"rank_few", "rank_full", "where_head", "where_heads", "directions_reads", "directions_writes"}
    for lang, texts in tensors_catalogue().items():
        assert not [k for k in keys if f"diff.says.{k}" not in texts], lang
        said = {k.removeprefix("diff.says.") for k in texts if k.startswith("diff.says.")}
        assert said <= keys, (lang, said - keys)
