"""The page of the heads: the answer, the wall, cards, roles, weights, levels, history, teachers, limits."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from markupsafe import Markup

from intaglio.atlas import AtlasData
from intaglio.report.heads.answer import answer
from intaglio.report.heads.cards import card_data
from intaglio.report.heads.circuits import cluster_rows, graph, level_rows, scatter
from intaglio.report.heads.history import event_rows, history
from intaglio.report.heads.roles import left_out, role_rows
from intaglio.report.heads.seen import Seen, seen
from intaglio.report.heads.teachers import teacher_tables
from intaglio.report.heads.wall import head_link, legend, wall
from intaglio.report.heads.words import HeadWords
from intaglio.report.page import asset, environment

SCRIPTS = ("page.js", "heads/inflate.js", "heads/pattern.js", "heads/card.js", "heads/wall.js")
SIZES = ("n_layers", "n_heads", "n_key_heads", "head_dim", "width")


def render_heads(atlas: AtlasData, *, lang: str = "en") -> str:
    """The atlas as one HTML file without any reference to the network; any tables may be missing.

    Args:
        atlas: what was found; `about["choices"]` may hold decisions that heads took part in.
        lang: "en" or "ru".

    Raises:
        InputError: there is no catalogue for `lang`.
    """
    t = HeadWords(lang)
    sides = [seen(side) for side in (atlas, *atlas.beside)]
    first = sides[0]
    sections = {name: made for name, made in _sections(t, first).items() if made}
    return (
        environment()
        .get_template("heads.html.jinja")
        .render(
            t=t,
            n=t.numbers,
            lang=lang,
            about=atlas.about,
            title=first.name,
            answer=answer(t, first),
            walls=[wall(t, s) for s in sides] if first.by_head else [],
            sections=sections,
            css=_css(),
            js=Markup("\n".join(asset(name) for name in SCRIPTS)),
            head_link=head_link,
            data=_as_json(card_data(t, sides, atlas.about.get("choices") or [])),
            sizes=_sizes(t, atlas.about),
            version=metadata.version("intaglio"),
            left_out=left_out(t, first),
        legend=legend(t, sides),
            tested=first.tested,
        )
    )


def _sections(t: HeadWords, side: Seen) -> dict[str, Any]:
    """What stands below the wall; empty where its tables are missing."""
    drawn, dots = graph(t, side), scatter(t, side)
    lines = history(t, side)
    return {
        "roles": role_rows(t, side),
        "weights": {"graph": drawn, "scatter": dots} if drawn or dots else None,
        "clusters": cluster_rows(t, side),
        "levels": level_rows(t, side),
        "history": {"lines": lines, "events": event_rows(t, side)} if lines or side.of("events") else None,
        "teachers": teacher_tables(t, side),
    }


def _sizes(t: HeadWords, about: dict[str, Any]) -> str:
    return " · ".join(
        str(t(f"page.sizes.{name}", n=t.numbers.whole(about[name])))
        for name in SIZES
        if isinstance(about.get(name), int)
    )


def _css() -> Markup:
    return Markup(asset("page.css")) + Markup(asset("heads/heads.css"))


def _as_json(data: object) -> Markup:
    """Data inside a script element: nothing in it ends the element or a line of the script."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", " ").replace("\u2029", " "))
