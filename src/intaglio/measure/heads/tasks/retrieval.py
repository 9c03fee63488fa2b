"""Retrieval heads: while the model copies a needle out of a haystack, they look at the very token that is copied.

    score of a text = share of the copying steps in which the head's most attended position holds the needle's token that
                      the model is about to write

The haystack is ordinary prose with one sentence in it that tells a password of random words; the text ends with a question and
the answer, teacher-forced. A step is a copying step where the model's own first choice is the needle's next token. A text
without one says nothing (nan). 1: in every such step it looks most at the right token. Null: the needle's tokens shuffled
(another position of the needle is asked about at each step).
Source: Wu et al. 2404.15574; there over many lengths and depths, here one moderate length, several depths.
Limits: the head must outbid the start token to count; a needle's first token is found by more than one way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.data.heads import prose, read
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.seeing import see_attention
from intaglio.measure.heads.tasks.found import Found, blank
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, by_length, longest, masked, prompt_of
from intaglio.model.anatomy import Anatomy
from intaglio.model.proof import raw_logits

TEXTS = {"en": 8, "ru": 4}
HAYSTACK = 160  # tokens of prose around the needle, about
WORDS = 5  # of the password


def find_retrieval(anatomy: Anatomy, tokenizer: Any, rng: np.random.Generator) -> Found:
    """Scores by language.

    Raises:
        Untested: the model never copies the needle by itself.
    """
    found, steps, device = Found(), {}, anatomy.unembed.weight.device
    for language, texts in TEXTS.items():
        made = [needle_prompt(tokenizer, language, n / texts, rng) for n in range(texts)]
        prompts = [p for p in made if p is not None and len(p.ids) <= longest(anatomy)]
        scores = _score(anatomy, prompts, language, rng)
        steps[language] = int(np.isfinite(scores.values_NLH[:, 0, 0]).sum()) if prompts else None
        if (steps[language] or 0) >= 2:
            found.sampled.append(scores)
        if language == "en" and prompts:
            found.losses.append(RoleLoss("retrieval", "the needle's words in the answer", masked(prompts, "ANSWER", device)))
    found.notes["texts with a copying step"] = steps
    if not found.sampled:
        raise Untested("the model never copies the needle by itself" if steps["en"] is not None or steps["ru"] is not None
                       else "the haystack is longer than the texts that the model was made for")  # fmt: skip
    return found


def needle_prompt(tokenizer: Any, language: str, depth: float, rng: np.random.Generator) -> Prompt | None:
    """One haystack with the needle at a share `depth` of it; marks NEEDLE and ANSWER, tokens alike.

    None where the tokenizer cuts the needle and the answer differently.
    """
    data = read("retrieval")[language]
    place = str(rng.choice(data["places"]))
    words = " ".join(str(w) for w in rng.choice(data["words"], WORDS, replace=False))
    hay = _sentences(tokenizer, language, rng)
    at = round(depth * len(hay))
    before, behind = " ".join(hay[:at]), " ".join(hay[at:])
    template = f"{before} {data['needle']} {behind}{data['question']}".strip()
    made = prompt_of(tokenizer, template.replace("{PLACE}", place), {"NEEDLE": words, "ANSWER": words})
    if made is None:
        return None
    needle, answer = (made.ids[slice(*made.spans[m])] for m in ("NEEDLE", "ANSWER"))
    return made if needle == answer else None


def _sentences(tokenizer: Any, language: str, rng: np.random.Generator) -> list[str]:
    """Sentences of ordinary prose, in random order, as many as make the haystack."""
    found = [s.strip().rstrip(".") + "." for text in prose(language) for s in text.split(". ")]
    chosen, tokens = [], 0
    for i in rng.permutation(len(found)):
        size = len(tokenizer(found[i], add_special_tokens=False)["input_ids"])
        if tokens + size <= HAYSTACK:
            chosen, tokens = [*chosen, found[i]], tokens + size
    return chosen


def _score(anatomy: Anatomy, prompts: Sequence[Prompt], language: str, rng: np.random.Generator) -> Sampled:
    values, null = blank(len(prompts), anatomy), blank(len(prompts), anatomy)
    for chunk, ids_BT in by_length(prompts, anatomy.unembed.weight.device):
        looked: dict[int, Tensor] = {}
        spans = [(prompts[i].spans["NEEDLE"], prompts[i].spans["ANSWER"]) for i in chunk]

        def see(layer: int, pattern_BHQK: Tensor) -> None:
            for row, (_, (begin, end)) in enumerate(spans):  # noqa: B023 (used at once)
                looked[row, layer] = pattern_BHQK[row, :, begin - 1 : end - 1].argmax(-1)  # noqa: B023

        hidden_BTD = see_attention(anatomy, ids_BT, see, logits=False)
        for row, (i, (needle, (begin, end))) in enumerate(zip(chunk, spans)):
            chosen_S = raw_logits(anatomy, hidden_BTD[row, begin - 1 : end - 1]).argmax(-1)
            copies_S = chosen_S == ids_BT[row, begin:end]
            if not copies_S.any():
                continue
            at_S = torch.arange(*needle, device=ids_BT.device)
            other_S = at_S.roll(int(rng.integers(1, max(len(at_S), 2))))
            for layer in range(anatomy.n_layers):
                for into, target_S in ((values, at_S), (null, other_S)):
                    hits_HS = (looked[row, layer] == target_S)[:, copies_S]
                    into[i, layer] = hits_HS.double().mean(-1).cpu().numpy()
    return Sampled("retrieval", language, values, null)
