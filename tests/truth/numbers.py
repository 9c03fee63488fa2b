"""The numbers of a page worked out from the run's tables and weights alone, with nothing of `analyse` or `report`."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import numpy as np
from safetensors.numpy import load_file

from intaglio.store.run import Run

ACCOUNTS = ("data", "carry", "decay", "unmeasured", "unexplained", "interaction", "rounding")


def _random_net2(length: list[float], b1: float) -> float:
    """Squared distance that steps of these lengths in random directions under momentum b1 are expected to end away.

    Every fresh direction g_s is drawn out: in step t it weighs b1^(t-s), each step brought to its length.
    """
    size = [math.sqrt(sum(b1 ** (2 * (t - s)) for s in range(t + 1))) for t in range(len(length))]
    weights = (sum(length[t] / size[t] * b1 ** (t - s) for t in range(s, len(length))) for s in range(len(length)))
    return sum(w * w for w in weights)


def columns(run: Run, table: str) -> dict[str, np.ndarray]:
    """Every column as an array; NaN for a missing number, None for a missing word, lists as they are."""
    return {name: _array(values) for name, values in run.table(table).to_pydict().items()}


def _array(values: list) -> np.ndarray:
    if any(isinstance(v, (str, list)) for v in values):
        out = np.empty(len(values), dtype=object)
        out[:] = values
        return out
    return np.array([math.nan if v is None else v for v in values])


def length(weights: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(np.square(w.astype(float)).sum() for w in weights.values()))


class Truth:
    """The run's tables, and what follows from them; `u` is one unit."""

    def __init__(self, run: Run) -> None:
        self.run, self.start = run, load_file(f"{run.manifest['subject']['spec']}/model.safetensors")
        self.u = 1e-6 * length(self.start)
        self.steps, self.visits, self.examples = (columns(run, t) for t in ("steps", "visits", "examples"))
        self.settled = self.steps["step"] >= 10
        self.at = {e: i for i, e in enumerate(self.examples["example"])}
        group = np.array([self.examples["group"][self.at[e]] for e in self.visits["example"]])
        self.of = {"": np.full(len(group), True)} | {g: group == g for g in set(group) - {None}}
        self.known = np.isfinite(self.visits["shift"])
        self.shift = np.nan_to_num(self.visits["shift"]) / self.u
        self.order = sorted(self.at, key=lambda e: -np.abs(self.shift[self.visits["example"] == e]).sum())

    def example(self, e: str) -> dict[str, float]:
        """The numbers of one example, visits in the order of their steps."""
        own = self.visits["example"] == e
        loss, targets = self.visits["loss_nats"][own], self.examples["targets"][self.at[e]]
        return {
            "moved": np.abs(self.shift[own]).sum(), "net": self.shift[own].sum(), "visits": own.sum(), "targets": targets,
            "first": loss[0], "last": loss[-1], "learnt": (loss[0] - loss[-1]) * targets,
            "against": (self.shift[own] < 0)[self.known[own]].mean() if self.known[own].any() else math.nan,
        }  # fmt: skip

    def group(self, g: str) -> dict[str, float]:
        members = [self.example(e) for e in self.at if not g or self.examples["group"][self.at[e]] == g]
        total = {k: sum(m[k] for m in members) for k in ("moved", "net", "learnt", "targets")}
        own = self.of[g]
        return total | {
            "n": len(members), "tokens": self.visits["targets"][own].sum(),
            "per": 1000 * np.abs(self.shift[own]).sum() / self.visits["targets"][own & self.known].sum(),
            **{k: sum(m[k] * m["targets"] for m in members) / total["targets"] for k in ("first", "last")},
        }  # fmt: skip

    def places(self, g: str = "") -> dict[str, float]:
        """Whole part -> sum over visits of |sum of its shifts|, in u."""
        found, own = columns(self.run, "visit_parts"), self.of[g]
        wanted = set(zip(self.visits["step"][own], self.visits["slot"][own]))
        sums: dict[tuple, float] = defaultdict(float)
        for step, slot, address, shift in zip(*(found[k] for k in ("step", "slot", "address", "shift"))):
            if (step, slot) in wanted:
                sums[step, slot, re.match(r"L\d+\.[a-z]+|.*", address).group()] += shift / self.u
        totals: dict[str, float] = defaultdict(float)
        for (_, _, part), shift in sums.items():
            totals[part] += abs(shift)
        return totals


def credit(run: Run, probe: str) -> dict[str, float]:
    found = columns(run, "credits")
    own = found["probe"] == probe
    return {e: found["credit_nats"][own & (found["example"] == e)].sum() for e in set(found["example"][own])}


def expected(truth: Truth) -> dict[str, float | str]:
    """What the answer, the books and the path say."""
    s, whole, parts = truth.steps, truth.group(""), truth.places()
    hi, lo = sorted("ab", key=lambda g: -truth.group(g)["per"])
    layers = [sum(v for a, v in parts.items() if a.startswith(f"L{i}.")) for i in (0, 1)]
    all_parts, best = sum(parts.values()), max(parts, key=parts.get)
    taken = s["update_l2"].sum()
    sums = {name: s[f"{name}_shift"].sum() for name in ACCOUNTS}
    closure = np.abs(sum(s[f"{name}_shift"] for name in ACCOUNTS) / s["update_l2"] - 1)
    end = load_file(truth.run.folder / "checkpoints" / "step-00000018" / "model.safetensors")
    net = length({name: end[name].astype(float) - w for name, w in truth.start.items()})
    watched = columns(truth.run, "probes")
    probes = {p: [watched[k][watched["probe"] == p] for k in ("loss_nats", "kl_nats")] for p in set(watched["probe"])}
    # squared length of the mean of B h_i, and mean squared length of B h_i: McCandlish's two estimates
    big = s["grad_l2"] ** 2
    small = np.array([np.mean((3 * (truth.visits["push"] * truth.visits["loss_weight"])[truth.visits["step"] == t]) ** 2)
                      for t in s["step"]])  # fmt: skip
    gg, noise = (3 * big - small) / 2, (small - big) / (1 - 1 / 3)
    return {
        "total": whole["moved"], "hi": hi, "lo": lo, "hi_per": truth.group(hi)["per"], "lo_per": truth.group(lo)["per"],
        "mlp": sum(v for a, v in parts.items() if a.endswith(".mlp")) / all_parts,
        "attn": sum(v for a, v in parts.items() if a.endswith(".attn")) / all_parts,
        "layer": str(np.argmax(layers)), "layer_share": max(layers) / sum(layers),
        "best": best, "best_share": parts[best] / all_parts, "first": whole["first"], "last": whole["last"],
        "noise": noise.mean() / gg.mean(), "alpha": gg.mean() / (gg + noise).mean(),
        "kl": probes["anchor"][1][-1], "taken": taken / truth.u, "net": net / truth.u, "winding": taken / net,
        "null": taken / math.sqrt(_random_net2(s["update_l2"].tolist(), 0.6)),
        **{name: value / truth.u for name, value in sums.items()}, **{f"{n}_share": v / taken for n, v in sums.items()},
        **{f"{n}_settled": s[f"{n}_shift"][truth.settled].sum() / s["update_l2"][truth.settled].sum() for n in ACCOUNTS[:3]},
        "sum": sum(sums.values()) / truth.u, "sum_share": sum(sums.values()) / taken,
        "off": (sum(sums.values()) - taken) / truth.u, "off_share": (sum(sums.values()) - taken) / taken,
        "closure": np.median(closure), "worst": closure.max(), "match": s["gradient_match"].max(),
        **{f"{p}_{k}": losses[i] for p, (losses, _) in probes.items() for k, i in (("first", 0), ("last", -1))},
        **{f"{p}_fall": 1 - losses[-1] / losses[0] for p, (losses, _) in probes.items()},
    }  # fmt: skip


def volatility(truth: Truth) -> dict[str, dict[str, float]]:
    """Level, spread beyond the running median of some 50 visits, mean alignment, summed loss."""
    push, step = 2 * np.log(truth.visits["push"].astype(float)), truth.visits["step"]
    off = push - [np.median(push[np.abs(step - t) <= 8]) for t in step]
    found = {}
    for e in truth.at:
        own = truth.visits["example"] == e
        found[e] = {
            "level": push[own].mean(), "spread": np.median(np.abs(off[own] - np.median(off[own]))),
            "alignment": truth.visits["alignment"][own].mean(), "csl": truth.visits["loss_nats"][own].sum(),
        }  # fmt: skip
    return found


def interval(truth: Truth, g: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the ends of a bootstrap interval over the group's examples may lie, by other draws than the page's."""
    members = [e for e in truth.at if truth.examples["group"][truth.at[e]] == g]
    moved = np.array([truth.example(e)["moved"] for e in members])
    tokens = np.array([truth.visits["targets"][truth.visits["example"] == e].sum() for e in members])
    drawn = np.random.default_rng(1).integers(len(members), size=(20000, len(members)))
    low = np.percentile(1000 * moved[drawn].sum(1) / tokens[drawn].sum(1), [1, 4, 96, 99])
    return low[:2] * [0.99, 1.01], low[2:] * [0.99, 1.01]
