"""Pictures of the distribution at the decision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from intaglio.report.choice.bars import Bar, bars
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, scheme, sizes
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
    return [*blocks, _scheme(t, lens, trace.about)]


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n, company = lens["numbers"], lens["tables"].get("company")
    vocabulary, held = sizes(t, n["vocabulary"]), (n["half_at"], n["nine_tenths_at"])
    model = [
        ("layers", sizes(t, about["layers"], about["width"])), ("logits", vocabulary), ("shares", vocabulary),
        ("held", _counts(t, held)),
    ]  # fmt: skip
    text = ("text", sizes(t, about["tokens"]))
    if not company:
        return scheme(t, "distribution", [text, *model])
    found = [("endings", sizes(t, len(company))), ("places", _counts(t, [r["times"] for r in company]))]
    return scheme(t, "distribution", [text, Lanes([model, found])])


def _counts(t: Words, counts: Iterable[int]) -> str:
    return "; ".join(t.numbers.whole(n) for n in counts)
