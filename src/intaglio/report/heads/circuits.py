"""Weights alone: copying by weights against copying on data, the graph of compositions; groups of patterns; levels.  SVG."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from intaglio.report.heads.axes import round_values, svg
from intaglio.report.heads.seen import Row, Seen, brief, place, short
from intaglio.report.heads.wall import chip
from intaglio.report.heads.words import HeadWords, colour

EDGES = 14  # of the graph, of each side
SIDES = ("q", "k", "v")
WIDTH = 960
FEATURES = 5  # of a group, the largest


def scatter(t: HeadWords, side: Seen) -> Markup | None:
    """Copying score of the weights (across) against copying on data (up), a dot per head."""
    data = {
        short(r["address"]): r["score"]
        for r in side.of("scores")
        if r["role"] == "copying" and r.get("score") is not None
    }
    points = [
        (short(r["address"]), r["ov_copying"], data[short(r["address"])])
        for r in side.of("weights")
        if r.get("ov_copying") is not None and short(r["address"]) in data
    ]
    if len(points) < 2:
        return None
    left, top, width, height = 52, 12, 620, 300
    low, high = min(0.0, *(y for *_, y in points)), max(0.01, *(y for *_, y in points))
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad

    def at(x: float, y: float) -> tuple[float, float]:
        return left + width * (x + 1) / 2, top + height * (high - y) / (high - low)

    drawn = [
        _tick(*at(x, low), t.numbers.signed(x, 2), vertical=True, reach=height) for x in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]
    drawn += [_tick(*at(-1, y), t.numbers(brief(y, 2), 2), vertical=False, reach=width) for y in round_values(low, high)]
    for name, x, y in sorted(points, key=lambda p: side.by_head[p[0]].get("evidence") or 0.0):
        px, py = at(x, y)
        paint = colour(side.by_head[name]["role"])
        tip = t(
            "page.weights.dot",
            head=name,
            role=_role(t, side, name),
            weights=t.numbers.signed(x, 2),
            data=t.numbers.signed(y, 2),
        )
        drawn.append(
            Markup(
                '<a href="#head={0}" data-head="{0}" data-tip="{4}"><circle class="{3}" cx="{1:.1f}" cy="{2:.1f}" r="4.5"/></a>'
            ).format(name, px, py, "none" if paint is None else f"c{paint}", tip)
        )
    drawn.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            left + width / 2, top + height + 36, t("page.weights.across")
        )
    )
    drawn.append(
        Markup('<text class="axis" transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            top + height / 2, t("page.weights.up")
        )
    )
    return svg("scatter", left + width + 12, top + height + 44, t("page.weights.scatter"), drawn)


def _role(t: HeadWords, side: Seen, name: str) -> Markup:
    role = side.by_head[name]["role"]
    return t("page.unresolved") if colour(role) is None else t.role(role)


def _tick(x: float, y: float, label: str, *, vertical: bool, reach: float) -> Markup:
    if vertical:
        line = Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
            x, y, y - reach
        )
        return line + Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x, y + 16, label)
    line = Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(x, x + reach, y, y)
    return line + Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(x - 6, y + 4, label)


def graph(t: HeadWords, side: Seen) -> Markup | None:
    """The strongest compositions: layers from left to right, an edge from the head that writes to the one that reads."""
    edges = [
        r for r in side.of("composition") if place(r["reader"]) and place(r["writer"]) and r.get("score") is not None
    ]
    edges = [r for which in SIDES for r in sorted((e for e in edges if e["side"] == which), key=_weight)[-EDGES:]]
    if not edges:
        return None
    left, top, row = 34, 16, max(9.0, min(34.0, 420 / side.heads))
    column = (WIDTH - left - 30) / max(1, side.layers - 1)
    most = max(abs(_weight(r)) for r in edges) or 1.0

    def at(address: str) -> tuple[float, float]:
        layer, head = place(address)
        return left + column * layer, top + row * (head + 0.5)

    drawn = [
        _layer(layer, left + column * layer, top + row * side.heads)
        for layer in range(0, side.layers, max(1, round(side.layers / 10)))
    ]
    drawn += [_edge(t, r, at(r["writer"]), at(r["reader"]), most) for r in edges]
    for address in sorted({r[end] for r in edges for end in ("reader", "writer")}, key=place):
        drawn.append(_node(t, side, address, *at(address)))
    return svg("graph", WIDTH, top + row * side.heads + 40, t("page.weights.graph"), drawn)


def _weight(row: Row) -> float:
    return row["excess"] if row.get("excess") is not None else row["score"]


def _edge(t: HeadWords, row: Row, start: tuple[float, float], stop: tuple[float, float], most: float) -> Markup:
    (x0, y0), (x1, y1) = start, stop
    names = short(row["writer"]), short(row["reader"])
    tip = t(
        "page.weights.edge",
        writer=names[0],
        reader=names[1],
        side=t(f"page.weights.side_{row['side']}"),
        score=t.numbers(row["score"], 2),
        null=t.numbers(row.get("null"), 2),
        excess=t.numbers(row.get("excess"), 2),
    )
    bend = (x1 - x0) / 2
    path = f"M{x0:.1f},{y0:.1f}C{x0 + bend:.1f},{y0:.1f} {x1 - bend:.1f},{y1:.1f} {x1:.1f},{y1:.1f}"
    return Markup('<path class="edge s-{}" d="{}" stroke-width="{:.1f}" data-ends="{} {}" data-tip="{}"/>').format(
        row["side"], path, 0.8 + 3 * abs(_weight(row)) / most, *names, tip
    )


def _node(t: HeadWords, side: Seen, address: str, x: float, y: float) -> Markup:
    name = short(address)
    paint = colour(side.by_head[name]["role"]) if name in side.by_head else None
    label = t("page.weights.node", head=name, role=_role(t, side, name) if name in side.by_head else "")
    return Markup(
        '<a href="#head={0}" data-head="{0}" data-tip="{4}"><circle class="{3}" cx="{1:.1f}" cy="{2:.1f}" r="4"/>'
        '<text x="{1:.1f}" y="{5:.1f}" text-anchor="middle">{0}</text></a>'
    ).format(name, x, y, "none" if paint is None else f"c{paint}", label, y - 6)


def _layer(layer: int, x: float, y: float) -> Markup:
    return Markup(
        '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="10" y2="{1:.1f}"/>'
        '<text x="{0:.1f}" y="{2:.1f}" text-anchor="middle">{3}</text>'
    ).format(x, y, y + 16, layer)


def cluster_rows(t: HeadWords, side: Seen) -> list[dict[str, Any]]:
    """Groups of heads with alike patterns."""
    members: dict[int, list[str]] = {}
    for name, row in side.by_head.items():
        if row.get("cluster") is not None:
            members.setdefault(row["cluster"], []).append(name)
    return [
        {
            "cluster": r["cluster"],
            "name": chip(t, r["name"]),
            "heads": t.numbers.whole(r["heads"]),
            "stability": t.numbers(r.get("stability"), 2),
            "members": members.get(r["cluster"], []),
            "features": _features(t, r.get("features")),
        }
        for r in sorted(side.of("clusters"), key=lambda r: r["cluster"])
    ]


def _features(t: HeadWords, text: str | None) -> Markup:
    """A group's mean features in words, unknown ones by their own name."""
    try:
        features = json.loads(text or "{}")
    except ValueError:
        return Markup.escape(text or "")
    told = [(t(f"page.feature.{k}") if f"page.feature.{k}" in t else k, v) for k, v in features.items()]
    if all(isinstance(v, int | float) for _, v in told):
        told = sorted(told, key=lambda p: -p[1])[:FEATURES]
    return Markup("; ").join(
        Markup("{} {}").format(name, t.numbers(v, 2) if isinstance(v, int | float) else v) for name, v in told
    )


def level_rows(t: HeadWords, side: Seen) -> list[dict[str, Any]]:
    """Each level of the architecture: what it can store, and this model's numbers."""
    n, found = t.numbers, []
    for r in side.of("levels"):
        name, rank, full = r["level"], r.get("effective_rank"), r.get("full_rank")
        said = {
            k: t(f"levels.{name}.{k}")
            for k in ("title", "stores", "written", "gradient", "sources")
            if f"levels.{name}.{k}" in t
        }
        found.append(
            {
                "level": said.get("title", name),
                "said": said,
                "parameters": n(r["parameters"]),
                "share": n.percent(r["share"]),
                "width": f"{100 * (r['share'] or 0):.1f}",
                "length": n(r.get("weight_l2")),
                "rank": n(rank, 3),
                "full": n(full, 3),
                "of": n.percent(rank / full) if rank is not None and full else n.missing,
                "top": n.percent(r.get("top_share")),
                "shared": _shared(t, r.get("shared_with")),
                "moved": n.percent(r.get("moved")),
                "moved_rank": n(r.get("moved_rank"), 3),
            }
        )
    return found


def _shared(t: HeadWords, level: str | None) -> str:
    """The other level that this one is the same matrix as; "" where it is its own."""
    name = f"levels.{level}.title"
    return str(t(name) if name in t else level) if level else ""
