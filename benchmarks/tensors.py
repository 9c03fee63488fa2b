"""What laying two checkpoints side by side costs, beside reading both files and summing squares.

    python benchmarks/tensors.py                 # lengths and movement: bound by memory or disk
    python benchmarks/tensors.py --spectra       # also ranks, directions, turning: bound by matrix products
    python benchmarks/tensors.py --cold          # with both files dropped from the page cache before every turn

A pair of 135M-parameter checkpoints (`smollm2`, and the same with noise in a temporary folder, float32, 538 MB each). Every
turn is a process of its own, so that its peak of memory is its own; a process's start is left out of its seconds. The floor is
the plainest numpy: each file read into one buffer block by block, np.dot of every block with itself, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BLOCK = 8 * 2**20
WHAT = {
    "floor": "read both files, sum squares (numpy)",
    "norms": "lengths of every tensor of one file",
    "diff": "movement of every tensor and head",
    "spectra": "the same with ranks, directions, turning",
}


def floor(files: list[Path]) -> float:
    """Every file's squares, block by block."""
    buffer, total = bytearray(BLOCK), 0.0
    view = memoryview(buffer)
    for path in files:
        with path.open("rb", buffering=0) as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            while count := file.readinto(view):
                x = np.frombuffer(buffer, np.float32, count // 4)
                total += float(np.dot(x, x))
    return total


def turn(what: str, base: Path, other: Path) -> None:
    """One measurement, in this process: its seconds and its peak of memory, as a line of JSON."""
    np.dot(np.ones(9, np.float32), np.ones(9, np.float32))  # threads and libraries start before the clock
    from intaglio.measure.tensors.diff import diff
    from intaglio.measure.tensors.norms import norms
    from intaglio.model.tensors import open_checkpoint

    start = time.perf_counter()
    if what == "floor":
        found: object = floor([base / "model.safetensors", other / "model.safetensors"])
    elif what == "norms":
        found = len(norms(open_checkpoint(base)))
    else:
        found = diff(base, other, spectra=what == "spectra", tokens=what == "spectra").about["relative"]
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "found": found}))


def peak_mb() -> float:
    """This process's own peak of memory, pages of mapped files included; rusage alone would count its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def perturbed(base: Path, folder: Path) -> None:
    """`base` with noise of a hundredth of each matrix's spread, tensor by tensor, in place of its numbers."""
    import shutil

    from intaglio.model.tensors import open_checkpoint

    shutil.copytree(base, folder)
    rng, entries = np.random.default_rng(0), open_checkpoint(base).entries
    for e in entries.values():
        if len(e.shape) == 2:
            x = np.memmap(folder / e.file, np.float32, "r+", e.start, e.shape)
            x += np.float32(0.01 * x[:64].std()) * rng.standard_normal(e.shape, np.float32)
            x.flush()


def drop(*files: Path) -> None:
    """Ask the kernel to forget what it has read of these files."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(what: str, base: Path, other: Path, *, times: int, cold: bool) -> dict[str, float]:
    """Median seconds and largest peak over some turns."""
    runs = []
    for _ in range(times):
        if cold:
            drop(base / "model.safetensors", other / "model.safetensors")
        command = [sys.executable, __file__, "--turn", what, str(base), str(other)]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {"seconds": statistics.median(r["seconds"] for r in runs), "peak_mb": max(r["peak_mb"] for r in runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spectra", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--turn", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turn:
        turn(given.turn[0], Path(given.turn[1]), Path(given.turn[2]))
        return
    from intaglio.model.subject import ensure_builtin

    base = ensure_builtin()
    with tempfile.TemporaryDirectory() as aside:
        other = Path(aside) / "other"
        perturbed(base, other)
        beside = measured("floor", base, other, times=given.times, cold=given.cold)
        size = sum((f / "model.safetensors").stat().st_size for f in (base, other))
        print(f"{WHAT['floor']:44s} {beside['seconds']:7.2f} s   {size / beside['seconds'] / 1e9:5.1f} GB/s"
              f"   peak {beside['peak_mb']:4.0f} MB")  # fmt: skip
        for what in ("norms", "diff", *(("spectra",) if given.spectra else ())):
            found = measured(what, base, other, times=1 if what == "spectra" else given.times, cold=given.cold)
            print(f"{WHAT[what]:44s} {found['seconds']:7.2f} s   {found['seconds'] / beside['seconds']:5.2f} x"
                  f"      peak {found['peak_mb']:4.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
