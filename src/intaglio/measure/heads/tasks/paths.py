"""False attention paths: how much of a head's attention stays when only the content changes, or only the template.

    share that stays = sum over aligned queries and keys of min(A, A') / (sum of A over aligned queries + the same of A') * 2

A and A' are the head's attention in the two prompts of a pair, the start token's share left out (it stays in any case), so
that the number is 1 where nothing moves and 0 where nothing stays. Key positions that have no partner can only be lost.
`template_share`: the sentence is kept, both names are replaced, the *other* of the two comes again, and place and thing
are replaced; all positions are aligned. A head that looks at the same places all the same follows the template, not what
is said: a false attention path. `content_share`: the words are kept, in their order and with the same name again, and the
sentence around them is replaced; aligned are the five words and the last position. A head that looks at the words stays.
Null: the same against the second prompt's attention with its keys shuffled within each row.
Source: ours; 1 - total variation distance where all positions are aligned and the start token gets nothing.
Limits: one kind of sentence (two names, one again), words of equal length only; attention that stays may still be of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from intaglio.data.heads import read
from intaglio.measure.heads.seeing import see_attention
from intaglio.measure.heads.tasks.prompts import Prompt, Untested, by_length, fitting, longest, prompt_of
from intaglio.model.anatomy import Anatomy

PAIRS = 16
LEAST_PAIRS = 6
LEAST_NAMES = 8
MARKS = ("A", "B", "S2", "PLACE", "OBJECT")
Pair = tuple[Prompt, Prompt, list[tuple[int, int]]]  # two prompts and their aligned positions


def path_shares(anatomy: Anatomy, tokenizer: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """(L, H) of `template_share` and `content_share`, and of their nulls (`template_null`, `content_null`).

    Raises:
        Untested: too few pairs whose words are equally long in tokens.
    """
    found: dict[str, np.ndarray] = {}
    for name, pairs in zip(("template", "content"), pairs_of(tokenizer, rng)):
        pairs = [p for p in pairs if max(len(p[0].ids), len(p[1].ids)) <= longest(anatomy)]
        if len(pairs) < LEAST_PAIRS:
            raise Untested("too few pairs of sentences whose words are equally long in tokens")
        kept, whole = _stays(anatomy, pairs, rng)
        shares = 2 * kept / np.maximum(whole, 1e-30)
        found |= {f"{name}_share": shares[0], f"{name}_null": shares[1]}
    return found


def pairs_of(tokenizer: Any, rng: np.random.Generator, pairs: int = PAIRS) -> tuple[list[Pair], list[Pair]]:
    """Pairs that differ in content alone, and pairs that differ in the template alone."""
    data = read("indirect")
    names, places, objects = (fitting(tokenizer, data[k], LEAST_NAMES) for k in ("names", "places", "objects"))
    contents, templates = [], []
    for n in range(pairs):
        four = [str(w) for w in rng.choice(names, 4, replace=False)]
        where, what = ([str(w) for w in rng.choice(k, 2, replace=False)] for k in (places, objects))
        first, second = (data["templates"][(n + k) % len(data["templates"])] for k in (0, 1 + n % 3))
        words = dict(zip(MARKS, (*four[:2], four[n % 2], where[0], what[0])))
        others = dict(zip(MARKS, (*four[2:], four[3 - n % 2], where[1], what[1])))
        a, b, c = (prompt_of(tokenizer, t, w) for t, w in ((first, words), (first, others), (second, words)))
        if a is not None and b is not None and a.spans == b.spans and len(a.ids) == len(b.ids):
            contents.append((a, b, [(k, k) for k in range(1, len(a.ids))]))
        if a is not None and c is not None and (aligned := _aligned(a, c)):
            templates.append((a, c, aligned))
    return contents, templates


def _aligned(a: Prompt, b: Prompt) -> list[tuple[int, int]]:
    """Positions of the words, token by token, and the last one; [] where a word is not the same tokens."""
    found = []
    for mark in MARKS:
        (i, i_end), (j, j_end) = a.spans[mark], b.spans[mark]
        if a.ids[i:i_end] != b.ids[j:j_end]:
            return []
        found += list(zip(range(i, i_end), range(j, j_end)))
    return sorted(found) + [(len(a.ids) - 1, len(b.ids) - 1)]


def _stays(anatomy: Anatomy, pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(2, L, H) mass that stays over all pairs, for them and for their null; (L, H) mass of both prompts."""
    first, second = (_looks(anatomy, [p[side] for p in pairs], [[a[side] for a in p[2]] for p in pairs]) for side in (0, 1))
    kept, whole = np.zeros((2, anatomy.n_layers, anatomy.n_heads)), np.zeros((anatomy.n_layers, anatomy.n_heads))
    for (_, _, aligned), a_LHQK, b_LHQK in zip(pairs, first, second):
        rows, columns = (list(side) for side in zip(*aligned))
        mixed_LHQK = b_LHQK.copy()
        for i, q in enumerate(columns):
            mixed_LHQK[:, :, i, 1 : q + 1] = b_LHQK[:, :, i, rng.permutation(np.arange(1, q + 1))]
        for i, other in enumerate((b_LHQK, mixed_LHQK)):
            kept[i] += np.minimum(a_LHQK[..., rows], other[..., columns]).sum((2, 3))
        whole += a_LHQK[..., 1:].sum((2, 3)) + b_LHQK[..., 1:].sum((2, 3))
    return kept, whole


def _looks(anatomy: Anatomy, prompts: Sequence[Prompt], queries: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """(L, H, Q, K) of every prompt, at its queries; short prompts, so that all are small together."""
    shape = (anatomy.n_layers, anatomy.n_heads)
    found = [np.zeros((*shape, len(q), len(p.ids)), dtype=np.float32) for p, q in zip(prompts, queries)]
    for chunk, ids_BT in by_length(prompts, anatomy.unembed.weight.device):

        def see(layer: int, pattern_BHQK: Tensor) -> None:
            for row, i in enumerate(chunk):  # noqa: B023 (used at once)
                found[i][layer] = pattern_BHQK[row][:, list(queries[i])].float().cpu().numpy()

        see_attention(anatomy, ids_BT, see, logits=False)
    return found
