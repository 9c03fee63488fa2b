"""Run `intaglio train` in this process, break it off, and hold one run against another."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from intaglio import checkpoint
from intaglio.commands import train as command
from intaglio.store.run import Run, open_run

CLOCKS = {"seconds", "measure_seconds"}
TABLES = ("visits", "steps", "tokens", "parts", "visit_parts", "sketches", "credits", "probes", "probe_items",
          "drift", "examples", "vocab", "pairs", "group_carry", "scans", "scan_credits", "checkpoints", "spikes")  # fmt: skip
LONG_THIRD = 2  # the seed at which the long text of `longer` comes third


def train(subject: Path, data: Path, out: Path, **options) -> Run:
    command.train(str(subject), str(data), out=out, **({"steps": 6, "batch_size": 2, "lr": 1e-3} | options))
    return open_run(out)


def rows(run: Run, table: str) -> list[dict]:
    """A table without its clocks, in the order of its key."""
    found = [{k: v for k, v in r.items() if k not in CLOCKS} for r in run.table(table).to_pylist()]
    return sorted(found, key=lambda r: json.dumps([r.get(k) for k in ("step", "slot", "position", "address", "probe")])
                  + json.dumps(r, default=repr, sort_keys=True))  # fmt: skip


def weights(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    folder = checkpoint.states(run.folder)[-1]
    return load_file(next(folder.glob("*model.safetensors")))


def assert_same(a: Run, b: Run) -> None:
    for table in TABLES:
        assert rows(a, table) == rows(b, table), table
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    assert a.complete and b.complete


class Killed(Exception):
    """Raised inside the loop; no part of Intaglio expects it."""


def interrupted_at(monkeypatch, step: int) -> None:
    """The next training stops right after `step` steps, before anything else is done for that step."""
    from intaglio import train as module

    plain = module.train

    def stops(*args, after_step, **options):
        def after(done, loss):
            if done == step:
                raise Killed
            after_step(done, loss)

        return plain(*args, after_step=after, **options)

    monkeypatch.setattr(module, "train", stops)
