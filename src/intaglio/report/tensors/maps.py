"""Pictures of a difference: a treemap of tensors and grids of layers, one scale of colour for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from intaglio.report.tensors.words import TensorWords

Row = Mapping[str, Any]
WIDTH, HEIGHT = 880, 560
LABEL = 13  # height of a layer's name
COLUMNS = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "norm", "other")


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Rectangles of given areas that fill `box`, as square as the order of `sizes` allows.

    Strips are filled in order while that makes their rectangles squarer (Bruls, Huizing and van Wijk 2000, kept in order).
    """
    total = sum(sizes)
    if not sizes or total <= 0:
        return [Box(box.x, box.y, 0, 0) for _ in sizes]
    areas = [s / total * box.width * box.height for s in sizes]
    found: list[Box] = []
    while len(found) < len(areas):
        rest = areas[len(found) :]
        count = _strip(rest, min(box.width, box.height))
        strip, box = _cut(rest[:count], box)
        found += strip
    return found


def _strip(areas: Sequence[float], side: float) -> int:
    """How many areas to lay along `side` before the worst rectangle gets worse."""
    best, worst = 1, float("inf")
    for count in range(1, len(areas) + 1):
        total = sum(areas[:count])
        thick = total / side if side else 0.0
        ratios = [max(thick * thick / a, a / (thick * thick)) if a > 0 and thick else 0.0 for a in areas[:count]]
        if max(ratios) > worst:
            break
        best, worst = count, max(ratios)
    return best


def _cut(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """Lay a strip along the shorter side; also what is left."""
    total, found = sum(areas), []
    if box.width >= box.height:
        thick, at = (total / box.height if box.height else 0.0), box.y
        for a in areas:
            found.append(Box(box.x, at, thick, a / thick if thick else 0.0))
            at += found[-1].height
        return found, Box(box.x + thick, box.y, max(0.0, box.width - thick), box.height)
    thick, at = (total / box.width if box.width else 0.0), box.x
    for a in areas:
        found.append(Box(at, box.y, a / thick if thick else 0.0, thick))
        at += found[-1].width
    return found, Box(box.x, box.y + thick, box.width, max(0.0, box.height - thick))


def shelves(sizes: Sequence[float], box: Box) -> list[Box]:
    """Rectangles of given areas in rows, in reading order; as many rows as make them squarest."""
    total = sum(sizes)
    if not sizes or total <= 0 or box.width <= 0:
        return [Box(box.x, box.y, 0, 0) for _ in sizes]

    def laid(rows: int) -> list[Box]:
        per_row = -(-len(sizes) // rows)
        found, y = [], box.y
        for first in range(0, len(sizes), per_row):
            row = sizes[first : first + per_row]
            height, x = sum(row) / total * box.height, box.x
            for size in row:
                width = size / sum(row) * box.width if sum(row) else 0.0
                found.append(Box(x, y, width, height))
                x += width
            y += height
        return found

    def worst(boxes: list[Box]) -> float:
        return max((max(b.width / b.height, b.height / b.width) for b in boxes if b.width and b.height), default=1.0)

    return min((laid(rows) for rows in range(1, len(sizes) + 1)), key=worst)


def treemap(t: TensorWords, tensors: Sequence[Row], levels: Mapping[str, int | None]) -> Markup:
    """Every tensor as a rectangle inside its layer."""
    groups: dict[object, list[Row]] = {}
    for row in tensors:
        groups.setdefault(row["layer"] if row["layer"] is not None else row["part"], []).append(row)
    ordered = sorted(groups, key=lambda g: (isinstance(g, int), g if isinstance(g, int) else 0))
    sizes = [sum(r["numbers"] for r in groups[g]) for g in ordered]
    outside = sum(not isinstance(g, int) for g in ordered)
    left = WIDTH * sum(sizes[:outside]) / (sum(sizes) or 1)
    boxes = squarify(sizes[:outside], Box(0, 0, left, HEIGHT)) + shelves(sizes[outside:], Box(left, 0, WIDTH - left, HEIGHT))
    drawn = [Markup("").join(_group(t, group, groups[group], box, levels)) for group, box in zip(ordered, boxes)]
    return Markup('<svg class="tmap" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, t("diff.figure.treemap.label"), Markup("").join(drawn)
    )


def _group(t: TensorWords, group: object, rows: Sequence[Row], box: Box, levels: Mapping[str, int | None]) -> list[Markup]:
    named = box.height > 3 * LABEL and box.width > 34
    inner = Box(box.x + 1.5, box.y + (LABEL + 1 if named else 1.5), max(0, box.width - 3),
                max(0, box.height - (LABEL + 2.5 if named else 3)))  # fmt: skip
    name = f"L{group}" if isinstance(group, int) else str(group)
    drawn = []
    if named:
        drawn.append(Markup('<text class="lay" x="{:.1f}" y="{:.1f}">{}</text>').format(box.x + 3, box.y + LABEL - 3, name))
    ordered = sorted(rows, key=lambda r: -r["numbers"])
    for row, place in zip(ordered, squarify([r["numbers"] for r in ordered], inner)):
        drawn.append(_tile(t, row, place, levels[row["tensor"]]))
    return drawn


def _tile(t: TensorWords, row: Row, box: Box, level: int | None) -> Markup:
    rect = Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" data-tip="{}"/>').format(
        shade(level), box.x, box.y, max(0.0, box.width - 0.6), max(0.0, box.height - 0.6), tensor_tip(t, row)
    )
    short = row["part"] if row["layer"] is not None else ""
    if not short or box.height < 13 or box.width < 6.5 * len(short) + 4:
        return rect
    return rect + Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
        f"on {shade(level)}", box.x + box.width / 2, box.y + box.height / 2 + 4, short
    )


def shade(level: int | None) -> str:
    """The class of a step of the scale; `hn` where nothing can be said."""
    return "hn" if level is None else f"h{level}"


def tensor_tip(t: TensorWords, row: Row) -> str:
    """A tensor's hover text."""
    n = t.numbers
    shape = " × ".join(map(str, row["shape"])) or "1"
    dtype = row["dtype"] if row["dtype"] == row["other_dtype"] else f"{row['dtype']} → {row['other_dtype']}"
    lines = [t("diff.tip.tensor", tensor=row["tensor"], shape=shape, dtype=dtype, numbers=n(row["numbers"]))]
    if row["moved_l2"] is None:
        lines.append(t("diff.tip.nonfinite"))
    elif not row["changed"]:
        lines.append(t("diff.tip.still"))
    elif row["relative"] is None:
        lines.append(t("diff.tip.undefined", length=n(row["moved_l2"])))
    else:
        share = n.fine_percent(row["changed"] / row["numbers"])
        lines.append(t("diff.tip.moved", relative=n.fine_percent(row["relative"]), changed=share))
    if row.get("rank") is not None:
        lines.append(t("diff.tip.rank", rank=n(row["rank"]), full=n.whole(min(row["shape"]))))
    return "\n".join(str(Markup(x).unescape()) for x in lines)


def parts_grid(t: TensorWords, cells: Mapping[tuple[int, str], Row], n_layers: int) -> Markup:
    """Layers by parts."""
    columns = [c for c in COLUMNS if any(part == c for _, part in cells)]
    return _grid(t, [(c, c) for c in columns], n_layers, cells, "parts", lambda layer, c: f"L{layer} {c}")


def heads_grid(t: TensorWords, cells: Mapping[tuple[int, int], Row], n_layers: int, n_heads: int) -> Markup:
    """Layers by heads."""
    step = max(1, -(-n_heads // 24))
    columns = [(h, str(h) if h % step == 0 else "") for h in range(n_heads)]
    return _grid(t, columns, n_layers, cells, "heads", lambda layer, h: f"L{layer}.attn.H{h}")


def _grid(t: TensorWords, columns: Sequence[tuple[Any, str]], n_layers: int, cells: Mapping[Any, Row], key: str, name: Any):
    left, top, row = 34, 20, 15 if n_layers > 16 else 20
    width = 420 if len(columns) <= 16 else WIDTH
    step = min(46.0, (width - left - 4) / max(1, len(columns)))
    drawn = [Markup('<text class="col" x="{:.1f}" y="13">{}</text>').format(left + (i + 0.5) * step, label)
             for i, (_, label) in enumerate(columns)]  # fmt: skip
    every = 1 if n_layers <= 40 else 5
    for layer in range(n_layers):
        y = top + layer * row
        if layer % every == 0:
            drawn.append(Markup('<text class="lay" x="{}" y="{}">L{}</text>').format(left - 6, y + row - 4, layer))
        for i, (column, _) in enumerate(columns):
            cell = cells.get((layer, column))
            if cell is not None:
                drawn.append(_cell(t, cell, Box(left + i * step, y, step, row), name(layer, column)))
    svg = Markup('<svg class="tgrid" viewBox="0 0 {:.0f} {}" style="max-width:{:.0f}px" role="img" aria-label="{}">{}</svg>')
    return svg.format(
        left + len(columns) * step + 4, top + n_layers * row + 4, 1.15 * (left + len(columns) * step + 4),
        t(f"diff.figure.{key}.label"), Markup("").join(drawn),
    )  # fmt: skip


def _cell(t: TensorWords, cell: Row, box: Box, name: str) -> Markup:
    if cell["relative"] is None:
        tip = t("diff.tip.cell_none", name=name)
    elif not cell["relative"]:
        tip = t("diff.tip.cell_still", name=name)
    else:
        tip = t("diff.tip.cell", name=name, relative=t.numbers.fine_percent(cell["relative"]))
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>').format(
        shade(cell["level"]), box.x, box.y, box.width - 1, box.height - 1, Markup(tip).unescape()
    )


def scale_key(t: TensorWords, ends: Sequence[float], highest: float | None, undefined: bool) -> Markup:
    """The colours and what they stand for."""
    n = t.numbers
    item = Markup('<span><i class="{}"></i>{}</span>')
    items = [item.format("h0", t("diff.still_key"))]
    if len(ends) == 1:
        items.append(item.format("h7", n.fine_percent(highest)))
    else:
        upper = [*ends[1:], highest]
        items += [item.format(f"h{i + 1}", f"{n.fine_percent(a)}–{n.fine_percent(b)}")
                  for i, (a, b) in enumerate(zip(ends, upper))]  # fmt: skip
    if undefined:
        items.append(item.format("hn", t("diff.undefined_key")))
    return Markup('<div class="scalekey"><b>{}</b>{}</div>').format(t("diff.moved_key"), Markup("").join(items))
