"""One example token by token, ready to colour: letters whole, each number at its own token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from intaglio.analyse.data import RunData, read
from intaglio.analyse.movement import SURE_NATS, WRONG_NATS, relative_shift
from intaglio.analyse.stats import number
from intaglio.findings import TokenText


def whole_letters(tokens: Sequence[bytes]) -> list[str]:
    """Pieces of text, one per token; a letter split over tokens stands at its first token.

    Tokens that only continue a letter give "". Bytes that are no UTF-8 give a replacement sign.
    """
    stream = b"".join(tokens)
    owner = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    pieces = [""] * len(tokens)
    at = 0
    while at < len(stream):
        letter, width = _letter(stream, at)
        pieces[owner[at]] += letter
        at += width
    return pieces


def _letter(stream: bytes, at: int) -> tuple[str, int]:
    """The letter that begins at a byte, and how many bytes it takes."""
    lead = stream[at]
    width = 1 if lead < 0x80 else 2 if lead >> 5 == 0b110 else 3 if lead >> 4 == 0b1110 else 4
    try:
        return stream[at : at + width].decode("utf-8"), width
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}", 1


def most_telling(cols: Mapping[str, np.ndarray], credit: Mapping[str, np.ndarray]) -> list[int]:
    """Examples in the order a page wants them, in turn from each list: largest |shift|, most against the
    rest, largest and most negative credit on each probe, highest first and last loss, highest level.
    """
    lists = [_top(cols["shift_abs"]), _top(cols["relative_shift"]), _top(-cols["shift_net"]), _top(-cols["alignment"])]
    for values in credit.values():
        lists += [_top(values), _top(-values)]
    lists += [_top(cols[name]) for name in ("first_loss", "last_loss", "level", "level_residual")]
    chosen: dict[int, None] = {}
    for place in range(max((len(x) for x in lists), default=0)):
        for ranked in lists:
            if place < len(ranked):
                chosen.setdefault(int(ranked[place]))
    return list(chosen)


def _top(values: np.ndarray) -> np.ndarray:
    """Indices of the known values, largest first."""
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return order[np.isfinite(values[order])]


def token_texts(data: RunData, order: Sequence[int], *, at_most: int) -> dict[str, TokenText]:
    """The first `at_most` examples that kept their tokens, each at one visit.

    That visit is the one with the largest |shift| against the others of its step, else the first.
    The row of position t holds the surprise of token t + 1; here it stands at t + 1. Shift stays
    at its own token: it was written through it by all later losses.
    """
    visit_of = dict(list(_telling_visits(data, order).items())[:at_most]) if at_most else {}
    if not visit_of:
        return {}
    keys = ", ".join(f"({step}, {slot})" for step, slot in visit_of.values())
    found = read(data.run, f"""
        select step, slot, position, token, surprise_nats, entropy_nats, shift, target is not null as has_target
        from tokens where (step, slot) in ({keys}) order by step, slot, position""")
    ids = _token_ids(data, list(visit_of))
    vocab = _vocabulary(data, {t for own, _ in ids.values() for t in own} | {int(t) for t in found["token"]})
    texts = {}
    for example, (step, slot) in visit_of.items():
        own = {name: v[(found["step"] == step) & (found["slot"] == slot)] for name, v in found.items()}
        if len(own["position"]):
            texts[example] = _text(data, example, step, own, ids.get(example), vocab)
    return texts


def _telling_visits(data: RunData, order: Sequence[int]) -> dict[str, tuple[int, int]]:
    kept = read(data.run, "select distinct step, slot from tokens")
    has_tokens = set(zip(kept["step"], kept["slot"]))
    visits, out = data.visits, {}
    size = np.nan_to_num(relative_shift(data), nan=-1.0)
    for i in np.argsort(-size, kind="stable"):
        key = (visits["step"][i], visits["slot"][i])
        if key in has_tokens:
            out.setdefault(visits["example"][i], (int(key[0]), int(key[1])))
    names = (data.examples["example"][i] for i in order)
    return {name: out[name] for name in names if name in out}


def _token_ids(data: RunData, examples: list[str]) -> dict[str, tuple[list[int], list[bool]]]:
    listed = ", ".join("'" + e.replace("'", "''") + "'" for e in examples)
    found = read(data.run, f"""
        select example, token_ids, target_mask from examples
        where token_ids is not null and target_mask is not null and example in ({listed})""")
    return {e: (i, m) for e, i, m in zip(found["example"], found["token_ids"], found["target_mask"])}


def _vocabulary(data: RunData, tokens: set[int]) -> dict[int, bytes]:
    listed = ", ".join(str(t) for t in sorted(tokens)) or "-1"
    found = read(data.run, f"select token, bytes from vocab where bytes is not null and token in ({listed})")
    return {int(t): b for t, b in zip(found["token"], found["bytes"])}


def _text(data: RunData, example: str, step: int, own: Mapping[str, np.ndarray],
          ids: tuple[list[int], list[bool]] | None, vocab: Mapping[int, bytes]) -> TokenText:  # fmt: skip
    position = own["position"].astype(int)
    n = max(int(position.max()) + 1, len(ids[0]) if ids else 0)
    tokens: list[int | None] = [None] * n
    trained = [False] * n
    for p, token, has_target in zip(position, own["token"], own["has_target"]):
        tokens[p] = int(token)
        if p + 1 < n:
            trained[p + 1] = bool(has_target)
    if ids:
        tokens[: len(ids[0])], trained[1 : len(ids[1])] = ids[0], [bool(m) for m in ids[1][1:]]
    shift, surprise, entropy = np.full((3, n + 1), np.nan)
    shift[position] = own["shift"] / data.unit_length
    surprise[position + 1], entropy[position + 1] = own["surprise_nats"], own["entropy_nats"]
    clash = (surprise > WRONG_NATS) & (entropy < SURE_NATS)
    return TokenText(
        example=example, step=step, pieces=whole_letters([_bytes(t, vocab) for t in tokens]),
        shift_u=[number(v) for v in shift[:n]], surprise_nats=[number(v) for v in surprise[:n]],
        entropy_nats=[number(v) for v in entropy[:n]], trained=trained,
        confident_conflict=[bool(c) for c in clash[:n]],
    )  # fmt: skip


def _bytes(token: int | None, vocab: Mapping[int, bytes]) -> bytes:
    return b" ... " if token is None else vocab.get(token, f"[{token}]".encode())
