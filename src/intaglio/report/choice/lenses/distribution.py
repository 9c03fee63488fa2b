"""Pictures of the distribution at the decision."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.bars import Bar, bars
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData

SHOWN = 12


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    candidates, target = lens["tables"]["candidates"], trace.about["target"]["token"]
    drawn = [
        Bar(visible(r["text"]), r["probability"], t.numbers.percent(r["probability"]), strong=r["token"] == target)
        for r in candidates[:SHOWN]
    ]
    blocks: list[Block] = [Figure("candidates", bars(drawn, top=1.0))]
    if lens["tables"].get("company"):
        rows = [
            (token(r["ending"]), r["times"], Markup(", ").join(
                Markup("{} {}").format(token(w["word"]), t.numbers.whole(w["times"])) for w in r["followed_by"]))
            for r in lens["tables"]["company"]
        ]  # fmt: skip
        blocks.append(Rows("company", ("ending", "times", "followed"), rows, frozenset({"times"})))
    return blocks
