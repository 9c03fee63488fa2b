"""Is the map of a model's parts true? Five tokens are enough to see.  [torch]

A family is supported if and only if this proof passes; otherwise the error names the line that
failed. No term is taken as the remainder of others, so every line can fail.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from intaglio.errors import SubjectError
from intaglio.model.anatomy import Anatomy, anatomy_of
from intaglio.model.capture import Capture, capture, head_writes
from intaglio.model.norms import NormKind, kind_of

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-6}  # in units of the largest number compared; 16 bits: 3e-2
COARSE = 3e-2
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
TOKENS = 5


@dataclass(frozen=True)
class Line:
    """One statement about the map and how far it is off, in units of the largest number compared."""

    says: str
    error: float
    holds: bool


_proved: weakref.WeakKeyDictionary[nn.Module, tuple[list, dict]] = weakref.WeakKeyDictionary()


def prove(model: nn.Module) -> Anatomy:
    """The model's parts, once all lines hold; asked again with the same weights, it remembers.

    Raises:
        SubjectError: the first line that does not hold, with its number.
    """
    anatomy = anatomy_of(model)
    weights = [(p.data_ptr(), p._version) for p in anatomy.model.parameters()]  # some gains are kept as copies
    if anatomy.model in _proved and _proved[anatomy.model][0] == weights:
        return Anatomy(model=anatomy.model, **_proved[anatomy.model][1])
    check_finite(anatomy.model)
    anatomy, found = examine(anatomy)
    for line in found:
        if not line.holds:
            raise SubjectError(
                f"the map of this family's parts is not proved: {line.says}",
                got=f"off by {line.error:.1e} in {type(anatomy.model).__name__}", expected="0",
            )  # fmt: skip
    known = {f.name: getattr(anatomy, f.name) for f in fields(anatomy) if f.name != "model"}  # else it would live on here
    _proved[anatomy.model] = weights, known
    return anatomy


@torch.no_grad()
def check_finite(model: nn.Module) -> None:
    """Refuse weights that hold NaN or infinity: whatever is measured with them is nothing.

    Raises:
        SubjectError: the first tensor that does.
    """
    for name, p in model.named_parameters():
        if p.dtype in FLOATS and not p.detach().sum(dtype=torch.float32 if p.element_size() < 4 else None).isfinite():
            wrong = int((~p.detach().isfinite()).sum())
            if wrong:  # a sum may overflow where no number does
                raise SubjectError("the weights hold numbers that are not finite", got=f"{wrong} in {name}",
                                   expected="neither NaN nor infinity")  # fmt: skip


@torch.no_grad()
def examine(anatomy: Anatomy) -> tuple[Anatomy, list[Line]]:
    """Every statement of the proof, checked on five tokens; the map with what they told of its norms and logits."""
    weight = anatomy.unembed.weight
    limit = TOLERANCE.get(weight.dtype, COARSE)
    ids = torch.linspace(3, weight.shape[0] - 1, TOKENS, device=weight.device).long()[None]
    seen = capture(anatomy, ids)
    raw = raw_logits(anatomy, seen.normed_BTD)
    scale, softcap = _logit_shape(anatomy, raw, seen.logits_BTV)
    anatomy = replace(anatomy, kinds=_norm_kinds(anatomy, seen), logit_scale=scale, softcap=softcap)
    final = anatomy.kinds[anatomy.norm].error
    found = [
        *_attention(anatomy, seen), *_residual(anatomy, seen), ("the final norm is linear once its scale is known", final),
        ("so is the norm behind each part", max(kind.error for kind in anatomy.kinds.values())),
        ("logits are the output matrix's, scaled and capped", _off(shaped(anatomy, raw), seen.logits_BTV)),
    ]  # fmt: skip
    return anatomy, [Line(says, error, error <= limit) for says, error in found]


def _attention(anatomy: Anatomy, seen: Capture) -> list[tuple[str, float]]:
    rows, read, written = 0.0, 0.0, 0.0
    for i, layer in enumerate(seen.layers):
        sums = layer.pattern_BHTT.sum(-1)
        if layer.attention is None or not layer.attention.sinks:
            rows = max(rows, _off(sums, torch.ones_like(sums)))
        else:
            rows = max(rows, float((sums - 1).clamp_min(0).max()))
        read = max(read, _off(torch.einsum("bhqk,bhkd->bqhd", layer.pattern_BHTT, layer.v_BHTd), layer.z_BTHd))
        total = head_writes(anatomy, layer, i).sum(2)
        bias = anatomy.blocks[i].out.bias
        written = max(written, _off(total if bias is None else total + bias, layer.attn_raw_BTD))
    return [
        ("attention rows sum to 1", rows), ("what a head reads is its attention times the values", read),
        ("heads and bias sum to what attention gives", written),
    ]  # fmt: skip


def _residual(anatomy: Anatomy, seen: Capture) -> list[tuple[str, float]]:
    total = seen.embed_BTD + anatomy.residual_scale * sum(a.attn_BTD + a.mlp_BTD for a in seen.layers)
    found = [("embedding and all parts sum to the last residual", _off(total, seen.final_BTD))]
    if anatomy.embed_norm is None:
        start = seen.tokens_BTD * anatomy.embed_scale
        start = start if seen.positions_BTD is None else start + seen.positions_BTD
        found.append(("the residual starts as the embedding", _off(start, seen.embed_BTD)))
    return found


def _norm_kinds(anatomy: Anatomy, seen: Capture) -> dict[nn.Module, NormKind]:
    found = {anatomy.norm: kind_of(anatomy.norm, seen.final_BTD, seen.normed_BTD)}
    for block, layer in zip(anatomy.blocks, seen.layers):
        if block.attn_post is not None:
            found[block.attn_post] = kind_of(block.attn_post, layer.attn_raw_BTD, layer.attn_BTD)
        if block.mlp_post is not None:
            found[block.mlp_post] = kind_of(block.mlp_post, layer.mlp_raw_BTD, layer.mlp_BTD)
    return found


def raw_logits(anatomy: Anatomy, normed_D: Tensor) -> Tensor:
    """Output matrix times the normed residual, plus its bias."""
    return nn.functional.linear(normed_D, anatomy.unembed.weight, getattr(anatomy.unembed, "bias", None))


def shaped(anatomy: Anatomy, raw: Tensor) -> Tensor:
    """Raw logits as the model gives them: times a factor (Granite, Cohere), capped (Gemma 2)."""
    raw = raw * anatomy.logit_scale if anatomy.logit_scale != 1.0 else raw
    return raw if anatomy.softcap is None else torch.tanh(raw / anatomy.softcap) * anatomy.softcap


def _logit_shape(anatomy: Anatomy, raw: Tensor, logits: Tensor) -> tuple[float, float | None]:
    softcap = getattr(anatomy.model.config.get_text_config(), "final_logit_softcapping", None)
    if softcap:
        return 1.0, float(softcap)
    factor = float((raw.double() * logits.double()).sum() / raw.double().square().sum().clamp_min(1e-30))
    return 1.0 if abs(factor - 1) < 1e-5 else factor, None


def _off(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
