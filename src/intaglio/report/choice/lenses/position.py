"""Swaps of neighbouring words, and shifts of all positions."""

from __future__ import annotations

from typing import Any

from intaglio.report.choice.bars import Bar, bars
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    n, tables = t.numbers, lens["tables"]
    drawn = [
        Bar(_pair(r), r["change_logits"], n.signed(r["change_logits"]), strong=r["first_changed"],
            tip=str(t("position.tip", first=visible(r["first"]), after=n.signed(r["difference_logits"]))))
        for r in tables["swaps"]
    ]  # fmt: skip
    blocks: list[Block] = [Figure("swaps", bars(drawn))]
    if tables["shifts"]:
        rows = [
            (r["shift"], n.signed(r["difference_logits"]), n.signed(r["change_logits"]), token(r["first"]))
            for r in tables["shifts"]
        ]
        columns = ("shift", "difference", "change", "first")
        blocks.append(Rows("shifts", columns, rows, frozenset(columns[:3])))
    return blocks


def _pair(row: dict[str, Any]) -> str:
    return " ⇄ ".join(visible(row[side].strip()) for side in ("left", "right"))
