"""The backward side: from caught writes to per-example norms, sketches and kept factors.  [torch]"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intaglio.measure import writes
from intaglio.measure.lora import LoraCatch, lora_catch
from intaglio.measure.products import times
from intaglio.model.layout import Layout, Site, Weight
from intaglio.model.tap import Block, Pass

SKETCH_SIDE = 4
SUM_SIDE = 16  # signs that a step's summed gradient is measured in under LoRA


@dataclass(eq=False)
class Factor:
    """One site's write of one pass, kept until the step is known.

    kind "matrix": a_BTP (or None for a lookup, whose ids stand in `ids`), b_BTQ.
    kind "vector": g_BTD, the gradient of a gain or a bias per position.
    """

    site: Site
    a: Tensor | None
    b: Tensor
    ids: Tensor | None = None
    offset: int = 0  # positions before the first kept logit
    gain: Tensor | None = None  # g_BTD of a norm's gain
    dropped: Tensor | None = None  # LoRA: the adapter's input, after its dropout
    lora: LoraCatch | None = None


@dataclass(eq=False)
class SumSketch:
    """Under LoRA: how long the sum of the gradients at one frozen matrix is, which autograd never makes.

    The inputs are projected onto signs that are drawn anew at every step, the outputs are left as they are: examples
    share the few directions in which inputs are large, and differ in their outputs. The examples' own squared lengths
    stand in the same sketch, so that the ratio is one of real vectors, and exactly, to bring it to scale. What is left
    of error is independent from step to step, as it is not in the sketches of the visits, whose signs never change.
    """

    total_KQ: Tensor | float = 0.0  # the sum over the examples
    squared: Tensor | float = 0.0  # sum over the examples of squared lengths in the sketch
    exact: Tensor | float = 0.0  # the same, exactly


@dataclass(eq=False)
class Record:
    """All that was caught of one pass."""

    caught: Pass
    push2_NA: Tensor  # squared length of the example's part of the actual gradient, per address
    write2_BT: Tensor
    sketch_NS: Tensor
    factors: list[Factor] = field(default_factory=list)
    sites_seen: set[int] = field(default_factory=set)
    stats: dict[str, Tensor] = field(default_factory=dict)  # per position (B, T): surprise, entropy, omega, ...
    target_BT: Tensor | None = None
    waiting: dict[str, object] = field(default_factory=dict)
    extra2_N: Tensor | None = None  # tied cross terms: in the example's norm, at no address
    low_precision: bool = False  # the logits were made in 16 bits
    summed: dict[int, SumSketch] = field(default_factory=dict)  # by site index, under LoRA
    coarse: bool = False  # some gradient was made in 16 bits, so autograd's own is rounded

    @property
    def trained_BT(self) -> Tensor:
        """Which positions predict a trained target; every token where no target was seen."""
        return self.caught.segment_BT >= 0 if self.target_BT is None else self.target_BT >= 0


def factor_bytes(factors: list[Factor]) -> int:
    """Bytes that a list of factors keeps alive, shared storage counted once."""
    seen: dict[int, int] = {}
    for f in factors:
        inner = (f.lora.low_BTR, f.lora.back_BTR) if f.lora is not None else ()
        for tensor in (f.a, f.b, f.gain, f.dropped, *inner):
            if tensor is not None:
                seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def _to_host(factor: Factor) -> None:
    for name in ("a", "b", "gain", "dropped", "lora"):
        tensor = getattr(factor, name)
        setattr(factor, name, tensor.to("cpu") if tensor is not None else None)


class Projections:
    """The fixed random signs of every weight's sketch, made once."""

    def __init__(self, layout: Layout, seed: int, side: int = SKETCH_SIDE) -> None:
        self.seed, self.side = seed, side
        self.column: dict[int, int] = {}
        self._order: dict[int, int] = {}
        self._made: dict[tuple[int, str], Tensor] = {}
        for site in layout.sites:
            for weight in self._sketched(site):
                key = id(weight.param)
                if key not in self.column:
                    self._order[key] = len(self._order)
                    self.column[key] = len(self.column) * side * side
        self.width = len(self.column) * side * side

    @staticmethod
    def _sketched(site: Site) -> list[Weight]:
        return [w for w in (site.weight, site.bias) if w is not None]

    def columns(self, weight: Weight) -> slice:
        start = self.column[id(weight.param)]
        return slice(start, start + self.side**2)

    def signs(self, weight: Weight, which: str, size: int, device: torch.device) -> Tensor:
        """(size, side) for a matrix's "out" or "in", (size, side^2) for a vector."""
        key = (id(weight.param), which)
        if key not in self._made:
            side = self.side**2 if which == "vector" else self.side
            seed = self.seed * 100003 + self._order[id(weight.param)] * 3 + ("out", "in", "vector").index(which)
            self._made[key] = writes.projection(size, side, seed, device)
        return self._made[key]


class Collector:
    """Turns caught writes into records, pass by pass.

    Args:
        seed: of the sketches.
        share: of the step's loss that the loss caught here is: one over the processes, whose mean it is.

    Attributes:
        keep: whether factors are kept until the step (levels full and exact).
        step: the coming step, which draws its own signs under LoRA.
    """

    def __init__(self, layout: Layout, *, seed: int = 0, share: float = 1.0) -> None:
        self.layout, self.keep, self.spill, self.share = layout, True, False, share
        self.projections = Projections(layout, seed)
        self.step = 0
        self.records: dict[int, Record] = {}
        self._gram_cache: dict[tuple, tuple[Tensor, writes.Gram]] = {}
        self._proved: set[int] = set()

    # -- callbacks of the tap

    def begin(self, caught: Pass) -> None:
        n, device = caught.n_slots, caught.ids_BT.device
        self.records[id(caught)] = Record(
            caught,
            torch.zeros(n, len(self.layout.addresses), dtype=torch.float64, device=device),
            torch.zeros(caught.ids_BT.shape, dtype=torch.float32, device=device),
            torch.zeros(n, self.projections.width, dtype=torch.float32, device=device),
            extra2_N=torch.zeros(n, dtype=torch.float64, device=device),
            target_BT=None if caught.labels_BT is None else caught.target_BT(),
        )

    def write(self, site: Site, caught: Pass, a: Tensor, b: Tensor) -> None:
        record = self.records[id(caught)]
        if site.kind in ("linear", "lora"):
            _check_rows(site, caught, a)
        if site.index in record.sites_seen:
            raise RuntimeError(f"{site.name} ran twice in one forward, which is not measured")
        record.sites_seen.add(site.index)
        if self.share != 1:
            b = b * self.share
        record.coarse |= b.element_size() < 4
        if site.kind == "embedding":
            self._embedding(record, site, a, b)
        elif site.kind == "norm":
            self._norm(record, site, a, b)
        else:
            rows, _length = caught.ids_BT.shape
            self._linear(record, site, a.view(rows, -1, a.shape[-1]), b.view(rows, -1, b.shape[-1]))

    def logits(self, caught: Pass, logits: Tensor, gradient: Tensor) -> None:
        """Surprise, entropy and weight of every trained prediction of the pass."""
        record = self.records[id(caught)]
        record.low_precision = logits.dtype != torch.float32
        target = caught.target_BT()
        offset = target.shape[1] - logits.shape[1]
        visible = target[:, offset:]
        if caught.labels_BT is None:
            visible = torch.where(gradient.abs().amax(-1) > 0, visible, -1)
            target = torch.full_like(target, -1)
            target[:, offset:] = visible
        record.target_BT = target
        unknown = torch.full(target.shape, math.nan, dtype=torch.float32, device=target.device)
        found = {n: unknown.clone() for n in _STATISTICS}
        for row in range(target.shape[0]):
            where = (visible[row] >= 0).nonzero()[:, 0]
            if len(where) == 0:
                continue
            first, last = int(where[0]), int(where[-1]) + 1
            span = slice(first, last) if last - first == len(where) else where
            values = writes.logit_statistics(logits[row, span], gradient[row, span], visible[row, where])
            for name in _STATISTICS:
                found[name][row, where + offset] = values[name]
        found["omega"] *= self.share
        record.stats = found

    def clear_caches(self) -> None:
        self._gram_cache.clear()

    def spill_all(self) -> None:
        """Factors go to host memory from here on, and those that are held now as well."""
        self.spill = True
        for record in self.records.values():
            for factor in record.factors:
                _to_host(factor)

    def drop_factors(self) -> None:
        """No factors are kept until the step, nor those that are held now."""
        self.keep = False
        for record in self.records.values():
            record.factors.clear()

    def _kept(self, record: Record, factor: Factor) -> None:
        if self.spill:
            _to_host(factor)
        record.factors.append(factor)

    # -- kinds of sites

    def _linear(self, record: Record, site: Site, a: Tensor, b: Tensor) -> None:
        if a.dtype != b.dtype:
            a = a.to(b.dtype)  # under autocast the product was made in the lower precision
        kept_a, kept_b = a, b
        a, b = a.float(), b.float()
        caught = record.caught
        offset = caught.ids_BT.shape[1] - a.shape[1]
        if site.weight is not None:
            shape = a.shape[-1], b.shape[-1]
            for index, block, span in _spans(caught, offset):
                self._matrix_block(record, site, a[block.rows, span], b[block.rows, span], index, block, offset, span)
            projected = self._project(site.weight, a, b, shape)
            self._sketch_matrix(record, site.weight, *projected, offset)
            if site.kind == "lora":
                self._sketch_sum(record, site, a, b, offset)
        if site.bias is not None:
            self._vector(record, site.bias, b, offset)
        if site.head and self.layout.tied:
            record.waiting["head"] = (a, b, offset)
            self._tied(record)
        dropped = caught.extras.pop(site.index, None)  # held no longer than its factor
        if self.keep and site.weights:
            factor = Factor(site, kept_a if site.weight is not None else None, kept_b, offset=offset)
            if site.kind == "lora":
                self._adapter(factor, dropped, a, b, projected)
            self._kept(record, factor)

    def _adapter(
        self, factor: Factor, dropped: Tensor | None, a: Tensor, b: Tensor, projected: tuple[Tensor, Tensor]
    ) -> None:
        site, (x_BKT, b_BKT) = factor.site, projected
        if dropped is not None and dropped.data_ptr() != a.data_ptr():
            factor.dropped = dropped.view_as(factor.a)
            a = factor.dropped.float()
            x_BKT = times(a, self.projections.signs(site.weight, "in", a.shape[-1], a.device).mT).mT
        factor.lora = lora_catch(site, a, b, x_BKT, b_BKT)

    def _matrix_block(
        self, record: Record, site: Site, a: Tensor, b: Tensor, index: int, block: Block, offset: int, span: slice
    ) -> None:
        weight = site.weight
        a_gram = None
        if weight.side != "in" and writes.ghost_is_cheaper(a.shape[1], a.shape[2], b.shape[2]):
            a_gram = self._gram_of(a, index)
        units, lengths = writes.squared_norms(a, b, side=weight.side, n_units=weight.n_units, a_gram=a_gram)
        weight.add_units(record.push2_NA[block.slots], units)
        if site.kind == "lora":
            record.summed.setdefault(site.index, SumSketch()).exact += units.sum(dtype=torch.float64)
        record.write2_BT[block.rows, span.start + offset : span.stop + offset].add_(lengths)

    def _gram_of(self, a: Tensor, block: int) -> writes.Gram:
        key = (a.data_ptr(), a.shape, block)
        if key not in self._gram_cache:
            if len(self._gram_cache) > 8:
                self._gram_cache.clear()
            self._gram_cache[key] = (a, writes.gram(a))
        return self._gram_cache[key][1]

    def _project(self, weight: Weight, a: Tensor, b: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(R_a a)_BkT and (R_b b)_BkT."""
        signs = (self.projections.signs(weight, which, size, a.device) for which, size in zip(("in", "out"), shape))
        return tuple(times(x, r.mT).mT for r, x in zip(signs, (a, b)))

    def _sketch_matrix(self, record: Record, weight: Weight, a_BKT: Tensor, b_BKT: Tensor, offset: int) -> None:
        columns = self.projections.columns(weight)
        for _, block, span in _spans(record.caught, offset):
            sketch = torch.bmm(b_BKT[block.rows, :, span], a_BKT[block.rows, :, span].mT)
            record.sketch_NS[block.slots, columns].add_(sketch.flatten(1))

    def _sketch_sum(self, record: Record, site: Site, a: Tensor, b: Tensor, offset: int) -> None:
        signs = writes.fresh_projection(a.shape[-1], SUM_SIDE, (self.projections.seed, self.step, site.index), a.device)
        a_BTK, into = times(a, signs.mT), record.summed[site.index]
        for _, block, span in _spans(record.caught, offset):
            sketch_NKQ = a_BTK[block.rows, span].mT @ b[block.rows, span]  # several times faster than its transpose
            into.squared += torch.linalg.vector_norm(sketch_NKQ, dim=(1, 2)).square().sum(dtype=torch.float64)
            into.total_KQ += sketch_NKQ.sum(0)

    def _vector(self, record: Record, weight: Weight, g_BTD: Tensor, offset: int = 0) -> None:
        signs = self.projections.signs(weight, "vector", g_BTD.shape[-1], g_BTD.device)
        columns = self.projections.columns(weight)
        for _, block, span in _spans(record.caught, offset):
            total = g_BTD[block.rows, span].sum(1)
            weight.add_units(record.push2_NA[block.slots], total.square().sum(-1, keepdim=True))
            record.sketch_NS[block.slots, columns].add_(total @ signs)
        where = slice(offset, offset + g_BTD.shape[1])
        record.write2_BT[:, where].add_(torch.linalg.vector_norm(g_BTD, dim=-1).square_())

    def _norm(self, record: Record, site: Site, x: Tensor, b: Tensor) -> None:
        self._prove_norm(site, x)
        b = b.float()
        gain = None
        if site.weight is not None:
            gain = writes.times_normalised(b, x.float(), rms=site.rms, eps=site.eps)
            gain = _per_position(gain, record.caught.ids_BT.shape)
            self._vector(record, site.weight, gain)
        bias = None
        if site.bias is not None:
            bias = _per_position(b, record.caught.ids_BT.shape)
            self._vector(record, site.bias, bias)
        if self.keep:
            self._kept(record, Factor(site, None, bias if bias is not None else gain, gain=gain))

    def _prove_norm(self, site: Site, x: Tensor) -> None:
        """Once per site: the module really is its gain times the normalised input (`forward`: no hook runs)."""
        if site.index in self._proved:
            return
        self._proved.add(site.index)
        piece = x.flatten(0, -2)[:1]
        weight, bias = getattr(site.module, "weight", None), getattr(site.module, "bias", None)
        scaled = writes.normalised(piece, rms=site.rms, eps=site.eps)
        rest = site.module.forward(piece).float() - (bias.float() if bias is not None else 0)
        gain = weight.float() if weight is not None else torch.ones_like(scaled)
        tolerance = 1e-3 if x.dtype == torch.float32 else 5e-2
        for candidate in (gain, 1 + gain):
            if torch.allclose(rest, scaled * candidate, rtol=tolerance, atol=tolerance):
                return
        raise RuntimeError(f"{site.name} is no norm of a known form, so its gain cannot be measured")

    def _embedding(self, record: Record, site: Site, ids: Tensor, b: Tensor) -> None:
        rows, length = record.caught.ids_BT.shape
        if site.positions and (b.shape[0] != rows or rows == 1):
            record.waiting["positions"] = (site, ids.expand(rows, length))
        else:
            self._lookup(record, site, ids.expand(rows, length), b * site.scale if site.scale != 1 else b)
        if site.lookup:
            record.waiting["lookup"] = (ids, b.float() * site.scale if site.scale != 1 else b.float())
            self._tied(record)
        if "positions" in record.waiting and "lookup" in record.waiting:
            table, position_ids = record.waiting.pop("positions")
            self._lookup(record, table, position_ids, record.waiting["lookup"][1])

    def _lookup(self, record: Record, site: Site, ids: Tensor, b: Tensor) -> None:
        if site.padding_idx is not None:
            b = b.masked_fill((ids == site.padding_idx)[..., None], 0.0)
        kept_b, b, weight = b, b.float(), site.weight
        signs_row = self.projections.signs(weight, "out", site.module.num_embeddings, b.device)
        signs_column = self.projections.signs(weight, "in", b.shape[-1], b.device)
        for _, block, span in _spans(record.caught, 0):
            part = b[block.rows, span]
            norms = writes.lookup_squared_norms(ids[block.rows, span], part)
            weight.add_units(record.push2_NA[block.slots], norms[:, None])
        self._sketch_matrix(record, weight, signs_column.mT @ b.mT, signs_row[ids].mT, 0)
        record.write2_BT += torch.linalg.vector_norm(b, dim=-1).square_()
        if self.keep:
            self._kept(record, Factor(site, None, kept_b, ids=ids))

    def _tied(self, record: Record) -> None:
        """Lookup and head write the same matrix: the cross term belongs in the example's norm."""
        if not self.layout.tied or not {"head", "lookup"} <= set(record.waiting):
            return
        a, head_b, offset = record.waiting.pop("head")
        ids, lookup_b = record.waiting["lookup"]
        if self.layout.lookup.padding_idx is not None:
            lookup_b = lookup_b.masked_fill((ids == self.layout.lookup.padding_idx)[..., None], 0.0)
        for _, block, span in _spans(record.caught, offset):
            inside = block.span
            cross = writes.tied_cross_terms(
                ids[block.rows, inside], lookup_b[block.rows, inside], a[block.rows, span], head_b[block.rows, span]
            )
            record.extra2_N[block.slots].add_(2 * cross.double())


_STATISTICS = ("surprise", "entropy", "omega", "reach", "misfit")


def _spans(caught: Pass, offset: int):
    """Every block with its positions inside a tensor that starts at position `offset`."""
    for index, block in enumerate(caught.blocks):
        start, stop = max(0, block.span.start - offset), block.span.stop - offset
        if stop > start:
            yield index, block, slice(start, stop)


def _check_rows(site: Site, caught: Pass, a: Tensor) -> None:
    positions = caught.ids_BT.numel()
    if site.head and caught.kept:
        positions = caught.ids_BT.shape[0] * caught.kept
    if a.numel() // a.shape[-1] != positions:
        raise RuntimeError(f"{site.name} sees {tuple(a.shape)}, not one row per token")


def _per_position(g: Tensor, shape: torch.Size) -> Tensor:
    """Sum the extra axes of a per-head norm's gradient: (B, T, H, d) or (B, H, T, d) to (B, T, d)."""
    rows, length = shape
    if g.ndim == 3 and g.shape[:2] == (rows, length):
        return g
    if g.ndim == 4 and g.shape[1] == length and (g.shape[2] != length or g.stride(1) >= g.stride(2)):
        return g.sum(2)
    if g.ndim == 4 and g.shape[2] == length:
        return g.sum(1)
    if g.ndim == 2 and g.shape[0] == rows * length:
        return g.view(rows, length, -1)
    raise RuntimeError(f"a norm sees {tuple(g.shape)}, which has no axis for the {length} positions")
