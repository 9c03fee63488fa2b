"""Pictures of attention at the decision: who looks where, and what each voted for reading it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from intaglio.address import parse
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, part, token, visible
from intaglio.trace import TraceData

WIDTH, LEFT, ROW, GAP = 880, 74, 20, 11
TILE_HEIGHT, TILE_WIDTH = 20, 92
FAINT = 0.01  # a share of attention below this is not drawn

Head = list[dict[str, Any]]  # a head's votes, one row per source token


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    by_head: dict[str, Head] = defaultdict(list)
    for row in trace.rows["votes"]:
        if row["source"] is not None:
            by_head[row["address"]].append(row)
    heads, tables = lens["tables"]["heads"], lens["tables"]
    texts = [row["text"] for row in trace.rows["prompt"]]
    blocks: list[Block] = [
        Figure("sources", sources(t, [by_head[h["address"]] for h in heads], texts)),
        Rows("heads", ("head", "vote", "effect", "looks", "read"), [_row(t, h) for h in heads], frozenset({"vote", "effect"})),
    ]
    if tables["matched"]:
        rows = [_matched(t, m) for m in tables["matched"]]
        blocks.append(Rows("matched", ("head", "pair", "difference", "query", "key"), rows, frozenset({"difference"})))
    return [*blocks, Figure("wall", wall(t, by_head, trace.about)), _scheme(t, trace.about)]


def _row(t: Words, head: dict[str, Any]) -> tuple[object, ...]:
    n, effect = t.numbers, head["effect_logits"]
    looks = Markup("<br>").join(Markup("{} {}").format(_placed(x), n.percent(x["share"])) for x in head["looks"])
    read = Markup("<br>").join(Markup("{} {}").format(_placed(x), n.signed(x["vote_logits"])) for x in head["read"])
    return part(head["address"]), n.signed(head["vote_logits"]), None if effect is None else n.signed(effect), looks, read


def _matched(t: Words, row: dict[str, Any]) -> tuple[object, ...]:
    n = t.numbers

    def side(found: dict[str, Any]) -> Markup:
        rest = found["rest"] + found["bias"]
        parts = [Markup("{} {}").format(part(p["address"]), n.signed(p["score"])) for p in found["parts"]]
        return Markup("<br>").join([*parts, Markup("{} {}").format(t("heads.rest"), n.signed(rest))])

    pair = Markup("{} {}<br>{} {} {}").format(
        _placed(row["source"]), n.percent(row["source"]["share"]), t("heads.rather"), _placed(row["rival"]),
        n.percent(row["rival"]["share"]),
    )  # fmt: skip
    return part(row["address"]), pair, n.signed(row["difference"]), side(row["query"]), side(row["key"])


def _placed(found: dict[str, Any]) -> Markup:
    """A token with its position, for a text may hold it twice."""
    return Markup('{}<sub class="place">{}</sub>').format(token(found["text"]), found["position"])


def sources(t: Words, heads: Sequence[Head], texts: Sequence[str]) -> Markup:
    """Heads by tokens: the ground is the attention, the square the vote."""
    step = (WIDTH - LEFT - 8) / len(texts)
    top = max((abs(r["vote_logits"]) for rows in heads for r in rows), default=0.0) or 1.0
    drawn = []
    for i, rows in enumerate(heads):
        y = i * ROW
        name = _short(rows[0]["address"])
        drawn.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, y + 14, name))
        for row in rows:
            if row["attention"] < FAINT and abs(row["vote_logits"]) < 0.005 * top:
                continue
            drawn.append(_cell(t, row, LEFT + row["source"] * step, y, step, top))
    height = len(heads) * ROW
    weight = [sum(abs(rows[i]["vote_logits"]) + 0.1 * top * rows[i]["attention"] for rows in heads) for i in range(len(texts))]
    drawn += [
        Markup('<text class="tok-label" transform="translate({:.1f},{}) rotate(-58)" text-anchor="end">{}</text>').format(
            LEFT + (i + 0.5) * step + 4, height + 12, _cut(texts[i]))
        for i in labelled(weight, step)
    ]  # fmt: skip
    return Markup('<svg class="looks" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height + 70, t("heads.figure.sources.title"), Markup("").join(drawn))  # fmt: skip


def _cell(t: Words, row: dict[str, Any], x: float, y: float, step: float, top: float) -> Markup:
    width = min(step, 40.0)
    x += (step - width) / 2
    side = min(width - 0.5, ROW - 2.0) * (abs(row["vote_logits"]) / top) ** 0.5
    tip = t("heads.tip.cell", head=row["address"], token=visible(row["token"]), share=t.numbers.percent(row["attention"]),
            vote=t.numbers.signed(row["vote_logits"]))  # fmt: skip
    square = Markup("")
    if side >= 0.7:
        square = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            "for" if row["vote_logits"] > 0 else "anti", x + (width - side) / 2, y + (ROW - side) / 2, side, side)  # fmt: skip
    return Markup('<g data-tip="{}"><rect class="a{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>{}</g>').format(
        tip, min(5, round(5 * row["attention"] + 0.4)), x, y + 1, width, ROW - 2, square)  # fmt: skip


def labelled(weight: Sequence[float], step: float) -> list[int]:
    """Which tokens to name where there is no room for all: the weightiest, at least GAP apart."""
    kept: list[int] = []
    for i in sorted(range(len(weight)), key=lambda i: -weight[i]):
        if all(abs(i - j) * step >= GAP for j in kept):
            kept.append(i)
    return sorted(kept)


def wall(t: Words, by_head: dict[str, Head], about: dict[str, Any]) -> Markup:
    """A small picture of every head's attention at the deciding position, layers down, heads across."""
    width = min(TILE_WIDTH, (WIDTH - 40) / about["heads"] - 3)
    top = max((abs(rows[0]["part_logits"]) for rows in by_head.values()), default=0.0) or 1.0
    drawn = []
    for address, rows in by_head.items():
        at = parse(address)
        drawn.append(_tile(t, address, rows, 40 + at.head * (width + 3), at.layer * (TILE_HEIGHT + 3), width, top))
    drawn += [
        Markup('<text x="32" y="{}" text-anchor="end">L{}</text>').format(i * (TILE_HEIGHT + 3) + 14, i)
        for i in range(about["layers"])
    ]
    below = about["layers"] * (TILE_HEIGHT + 3)
    drawn += [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">H{}</text>').format(40 + i * (width + 3) + width / 2, below + 12, i)
        for i in range(0, about["heads"], 1 if width > 24 else 4)
    ]
    whole = round(44 + about["heads"] * (width + 3))
    return Markup('<svg class="wall" viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">{}</svg>').format(
        whole, below + 18, whole, t("heads.figure.wall.title"), Markup("").join(drawn))  # fmt: skip


def _tile(t: Words, address: str, rows: Head, x: float, y: float, width: float, top: float) -> Markup:
    step, vote = width / len(rows), rows[0]["part_logits"]
    looks = sorted(rows, key=lambda r: -r["attention"])[:3]
    named = "\n".join(f"{visible(r['token'])}  {t.numbers.percent(r['attention'])}" for r in looks)
    shade = min(5, round(5 * (abs(vote) / top) ** 0.5))
    path = "".join(
        f"M{x + (r['source'] + 0.5) * step:.1f},{y + TILE_HEIGHT}v-{(TILE_HEIGHT - 1) * min(1.0, r['attention']):.1f}"
        for r in rows if r["attention"] >= FAINT
    )  # fmt: skip
    return Markup(
        '<g data-tip="{}"><rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/><path d="{}" stroke-width="{:.1f}"/></g>'
    ).format(
        t("heads.tip.head", head=address, vote=t.numbers.signed(vote)) + "\n" + named,
        f"{'p' if vote > 0 else 'n'}{shade}" if shade else "none", x, y, width, TILE_HEIGHT, path, max(0.8, min(5.0, step * 0.7)),
    )  # fmt: skip


def _short(address: str) -> str:
    at = parse(address)
    return f"L{at.layer} H{at.head}"


def _cut(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= 14 else shown[:13] + "…"


def _scheme(t: Words, about: dict[str, Any]) -> Figure:
    tokens, heads, size = about["tokens"], about["heads"], about["head_size"]
    return scheme(t, "heads", [
        ("query", sizes(t, heads, size)), ("keys", sizes(t, about["key_heads"], tokens, size)),
        ("shares", sizes(t, heads, tokens)), ("values", sizes(t, about["key_heads"], tokens, size)),
        ("read", sizes(t, heads, size)), ("write", sizes(t, heads, about["width"])), ("vote", sizes(t, heads, tokens)),
    ])  # fmt: skip
