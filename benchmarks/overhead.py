"""What measuring costs, as ratios to the plain training step of the same, interleaved run.

    python benchmarks/overhead.py                 # the 38M-parameter Llama and smollm2
    python benchmarks/overhead.py --model small --rounds 8

Each round times one step of every variant in turn, so that a shared machine's noise falls on
all of them alike; the ratio is of medians. All tables are written. Probes are excluded.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from intaglio.measure.ledger import Ledger

TARGETS = {
    "small": {"norms": 1.10, "full": 1.42, "exact": 2.2, "lora full": 1.25},
    "smollm2": {"norms": 1.15, "full": 1.55, "exact": 2.2, "lora full": 1.25},
}
SHAPES = {"small": (8, 128), "smollm2": (4, 128)}


def small_llama() -> nn.Module:
    """About 38M parameters: width 576, 8 layers, grouped-query, tied embeddings."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=16384, tie_word_embeddings=True,
    ))  # fmt: skip


def build(name: str) -> nn.Module:
    if name == "small":
        return small_llama()
    from intaglio.model.subject import load_subject

    return load_subject("smollm2").model


class Variant:
    """A model with its optimizer, stepped once per round; `around` is what is measured beside training."""

    def __init__(self, model: nn.Module, around: Callable | None = None) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)
        self.context = around(model, self.optimizer) if around else contextlib.nullcontext()
        self.seconds: list[float] = []

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        start = time.perf_counter()
        self.model(**batch, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - start)


class PerExample(Variant):
    """One backward per example, then the step on their sum: the plain way to per-example gradients."""

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        start = time.perf_counter()
        n = len(batch["input_ids"])
        norms = []
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for i in range(n):
            loss = self.model(**{k: v[i : i + 1] for k, v in batch.items()}, use_cache=False).loss / n
            grads = torch.autograd.grad(loss, list(self.model.parameters()))
            norms.append(torch.stack([g.norm() for g in grads]).norm())
            torch._foreach_add_(total, list(grads))
        for p, g in zip(self.model.parameters(), total):
            p.grad = g
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - start)


class Opacus(Variant):
    """Opacus' ghost norms: norms per example and no shift (needs `opacus`, which refuses tied embeddings)."""

    def __init__(self, model: nn.Module) -> None:
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

        super().__init__(model)
        self.wrapped = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=1.0, use_ghost_clipping=True, strict=False
        )

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        start = time.perf_counter()
        self.wrapped(**batch, use_cache=False).loss.backward()
        self.wrapped.get_norm_sample()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - start)


def untied(model: nn.Module) -> nn.Module:
    """The same model with a head of its own."""
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def with_lora(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def ledger(level: str, folder: Path) -> Callable:
    return lambda model, optimizer: Ledger(model, optimizer, out=folder / f"{level}-{id(model)}", level=level, quiet=True)


def variants(name: str, folder: Path, only: set[str]) -> Iterator[tuple[str, str, Callable[[], Variant]]]:
    """(name, the plain step it is held against, how to build it)."""
    base = build(name)

    def fresh() -> nn.Module:
        return copy.deepcopy(base)

    every = [
        ("plain", "plain", lambda: Variant(fresh())),
        ("norms", "plain", lambda: Variant(fresh(), ledger("norms", folder))),
        ("full", "plain", lambda: Variant(fresh(), ledger("full", folder))),
        ("exact", "plain", lambda: Variant(fresh(), ledger("exact", folder))),
        ("one backward per example", "plain", lambda: PerExample(fresh())),
        ("untied plain", "untied plain", lambda: Variant(untied(fresh()))),
        ("opacus ghost norms", "untied plain", lambda: Opacus(untied(fresh()))),
        ("lora plain", "lora plain", lambda: Variant(with_lora(fresh()))),
        ("lora full", "lora plain", lambda: Variant(with_lora(fresh()), ledger("full", folder))),
    ]
    needed = {against for n, against, _ in every if n in only}
    yield from (v for v in every if not only or v[0] in only | needed)


def measure(name: str, rounds: int, only: set[str]) -> None:
    torch.manual_seed(0)
    rows, length = SHAPES[name]
    ids = torch.randint(3, 16000, (rows, length))
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        built: dict[str, Variant] = {}
        against: dict[str, str] = {}
        for label, base, make in variants(name, Path(folder), only):
            try:
                built[label] = make()
            except ImportError:
                print(f"{label:28s} not installed")
                continue
            against[label] = base
            stack.enter_context(built[label].context)
        for _ in range(rounds + 1):  # the first round warms up
            for variant in built.values():
                variant.step(batch)
        plain = statistics.median(built["plain"].seconds[1:]) if "plain" in built else float("nan")
        threads = torch.get_num_threads()
        print(f"\n{name}: B={rows}, T={length}, {threads} threads, plain step {plain:.2f} s (median of {rounds})")
        for label, variant in built.items():
            ratios = [v / p for v, p in zip(variant.seconds[1:], built[against[label]].seconds[1:])]
            ratio = statistics.median(variant.seconds[1:]) / statistics.median(built[against[label]].seconds[1:])
            target = TARGETS[name].get(label)
            aim = f"  (aim {target:.2f})" if target else ""
            print(f"{label:28s} {ratio:5.2f} times {against[label]:10s} rounds {min(ratios):.2f} to {max(ratios):.2f}{aim}")


def peak_memory(name: str, level: str | None, accumulate: int = 1) -> float:
    """Peak resident memory (GiB) of a few steps, in a fresh process."""
    import subprocess
    import sys

    code = (
        f"import resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import overhead as o, torch, tempfile, pathlib\n"
        f"rows, length = o.SHAPES[{name!r}]; ids = torch.randint(3, 16000, (rows, length))\n"
        f"batch = dict(input_ids=ids, labels=ids)\n"
        f"with tempfile.TemporaryDirectory() as t:\n"
        f"    v = o.Variant(o.build({name!r}), {f'o.ledger({level!r}, pathlib.Path(t))' if level else None})\n"
        f"    with v.context:\n"
        f"        for _ in range(3): v.step(batch)\n"
        f"print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return float(out.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("small", "smollm2", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--memory", action="store_true", help="peak memory of plain, norms and full instead of time")
    args = parser.parse_args()
    names = ("small", "smollm2") if args.model == "both" else (args.model,)
    for name in names:
        if args.memory:
            plain = peak_memory(name, None)
            print(f"{name}: plain peaks at {plain:.2f} GiB")
            for level in ("norms", "full"):
                peak = peak_memory(name, level)
                print(f"  {level}: {peak:.2f} GiB, {peak / plain:.2f} times plain")
        else:
            measure(name, args.rounds, set(args.only))


if __name__ == "__main__":
    main()
