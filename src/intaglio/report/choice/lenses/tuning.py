"""Pictures of one prompt in two models."""

from __future__ import annotations

from typing import Any

from intaglio.report.choice.blocks import Block, Rows
from intaglio.report.choice.lenses.instruction import show as show_pair
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
    return [*show_pair(t, lens, trace), Rows("tokens", columns, rows, frozenset(columns[2:]))]
