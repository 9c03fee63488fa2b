"""Successor heads: having read one member of an ordered class, they raise the next over all others.

    score of a text = sum over sources s of w_s * 1[argmax over the class of effect(s, .) = successor of s] / sum of all w_s

A text is three members in order (Monday Tuesday Wednesday; none stands in two texts); the head is looked at from the last
position. w_s is the length of what the head writes from source s: attention times |v_s W_O|, and effect(s, y) what that does
to the logit of y's first token, y going over the whole class (the member itself included, so that copying is no success).
Sources that are not members count for nothing above and in full below. 1: all it writes raises the successor of what it
reads. Null: the successor drawn at random from the other members of the class.
Source: Gould et al. 2312.09230 (successor score), here on the model's own states instead of embeddings after the first MLP.
Limits: direct effects; classes of which half begin alike are left out.

Legend: B texts, H heads, K positions, N members of the class, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.data.heads import read
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.tasks.found import Found, blank
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, by_length, longest, masked, prompt_of, word_ids
from intaglio.measure.heads.writing import directions_ND, output_DHd, raised_HdN, see_writing, write_length_BHK
from intaglio.model.anatomy import Anatomy

SIZE = 3  # members in a text
LEAST_CLASS = 5  # members that can be told apart by one token
LEAST_TEXTS = 6


def find_successor(anatomy: Anatomy, tokenizer: Any, rng: np.random.Generator) -> Found:
    """Scores by language.

    Raises:
        Untested: no class whose members begin with different tokens.
    """
    found = Found()
    for language in ("en", "ru"):
        prompts, dropped = ordered_prompts(tokenizer, language, rng)
        prompts = [p for p in prompts if len(p.facts["answered"].ids) <= longest(anatomy)]
        if dropped:
            found.notes[f"classes whose members begin alike, {language}"] = dropped
        if len(prompts) >= LEAST_TEXTS:
            found.sampled.append(_score(anatomy, prompts, language, rng))
            if language == "en":
                told = masked([p.facts["answered"] for p in prompts], "NEXT", anatomy.unembed.weight.device)
                found.losses.append(RoleLoss("successor", "the next member of an ordered class", told))
    if not found.sampled:
        raise Untested("no ordered class whose members begin with different tokens")
    return found


def ordered_prompts(tokenizer: Any, language: str, rng: np.random.Generator) -> tuple[list[Prompt], list[str]]:
    """Texts of members in order, and the classes that were left out.

    Where all members begin with the same token (a space alone, before digits), the text ends with it, so that what comes
    next is what tells them apart. Facts: `sources` position to number in the class, `firsts` number to first telling token,
    `answered` the text with the next member, marked NEXT.
    """
    found, dropped = [], []
    for name, members in read("successor")[language].items():
        shared, firsts = first_tokens(tokenizer, members)
        if len(firsts) < max(LEAST_CLASS, len(members) / 2):
            dropped.append(name)
            continue
        for start in range(int(rng.integers((len(members) - 1) % SIZE + 1)), len(members) - SIZE, SIZE):
            made = _window(tokenizer, members, start, shared, firsts) if start + SIZE in firsts else None
            found += [] if made is None else [made]
    return found, dropped


def first_tokens(tokenizer: Any, members: Sequence[str]) -> tuple[tuple[int, ...], dict[int, int]]:
    """The tokens with which every member begins, and by number the first that follows them, where no other has the same."""
    ids = [word_ids(tokenizer, m) for m in members]
    size = 0
    while all(len(i) > size + 1 for i in ids) and len({i[: size + 1] for i in ids}) == 1:
        size += 1
    firsts = [i[size] if len(i) > size else None for i in ids]  # a tokenizer may have no token for a word
    return ids[0][:size], {i: first for i, first in enumerate(firsts) if first is not None and firsts.count(first) == 1}


def _window(tokenizer: Any, members: Sequence[str], start: int, shared: tuple[int, ...], firsts: dict[int, int]
            ) -> Prompt | None:  # fmt: skip
    marks = [f"M{i}" for i in range(start, start + SIZE)]
    words = {m: members[start + n] for n, m in enumerate(marks)}
    text = ": " + " ".join(f"{{{m}}}" for m in marks)
    made = prompt_of(tokenizer, text, words)
    answered = prompt_of(tokenizer, text + " {NEXT}", words | {"NEXT": members[start + SIZE]})
    if made is None or answered is None or answered.ids[: len(made.ids) + len(shared)] != (*made.ids, *shared):
        return None
    sources = {made.last(m): start + n for n, m in enumerate(marks) if start + n + 1 in firsts}
    facts = {"sources": sources, "firsts": firsts, "answered": answered}
    return Prompt(made.text, (*made.ids, *shared), made.spans, facts)


def _score(anatomy: Anatomy, prompts: Sequence[Prompt], language: str, rng: np.random.Generator) -> Sampled:
    values, null = blank(len(prompts), anatomy), blank(len(prompts), anatomy)
    device = anatomy.unembed.weight.device
    wrong = [{k: _other(p.facts["firsts"], i + 1, rng) for k, i in p.facts["sources"].items()} for p in prompts]
    towards = [directions_ND(anatomy, torch.tensor(list(p.facts["firsts"].values()), device=device)) for p in prompts]
    for chunk, ids_BT in by_length(prompts, device):

        def see(layer: int, pattern_BHQK: Tensor, v_BHKd: Tensor, entering_BTD: Tensor) -> None:
            out_DHd = output_DHd(anatomy, layer)
            weight_BHK = pattern_BHQK[:, :, -1] * write_length_BHK(out_DHd, v_BHKd)
            for row, i in enumerate(chunk):  # noqa: B023 (used at once)
                p = prompts[i]
                raised_HdN_ = raised_HdN(out_DHd, towards[i])
                keys = list(p.facts["sources"])
                best_HS = torch.einsum("hsd,hdn->hsn", v_BHKd[row][:, keys], raised_HdN_).argmax(-1)
                share_HS = weight_BHK[row][:, keys] / weight_BHK[row].sum(-1, keepdim=True).clamp_min(1e-30)
                members = list(p.facts["firsts"])
                right_S = best_HS.new_tensor([members.index(n + 1) for n in p.facts["sources"].values()])
                wrong_S = best_HS.new_tensor([members.index(n) for n in wrong[i].values()])
                for into, target_S in ((values, right_S), (null, wrong_S)):
                    into[i, layer] = (share_HS * (best_HS == target_S)).sum(-1).double().cpu().numpy()

        see_writing(anatomy, ids_BT, see)
    return Sampled("successor", language, values, null)


def _other(firsts: dict[int, int], right: int, rng: np.random.Generator) -> int:
    return int(rng.choice([i for i in firsts if i != right]))
