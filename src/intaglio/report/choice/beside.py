"""Two sides of a question next to each other: two models, two prompts or two tokens, with one selection.  Plain markup."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.opened import side_name
from intaglio.report.choice.river import river, strongest
from intaglio.report.choice.words import Words, part, token
from intaglio.trace import TraceData

WIDTH = 470  # of one picture
CANDIDATES, VOTES = 8, 20


def beside(t: Words, trace: TraceData) -> list[dict[str, Any]]:
    """For every second side: its name, both pictures on one scale, both tables."""
    return [_pair(t, trace, side) for side in trace.beside]


def _pair(t: Words, a: TraceData, b: TraceData) -> dict[str, Any]:
    top = max(strongest(a.rows["votes"]), strongest(b.rows["votes"]))
    pictures = [river(t, s.about, s.rows["prompt"], s.rows["votes"], top=top, width=WIDTH) for s in (a, b)]
    return {
        "name": side_name(t, b), "pictures": pictures, "questions": [_question(t, s.about) for s in (a, b)],
        "candidates": _candidates(t, a, b), "votes": _votes(t, a, b),
    }  # fmt: skip


def _question(t: Words, about: dict[str, Any]) -> Markup:
    """What is weighed on a side, and how it came out."""
    other = about["against"]
    values = dict(
        token=token(about["target"]["text"]), difference=t.numbers.signed(about["difference_logits"]),
        p=t.numbers.percent(about["target"]["probability"]),
    )  # fmt: skip
    return t("page.beside.weighed_mean", **values) if other is None else t(
        "page.beside.weighed", other=token(other["text"]), **values)  # fmt: skip


def _candidates(t: Words, a: TraceData, b: TraceData) -> list[tuple[Markup, str, Markup, str]]:
    def shown(side: TraceData) -> list[tuple[Markup, str]]:
        return [(token(r["text"]), t.numbers.percent(r["probability"])) for r in side.rows["candidates"][:CANDIDATES]]

    return [(*x, *y) for x, y in zip(shown(a), shown(b))]


def _votes(t: Words, a: TraceData, b: TraceData) -> list[tuple[Markup, str, str, str]]:
    """The parts whose votes are strongest on either side; a part that one side lacks stays empty there.

    Models of other sizes have parts of the same names that are not the same part: no change is given.
    """
    here, there = ({r["address"]: r["part_logits"] for r in side.rows["votes"]} for side in (a, b))
    loud = sorted(here.keys() | there.keys(), key=lambda p: (-max(abs(here.get(p, 0.0)), abs(there.get(p, 0.0))), p))[:VOTES]
    n, alike = t.numbers, all(a.about[size] == b.about[size] for size in ("layers", "heads", "width"))
    return [
        (part(p), *(n.signed(side[p]) if p in side else "—" for side in (here, there)),
         n.signed(there[p] - here[p]) if alike and p in here and p in there else "—")
        for p in loud
    ]  # fmt: skip
