"""Temporal heads: where the verb is about to come, they look at the word that says when.

    score of a text = A[q, adverb] - mean over two neutral words of A[q, neutral]

q is the last position before the verb ("Yesterday the teacher" and then a verb), and the second term is the same head's
attention in the same text with a neutral word (Perhaps, Surely) of as many tokens in the adverb's place, so that what is
due to the place cancels. 1: it looks at nothing but the adverb, and not at all at the neutral word. Null: one neutral word
against the other. One sample is the mean over the texts with one adverb, for these are not independent. Source: ours.
Limits: attention only; a head that looks at rare words of any kind shows up where adverbs are rarer than the neutral words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.data.heads import read
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.seeing import see_attention
from intaglio.measure.heads.tasks.found import Found, blank
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, by_length, longest, masked, prompt_of
from intaglio.model.anatomy import Anatomy

TEXTS = 32
LEAST_TEXTS = 8


def find_temporal(anatomy: Anatomy, tokenizer: Any, rng: np.random.Generator) -> Found:
    """Scores by language.

    Raises:
        Untested: too few adverbs for which a neutral word has as many tokens.
    """
    found = Found()
    for language in ("en", "ru"):
        triples, dropped = triples_of(tokenizer, language, rng)
        triples = [t for t in triples if len(t[0].facts["answered"].ids) <= longest(anatomy)]
        found.notes[f"texts without a neutral word of equal length, {language}"] = dropped
        if len(triples) < LEAST_TEXTS:
            continue
        found.sampled.append(_score(anatomy, triples, language))
        if language == "en":
            told = masked([p.facts["answered"] for p, _, _ in triples], "VERB", anatomy.unembed.weight.device)
            found.losses.append(RoleLoss("temporal", "the verb after an adverb of time", told))
    if not found.sampled:
        raise Untested("too few adverbs of time for which a neutral word has as many tokens")
    return found


def triples_of(tokenizer: Any, language: str, rng: np.random.Generator, texts: int = TEXTS
               ) -> tuple[list[tuple[Prompt, Prompt, Prompt]], int]:  # fmt: skip
    """(with an adverb, with a neutral word, with another), and how many texts had no such words."""
    data, found, dropped = read("temporal")[language], [], 0
    sizes: dict[int, list[str]] = {}
    for word in data["neutral"]:
        sizes.setdefault(_size(tokenizer, word), []).append(word)
    for n in range(texts):
        adverb = list(data["adverbs"])[n % len(data["adverbs"])]
        fit = sizes.get(_size(tokenizer, adverb), [])
        if len(fit) < 2:
            dropped += 1
            continue
        others = [str(w) for w in rng.choice(fit, 2, replace=False)]
        subject = data["subjects"][int(rng.integers(len(data["subjects"])))]
        verb = data["verbs"][data["adverbs"][adverb]][n % 3]
        made = [prompt_of(tokenizer, f"{{WHEN}} {subject}", {"WHEN": w}) for w in (adverb, *others)]
        answered = prompt_of(tokenizer, f"{{WHEN}} {subject} {{VERB}}", {"WHEN": adverb, "VERB": verb})
        if answered is None or None in made or len({(len(p.ids), p.spans["WHEN"]) for p in made}) > 1:
            dropped += 1
            continue
        first = made[0]
        found.append((Prompt(first.text, first.ids, first.spans, {"answered": answered}), made[1], made[2]))
    return found, dropped


def _size(tokenizer: Any, word: str) -> int:
    return len(tokenizer(word, add_special_tokens=False)["input_ids"])


def _score(anatomy: Anatomy, triples: Sequence[tuple[Prompt, Prompt, Prompt]], language: str) -> Sampled:
    adverb, neutral, other = (_looks(anatomy, [t[i] for t in triples]) for i in range(3))
    words = np.array([t[0].text.split()[0] for t in triples])
    same = [words == w for w in dict.fromkeys(words)]
    values, null = ([x[which].mean(0) for which in same] for x in (adverb - (neutral + other) / 2, neutral - other))
    return Sampled("temporal", language, np.stack(values), np.stack(null))


def _looks(anatomy: Anatomy, prompts: Sequence[Prompt]) -> np.ndarray:
    """(N, L, H) attention from the last position to the word in question, summed over its tokens."""
    found = blank(len(prompts), anatomy)
    for chunk, ids_BT in by_length(prompts, anatomy.unembed.weight.device):

        def see(layer: int, pattern_BHQK: Tensor) -> None:
            for row, i in enumerate(chunk):  # noqa: B023 (used at once)
                begin, end = prompts[i].spans["WHEN"]
                found[i, layer] = pattern_BHQK[row, :, -1, begin:end].sum(-1).double().cpu().numpy()

        see_attention(anatomy, ids_BT, see, logits=False)
    return found
