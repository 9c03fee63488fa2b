"""What is wrong with the data, said before any work; and one row as the model will see it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from intaglio.data.encode import Encoded
from intaglio.data.vocab import is_special, letters, token_bytes
from intaglio.words import counted

NEAR_JACCARD = 0.8  # two texts are near duplicates from here on
_SHINGLE_CHARACTERS = 5
_BANDS, _BAND_ROWS = 16, 4  # finds a pair of Jaccard 0.8 with probability 0.9998
_SHOWN = 8  # row numbers printed per finding


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts over the data, and the numbers of the rows that have something wrong.

    Attributes:
        tokens, targets: sums over all rows; longest: tokens of the longest row.
        empty_masks: rows in which nothing is trained on.
        missing_end: rows whose last trained token is no end token, though the tokenizer has one.
        doubled_first: rows that start with the same control token twice.
        truncated: rows that were cut.
        repaired: rows whose encoding was put right.
        duplicates: groups of rows that are exactly the same to the model.
        near_duplicates: groups of different rows whose texts nearly agree.
        other_groups: rows that repeat a row of another `group`, and so count for that one's group.
    """

    rows: int
    tokens: int
    targets: int
    longest: int
    empty_masks: tuple[int, ...]
    missing_end: tuple[int, ...]
    doubled_first: tuple[int, ...]
    truncated: tuple[int, ...]
    repaired: tuple[int, ...]
    duplicates: tuple[tuple[int, ...], ...]
    near_duplicates: tuple[tuple[int, ...], ...]
    other_groups: tuple[int, ...] = ()

    def lines(self) -> list[str]:
        """The audit as readable lines; the first counts, the others say what is wrong, if anything."""
        size = f"{counted(self.rows, 'row')}, {counted(self.tokens, 'token')} (longest row {self.longest:,})"
        lines = [f"{size}, {self.targets:,} trained on"]
        starts = "starts" if len(self.doubled_first) == 1 else "start"
        for words, rows in (
            ("with nothing to train on", self.empty_masks),
            ("without an end token", self.missing_end),
            (f"that {starts} with a control token twice", self.doubled_first),
            ("cut to the longest length allowed", self.truncated),
            ("with a broken encoding, repaired", self.repaired),
            ("counted for the group of an earlier row of the same text", self.other_groups),
        ):
            if rows:
                lines.append(f"{counted(len(rows), 'row')} {words}: {_listed(rows)}")
        for words, groups in (("exact duplicates", self.duplicates), ("near duplicates", self.near_duplicates)):
            if groups:
                repeats = sum(map(len, groups)) - len(groups)
                shown = "; ".join(" = ".join(map(str, g[:_SHOWN])) for g in groups[:_SHOWN])
                lines.append(f"{words}, {counted(repeats, 'row')} too many: {shown}{_more(len(groups))}")
        return lines if len(lines) > 1 else [*lines, "nothing wrong was found in them"]


def audit(encoded: Sequence[Encoded], tokenizer: Any) -> Audit:
    """Check encoded rows; 10,000 rows take seconds.

    Args:
        encoded: from `encode_rows`.
        tokenizer: the one they were encoded with.
    """
    exact = _groups((item.example, item.row) for item in encoded)
    group = {item.example: item.group for item in reversed(encoded)}
    return Audit(
        rows=len(encoded),
        tokens=sum(len(item.input_ids) for item in encoded),
        targets=sum(item.targets for item in encoded),
        longest=max((len(item.input_ids) for item in encoded), default=0),
        empty_masks=_where(encoded, lambda item: not any(item.target_mask)),
        missing_end=_where(encoded, lambda item: _lacks_end(item, tokenizer)),
        doubled_first=_where(encoded, lambda item: _doubles_first(item, tokenizer)),
        truncated=_where(encoded, lambda item: item.truncated),
        repaired=_where(encoded, lambda item: item.repaired),
        duplicates=tuple(rows for rows in exact if len(rows) > 1),
        near_duplicates=_near_duplicates(encoded, tokenizer),
        other_groups=_where(encoded, lambda item: item.group != group[item.example]),
    )


def show_row(item: Encoded, tokenizer: Any) -> Group:
    """One row as the model will see it, for a rich console.

    Control tokens are visible; what is trained on stands between ▸ and ◂, bold and underlined, so
    that it is marked without colours too. A letter that is split over tokens is shown whole.
    """
    pieces = [token_bytes(tokenizer, i) for i in item.input_ids]
    text, inside = Text(), False
    for start, stop, letter in letters(pieces):
        trained = any(item.target_mask[start:stop])
        if trained != inside:
            text.append("▸" if trained else "◂", style="bold")
            inside = trained
        control = any(is_special(tokenizer, i) for i in item.input_ids[start:stop])
        text.append(letter, style=f"{'cyan' if control else ''} {'bold underline' if trained else 'dim'}".strip())
    if inside:
        text.append("◂", style="bold")
    head = f"row {item.row}: {counted(len(item.input_ids), 'token')}, {item.targets:,} trained on"
    legend = Text.assemble(("▸trained on◂", "bold underline"), ("  context  ", "dim"), ("<control token>", "cyan"))
    return Group(Text(head), text, legend)


def _where(encoded: Sequence[Encoded], wrong: Any) -> tuple[int, ...]:
    return tuple(item.row for item in encoded if wrong(item))


def _lacks_end(item: Encoded, tokenizer: Any) -> bool:
    """A chat ends its turns with a control token of its own, so any control token counts as an end."""
    if tokenizer.eos_token_id is None or not any(item.target_mask):
        return False
    last = max(n for n, trained in enumerate(item.target_mask) if trained)
    return not is_special(tokenizer, item.input_ids[last]) and item.input_ids[last] != tokenizer.eos_token_id


def _doubles_first(item: Encoded, tokenizer: Any) -> bool:
    ids = item.input_ids
    return len(ids) > 1 and ids[0] == ids[1] and is_special(tokenizer, ids[0])


def _groups(pairs: Iterable[tuple[Any, int]]) -> list[tuple[int, ...]]:
    found: dict[Any, list[int]] = defaultdict(list)
    for key, row in pairs:
        found[key].append(row)
    return [tuple(rows) for rows in found.values()]


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:_SHOWN])) + _more(len(rows))


def _more(n: int) -> str:
    return f" and {n - _SHOWN} more" if n > _SHOWN else ""


# --- near duplicates -----------------------------------------------------------------------


def _near_duplicates(encoded: Sequence[Encoded], tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Groups of rows of Jaccard `NEAR_JACCARD` or more over letter shingles, by MinHash and bands.

    Of exact duplicates only the first row takes part. Broder 1997; Leskovec et al., ch. 3.
    """
    firsts: dict[str, Encoded] = {}
    for item in encoded:
        firsts.setdefault(item.example, item)
    items = list(firsts.values())
    shingles = [_shingles(text) for text in _own_texts(items, tokenizer)]
    parent = list(range(len(items)))
    for bucket in _buckets(shingles):
        first, *others = bucket
        for other in others:
            a, b = _root(parent, first), _root(parent, other)
            if a != b and _jaccard(shingles[first], shingles[other]) >= NEAR_JACCARD:
                parent[max(a, b)] = min(a, b)
    groups = _groups((_root(parent, n), item.row) for n, item in enumerate(items))
    return tuple(rows for rows in groups if len(rows) > 1)


def _own_texts(items: Sequence[Encoded], tokenizer: Any) -> list[str]:
    """The rows' texts without control tokens and without the opening that a chat template gives them all."""
    opening = 0
    for n, column in enumerate(zip(*(item.input_ids for item in items))):
        if len(set(column)) > 1:
            break
        if is_special(tokenizer, column[0]):
            opening = n + 1
    ids = [list(item.input_ids[opening:]) for item in items]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return ["".join(c if c.isalnum() else " " for c in text.casefold()) for text in texts]


def _shingles(text: str) -> np.ndarray:
    """Sorted distinct 32-bit hashes of every run of five letters; spaces in a row count once."""
    codes = np.frombuffer(" ".join(text.split()).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    if len(codes) < _SHINGLE_CHARACTERS:
        return np.empty(0, np.uint64)  # too short to be compared
    windows = np.lib.stride_tricks.sliding_window_view(codes, _SHINGLE_CHARACTERS)
    powers = np.array([0x9E3779B97F4A7C15 * (2 * n + 1) ** 3 % 2**64 for n in range(_SHINGLE_CHARACTERS)], np.uint64)
    mixed = (windows * powers).sum(axis=1, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(mixed >> np.uint64(32))


def _buckets(shingles: Sequence[np.ndarray]) -> Iterable[list[int]]:
    """Rows that share a band of their MinHash signature: candidates, to be compared."""
    draw = np.random.default_rng(0)
    factors = draw.integers(1, 2**63, _BANDS * _BAND_ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = draw.integers(0, 2**63, _BANDS * _BAND_ROWS, dtype=np.uint64)
    found: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for n, hashes in enumerate(shingles):
        if not len(hashes):
            continue
        # multiply-add-shift: the high half of each product is close to a random permutation
        lowest = ((hashes[:, None] * factors + offsets) >> np.uint64(32)).min(axis=0)
        for band, signature in enumerate(lowest.reshape(_BANDS, _BAND_ROWS)):
            found[band, signature.tobytes()].append(n)
    return (bucket for bucket in found.values() if len(bucket) > 1)


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _root(parent: list[int], n: int) -> int:
    while parent[n] != n:
        parent[n] = n = parent[parent[n]]
    return n
