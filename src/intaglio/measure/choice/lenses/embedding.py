"""Embedding space: a token's neighbours in both matrices, and a word's way through the layers in two contexts.  [torch]

    likeness(l) = (cosine of the word's two states after l layers - n(l)) / (1 - n(l))
    n(l) = mean cosine of different tokens' states after l layers, in the same two texts

1: the two states point the same way; 0: they are no more alike than any two tokens there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from intaglio.data.vocab import token_bytes
from intaglio.measure.choice.contexts import Word, is_cyrillic, repeated, shared, weightiest, words_of
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured
from intaglio.measure.choice.lenses.trajectory import lens, settled, states
from intaglio.model.capture import Capture, capture

NEIGHBOURS = 8
PAIRS = 4000  # random pairs of rows for the null
READ_BEFORE = 48  # tokens of the reference text before a word found there or put there
STATES = 96  # last positions of each text whose states make the null
LEAST_BEFORE = 16
NAMED = 6  # tokens that each context makes likelier
HALF = 0.5  # likeness
SHOWN_BEFORE, SHOWN_AFTER = 44, 20  # letters of a context that are shown


@dataclass(frozen=True, eq=False)
class Place:
    """A word in a text that was run; its state is that of its last token."""

    ids: list[int]
    word: Word
    run: Capture

    @property
    def states_SD(self) -> Tensor:
        return states(self.run, self.word.end - 1)


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Neighbours of the tokens asked about, and one word's way in two contexts."""
    numbers, tables = _spaces(found, given.seed)
    kind, places = two_contexts(found, given)
    way = None if places is None else path(found, *places)
    numbers["contexts"] = {"kind": kind if places is None or way is not None else "nothing", **(way[0] if way else {})}
    tables["path"] = way[1] if way else []
    return Measured(numbers, tables)


# the two matrices


def _spaces(found: Decision, seed: int) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    source, output = (m.weight.detach() for m in (found.anatomy.embed, found.anatomy.unembed))
    tied = source.data_ptr() == output.data_ptr() and source.shape == output.shape
    size = min(len(found.tokenizer), len(source), len(output))
    spaces = {"input": normalize(source[:size].float(), dim=-1)}
    if not tied:
        spaces["output"] = normalize(output[:size].float(), dim=-1)
    roles: dict[int, str] = {}
    for role, token in (("target", found.target), ("against", found.against), ("last", found.ids[-1])):
        if token is not None and token < size:
            roles.setdefault(token, role)
    asked, rows = [], []
    for token, role in roles.items():
        near = {name: neighbours(rows_VD, token) for name, rows_VD in spaces.items()}
        common = None if tied else len({t for t, _ in near["input"][1]} & {t for t, _ in near["output"][1]})
        asked.append({"role": role, "token": token, "text": found.written(token), "common": common,
                      **{f"mean_{name}": mean for name, (mean, _) in near.items()}})  # fmt: skip
        rows += [
            {"role": role, "matrix": name, "rank": i, "token": t, "text": found.written(t), "cosine": c}
            for name, (_, some) in near.items() for i, (t, c) in enumerate(some)
        ]  # fmt: skip
    numbers = {
        "tied": tied, "tokens": size, "neighbours": min(NEIGHBOURS, size - 1),
        "null": {name: null_cosine(rows_VD, seed) for name, rows_VD in spaces.items()},
    }  # fmt: skip
    return numbers, {"asked": asked, "neighbours": rows}


def neighbours(rows_VD: Tensor, token: int) -> tuple[float, list[tuple[int, float]]]:
    """The mean cosine with all other rows, and the nearest of them; rows are of length 1."""
    cosine_V = rows_VD @ rows_VD[token]
    mean = float((cosine_V.double().sum() - cosine_V[token]) / (len(cosine_V) - 1))
    cosine_V[token] = -torch.inf
    top = cosine_V.topk(min(NEIGHBOURS, len(rows_VD) - 1))
    return mean, list(zip(top.indices.tolist(), top.values.tolist()))


def null_cosine(rows_VD: Tensor, seed: int) -> float:
    """Mean cosine of random pairs of different rows."""
    draw = torch.Generator().manual_seed(seed)
    one, step = torch.randint(len(rows_VD), (PAIRS,), generator=draw), torch.randint(1, len(rows_VD), (PAIRS,), generator=draw)
    other = (one + step) % len(rows_VD)
    return float((rows_VD[one.to(rows_VD.device)] * rows_VD[other.to(rows_VD.device)]).sum(-1).double().mean())


# the two contexts


def two_contexts(found: Decision, given: Given) -> tuple[str, tuple[Place, Place] | None]:
    """Which word to follow, and where it stands: in both prompts, twice in this one, or here and in the reference text."""
    mine, other = _words(found, found.ids), given.versus_prompt
    mine = [w for w in mine if not given.chat or w.text.strip() in given.prompt]  # a template's words are nobody's
    pair = None if other is None else shared(mine, _words(found, other.ids), found.ids, other.ids)
    if pair is not None:
        return "versus", (Place(found.ids, pair[0], found.base), Place(other.ids, pair[1], other.base))
    pair = repeated(mine)
    if pair is not None:
        return "repeated", tuple(Place(found.ids, word, found.base) for word in pair)
    reference = [w for w in _words(found, given.reference_ids) if w.begin >= LEAST_BEFORE]
    word = weightiest([w for w in mine if len(w.ids) + LEAST_BEFORE < found.context], reference)
    if word is None:
        return "nothing", None
    if len(given.reference_ids) < LEAST_BEFORE:
        return "no_reference", None
    return _in_reference(found, given.reference_ids, reference, word)


def _words(found: Decision, ids: list[int]) -> list[Word]:
    special = set(getattr(found.tokenizer, "all_special_ids", []))
    return words_of(ids, [token_bytes(found.tokenizer, i) for i in ids], {i for i, t in enumerate(ids) if t in special})


def _in_reference(found: Decision, ids: list[int], words: list[Word], word: Word) -> tuple[str, tuple[Place, Place]]:
    """The prompt's word, and the same where it stands in the reference text, or put behind a stretch of its own script."""
    there = next((w for w in words if w.ids == word.ids), None)
    stretch = ids[-READ_BEFORE:] if is_cyrillic(word.text) else ids[:READ_BEFORE]
    before = ids[max(0, there.begin - READ_BEFORE) : there.begin] if there else _up_to_a_stop(found, stretch)
    special = set(getattr(found.tokenizer, "all_special_ids", []))
    begin = [i for i in found.ids[:1] if i in special]
    room = found.context - len(begin) - len(word.ids)
    before = begin + [i for i in before if i not in special][-room:]
    text = [*before, *word.ids]
    run = capture(found.anatomy, torch.tensor([text], device=found.ids_BT.device))
    other = Word(len(before), len(text), word.ids, word.text)
    return "reference" if there else "placed", (Place(found.ids, word, found.base), Place(text, other, run))


def _up_to_a_stop(found: Decision, ids: list[int]) -> list[int]:
    """A text as far as its last full stop, if it holds one."""
    stops = [i for i, token in enumerate(ids) if token_bytes(found.tokenizer, token).rstrip().endswith(b".")]
    return ids[: stops[-1] + 1] if stops else ids


# the way


def path(found: Decision, a: Place, b: Place) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Cosine of the word's two states after every layer, beside that of different tokens' states; None where there are none."""
    null = _null(found, a, b)
    if null is None:
        return None
    pair = [normalize(p.states_SD.double(), dim=-1) for p in (a, b)]
    log_p = [lens(found, p.states_SD) for p in (a, b)]
    cosines = (pair[0] * pair[1]).sum(-1).clamp(-1, 1).tolist()
    rows = [
        {"after": f"L{i - 1}" if i else "embed", "cosine": c, "null": n, "low": low, "high": high,
         "likeness": (c - n) / max(1 - n, 1e-9),
         "first_a": found.written(int(log_p[0][i].argmax())), "first_b": found.written(int(log_p[1][i].argmax()))}
        for i, (c, (n, low, high)) in enumerate(zip(cosines, null))
    ]  # fmt: skip
    likeness = [r["likeness"] for r in rows]
    ends = [x[-1] for x in log_p]
    return {
        "text": a.word.text, "pieces": len(a.word.ids), "a": _shown(found, a), "b": _shown(found, b), "same_text": a.run is b.run,
        "lowest": min(range(len(rows)), key=likeness.__getitem__), "half": settled([x < HALF for x in likeness]),
        "goes_on_a": _apart(found, ends[0], ends[1]), "goes_on_b": _apart(found, ends[1], ends[0]),
    }, rows  # fmt: skip


def _null(found: Decision, a: Place, b: Place) -> list[list[float]] | None:
    """After each layer: mean, 5th and 95th percentile of the cosine between states of different tokens of the two texts."""
    special = set(getattr(found.tokenizer, "all_special_ids", []))
    tokens, kept_SND = [], []
    for place in (a,) if a.run is b.run else (a, b):
        kept = [i for i in range(1, len(place.ids)) if place.ids[i] not in special][-STATES:]
        tokens += [place.ids[i] for i in kept]
        kept_SND.append(normalize(_all_states(place.run)[:, kept].double(), dim=-1))
    tokens_N = torch.tensor(tokens, device=found.ids_BT.device)
    differ_NN = (tokens_N[:, None] != tokens_N).triu()
    if not bool(differ_NN.any()):
        return None
    levels = torch.tensor([0.05, 0.95], dtype=torch.float64, device=found.ids_BT.device)
    rows = []
    for states_ND in torch.cat(kept_SND, 1):
        cosine = (states_ND @ states_ND.T)[differ_NN]
        rows.append([float(cosine.mean()), *cosine.quantile(levels).tolist()])
    return rows


def _all_states(seen: Capture) -> Tensor:
    """(S, T, D) the residual as it enters the first layer, then after every layer."""
    return torch.stack([layer.resid_BTD[0] for layer in seen.layers] + [seen.final_BTD[0]])


def _apart(found: Decision, log_p_V: Tensor, log_q_V: Tensor) -> list[str]:
    """The tokens that make up most of KL(p | q)."""
    share_V = (log_p_V.exp() * (log_p_V - log_q_V)).nan_to_num()
    return [found.written(t) for t in share_V.topk(min(NAMED, len(share_V))).indices.tolist()]


def _shown(found: Decision, place: Place) -> dict[str, Any]:
    """The word with what stands around it; letters cut at the ends are left out."""
    before, after = (
        b"".join(token_bytes(found.tokenizer, i) for i in some).decode("utf-8", "ignore")
        for some in (place.ids[: place.word.begin], place.ids[place.word.end :])
    )
    return {
        "before": "…" * (len(before) > SHOWN_BEFORE) + before[-SHOWN_BEFORE:], "word": place.word.text,
        "after": after[:SHOWN_AFTER] + "…" * (len(after) > SHOWN_AFTER), "position": place.word.end - 1,
    }  # fmt: skip
