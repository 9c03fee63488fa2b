"""Different models before the same bytes: what each would write next, what each was surprised by, where they part.  [torch]

    offset of a token    bytes of all tokens up to its end; marks such as that of the beginning have none
    common offset        where a token ends in every model, between two letters
    bits of a segment    sum of -log2 p over the tokens between two common offsets
    next byte            p(b) = sum of p over the tokens that begin with b
    next letter          the same over the first whole letter, a space before it included; a token that ends within it
                         is run on
    divergence           Jensen-Shannon, base 2: 0 the same, 1 nothing in common

The first token of a model that reads no mark before it is predicted by nothing, so the count begins at the first
common offset behind it. One space at the very beginning is not counted, for some tokenizers add it themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from intaglio.data.vocab import is_special, spelled, token_bytes
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Needs, Skip
from intaglio.measure.choice.pair import kl_nats
from intaglio.model.modes import evaluating

SEGMENTS = 400  # most that are kept, those on which the models differ most
NO_TEXT = 256  # class of the tokens that stand for no byte
WORTH_A_RUN = 1e-3  # probability from which on a token that ends within a letter is run on
BRANCHES, STEPS = 8, 4  # such tokens run side by side, and one after the other: no letter and its space have more bytes
LETTERS = 8
ROWS = 64  # positions whose whole distribution is held at once


@dataclass(frozen=True, eq=False)
class Reading:
    """One model's reading of the bytes.

    Attributes:
        ends: for every token, how many bytes it and all before it stand for.
        bits: for every token, its surprise; None for the first.
        vocabulary: every token's bytes; none for marks.
    """

    name: str
    decision: Decision
    pieces: list[bytes]
    ends: list[int]
    bits: list[float | None]
    vocabulary: list[bytes]

    def last_at(self, offset: int) -> int:
        """The last token that ends at an offset: what comes next is predicted there."""
        return max(i for i, end in enumerate(self.ends) if end == offset)

    def cost(self, start: int, stop: int) -> float:
        """Bits of the tokens between two offsets."""
        return sum(bits or 0.0 for end, piece, bits in zip(self.ends, self.pieces, self.bits) if piece and start < end <= stop)


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """All models' bits per byte, entropy, first choice and distribution over the next byte, on common offsets.

    Raises:
        Needs: no other model was given.
        Skip: none of the others reads the same bytes.
    """
    if (needs := lacking(given)) is not None:
        raise needs
    pieces = pieces_of(found)
    text = b"".join(pieces)
    readings, left_out = [reading(given.subject, found, pieces)], []
    for name, peer in zip(_names(given), given.peers):
        own = pieces_of(peer.decision)
        if b"".join(own) == text:
            readings.append(reading(name, peer.decision, own))
        else:
            left_out.append(name)
    if len(readings) == 1:
        raise Skip("other_bytes", names=", ".join(left_out))
    offsets = common(readings, text)
    segments = segments_of(readings, offsets, text)
    counted = sum(s["bytes"] for s in segments)
    decided = [letters(r) for r in readings]
    asked = [o for o in offsets if 0 < o or o == len(text)]  # at the very beginning some expect the space they add
    following = [next_bytes(r, asked) for r in readings]
    rows = [{**_model(r, decided[i], segments, i), **(_apart(readings[0], r, following, decided, i) if i else {})}
            for i, r in enumerate(readings)]  # fmt: skip
    strongest = sorted(segments, key=lambda s: min(s["bits"]) - max(s["bits"]))[:SEGMENTS]
    numbers = {
        "names": [r.name for r in readings], "bytes": counted, "left_at_start": offsets[0], "segments": len(segments),
        "offsets": len(asked), "left_out": left_out,
    }  # fmt: skip
    return Measured(numbers, {
        "models": rows, "segments": sorted(strongest, key=lambda s: s["start"]), "letters": _shown(decided),
    })  # fmt: skip


def lacking(given: Given) -> Needs | None:
    """What has to be given besides, if anything."""
    return None if given.peers else Needs("no_second", "--versus MODEL")


def _names(given: Given) -> list[str]:
    """The peers' names, told apart where two are alike."""
    names: list[str] = []
    for peer in given.peers:
        taken = [given.subject, *names]
        times = sum(n == peer.name or n.startswith(f"{peer.name} (") for n in taken)
        names.append(peer.name if not times else f"{peer.name} ({times + 1})")
    return names


def pieces_of(found: Decision) -> list[bytes]:
    """Each token's bytes; none for marks; one space at the very beginning taken off."""
    marks = set(found.tokenizer.all_special_ids)
    pieces = [b"" if i in marks else token_bytes(found.tokenizer, i) for i in found.ids]
    for i, piece in enumerate(pieces):
        if piece:
            pieces[i] = piece.removeprefix(b" ")
            break
    return pieces


def reading(name: str, found: Decision, pieces: list[bytes]) -> Reading:
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    return Reading(name, found, pieces, ends, surprises(found), vocabulary_of(found))


def surprises(found: Decision) -> list[float | None]:
    """Bits of every token given those before it."""
    ids_T, logits_TV = found.ids_BT[0], found.base.logits_BTV[0]
    bits: list[float | None] = [None]
    for start in range(0, len(found.ids) - 1, ROWS):
        stop = min(start + ROWS, len(found.ids) - 1)
        log_p = logits_TV[start:stop].double().log_softmax(-1)
        bits += (-log_p.gather(1, ids_T[start + 1 : stop + 1, None])[:, 0] / math.log(2)).tolist()
    return bits


def vocabulary_of(found: Decision) -> list[bytes]:
    """The bytes of every row of the output matrix; none for marks and for rows that the tokenizer does not have."""
    tokenizer, known = found.tokenizer, len(found.tokenizer)
    return [
        b"" if t >= known or is_special(tokenizer, t) else token_bytes(tokenizer, t) for t in range(len(found.logits_V))
    ]


def common(readings: list[Reading], text: bytes) -> list[int]:
    """Offsets between letters at which every model ends a token; behind each, every model has predicted something."""
    shared = set.intersection(*(set(r.ends) for r in readings))
    return sorted(o for o in shared if o == len(text) or text[o] & 0xC0 != 0x80)


def segments_of(readings: list[Reading], offsets: list[int], text: bytes) -> list[dict[str, Any]]:
    """What lies between two common offsets, and the bits that each model needs for it."""
    return [
        {"start": start, "bytes": stop - start, "text": spelled(text[start:stop]),
         "bits": [r.cost(start, stop) for r in readings]}
        for start, stop in pairwise(offsets)
    ]  # fmt: skip


def next_bytes(seen: Reading, offsets: list[int]) -> Tensor:
    """(N, 257) the distribution over the next byte at every common offset, last what is no text; exact."""
    logits_TV = seen.decision.base.logits_BTV[0]
    classes_V = torch.tensor([data[0] if data else NO_TEXT for data in seen.vocabulary], device=logits_TV.device)
    at, found = [seen.last_at(o) for o in offsets], []
    for start in range(0, len(at), ROWS):
        p_NV = logits_TV[at[start : start + ROWS]].double().softmax(-1)
        found.append(p_NV.new_zeros(len(p_NV), NO_TEXT + 1).index_add_(1, classes_V, p_NV).cpu())
    return torch.cat(found)


def letter_size(data: bytes) -> int:
    """How many bytes a space, if there is one, and the letter behind it take, in UTF-8; a letter broken off ends there."""
    space = int(data[:1] == b" ")
    letter = data[space:]
    first = letter[0] if letter else 0
    size = next((n for n, low, high in ((2, 0xC2, 0xDF), (3, 0xE0, 0xEF), (4, 0xF0, 0xF4)) if low <= first <= high), 1)
    return space + next((i for i in range(1, size) if len(letter) > i and letter[i] & 0xC0 != 0x80), size)


@dataclass(frozen=True, eq=False)
class Letters:
    """The next letter at the decision: its probabilities, what is no text, and what was left open."""

    p: dict[bytes, float]
    no_text: float
    open: float


def letters(seen: Reading) -> Letters:
    """The distribution over the next letter, exact up to `open`.

    A token that ends within a letter leaves it open: the model is run on behind it, and its share goes to what follows.
    """
    found, p, no_text, left = seen.decision, Counter[bytes](), 0.0, 0.0
    p_RV, paths = found.logits_V.softmax(-1)[None], [((), b"")]
    for step in range(STEPS + 1):
        within: list[tuple[float, tuple[int, ...], bytes]] = []
        for row_V, (path, before) in zip(p_RV, paths):
            for token, (share, data) in enumerate(zip(row_V.tolist(), seen.vocabulary)):
                whole = before + data
                size = letter_size(whole)
                if not data:
                    no_text += share
                elif len(whole) < size:
                    within.append((share, (*path, token), whole))
                else:
                    p[whole[:size]] += share
        within.sort(reverse=True)
        run = [w for w in within[:BRANCHES] if w[0] > WORTH_A_RUN] if step < STEPS and _fits(found, step + 1) else []
        left += sum(share for share, *_ in within[len(run) :])
        if not run:
            break
        paths = [(path, data) for _, path, data in run]
        p_RV = _behind(found, [path for path, _ in paths]) * p_RV.new_tensor([share for share, *_ in run])[:, None]
    return Letters(dict(p), no_text, left)


def _fits(found: Decision, more: int) -> bool:
    return len(found.ids) + more <= found.context


def _behind(found: Decision, paths: list[tuple[int, ...]]) -> Tensor:
    """(R, V) what the model expects behind the prompt and each of some tokens."""
    ids_BT = torch.tensor([[*found.ids, *path] for path in paths], device=found.ids_BT.device)
    with evaluating(found.anatomy.model):
        return found.anatomy.model(ids_BT, use_cache=False).logits[:, -1].double().softmax(-1)


def divergence_bits(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the last dimension."""
    middle = (p + q) / 2
    return sum(torch.special.xlogy(x, x / middle.clamp_min(1e-300)).sum(-1) for x in (p, q)) / (2 * math.log(2))


def _model(own: Reading, decided: Letters, segments: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """What one model says by itself."""
    found = own.decision
    log_p = found.logits_V.log_softmax(-1)
    chosen, counted = int(log_p.argmax()), sum(s["bytes"] for s in segments)
    bits = sum(s["bits"][index] for s in segments)
    return {
        "name": own.name, "layers": found.anatomy.n_layers, "width": found.anatomy.width, "vocabulary": len(log_p),
        "tokens": len(found.ids), "bits": bits,
        "bits_per_byte": bits / counted if counted else None, "entropy_nats": float(-(log_p.exp() * log_p).sum()),
        "first": found.written(chosen), "p": float(log_p[chosen].exp()), "no_text": decided.no_text, "open": decided.open,
    }  # fmt: skip


def _apart(this: Reading, own: Reading, following: list[Tensor], decided: list[Letters], index: int) -> dict[str, Any]:
    """How far a model is from the first one."""
    apart_N = divergence_bits(following[0], following[index])
    at_choice = divergence_bits(*_beside([decided[0], decided[index]]))
    return {
        "letter_divergence": float(at_choice), "byte_divergence": float(apart_N[-1]),
        "mean_byte_divergence": float(apart_N.mean()), "alike": _alike(this.decision, own.decision),
        "by_token": _by_token(this.decision, own.decision) if _same_tokens(this.decision, own.decision) else None,
    }  # fmt: skip


def _alike(a: Decision, b: Decision) -> str:
    """Whether two first choices are the same bytes, one the other's beginning, or neither."""
    x, y = (token_bytes(d.tokenizer, int(d.logits_V.argmax())) for d in (a, b))
    return "same" if x == y else "begins" if x.startswith(y) or y.startswith(x) else "other"


def _same_tokens(a: Decision, b: Decision) -> bool:
    return a.ids == b.ids and (a.tokenizer is b.tokenizer or a.tokenizer.get_vocab() == b.tokenizer.get_vocab())


def _by_token(a: Decision, b: Decision) -> dict[str, Any]:
    """KL(this model | the other) and same first choices over all positions; rows that only one matrix has are left out."""
    size, kl, same = min(len(a.logits_V), len(b.logits_V)), 0.0, 0
    for start in range(0, len(a.ids), ROWS):
        p, q = (d.base.logits_BTV[0, start : start + ROWS, :size].double().log_softmax(-1).cpu() for d in (a, b))
        kl += float(kl_nats(p, q).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    return {"mean_kl_nats": kl / len(a.ids), "same_first": same, "positions": len(a.ids)}


def _beside(decided: list[Letters]) -> Tensor:
    """(M, letters + 2) the models' letters as one matrix; the last two columns are what is no text and what is open."""
    every = sorted(set().union(*(d.p for d in decided)))
    rows = [[*(d.p.get(k, 0.0) for k in every), d.no_text, d.open] for d in decided]
    return torch.tensor(rows, dtype=torch.float64)


def _shown(decided: list[Letters]) -> list[dict[str, Any]]:
    """The likeliest next letters of all models together, each with every model's probability."""
    every = {k: [d.p.get(k, 0.0) for d in decided] for k in sorted(set().union(*(d.p for d in decided)))}
    kept = sorted(every, key=lambda k: -max(every[k]))[:LETTERS]
    return [{"text": spelled(k), "p": every[k]} for k in kept]
