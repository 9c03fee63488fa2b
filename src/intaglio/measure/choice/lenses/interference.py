"""Conflict and agreement: who speaks for either token, how much cancels, and what two statements' order does.  [torch]

    conflict = 1 - |sum of votes| / sum of |votes|      0: all on one side, 1: they cancel to nothing
    recency  = D(the target's statement last) - D(the target's statement first),  D = logit(target) - logit(against)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intaglio.address import Address
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.edits import as_text, exchanged
from intaglio.measure.choice.lenses import Given, Measured, Skip
from intaglio.measure.choice.lenses.context import sentences_of
from intaglio.measure.choice.pieces import Piece, words
from intaglio.measure.choice.variants import rank_correlation, run_variants

NAMED = 6  # heads of each side


@dataclass(frozen=True)
class Statements:
    """Two statements before the last one, each naming one of the two tokens only."""

    target: Piece
    against: Piece

    @property
    def in_order(self) -> tuple[Piece, Piece]:
        return (self.target, self.against) if self.target.begin < self.against.begin else (self.against, self.target)


@torch.no_grad()
def measure(found: Decision, given: Given) -> Measured:
    """Both sides' votes by head, token and layer; where two statements name the sides, the other order as well.

    Raises:
        Skip: there is one token only, so nothing can disagree.
    """
    if len(found.ids) < 2:
        raise Skip("one_token")
    asked = sided(found)
    votes_LHT = asked.ledger.source_votes(asked.base, asked.votes)
    pieces = sentences_of(asked)[:-1]
    sides = {side: naming(asked, pieces, token) for side, token in (("target", asked.target), ("against", asked.against))}
    only_target = [p for p in sides["target"] if p not in sides["against"]]
    only_against = [p for p in sides["against"] if p not in sides["target"]]
    pair = Statements(only_target[-1], only_against[-1]) if only_target and only_against else None
    ran = orders(asked, pair) if pair else []
    swapped = _swapped_votes(asked, ran)
    first, second = asked.logits_V.softmax(0)[[asked.target, asked.against]].tolist()
    numbers = {
        "target": asked.written(asked.target), "against": asked.written(asked.against), "named": found.against is not None,
        "difference_logits": float(asked.votes.difference_B[0]), "p_target": first, "p_against": second,
        **_sides(asked, votes_LHT.sum(-1)), "sentences": len(pieces), "name_target": len(only_target),
        "name_against": len(only_against), "pair": _pair(asked, pair, ran, votes_LHT, swapped) if pair else None,
    }  # fmt: skip
    tables = {
        "layers": _layers(asked, votes_LHT, pair), "conflicts": _conflicts(asked, votes_LHT),
        "tokens": [{"position": i, "vote_logits": v} for i, v in enumerate(votes_LHT.sum((0, 1)).tolist())],
        "heads": _heads(asked, votes_LHT, pair, swapped), "orders": [{k: v for k, v in r.items() if k != "ids"} for r in ran],
    }  # fmt: skip
    return Measured(numbers, tables)


def sided(found: Decision) -> Decision:
    """The same run, weighed against the likeliest other token where no rival was named."""
    if found.against is not None:
        return found
    rival = next(t for t in found.logits_V.topk(2).indices.tolist() if t != found.target)
    return found.asking(found.target, rival)


def conflict(votes: Tensor) -> float:
    """Share of what is said that other votes take back: 0 all on one side, 1 nothing is left."""
    said = float(votes.abs().sum())
    return 1 - abs(float(votes.sum())) / said if said else 0.0


def naming(found: Decision, pieces: list[Piece], token: int) -> list[Piece]:
    """The sentences in which a word begins with the token, or is written like it."""
    text = found.text([token])
    if "\n" in text or (text.strip() and not any(c.isalnum() or c == "\ufffd" for c in text)):
        return []  # a mark names nothing; part of a letter may
    texts = [found.text([i]) for i in found.ids]
    starts = {begin for begin, _ in words(texts) if found.ids[begin] == token and text[:1].isspace()}
    alone = text.strip()

    def names(piece: Piece) -> bool:
        return any(piece.begin <= i < piece.end for i in starts) or alone in re.findall(r"\w+", piece.text)

    return [p for p in pieces if names(p)]


def orders(found: Decision, pair: Statements) -> list[dict[str, Any]]:
    """The prompt as it stands, with the statements exchanged, and without either or both: what the model then says."""
    first, second = pair.in_order
    made = exchanged(found, (first.begin, first.end), (second.begin, second.end))
    gone = {"target": "no_first", "against": "no_second"}
    if first is pair.against:
        gone = {"target": "no_second", "against": "no_first"}
    runs = {"as_is": found.ids, "swapped": made["swapped"], "no_target": made[gone["target"]],
            "no_against": made[gone["against"]], "neither": made["neither"]}  # fmt: skip
    seen = run_variants(found.anatomy, found.ids, list(runs.values()))
    p = seen.logits_NV.softmax(-1)
    return [
        {"run": name, "ids": ids, "difference_logits": float(d), "p_target": float(p[i, found.target]),
         "p_against": float(p[i, found.against]), "first": found.written(int(p[i].argmax()))}
        for i, ((name, ids), d) in enumerate(zip(runs.items(), found.question.of(seen.logits_NV)))
    ]  # fmt: skip


def _swapped_votes(found: Decision, ran: list[dict[str, Any]]) -> Tensor | None:
    """(L, H) the heads' votes with the statements exchanged."""
    if not ran:
        return None
    other = Decision(found.anatomy, found.tokenizer, ran[1]["ids"], found.target, found.against)
    return other.ledger.source_votes(other.base, other.votes).sum(-1)


def _sides(found: Decision, heads_LH: Tensor) -> dict[str, Any]:
    """What all heads put on either side, how many hold each, and the sum where the layers begin and end."""
    votes = dict(zip(found.votes.addresses, found.votes.votes_BP[0].tolist()))
    return {
        "heads_for": float(heads_LH.clamp_min(0).sum()), "heads_against": float(heads_LH.clamp_max(0).sum()),
        "count_for": int((heads_LH > 0).sum()), "heads": heads_LH.numel(),
        "start_logits": sum(v for a, v in votes.items() if a.part.startswith("embed")),
        "end_logits": sum(v for a, v in votes.items() if a.layer is None and not a.part.startswith("embed"))
        + float(found.votes.scaling_B[0] + found.votes.softcap_B[0]),
    }  # fmt: skip


def _conflicts(found: Decision, votes_LHT: Tensor) -> list[dict[str, Any]]:
    over = {"tokens": votes_LHT.sum((0, 1)), "heads": votes_LHT.sum(-1), "reads": votes_LHT, "parts": found.votes.votes_BP[0]}
    return [
        {"over": name, "count": v.numel(), "for_logits": float(v.clamp_min(0).sum()),
         "against_logits": float(v.clamp_max(0).sum()), "conflict": conflict(v)}
        for name, v in over.items()
    ]  # fmt: skip


def _layers(found: Decision, votes_LHT: Tensor, pair: Statements | None) -> list[dict[str, Any]]:
    """Both sides by layer, the running sum of all votes, and what was read from each statement so far."""
    votes = dict(zip(found.votes.addresses, found.votes.votes_BP[0].tolist()))
    running = sum(v for a, v in votes.items() if a.part.startswith("embed"))  # learnt positions too
    rows, read = [], {"target": 0.0, "against": 0.0}
    for i, heads_HT in enumerate(votes_LHT):
        mlp, heads_H = votes[Address("mlp", i)], heads_HT.sum(-1)
        running += sum(v for a, v in votes.items() if a.layer == i)
        row = {"layer": i, "heads_for": float(heads_H.clamp_min(0).sum()), "heads_against": float(heads_H.clamp_max(0).sum()),
               "mlp": mlp, "conflict": conflict(torch.cat([heads_H, heads_H.new_tensor([mlp])])),
               "running_logits": running}  # fmt: skip
        for side in read if pair else ():
            piece = getattr(pair, side)
            read[side] += float(heads_HT[:, piece.begin : piece.end].sum())
            row[f"read_{side}"] = read[side]
        rows.append(row)
    return rows


def _heads(found: Decision, votes_LHT: Tensor, pair: Statements | None, swapped_LH: Tensor | None) -> list[dict[str, Any]]:
    """The strongest heads of each side: the token they read most of their vote from, and their vote in the other order."""
    heads_LH, rows = votes_LHT.sum(-1), []
    for side, sign in (("target", 1), ("against", -1)):
        for at in (sign * heads_LH).flatten().argsort(descending=True)[:NAMED].tolist():
            layer, head = divmod(at, found.anatomy.n_heads)
            vote = float(heads_LH[layer, head])
            if vote * sign <= 0:
                break
            source = int((sign * votes_LHT[layer, head]).argmax())
            rows.append({
                "side": side, "address": str(Address("attn", layer, head=head)), "vote_logits": vote, "position": source,
                "text": found.written(found.ids[source]), "source_logits": float(votes_LHT[layer, head, source]),
                "share": float(found.base.layers[layer].pattern_BHTT[0, head, -1, source]),
                "statement": _statement(pair, source),
                "swapped_logits": None if swapped_LH is None else float(swapped_LH[layer, head]),
            })  # fmt: skip
    return rows


def _statement(pair: Statements | None, position: int) -> str | None:
    """The side whose statement a position lies in."""
    if pair is None:
        return None
    return next((s for s in ("target", "against") if getattr(pair, s).begin <= position < getattr(pair, s).end), None)


def _pair(
    found: Decision, pair: Statements, ran: list[dict[str, Any]], votes_LHT: Tensor, swapped_LH: Tensor
) -> dict[str, Any]:
    now, other = (r["difference_logits"] for r in ran[:2])
    first, second = pair.in_order
    target_last, target_first = (now, other) if second is pair.target else (other, now)
    heads_LH = votes_LHT.sum(-1)
    read = {side: float(votes_LHT[..., p.begin : p.end].sum()) for side, p in vars(pair).items()}
    return {
        "target_text": pair.target.text, "against_text": pair.against.text, "target_first": first is pair.target,
        "recency_logits": target_last - target_first, "content_logits": (target_last + target_first) / 2,
        "read_target": read["target"], "read_against": read["against"],
        "read_elsewhere": float(votes_LHT.sum()) - read["target"] - read["against"],
        "same_heads": rank_correlation(heads_LH.flatten().tolist(), swapped_LH.flatten().tolist()),
        "tokenised_anew": as_text(found, first.begin, second.end),
    }  # fmt: skip
