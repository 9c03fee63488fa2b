"""Syntax: heads whose strongest arc is a relation of the dependency tree.

    score of a sentence = share of its words with that relation from which the head looks most at the word it leads to

A word looks from its last token (which has read all of it) and is looked at with all its tokens together; its choice is the
other word that gets most; the start token is no word. Both directions are scored: `nsubj head->dependent` looks from the verb
at its subject, `nsubj dependent->head` the other way round. A model that reads from left to right can only look back, so an arc
counts only where its target stands before. Null: not shuffled targets but a stronger rival, the better of two for that
relation and direction: the best fixed offset (the word two before) or place (the sentence's first word), chosen on the other
half of the sentences; and the earlier word with most tokens, which level attention chooses and which often is the verb.
Sources: Voita et al. 1905.09418, Clark et al. 1906.04341 (strongest arc, both directions, fixed-offset baseline); the other
plain rules are ours.
Limits: subtypes are joined (nsubj:pass is nsubj); words that share their tokens with another are left out; a head can match a
relation because it follows a cue that goes with it.

Legend: W words, H heads, Q and K positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.atlas import Sampled
from intaglio.data.align import tokens_of, tokens_of_words
from intaglio.data.conllu import Sentence, read_conllu
from intaglio.measure.heads.causal_loss import RoleLoss, whole_texts
from intaglio.measure.heads.seeing import see_attention
from intaglio.measure.heads.tasks.found import Found, blank
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, by_length, longest, start_ids
from intaglio.model.anatomy import Anatomy

SENTENCES = 120
LEAST_SENTENCES = 20  # that show a relation, for it to be scored
MOST_TOKENS = (64, 256)
MOST_TRIED = 2000
PLACES = 3  # fixed places that are tried
LONGEST_FIRST, LONGEST_LAST = "longest, first", "longest, last"
MOST_WORDS = 40
LEFT_OUT = {"root", "punct"}
WORDS_OF_TREES = "words of the treebank (no loss is known that this role alone should carry)"

Arcs = dict[str, list[tuple[int, frozenset[int]]]]  # detail to (looking word, right words)


@dataclass(frozen=True)
class Parsed:
    """A sentence's tokens, the tokens of each word, and its arcs that point back."""

    prompt: Prompt
    tokens: list[list[int]]
    arcs: Arcs


def find_syntax(anatomy: Anatomy, tokenizer: Any, corpus: str | Path, rng: np.random.Generator) -> Found:
    """Scores of every relation and direction that enough sentences show.

    Args:
        corpus: a treebank in CoNLL-U.

    Raises:
        DataError: the file is not CoNLL-U.
        Untested: no relation is shown by enough sentences that fit.
    """
    sentences = [s for s in read_conllu(corpus) if 3 <= len(s.words) <= MOST_WORDS]
    order = rng.permutation(len(sentences))[:MOST_TRIED]
    made = [p for i in order if (p := parse(tokenizer, sentences[i])) is not None]
    for most in MOST_TOKENS:  # longer ones only where the tokenizer leaves few short ones
        parsed = [p for p in made if len(p.prompt.ids) <= min(most, longest(anatomy))][:SENTENCES]
        if len(parsed) > SENTENCES / 2:
            break
    shown = Counter(detail for p in parsed for detail in p.arcs)
    details = sorted(d for d, n in shown.items() if n >= LEAST_SENTENCES)
    if not details:
        raise Untested(f"no relation is shown by {LEAST_SENTENCES} sentences of at most {most} tokens")
    notes = {"sentences": len(parsed), "words without tokens of their own": sum(p.tokens.count([]) for p in parsed)}
    texts = (ids_BT for _, ids_BT in by_length([p.prompt for p in parsed], anatomy.unembed.weight.device))
    loss = RoleLoss("syntax", WORDS_OF_TREES, whole_texts(texts, begin=2))  # behind the start token and a first word
    return Found(score_relations(anatomy, parsed, details), [loss], notes)


def parse(tokenizer: Any, sentence: Sentence) -> Parsed | None:
    """A sentence as tokens; None where fewer than two words have tokens of their own."""
    ids, spans = tokens_of(tokenizer, sentence.text)
    start = start_ids(tokenizer)
    places = [(w.begin, w.end) for w in sentence.words]
    alone = [i for i, p in enumerate(places) if all(p[1] <= q[0] or q[1] <= p[0] for j, q in enumerate(places) if j != i)]
    held = tokens_of_words(sentence.text, spans, [places[i] for i in alone])
    tokens: list[list[int]] = [[] for _ in places]
    for i, of_word in zip(alone, held):
        tokens[i] = [t + len(start) for t in of_word]
    if sum(map(bool, tokens)) < 2:
        return None
    return Parsed(Prompt(sentence.text, (*start, *ids), {}), tokens, _arcs(sentence, tokens))


def _arcs(sentence: Sentence, tokens: list[list[int]]) -> Arcs:
    """Arcs that point back, by relation and direction; a word with two dependents of a relation may choose either."""
    found: dict[str, dict[int, set[int]]] = {}
    for i, word in enumerate(sentence.words):
        if word.relation in LEFT_OUT or word.head < 0 or not tokens[i] or not tokens[word.head]:
            continue
        looking, target = (i, word.head) if word.head < i else (word.head, i)
        way = "dependent->head" if looking == i else "head->dependent"
        found.setdefault(f"{word.relation} {way}", {}).setdefault(looking, set()).add(target)
    return {detail: [(w, frozenset(t)) for w, t in by_word.items()] for detail, by_word in found.items()}


def score_relations(anatomy: Anatomy, parsed: Sequence[Parsed], details: Sequence[str]) -> list[Sampled]:
    """The share of arcs found by every head in every sentence, beside the best plain rule's."""
    values = {d: blank(len(parsed), anatomy) for d in details}
    for chunk, ids_BT in by_length([p.prompt for p in parsed], anatomy.unembed.weight.device):

        def see(layer: int, pattern_BHQK: Tensor) -> None:
            for row, i in enumerate(chunk):  # noqa: B023 (used at once)
                chosen_WH = strongest(pattern_BHQK[row], parsed[i].tokens)
                for detail in values.keys() & parsed[i].arcs.keys():
                    hits = [np.isin(chosen_WH[w], list(right)) for w, right in parsed[i].arcs[detail]]
                    values[detail][i, layer] = np.mean(hits, axis=0)

        see_attention(anatomy, ids_BT, see, logits=False)
    found = []
    for detail in details:
        null = np.broadcast_to(rival_scores(parsed, detail)[:, None, None], values[detail].shape).copy()
        found.append(Sampled("syntax", detail, values[detail], null))
    return found


def strongest(pattern_HQK: Tensor, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """(W, H) the earlier word that each word looks at most, by head; -1 for a word with nothing before it."""
    member_WK = pattern_HQK.new_zeros(len(tokens), pattern_HQK.shape[-1])
    for w, of_word in enumerate(tokens):
        member_WK[w, list(of_word)] = 1
    last = torch.tensor([t[-1] if t else 0 for t in tokens], device=pattern_HQK.device)
    mass_HWW = pattern_HQK[:, last] @ member_WK.T
    exists = member_WK.any(1)
    before_WW = torch.ones(len(tokens), len(tokens), device=mass_HWW.device).tril(-1).bool() & exists[None]
    chosen_HW = mass_HWW.masked_fill(~before_WW, -1.0).argmax(-1)
    return chosen_HW.masked_fill(~before_WW.any(1), -1).T.cpu().numpy()


def rival_scores(parsed: Sequence[Parsed], detail: str) -> np.ndarray:
    """(N,) the same share for the stronger of two rivals, over all sentences; nan where there is no arc.

    One is the best fixed offset or place, chosen on the sentences of the other half; the other needs no choosing: the
    earlier word with most tokens, the first or the last of those.
    """
    rivals = [_best_on_other_half(parsed, detail)]
    rivals += [_shares(parsed, detail, [rule] * len(parsed)) for rule in (LONGEST_FIRST, LONGEST_LAST)]
    return max(rivals, key=lambda share_N: float(np.nansum(share_N)))


def _best_on_other_half(parsed: Sequence[Parsed], detail: str) -> np.ndarray:
    best = []
    for half in (0, 1):
        right: Counter[str] = Counter()
        for p in parsed[1 - half :: 2]:
            for w, targets in p.arcs.get(detail, ()):
                right.update(rule for rule, target in rules_of(p.tokens, w).items() if target in targets)
        chosen = set(right) - {LONGEST_FIRST, LONGEST_LAST}
        best.append(max(chosen, key=lambda rule: (right[rule], rule), default="1 back"))
    return _shares(parsed, detail, [best[i % 2] for i in range(len(parsed))])


def _shares(parsed: Sequence[Parsed], detail: str, rules: Sequence[str]) -> np.ndarray:
    found = np.full(len(parsed), np.nan)
    for i, (p, rule) in enumerate(zip(parsed, rules)):
        if arcs := p.arcs.get(detail):
            found[i] = np.mean([rules_of(p.tokens, w).get(rule, -1) in targets for w, targets in arcs])
    return found


def rules_of(tokens: Sequence[Sequence[int]], w: int) -> dict[str, int]:
    """What plain rules would choose for word `w`: a fixed offset, a fixed place, the earlier word with most tokens."""
    lengths = [len(t) for t in tokens[:w]]
    if not lengths:
        return {}
    most = max(lengths)
    by_length = {LONGEST_FIRST: lengths.index(most), LONGEST_LAST: w - 1 - lengths[::-1].index(most)}
    return {f"{w - j} back": j for j in range(w)} | {f"word {j}": j for j in range(min(w, PLACES))} | by_length
