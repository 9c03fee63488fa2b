"""Pictures of one prompt in two models."""

from __future__ import annotations

from typing import Any

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lenses.instruction import pair
from intaglio.report.choice.scheme import Lanes, Step, scheme, sizes
from intaglio.report.choice.words import Words, token
from intaglio.trace import TraceData


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    n = t.numbers
    rows = [
        (token(r["text"]), token(r["next"]), n(r["kl_nats"]), n(r["surprise_a_nats"]), n(r["surprise_b_nats"]), r["rank_a"],
         r["rank_b"])
        for r in sorted(lens["tables"]["tokens"], key=lambda r: -r["kl_nats"])
    ]  # fmt: skip
    columns = ("after", "next", "kl", "surprise_a", "surprise_b", "rank_a", "rank_b")
    return [*pair(t, lens), Rows("tokens", columns, rows, frozenset(columns[2:])), _scheme(t, lens, trace.about)]


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n, tables, tokens = lens["numbers"], lens["tables"], about["tokens"]
    models = [[("this", sizes(t, about["layers"], about["width"]))], [("other", sizes(t, n["layers_b"], n["width_b"]))]]
    logits = "; ".join(sizes(t, tokens, vocabulary) for vocabulary in (about["vocabulary"], n["vocabulary_b"]))
    beside: list[list[Step]] = [[("logits", logits), ("kl", sizes(t, tokens))]]
    beside += [[("lens", sizes(t, 2, len(tables["layers"])))]] if "layers" in tables else []
    beside += [[("votes", sizes(t, 2, n["parts"]))]] if "votes" in tables else []
    return scheme(t, "tuning", [("text", sizes(t, tokens)), Lanes(models), Lanes(beside)])
