"""Pictures of two decisions beside each other."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, scheme, sizes
from intaglio.report.choice.words import Words, part, token
from intaglio.trace import TraceData

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 200, 58, 26


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    return [*pair(t, lens), _scheme(t, lens, trace.about)]


def pair(t: Words, lens: dict[str, Any]) -> list[Block]:
    """What is shown of any two decisions."""
    n, tables = t.numbers, lens["tables"]
    blocks: list[Block] = [
        Rows("candidates", ("token", "p_a", "p_b"),
             [(token(r["text"]), n.percent(r["p_a"]), n.percent(r["p_b"])) for r in tables["candidates"]],
             frozenset({"p_a", "p_b"}))
    ]  # fmt: skip
    if "layers" in tables:
        blocks.append(Figure("layers", layers(t, tables["layers"])))
    if "votes" in tables:
        rows = [(part(r["address"]), *(n.signed(r[f"{k}_logits"]) for k in ("a", "b", "change"))) for r in tables["votes"]]
        blocks.append(Rows("votes", ("part", "vote_a", "vote_b", "change"), rows, frozenset({"vote_a", "vote_b", "change"})))
    return blocks


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n, depths = lens["numbers"], len(lens["tables"]["layers"])
    return scheme(t, "instruction", [
        Lanes([[("this", sizes(t, n["tokens_a"]))], [("other", sizes(t, n["tokens_b"]))]]),
        ("model", sizes(t, about["layers"], about["heads"], about["head_size"])), Lanes([
            [("logits", sizes(t, 2, about["vocabulary"]))], [("lens", sizes(t, 2, depths, about["vocabulary"]))],
            [("votes", sizes(t, 2, n["parts"]))],
        ]),
    ])  # fmt: skip


def layers(t: Words, rows: list[dict[str, Any]]) -> Markup:
    """The target's probability layer by layer on both sides: two lines on one scale from 0 to 1."""
    step = (WIDTH - LEFT - 16) / max(1, len(rows) - 1)
    tall = HEIGHT - BOTTOM - 10

    def line(key: str, name: str) -> Markup:
        points = " ".join(f"{LEFT + step * i:.1f},{10 + tall * (1 - r[key]):.1f}" for i, r in enumerate(rows))
        return Markup('<polyline class="{}" points="{}"/>').format(name, points)

    marks = [
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.2" data-tip="{}"/>').format(
            name, LEFT + step * i, 10 + tall * (1 - r[key]),
            t("page.pair.tip", layer=r["layer"], a=t.numbers.percent(r["p_a"]), b=t.numbers.percent(r["p_b"]),
              kl=t.numbers(r["kl_nats"])))
        for key, name in (("p_a", "pa"), ("p_b", "pb")) for i, r in enumerate(rows)
    ]  # fmt: skip
    ticks = [Markup('<text class="lay" x="{}" y="{:.1f}">{}</text>').format(LEFT - 8, 14 + tall * (1 - v), t.numbers.percent(v))
             for v in (0.0, 0.5, 1.0)]  # fmt: skip
    every = max(1, len(rows) // 10)
    ticks += [Markup('<text class="lay s" x="{:.1f}" y="{}">{}</text>').format(LEFT + step * i - 6, HEIGHT - 6, r["layer"])
              for i, r in enumerate(rows) if i % every == 0]  # fmt: skip
    key = Markup('<div class="inlinekey"><span><i class="line pa"></i>{}</span><span><i class="line pb"></i>{}</span></div>')
    return Markup('<svg class="river pairs" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>{}').format(
        WIDTH, HEIGHT, t("page.pair.layers"), Markup("").join(ticks), line("p_a", "pa") + line("p_b", "pb"),
        Markup("").join(marks), key.format(t("page.pair.a"), t("page.pair.b")),
    )  # fmt: skip
