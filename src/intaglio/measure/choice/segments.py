"""All ways to write a word in tokens of a vocabulary. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Pieces = dict[bytes, list[int]]  # bytes that occur in the word to the tokens that stand for them


def pieces_in(word: bytes, vocabulary: Iterable[tuple[int, bytes]]) -> Pieces:
    """The tokens of a vocabulary whose bytes occur in `word`."""
    found: Pieces = {}
    for token, spelt in vocabulary:
        if spelt and spelt in word:
            found.setdefault(spelt, []).append(token)
    return found


def ways(word: bytes, pieces: Pieces) -> int:
    """How many sequences of tokens give exactly these bytes."""
    counts = [0] * len(word) + [1]
    for i in reversed(range(len(word))):
        counts[i] = sum(len(tokens) * counts[i + len(p)] for p, tokens in pieces.items() if word.startswith(p, i))
    return counts[0]


def fewest(word: bytes, pieces: Pieces, most: int) -> list[tuple[int, ...]]:
    """Up to `most` of these sequences: fewest tokens first, among these the longest first piece, then the second and so on."""
    best: list[list[tuple[int, tuple[int, ...], tuple[int, ...]]]] = [[] for _ in word] + [[(0, (), ())]]
    for i in reversed(range(len(word))):
        found = [
            (1 + count, (-len(p), *sizes), (token, *ids))
            for p, tokens in pieces.items() if word.startswith(p, i)
            for count, sizes, ids in best[i + len(p)] for token in tokens
        ]  # fmt: skip
        best[i] = sorted(found)[:most]
    return [ids for _, _, ids in best[0]]
