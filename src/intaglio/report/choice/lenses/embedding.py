"""A word's way in two contexts as lines, the contexts themselves, neighbours as a table."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, part, token
from intaglio.trace import TraceData


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    rows, way = lens["tables"]["path"], lens["numbers"]["contexts"]
    blocks: list[Block] = []
    if rows:
        blocks = [Figure("path", _path(t, rows)), Figure("contexts", _contexts(t, way)), _layers(t, rows)]
    return [*blocks, _neighbours(t, lens), _scheme(t, trace.about, lens["numbers"])]


def _path(t: Words, rows: list[dict[str, Any]]) -> Markup:
    def line(field: str, ink: str, dash: tuple[int, int] = (1, 0)) -> Line:
        name = str(t(f"embedding.axis.{field}"))
        return Line(name, [(i, r[field], f"{r['after']} · {name}: {t.numbers(r[field])}") for i, r in enumerate(rows)], ink, dash)

    band = [(i, r["low"], r["high"]) for i, r in enumerate(rows)]
    drawn = [
        Panel(str(t("embedding.axis.both")), [line("cosine", "accent"), line("null", "soft", (5, 3))], band=band),
        Panel(str(t("embedding.axis.beyond")), [line("likeness", "accent")], rule=0.5),
    ]
    return panels(t, "embedding-path", str(t("embedding.figure.path.title")), str(t("embedding.axis.layers")), drawn)


def _contexts(t: Words, way: dict[str, Any]) -> Markup:
    """Both contexts, the word set apart, and what the model would go on with there."""
    one = Markup('<div class="fires"><span>{}</span><ul><li><span class="ctx">{}<mark>{}</mark>{}</span></li>'
                 "<li>{}: {}</li></ul></div>")  # fmt: skip
    return Markup("").join(
        one.format(
            t(f"embedding.axis.context_{side}"), way[side]["before"], way[side]["word"], way[side]["after"],
            t("embedding.axis.goes_on"), Markup(" ").join(token(x) for x in way[f"goes_on_{side}"]),
        )
        for side in "ab"
    )  # fmt: skip


def _layers(t: Words, rows: list[dict[str, Any]]) -> Rows:
    cells = [
        (part(r["after"]), r["cosine"], r["null"], r["likeness"], token(r["first_a"]), token(r["first_b"])) for r in rows
    ]
    return Rows("layers", ("after", "cosine", "null", "likeness", "first_a", "first_b"), cells,
                frozenset(("cosine", "null", "likeness")))  # fmt: skip


def _neighbours(t: Words, lens: dict[str, Any]) -> Rows:
    n, cells = lens["numbers"], []
    for asked in lens["tables"]["asked"]:
        for name in n["null"]:
            near = [r for r in lens["tables"]["neighbours"] if r["role"] == asked["role"] and r["matrix"] == name]
            tokens = Markup(" ").join(
                Markup('<span data-tip="{}">{}</span>').format(t("embedding.tip", cosine=t.numbers(r["cosine"]), id=r["token"]),
                                                               token(r["text"])) for r in near)  # fmt: skip
            which = t(f"embedding.matrix.{'tied' if n['tied'] else name}")
            mean = asked[f"mean_{name}"]
            cells.append((token(asked["text"]), which, tokens, near[0]["cosine"], mean, n["null"][name], asked["common"]))
    columns = ("token", "matrix", "nearest", "closest", "mean", "random", "common")
    kept = columns[:-1] if n["tied"] else columns
    return Rows("neighbours", kept, [row[: len(kept)] for row in cells], frozenset(columns[3:]))


def _scheme(t: Words, about: dict[str, Any], numbers: dict[str, Any]) -> Figure:
    width, tokens = about["width"], about["vocabulary"]
    steps = [("input", sizes(t, tokens, width)), ("vector", sizes(t, width)), ("layers", t.numbers.whole(about["layers"])),
             ("state", sizes(t, width)), ("tied" if numbers["tied"] else "output", sizes(t, tokens, width))]  # fmt: skip
    return scheme(t, "embedding", steps)
