"""Trace upstream: which earlier parts made a head look where it looked.  [torch]

    score(query, key) = q . k * scaling, after rotation and norms of q and k

With the key held as it is, the score is affine in what the query position's residual holds, once the
norms' scales are frozen; so it is an exact sum over the parts that wrote there, plus what biases give. The
same for the key side. The direction comes from autograd, so rotary embeddings, fused projections and
norms of q and k are served alike; the constant comes from a second run in which nothing enters attention.
Source of the idea: Q- and K-composition (Elhage et al. 2021), direct path attribution to scores (Wang et al. 2211.00593).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.address import Address
from intaglio.errors import SubjectError
from intaglio.measure.choice.votes import Reader, ending_of
from intaglio.model.anatomy import Anatomy, Block
from intaglio.model.attention import Attention, switched
from intaglio.model.capture import Capture, first_output
from intaglio.model.modes import evaluating
from intaglio.model.norms import NormKind, kind_of


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a score: parts_P sums with `bias` to `score`.

    Attributes:
        addresses: P parts that wrote into the residual before the head's layer.
        parts_P: what each gave to the score.
        by_source_LHT: every earlier head's share by the token it was read from.
        bias: what no part gave: biases of the projection and of norms.
        closure: abs(sum - score), in units of the score.
    """

    position: int
    addresses: list[Address]
    parts_P: Tensor
    by_source_LHT: Tensor
    bias: float
    closure: float


@dataclass(frozen=True, eq=False)
class Upstream:
    """A head's score between two positions (before any softcap and mask), taken apart twice."""

    layer: int
    head: int
    score: float
    attention: float
    query: Side
    key: Side


def trace_upstream(anatomy: Anatomy, seen: Capture, layer: int, head: int, *, query: int, key: int) -> Upstream:
    """Split one score of one head by the parts that wrote its query side and its key side.

    Raises:
        SubjectError: the family does not attend through transformers' interface.
    """
    if anatomy.bypasses:
        raise SubjectError("queries and keys of this family cannot be seen", got=type(anatomy.model).__name__)
    block, inside, read = anatomy.blocks[layer], seen.layers[layer], _Read()
    with evaluating(anatomy.model), _reading(block, read), switched(anatomy.model, read.attention.append):
        with torch.enable_grad():
            for _ in ("as it was", "nothing enters"):
                block.layer(inside.resid_BTD.detach(), *inside.call["args"], **inside.call["kwargs"])
            met, empty = read.attention
            q, k = met.q_BHTd[0, head, query], met.k_BHTd[0, head, key]
            (for_query,) = torch.autograd.grad(q @ k.detach() * met.scaling, read.leaf, retain_graph=True)
            (for_key,) = torch.autograd.grad(q.detach() @ k * met.scaling, read.leaf)
    q, k, q_empty, k_empty = (
        x.detach().double() for x in (q, k, empty.q_BHTd[0, head, query], empty.k_BHTd[0, head, key])
    )
    score, entered = float(q @ k) * met.scaling, read.leaf.detach()
    norm, scales = _norm_before(read, entered)
    sides = [
        _side(anatomy, seen, layer, at, grad[0, at], score, float(constant) * met.scaling, norm, scales)
        for at, grad, constant in ((query, for_query, q_empty @ k), (key, for_key, q @ k_empty))
    ]
    return Upstream(layer, head, score, float(inside.pattern_BHTT[0, head, query, key]), *sides)


def _side(
    anatomy: Anatomy, seen: Capture, layer: int, at: int, grad_D: Tensor, score: float, bias: float,
    norm: NormKind | None, scales_T: Tensor | None,
) -> Side:  # fmt: skip
    direction = grad_D.double()
    if norm is not None:
        bias += float(norm.bias_D.double() @ direction)
        direction = norm.pull_back(direction) * scales_T[at].double()
    reader = Reader(anatomy, direction, layer)
    parts_BP, scales_BL = reader.read(ending_of(seen, at))
    by_source = reader.by_source(seen, scales_BL, at) if layer else parts_BP.new_zeros(0, anatomy.n_heads, at + 1)
    off = abs(float(parts_BP.sum()) + bias - score)
    return Side(at, reader.addresses, parts_BP[0], by_source, bias, off / max(abs(score), 1e-12))


@dataclass(eq=False)
class _Read:
    attention: list[Attention] = field(default_factory=list)
    leaf: Tensor | None = None  # what entered attention in the first run
    norms: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)
    frozen: dict[nn.Module, tuple[NormKind, Tensor]] = field(default_factory=dict)


def _norm_before(read: _Read, entered: Tensor) -> tuple[NormKind | None, Tensor | None]:
    """The norm whose output entered attention, and its scale at every position; None where there is none (OLMo 2)."""
    for module, x, y in read.norms:
        if torch.equal(y, entered):
            kind = kind_of(module, x, y)
            return kind, kind.scale_of(x, y)[0]
    return None, None


@contextlib.contextmanager
def _reading(block: Block, read: _Read) -> Iterator[None]:
    """What enters attention becomes a leaf, then zeros; norms of q and k keep the scale they had at first."""

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = (args[0] if args else kwargs["hidden_states"]).detach()
        if read.leaf is None:
            given = read.leaf = given.clone().requires_grad_(True)
        else:
            given = torch.zeros_like(given)
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

    def linear(module: nn.Module, args: tuple, out: Any) -> Tensor:
        if module not in read.frozen:
            x, y = args[0].detach(), first_output(out).detach()
            kind = kind_of(module, x, y)
            read.frozen[module] = kind, kind.scale_of(x, y)
        kind, scale = read.frozen[module]
        return kind.apply(args[0], scale)

    def note(module: nn.Module, args: tuple, out: Any) -> None:
        read.norms.append((module, args[0].detach(), first_output(out).detach()))

    handles = [block.attn.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [m.register_forward_hook(note) for m in block.layer.children() if _is_norm(m)]
    handles += [m.register_forward_hook(linear) for m in block.attn.modules() if m is not block.attn and _is_norm(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or "Norm" in type(module).__name__


def trace_tree(
    anatomy: Anatomy, seen: Capture, layer: int, head: int, *, query: int, key: int, depth: int = 2, width: int = 3
) -> list[dict[str, Any]]:
    """A head's score taken apart, then the scores of the heads that gave most to it, and so on.

    A head that wrote into one side is followed to the token it read most from for that.

    Args:
        depth: how many scores deep.
        width: the strongest parts named on each side; those that are heads are followed.

    Returns:
        Rows: depth, head (address), query and key (positions), score, attention, side (query or key), part, share (logits
        of the score), source (the position that part read it from; None if it is no head).
    """
    rows: list[dict[str, Any]] = []
    waiting, done = [(layer, head, query, key, 0)], set()
    while waiting:
        at = waiting.pop(0)
        if at[:4] in done or at[4] >= depth:
            continue
        done.add(at[:4])
        found = trace_upstream(anatomy, seen, at[0], at[1], query=at[2], key=at[3])
        about = {"depth": at[4], "head": str(Address("attn", at[0], head=at[1])), "query": at[2], "key": at[3],
                 "score": found.score, "attention": found.attention}  # fmt: skip
        for name, side in (("query", found.query), ("key", found.key)):
            for i in side.parts_P.abs().argsort(descending=True)[:width].tolist():
                part, source = side.addresses[i], None
                if part.head is not None:
                    source = int(side.by_source_LHT[part.layer, part.head].abs().argmax())
                    waiting.append((part.layer, part.head, side.position, source, at[4] + 1))
                rows.append({**about, "side": name, "part": str(part), "share": float(side.parts_P[i]), "source": source})
            if abs(side.bias) > 1e-9:
                rows.append({**about, "side": name, "part": "bias", "share": side.bias, "source": None})
    return rows
