"""Every type of number that safetensors can hold: its size on disk, and its values as float32.

Names are those of the safetensors format. Types of less than a byte are packed with the lowest bits
first, in blocks of whole bytes: two numbers of 4 bits in one byte, four of 6 bits in three. Pure numpy.

Sources: the OCP 8-bit floating point and microscaling (MX) specifications; FNUZ: arXiv 2206.02915.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

BLOCKS: dict[str, tuple[int, int]] = {  # numbers per block, bytes per block
    "F64": (1, 8), "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "C64": (1, 8),
    "I64": (1, 8), "I32": (1, 4), "I16": (1, 2), "I8": (1, 1), "U64": (1, 8), "U32": (1, 4), "U16": (1, 2), "U8": (1, 1),
    "BOOL": (1, 1), "F8_E4M3": (1, 1), "F8_E5M2": (1, 1), "F8_E8M0": (1, 1), "F8_E4M3FNUZ": (1, 1), "F8_E5M2FNUZ": (1, 1),
    "F6_E2M3": (4, 3), "F6_E3M2": (4, 3), "F4": (2, 1),
}  # fmt: skip
_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "C64": "<c8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
_FLOATS = {  # exponent bits, mantissa bits, bias, codes that are not finite numbers
    "F8_E4M3": (4, 3, 7, "top"), "F8_E5M2": (5, 2, 15, "ieee"), "F8_E4M3FNUZ": (4, 3, 8, "zero"),
    "F8_E5M2FNUZ": (5, 2, 16, "zero"), "F6_E2M3": (2, 3, 1, ""), "F6_E3M2": (3, 2, 3, ""), "F4": (2, 1, 1, ""),
}  # fmt: skip


def decode(dtype: str, data: np.ndarray) -> np.ndarray:
    """Numbers in their own width where numpy has it (integers, F16, F32, F64, C64), else as exact float32.

    Args:
        dtype: a name in `BLOCKS`.
        data: uint8, 1-d, whole blocks.
    """
    if dtype in _NUMPY:
        return data.view(_NUMPY[dtype])
    if dtype == "BOOL":
        return data != 0
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E8M0":
        return _powers()[data]
    return minifloat(*_FLOATS[dtype])[_UNPACK.get(BLOCKS[dtype], _whole)(data)]


def as_float32(dtype: str, data: np.ndarray) -> np.ndarray:
    """The same as float32: exact but for F64 and integers beyond 24 bits, which are rounded to the nearest.

    A complex number gives two values, its real and its imaginary part.
    """
    values = decode(dtype, data)
    if dtype == "C64":
        return values.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a double beyond float32 becomes infinite, as it does in torch
        return values.astype(np.float32, copy=False)


@functools.cache
def minifloat(exponent: int, mantissa: int, bias: int, special: str) -> np.ndarray:
    """The value of every code of a small floating point type, as float32.

    Args:
        exponent, mantissa: their bits; one more holds the sign.
        special: ieee (the top exponent holds infinity and nan), top (only the all-ones code is nan),
            zero (only negative zero is nan) or "" (every code is a finite number).
    """
    code = np.arange(2 ** (1 + exponent + mantissa))
    power = (code >> mantissa) & (2**exponent - 1)
    part = (code & (2**mantissa - 1)) / 2**mantissa
    size = np.where(power == 0, np.ldexp(part, 1 - bias), np.ldexp(1 + part, power - bias))
    if special == "ieee":
        size = np.where(power == 2**exponent - 1, np.where(part == 0, np.inf, np.nan), size)
    if special == "top":
        size = np.where((code & (2 ** (exponent + mantissa) - 1)) == 2 ** (exponent + mantissa) - 1, np.nan, size)
    values = np.where(code >> (exponent + mantissa), -size, size)
    if special == "zero":
        values[2 ** (exponent + mantissa)] = np.nan
    return values.astype(np.float32)


@functools.cache
def _powers() -> np.ndarray:
    return np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)


def _whole(data: np.ndarray) -> np.ndarray:
    return data


def _pairs(data: np.ndarray) -> np.ndarray:
    return np.stack([data & 15, data >> 4], axis=-1).reshape(-1)


def _quads(data: np.ndarray) -> np.ndarray:
    low, middle, high = data.reshape(-1, 3).astype(np.uint32).T
    word = low | middle << 8 | high << 16
    return np.stack([word >> shift & 63 for shift in (0, 6, 12, 18)], axis=-1).reshape(-1)


_UNPACK: dict[tuple[int, int], Callable[[np.ndarray], np.ndarray]] = {(2, 1): _pairs, (4, 3): _quads}
