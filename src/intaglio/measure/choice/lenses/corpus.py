"""Continuation or synthesis: how much of the choice an n-gram of the prompt, one of a corpus, or copying explains.  [torch]

    p_n(y)   = count(last n tokens, then y) / count(last n tokens, then anything)
    longest  = the largest n with a count above 0
    overlap  = sum over y of min(p(y), p_n(y)) = 1 - total variation distance
    either   = sum over y of min(p(y), max(p_context(y), p_corpus(y)))
    copying  = what heads read from the target's own positions, of all that speaks for the target in what heads read

Source of the longest match as a language model: Liu et al. 2024, arXiv 2401.17377.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.address import Address
from intaglio.data.suffixes import Suffixes
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.lenses.neurons import promoted
from intaglio.model.anatomy import matrix_of

PIECE = 100_000  # letters of the corpus that are tokenized at once
LENGTHS = 12  # endings up to so many tokens have a row each; the longest that occurs always has
FOLLOWING, PLACES, AROUND = 5, 3, 8  # continuations named for an ending, places shown, tokens around each
TOP, NGRAM_TOP = 8, 4  # candidates of the model, of each n-gram
HEADS = 8
KINDS = ("followed_copy", "copy", "alike", "rival", "followed", "other")


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Longest endings in the prompt and in the corpus, what followed there, and what heads read from copies.

    Raises:
        Skip: there is one token only, so nothing came earlier.
    """
    if len(found.ids) < 2:
        raise Skip("one_token")
    texts = {"context": Suffixes(found.ids, len(found.ids))}
    if given.corpus is not None:
        texts["corpus"] = Suffixes(corpus_ids(found.tokenizer, given.corpus), len(found.ids))
    p_V = found.logits_V.softmax(-1).cpu()
    numbers: dict[str, Any] = {"context": None, "corpus": None}
    rows, matches, shares = [], [], {}
    for name, text in texts.items():
        longest = text.longest(found.ids)
        lengths = sorted({*range(min(longest, LENGTHS) + 1), longest})
        own = [_length(found, name, text, n, p_V) for n in lengths] if len(text.ids) else []
        numbers[name] = {"tokens": len(text.ids), "longest": longest, **_longest(own[-1] if longest else None)}
        shares[name] = share_of(text.following(_last(found, longest)) if longest else np.arange(0), text, len(p_V))
        rows += own
        matches += _places(found, name, text, longest) if longest else []
    numbers["either"] = float(torch.minimum(p_V, torch.stack(list(shares.values())).amax(0)).sum())
    copies, tables = _copying(found, given)
    return Measured(numbers | copies, {
        "candidates": _candidates(found, p_V, shares), "lengths": rows, "matches": matches, **tables,
    })  # fmt: skip


def corpus_ids(tokenizer: Any, text: str) -> np.ndarray:
    """A corpus as one stream of tokens; it is cut only behind a line break that a letter follows."""
    pieces = [np.asarray(tokenizer(p, add_special_tokens=False, verbose=False)["input_ids"], np.int64) for p in cut(text)]
    return np.concatenate([np.arange(0), *pieces])


def cut(text: str, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of at least `size` letters."""
    start = 0
    while start < len(text):
        seam = re.compile(r"\n(?=\S)").search(text, start + size)
        stop = len(text) if seam is None else seam.end()
        yield text[start:stop]
        start = stop


def share_of(after: np.ndarray, text: Suffixes, vocabulary: int) -> Tensor:
    """(V,) how often each token stands at the positions `after`, as shares; all 0 where there are none."""
    counts = np.bincount(text.ids[after], minlength=vocabulary)[:vocabulary]
    return torch.from_numpy(counts / max(1, len(after)))


def _last(found: Decision, length: int) -> list[int]:
    return found.ids[len(found.ids) - length :]


def _length(found: Decision, name: str, text: Suffixes, length: int, p_V: Tensor) -> dict[str, Any]:
    """What follows the prompt's last `length` tokens in a text."""
    after = text.following(_last(found, length))
    share_V = share_of(after, text, len(p_V))
    top = [t for t in share_V.topk(min(FOLLOWING, len(share_V))).indices.tolist() if share_V[t] > 0]
    return {
        "source": name, "length": length, "ending": found.run(_last(found, length)), "times": len(after),
        "distinct": int((share_V > 0).sum()), "p_target": float(share_V[found.target]),
        "overlap": float(torch.minimum(p_V, share_V).sum()),
        "followed_by": [{"text": found.written(t), "p": float(share_V[t])} for t in top],
    }  # fmt: skip


def _longest(row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {"ending": None, "times": 0, "p_target": None, "overlap": 0.0}
    return {key: row[key] for key in ("ending", "times", "p_target", "overlap")}


def _places(found: Decision, name: str, text: Suffixes, length: int) -> list[dict[str, Any]]:
    """Where the longest ending stands, with what is around it."""
    def run(start: int, stop: int) -> str:
        return found.run(text.ids[max(0, start) : stop].tolist())

    return [
        {"source": name, "position": at, "before": run(at - length - AROUND, at - length), "match": run(at - length, at),
         "next": run(at, at + 1), "after": run(at + 1, at + 1 + AROUND)}
        for at in text.following(_last(found, length))[:PLACES].tolist()
    ]  # fmt: skip


def _candidates(found: Decision, p_V: Tensor, shares: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The likeliest tokens of the model and of each n-gram, with the share each gives them."""
    union = dict.fromkeys([found.target, *p_V.topk(min(TOP, len(p_V))).indices.tolist()])
    for share_V in shares.values():
        union |= dict.fromkeys(t for t in share_V.topk(min(NGRAM_TOP, len(share_V))).indices.tolist() if share_V[t] > 0)
    rows = [
        {"token": t, "text": found.written(t), "p": float(p_V[t]),
         **{name: float(shares[name][t]) if name in shares else None for name in ("context", "corpus")}}
        for t in union
    ]  # fmt: skip
    return sorted(rows, key=lambda r: -max(r["p"], r["context"], r["corpus"] or 0))


def kinds_of(found: Decision) -> list[str]:
    """What each position is to the choice; the first that fits.

    followed_copy  the target, behind an earlier occurrence of the prompt's last token (what induction reads)
    copy           the target elsewhere
    alike          the same word, written with another case or space
    rival          the token that the target is weighed against
    followed       another token behind an earlier occurrence of the last one
    other
    """
    word = found.written(found.target).strip().casefold()
    kinds = []
    for i, token in enumerate(found.ids):
        behind = i > 0 and found.ids[i - 1] == found.ids[-1]
        if token == found.target:
            kinds.append("followed_copy" if behind else "copy")
        elif token == found.against:
            kinds.append("rival")
        elif word and found.written(token).strip().casefold() == word:
            kinds.append("alike")
        else:
            kinds.append("followed" if behind else "other")
    return kinds


def _copying(found: Decision, given: Given) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """All votes that heads read, by what stood where they were read; and the heads that read most from copies."""
    kinds = kinds_of(found)
    votes_LHT = found.ledger.source_votes(found.base, found.votes)
    looks_LHT = torch.stack([layer.pattern_BHTT[0, :, -1].double() for layer in found.base.layers])
    plus_T, minus_T = votes_LHT.clamp_min(0).sum((0, 1)), votes_LHT.clamp_max(0).sum((0, 1))
    whole = float(plus_T.sum())
    rows = []
    for kind in KINDS:
        at = [i for i, k in enumerate(kinds) if k == kind]
        if at:
            rows.append({
                "kind": kind, "positions": len(at), "attention": float(looks_LHT[..., at].sum(-1).mean()),
                "for_logits": float(plus_T[at].sum()), "against_logits": float(minus_T[at].sum()),
                "share": float(plus_T[at].sum()) / max(whole, 1e-30),
            })  # fmt: skip
    share = {r["kind"]: r["share"] for r in rows}
    copies = [i for i, k in enumerate(kinds) if k in ("copy", "followed_copy")]
    numbers = {
        "copied": share.get("copy", 0.0) + share.get("followed_copy", 0.0), "induced": share.get("followed_copy", 0.0),
        "alike": share.get("alike", 0.0), "places": len(copies), "for_logits": whole,
        "copied_attention": float(looks_LHT[..., copies].sum(-1).mean()),
    }  # fmt: skip
    return numbers, {"kinds": rows, "heads": _heads(found, given, votes_LHT, looks_LHT, kinds, copies)}


def _heads(
    found: Decision, given: Given, votes_LHT: Tensor, looks_LHT: Tensor, kinds: list[str], copies: list[int]
) -> list[dict[str, Any]]:
    """The heads that read most for the target from its copies; `place` is the target's among all tokens so promoted."""
    if not copies:
        return []
    effects = {} if given.effects is None else dict(zip(given.effects.addresses, given.effects.effect_C.tolist()))
    read_LH = votes_LHT[..., copies].sum(-1)
    rows = []
    for i in read_LH.flatten().argsort(descending=True)[:HEADS].tolist():
        layer, head = divmod(i, read_LH.shape[1])
        if float(read_LH[layer, head]) <= 0:
            break
        address = Address("attn", layer, head=head)
        logits_V = promoted(found, read_from(found, layer, head, copies))
        rows.append({
            "address": str(address), "read_logits": float(read_LH[layer, head]),
            "vote_logits": float(votes_LHT[layer, head].sum()), "effect_logits": effects.get(address),
            "attention": float(looks_LHT[layer, head, copies].sum()),
            "induced_attention": float(sum(looks_LHT[layer, head, i] for i in copies if kinds[i] == "followed_copy")),
            "place": int((logits_V > logits_V[found.target]).sum()) + 1,
        })  # fmt: skip
    return rows


def read_from(found: Decision, layer: int, head: int, positions: list[int]) -> Tensor:
    """(D,) what one head adds to the residual for what it read at some positions, the norm behind it as it is."""
    anatomy, block, seen = found.anatomy, found.anatomy.blocks[layer], found.base.layers[layer]
    size = anatomy.head_dim
    read_d = seen.pattern_BHTT[0, head, -1, positions].double() @ seen.v_BHTd[0, head, positions].double()
    out_Dd = matrix_of(block.out).detach()[:, head * size : (head + 1) * size].double()
    write_D = out_Dd @ read_d * anatomy.residual_scale
    if block.attn_post is None:
        return write_D
    kind, ending = anatomy.kinds[block.attn_post], found.ending.layers[layer]
    scale = kind.scale_of(ending.attn_raw_BD, ending.attn_BD)[0].double()
    return scale * kind.gain_D.double() * (write_D - write_D.mean() if kind.centred else write_D)
