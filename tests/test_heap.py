"""Freed memory is kept while a ledger is attached, and given back when the last one lets go."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from intaglio.measure import heap

COUNT = """
import resource, tempfile, torch
sys_path = {tests!r}
import sys; sys.path.insert(0, sys_path)
from tiny import batch, build, texts
from intaglio.measure.ledger import Ledger

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20).sum()  # 64 MiB, 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

model = build()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
seen = [faults()]
with Ledger(model, optimizer, out=tempfile.mkdtemp() + "/a", quiet=True) as outer:
    faults()  # the first block is new in any case
    seen.append(faults())
    kept = resident()
    with Ledger(model, torch.optim.SGD(model.parameters(), lr=0.1), out=tempfile.mkdtemp() + "/b", quiet=True):
        pass
    seen.append(faults())
after = resident()
seen.append(faults())
print(*seen, kept - after)
"""


@pytest.mark.skipif(not heap._is_glibc(), reason="another allocator than glibc's")
@pytest.mark.parametrize("setting", ["1", "0"])
def test_blocks_are_used_again_only_while_a_ledger_is_attached(setting):
    code = COUNT.format(tests=os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "INTAGLIO_KEEP_MEMORY": setting, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    before, inside, second, after, given_back = map(int, done.stdout.split()[-5:])
    many = 20 * (16 << 10) / 2  # half of what fresh pages of 4 KiB take; fewer where the system uses larger ones
    if before < many:
        pytest.skip(f"the system maps larger pages: {before} faults")
    if setting == "0":
        assert min(inside, second, after) > many
    else:
        assert max(inside, second) < before / 10 and after > many and given_back > 32 << 20


def test_the_last_holder_lets_go(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "_is_glibc", lambda: True)
    monkeypatch.setattr(heap, "_set", calls.append)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: type("libc", (), {"malloc_trim": staticmethod(calls.append)}))
    first, second = object(), object()
    heap.keep_freed_memory(first)
    heap.keep_freed_memory(second)
    heap.let_go(first)
    heap.let_go(first)
    assert calls == [heap._KEPT]
    heap.let_go(second)
    assert calls == [heap._KEPT, heap._USUAL, 0] and not heap._holders
    monkeypatch.setattr(heap, "_is_glibc", lambda: False)
    heap.keep_freed_memory(first)
    assert len(calls) == 3
