"""Coreference: heads that look from a pronoun at the word it stands for, rather than at the other candidate.

    score of a text = 1 if A[pronoun, antecedent] > A[pronoun, other], else 0; 1/2 where both together get under 5 %

A candidate's mass is summed over its tokens; the pronoun looks from its last token. In our own texts the pronoun's gender
decides. One sample is a pair of candidates in one order, with both pronouns: neither a preferred place nor a preferred word
gives more than 1/2, and no pair stands in two samples. Null: the candidates shuffled, the mean over both ways, which is 1/2
for every head.

Winogender (Rudinger et al. 1804.09301) tells the antecedent only by what comes after the pronoun, so there a model that
reads from left to right cannot look at it from the pronoun: attention is the mean over all positions behind the pronoun.
Sources: accuracy of a head's choice as in Clark et al. 1906.04341; the texts are our own.
Limits: two candidates only; the gender of a noun is a strong cue of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.data.heads import read
from intaglio.errors import DataError
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.seeing import see_attention
from intaglio.measure.heads.tasks.found import Found, blank
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, by_length, longest, masked, prompt_of
from intaglio.model.anatomy import Anatomy

WINOGENDER_TEXTS = 80
LEAST_MASS = 0.05
PRONOUNS = {"he", "she", "they", "him", "her", "them", "his", "hers", "their", "theirs"}


def find_coreference(anatomy: Anatomy, tokenizer: Any, rng: np.random.Generator, winogender: str | Path | None = None) -> Found:
    """Scores by language, and of Winogender where its file is given.

    Raises:
        Untested: no text in which both candidates and the pronoun have tokens of their own.
        DataError: the file is not Winogender's.
    """
    found = Found()
    device = anatomy.unembed.weight.device
    for language in ("en", "ru"):
        prompts = [p for p in own_prompts(tokenizer, language) if len(p.ids) <= longest(anatomy)]
        if prompts:
            found.sampled.append(score_choices(anatomy, prompts, language))
            answered = (p.facts["answered"] for p in prompts)
            if told := [p for p in answered if p is not None and len(p.ids) <= longest(anatomy)]:
                found.losses.append(RoleLoss("coreference", "whom the pronoun meant, asked in the next sentence",
                                             masked(told, "ANSWER", device)))  # fmt: skip
    if winogender is not None:
        prompts = [p for p in winogender_prompts(tokenizer, winogender, rng) if len(p.ids) <= longest(anatomy)]
        found.sampled += [] if not prompts else [score_choices(anatomy, prompts, "winogender")]
    if not found.sampled:
        raise Untested("no text in which candidates and pronoun have tokens of their own")
    return found


def score_choices(anatomy: Anatomy, prompts: Sequence[Prompt], detail: str) -> Sampled:
    """Whether each head prefers the antecedent (mark RIGHT) to the other candidate (mark WRONG)."""
    values, null = blank(len(prompts), anatomy), blank(len(prompts), anatomy)
    for chunk, ids_BT in by_length(prompts, anatomy.unembed.weight.device):

        def see(layer: int, pattern_BHQK: Tensor) -> None:
            for row, i in enumerate(chunk):  # noqa: B023 (used at once)
                p = prompts[i]
                first = p.last("P")
                looks_HK = pattern_BHQK[row, :, first : first + 1 if p.facts["from_pronoun"] else None].mean(1)
                right_H, wrong_H = (looks_HK[:, slice(*p.spans[m])].sum(-1) for m in ("RIGHT", "WRONG"))
                prefers_H = (right_H > wrong_H).double() + 0.5 * (right_H == wrong_H)
                prefers_H = prefers_H.where(right_H + wrong_H >= LEAST_MASS, prefers_H.new_tensor(0.5)).cpu().numpy()
                values[i, layer], null[i, layer] = prefers_H, (prefers_H + (1 - prefers_H)) / 2

        see_attention(anatomy, ids_BT, see, logits=False)
    groups = np.array([p.facts["group"] for p in prompts])
    values, null = (np.stack([x[groups == g].mean(0) for g in dict.fromkeys(groups)]) for x in (values, null))
    return Sampled("coreference", detail, values, null)


def own_prompts(tokenizer: Any, language: str) -> list[Prompt]:
    """Our texts of one language: each pair of candidates in one order with both pronouns."""
    data, found = read("coreference")[language], []
    for n in range(2 * len(data["pairs"])):
        group = n // 2
        template = data["templates"][group % len(data["templates"])]
        male_first, first_is_right = group % 2 == 0, n % 2 == 0
        pair = data["pairs"][group] if male_first else data["pairs"][group][::-1]
        male_right = male_first == first_is_right
        words = {"P": data["pronouns"][0 if male_right else 1]}
        words |= {"A": pair[0], "B": pair[1]} if language == "en" else {"A": pair[0][0], "B": pair[1][1]}
        made = prompt_of(tokenizer, _agreeing(template, male_first), words)
        if made is not None:
            right, wrong = ("A", "B") if first_is_right else ("B", "A")
            spans = {"P": made.spans["P"], "RIGHT": made.spans[right], "WRONG": made.spans[wrong]}
            answered = None
            if "answer" in data:
                answered = prompt_of(tokenizer, template + data["answer"], words | {"ANSWER": words[right]})
            facts = {"from_pronoun": True, "first_is_right": first_is_right, "answered": answered, "group": group}
            found.append(Prompt(made.text, made.ids, spans, facts))
    return found


def _agreeing(template: str, male: bool) -> str:
    """Russian past tense agrees with its subject: {увидел} is written out, with an ending for a woman."""
    return re.sub(r"\{([а-яё]+)\}", lambda m: m[1] if male else m[1] + "а", template)


def winogender_prompts(tokenizer: Any, path: str | Path, rng: np.random.Generator, texts: int = WINOGENDER_TEXTS
                       ) -> list[Prompt]:  # fmt: skip
    """Sentences of Winogender, drawn in pairs that share all up to the pronoun; the antecedents of a pair differ.

    Args:
        path: its `all_sentences.tsv`: columns sentid (occupation.participant.answer.gender.txt) and sentence.
    """
    pairs: dict[tuple[str, str, str], list[Prompt]] = {}
    wordless = 0
    for number, (occupation, participant, answer, gender, sentence) in enumerate(read_table(path), 2):
        made = _marked(tokenizer, sentence, occupation, participant, int(answer))
        if isinstance(made, str):
            raise DataError(f"{path}, line {number}: {made}", got=sentence[:80])
        wordless += made is None
        if made is not None:
            pairs.setdefault((occupation, participant, gender), []).append(made)
    whole = [p for p in pairs.values() if len(p) == 2]
    if not whole and wordless:
        raise Untested("the tokenizer has no tokens for the words of Winogender")
    if not whole:
        raise DataError(f"{path} holds no pair of sentences", expected="Winogender's all_sentences.tsv")
    chosen = rng.permutation(len(whole))[: texts // 2]
    return [replace(prompt, facts={**prompt.facts, "group": int(i)}) for i in chosen for prompt in whole[i]]


def read_table(path: str | Path) -> list[tuple[str, ...]]:
    """Occupation, participant, answer, gender and sentence of every row.

    Raises:
        DataError: the file cannot be read, or is not Winogender's table.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not lines or lines[0].split("\t") != ["sentid", "sentence"]:
        raise DataError(f"{path} is not Winogender's table", got=(lines or [""])[0][:80], expected="columns sentid, sentence")
    found = []
    for number, line in enumerate(lines[1:], 2):
        fields = line.split("\t")
        names = fields[0].split(".")
        if len(fields) != 2 or len(names) != 5 or names[2] not in "01" or not names[2]:
            raise DataError(f"{path}, line {number} is not a sentence of Winogender", got=line[:80],
                            expected="occupation.participant.answer.gender.txt and a sentence")  # fmt: skip
        found.append((*names[:4], fields[1]))
    return found


def _marked(tokenizer: Any, sentence: str, occupation: str, participant: str, answer: int) -> Prompt | str | None:
    """The sentence with its pronoun and candidates; a word on what it lacks; None where tokens do not tell them apart."""
    places = {}
    for mark, words in (("RIGHT", participant if answer else occupation), ("WRONG", occupation if answer else participant)):
        at = re.search(rf"\b{re.escape(words)}\b", sentence, re.IGNORECASE)
        if at is None:
            return f"the sentence does not name the {words}"
        places[at.span()] = mark
    behind = max(end for _, end in places)
    at = re.search(rf"\b({'|'.join(sorted(PRONOUNS))})\b", sentence[behind:], re.IGNORECASE)
    at = at or re.search(rf"\b({'|'.join(sorted(PRONOUNS))})\b", sentence, re.IGNORECASE)
    if at is None:
        return "the sentence has no pronoun"
    if len(places) < 2:
        return "both candidates are the same word"
    begin, end = at.span()
    shift = behind if sentence[behind + begin : behind + end].lower() == at[0].lower() else 0
    places[(begin + shift, end + shift)] = "P"
    template, done, words = "", 0, {}
    for (b, e), mark in sorted(places.items()):
        template, words[mark], done = template + sentence[done:b] + f"{{{mark}}}", sentence[b:e], e
    made = prompt_of(tokenizer, template + sentence[done:], words)
    return None if made is None else Prompt(made.text, made.ids, made.spans, {"from_pronoun": False})
