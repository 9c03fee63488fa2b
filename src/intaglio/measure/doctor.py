"""Is a model fit to be measured? A few real steps, and everything that can be held against something else.  [torch]

Coverage by part; the examples' gradients summed against autograd's, part by part; the books
of every step; push against a backward of its own; the logits with the tap on and off; the
hooks that are left. The model is given back as it was.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.address import Address
from intaglio.errors import IntaglioError
from intaglio.measure.exact import slabs
from intaglio.measure.ledger import Ledger
from intaglio.measure.lora import lora_gradients
from intaglio.measure.settle import canonical
from intaglio.model.families import place
from intaglio.model.layout import Layout, Weight
from intaglio.store.run import open_run

TEXTS = (
    "In November the river froze, and the boats stayed where they were until the first warm week of April.",
    "The baker opens at six.",
    "She counted the steps twice, 124 up and 124 down, and still did not trust the number.",
)
LONGEST = 32  # tokens of each text
STEPS = 3
LR = 1e-4
MATCH, PUSH = 1e-4, 1e-3  # relative errors that still count as equal, in single precision
COARSE = 100.0  # times as much where weights are of 16 bits
_ORDER = ("embed", "embed.pos", "embed.norm", "attention", "MLP", "norms", "biases", "final norm", "unembed", "other")


@dataclass(frozen=True, slots=True)
class PartCheck:
    """One kind of part, over all layers."""

    part: str
    parameters: int
    measured: int
    gradient_match: float | None  # norm(sum of the examples' gradients - autograd's) / norm(autograd's)

    @property
    def share(self) -> float:
        return self.measured / self.parameters if self.parameters else 0.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found; `problems` in plain words, none where the model is supported."""

    parts: tuple[PartCheck, ...] = ()
    closures: tuple[float, ...] = ()
    push_error: float | None = None
    logits_identical: bool | None = None
    hooks_left: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()  # name: reason
    problems: tuple[str, ...] = ()
    lora: bool = False
    tied: bool = False

    @property
    def parameters(self) -> int:
        return sum(p.parameters for p in self.parts)

    @property
    def measured(self) -> int:
        return sum(p.measured for p in self.parts)

    @property
    def healthy(self) -> bool:
        return not self.problems

    @property
    def verdict(self) -> str:
        """One line: supported, or what is wrong, by name."""
        if not self.parts:
            return f"this model cannot be measured: {'; '.join(self.problems)}"
        share = 100.0 if self.measured == self.parameters else min(100 * self.measured / self.parameters, 99.99)
        trained = "trained parameters" if self.lora else "parameters"
        said = f"measured {share:.4g} % of {self.parameters:,} {trained}"
        if self.closures:
            missed = any(p.startswith("the books") for p in self.problems)
            said += "" if missed else f"; the books close to {max(self.closures):.1e}"
        return f"{said}: this model is supported" if self.healthy else f"{said}. {'; '.join(self.problems)}"


def diagnose(model: nn.Module, tokenizer: Any = None) -> Diagnosis:
    """Take a few AdamW steps on built-in texts under the ledger, check them, and put the weights back.

    Args:
        model: a causal language model, possibly with LoRA adapters; what requires a gradient is trained.
        tokenizer: its tokenizer; None takes random token ids.
    """
    batch = _batch(model, tokenizer)
    device = next(model.parameters()).device
    batch = {name: t.to(device) for name, t in batch.items()}
    hooks = _hooks(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return Diagnosis(problems=("none of its parameters requires a gradient",))
    with _given_back(model), _unwarned(), tempfile.TemporaryDirectory() as folder:
        optimizer = torch.optim.AdamW(trained, lr=LR)
        without = _logits(model, batch)
        try:
            ledger = Ledger(model, optimizer, out=Path(folder) / "run", strict=True, quiet=True)
        except IntaglioError as error:
            return Diagnosis(problems=(str(error),))
        push = _push_oracle(model, batch, ledger.layout)
        model.zero_grad()
        matches: dict[str, tuple[float, float]] = {}
        try:
            with ledger:
                with_tap = _logits(model, batch)
                for step in range(STEPS):
                    model(**batch).loss.backward()
                    if step == STEPS - 1:  # LoRA's A has no gradient at the very start
                        matches = _gradient_matches(ledger)
                    optimizer.step()
                    optimizer.zero_grad()
        except IntaglioError as error:
            return Diagnosis(problems=(str(error),))
        layout = ledger.layout
        left = tuple(name for name, count in _hooks(model).items() if count != hooks.get(name, 0))
        run = open_run(Path(folder) / "run")
        measured_push = next(iter(run.table("visits")["push"].to_pylist()), None)
        closures = tuple(c for c in run.table("steps")["closure"].to_pylist() if c is not None)
        fault, changed = run.manifest.get("fault"), run.manifest.get("gradients_changed")
    layout.unmeasured.update(_forgotten(model, layout))
    found = Diagnosis(
        parts=tuple(_parts(layout, matches)),
        closures=closures,
        push_error=abs(measured_push / push - 1) if measured_push is not None and push > 0 else None,
        logits_identical=bool(torch.equal(without, with_tap)),
        hooks_left=left,
        unmeasured=tuple(f"{n} ({layout.reasons.get(n, 'not known here')})" for n in sorted(layout.unmeasured)),
        lora=layout.lora,
        tied=layout.tied,
    )
    coarse = any(w.param.dtype != torch.float32 for w in layout.weights)
    problems = (*_problems(found, fault, ledger.tolerance, COARSE if coarse else 1.0), *_changed(changed))
    return Diagnosis(**{**{n: getattr(found, n) for n in found.__slots__}, "problems": problems})


def _problems(found: Diagnosis, fault: str | None, tolerance: float, coarse: float) -> Iterator[str]:
    if fault:
        yield fault
    if found.unmeasured:
        more = f" and {len(found.unmeasured) - 4} more" if len(found.unmeasured) > 4 else ""
        yield f"not measured: {', '.join(found.unmeasured[:4])}{more}"
    for part in found.parts:
        if part.gradient_match is not None and not part.gradient_match <= MATCH * coarse:
            yield f"the gradient of {part.part} is not the sum of the examples' ({part.gradient_match:.1e} apart)"
    if not fault and len(found.closures) < STEPS:
        yield f"{STEPS - len(found.closures)} of {STEPS} steps have no books"
    if found.closures and not max(found.closures) <= tolerance:
        yield f"the books do not close: {max(found.closures):.1e} of a step is missing or too much"
    if found.push_error is not None and not found.push_error <= PUSH * coarse:
        yield f"push is {found.push_error:.1e} off a backward of its own"
    if found.logits_identical is False:
        yield "the logits change while the tap is on"
    if found.hooks_left:
        yield f"hooks are left on {', '.join(found.hooks_left[:3])}"


def _changed(seen: Mapping[str, int] | None) -> Iterator[str]:
    if seen:
        yield (
            f"something changes the gradients of {seen['tensors']} of {seen['of']} tensors coordinate by coordinate "
            "before the step, so it cannot be split among the examples"
        )


# -- the model as it was


@contextmanager
def _given_back(model: nn.Module) -> Iterator[None]:
    """Weights, gradients and mode are restored, whatever happens."""
    kept = {p: (p.detach().clone(), p.grad, p.requires_grad) for p in model.parameters() if p.requires_grad}
    training = model.training
    model.eval()  # without dropout, so that two passes agree
    try:
        yield
    finally:
        model.train(training)
        with torch.no_grad():
            for p, (value, grad, requires) in kept.items():
                p.copy_(value)
                p.requires_grad_(requires)
                p.grad = grad


@contextmanager
def _unwarned() -> Iterator[None]:
    """What the ledger warns of is in the diagnosis."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="intaglio:")
        yield


def _hooks(model: nn.Module) -> dict[str, int]:
    """How many hooks stand on every module and parameter, by name."""
    counts = {
        name or "the model": len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for name, m in model.named_modules()
    }
    for name, p in model.named_parameters():
        counts[name] = len(p._post_accumulate_grad_hooks or ()) + len(p._backward_hooks or ())
    return {name: count for name, count in counts.items() if count}


def _batch(model: nn.Module, tokenizer: Any) -> dict[str, Tensor]:
    if tokenizer is not None:
        rows = [tokenizer(text)["input_ids"][:LONGEST] for text in TEXTS]
    else:
        generator = torch.Generator().manual_seed(0)
        size = model.config.get_text_config().vocab_size
        rows = [torch.randint(3, size, (n,), generator=generator).tolist() for n in (13, 5, 9)]
    longest = max(len(r) for r in rows)

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([v + [fill] * (longest - len(v)) for v in values])

    return {
        "input_ids": padded(rows, 0), "labels": padded(rows, -100),
        "attention_mask": padded([[1] * len(r) for r in rows], 0),
    }  # fmt: skip


def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**{n: t for n, t in batch.items() if n != "labels"}).logits.detach()


# -- held against autograd


def _push_oracle(model: nn.Module, batch: Mapping[str, Tensor], layout: Layout) -> float:
    """Length of the first example's own gradient, by a backward of its own.

    Under LoRA push is measured at the frozen matrix, so the oracle lets that train for once.
    """
    adapters = [s for s in layout.sites if s.kind == "lora"]
    bases = [s.module.get_base_layer().weight for s in adapters]
    inside = {id(w.param) for s in adapters for w in s.weights}
    wanted = [w.param for w in layout.weights if id(w.param) not in inside] + bases
    for p in bases:
        p.requires_grad_(True)
    try:
        length = int(batch["attention_mask"][0].sum())
        ids = batch["input_ids"][:1, :length]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        loss = nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    finally:
        for p in bases:
            p.requires_grad_(False)
    return float(sum(g.double().square().sum() for g in gradients if g is not None)) ** 0.5


def _gradient_matches(ledger: Ledger) -> dict[str, tuple[float, float]]:
    """Squared difference from, and squared length of, autograd's gradient, by part."""
    layout, records = ledger.layout, list(ledger.collector.records.values())
    n = sum(r.caught.n_slots for r in records)
    sums: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def add(weight: Weight, difference: Tensor, grad: Tensor) -> None:
        before = sums[_kind(weight.addresses[0])]
        sums[_kind(weight.addresses[0])] = (
            before[0] + float(difference.double().square().sum()), before[1] + float(grad.double().square().sum()),
        )  # fmt: skip

    with torch.no_grad():
        for weight in layout.weights:
            if weight.kind.startswith("lora") or weight.param.grad is None:
                continue
            grad = weight.param.grad.float()
            grad = canonical(grad, weight) if grad.ndim == 2 else grad.view(1, -1)
            for rows, g_NRC in slabs(weight, records, n):
                add(weight, g_NRC.sum(0) - grad[rows], grad[rows])
        for site in (s for s in layout.sites if s.kind == "lora"):
            old = site.weight.param.float(), site.lora_b.param.float()
            made = [torch.zeros_like(p) for p in old]
            for factor in (f for r in records for f in r.factors if f.site is site):
                x = (factor.a if factor.dropped is None else factor.dropped).float()
                for total, part in zip(made, lora_gradients(site, x, factor.b.float(), *old)):
                    total += part
            for weight, total in zip((site.weight, site.lora_b), made):
                if weight.param.grad is not None:
                    add(weight, total - weight.param.grad, weight.param.grad)
    return dict(sums)


def _forgotten(model: nn.Module, layout: Layout) -> dict[str, nn.Parameter]:
    """Trained parameters that the map has under no name at all: counted here, not taken from the map."""
    known = {id(w.param) for w in layout.weights} | {id(p) for p in layout.unmeasured.values()}
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in known}


def _parts(layout: Layout, matches: Mapping[str, tuple[float, float]]) -> Iterator[PartCheck]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for weight in layout.weights:
        for i in (0, 1):
            counts[_kind(weight.addresses[0])][i] += weight.param.numel()
    for name, p in layout.unmeasured.items():
        counts[_kind(place(name.rpartition(".")[0]).address)][0] += p.numel()
    for part in sorted(counts, key=_ORDER.index):
        difference2, length2 = matches.get(part, (0.0, 0.0))
        match = (difference2 / length2) ** 0.5 if length2 else None
        yield PartCheck(part, *counts[part], gradient_match=match)


def _kind(address: Address) -> str:
    """The row of the table that an address belongs to."""
    if address.sub == "bias" or address.part.endswith(".bias"):
        return "biases"
    if address.layer is not None:
        return {"attn": "attention", "mlp": "MLP", "norm": "norms"}[address.part]
    return "final norm" if address.part == "norm" else address.part
