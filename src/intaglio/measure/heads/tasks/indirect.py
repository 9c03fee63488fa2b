"""Prompts with an indirect object: two names, of which one comes again; the other is next.

    After Mary and John had met at the garden, John gave a ring to -> Mary

In half of them the name that comes again stood first (BABA), in half second (ABBA), so that no fixed place is right.
Source of the task: Wang et al. 2211.00593; the sentences and names are our own. English only: in Russian the second
name stands in another case, so it is not the same tokens that come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intaglio.data.heads import read
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, fitting, masked, prompt_of, word_ids

LEAST_NAMES = 6
TEXTS = 48
LEAST_TEXTS = 8


def indirect_prompts(tokenizer: Any, rng: np.random.Generator, texts: int = TEXTS, most: int = 10**9) -> list[Prompt]:
    """Prompts with marks IO, S1, S2 (the place of the last token is -1), whose fact `other` is the same prompt with a
    third name in the place of S2: there nobody is named twice.

    Args:
        most: tokens of a prompt with its answer.

    Raises:
        Untested: too few prompts whose two names are told apart by their tokens.
    """
    data = read("indirect")
    names, places, objects = (fitting(tokenizer, data[k], LEAST_NAMES) for k in ("names", "places", "objects"))
    found = []
    for n in range(texts):
        template = data["templates"][(n // 2) % len(data["templates"])]
        words = [str(w) for w in rng.choice(names, 3, replace=False)]
        prompt = _prompt(tokenizer, template, words, n % 2 == 1, str(rng.choice(places)), str(rng.choice(objects)))
        if prompt is not None and len(prompt.facts["answered"].ids) <= most:
            found.append(prompt)
    if len(found) < LEAST_TEXTS:
        raise Untested("the tokenizer gives too few prompts whose two names can be told apart")
    return found


def _prompt(tokenizer: Any, template: str, names: Sequence[str], first_again: bool, place: str, thing: str) -> Prompt | None:
    io, s, third = names
    a, b = (s, io) if first_again else (io, s)
    words = {"A": a, "B": b, "S2": s, "PLACE": place, "OBJECT": thing}
    made = prompt_of(tokenizer, template, words)
    other = prompt_of(tokenizer, template, words | {"S2": third})
    answered = prompt_of(tokenizer, template + " {IO}", words | {"IO": io})
    if made is None or other is None or answered is None or len(made.ids) != len(other.ids):
        return None
    io_ids, s_ids = word_ids(tokenizer, io), word_ids(tokenizer, s)
    alike = next((n for n, (x, y) in enumerate(zip(io_ids, s_ids)) if x != y), None)
    if alike is None or answered.ids[: len(made.ids) + alike + 1] != (*made.ids, *io_ids[: alike + 1]):
        return None
    begun = io_ids[:alike]  # what both names begin with (a space alone, in bytes) is given
    spans = {"IO": made.spans["B" if first_again else "A"], "S1": made.spans["A" if first_again else "B"],
             "S2": made.spans["S2"]}  # fmt: skip
    facts = {"other": replace(other, ids=(*other.ids, *begun)), "answered": answered, "io": io_ids[alike], "s": s_ids[alike],
             "template": template, "order": "BABA" if first_again else "ABBA"}  # fmt: skip
    return Prompt(made.text, (*made.ids, *begun), spans, facts)


def indirect_loss(role: str, prompts: Sequence[Prompt], device: Any) -> RoleLoss:
    """Loss of the name that should come next."""
    return RoleLoss(role, "the indirect object's name after two names of which one came again",
                    masked([p.facts["answered"] for p in prompts], "IO", device))  # fmt: skip
