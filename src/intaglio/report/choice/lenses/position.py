"""Swaps of neighbouring words, and shifts of all positions."""

from __future__ import annotations

from typing import Any

from intaglio.report.choice.bars import Bar, bars
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, scheme, sizes
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
    return [*blocks, _scheme(t, lens, trace.about)]


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n = lens["numbers"]
    runs = {"pairs": n["pairs"], "shuffles": n["shuffles"], "reversed": int(n["reversed"] is not None),
            "shifts": len(lens["tables"]["shifts"])}  # fmt: skip
    ways = [[(key, sizes(t, count, about["tokens"]))] for key, count in runs.items() if count]
    return scheme(t, "position", [
        ("text", sizes(t, about["tokens"])), Lanes(ways), ("logits", sizes(t, sum(runs.values()), about["vocabulary"])),
        ("changes", sizes(t, sum(runs.values()))),
    ])  # fmt: skip


def _pair(row: dict[str, Any]) -> str:
    return " ⇄ ".join(visible(row[side].strip()) for side in ("left", "right"))
