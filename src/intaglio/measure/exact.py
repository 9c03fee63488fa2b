"""Level exact: every example's gradient is built, a slab of rows at a time.  [torch]

Gives exact inner products of all visits of a step, the length of each example's part of
the step (for churn), and the exact match with autograd's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intaglio.measure.books import StepBooks, on_device
from intaglio.measure.collect import Factor, Record
from intaglio.measure.rules import check_measurable, denominator, rule_for
from intaglio.measure.settle import Scaling, Snapshot, canonical, projection_factor
from intaglio.model.layout import Layout, Site, Weight

SLAB = 1 << 21  # numbers of per-example gradient held at once: a slab stays in the shared cache


@dataclass(frozen=True, slots=True)
class ExactProducts:
    """Of the examples' parts of the actual gradient `products_NN`, and `along_N` with the whole of it as autograd
    made it (matrices under LoRA left out); `squared_c` of their parts of the step."""

    products_NN: np.ndarray
    along_N: np.ndarray
    squared_c: np.ndarray
    gradient_match: float


def slabs(weight: Weight, records: list[Record], n_total: int) -> Iterator[tuple[slice, Tensor]]:
    """(rows, g_NRC): every example's gradient of one parameter, in canonical orientation, by rows."""
    shape = canonical(weight.param, weight).shape if weight.param.ndim == 2 else (1, weight.param.numel())
    step = max(1, SLAB // (n_total * shape[1]))
    factors = list(_factors_of(weight, records))
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        g_NRC = torch.zeros(
            n_total, rows.stop - rows.start, shape[1], dtype=torch.float32, device=weight.param.device
        )
        for base, record, factor, mine in factors:
            _add_block_gradients(g_NRC, rows, base, record, factor, mine)
        yield rows, g_NRC


def _factors_of(weight: Weight, records: list[Record]) -> Iterator[tuple[int, Record, Factor, Weight]]:
    base = 0
    for record in records:
        for factor in record.factors:
            for mine in factor.site.weights:
                if mine.param is weight.param:
                    yield base, record, on_device(factor), mine
        base += record.caught.n_slots


def _add_block_gradients(
    g_NRC: Tensor, rows: slice, base: int, record: Record, factor: Factor, mine: Weight
) -> None:
    for block in record.caught.blocks:
        start, stop = max(0, block.span.start - factor.offset), block.span.stop - factor.offset
        if stop <= start:
            continue
        span = slice(start, stop)
        into = g_NRC[base + block.slots.start : base + block.slots.stop]
        b = factor.b[block.rows, span].float()
        if mine.kind == "gain":
            into[:, 0] += factor.gain[block.rows, span].float().sum(1)
        elif mine.kind == "bias":
            into[:, 0] += b.sum(1)
        elif mine.kind == "embedding":
            _add_lookup(into, rows, factor.ids[block.rows, span], b)
        else:
            into.baddbmm_(b[:, :, rows].mT, factor.a[block.rows, span].float())


def _add_lookup(into: Tensor, rows: slice, ids_NT: Tensor, b_NTD: Tensor) -> None:
    for n in range(len(ids_NT)):
        inside = (ids_NT[n] >= rows.start) & (ids_NT[n] < rows.stop)
        into[n].index_add_(0, ids_NT[n][inside] - rows.start, b_NTD[n][inside])


def exact_products(
    layout: Layout,
    records: list[Record],
    optimizer: torch.optim.Optimizer,
    books: StepBooks,
    scaling: Scaling,
    snapshot: Snapshot,
) -> ExactProducts:
    """Inner products, lengths of step parts and gradient match of all visits of a step."""
    n = sum(r.caught.n_slots for r in records)
    device = layout.weights[0].param.device
    products = torch.zeros(n, n, dtype=torch.float64, device=device)
    along, squared_c = (torch.zeros(n, dtype=torch.float64, device=device) for _ in range(2))
    difference2 = length2 = 0.0
    for weight in layout.weights:
        if weight.kind.startswith("lora") or id(weight.param) not in snapshot.moved:
            continue
        scale = scaling.scales.get(id(weight.param), 1.0) or 1.0
        book = books.param_books.get(id(weight.param))
        grad = _rows(weight.param.grad.detach().float() / scale, weight)
        inverse = None
        if book is not None and (d := denominator(book.rule, optimizer.state[weight.param], ...)) is not None:
            inverse = _rows(d, weight)
        for rows, g_NRC in slabs(weight, records, n):
            flat = g_NRC.flatten(1)
            products += (flat @ flat.mT).double()
            along += (flat @ grad[rows].reshape(-1)).double()
            difference2 += float(torch.linalg.vector_norm(g_NRC.sum(0) - grad[rows])) ** 2
            length2 += float(torch.linalg.vector_norm(grad[rows])) ** 2
            if book is not None:
                part = g_NRC if inverse is None else g_NRC.div_(inverse[rows])
                squared_c += (torch.linalg.vector_norm(part.flatten(1), dim=1) * book.factor).double().square()
    for site in layout.sites:
        if site.kind == "lora":
            products += _lora_products(site, records, n)
            if id(site.weight.param) not in scaling.foreign:
                squared_c += _lora_squared(site, records, optimizer, snapshot, scaling.scales, n)
    match = (difference2 / length2) ** 0.5 if length2 else 0.0
    return ExactProducts(products.cpu().numpy(), along.cpu().numpy(), squared_c.cpu().numpy(), match)


def _rows(t: Tensor, weight: Weight) -> Tensor:
    return canonical(t, weight) if t.ndim == 2 else t.view(1, -1)


def _lora_blocks(site: Site, records: list[Record]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(slot, x_TP, adapter input_TP, b_TQ) of every example."""
    base = 0
    for record in records:
        for f in record.factors:
            if f.site is not site:
                continue
            f = on_device(f)
            dropped = f.a if f.dropped is None else f.dropped
            for block in record.caught.blocks:
                for i, row in enumerate(range(block.rows.start, block.rows.stop)):
                    slot = base + block.slots.start + i
                    yield slot, f.a[row, block.span].float(), dropped[row, block.span].float(), f.b[row, block.span].float()
        base += record.caught.n_slots


def _lora_products(site: Site, records: list[Record], n: int) -> Tensor:
    """Inner products of the examples' gradients at the frozen matrix."""
    up, down = site.lora_b.param, site.weight.param
    g_NQP = torch.zeros(n, up.shape[0], down.shape[1], dtype=torch.float32, device=up.device)
    for slot, x, _, b in _lora_blocks(site, records):
        g_NQP[slot] = b.mT @ x
    flat = g_NQP.flatten(1)
    return (flat @ flat.mT).double()


def _lora_squared(
    site: Site, records: list[Record], optimizer: torch.optim.Optimizer, snapshot: Snapshot, scales: dict, n: int
) -> Tensor:
    """Squared length of each example's part of the product's step, s (c^B A0 + B0 c^A)."""
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    name = check_measurable(optimizer)
    old, factor, d = {}, {}, {}
    for key, weight in (("a", site.weight), ("b", site.lora_b)):
        p, state = weight.param, optimizer.state.get(weight.param, {})
        if id(p) not in snapshot.moved:
            old[key], factor[key], d[key] = p.detach().float(), 0.0, None
            continue
        rule = rule_for(name, groups[id(p)], state, had_buffer=id(p) in snapshot.had_buffer)
        along = rule.data if rule.formula else projection_factor(p, snapshot)
        old[key], factor[key] = snapshot.theta[id(p)].float(), along * scales.get(id(p), 1.0)
        d[key] = denominator(rule, state, ...)
    total = torch.zeros(n, dtype=torch.float64, device=old["a"].device)
    for slot, _, x, b in _lora_blocks(site, records):
        part_a = site.scale * (b @ old["b"]).mT @ x * factor["a"]
        part_b = site.scale * b.mT @ (x @ old["a"].mT) * factor["b"]
        part_a = part_a if d["a"] is None else part_a / d["a"]
        part_b = part_b if d["b"] is None else part_b / d["b"]
        total[slot] = (site.scale * (part_b @ old["a"] + old["b"] @ part_a)).double().square().sum()
    return total
