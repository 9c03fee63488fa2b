"""The page of two runs: sections in the order of a run's own page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intaglio.findings import Findings
from intaglio.report.captions import caption
from intaglio.report.compare.answer import answer
from intaglio.report.compare.books import books
from intaglio.report.compare.data import groups, table, volatility
from intaglio.report.compare.limits import in_short, limits
from intaglio.report.compare.movement import movement
from intaglio.report.compare.places import places
from intaglio.report.compare.probes import probes
from intaglio.report.compare.texts import texts
from intaglio.report.compare.two import Two
from intaglio.report.page import fill

SECTIONS = {
    "answer": answer, "books": books, "movement": movement, "volatility": volatility, "groups": groups,
    "places": places, "texts": texts, "probes": probes, "limits": limits, "table": table,
}  # fmt: skip


def render_compare(a: Findings, b: Findings, comparison: Mapping[str, Any], *, lang: str = "en") -> str:
    """The page of two runs: one HTML file without any reference to the network.

    Args:
        a, b: what the analyses found.
        comparison: `intaglio.analyse.compare(a, b)`: whether the subject is the same, the terms of both, which
            examples differ most, how alike both rank them.
        lang: "en" or "ru".

    Raises:
        InputError: there is no catalogue for `lang`.
    """
    two = Two(a, b, comparison, lang)
    found = {name: build(two) for name, build in SECTIONS.items()}
    return fill(
        "compare.html.jinja",
        two.views[0],
        two=two,
        sections=found,
        short=in_short(two),
        title=two.t("compare.title", a=a.name, b=b.name),
        caption=lambda name: caption(two.t, name, of="compare."),
    )
