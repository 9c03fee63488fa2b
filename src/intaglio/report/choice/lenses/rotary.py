"""Pictures of rotary positions: the choice at other scales, attention by distance, a score pair by pair."""

from __future__ import annotations

import itertools
from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, part, token, visible
from intaglio.trace import TraceData

ACROSS = 3  # small pictures side by side
PAIRED = 3  # heads whose scores are drawn pair by pair
LOUD = 0.03  # shares above it get a dot and hover text
Row = dict[str, Any]


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    n, tables = lens["numbers"], lens["tables"]
    return [
        Figure("scales", _scales(t, n, tables["scales"])), Figure("distance", _distance(t, tables)),
        Figure("pairs", _pairs(t, tables["edges"])), _edges(t, tables["edges"]), _scale_rows(t, tables["scales"]),
        _kinds(t, n, tables["kinds"]), _scheme(t, n, tables["kinds"][0]),
    ]  # fmt: skip


def _scales(t: Words, n: Row, rows: list[Row]) -> Markup:
    drawn = []
    for way in ("positions", "base"):
        points = [
            (r["factor"], r["probability"], str(t(
                f"rotary.tip.{way}", factor=t.numbers(r["factor"]), p=t.numbers.percent(r["probability"]),
                first=visible(r["first"]), kl=t.numbers(r["kl_nats"]))))
            for r in rows if r["way"] == way
        ]  # fmt: skip
        drawn.append(Panel(str(t(f"rotary.axis.{way}")), [Line("p", points)], top=1.0, rule=n["probability"], log_x=True))
    return panels(t, "rotary-scales", str(t("rotary.figure.scales.title")), str(t("rotary.axis.factor")), drawn)


def _distance(t: Words, tables: dict[str, list[Row]]) -> Markup:
    """Attention as it was, and as it would be by distance alone. First all heads, then the strongest."""
    small = [_small(t, str(t("rotary.axis.all_heads")), tables["distances"])]
    for address, rows in itertools.groupby(tables["profiles"], key=lambda r: r["address"]):
        own = list(rows)
        r = own[0]["correlation"]
        title = address if r is None else f"{address}, r = {t.numbers.signed(r, 2)}"
        small.append(_small(t, title, own))
    lines = [alt.hconcat(*small[i : i + ACROSS], spacing=20) for i in range(0, len(small), ACROSS)]
    label = str(t("rotary.figure.distance.title"))
    picture = svg(alt.vconcat(*lines, spacing=12), name="rotary-distance", label=label, lang=t.lang)
    line = Markup('<span><i class="line" style="border-color:var(--{})"></i>{}</span>')
    keys = Markup("").join(line.format(ink, t(f"rotary.key.{k}")) for ink, k in (("accent", "measured"), ("against", "alone")))
    return Markup('<div class="inlinekey">{}</div>{}').format(keys, picture)


def _small(t: Words, title: str, rows: list[Row]) -> alt.LayerChart:
    n, far = t.numbers, max(r["distance"] for r in rows)
    points = [{"x": r["distance"], "measured": r["measured"], "alone": r["alone"]} for r in rows]
    loud = [
        {"x": r["distance"], "measured": r["measured"], "tip": str(t(
            "rotary.tip.distance", distance=n.whole(r["distance"]), measured=n.percent(r["measured"]),
            alone=n.percent(r["alone"])))}
        for r in rows if r["measured"] > LOUD
    ]  # fmt: skip
    width = (WIDTH - 60) / ACROSS - 62
    x = alt.X("x:Q", axis=axis(str(t("rotary.axis.distance")), t.lang, grid=False, tickCount=5, tickMinStep=1),
              scale=alt.Scale(nice=False, domain=[-0.5, far + 0.5]))  # fmt: skip
    up = alt.Y("measured:Q", axis=axis(None, t.lang, tickCount=4))
    base = alt.Chart(data(points)).encode(x=x)
    seen = base.mark_line(color=colour("accent"), strokeWidth=1.6).encode(y=up)
    line = base.mark_line(color=colour("against"), strokeWidth=1.6).encode(y="alone:Q")
    ends = alt.Chart(data(loud)).mark_point(filled=True, size=22, opacity=1, color=colour("accent"))
    layers = [line, seen, *([ends.encode(x=x, y=up, description="tip:N")] if loud else [])]
    return alt.layer(*layers).properties(width=width, height=110, title=title)


def _pairs(t: Words, edges: list[Row]) -> Markup:
    """What each token has above the others, added up from the fastest pair to the slowest."""
    lines = []
    for i, edge in enumerate(edges[:PAIRED]):
        total, points = 0.0, []
        for pair in edge["pairs"]:
            total += pair["over"]
            if pair["tokens_per_turn"] is not None:
                tip = str(t("rotary.tip.pair", head=edge["address"], turn=t.numbers(pair["tokens_per_turn"]),
                            share=t.numbers.signed(pair["over"])))  # fmt: skip
                points.append((pair["tokens_per_turn"], total, tip))
        lines.append(Line(edge["address"], points, f"g{i}"))
    panel = Panel(str(t("rotary.axis.added")), lines, log_x=True)
    return panels(t, "rotary-pairs", str(t("rotary.figure.pairs.title")), str(t("rotary.axis.turn")), [panel])


def _edges(t: Words, edges: list[Row]) -> Rows:
    n = t.numbers
    cells = [
        (part(e["address"]), n.signed(e["vote_logits"]), token(e["token"]), e["distance"], n.percent(e["attention"]),
         n.signed(e["score"]), n.signed(e["over"]), n.signed(e["fast"]), n.signed(e["slow"]), n.signed(e["unturned"]))
        for e in edges
    ]  # fmt: skip
    columns = ("head", "vote", "token", "distance", "attention", "score", "over", "fast", "slow", "unturned")
    return Rows("edges", columns, cells, frozenset(columns) - {"head", "token"})


def _scale_rows(t: Words, rows: list[Row]) -> Rows:
    n = t.numbers
    cells = [
        (t(f"rotary.way.{r['way']}"), n(r["factor"]), n.percent(r["probability"]), n.signed(r["difference_logits"]),
         n(r["kl_nats"]), token(r["first"]))
        for r in rows if r["way"] == "positions" or r["factor"] != 1  # the model as it is stands once
    ]  # fmt: skip
    columns = ("way", "factor", "probability", "difference", "kl", "first")
    return Rows("scale_rows", columns, cells, frozenset(columns[1:5]), len(rows))


def _kinds(t: Words, n: Row, kinds: list[Row]) -> Rows:
    cells = [
        (_ranges(k["layers"]), t.numbers.whole(2 * k["pairs"]), t.numbers.whole(n["query_size"]), t.numbers(k["base"]),
         t.numbers(k["shortest_tokens"]), t.numbers(k["longest_tokens"]))
        for k in kinds
    ]  # fmt: skip
    columns = ("layers", "turned", "of", "base", "shortest", "longest")
    return Rows("kinds", columns, cells, frozenset(columns[1:]))


def _ranges(layers: list[int]) -> str:
    """0–3, 5, 7–9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _scheme(t: Words, n: Row, kind: Row) -> Figure:
    size, tokens = n["query_size"], n["tokens"]
    return scheme(t, "rotary", [
        ("query", sizes(t, tokens, size)), ("pairs", sizes(t, kind["pairs"], 2)), ("angles", sizes(t, tokens, kind["pairs"])),
        ("scores", sizes(t, tokens, tokens)),
    ])  # fmt: skip
