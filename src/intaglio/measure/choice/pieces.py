"""A prompt's tokens as words and as sentences, each with a role, by plain rules. Pure.

The rules are heuristics, stated on the page: they look at punctuation and at a few words, in
English and in Russian, and know nothing of grammar.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

SENTENCE = re.compile(r"[.!?…。！？][\"'»”)\]]*\s*$|\n")
CLAUSE = re.compile(r"[,;:—–][\"'»”)\]]*\s*$")
EXPLAINS = re.compile(
    r"\b(because|since|therefore|thus|hence|so that|that is|which means|i\.e\.|due to|потому что|так как|поскольку|"
    r"поэтому|значит|то есть|т\. ?е\.|из-за|ведь)\b",
    re.IGNORECASE,
)
INSTRUCTS = re.compile(
    r"^\W*(please|answer|write|tell|give|explain|list|name|translate|summari[sz]e|complete|use|choose|say|describe|compute|"
    r"find|do not|don't|you are|you must|пожалуйста|ответь\w*|напиши\w*|скажи\w*|дай\w*|объясни\w*|перечисли\w*|назови\w*|"
    r"переведи\w*|закончи\w*|используй\w*|выбери\w*|опиши\w*|найди\w*|посчитай\w*|ты —|вы —|не )(?=\W|$)",
    re.IGNORECASE,
)
MOST = 12  # pieces; more are joined with their neighbours


@dataclass(frozen=True)
class Piece:
    """Tokens `begin` to `end` (not included) that stand together."""

    begin: int
    end: int
    text: str
    role: str  # instruction, explanation, question, statement


def sentences(
    texts: Sequence[str], special: Set[int] = frozenset(), whole: Callable[[int, int], str] | None = None
) -> list[Piece]:
    """The sentences of a prompt, or its clauses if it is a single sentence; special tokens belong to none.

    Args:
        texts: every token's text.
        special: positions of special tokens.
        whole: (begin, end) to the text of these tokens, where it is more than their texts in a row (split letters).
    """
    found = _cut(texts, special, SENTENCE)
    found = _cut(texts, special, CLAUSE, SENTENCE) if len(found) < 2 else found
    while len(found) > MOST:
        at = min(range(len(found) - 1), key=lambda i: found[i + 1][1] - found[i][0])
        found[at : at + 2] = [(found[at][0], found[at + 1][1])]
    whole = whole or (lambda begin, end: "".join(texts[begin:end]))
    return [Piece(b, e, whole(b, e), role(whole(b, e))) for b, e in found]


def _cut(texts: Sequence[str], special: Set[int], *ends: re.Pattern) -> list[tuple[int, int]]:
    found, begin = [], 0
    for i, text in enumerate(texts):
        if i in special:
            found.append((begin, i))
            begin = i + 1
        elif any(end.search(text) for end in ends):
            found.append((begin, i + 1))
            begin = i + 1
    found.append((begin, len(texts)))
    return [(b, e) for b, e in found if "".join(texts[b:e]).strip()]


def role(text: str) -> str:
    """What a sentence does: asks, instructs, explains or states."""
    if "?" in text:
        return "question"
    if INSTRUCTS.search(text.strip()):
        return "instruction"
    return "explanation" if EXPLAINS.search(text) else "statement"


def words(texts: Sequence[str], special: Set[int] = frozenset()) -> list[tuple[int, int]]:
    """Words as (begin, end): a word begins at a token that begins with white space."""
    found: list[tuple[int, int]] = []
    for i, text in enumerate(texts):
        if i in special:
            continue
        if not found or text[:1].isspace() or found[-1][1] != i:
            found.append((i, i + 1))
        else:
            found[-1] = (found[-1][0], i + 1)
    return found
