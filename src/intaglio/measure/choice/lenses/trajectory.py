"""Between the tokens: the way of the last position's state through the layers, and what it would say on the way.  [torch]

    lens(l) = unembed(final norm(state after l layers));  candidates = exp(entropy of its softmax)

With a second prompt of as many tokens, what the last position reads of the tokens before it is swapped,
layer by layer, for what they left in the other run; only the last position runs again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured
from intaglio.measure.choice.runs import ROWS, Kept, keys_and_values, resumed
from intaglio.measure.choice.tuned import TunedLens
from intaglio.model.capture import Capture
from intaglio.model.modes import evaluating
from intaglio.model.proof import raw_logits, shaped

FEW = 10.0  # candidates


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Steps, lenses and decision layer; the swap where a second prompt of as many tokens is there."""
    states_SD = states(found.base)
    log_p_SV = lens(found, states_SD)
    rows = [{**step, **read} for step, read in zip(_steps(states_SD.double()), _read(found, log_p_SV))]
    chosen = int(found.logits_V.argmax())
    tuned = _tuned(found, given.tuned, states_SD, rows, chosen)
    lengths = [r["step"] for r in rows[1:]]
    numbers: dict[str, Any] = {
        "chosen": found.written(chosen), "target_chosen": chosen == found.target,
        "decided": settled([r["token"] == chosen for r in rows]), "layers": len(rows) - 1,
        "few": settled([r["candidates"] < FEW for r in rows]), "path": sum(lengths),
        "distance": float((states_SD[-1] - states_SD[0]).double().norm()),
        "square": sum(x * x for x in lengths) ** 0.5,
        "tuned": tuned,
    }  # fmt: skip
    numbers["swap"], swapped = _swap(found, given.versus_prompt)
    return Measured(numbers, {"states": rows, "swap": swapped})


def _tuned(
    found: Decision, reader: TunedLens | None, states_SD: Tensor, rows: list[dict[str, Any]], chosen: int
) -> dict[str, Any] | None:
    """What the tuned lens reads in the same states, put beside the logit lens in `rows`."""
    if reader is None:
        return None
    read = _read(found, lens(found, reader.translate(states_SD).to(states_SD.dtype)))
    for row, seen in zip(rows, read):
        row |= {f"tuned_{name}": value for name, value in seen.items()}
    return {
        "decided": settled([r["token"] == chosen for r in read]), "fitted_tokens": reader.tokens,
        "held_out_kl_nats": sum(reader.tuned_kl_nats) / len(reader.tuned_kl_nats),
        "logit_held_out_kl_nats": sum(reader.logit_kl_nats) / len(reader.logit_kl_nats),
    }  # fmt: skip


def states(seen: Capture, position: int = -1) -> Tensor:
    """(S, D) one position's residual: as it enters the first layer, then after every layer."""
    return torch.stack([layer.resid_BTD[0, position] for layer in seen.layers] + [seen.final_BTD[0, position]])


def lens(found: Decision, states_SD: Tensor) -> Tensor:
    """(S, V) log-probabilities if the model ended there."""
    with evaluating(found.anatomy.model):
        normed_SD = found.anatomy.norm(states_SD[None])[0]
    return shaped(found.anatomy, raw_logits(found.anatomy, normed_SD)).double().log_softmax(-1)


def settled(holds: list[bool]) -> int | None:
    """From which state on it holds to the end; None where it does not hold at the end."""
    if not holds[-1]:
        return None
    return len(holds) - next((i for i, held in enumerate(reversed(holds)) if not held), len(holds))


def _steps(states_SD: Tensor) -> list[dict[str, Any]]:
    rows = []
    for i, state_D in enumerate(states_SD):
        before = states_SD[i - 1] if i else None
        rows.append({
            "after": i - 1 if i else None, "length": float(state_D.norm()),
            "step": None if before is None else float((state_D - before).norm()),
            "turn_degrees": None if before is None else _degrees(state_D, before),
            "to_end_degrees": _degrees(state_D, states_SD[-1]),
        })  # fmt: skip
    return rows


def _degrees(a_D: Tensor, b_D: Tensor) -> float:
    """The angle between two vectors; by the half-angle formula, which is exact for small angles too."""
    a_D, b_D = a_D / a_D.norm().clamp_min(1e-30), b_D / b_D.norm().clamp_min(1e-30)
    return float(torch.rad2deg(2 * torch.atan2((a_D - b_D).norm(), (a_D + b_D).norm())))


def _read(found: Decision, log_p_SV: Tensor) -> list[dict[str, Any]]:
    """What the lens reads in every state."""
    p_SV = log_p_SV.exp()
    entropy_S, (best_S, top_S) = -(p_SV * log_p_SV).nan_to_num().sum(-1), p_SV.max(-1)
    rank_S, other_S = (
        None if token is None else (p_SV > p_SV[:, token, None]).sum(-1) for token in (found.target, found.against)
    )
    kl_S = (p_SV[-1] * (log_p_SV[-1] - log_p_SV)).nan_to_num().sum(-1)
    return [
        {"token": int(top_S[i]), "top": found.written(int(top_S[i])), "probability": float(best_S[i]),
         "target": float(p_SV[i, found.target]), "rank": int(rank_S[i]),
         "against_rank": None if other_S is None else int(other_S[i]),
         "candidates": float(entropy_S[i].exp()), "kl_nats": max(0.0, float(kl_S[i]))}
        for i in range(len(p_SV))
    ]  # fmt: skip


def _swap(found: Decision, other: Decision | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """For each layer: the difference when the other prompt's keys and values are read there only, or there and in all later."""
    if other is None:
        return {"why_not": "no_versus"}, []
    if len(other.ids) != len(found.ids):
        return {"why_not": "length", "tokens": len(found.ids), "others": len(other.ids)}, []
    if found.anatomy.bypasses:
        return {"why_not": "unseen"}, []
    last = len(found.ids) - 1
    differs = [i for i in range(last) if found.ids[i] != other.ids[i]]
    if not differs:
        return {"why_not": "same"}, []
    layers = found.anatomy.n_layers
    only, after = (swapped_logits(found, other, way) for way in ("only", "from"))
    chosen = int(found.logits_V.argmax())
    kept = settled([int(logits.argmax()) == chosen for logits in after] + [True])
    rows = [
        {"layer": i, "only_logits": float(found.question.of(only[i : i + 1])),
         "from_logits": float(found.question.of(after[i : i + 1])), "only_top": found.written(int(only[i].argmax())),
         "from_top": found.written(int(after[i].argmax()))}
        for i in range(layers)
    ]  # fmt: skip
    return {
        "begin": differs[0], "stop": last, "carries_from": kept, "was_logits": float(found.votes.difference_B[0]),
        "other_logits": float(found.question.of(other.base.logits_BTV[:, -1])),
        "other_top": found.written(int(other.logits_V.argmax())),
    }, rows  # fmt: skip


def swapped_logits(found: Decision, other: Decision, way: str) -> Tensor:
    """(L, V) logits when the last position reads what the tokens before it left in the other run.

    Args:
        way: "only" in layer l, or "from" layer l on.
    """
    anatomy, last = found.anatomy, len(found.ids) - 1
    mine, theirs = (keys_and_values(anatomy, run, last) for run in (found.base, other.base))
    chunks = []
    for start in range(0, anatomy.n_layers, ROWS):
        layers = range(start, min(start + ROWS, anatomy.n_layers))
        kept: Kept = {}
        for i, block in enumerate(anatomy.blocks):
            taken = [i == at if way == "only" else i >= at for at in layers]
            kept[block.attn] = tuple(
                torch.cat([t if take else m for take in taken]) for m, t in zip(mine[block.attn], theirs[block.attn])
            )
        with evaluating(anatomy.model):
            chunks.append(resumed(anatomy, found.base, len(layers), 0, last, last + 1, kept))
    return torch.cat(chunks)
