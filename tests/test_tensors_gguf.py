"""GGUF files: the same numbers under the same names as transformers' own conversion; malformed ones in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from intaglio.address import parse_head
from intaglio.errors import IntaglioError, SubjectError
from intaglio.model.slices import byte_runs, places_of
from intaglio.model.surgery import cut_head
from intaglio.model.tensors import open_checkpoint

HEADS, KEYS, DIM, WIDTH, LAYERS = 4, 2, 16, 64, 2
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
Kind = gguf.GGMLQuantizationType


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=48, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, max_position_embeddings=64, tie_word_embeddings=False,
    ))  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows in which llama.cpp rotates: first half and second half of each head by turns."""
    order = [h * DIM + i + half * DIM // 2 for h in range(heads) for i in range(DIM // 2) for half in (0, 1)]
    return rows[order]


def write(path: Path, model: LlamaForCausalLM, kind: Kind = Kind.F32, *, arch: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(48)
    writer.add_token_list([f"t{i}" for i in range(48)])
    for name, value in model.state_dict().items():
        words = name.removesuffix(".weight")
        if words.startswith("model.layers."):
            layer, _, part = words.removeprefix("model.layers.").partition(".")
            new = f"blk.{layer}.{NAMES[part]}.weight"
        else:
            new = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[words] + ".weight"
        data = value.numpy()
        for letter, heads in (("attn_q.", HEADS), ("attn_k.", KEYS)):
            data = interleaved(data, heads) if letter in new else data
        if data.ndim == 2 and kind is not Kind.F32:
            writer.add_tensor(new, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(new, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny()


@pytest.fixture(scope="module", params=["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def file(request, tmp_path_factory, model) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf", model, Kind[request.param])


def test_the_same_numbers_as_transformers_own_conversion(file):
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).state_dict()
    found = open_checkpoint(file)
    assert set(found.entries) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(found.read(name), value.numpy(), err_msg=name)
        np.testing.assert_array_equal(np.concatenate([b for b in found.blocks(name, 900)]), value.numpy())
    q = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(found.rows(q, 5, 39), theirs[q][5:39].numpy())
    wanted = {"num_attention_heads": HEADS, "num_key_value_heads": KEYS, "model_type": "llama", "tie_word_embeddings": False}
    assert {k: found.config[k] for k in wanted} == wanted


def test_places_are_those_of_the_librarys_own_reader(file):
    reader = {t.name: t for t in gguf.GGUFReader(file).tensors}
    for e in open_checkpoint(file).entries.values():
        theirs = reader[e.stored]
        assert (e.start, e.bytes, e.dtype) == (theirs.data_offset, theirs.n_bytes, theirs.tensor_type.name)
        assert e.shape == tuple(reversed(theirs.shape.tolist()))


@pytest.mark.parametrize("head", range(HEADS))
def test_a_heads_bytes_are_the_heads_though_its_rows_are_interleaved(file, head, tmp_path):
    """Zero the bytes of a head's q, k, v and o: the numbers that change are exactly those of its rows and columns."""
    found = open_checkpoint(file)
    copy = tmp_path / "copy.gguf"
    content = bytearray(file.read_bytes())
    places = places_of(found, f"L1.attn.H{head}")
    for row in places:
        for start, stop in byte_runs(row):
            content[start:stop] = bytes(stop - start)
    copy.write_bytes(content)
    changed = open_checkpoint(copy)
    group, per_block = HEADS // KEYS, found.entries["model.layers.1.self_attn.o_proj.weight"].block[0]
    wanted = {"q": slice(head * DIM, (head + 1) * DIM), "k": slice(head // group * DIM, (head // group + 1) * DIM)}
    wanted["v"] = wanted["k"]
    for row in places:
        old, new = found.read(row["tensor"]), changed.read(row["tensor"])
        if row["role"] == "o":
            old, new = old.T, new.T
            first, last = head * DIM // per_block * per_block, -(-(head + 1) * DIM // per_block) * per_block
            mine = slice(first, last)  # whole blocks of 32 columns: two heads of 16
            others = {f"L1.attn.H{i}" for i in range(first // DIM, last // DIM)} - {f"L1.attn.H{head}"}
            assert set(row["shared_with"]) == others
        else:
            mine = wanted[row["role"]]
        assert not new[mine].any()
        keep = np.ones(len(old), bool)
        keep[mine] = False
        np.testing.assert_array_equal(new[keep], old[keep])


def test_a_head_cut_out_of_it_is_that_of_the_converted_model(file, model, tmp_path):
    model.save_pretrained(tmp_path / "folder")
    for name, source in (("a", file), ("b", tmp_path / "folder")):
        cut_head(open_checkpoint(source), parse_head("1.3"), tmp_path / f"{name}.safetensors")
    a, b = (open_checkpoint(tmp_path / f"{n}.safetensors") for n in "ab")
    tolerance = {"F32": 0, "F16": 1e-3, "BF16": 1e-2}.get(file.stem, 0.1)
    for name in a.entries:
        assert a.entries[name].dtype == "F32"
        np.testing.assert_allclose(a.read(name), b.read(name), atol=tolerance)


def test_an_architecture_that_is_not_known_keeps_its_names(model, tmp_path):
    found = open_checkpoint(write(tmp_path / "x.gguf", model, arch="mamba"))
    assert "blk.0.attn_q.weight" in found.entries
    with pytest.raises(IntaglioError, match="no layer 0"):
        places_of(found, "L0.attn.H0")


def test_gains_of_gemma_are_read_without_what_was_added(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gemma2")
    writer.add_tensor("blk.0.post_ffw_norm.weight", np.full(4, 1.25, np.float32))
    writer.add_tensor("blk.0.attn_v.weight", np.full((4, 4), 1.25, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_checkpoint(tmp_path / "x.gguf")
    assert found.read("model.layers.0.post_feedforward_layernorm.weight").tolist() == [0.25] * 4
    assert found.read("model.layers.0.self_attn.v_proj.weight")[0, 0] == 1.25


def test_the_malformed_one_is_refused_in_one_line(shared, refused):
    said = refused("tensors", shared / "models" / "malformed" / "onegin.gguf")
    assert "malformed GGUF" in said and "begins at byte" in said


def header(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = bytes(40)) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


@pytest.mark.parametrize("content, words", [
    (b"", "ends within"), (b"GGML" + bytes(40), "does not begin with GGUF"), (header(version=1), "version"),
    (header(version=0x03000000), "version"), (header(tensors=2**60), "more than it has bytes for"),
    (header(keys=1, rest=struct.pack("<Q", 2**63) + bytes(40)), "ends within"),
    (header(keys=1, rest=struct.pack("<QcIIQ", 1, b"a", 9, 8, 2**61)), "longer than the file"),
    (header(keys=1, rest=struct.pack("<QcIIQ", 1, b"a", 9, 9, 1) + bytes(9)), "unknown type 9"),
])  # fmt: skip
def test_a_header_that_lies(content, words, tmp_path):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(SubjectError, match=words):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(2)
    writer.add_array("some.list", [1, 2, 3])
    writer.add_tensor("blk.0.attn_q.weight", gguf.quants.quantize(np.ones((4, 32), np.float32), Kind.Q8_0), raw_dtype=Kind.Q8_0)
    writer.add_tensor("token_embd.weight", np.ones((3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 2000),
       st.booleans())  # fmt: skip
def test_any_damage_is_a_reading_or_one_line(small, tmp_path, changes, end, cut):
    content = bytearray(small)
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(content[: end % len(content)]) if cut else bytes(content))
    try:
        found = open_checkpoint(path)
        for name, e in found.entries.items():
            assert e.stop <= path.stat().st_size
            assert found.read(name).shape == e.shape
    except IntaglioError as refused:
        assert "\n" not in str(refused)
