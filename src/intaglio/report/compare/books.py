"""The books of both runs: whether each closes, and what its steps were made of."""

from __future__ import annotations

from typing import Any

from intaglio.report.charts import steps as charts
from intaglio.report.compare.two import Two
from intaglio.report.shift import books as single


def books(two: Two) -> dict[str, Any]:
    lines = [{line["kind"] + str(line["name"]): line for line in single.lines(v)} for v in two.views]
    keys = list(dict.fromkeys([*lines[0], *lines[1]]))
    order = {"account": 0, "sum": 1, "step": 2, "difference": 3}
    shown = sorted(
        ((next(own[k] for own in lines if k in own), [own.get(k) for own in lines]) for k in keys),
        key=lambda item: order[item[0]["kind"]],
    )
    return {
        "verdicts": [(single.closes(v), single.verdict(v)) for v in two.views],
        "lines": [
            {"name": any_["name"], "what": any_["what"], "kind": any_["kind"], "sides": sides} for any_, sides in shown
        ],
        "missing": two.missing(lambda v: single.lines(v), "compare.no_books"),
        "remarks": [(v.mark, remark) for v in two.views for remark in single.remarks(v)],
        "chart": charts.books_by_step(*two.views),
        "checks": [
            {"name": a["name"], "means": a["means"], "numbers": (a["number"], b["number"])}
            for a, b in zip(*two.each(single.checks))
        ],
    }
