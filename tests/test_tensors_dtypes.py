"""Every type of number that safetensors knows, each against torch where torch has it, else against its definition."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from intaglio.model.dtypes import BLOCKS, as_float32, decode
from intaglio.model.header import write_safetensors
from intaglio.model.tensors import open_checkpoint

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
BITS = {"F4": (2, 1, 1), "F6_E2M3": (2, 3, 1), "F6_E3M2": (3, 2, 3)}


def test_the_list_of_types_is_the_librarys():
    binary = next(Path(safetensors.__file__).parent.glob("_safetensors_rust*")).read_bytes()
    for dtype in BLOCKS:
        assert dtype.encode() in binary, dtype
    assert set(TORCH) | set(BITS) == set(BLOCKS)


def every_code(dtype: str) -> np.ndarray:
    """Bytes that hold every code of a small type, or many of a large one (infinities and nan among them)."""
    size = BLOCKS[dtype][1]
    if size == 1:
        return (np.arange(256) % (2 if dtype == "BOOL" else 256)).astype(np.uint8)
    if size == 2:
        return np.arange(65536, dtype=np.uint16).view(np.uint8)
    return np.random.default_rng(0).integers(0, 256, 8000 * size, dtype=np.uint8)


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_a_type_that_torch_has(dtype, tmp_path):
    data = every_code(dtype)
    stored = torch.from_numpy(data.copy()).view(TORCH[dtype])
    wanted = torch.view_as_real(stored) if dtype == "C64" else stored
    wanted = wanted.to(torch.float32).numpy().reshape(-1)
    np.testing.assert_array_equal(as_float32(dtype, data), wanted)  # nan equals nan here
    stored = stored.reshape(4, -1)
    save_file({"x": stored}, tmp_path / "x.safetensors")
    found = open_checkpoint(tmp_path / "x.safetensors")
    assert (found.entries["x"].dtype, found.entries["x"].shape) == (dtype, tuple(stored.shape))
    read = found.read("x")
    assert read.dtype == (stored.numpy().dtype if dtype[0] in "IU" or dtype == "BOOL" else np.float32)
    np.testing.assert_array_equal(read.reshape(-1).astype(np.float32), wanted)
    np.testing.assert_array_equal(np.concatenate([b.reshape(-1) for b in found.blocks("x", 5000)]), wanted)
    np.testing.assert_array_equal(np.concatenate(list(found.pieces("x", 5000))), wanted)


def by_definition(code: int, exponent: int, mantissa: int, bias: int) -> float:
    """Sign, exponent, mantissa: the formula of the MX specification, one code at a time."""
    sign = -1.0 if code >> (exponent + mantissa) else 1.0
    e, m = code >> mantissa & (2**exponent - 1), code & (2**mantissa - 1)
    return sign * (2.0 ** (1 - bias) * m / 2**mantissa if e == 0 else 2.0 ** (e - bias) * (1 + m / 2**mantissa))


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_a_type_of_less_than_a_byte(dtype, tmp_path):
    exponent, mantissa, bias = BITS[dtype]
    bits = 1 + exponent + mantissa
    codes = [(i * 7 + 3) % 2**bits for i in range(2**bits * 12)]
    word = sum(code << (i * bits) for i, code in enumerate(codes))  # lowest bits first
    data = word.to_bytes(len(codes) * bits // 8, "little")
    wanted = np.array([by_definition(c, exponent, mantissa, bias) for c in codes], np.float32)
    np.testing.assert_array_equal(decode(dtype, np.frombuffer(data, np.uint8)), wanted)
    largest = {"F4": 6.0, "F6_E2M3": 7.5, "F6_E3M2": 28.0}[dtype]  # the specification's tables
    assert wanted.max() == largest
    for columns in (2**bits, 6, 3):  # rows of 3 do not begin on whole bytes
        shape = (len(codes) // columns, columns)
        path = tmp_path / f"{columns}.safetensors"
        write_safetensors(path, {"x": (dtype, shape, data)}, {})
        with safetensors.safe_open(path, "np") as peer:
            assert list(peer.get_slice("x").get_shape()) == list(shape)  # the library accepts it
        found = open_checkpoint(path)
        np.testing.assert_array_equal(found.read("x"), wanted.reshape(shape))
        np.testing.assert_array_equal(np.concatenate(list(found.blocks("x", 40))), wanted.reshape(shape))
        np.testing.assert_array_equal(found.rows("x", 3, 8), wanted.reshape(shape)[3:8])
        assert re.match(rf"F{bits}", found.entries["x"].dtype)


def test_scalars_and_empty_tensors(tmp_path):
    tensors = {"one": torch.tensor(3.5), "none": torch.zeros(0, 4), "hollow": torch.zeros(3, 0),
               "deep": torch.arange(24.0).view(2, 3, 4)}  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors")
    found = open_checkpoint(tmp_path / "x.safetensors")
    for name, value in tensors.items():
        np.testing.assert_array_equal(found.read(name), value.numpy())
        blocks = [b.reshape(-1) for b in found.blocks(name, 16)]
        np.testing.assert_array_equal(np.concatenate([np.empty(0, np.float32), *blocks]), value.numpy().reshape(-1))
        assert sum(p.size for p in found.pieces(name)) == value.numel()


def test_blocks_hold_no_more_than_asked(tmp_path):
    save_file({"x": torch.randn(1000, 30).bfloat16()}, tmp_path / "x.safetensors")
    found = open_checkpoint(tmp_path / "x.safetensors")
    assert all(b.nbytes <= 6000 and b.dtype == np.float32 for b in found.blocks("x", 6000))
    assert all(p.nbytes <= 50 for p in found.pieces("x", 50))
