"""Synthetic runs with planted truths, written through `RunWriter` without a model.

The "model" is a vector of parameters, its parts are stretches of that vector, and the
optimizer is plain SGD, so every shift is computed from gradients and the books truly close:

    g_i = size_i * (agree * common + own direction + noise),  U = -lr mean_i g_i,
    c_i = -lr g_i / B,  shift_i = <c_i, U> / norm(U).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.store.run import RunWriter

UNIT_LENGTH = 1e-6 * 100.0
WORDS = [b"the", b" lamp", b" is", b" \xd0", b"\xb6", b" lit", b" with", b" salt", b".", b"<|end|>"]


@dataclass
class World:
    """What to plant; examples are numbered from 0 and named `e0000`, rows equal numbers.

    Attributes:
        noisy: examples whose gradient direction is drawn anew at each visit, large, and never learnt.
        twins: pairs of different examples with one gradient direction.
        spike_step: a step whose gradients are fifty times as long.
        every: shift is measured on every n-th step only.
        target, anchor: what the probes' losses do: "falls", "stays", "rises" or None for no probe.
    """

    examples: int = 24
    epochs: int = 6
    batch: int = 4
    dims: int = 64
    layers: int = 2
    heads: int = 2
    agree: float = 0.6
    noisy: tuple[int, ...] = ()
    twins: tuple[tuple[int, int], ...] = ()
    spike_step: int | None = None
    every: int = 1
    level: str = "full"
    groups: tuple[str, ...] = ("even", "odd")
    target: str | None = "falls"
    anchor: str | None = "stays"
    sketches: bool = True
    tokens: bool = True
    killed: bool = False
    seed: int = 0

    def addresses(self) -> list[str]:
        layers = [[f"L{n}.norm.attn", *(f"L{n}.attn.H{h}" for h in range(self.heads)), f"L{n}.norm.mlp", f"L{n}.mlp"]
                  for n in range(self.layers)]  # fmt: skip
        return ["embed", *(a for layer in layers for a in layer), "norm", "unembed"]

    def name(self, example: int) -> str:
        return f"e{example:04d}"


def write_run(path: Path, world: World = World()) -> Path:  # noqa: B008
    """Write the run and return its folder's path (the final name, also where it was killed)."""
    rng = np.random.default_rng(world.seed)
    writer = RunWriter(path, _manifest(world))
    own, common = _directions(world, rng)
    order = np.concatenate([rng.permutation(world.examples) for _ in range(world.epochs)])
    batches = [order[i : i + world.batch] for i in range(0, len(order), world.batch)]
    _write_examples(writer, world)
    seen, theta, walked = np.zeros(world.examples, dtype=int), np.zeros(world.dims), 0.0
    for step, batch in enumerate(batches):
        grads = _gradients(world, rng, own, common, batch, step)
        update = -0.01 * grads.mean(axis=0)
        theta, walked = theta + update, walked + float(np.linalg.norm(update))
        _write_step(writer, world, step, batch, grads, update, seen, walked, float(np.linalg.norm(theta)))
        _write_probes(writer, world, step, len(batches), batch, seen)
        seen[batch] += 1
        if step % 200 == 199:
            writer.flush(step)
    writer.flush(len(batches))
    return path if world.killed else writer.finish()


def _manifest(world: World) -> dict[str, Any]:
    roles = {"target": world.target, "anchor": world.anchor}
    return {
        "subject": {"name": "synthetic", "fingerprint": "0"}, "unit_length": UNIT_LENGTH,
        "parameters_total": world.dims, "parameters_measured": world.dims, "coverage": 1.0, "unmeasured": [],
        "level": world.level, "every": world.every,
        "optimizer": {"name": "SGD", "lr": 0.01, "weight_decay": 0.0}, "seed": world.seed, "tolerance": 1e-4,
        "probes": {p: {"role": p, "items": 6, "tokens": 60} for p, plan in roles.items() if plan}, "recipe": {},
        "data": {"rows": world.examples}, "command": "synthetic", "precision": "fp32",
    }  # fmt: skip


def _directions(world: World, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    own = rng.normal(size=(world.examples, world.dims)) / np.sqrt(world.dims)
    for a, b in world.twins:
        own[b] = own[a]
    common = rng.normal(size=world.dims) / np.sqrt(world.dims)
    return own, common


def _gradients(world: World, rng: np.random.Generator, own: np.ndarray, common: np.ndarray, batch: np.ndarray,
               step: int) -> np.ndarray:  # fmt: skip
    fresh = rng.normal(size=(len(batch), world.dims)) / np.sqrt(world.dims)
    noisy = np.isin(batch, world.noisy)[:, None]
    grads = np.where(noisy, 4 * fresh, world.agree * common + own[batch] + 0.1 * fresh)
    return grads * (50.0 if step == world.spike_step else 1.0)


def _fact(world: World, example: int) -> str:
    return f"f{example % 6}"


def _write_examples(writer: RunWriter, world: World) -> None:
    n = world.examples
    ids = [_ids(world, i) for i in range(n)]
    writer.append("examples", {
        "example": [world.name(i) for i in range(n)], "row": [[i] for i in range(n)],
        "group": [world.groups[i % len(world.groups)] if world.groups else None for i in range(n)],
        "fact": [_fact(world, i) for i in range(n)], "tokens": [len(t) for t in ids],
        "targets": [len(t) - 1 for t in ids], "preview": [f"text {i}" for i in range(n)], "token_ids": ids,
        "target_mask": [[False] + [True] * (len(t) - 1) for t in ids],
    })  # fmt: skip
    writer.append("vocab", {"token": list(range(len(WORDS))), "bytes": WORDS,
                            "text": [w.decode("utf-8", "replace") for w in WORDS],
                            "special": [w.startswith(b"<") for w in WORDS]})  # fmt: skip


def _ids(world: World, example: int) -> list[int]:
    return [*range(4 + example % 3), *range(4 + example % 3, len(WORDS))][: 8 + example % 3]


def losses(world: World, batch: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """4 nats falling by a fifth per visit; noisy examples stay at 6."""
    return np.where(np.isin(batch, world.noisy), 6.0, 4.0 * 0.8 ** seen[batch])


def _write_step(writer: RunWriter, world: World, step: int, batch: np.ndarray, grads: np.ndarray, update: np.ndarray,
                seen: np.ndarray, walked: float, net: float) -> None:  # fmt: skip
    length, b = float(np.linalg.norm(update)), len(batch)
    own = -0.01 * grads / b
    shift = own @ update / length
    measured = world.level if step % world.every == 0 else "norms"
    has_shift = measured in ("full", "exact")
    norms2, mean2 = (grads**2).sum(axis=1), float((grads.mean(axis=0) ** 2).sum())
    writer.append_rows("steps", [{
        "step": step, "examples": b, "targets": 8 * b, "lr": 0.01,
        "loss_nats": float(losses(world, batch, seen).mean()), "grad_l2": float(np.sqrt(mean2)),
        "clip_scale": 1.0, "update_l2": length if has_shift else None,
        "data_shift": float(shift.sum()) if has_shift else None, "carry_shift": 0.0 if has_shift else None,
        "decay_shift": 0.0 if has_shift else None, "closure": abs(shift.sum() / length - 1) if has_shift else None,
        "gradient_match": 1e-7 if has_shift else None, "unsettled": step < 10,
        "agreement_gg": (b * mean2 - norms2.mean()) / (b - 1) if b > 1 else None,
        "agreement_s": (norms2.mean() - mean2) / (1 - 1 / b) if b > 1 else None,
        "path_l2": walked if has_shift else None, "net_l2": net, "measured": measured, "seconds": 0.1, "measure_seconds": 0.01,
    }])  # fmt: skip
    names = [world.name(i) for i in batch]
    targets = [len(_ids(world, i)) - 1 for i in batch]
    writer.append("visits", {
        "step": [step] * b, "slot": list(range(b)), "rank": [0] * b, "example": names, "targets": targets,
        "loss_nats": losses(world, batch, seen), "push": np.sqrt(norms2), "push_kind": ["token_sum"] * b,
        "shift": shift if has_shift else [None] * b, "alignment": _alignment(grads), "loss_weight": [1.0 / b] * b,
    })  # fmt: skip
    if world.sketches:
        writer.append("sketches", {"step": [step] * b, "slot": list(range(b)), "rank": [0] * b, "example": names,
                                   "sketch": list((grads / b).astype(np.float32)), "seed": [1] * b})  # fmt: skip
    if has_shift:
        _write_parts(writer, world, step, own, update, grads)
    if world.tokens:
        _write_tokens(writer, world, step, batch, shift if has_shift else np.full(b, np.nan), seen)


def _alignment(grads: np.ndarray) -> np.ndarray:
    rest = grads.sum(axis=0) - grads
    with np.errstate(invalid="ignore", divide="ignore"):
        return (grads * rest).sum(axis=1) / np.linalg.norm(grads, axis=1) / np.linalg.norm(rest, axis=1)


def _write_parts(writer: RunWriter, world: World, step: int, own: np.ndarray, update: np.ndarray,
                 grads: np.ndarray) -> None:  # fmt: skip
    names, b = world.addresses(), len(own)
    starts = np.arange(len(names)) * world.dims // len(names)
    length = np.linalg.norm(update)
    shift = np.add.reduceat(own * update, starts, axis=1) / length
    push = np.sqrt(np.add.reduceat(grads**2, starts, axis=1))
    writer.append("visit_parts", {
        "step": np.full(b * len(names), step), "slot": np.repeat(np.arange(b), len(names)), "address": names * b,
        "push": push.ravel(), "shift": shift.ravel(),
    })  # fmt: skip
    writer.append("parts", {
        "step": [step] * len(names), "address": names, "update_l2": np.sqrt(np.add.reduceat(update**2, starts)),
        "weight_l2": [1.0] * len(names), "data_shift": shift.sum(axis=0), "carry_shift": [0.0] * len(names),
        "decay_shift": [0.0] * len(names),
    })  # fmt: skip


def _write_tokens(writer: RunWriter, world: World, step: int, batch: np.ndarray, shift: np.ndarray,
                  seen: np.ndarray) -> None:  # fmt: skip
    loss = losses(world, batch, seen)
    for slot, example in enumerate(batch):
        ids = _ids(world, int(example))
        n = len(ids)
        writer.append("tokens", {
            "step": [step] * n, "slot": [slot] * n, "position": list(range(n)), "token": ids,
            "target": [*ids[1:], None], "surprise_nats": [loss[slot]] * (n - 1) + [None],
            "entropy_nats": [0.5 if example in world.noisy else 2.0] * (n - 1) + [None],
            "shift": np.full(n, shift[slot] / n), "write": np.full(n, 1.0 + example),
        })  # fmt: skip


_PLANS = {"falls": -2.0, "stays": 0.0, "rises": 2.0}


def _write_probes(writer: RunWriter, world: World, step: int, n_steps: int, batch: np.ndarray,
                  seen: np.ndarray) -> None:  # fmt: skip
    if step % 5 and step != n_steps - 1:
        return
    progress = step / max(n_steps - 1, 1)
    for probe, plan in (("target", world.target), ("anchor", world.anchor)):
        if not plan:
            continue
        loss = 3.0 + _PLANS[plan] * progress
        writer.append_rows("probes", [{"step": step, "probe": probe, "loss_nats": loss, "kl_nats": 0.1 * progress,
                                       "measured_change_nats": 0.01, "residual_nats": 0.0001}])  # fmt: skip
        writer.append_rows("probe_items", [
            {"step": step, "probe": probe, "item": i, "fact": f"f{i}" if probe == "target" else None,
             "loss_nats": loss + 0.01 * i + 0.02 * progress * (-1) ** i, "preview": f"probe {i}"} for i in range(6)
        ])  # fmt: skip
        credit = np.where(np.isin(batch, world.noisy), -0.05, 0.01)
        writer.append("credits", {"step": [step] * len(batch), "slot": list(range(len(batch))),
                                  "probe": [probe] * len(batch), "example": [world.name(i) for i in batch],
                                  "credit_nats": credit})  # fmt: skip
        writer.append("drift", {"step": [step] * 3, "probe": [probe] * 3, "layer": [0, 1, 2],
                                "relative_l2": [0.0, 0.1, 0.2], "cosine": [1.0, 0.99, 0.98],
                                "cka": [1.0] * 3})  # fmt: skip
