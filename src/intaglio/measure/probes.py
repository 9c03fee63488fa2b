"""Probes: fixed texts whose loss, predictions and hidden states are watched during training.  [torch]

Measuring a probe touches nothing of the training: eval mode, random state restored,
no gradient accumulated, the tap switched off.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intaglio.errors import DataError
from intaglio.example import example_id
from intaglio.model.modes import evaluating

KL_POSITIONS = 512  # predictions kept from the start, per probe
DRIFT_TOKENS = 512  # tokens whose hidden states are kept from the start, per probe
ROLES = ("target", "anchor")
HOOKED = "_output_capturing_hooks_installed"  # transformers' own mark


@dataclass(eq=False)
class Probe:
    """A named set of batches; items are the rows of all batches, row k being item `order[k]` (k where not given)."""

    name: str
    batches: list[dict[str, Tensor]]
    facts: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    previews: list[str] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    start: dict = field(default_factory=dict)  # log-probabilities and hidden states of the initial model
    start_seen: bool = True  # False where a run goes on and the initial model is gone: no KL, no drift

    @property
    def role(self) -> str:
        return next((r for r in ROLES if self.name == r or self.name.startswith((r + ".", r + "-"))), "")

    @property
    def items(self) -> int:
        return sum(len(b["input_ids"]) for b in self.batches)

    @property
    def targets(self) -> int:
        return sum(int((_targets(b) >= 0).sum()) for b in self.batches)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over every item's unpadded token ids and label mask, in order; batching does not matter."""
        found = []
        for batch in self.batches:
            kept = _kept(batch).tolist()
            labels = batch.get("labels")
            trained = kept if labels is None else (labels >= 0).tolist()
            for ids, keep, mask in zip(batch["input_ids"].tolist(), kept, trained):
                where = [t for t, k in enumerate(keep) if k]
                found.append(example_id([ids[t] for t in where], [bool(mask[t]) for t in where]))
        if self.order:
            found = [example for _, example in sorted(zip(self.order, found))]
        return hashlib.blake2b("".join(found).encode(), digest_size=16).hexdigest()

    def as_dict(self) -> dict[str, object]:
        """What the manifest says of it, and what a resumed run is held against."""
        return {"role": self.role, "items": self.items, "targets": self.targets, "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class ProbeState:
    """What a probe shows at one state of the model."""

    loss_nats: float
    item_losses_nats: list[float]
    kl_nats: float | None
    drift: list[tuple[int, float, float, float | None]]  # layer, relative_l2, cosine, cka


def as_probe(name: str, source: object, device: torch.device | None = None) -> Probe:
    """A probe from what a user hands over: a batch (mapping of tensors), or a list of batches, or a Probe.

    Raises:
        DataError: the probe is empty or holds no target token.
    """
    if isinstance(source, Probe):
        batches = source.batches
    elif isinstance(source, Mapping) or hasattr(source, "input_ids"):
        batches = [dict(source)]
    elif isinstance(source, Sequence) and source and all(isinstance(b, Mapping) for b in source):
        batches = [dict(b) for b in source]
    else:
        raise DataError(f"probe {name!r} is empty or no batch", got=type(source).__name__, expected="input_ids tensors")
    for batch in batches:
        ids = batch.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            got = "none" if ids is None else f"{type(ids).__name__}{list(getattr(ids, 'shape', []))}"
            raise DataError(f"probe {name!r} has no input_ids", got=got, expected="a tensor of (texts, tokens)")
    tensors = [{k: v for k, v in batch.items() if isinstance(v, Tensor)} for batch in batches]
    probe = source if isinstance(source, Probe) else Probe(name, tensors)
    if device is not None:
        probe.batches = [{k: v.to(device) for k, v in b.items() if isinstance(v, Tensor)} for b in probe.batches]
    if not probe.batches or probe.items == 0 or probe.targets == 0:
        raise DataError(f"probe {name!r} is empty", expected="at least one text with a target token")
    return probe


def as_probes(probes: object, device: torch.device | None = None) -> list[Probe]:
    """Every probe that a user hands over by name.

    Raises:
        DataError: no mapping of names, or a probe that is none.
    """
    if not isinstance(probes or {}, Mapping):
        raise DataError("probes are given by name", got=type(probes).__name__, expected='such as {"anchor": batch}')
    return [as_probe(name, p, device) for name, p in (probes or {}).items()]


def _targets(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, T) the token predicted at each position, -100 where none is scored."""
    ids = batch["input_ids"]
    labels = batch.get("labels")
    if labels is None:
        mask = batch.get("attention_mask")
        labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    target = torch.full_like(ids, -100)
    target[:, :-1] = labels[:, 1:]
    return target


def _kept(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, T) which positions are text and not padding."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode with every module's own flag and the random state put back afterwards.

    transformers leaves hooks in a model once hidden states are asked for; they are taken out again.
    """
    hooks = {m: set(m._forward_hooks) for m in model.modules()}
    marked = {m for m in hooks if HOOKED in vars(m)}
    device = next(model.parameters()).device
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        with evaluating(model):
            yield
    finally:
        for module, own in hooks.items():
            for key in set(module._forward_hooks) - own:
                del module._forward_hooks[key]
            if module not in marked and HOOKED in vars(module):
                delattr(module, HOOKED)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


def _losses(
    model: nn.Module, batch: Mapping[str, Tensor], *, hidden: bool
) -> tuple[Tensor, Tensor, Tensor, object]:
    """Loss (B, K), target (B, K) and logits (B, K, V) at the K positions where some row is scored; the output."""
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")}
    target = _targets(batch)
    scored = (target >= 0).any(0).nonzero()[:, 0]
    if _spares_the_head(model):
        inputs["logits_to_keep"] = scored
    out = model(**inputs, use_cache=False, output_hidden_states=hidden)
    logits = out.logits if out.logits.shape[1] == len(scored) else out.logits[:, scored]
    target = target[:, scored]
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=-100, reduction="none"
    ).view(target.shape)
    return losses, target, logits, out


def _spares_the_head(model: nn.Module) -> bool:
    """Whether the head can be asked for chosen positions only; a stranger's class may mean another thing by it."""
    known = type(model).__module__.startswith("transformers.")
    return known and "logits_to_keep" in inspect.signature(model.forward).parameters


def measure_probe(model: nn.Module, probe: Probe) -> ProbeState:
    """Loss per item, KL and drift from the first state this was called at. No gradient."""
    state, _ = measure_probe_with_gradient(model, probe, [])
    return state


def measure_probe_with_gradient(
    model: nn.Module, probe: Probe, params: list[nn.Parameter]
) -> tuple[ProbeState, list[Tensor]]:
    """What `measure_probe` gives, and the gradient of the probe's mean loss per target token, from one forward.

    Returns:
        The state, and one gradient per parameter (none for no parameters); `.grad` is not touched.
    """
    item_losses, total, count = [], 0.0, probe.targets
    log_probs, hidden, gradient = _Thinned(count, KL_POSITIONS), [], []
    tokens = sum(int(_kept(b).sum()) - len(b["input_ids"]) for b in probe.batches)  # the first of each is left out
    for batch in probe.batches:
        with torch.set_grad_enabled(bool(params)):
            losses, target, logits, out = _losses(model, batch, hidden=True)
            if params:
                _add_gradient(gradient, losses.sum() / count, params)
        with torch.no_grad():
            item_losses += (losses.sum(1) / (target >= 0).sum(1).clamp_min(1)).tolist()
            total += float(losses.double().sum())
            log_probs.add(logits[target >= 0])
            layers = _kept_hidden(out.hidden_states, batch)
            hidden = hidden or [_Thinned(tokens, DRIFT_TOKENS) for _ in layers]
            for into, rows in zip(hidden, layers):
                into.add(rows)
        del losses, logits, out
    if probe.order:
        by_item = dict(zip(probe.order, item_losses))
        item_losses = [by_item[i] for i in range(len(by_item))]
    return ProbeState(total / count, item_losses, *_since_start(probe, log_probs, hidden)), gradient


def _since_start(probe: Probe, log_probs: _Thinned, hidden: list[_Thinned]) -> tuple[float | None, list[tuple]]:
    """KL and drift from the initial model, whose state is kept when first seen."""
    if not probe.start_seen:
        return None, []
    log_p = log_probs.rows().float().log_softmax(-1)
    states = [layer.rows().float() for layer in hidden]
    if not probe.start:
        probe.start = {"log_p": log_p, "hidden": states}
    first = probe.start
    kl = float((first["log_p"].exp() * (first["log_p"] - log_p)).sum(-1).mean())
    return max(kl, 0.0), [(layer, *drift_of(h, h0)) for layer, (h, h0) in enumerate(zip(states, first["hidden"]))]


def _add_gradient(total: list[Tensor], loss: Tensor, params: list[nn.Parameter]) -> None:
    found = torch.autograd.grad(loss, params, allow_unused=True)
    if not total:
        total += [torch.zeros_like(p) if g is None else g for p, g in zip(params, found)]
        return
    for into, g in zip(total, found):
        if g is not None:
            into += g


def probe_loss(model: nn.Module, probe: Probe) -> float:
    """Mean loss per target token, nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in probe.batches:
            losses, target, *_ = _losses(model, batch, hidden=False)
            total, count = total + float(losses.double().sum()), count + int((target >= 0).sum())
    return total / count


def probe_gradient(model: nn.Module, probe: Probe, params: list[nn.Parameter]) -> list[Tensor]:
    """Gradient of the probe's mean loss per target token; `.grad` is not touched."""
    count, total = probe.targets, []
    with torch.enable_grad():
        for batch in probe.batches:
            losses, *_ = _losses(model, batch, hidden=False)
            _add_gradient(total, losses.sum() / count, params)
    return total


def _kept_hidden(hidden_states: Sequence[Tensor], batch: Mapping[str, Tensor]) -> list[Tensor]:
    ids, keep = batch["input_ids"], _kept(batch)
    first = keep.int().argmax(1)
    keep = keep.clone()
    keep[torch.arange(len(ids), device=ids.device), first] = False  # the first token is left out
    return [h[keep] for h in hidden_states]


class _Thinned:
    """At most so many of the rows that come in pieces, evenly spread; the others are not held."""

    def __init__(self, total: int, most: int) -> None:
        self._wanted = torch.linspace(0, total - 1, most, dtype=torch.float32).long() if total > most else torch.arange(total)
        self._seen, self._pieces = 0, []

    def add(self, rows: Tensor) -> None:
        inside = (self._wanted >= self._seen) & (self._wanted < self._seen + len(rows))
        self._pieces.append(rows[(self._wanted[inside] - self._seen).to(rows.device)])
        self._seen += len(rows)

    def rows(self) -> Tensor:
        return torch.cat(self._pieces)


def drift_of(now: Tensor, start: Tensor) -> tuple[float, float, float | None]:
    """Relative length of the change, centred cosine (both medians over tokens), debiased CKA.

    Args:
        now, start: (N, d) hidden states of the same tokens.
    """
    relative = (now - start).norm(dim=-1) / start.norm(dim=-1).clamp_min(1e-12)
    a, b = now - now.mean(0), start - start.mean(0)
    cosine = F.cosine_similarity(a, b, dim=-1)
    return float(relative.median()), float(cosine.median()), debiased_cka(now, start)


def debiased_cka(x: Tensor, y: Tensor) -> float | None:
    """Debiased linear CKA (Kornblith et al. 1905.00414 with Song et al.'s unbiased HSIC).

    1 is the same up to rotation and scale; independent features give 0 on average. None under 4 tokens.
    """
    n = len(x)
    if n < 4:
        return None
    grams = []
    for z in (x, y):
        z = z.double() - z.double().mean(0)
        k = z @ z.mT
        k.fill_diagonal_(0)
        grams.append(k)
    def hsic(k: Tensor, m: Tensor) -> float:
        trace = float((k * m).sum())
        total = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
        cross = 2 * float(k.sum(0) @ m.sum(0)) / (n - 2)
        return (trace + total - cross) / (n * (n - 3))
    xx, yy = hsic(grams[0], grams[0]), hsic(grams[1], grams[1])
    if xx <= 0 or yy <= 0:
        return None
    value = hsic(grams[0], grams[1]) / math.sqrt(xx * yy)
    return value
