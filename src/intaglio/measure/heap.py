"""Freed memory stays with the process while training on a CPU is measured.

glibc hands large blocks back to the system as soon as they are freed, and the next ones are fresh pages that the
kernel has to map and clear: over a hundred thousand page faults in one training step, more in a measured one. While
a ledger is attached they are kept and used again. INTAGLIO_KEEP_MEMORY=0 leaves the allocator as it is; allocators
other than glibc's are not touched.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20}
# what glibc itself arrives at after some large blocks were freed
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}
_holders: set[int] = set()


def keep_freed_memory(holder: object) -> None:
    """Until `let_go`, freed blocks are kept; asked for by several, until the last lets go."""
    if os.environ.get("INTAGLIO_KEEP_MEMORY") == "0" or not _is_glibc():
        return
    if not _holders:
        _set(_KEPT)
    _holders.add(id(holder))


def let_go(holder: object) -> None:
    """Give freed blocks back, once nobody holds them; safe to call twice."""
    if id(holder) not in _holders:
        return
    _holders.discard(id(holder))
    if not _holders:
        _set(_USUAL)
        ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> None:
    mallopt = ctypes.CDLL(None).mallopt
    for name, value in values.items():
        mallopt(name, value)


def _is_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
