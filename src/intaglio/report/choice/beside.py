"""The sides of a question next to each other: models, prompts or tokens, any two with one selection.  Plain markup.

All sides stand here; the page's script shows two of them, and tables their votes.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.opened import side_name
from intaglio.report.choice.river import river, strongest
from intaglio.report.choice.words import Words, token
from intaglio.trace import TraceData

WIDTH = 470  # of one picture
CANDIDATES = 8


def beside(t: Words, trace: TraceData) -> list[dict[str, Any]]:
    """Every side, this choice first, all pictures on one scale; none where there is no second."""
    if not trace.beside:
        return []
    sides = [trace, *trace.beside]
    top = max(strongest(side.rows["votes"]) for side in sides)
    return [
        {"name": side_name(t, side), "question": _question(t, side.about), "candidates": _candidates(t, side),
         "picture": river(t, side.about, side.rows["prompt"], side.rows["votes"], top=top, width=WIDTH)}
        for side in sides
    ]  # fmt: skip


def _question(t: Words, about: dict[str, Any]) -> Markup:
    """What is weighed on a side, and how it came out."""
    other = about["against"]
    values = dict(
        token=token(about["target"]["text"]), difference=t.numbers.signed(about["difference_logits"]),
        p=t.numbers.percent(about["target"]["probability"]),
    )  # fmt: skip
    return t("page.beside.weighed_mean", **values) if other is None else t(
        "page.beside.weighed", other=token(other["text"]), **values)  # fmt: skip


def _candidates(t: Words, side: TraceData) -> list[tuple[Markup, str]]:
    return [(token(r["text"]), t.numbers.percent(r["probability"])) for r in side.rows["candidates"][:CANDIDATES]]
