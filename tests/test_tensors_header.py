"""Headers of safetensors files: what is true is read as the safetensors library reads it, all else is refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load as peer_load

from intaglio.errors import IntaglioError, SubjectError
from intaglio.model.header import MAX_HEADER_BYTES, parse_header
from intaglio.model.tensors import open_checkpoint

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PATH = Path("model.safetensors")
INT_OR_NAN = st.one_of(st.integers(-3, 40), st.integers(2**62, 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=3))


def packed(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: object = (2, 3), offsets: object = (0, 24), **more: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def good(**changes: object) -> dict:
    return {"__metadata__": {"format": "pt"}, "a": tensor(), "b": tensor("U8", [4], [24, 28])} | changes


DATA, ONE = bytes(range(28)), b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


def opened(path: Path, content: bytes) -> object:
    path.write_bytes(content)
    return open_checkpoint(path)


def test_a_sound_file_is_read(tmp_path):
    found = opened(tmp_path / "x.safetensors", packed(good(), DATA))
    said = [(e.name, e.dtype, e.shape, e.bytes) for e in found.entries.values()]
    assert said == [("a", "F32", (2, 3), 24), ("b", "U8", (4,), 4)]
    assert found.metadata == {"format": "pt"} and found.files == ("x.safetensors",)
    assert found.read("b").tolist() == [24, 25, 26, 27] and found.read("b").dtype == np.uint8
    assert found.read("a").tobytes() == DATA[:24]
    assert found.rows("a", 1, 2).tobytes() == DATA[12:24]


@pytest.mark.parametrize("content, words", [
    (b"", "too short"), (b"\0" * 7, "too short"), (struct.pack("<Q", 2**63), "absurd size"),
    (struct.pack("<Q", MAX_HEADER_BYTES + 1), "absurd size"), (struct.pack("<Q", 1000) + b"{}", "ends within its header"),
    (packed(b""), "does not begin with {"), (packed(b"[]"), "does not begin with {"), (packed(b"{"), "not valid JSON"),
    (packed(b"{" + b'"a":[' * 5000), "nested too deeply|not valid JSON"), (packed(b'{"a": \xff}'), "not valid JSON"),
    (packed(b'{"a": NaN}'), "NaN"), (packed(b'{"a": 1}'), "not described by"),
    (packed(b"{" + b"," * 2_100_000), "absurd size"),
    (packed(b'{"a": ' + ONE + b', "a": ' + ONE + b"}", b"\0"), "a stands twice"),
    (packed(b'{"a": {"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"), "dtype stands twice"),
    (packed(good(), DATA[:-1]), "cut short"), (packed(good(), DATA + b"\0"), "after the last tensor"),
    (packed(good(a=tensor(dtype="F7")), DATA), "unknown type"), (packed(good(a=tensor(dtype=["F32"])), DATA), "unknown type"),
    (packed(good(a=tensor(shape=[2, 4])), DATA), "do not fit its shape"), (packed(good(a=tensor(shape=[-2, -3])), DATA), "shape"),
    (packed(good(a=tensor(shape=[2.0, 3])), DATA), "shape"), (packed(good(a=tensor(shape=[True, 6])), DATA), "shape"),
    (packed(good(a=tensor(shape={"0": 2})), DATA), "shape"),
    (packed(good(a=tensor(shape=[2**40, 2**40])), DATA), "beyond any file"),
    (packed(good(a=tensor(shape=[2**40, 2**40, 0], offsets=[0, 0])), DATA), "beyond any file"),
    (packed(good(a=tensor(offsets=[24, 0])), DATA), "in order"), (packed(good(a=tensor(offsets=[-24, 0])), DATA), "in order"),
    (packed(good(a=tensor(offsets=[0, 24, 24])), DATA), "in order"), (packed(good(a=tensor(extra=1)), DATA), "not described by"),
    (packed(good(b=tensor("U8", [5], [23, 28])), DATA), "overlap"),
    (packed(good(b=tensor("U8", [3], [25, 28])), DATA), "no tensor"),
    (packed(good(b=tensor("U8", [4], [2**62, 2**62 + 4])), DATA), "no tensor"),
    (packed(good(a=tensor("F4", [3], [0, 1]), b=tensor("U8", [27], [1, 28])), DATA), "do not fit"),
    (packed(good(__metadata__={"format": 1}), DATA), "metadata"), (packed(good(__metadata__="pt"), DATA), "metadata"),
])  # fmt: skip
def test_a_header_that_lies_is_refused(content, words, tmp_path):
    with pytest.raises(SubjectError, match=words) as refused:
        opened(tmp_path / "x.safetensors", content)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def agree(content: bytes, path: Path) -> None:
    """Either both readers read the same, or ours says what is wrong; it never takes what the library refuses."""
    try:
        found = opened(path, content)
    except IntaglioError:
        return
    try:
        theirs = peer_load(content)
    except SafetensorError as refused:
        pytest.fail(f"the library refuses what was read: {refused}")
    except (KeyError, AttributeError, TypeError):  # bf16 and such, which numpy has no type for
        theirs = None
    data = path.stat().st_size
    for name, e in found.entries.items():
        assert 8 <= e.start <= e.stop <= data
        values = found.read(name)
        assert values.shape[: len(e.shape)] == e.shape
        if theirs is not None and e.dtype != "C64":
            np.testing.assert_array_equal(values, theirs[name].astype(values.dtype))


@QUICK
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path, content):
    agree(content, tmp_path / "x.safetensors")


@QUICK
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
def test_one_byte_changed_or_the_end_cut_off(tmp_path, place, value, end):
    content = bytearray(packed(good(), DATA))
    content[place % len(content)] = value
    agree(bytes(content), tmp_path / "x.safetensors")
    agree(bytes(content[: end % len(content)]), tmp_path / "x.safetensors")


_VALUE = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "U8", "BF16", "F4", "F6_E2M3", "C64", "BOOL", "", "f32"]) | INT_OR_NAN,
    "shape": st.lists(INT_OR_NAN, max_size=3) | INT_OR_NAN, "data_offsets": st.lists(INT_OR_NAN, max_size=3) | INT_OR_NAN,
})  # fmt: skip


@QUICK
@given(st.dictionaries(st.text(max_size=4), _VALUE | INT_OR_NAN, max_size=3), st.integers(0, 40))
@example({"a": tensor("U8", [0], [0, 0]), "b": tensor("U8", [0], [0, 0])}, 0)
@example({"\ud800": tensor("U8", [1], [0, 1])}, 1)
def test_any_header(tmp_path, header, data_bytes):
    agree(packed(header, bytes(data_bytes)), tmp_path / "x.safetensors")


@QUICK
@given(st.lists(st.tuples(st.sampled_from(["F32", "F16", "U8", "I64", "F64", "BOOL"]), st.lists(st.integers(0, 4), max_size=3)),
                max_size=5), st.randoms(use_true_random=False))  # fmt: skip
def test_every_true_header_is_read(tmp_path, wanted, random):
    sizes, at, header = {"F32": 4, "F16": 2, "U8": 1, "I64": 8, "F64": 8, "BOOL": 1}, 0, {}
    for i, (dtype, shape) in enumerate(wanted):
        stop = at + sizes[dtype] * int(np.prod(shape, dtype=int))
        header[f"t{i}"], at = tensor(dtype, shape, [at, stop]), stop
    names = list(header)
    random.shuffle(names)
    found = opened(tmp_path / "x.safetensors", packed({n: header[n] for n in names}, bytes(at)))
    assert {n: (e.dtype, list(e.shape)) for n, e in found.entries.items()} == {f"t{i}": (d, s) for i, (d, s) in enumerate(wanted)}


def test_nothing_is_allocated_for_a_hostile_header(tmp_path):
    """Shapes of petabytes and a length of gigabytes: refused within a few megabytes."""
    import tracemalloc

    tracemalloc.start()
    for content in (packed(good(a=tensor(shape=[2**30, 2**30])), DATA), struct.pack("<Q", 99_999_999) + b"{",
                    packed(good(a=tensor("U8", [2**50], [0, 2**50])), DATA)):  # fmt: skip
        with pytest.raises(SubjectError):
            opened(tmp_path / "x.safetensors", content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def test_a_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    found = opened(path, packed(good(), DATA))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SubjectError, match=r"cannot read"):
        found.read("b")


def test_names_in_errors_are_plain():
    with pytest.raises(SubjectError) as refused:
        parse_header(json.dumps({"\x1b[31m\n" + "a" * 500: tensor("U8", [2], [0, 1])}).encode(), 1, PATH)
    assert "\x1b" not in str(refused.value) and len(str(refused.value)) < 400
