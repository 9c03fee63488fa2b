"""One run as one self-contained HTML file."""

from __future__ import annotations

import functools
import json
from importlib import metadata, resources
from typing import Any

import jinja2
from markupsafe import Markup

from intaglio.findings import VERDICTS, Findings
from intaglio.report.captions import caption
from intaglio.report.charts.base import HEAT_LEVELS, colour_rules
from intaglio.report.notices import notices
from intaglio.report.scan import answer as scan_answer
from intaglio.report.scan import data as scan
from intaglio.report.shift.answer import answer
from intaglio.report.shift.books import books
from intaglio.report.shift.data import groups, table, volatility
from intaglio.report.shift.movement import movement
from intaglio.report.shift.places import places
from intaglio.report.shift.probes import probes
from intaglio.report.shift.texts import texts
from intaglio.report.view import View

SECTIONS = {
    "answer": answer, "books": books, "movement": movement, "volatility": volatility, "groups": groups,
    "places": places, "texts": texts, "probes": probes, "limits": lambda view: {}, "table": table,
}  # fmt: skip

SECTIONS_OF_SCAN = {
    "answer": scan_answer.answer, "map": scan.surprise_map, "agreement": scan.agreement, "probes": scan.probes,
    "groups": scan.groups, "rows": scan.rows, "limits": lambda view: {}, "table": scan.table,
}  # fmt: skip


def render(findings: Findings, *, lang: str = "en") -> str:
    """The page of one run, a training or a scan: one HTML file without any reference to the network.

    Args:
        findings: what the analysis of the run found.
        lang: "en" or "ru".

    Raises:
        InputError: there is no catalogue for `lang`.
    """
    view = View(findings, lang)
    template, of, builders = ("scan", "scan.", SECTIONS_OF_SCAN) if findings.scanned else ("page", "", SECTIONS)
    return fill(
        f"{template}.html.jinja",
        view,
        sections={name: build(view) for name, build in builders.items()},
        title=view.t("title", name=findings.name),
        caption=lambda name: caption(view.t, name, of=of),
    )


def fill(template: str, view: View, **values: Any) -> str:
    """A template with the page's style, script and helpers."""
    t = view.t
    return environment().get_template(template).render(
        **{"view": view, "t": t, "n": view.n, "f": view.findings, "lang": view.lang, "css": _css(),
           "js": Markup(asset("page.js")), "manifest": as_json(view),
           "verdicts": [(v, v.replace(" ", "-")) for v in VERDICTS], "levels": range(HEAT_LEVELS),
           "version": metadata.version("intaglio"), "as_json": as_json, "notices_of": notices, **values}
    )  # fmt: skip


def as_json(view: View) -> str:
    """A run's manifest, to be read by people."""
    return json.dumps(view.findings.manifest, indent=1, ensure_ascii=False, sort_keys=True, default=str)


@functools.cache
def environment() -> jinja2.Environment:
    """Templates of this package; everything is escaped unless it is `Markup`, a missing name is an error."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def asset(name: str) -> str:
    return (resources.files("intaglio.report") / "assets" / name).read_text(encoding="utf-8")


def _css() -> Markup:
    return Markup(asset("page.css")) + colour_rules()
