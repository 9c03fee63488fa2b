"""`intaglio tensors`: the listing, addresses, heads cut out and grafted, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import save_subject
from families import FAMILIES, family
from intaglio.address import parse_head
from intaglio.atlas import AtlasData
from intaglio.errors import IntaglioError
from intaglio.model.parts import Parts
from intaglio.model.slices import byte_runs, head_places, places_of
from intaglio.model.surgery import cut_head, graft_head, read_head
from intaglio.model.tensors import open_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Four heads over two of keys."""
    return save_subject(tmp_path_factory.mktemp("tensors") / "model", num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = tmp_path / "sharded"
    made = family("qwen2")
    made.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- the listing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("as_file", [True, False])
def test_the_listing_holds_every_tensor(model, intaglio, tmp_path, capsys, as_file):
    intaglio("tensors", model / "model.safetensors" if as_file else model, "--spectra", "--json", tmp_path / "x.json")
    printed = capsys.readouterr().out
    assert "4 heads (2 of keys) of 4" in printed and "the embedding is the output head too" in printed
    found = json.loads((tmp_path / "x.json").read_text())
    wanted = load_file(model / "model.safetensors")
    rows = {row["tensor"]: row for row in found["tensors"]}
    assert set(rows) == set(wanted)
    content = (model / "model.safetensors").read_bytes()
    for name, value in wanted.items():
        row = rows[name]
        assert content[row["start"] : row["stop"]] == value.numpy().tobytes()
        assert row["l2"] == pytest.approx(float(value.double().norm()), rel=1e-6)
        assert row["shape"] == list(value.shape) and row["dtype"] == "F32"
        if value.ndim == 2:
            values = torch.linalg.svdvals(value.double())
            shares = values.square() / values.square().sum()
            np.testing.assert_allclose(row["spectrum"]["singular_values"], values[:16], rtol=1e-5, atol=1e-6)
            assert row["spectrum"]["effective_rank"] == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-5)
    assert rows["model.layers.1.self_attn.o_proj.weight"]["address"] == "L1.attn"
    order = [row["address"] for row in found["tensors"]]
    assert order[0] == "embed" and order[-1] == "norm"
    assert found["model"] == {"n_layers": 2, "tied": True, "model_type": "llama", "n_heads": 4, "n_key_heads": 2, "head_dim": 4,
                              "width": 16}  # fmt: skip


def test_a_sharded_folder_reads_as_one(sharded, intaglio, tmp_path):
    whole = tmp_path / "whole"
    family("qwen2").save_pretrained(whole)
    a, b = open_checkpoint(sharded), open_checkpoint(whole)
    assert set(a.entries) == set(b.entries) and len(a.files) > 3
    for name in a.entries:
        np.testing.assert_array_equal(a.read(name), b.read(name))
    intaglio("tensors", sharded, "--json", tmp_path / "x.json")
    assert set(json.loads((tmp_path / "x.json").read_text())["files"]) == set(a.files)
    (sharded / INDEX).unlink()
    assert set(open_checkpoint(sharded).entries) == set(b.entries)  # numbered shards need no index


def test_an_address_is_printed_with_its_bytes(model, intaglio, tmp_path, capsys):
    intaglio("tensors", model, "--address", "1.2", "--json", tmp_path / "x.json")
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "x.json").read_text())["places"]
    assert rows == places_of(open_checkpoint(model), "L1.attn.H2")
    assert "k and v: the same bytes are used by L1.attn.H3" in printed
    for row in rows:
        assert f"{row['start']:,}-{row['stop']:,}" in printed and row["tensor"] in printed
    for address in ("L0.mlp.N3", "L1.attn", "embed", "unembed", "norm", "L0.norm.attn"):
        intaglio("tensors", model, "--address", address)
        assert address in capsys.readouterr().out


def test_numbers_that_are_none_are_told(tmp_path, intaglio, capsys):
    save_file({"x": torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])}, tmp_path / "x.safetensors")
    intaglio("tensors", tmp_path / "x.safetensors", "--spectra", "--json", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["tensors"][0]["l2"] == pytest.approx(5**0.5)
    assert "2 numbers are infinite or not a number" in capsys.readouterr().out


# --- heads cut out and grafted -------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_head_cut_out_and_grafted_back_is_bit_equal(name, tmp_path):
    """Cut a head out, scramble exactly its bytes in a copy, graft it back: the files are those of before."""
    family(name).save_pretrained(tmp_path / "model")
    checkpoint, head = open_checkpoint(tmp_path / "model"), parse_head("1.2")
    places = cut_head(checkpoint, head, tmp_path / "head.safetensors")
    shutil.copytree(tmp_path / "model", tmp_path / "scrambled")
    rng = np.random.default_rng(0)
    for row in places:
        with (tmp_path / "scrambled" / row["file"]).open("r+b") as file:
            for start, stop in byte_runs(row):
                file.seek(start)
                file.write(rng.bytes(stop - start))
    before = contents(tmp_path / "model")
    assert contents(tmp_path / "scrambled") != before
    graft_head(open_checkpoint(tmp_path / "scrambled"), tmp_path / "head.safetensors", tmp_path / "grafted")
    assert contents(tmp_path / "grafted") == before


def test_a_head_in_another_model_is_that_head(model, intaglio, tmp_path, capsys):
    """Grafted into other weights, at another place: its numbers there, all else as it was."""
    other = save_subject(tmp_path / "other", seed=5, num_attention_heads=4, num_key_value_heads=2)
    intaglio("tensors", model, "--head", "0.1", "--out", tmp_path / "h.safetensors")
    assert "k and v: the same bytes are used by L0.attn.H0" in capsys.readouterr().out
    intaglio("tensors", other, "--graft", tmp_path / "h.safetensors", "--into", "L1.attn.H3", "--out", tmp_path / "new")
    assert "k and v of L1.attn.H3 are also those of L1.attn.H2" in capsys.readouterr().out
    source, old, new = (load_file(f / "model.safetensors") for f in (model, other, tmp_path / "new"))
    spans = {"q": (slice(4, 8), slice(12, 16)), "k": (slice(0, 4), slice(4, 8)), "v": (slice(0, 4), slice(4, 8))}
    for name, value in old.items():
        wanted = value.clone()
        for letter, (theirs, mine) in spans.items():
            if name == f"model.layers.1.self_attn.{letter}_proj.weight":
                wanted[mine] = source[name.replace(".1.", ".0.")][theirs]
        if name == "model.layers.1.self_attn.o_proj.weight":
            wanted[:, 12:16] = source[name.replace(".1.", ".0.")][:, 4:8]
        assert torch.equal(new[name], wanted), name
    assert {n: c for n, c in contents(tmp_path / "new").items() if n != "model.safetensors"} == {
        n: c for n, c in contents(other).items() if n != "model.safetensors"}  # fmt: skip


def test_shared_rows_can_be_left_alone(model, intaglio, tmp_path, capsys):
    intaglio("tensors", model, "--head", "0.1", "--out", tmp_path / "h.safetensors")
    file = shutil.copyfile(model / "model.safetensors", tmp_path / "alone.safetensors")
    shutil.copyfile(model / "config.json", tmp_path / "config.json")
    intaglio("tensors", file, "--graft", tmp_path / "h.safetensors", "--into", "1.1", "--without-shared", "--out",
             tmp_path / "new.safetensors")  # fmt: skip
    assert "left alone: k and v, which L1.attn.H0 use too" in capsys.readouterr().out
    old, new = load_file(file), load_file(tmp_path / "new.safetensors")
    assert {n for n in old if not torch.equal(old[n], new[n])} == {
        "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj.weight"}  # fmt: skip


def test_a_heads_file_says_whose_it_is(model, tmp_path):
    cut_head(open_checkpoint(model), parse_head("1.2"), tmp_path / "h.safetensors")
    pieces, said = read_head(tmp_path / "h.safetensors")
    assert {n: (d, s) for n, (d, s, _) in pieces.items()} == {
        "q.weight": ("F32", (4, 16)), "k.weight": ("F32", (4, 16)), "v.weight": ("F32", (4, 16)), "o.weight": ("F32", (16, 4))}
    assert {k: said[k] for k in ("address", "source", "n_heads", "n_key_heads", "head_dim", "width")} == {
        "address": "L1.attn.H2", "source": "model", "n_heads": "4", "n_key_heads": "2", "head_dim": "4", "width": "16"}
    assert set(load_file(tmp_path / "h.safetensors")) == set(pieces)  # the library reads it too


def test_a_graft_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    cut_head(open_checkpoint(model), parse_head("1.2"), tmp_path / "h.safetensors")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("intaglio.model.surgery._overwrite", full)
    with pytest.raises(IntaglioError, match="No space left"):
        graft_head(open_checkpoint(model), tmp_path / "h.safetensors", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.safetensors"]


# --- what is refused -----------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (Path.mkdir, (Path("evil"),))


@pytest.mark.parametrize("name, words", [
    ("missing", "no such model"), ("missing.safetensors", "no such checkpoint"), ("missing.gguf", "no such checkpoint"),
    ("weights.bin", "pickle"), ("pickled", "pickle"), ("empty", "no weights"), ("notes.txt", "not a"),
    ("adapter", "LoRA adapter without its base"), ("adapter/adapter_model.safetensors", "LoRA adapter without its base"),
])  # fmt: skip
def test_what_is_no_checkpoint(name, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("pickled", "empty", "adapter"):
        Path(folder).mkdir()
    for path in ("weights.bin", "pickled/pytorch_model.bin"):
        Path(path).write_bytes(pickle.dumps(Evil()))
    Path("notes.txt").write_text("years of work")
    save_file({"x": torch.zeros(1)}, "adapter/adapter_model.safetensors")
    assert words in refused("tensors", name)
    assert not Path("evil").exists()


@pytest.mark.parametrize("harm, words", [
    ("shard", "not there"), ("numbered", "lacks a shard"), ("tensor", "does not hold it"),
    ("path", "not a .safetensors beside it"),
    ("absolute", "not a .safetensors beside it"), ("map", "no weight_map"), ("twice", "twice"), ("cut", "cut short"),
    ("number", "not a .safetensors beside it|no weight_map"), ("json", "not valid JSON"),
])  # fmt: skip
def test_an_index_that_lies(harm, words, sharded, refused, tmp_path):
    index = json.loads((sharded / INDEX).read_text())
    names = list(index["weight_map"])
    shard = sharded / index["weight_map"][names[0]]
    if harm in ("shard", "numbered"):
        shard.unlink()
    elif harm == "tensor":
        index["weight_map"]["model.more"] = shard.name
    elif harm in ("path", "absolute"):
        shutil.copyfile(shard, tmp_path / "outside.safetensors")
        index["weight_map"][names[0]] = "../outside.safetensors" if harm == "path" else str(tmp_path / "outside.safetensors")
    elif harm == "map":
        index = {"weight_map": []}
    elif harm == "number":
        index["weight_map"][names[0]] = 3
    elif harm == "twice":
        (sharded / INDEX).unlink()
        shutil.copyfile(shard, sharded / "more.safetensors")
    elif harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    if harm == "numbered":
        (sharded / INDEX).unlink()
    elif harm == "json":
        (sharded / INDEX).write_text('{"weight_map": {')
    elif harm != "twice":
        (sharded / INDEX).write_text(json.dumps(index))
    said = refused("tensors", sharded)
    assert any(w in said for w in words.split("|")), said


@pytest.mark.parametrize("words, said", [
    ("--address L9.attn.H0", "no layer 9"), ("--address 1.4", "no head 4"), ("--address L1.mlp.N24", "no neuron 24"),
    ("--address L1.attn.Hx", "not an address"), ("--address 1.x", "not an address"), ("--address embed.pos", "no such part"),
    ("--address unembed.bias", "no such part"), ("--head 1.2", "needs --out"), ("--graft h.safetensors", "needs --out"),
    ("--head L1.attn --out n.safetensors", "not a head"), ("--head 1.9 --out n.safetensors", "no head 9"),
    ("--head 1.2 --out n.bin", ".safetensors"), ("--head 1.2 --out h.safetensors", "exists"),
    ("--head 1.2 --out no/n.safetensors", "folder"),
    ("--graft h.safetensors --out h.safetensors", "would be replaced"),
    ("--graft h.safetensors --out model.safetensors", "exists"), ("--graft none.safetensors --out new", "no such file"),
    ("--graft model.safetensors --out new", "not a file of one head"),
    ("--graft h.safetensors --out new --into 7.1", "no layer 7"),
    ("--address 1.2 --head 1.2 --out n.safetensors", "exclude"),
    ("--out x.safetensors", "belongs to"), ("--into 1.2", "belongs to"),
    ("--without-shared", "belongs to"), ("--address 1.2 --spectra", "belongs to"),
    ("--json no/x.json", "no such folder"), ("--json .", "file"),
])  # fmt: skip
def test_a_question_that_makes_no_sense(words, said, model, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(model / "model.safetensors", "model.safetensors")
    cut_head(open_checkpoint(model), parse_head("1.2"), Path("h.safetensors"))
    before = contents(tmp_path)
    assert said in refused("tensors", model, *words.split())
    assert contents(tmp_path) == before


@pytest.mark.parametrize("changes, words", [
    ({"num_key_value_heads": 4}, "n key heads"), ({"hidden_size": 32}, "head dim"), ({"num_attention_heads": 8}, "n heads"),
])  # fmt: skip
def test_a_head_of_another_shape(changes, words, model, refused, tmp_path):
    cut_head(open_checkpoint(model), parse_head("1.2"), tmp_path / "h.safetensors")
    other = save_subject(tmp_path / "other", **{"num_attention_heads": 4, "num_key_value_heads": 2, **changes})
    said = refused("tensors", other, "--graft", tmp_path / "h.safetensors", "--out", tmp_path / "new")
    assert "another shape" in said and words in said and not (tmp_path / "new").exists()


def test_a_head_of_another_type(model, refused, tmp_path):
    cut_head(open_checkpoint(model), parse_head("1.2"), tmp_path / "h.safetensors")
    save_file({n: v.bfloat16() for n, v in load_file(model / "model.safetensors").items()}, tmp_path / "half.safetensors")
    shutil.copyfile(model / "config.json", tmp_path / "config.json")
    half, head, out = (tmp_path / f"{name}.safetensors" for name in ("half", "h", "new"))
    said = refused("tensors", half, "--graft", head, "--out", out)
    assert "got F32" in said and "expected BF16" in said


@pytest.mark.parametrize("config, words", [
    (None, "number of heads is not known"), ({}, "number of heads is not known"), ({"num_attention_heads": 3}, "do not fit"),
    ({"num_attention_heads": "4"}, "not a count"), ({"num_attention_heads": True}, "not a count"),
    ({"num_attention_heads": -4}, "not a count"),
    ({"num_attention_heads": 10**30}, "not a count"), ({"num_attention_heads": 4, "num_key_value_heads": 4}, "do not fit"),
    ({"num_attention_heads": 4, "head_dim": 8}, "do not fit"), ([], "not a JSON object"),
])  # fmt: skip
def test_a_configuration_that_does_not_fit(config, words, model, refused, intaglio, tmp_path):
    shutil.copyfile(model / "model.safetensors", tmp_path / "x.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert words in refused("tensors", tmp_path / "x.safetensors", "--address", "1.2")
    if isinstance(config, dict) or config is None:
        intaglio("tensors", tmp_path / "x.safetensors")  # what is in the file can be listed all the same


def test_a_model_without_attention(tmp_path, refused):
    save_file({"backbone.layers.0.mixer.in_proj.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    assert "no attention whose heads are known" in refused("tensors", tmp_path / "x.safetensors", "--address", "0.0")
    assert Parts(open_checkpoint(tmp_path / "x.safetensors")).n_layers == 1


def test_torch_is_not_needed(model, tmp_path):
    words = ["tensors", str(model), "--spectra", "--json", str(tmp_path / "x.json")]
    code = "import sys; from intaglio.cli import main\n"
    code += f"try: main({words!r})\nexcept SystemExit as e: assert not e.code\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_places_fit_their_table(model):
    rows = head_places(open_checkpoint(model))
    table = AtlasData({}, {"places": rows}).rows_of("places")
    assert table.num_rows == 2 * 4 * 4 and table.to_pylist() == rows


@pytest.mark.real
def test_the_built_in_model(intaglio, capsys):
    intaglio("tensors", "smollm2", "--address", "L18.attn.H6")
    printed = capsys.readouterr().out
    assert "rows 384:448 of 576 x 576, F32" in printed and "576 runs of 256, one every 2,304" in printed
    assert "used by L18.attn.H7, L18.attn.H8" in printed
