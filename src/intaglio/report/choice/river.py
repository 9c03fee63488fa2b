"""The picture of a decision: tokens by layers, with the signed votes that flow from each token to the last.  Pure SVG."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from markupsafe import Markup

from intaglio.address import parse
from intaglio.report.choice.words import Words, visible

WIDTH, LEFT, RIGHT, TOP, ROW = 880, 46, 112, 14, 13
MOST_EDGES = 160
HEADS = 6  # named in an edge's hover text


def strongest(votes: list[dict[str, Any]]) -> float:
    """The largest line or square of the picture, in logits."""
    edges, stems = _summed(votes)
    return max([abs(e["vote"]) for e in (*edges.values(), *stems.values())], default=0.0) or 1.0


def river(
    t: Words, about: dict[str, Any], prompt: list[dict[str, Any]], votes: list[dict[str, Any]], *,
    top: float | None = None, width: int = WIDTH,
) -> Markup:  # fmt: skip
    """Edges from every token (column) at every layer (row, the first at the bottom) to the last token; MLPs on its stem.

    Args:
        top: the vote that is drawn widest, in logits; the picture's own strongest if not given.
    """
    n, layers, height = len(prompt), about["layers"], about["layers"] * ROW
    edges, stems = _summed(votes)
    top = strongest(votes) if top is None else top

    def x(i: int) -> float:
        return LEFT + (width - LEFT - RIGHT) * (i + 0.5) / n

    def y(layer: int) -> float:
        return TOP + height - ROW * (layer + 0.5)

    last = x(n - 1)
    drawn = [_rule(t, layer, y(layer)) for layer in range(0, layers, max(2, round(layers / 6)))]
    drawn += [Markup('<line class="col" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x(i), TOP, TOP + height)
              for i in range(n)]  # fmt: skip
    for (layer, source), edge in sorted(edges.items(), key=lambda e: abs(e[1]["vote"]))[-MOST_EDGES:]:
        drawn.append(_edge(t, x(source), last, y(layer), edge, top, prompt[source]["text"], layer, source))
    for layer, stem in stems.items():
        drawn.append(_stem(t, last, y(layer), stem, top, layer))
    room = (width - LEFT - RIGHT) / n  # for a column
    flat, step = room * 12 >= WIDTH - LEFT - RIGHT, max(1, math.ceil(14 / room))
    labels = [_label(x(i), TOP + height + 12, row["letters"] or "‥", flat)
              for i, row in enumerate(prompt) if (n - 1 - i) % step == 0]  # fmt: skip
    size = TOP + height + (20 if flat else 86)
    return Markup(
        '<svg class="river" viewBox="0 0 {} {}" role="img" aria-label="{}" data-top="{:.4f}">{}{}{}</svg>'
    ).format(width, size, t("page.river.label"), top, Markup("").join(drawn), Markup("").join(labels),
             _end(t, about, last, TOP + 4))  # fmt: skip


def _summed(votes: list[dict[str, Any]]) -> tuple[dict[tuple[int, int], dict], dict[int, dict]]:
    """Heads by layer and source, MLPs by layer; each with the parts that make it up."""
    edges: dict[tuple[int, int], dict] = defaultdict(lambda: {"vote": 0.0, "heads": []})
    stems: dict[int, dict] = defaultdict(lambda: {"vote": 0.0})
    for row in votes:
        address = parse(row["address"]) if row["address"] not in ("unembed.scale", "unembed.softcap") else None
        if address is None or address.layer is None:
            continue
        if row["source"] is not None:
            edge = edges[address.layer, row["source"]]
            edge["vote"] += row["vote_logits"]
            edge["heads"].append((row["address"], row["vote_logits"]))
        elif address.part == "mlp":
            stems[address.layer]["vote"] += row["vote_logits"]
    return edges, stems


def _edge(t: Words, x0: float, x1: float, y: float, edge: dict, top: float, text: str, layer: int, source: int) -> Markup:
    share = abs(edge["vote"]) / top
    heads = sorted(edge["heads"], key=lambda h: -abs(h[1]))[:HEADS]
    named = "\n".join(f"{address.split('.')[-1]}  {t.numbers.signed(vote)}" for address, vote in heads)
    tip = t("page.river.edge", token=visible(text), layer=layer, vote=t.numbers.signed(edge["vote"])) + "\n" + named
    if abs(x1 - x0) < 1:  # the last token read by itself
        path = f"M{x1:.1f},{y:.1f}m-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0"
    else:
        lift = min(26.0, 0.12 * abs(x1 - x0))
        path = f"M{x0:.1f},{y:.1f}C{x0:.1f},{y - lift:.1f} {x1:.1f},{y - lift:.1f} {x1:.1f},{y:.1f}"
    return Markup(
        '<path class="edge {}" d="{}" stroke-width="{:.2f}" data-v="{:.4f}" data-layer="{}" data-source="{}" '
        'tabindex="0" data-tip="{}"/>'
    ).format("for" if edge["vote"] > 0 else "anti", path, 0.6 + 7.5 * share, abs(edge["vote"]), layer, source, tip)


def _stem(t: Words, x: float, y: float, stem: dict, top: float, layer: int) -> Markup:
    side = 2 + 9 * (abs(stem["vote"]) / top) ** 0.5
    tip = t("page.river.mlp", layer=layer, vote=t.numbers.signed(stem["vote"]))
    return Markup(
        '<rect class="stem {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-v="{:.4f}" data-layer="{}" '
        'tabindex="0" data-tip="{}"/>'
    ).format("for" if stem["vote"] > 0 else "anti", x + 5, y - side / 2, side, side, abs(stem["vote"]), layer, tip)


def _rule(t: Words, layer: int, y: float) -> Markup:
    return Markup('<text class="lay addr" tabindex="0" x="{}" y="{:.1f}">L{}</text>').format(LEFT - 8, y + 4, layer)


def _label(x: float, y: float, text: str, flat: bool) -> Markup:
    shown = visible(text)
    shown = shown if len(shown) <= 14 else shown[:13] + "…"
    if flat:
        return Markup('<text class="tok-label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x, y, shown)
    return Markup('<text class="tok-label" transform="translate({:.1f},{}) rotate(-58)" text-anchor="end">{}</text>').format(
        x + 4, y - 4, shown)  # fmt: skip


def _end(t: Words, about: dict[str, Any], x: float, y: float) -> Markup:
    p = t.numbers.percent(about["target"]["probability"])
    return Markup('<text class="chosen" x="{:.1f}" y="{}">{}</text><text class="lay s" x="{:.1f}" y="{}">{}</text>').format(
        x + 22, y + 6, visible(about["target"]["text"])[:10], x + 22, y + 22, p)  # fmt: skip
