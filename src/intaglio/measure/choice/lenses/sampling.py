"""How a token is taken: who survives each setting, what each writes, the beam tree, contrastive search.  [torch]"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from intaglio.measure.choice.decision import Decision, ends_of
from intaglio.measure.choice.decoding import (
    Beams,
    Setting,
    Started,
    beam_search,
    continuations,
    contrastive_search,
    processed,
    start,
)  # fmt: skip
from intaglio.measure.choice.lenses import Given, Measured
from intaglio.measure.choice.rows import CANDIDATES
from intaglio.model.modes import evaluating

SETTINGS = (
    Setting("unchanged"), Setting("greedy", draw=False), Setting("top_k", top_k=5), Setting("top_k", top_k=50),
    Setting("top_p", top_p=0.5), Setting("top_p", top_p=0.9), Setting("min_p", min_p=0.05), Setting("min_p", min_p=0.1),
    Setting("mixed", temperature=0.7, top_p=0.9), Setting("mixed", temperature=1.5, min_p=0.1),
    Setting("penalty", penalty=1.1), Setting("penalty", penalty=1.3),
)  # fmt: skip
WRITTEN = (  # a setting and how many seeds
    (Setting("greedy", draw=False), 1), (Setting("penalised", draw=False, penalty=1.3), 1), (Setting("unchanged"), 3),
    (Setting("top_k", top_k=50), 2), (Setting("mixed", temperature=0.7, top_p=0.9), 2),
    (Setting("mixed", temperature=1.5, min_p=0.1), 2),
)  # fmt: skip
STEPS, BEAM_STEPS, WIDTH, K, ALPHA = 12, 8, 4, 4, 0.6
SHOWN = 8
SLIDER = [round(0.1 + 0.05 * i, 2) for i in range(39)]  # temperatures the page's slider can stand at


def measure(found: Decision, given: Given) -> Measured:
    """Survivors of each setting, exact; continuations, beams and contrastive search from the decision on."""
    logits = found.logits_V
    order = logits.argsort(descending=True, stable=True).tolist()
    shown = order[:SHOWN] + [t for t in (found.target, found.against) if t is not None and t not in order[:SHOWN]]
    settings = [*SETTINGS, *shipped(found.anatomy.model)]
    numbers = {
        "vocabulary": len(logits), "slider": SLIDER, "rest_log": [rest_log(logits, t) for t in SLIDER],
        **_flip(found), "first": found.written(order[0]), "steps": 0, "width": WIDTH, "k": K, "alpha": ALPHA,
    }  # fmt: skip
    tables = {
        "shown": [{"token": t, "text": found.written(t)} for t in shown],
        "survivors": [survivors(found, s, shown) for s in settings], "thresholds": thresholds(found, shown),
    }  # fmt: skip
    numbers["steps"] = max(0, min(STEPS, found.context - len(found.ids)))
    if numbers["steps"]:
        prompt, ends = start(found.anatomy, found.ids), ends_of(found.anatomy.model)
        tables["texts"] = texts(found, prompt, given.seed, numbers["steps"], ends)
        _beams(found, prompt, numbers, tables, ends)
        _contrast(found, prompt, numbers, tables, ends)
    return Measured(numbers, tables)


def shipped(model: Any) -> list[Setting]:
    """The setting that the model's own generation_config asks for, if it asks for any."""
    config, names = getattr(model, "generation_config", None), {"repetition_penalty": "penalty"}
    values = {}
    for name, neutral in {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}.items():
        value = getattr(config, name, None)
        if value is not None and value != neutral and value > 0:
            values[names.get(name, name)] = int(value) if name == "top_k" else float(value)
    return [Setting("shipped", draw=bool(config.do_sample), **values)] if values else []


def survivors(found: Decision, setting: Setting, shown: list[int]) -> dict[str, Any]:
    """How many tokens a setting keeps, how much probability they had, and what some have afterwards."""
    scores = processed(found.logits_V, setting, found.ids)
    if not setting.draw:
        best = int(scores.argmax())
        scores = torch.full_like(scores, float("-inf")).index_fill(0, torch.tensor([best], device=scores.device), 0.0)
    uncut = dataclasses.replace(setting, top_k=0, top_p=1.0, min_p=0.0)
    before = processed(found.logits_V, uncut, found.ids).softmax(0)
    kept, after = scores > float("-inf"), scores.softmax(0)
    return {
        **_named(setting), "kept": int(kept.sum()), "mass": float(before[kept].sum()), "first": int(after.argmax()),
        "first_text": found.written(int(after.argmax())), "shares": [float(after[t]) if kept[t] else None for t in shown],
    }  # fmt: skip


def _named(setting: Setting) -> dict[str, Any]:
    return {f.name: getattr(setting, f.name) for f in dataclasses.fields(setting)}


def thresholds(found: Decision, shown: list[int]) -> list[dict[str, Any]]:
    """For each token the weakest setting that cuts it, at T = 1: it survives k >= top_k, p > top_p, m <= min_p."""
    p = found.logits_V.softmax(0)
    return [
        {"token": t, "text": found.written(t), "probability": float(p[t]), "top_k": int((p > p[t]).sum()) + 1,
         "top_p": float(p[p > p[t]].sum()), "min_p": float(p[t] / p.max()), "seen": t in found.ids}
        for t in shown
    ]  # fmt: skip


def rest_log(logits_V: Tensor, temperature: float) -> float | None:
    """log of the weight at T of all tokens that are not stored, the likeliest token's being 1; None if all are."""
    ordered = logits_V.sort(descending=True).values
    rest = (ordered[CANDIDATES:] - ordered[0]) / temperature
    return float(rest.logsumexp(0)) if len(rest) else None


def _flip(found: Decision) -> dict[str, Any]:
    """The repetition penalty from which the likeliest token is no longer first, and who is first then.

    Tokens of the text keep their order among themselves, the others keep their logits, so the
    first loses to the best token that is not in the text.
    """
    logits, seen = found.logits_V, sorted(set(found.ids))
    first = int(logits.argmax())
    fresh = logits.clone()
    fresh[torch.tensor([t for t in seen if t < len(logits)], device=logits.device)] = float("-inf")
    other = int(fresh.argmax())
    best, next_ = float(logits[first]), float(fresh[other])
    out = {"first_seen": first in seen, "flip_penalty": None, "flip_text": found.written(other)}
    if first in seen and next_ > float("-inf") and best * next_ > 0:
        out["flip_penalty"] = best / next_ if best > 0 else next_ / best
    return out


def texts(found: Decision, prompt: Started, seed: int, steps: int, ends: frozenset[int]) -> list[dict[str, Any]]:
    """What each setting writes after the prompt."""
    wanted = [(s, seed + i if s.draw else None) for s, count in WRITTEN for i in range(count)]
    return [
        {**_named(d.setting), "seed": d.seed, "tokens": d.tokens, "text": found.text(d.tokens), "nats": d.nats,
         "nats_per_token": d.nats / len(d.tokens)}
        for d in continuations(found.anatomy, prompt, wanted, steps=steps, ends=ends)
    ]  # fmt: skip


def _beams(found: Decision, prompt: Started, numbers: dict, tables: dict, ends: frozenset[int]) -> None:
    steps = min(BEAM_STEPS, numbers["steps"])
    seen = beam_search(found.anatomy, prompt, width=WIDTH, steps=steps, ends=ends)
    best = seen.finished[0][1]
    greedy = tables["texts"][0]["tokens"][:steps]
    tables["beams"] = _nodes(found, seen, best)
    tables["finished"] = [{"text": found.text(ids), "score": s, "nats": -s * len(ids)} for s, ids in seen.finished]
    numbers |= {
        "beam_steps": steps, "beam_same": best == greedy, "beam_nats": -seen.finished[0][0] * len(best), "beam_tokens": len(best),
        "beam_text": found.text(best), "greedy_text": found.text(greedy), "greedy_nats": _nats(found, prompt, greedy),
    }  # fmt: skip


def _nats(found: Decision, prompt: Started, tokens: list[int]) -> float:
    """Surprise of a continuation, by one run over it."""
    ids = torch.tensor([[*prompt.ids, *tokens]], device=found.ids_BT.device)
    with torch.no_grad(), evaluating(found.anatomy.model):
        log_p = found.anatomy.model(ids).logits[0, len(prompt.ids) - 1 : -1].double().log_softmax(-1)
    return -float(log_p.gather(1, ids[0, len(prompt.ids) :, None]).sum())


def _nodes(found: Decision, seen: Beams, best: list[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    paths: list[list[int]] = [[]]
    for step, nodes in enumerate(seen.steps):
        grown = [[*paths[n.parent], n.token] for n in nodes]
        rows += [
            {"step": step, "place": i, "parent": n.parent, "token": n.token, "text": found.written(n.token), "score": n.score,
             "ended": n.ended, "best": grown[i] == best[: step + 1]}
            for i, n in enumerate(nodes)
        ]  # fmt: skip
        paths = grown
    return rows


def _contrast(found: Decision, prompt: Started, numbers: dict, tables: dict, ends: frozenset[int]) -> None:
    steps = min(BEAM_STEPS, numbers["steps"])
    seen = contrastive_search(found.anatomy, prompt, k=K, alpha=ALPHA, steps=steps, ends=ends)
    numbers["contrast_text"] = found.text(seen.tokens)
    numbers["contrast_first"] = found.written(seen.tokens[0])
    numbers["contrast_same"] = seen.tokens[0] == int(found.logits_V.argmax())
    tables["contrast"] = [
        {"token": t, "text": found.written(t), "probability": p, "likeness": like, "score": score}
        for t, p, like, score in seen.first
    ]
