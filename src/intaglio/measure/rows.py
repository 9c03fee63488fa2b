"""From records and books to rows of the tables.  [torch]

Everything leaves here as numpy columns; what could not be measured is NaN or None, never 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.measure.books import StepBooks, project_tokens
from intaglio.measure.collect import Record
from intaglio.model.layout import Layout

REACH = 1e-3  # |p - onehot| below which a token says nothing about the loss's weight
ROUNDING = 5e-5  # of a probability made from fp32 logits; 1e-5 was seen on a real model
UNSETTLED_STEPS = 10


def loss_weights(record: Record) -> tuple[np.ndarray, list[str]]:
    """Weight omega that the loss gave each token of every example, and whether push is of the token sum.

    The weight is constant within an example under any mean or sum over tokens; where it is
    not (or the gradient at the logits has another form) push stays of the loss as weighted.

    Returns:
        (n,) weights (NaN where unknown) and a push_kind per example.
    """
    n = record.caught.n_slots
    weights, kinds = np.full(n, math.nan), ["as_weighted"] * n
    if not record.stats or record.caught.mixed:
        return weights, kinds
    segment = record.caught.segment_BT
    usable = (record.target_BT >= 0) & (record.stats["reach"] > REACH)
    tolerance = 5e-2 if record.low_precision else 1e-3
    omegas, reaches = record.stats["omega"], record.stats["reach"]
    common = constant_weight(omegas[usable], reaches[usable], tolerance)
    stray = _written_through_padding(record)
    for slot in range(n):
        mine = usable & (segment == slot)
        omega = constant_weight(omegas[mine], reaches[mine], tolerance) if bool(mine.any()) else common
        fits = bool((record.stats["misfit"][mine] < max(0.02, tolerance)).all()) if bool(mine.any()) else True
        if omega and fits and slot not in stray:
            weights[slot], kinds[slot] = omega, "token_sum"
    return weights, kinds


def _written_through_padding(record: Record) -> set[int]:
    """Slots whose padding was written through: a label on a left-padded text's first token trains the pad before it.

    That loss is no loss of the example's own tokens, and it cannot be told apart in the gradient.
    """
    if record.caught.packed:
        return set()
    outside = record.write2_BT.masked_fill(record.caught.segment_BT >= 0, 0.0).amax(1)
    return set((outside > 1e-9 * record.write2_BT.amax(1)).nonzero()[:, 0].tolist())


def constant_weight(omega: Tensor, reach: Tensor, tolerance: float) -> float | None:
    """The weight that all these tokens share, or None where they differ.

    Where a token is almost certain, autograd itself forms p - 1 from rounded logits, so its own omega is off by
    that rounding over its reach: such tokens are allowed that much, and count little (least squares over tokens).
    """
    omega, weight = omega.double(), reach.double().square()
    if len(omega) == 0:
        return None
    middle = float((omega * weight).sum() / weight.sum())
    allowed = abs(middle) * (tolerance + ROUNDING / reach.double())
    return middle if middle and bool(((omega - middle).abs() <= allowed).all()) else None


def squared_push(record: Record) -> np.ndarray:
    """(n,) squared length of each example's part of the actual gradient."""
    return (record.push2_NA.sum(1) + record.extra2_N).clamp_min(0).cpu().numpy()


def leave_one_out(own_N: np.ndarray, along_N: np.ndarray, total2: float) -> np.ndarray:
    """(N,) cosine of each gradient with the sum of the others. NaN for one alone.

    Args:
        own_N: squared lengths.
        along_N: inner products with the sum of all.
        total2: squared length of the sum of all.
    """
    others2 = total2 - 2 * along_N + own_N
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((own_N > 0) & (others2 > 0), (along_N - own_N) / np.sqrt(own_N * others2), math.nan)


def agreement(total2: float | None, squared: float, b: int) -> tuple[float | None, float | None]:
    """Unbiased GG and S of a step (McCandlish 1812.06162), with B h_i in the place of g_i.

    Args:
        total2: squared norm of the sum of all h_i; None where it is not known.
        squared: sum of the squared norms of the h_i.
        b: examples, B.
    """
    if b < 2 or total2 is None:
        return None, None
    mean2 = b * squared  # mean of |B h_i|^2
    gg = (b * total2 - mean2) / (b - 1)
    s = (mean2 - total2) / (1 - 1 / b)
    return gg, s


def visit_columns(
    step: int, records: list[Record], books: StepBooks | None, ids: list[str], rank: int
) -> dict[str, Any]:
    """Columns of `visits` (without alignment and churn) for all records of a step."""
    losses, targets, push, kinds, weights = [], [], [], [], []
    for record in records:
        omega, kind = loss_weights(record)
        length = np.sqrt(squared_push(record))
        n_targets, mean_loss = _mean_losses(record)
        push += list(np.where(np.isnan(omega), length, length / np.abs(np.where(np.isnan(omega), 1, omega))))
        kinds += kind
        weights += list(omega)
        losses += list(mean_loss)
        targets += list(n_targets)
    n = len(ids)
    shift = _shifts(books) if books else np.full(n, math.nan)
    return {
        "step": [step] * n, "slot": list(range(n)), "rank": [rank] * n, "example": ids, "targets": targets,
        "loss_nats": losses, "push": push, "push_kind": kinds, "shift": shift,
        "loss_weight": weights,
    }  # fmt: skip


def _shifts(books: StepBooks) -> np.ndarray:
    """(N,) each example's part of the step along it."""
    return np.concatenate([s.sum(1).cpu().numpy() for s in books.shift_NA])


def churn(squared_c: np.ndarray, books: StepBooks) -> np.ndarray:
    """(N,) length of each example's part of the step that lies across it.

    Args:
        squared_c: squared lengths of those parts.
    """
    return np.sqrt(np.clip(squared_c - _shifts(books) ** 2, 0, None))


def summed_nats(visits: dict[str, Any]) -> float:
    """Loss of all trained tokens of a step's visits."""
    return float(sum(loss * n for loss, n in zip(visits["loss_nats"], visits["targets"]) if n))


def _mean_losses(record: Record) -> tuple[np.ndarray, np.ndarray]:
    n, segment = record.caught.n_slots, record.caught.segment_BT
    if record.target_BT is None:
        return np.zeros(n, dtype=int), np.full(n, math.nan)
    trained = record.target_BT >= 0
    flat = segment[trained]
    count = torch.bincount(flat, minlength=n).cpu().numpy()
    if not record.stats:  # no logits were seen
        return count, np.full(n, math.nan)
    total = torch.zeros(n, dtype=torch.float64, device=flat.device)
    total.index_add_(0, flat, record.stats["surprise"][trained].double())
    with np.errstate(invalid="ignore"):
        return count, total.cpu().numpy() / np.where(count > 0, count, np.nan)


def token_columns(
    step: int, records: list[Record], books: StepBooks | None, kept: list[bool]
) -> dict[str, np.ndarray] | None:
    """Columns of `tokens` for the visits whose flag in `kept` is true."""
    pieces: dict[str, list[np.ndarray]] = {n: [] for n in _TOKEN_COLUMNS}
    base = 0
    for index, record in enumerate(records):
        segment = record.caught.segment_BT.cpu().numpy()
        flags = np.array(kept[base : base + record.caught.n_slots] + [False])
        where = flags[segment]  # segment -1 picks the last flag
        trained = record.target_BT.cpu().numpy() if record.target_BT is not None else np.full(segment.shape, -1)
        shift = books.token_shift_BT[index].cpu().numpy() if books else np.full(segment.shape, math.nan)
        if not record.caught.packed:
            shift = _padding_to_first(shift, segment)
        columns = {
            "slot": segment + base,
            "position": _positions(segment),
            "token": record.caught.ids_BT.cpu().numpy(),
            "target": trained,
            "surprise_nats": _stat(record, "surprise", segment.shape),
            "entropy_nats": _stat(record, "entropy", segment.shape),
            "shift": shift,
            "write": np.sqrt(record.write2_BT.cpu().numpy()),
        }
        for name, values in columns.items():
            pieces[name].append(values[where])
        base += record.caught.n_slots
    joined = {n: np.concatenate(p) for n, p in pieces.items()}
    n_rows = len(joined["slot"])
    if n_rows == 0:
        return None
    target = joined["target"]
    return {
        **joined, "step": np.full(n_rows, step, dtype=np.int32),
        "target": np.ma.masked_array(target, mask=target < 0),
    }  # fmt: skip


def _padding_to_first(shift_BT: np.ndarray, segment_BT: np.ndarray) -> np.ndarray:
    """What was written through padding stands at the row's first token, so that tokens sum to the example."""
    padding, rows = segment_BT < 0, np.arange(len(segment_BT))
    moved = np.where(padding, 0.0, shift_BT)
    moved[rows, padding.argmin(1)] += np.where(padding, shift_BT, 0.0).sum(1)
    return moved


_TOKEN_COLUMNS = ("slot", "position", "token", "target", "surprise_nats", "entropy_nats", "shift", "write")


def _stat(record: Record, name: str, shape: tuple[int, int]) -> np.ndarray:
    return record.stats[name].float().cpu().numpy() if record.stats else np.full(shape, math.nan)


def _positions(segment_BT: np.ndarray) -> np.ndarray:
    """Position of every token within its own example."""
    change = np.ones(segment_BT.shape, dtype=bool)
    change[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
    index = np.broadcast_to(np.arange(segment_BT.shape[1]), segment_BT.shape)
    start = np.maximum.accumulate(np.where(change, index, 0), axis=1)
    return index - start


def step_accounts(books: StepBooks) -> dict[str, float | None]:
    """The accounts of a row of `steps`."""
    return {
        "update_l2": books.update_l2, "data_shift": books.data, "carry_shift": books.carry,
        "decay_shift": books.decay, "unmeasured_shift": books.unmeasured, "unexplained_shift": books.unexplained,
        "interaction_shift": books.interaction, "rounding_shift": books.rounding, "closure": books.closure,
    }  # fmt: skip


def part_columns(step: int, layout: Layout, books: StepBooks) -> dict[str, Any]:
    """Columns of `parts`."""
    n = len(layout.addresses)
    return {
        "step": [step] * n,
        "address": [str(a) for a in layout.addresses],
        "update_l2": books.part_update2.clamp_min(0).sqrt().cpu().numpy(),
        "weight_l2": books.part_weight2.clamp_min(0).sqrt().cpu().numpy(),
        "data_shift": books.part_data.cpu().numpy(),
        "carry_shift": books.part_carry.cpu().numpy(),
        "decay_shift": books.part_decay.cpu().numpy(),
    }


def visit_part_columns(
    step: int, layout: Layout, records: list[Record], books: StepBooks | None, weights: list[float]
) -> dict[str, Any]:
    """Columns of `visit_parts`: every visit times every address."""
    squared = torch.cat([r.push2_NA for r in records]).clamp_min(0).cpu().numpy()
    n, a = squared.shape
    omega = np.abs(np.where(np.isnan(weights), 1.0, weights))[:, None]
    shift = np.concatenate([s.cpu().numpy() for s in books.shift_NA]) if books else np.full((n, a), math.nan)
    names = [str(x) for x in layout.addresses]
    return {
        "step": np.full(n * a, step, dtype=np.int32),
        "slot": np.repeat(np.arange(n, dtype=np.int32), a),
        "address": names * n,
        "push": _short((np.sqrt(squared) / omega).ravel()),
        "shift": _short(shift.ravel()),
    }


def token_part_columns(
    step: int, layout: Layout, records: list[Record], books: StepBooks, kept: list[bool], addresses: list[int]
) -> dict[str, Any] | None:
    """Columns of `token_parts`: the shift through every token in some addresses, for the visits whose flag is true.

    Args:
        addresses: their places in `Layout.addresses`.
    """
    pieces: list[tuple[np.ndarray, ...]] = []
    base, inverse = 0, 1.0 / books.update_l2 if books.update_l2 else 0.0
    for record, shift_BTK in zip(records, project_tokens(records, books.directions, addresses)):
        segment = record.caught.segment_BT.cpu().numpy()
        where = np.array(kept[base : base + record.caught.n_slots] + [False])[segment]
        for k, address in enumerate(addresses):
            shift = shift_BTK[..., k].cpu().numpy() * inverse
            shift = shift if record.caught.packed else _padding_to_first(shift, segment)
            n = int(where.sum())
            names = np.full(n, str(layout.addresses[address]), dtype=object)
            pieces.append(((segment + base)[where], _positions(segment)[where], names, _short(shift[where])))
        base += record.caught.n_slots
    slot, position, names, shift = (np.concatenate(column) for column in zip(*pieces))
    if len(slot) == 0:
        return None
    steps = np.full(len(slot), step, dtype=np.int32)
    return {"step": steps, "slot": slot, "position": position, "address": names, "shift": shift}


def visit_credit_columns(step: int, layout: Layout, probe: str, ids: list[str], credit_NA: np.ndarray) -> dict[str, Any]:
    """Columns of `visit_credits`: every visit times every address."""
    n, a = credit_NA.shape
    return {
        "step": np.full(n * a, step, dtype=np.int32),
        "slot": np.repeat(np.arange(n, dtype=np.int32), a),
        "probe": [probe] * (n * a),
        "address": [str(x) for x in layout.addresses] * n,
        "example": np.repeat(np.array(ids, dtype=object), a),
        "credit_nats": _short(credit_NA.ravel()),
    }


def _short(values: np.ndarray) -> np.ndarray:
    """Single precision inside a double column: it compresses to half the size."""
    return values.astype(np.float32).astype(np.float64)
