"""Credits: what each example's part of the step did to a probe's loss, to first order.  [torch]

credit_i = -<grad L_q, c_i> (In-Run Data Shapley 2406.11011, TracIn 2002.08484), with the same
accounts beside it as the step itself: carry, decay, unmeasured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intaglio.measure.books import Directions, groups_of, project
from intaglio.measure.collect import Record
from intaglio.measure.rules import Rule, denominator, rule_for
from intaglio.measure.settle import Snapshot, projection_factor
from intaglio.model.layout import Layout, Weight


@dataclass(eq=False)
class CreditAccounts:
    """The probe's predicted fall from everything but the examples, and the directions for those."""

    directions: Directions
    carry: float = 0.0
    decay: float = 0.0
    unmeasured: float = 0.0


def prepare(
    layout: Layout,
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    gradient: dict[int, Tensor],
    *,
    rule_name: str,
    scales: dict[int, float],
    foreign: set[int],
) -> CreditAccounts:
    """Accounts of one probe, while the snapshot still holds the momentum; `gradient` is used up."""
    accounts, groups = CreditAccounts(Directions()), groups_of(optimizer)
    halves: dict[int, Tensor] = {}
    for weight in layout.weights:
        p, key = weight.param, id(weight.param)
        if key not in snapshot.moved:
            continue
        g = gradient[key]
        if rule_name == "other":  # the part of the step along the gradient is the data's, the rest nobody's
            along = 0.0 if key in foreign else projection_factor(p, snapshot)
            step = p.detach().float() - snapshot.theta[key].float()
            accounts.unmeasured -= _dot(g, step.sub_(p.grad.float(), alpha=along))
            if key not in foreign:
                _direct(accounts, halves, weight, g, -along * scales.get(key, 1.0))
            continue
        rule = rule_for(rule_name, groups[key], optimizer.state.get(p, {}), had_buffer=key in snapshot.had_buffer)
        direction = _over(g, rule, optimizer.state.get(p, {}), accounts, snapshot.theta[key])
        accounts.carry -= rule.carry * _dot(direction, snapshot.momentum[key])
        if key in foreign:
            accounts.unmeasured -= rule.data * _dot(direction, p.grad)
        else:
            _direct(accounts, halves, weight, direction, -rule.data * scales.get(key, 1.0))
    for site in layout.sites:
        if site.kind == "lora" and not halves.keys().isdisjoint(id(w.param) for w in (site.weight, site.lora_b)):
            a, b = (  # a half that did not move earns nothing
                halves[id(p)] if id(p) in halves else torch.zeros_like(p).float()
                for p in (site.weight.param, site.lora_b.param)
            )
            accounts.directions.lora[site.index] = (a[None], b[None])
    for p in layout.unmeasured.values():
        if id(p) in snapshot.moved:
            accounts.unmeasured -= _dot(gradient[id(p)], p.detach().float() - snapshot.theta[id(p)].float())
    return accounts


def _direct(accounts: CreditAccounts, halves: dict[int, Tensor], weight: Weight, direction: Tensor, factor: float) -> None:
    if weight.kind.startswith("lora"):
        halves[id(weight.param)] = direction.float() * factor
    else:
        accounts.directions.plain[id(weight.param)] = (direction, factor)


def _over(g: Tensor, rule: Rule, state: dict, accounts: CreditAccounts, before: Tensor) -> Tensor:
    """grad / D in place; books decay where it belongs, before or after the division."""
    if not rule.decay_over_denominator:
        accounts.decay -= rule.decay * _dot(g, before)
    d = denominator(rule, state, ...)
    if d is not None:
        g = g.div_(d)
    if rule.decay_over_denominator:
        accounts.decay -= rule.decay * _dot(g, before)
    return g


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.double().flatten() @ b.double().flatten())


def credit_of_visits(
    records: list[Record], accounts: CreditAccounts, *, by_part: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Credit of every visit of the step, nats of the probe's mean loss; NaN where no step was split among them.

    Args:
        by_part: also restrict the inner product to each address's slices (`visit_credits`).

    Returns:
        (N,) credits; and (N, A) the same by address, whose sum over addresses they are, or None.
    """
    n, a = sum(r.caught.n_slots for r in records), records[0].push2_NA.shape[1] if records else 0
    if not (accounts.directions.plain or accounts.directions.lora):
        return np.full(n, np.nan), np.full((n, a), np.nan) if by_part else None
    found, parts = [], []
    for record, (part_NA, tokens) in zip(records, project(records, accounts.directions, by_part=by_part)):
        segment = record.caught.segment_BT
        inside = segment >= 0
        total = torch.zeros(record.caught.n_slots, dtype=torch.float64, device=tokens.device)
        total.index_add_(0, segment[inside], tokens[inside])
        found.append(total.cpu().numpy())
        parts.append(part_NA.cpu().numpy())
    return np.concatenate(found), np.concatenate(parts) if by_part else None
