"""Pictures of what was written into the residual stream at the decision, and of the final norm's gain."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, part
from intaglio.trace import TraceData

STRONGEST = 14
CELL, LEFT = 26, 74
LINES = (("attn", ("against", (5, 3))), ("mlp", ("accent",)))  # colour and dashes


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    tables = lens["tables"]
    return [
        Figure("lengths", _panels(t, tables["writes"], "lengths", ("length", "cos_before"))),
        Figure("shares", _panels(t, tables["writes"], "shares", ("share", "vote_logits"))),
        _writes(t, tables["writes"]), Figure("cosines", cosines(t, tables["cosines"])), _pairs(t, tables["pairs"]),
        _coordinates(t, tables["coordinates"]), _scheme(t, trace.about),
    ]  # fmt: skip


def _panels(t: Words, rows: list[dict[str, Any]], key: str, fields: tuple[str, ...]) -> Markup:
    drawn = [
        Panel(str(t(f"residual.axis.{field}")), [_line(t, rows, field, kind, *how) for kind, how in LINES],
              log=field == "length" and all(r["length"] > 0 for r in rows), rule=None if field == "length" else 0.0)
        for field in fields
    ]  # fmt: skip
    return panels(t, f"residual-{key}", str(t(f"residual.figure.{key}.title")), str(t("residual.axis.layer")), drawn)


def _line(t: Words, rows: list[dict[str, Any]], field: str, kind: str, ink: str, dash: tuple[int, int] = (1, 0)) -> Line:
    points = [
        (int(layer[1:]), r[field], f"{r['address']} · {t(f'residual.axis.{field}')}: {t.numbers(r[field])}")
        for r in rows for layer, _, what in [r["address"].partition(".")] if what == kind
    ]  # fmt: skip
    return Line(str(t(f"residual.axis.{kind}")), points, ink, dash)


def _writes(t: Words, rows: list[dict[str, Any]]) -> Rows:
    n = t.numbers
    strongest = sorted(rows, key=lambda r: -abs(r["share"]))[:STRONGEST]
    cells = [
        (part(r["address"]), r["length"], n.percent(r["relative"]), n.signed(r["cos_before"]), n.signed(r["cos_end"]),
         n.percent(r["share"]), n.signed(r["vote_logits"]))
        for r in strongest
    ]  # fmt: skip
    columns = ("write", "length", "relative", "cos_before", "cos_end", "share", "vote")
    return Rows("writes", columns, cells, frozenset(columns[1:]), STRONGEST)


def cosines(t: Words, rows: list[dict[str, Any]]) -> Markup:
    """Cosines between the longest writes: the lower triangle, blue where they agree, rust where they cancel."""
    drawn = []
    for i, row in enumerate(rows):
        y = i * CELL
        drawn.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, y + 17, row["address"]))
        for j, cosine in enumerate(row["with"][:i]):
            shade = min(5, round(5 * abs(cosine) ** 0.5))
            tip = f"{row['address']} · {rows[j]['address']}: {t.numbers.signed(cosine)}"
            drawn.append(Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" data-tip="{}"/>').format(
                f"{'p' if cosine > 0 else 'n'}{shade}" if shade else "none", LEFT + j * CELL, y, CELL - 1, CELL - 1, tip))
        drawn.append(Markup('<text x="{}" y="{}">{}</text>').format(LEFT + i * CELL + 4, y + 17, row["address"]))
    width = LEFT + len(rows) * CELL + 70
    return Markup('<svg class="wall" viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">{}</svg>').format(
        width, len(rows) * CELL, width, t("residual.figure.cosines.title"), Markup("").join(drawn))  # fmt: skip


def _pairs(t: Words, rows: list[dict[str, Any]]) -> Rows:
    n = t.numbers
    cells = [
        (part(r["first"]), part(r["second"]), n.signed(r["cosine"]), n.signed_percent(r["share"]),
         n.signed(r["first_vote_logits"]), n.signed(r["second_vote_logits"]))
        for r in rows
    ]  # fmt: skip
    columns = ("first", "second", "cosine", "pair_share", "first_vote", "second_vote")
    return Rows("pairs", columns, cells, frozenset(columns[2:]))


def _coordinates(t: Words, rows: list[dict[str, Any]]) -> Rows:
    n = t.numbers
    fields = ("value", "gain", "asked", "vote_logits")
    cells = [(r["coordinate"], *(n.signed(r[field]) for field in fields)) for r in rows]
    columns = ("coordinate", "value", "gain", "asked", "vote")
    return Rows("coordinates", columns, cells, frozenset(columns))


def _scheme(t: Words, about: dict[str, Any]) -> Figure:
    width = about["width"]
    return scheme(t, "residual", [
        ("start", sizes(t, width)), ("writes", f"2 × {t.numbers.whole(about['layers'])} × {sizes(t, width)}"),
        ("sum", sizes(t, width)), ("scale", "1"), ("gain", sizes(t, width)), ("asked", sizes(t, width)), ("vote", "1"),
    ])  # fmt: skip
