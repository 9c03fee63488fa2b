"""Pictures of the vote ledger: layer by layer, and what each strong effect is made of."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, scheme, sizes
from intaglio.report.choice.words import Words, part
from intaglio.trace import TraceData

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 190, 54, 24


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    blocks: list[Block] = [Figure("layers", layers(t, lens["tables"]["layers"]))]
    if "booked" in lens["tables"]:
        n = t.numbers
        rows = [
            (part(r["address"]), n.signed(r["vote_logits"]), n.signed(r["effect_logits"]), n.signed(r["own_logits"]),
             n.signed(r["others_logits"]), n.signed(r["norm_logits"]),
             Markup(", ").join(Markup("{}&nbsp;{}").format(part(x["part"]), n.signed(x["change_logits"])) for x in r["terms"]))
            for r in lens["tables"]["booked"]
        ]  # fmt: skip
        columns = ("part", "vote", "effect", "own", "others", "norm", "terms")
        blocks.append(Rows("booked", columns, rows, frozenset(columns[1:6])))
    return [*blocks, _scheme(t, lens["numbers"], trace.about)]


def _scheme(t: Words, n: dict[str, Any], about: dict[str, Any]) -> Figure:
    parts, heads, mlps = n["parts"], about["layers"] * about["heads"], about["layers"]
    writes = [[("heads", sizes(t, mlps, about["heads"]))], [("mlps", sizes(t, mlps))],
              [("others", sizes(t, parts - heads - mlps))]]  # fmt: skip
    summed = [("as_is", sizes(t, 1, parts))]
    replaced = n.get("effects")
    ways = [Lanes([summed, [("replaced", sizes(t, replaced, parts))]]), ("effects", sizes(t, replaced))] if replaced else summed
    return scheme(t, "votes", [Lanes(writes), ("direction", sizes(t, about["width"])), *ways])


def layers(t: Words, rows: list[dict[str, Any]]) -> Markup:
    """Two bars per layer, attention and MLP, around zero."""
    top = max((max(abs(r["attn_logits"]), abs(r["mlp_logits"])) for r in rows), default=0.0) or 1.0
    slot = (WIDTH - LEFT - 8) / len(rows)
    middle = (HEIGHT - BOTTOM) / 2
    drawn = [Markup('<line class="col" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - 8, middle, middle)]
    for value in (top, -top):
        drawn.append(Markup('<text class="lay" x="{}" y="{:.1f}">{}</text>').format(
            LEFT - 8, middle - value / top * (middle - 8) + 4, t.numbers.signed(value, 2)))  # fmt: skip
    for i, row in enumerate(rows):
        for j, kind in enumerate(("attn", "mlp")):
            value = row[f"{kind}_logits"]
            height = max(abs(value) / top * (middle - 8), 0.4)
            drawn.append(Markup('<rect class="v-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>').format(
                kind, LEFT + slot * (i + 0.1 + 0.4 * j), middle - height if value > 0 else middle, slot * 0.38, height,
                t(f"votes.tip.{kind}", layer=row["layer"], vote=t.numbers.signed(value)),
            ))  # fmt: skip
        if i % max(1, len(rows) // 10) == 0:
            drawn.append(Markup('<text class="lay s" x="{:.1f}" y="{}">{}</text>').format(
                LEFT + slot * i, HEIGHT - 6, f"L{row['layer']}"))  # fmt: skip
    key = Markup('<div class="inlinekey"><span><i class="boxkey"></i>{}</span><span><i class="boxkey alt"></i>{}</span></div>')
    svg = Markup('<svg class="river layers" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>{}')
    return svg.format(WIDTH, HEIGHT, t("votes.figure.layers.title"), Markup("").join(drawn),
                      key.format(t("votes.key.attn"), t("votes.key.mlp")))  # fmt: skip
