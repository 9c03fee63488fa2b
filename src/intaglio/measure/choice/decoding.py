"""From a distribution to text: temperature, cuts, penalties, drawing, beams, contrastive search.  [torch]

The arithmetic is written from the definitions and acts on the logits alone; the tests hold it
against transformers' processors and `generate`. Prompts run once, their keys and values are reused.
Sources: top-k (Fan et al. 1805.04833), top-p (Holtzman et al. 1904.09751), min-p (Nguyen et al. 2407.01082),
repetition penalty (Keskar et al. 1909.05858), contrastive search (Su et al. 2202.06417).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intaglio.model.anatomy import Anatomy
from intaglio.model.capture import first_output
from intaglio.model.modes import evaluating


@dataclass(frozen=True)
class Setting:
    """How a token is taken from the logits; the defaults change nothing.

    Steps act in transformers' order: penalty, temperature, top-k, top-p, min-p.
    """

    name: str
    draw: bool = True  # False: take the likeliest
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalty: float = 1.0


def processed(logits_V: Tensor, setting: Setting, seen: Sequence[int] = ()) -> Tensor:
    """(V,) scores in double precision, -inf where a token is cut."""
    scores = logits_V.double()
    if setting.penalty != 1.0:
        scores = penalised(scores, setting.penalty, seen)
    if setting.temperature != 1.0:
        scores = scores / setting.temperature
    if setting.top_k:
        scores = _without(scores, scores < scores.topk(min(setting.top_k, len(scores))).values[-1])
    if setting.top_p < 1.0:
        scores = _without(scores, ~nucleus(scores, setting.top_p))
    if setting.min_p:
        p = scores.softmax(0)
        scores = _without(scores, p < setting.min_p * p.max())
    return scores


def penalised(scores_V: Tensor, penalty: float, seen: Sequence[int]) -> Tensor:
    """Scores of tokens already in the text, divided by the penalty where positive, multiplied where negative."""
    scores = scores_V.clone()
    at = torch.tensor(sorted(set(seen)), dtype=torch.long, device=scores.device)
    at = at[at < len(scores)]
    scores[at] = torch.where(scores[at] < 0, scores[at] * penalty, scores[at] / penalty)
    return scores


def nucleus(scores_V: Tensor, top_p: float) -> Tensor:
    """(V,) whether a token is in the smallest set of likeliest tokens that holds `top_p`."""
    ordered, at = scores_V.softmax(0).sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    return torch.empty_like(before, dtype=torch.bool).scatter(0, at, before < top_p)


def _without(scores_V: Tensor, cut_V: Tensor) -> Tensor:
    return scores_V.masked_fill(cut_V, float("-inf"))


@dataclass(eq=False)
class Started:
    """A prompt that has been run: its next logits, its last states, its keys and values."""

    ids: list[int]
    logits_BV: Tensor
    states_BTD: Tensor  # after the final norm
    cache: Any

    def times(self, rows: int) -> Started:
        """The same prompt in `rows` rows, the original untouched."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return Started(self.ids, self.logits_BV.expand(rows, -1), self.states_BTD.expand(rows, -1, -1), cache)


@torch.no_grad()
def start(anatomy: Anatomy, ids: Sequence[int]) -> Started:
    """Run the prompt once."""
    logits, states, cache = _step(anatomy, torch.tensor([list(ids)], device=anatomy.unembed.weight.device), None)
    return Started(list(ids), logits, states, cache)


def _step(anatomy: Anatomy, given_BT: Tensor, cache: Any) -> tuple[Tensor, Tensor, Any]:
    """Logits after the last token given, the normed states of all given, the cache grown by them."""
    kept: list[Tensor] = []
    handle = anatomy.norm.register_forward_hook(lambda m, i, o: kept.append(first_output(o)))
    try:
        with evaluating(anatomy.model):
            out = anatomy.model(given_BT, past_key_values=cache, use_cache=True)
    finally:
        handle.remove()
    return out.logits[:, -1].float(), kept[-1].view(*given_BT.shape, -1), out.past_key_values


@dataclass(frozen=True)
class Drawn:
    """One continuation; `nats` is its surprise under the unchanged distribution."""

    setting: Setting
    seed: int | None
    tokens: list[int]
    nats: float


@torch.no_grad()
def continuations(
    anatomy: Anatomy, prompt: Started, wanted: Sequence[tuple[Setting, int | None]], *, steps: int, ends: frozenset[int]
) -> list[Drawn]:
    """A continuation for each (setting, seed), all side by side, each with a random generator of its own.

    Equal to `generate` with the same settings after `torch.manual_seed(seed)`.
    """
    device = prompt.logits_BV.device
    draws = [torch.Generator(device).manual_seed(seed or 0) for _, seed in wanted]
    texts: list[list[int]] = [[] for _ in wanted]
    nats = [0.0] * len(wanted)
    now = prompt.times(len(wanted))
    logits, cache = now.logits_BV, now.cache
    for step in range(steps):
        log_p = logits.log_softmax(-1)
        for row, (setting, _) in enumerate(wanted):
            if texts[row] and texts[row][-1] in ends:
                continue
            token = _taken(processed(logits[row], setting, [*prompt.ids, *texts[row]]), setting, draws[row])
            texts[row].append(token)
            nats[row] -= float(log_p[row, token])
        if step + 1 < steps:
            given = torch.tensor([[text[-1]] for text in texts], device=device)
            logits, _, cache = _step(anatomy, given, cache)
    return [Drawn(setting, seed, text, n) for (setting, seed), text, n in zip(wanted, texts, nats)]


def _taken(scores_V: Tensor, setting: Setting, draw: torch.Generator) -> int:
    if not setting.draw:
        return int(scores_V.argmax())
    return int(torch.multinomial(scores_V.float().softmax(0)[None], 1, generator=draw))


@dataclass(frozen=True)
class Beam:
    """A node of the beam tree: `parent` is its place among the beams of the step before.

    Attributes:
        score: log-probability of all tokens so far, nats.
        ended: it closed with an end token, or the length was reached.
    """

    parent: int
    token: int
    score: float
    ended: bool


@dataclass(frozen=True)
class Beams:
    """A beam search: its nodes step by step, and the finished texts, best score per token first."""

    steps: list[list[Beam]]
    finished: list[tuple[float, list[int]]]  # log-probability / length**length_penalty


@torch.no_grad()
def beam_search(
    anatomy: Anatomy, prompt: Started, *, width: int, steps: int, ends: frozenset[int], length_penalty: float = 1.0
) -> Beams:
    """The beam tree of `generate(num_beams=width, do_sample=False)`."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    logits, cache, tree = prompt.logits_BV, copy.deepcopy(prompt.cache), []
    for step in range(steps):
        totals = logits.log_softmax(-1) + torch.tensor([s for s, _ in running], device=logits.device)[:, None]
        best = totals.flatten().topk(min(max(2, 1 + len(ends)) * width, totals.numel()))
        nodes = []
        for score, at in zip(best.values.tolist(), best.indices.tolist()):
            token = at % totals.shape[1]
            nodes.append(Beam(at // totals.shape[1], token, score, token in ends or step + 1 == steps))
        finished += [(n.score / (step + 1) ** length_penalty, [*running[n.parent][1], n.token]) for n in nodes[:width] if n.ended]
        finished = sorted(finished, key=lambda f: -f[0])[:width]
        alive = [n for n in nodes if not n.ended][:width]
        tree.append([n for n in nodes[:width] if n.ended] + alive)
        running = [(n.score, [*running[n.parent][1], n.token]) for n in alive]
        if not running or (len(finished) == width and running[0][0] / (step + 1) ** length_penalty <= finished[-1][0]):
            break
        cache.batch_select_indices(torch.tensor([n.parent for n in alive], device=logits.device))
        logits, _, cache = _step(anatomy, torch.tensor([[n.token] for n in alive], device=logits.device), cache)
    return Beams([_placed(before, nodes) for before, nodes in zip([[], *tree], tree)], finished)


def _placed(before: list[Beam], nodes: list[Beam]) -> list[Beam]:
    """Parents counted among all nodes of the step before, the ended ones included."""
    alive = [i for i, n in enumerate(before) if not n.ended]
    return [Beam(alive[n.parent] if before else 0, n.token, n.score, n.ended) for n in nodes]


@dataclass(frozen=True)
class Contrasted:
    """Contrastive search: its text, and the candidates of the first step as (token, probability, likeness, score)."""

    tokens: list[int]
    first: list[tuple[int, float, float, float]] = field(default_factory=list)


@torch.no_grad()
def contrastive_search(
    anatomy: Anatomy, prompt: Started, *, k: int, alpha: float, steps: int, ends: frozenset[int]
) -> Contrasted:
    """Of the k likeliest tokens take the one with the largest (1 - alpha) p - alpha max cos(its state, any earlier state)."""
    text: list[int] = []
    first: list[tuple[int, float, float, float]] = []
    logits, cache, states = prompt.logits_BV[:1], copy.deepcopy(prompt.cache), prompt.states_BTD[0]
    for _ in range(steps):
        p = logits[0].softmax(0).topk(min(k, logits.shape[-1]))
        cache.batch_repeat_interleave(len(p.indices))
        ahead, state_BTD, cache = _step(anatomy, p.indices[:, None], cache)
        likeness = torch.nn.functional.cosine_similarity(state_BTD, states[None], dim=-1).amax(-1)
        score = (1 - alpha) * p.values - alpha * likeness
        best = int(score.argmax())
        first = first or list(zip(p.indices.tolist(), p.values.tolist(), likeness.tolist(), score.tolist()))
        text.append(int(p.indices[best]))
        if text[-1] in ends:
            break
        cache.batch_select_indices(torch.tensor([best], device=logits.device))
        logits, states = ahead[best : best + 1], torch.cat([states, state_BTD[best]])
    return Contrasted(text, first)
