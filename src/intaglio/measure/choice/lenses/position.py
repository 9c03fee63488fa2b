"""Does order matter here: neighbouring words swapped, words shuffled, sentences reversed, all positions shifted.  [torch]"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.lenses.context import sentences_of, special_positions
from intaglio.measure.choice.pieces import words
from intaglio.measure.choice.variants import run_variants
from intaglio.model.modes import evaluating

PAIRS = 24  # swaps tried, the last ones
SHUFFLES = 4
SHIFTS = (1, 8, 64, 512)


def measure(found: Decision, given: Given) -> Measured:
    """The logit difference after each change of order, and after a shift of all positions."""
    texts = [found.text([i]) for i in found.ids]
    special = special_positions(found)
    spans = [w for w in words(texts, special) if texts[w[0]][:1].isspace()] or words(texts, special)
    pairs = [(a, b) for a, b in pairwise(spans) if a[1] == b[0]][-PAIRS:]
    if not pairs:
        raise Skip("one_word")
    now = float(found.question.of(found.logits_V[None]))
    orders = [[*range(a[0]), *range(*b), *range(*a), *range(b[1], len(found.ids))] for a, b in pairs]
    orders += _shuffled(len(found.ids), spans, given.seed)
    turned = _reversed(len(found.ids), [(p.begin, p.end) for p in sentences_of(found)])
    orders += [turned] if turned else []
    seen = run_variants(found.anatomy, found.ids, [[found.ids[i] for i in order] for order in orders])
    after, first = found.question.of(seen.logits_NV).tolist(), seen.logits_NV.argmax(-1).tolist()
    base = int(found.logits_V.argmax())
    swaps = [
        {"begin": a[0], "end": b[1], "left": found.text(found.ids[slice(*a)]), "right": found.text(found.ids[slice(*b)]),
         "difference_logits": after[i], "change_logits": after[i] - now, "first": found.written(first[i]),
         "first_changed": first[i] != base, "distance": len(found.ids) - b[1]}
        for i, (a, b) in enumerate(pairs)
    ]  # fmt: skip
    shuffles = range(len(pairs), len(pairs) + (SHUFFLES if len(spans) > 3 else 0))
    shifts = shifted(found, now)
    numbers = {
        "difference_logits": now, "pairs": len(pairs), "kind": positions_kind(found),
        "mean_change": sum(abs(r["change_logits"]) for r in swaps) / len(swaps), "shuffles": len(shuffles),
        "shuffled_mean": sum(after[i] for i in shuffles) / len(shuffles) if shuffles else None,
        "shuffled_first": sum(first[i] != base for i in shuffles),
        "reversed": after[-1] if turned else None, "reversed_first": found.written(first[-1]) if turned else None,
        "reversed_changed": bool(turned) and first[-1] != base,
    }  # fmt: skip
    return Measured(numbers, {"swaps": swaps, "shifts": shifts})


def _shuffled(length: int, spans: list[tuple[int, int]], seed: int) -> list[list[int]]:
    """Random orders of the words before the last, in the places of the words."""
    if len(spans) < 4:
        return []
    draw, inner = torch.Generator().manual_seed(seed), spans[:-1]
    orders = []
    for _ in range(SHUFFLES):
        mixed = [inner[i] for i in torch.randperm(len(inner), generator=draw).tolist()]
        orders.append(_replaced(length, inner, mixed))
    return orders


def _reversed(length: int, spans: list[tuple[int, int]]) -> list[int] | None:
    """All sentences but the last in reverse order; None where fewer than two stand side by side before it."""
    spans = spans[:-1]
    if len(spans) < 2 or any(a[1] != b[0] for a, b in pairwise(spans)):
        return None
    return _replaced(length, spans, spans[::-1])


def _replaced(length: int, spans: list[tuple[int, int]], mixed: list[tuple[int, int]]) -> list[int]:
    """An order of all positions in which the spans stand in another order and all else stays between them."""
    order, at = [], 0
    for old, new in zip(spans, mixed):
        order += [*range(at, old[0]), *range(*new)]
        at = old[1]
    return [*order, *range(at, length)]


def positions_kind(found: Decision) -> str:
    """How the model learns of positions: `learnt` vectors, `relative` (from position_ids), or `fixed` (not to be moved)."""
    takes = "position_ids" in inspect.signature(found.anatomy.model.forward).parameters
    return "learnt" if takes and found.anatomy.positions is not None else "relative" if takes else "fixed"


@torch.no_grad()
def shifted(found: Decision, now: float) -> list[dict[str, Any]]:
    """The difference with k added to every position, for the k that the context still holds."""
    if positions_kind(found) == "fixed":
        return []
    model, length = found.anatomy.model, len(found.ids)
    rows = []
    for k in (k for k in SHIFTS if k + length <= found.context):
        with evaluating(model):
            positions = torch.arange(k, k + length, device=found.ids_BT.device)[None]
            logits = model(found.ids_BT, position_ids=positions, use_cache=False).logits[:, -1].double()
        difference = float(found.question.of(logits))
        rows.append({"shift": k, "difference_logits": difference, "change_logits": difference - now,
                     "first": found.written(int(logits.argmax()))})  # fmt: skip
    return rows
