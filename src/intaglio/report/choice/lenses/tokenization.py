"""Ways to write a word as dots and a table, its pieces through the layers as lines, the prompt token by token."""

from __future__ import annotations

from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData

SHOWN = 120  # tokens of the prompt that are drawn, the last ones


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    n, tables = lens["numbers"], lens["tables"]
    blocks: list[Block] = []
    if n["own_log_p"] is not None and len(tables["ways"]) > 2:
        blocks.append(Figure("spread", _spread(t, tables["ways"])))
    blocks.append(_ways(t, tables["ways"]))
    if tables["attention"]:
        blocks.append(Figure("merging", _merging(t, n["merging"], tables)))
    if tables["swap"]:
        blocks.append(Figure("swap", _swap(t, n["merging"]["swap"], tables["swap"])))
    blocks += [Figure("tokens", _tokens(t, tables["tokens"][-SHOWN:])), _writing(t, tables["writing"])]
    return [*blocks, _scheme(t, lens, trace.about)]


def _join(tokens: list[str]) -> str:
    return "|".join(map(visible, tokens))


def _spread(t: Words, rows: list[dict[str, Any]]) -> Markup:
    """A dot for each way: how likely the model finds it, and how far it moves the choice."""
    n = t.numbers
    dots = [
        {"x": r["log_p"], "y": r["kl_nats"], "own": r["own"],
         "tip": str(t("tokenization.tip", way=_join(r["tokens"]), log_p=n(r["log_p"]), kl=n(r["kl_nats"]), p=n.percent(r["p"]),
                      first=visible(r["first"])))}
        for r in sorted(rows, key=lambda r: r["own"])
    ]  # fmt: skip
    inks = alt.Color("own:N", scale=alt.Scale(domain=[False, True], range=[colour("accent"), colour("against")]))
    base = alt.Chart(data(dots)).encode(
        x=alt.X("x:Q", axis=axis(str(t("tokenization.axis.log_p")), t.lang), scale=alt.Scale(zero=False)),
        y=alt.Y("y:Q", axis=axis(str(t("tokenization.axis.kl")), t.lang, tickCount=5)), color=inks,
    )  # fmt: skip
    own = base.transform_filter("datum.own").mark_text(align="right", dx=-8, dy=-8, fontSize=12)
    layers = base.mark_point(filled=True, size=55, opacity=1).encode(description="tip:N"), own.encode(
        text=alt.value(str(t("tokenization.axis.own"))))  # fmt: skip
    chart = alt.layer(*layers).properties(width=WIDTH - 120, height=210)
    return svg(chart, name="tokenization-spread", label=str(t("tokenization.figure.spread.title")), lang=t.lang)


def _ways(t: Words, rows: list[dict[str, Any]]) -> Rows:
    n = t.numbers
    own = Markup(' <span class="mark-measured">{}</span>').format(t("tokenization.axis.own"))
    cells = [
        (Markup("").join(map(token, r["tokens"])) + (own if r["own"] else ""), len(r["tokens"]), r["log_p"], n.percent(r["p"]),
         n.signed(r["difference_logits"]), r["kl_nats"], token(r["first"]))
        for r in sorted(rows, key=lambda r: not r["own"])
    ]  # fmt: skip
    columns = ("way", "count", "log_p", "p", "difference", "kl", "first")
    return Rows("ways", columns, cells, frozenset(columns[1:6]))


def _merging(t: Words, merging: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> Markup:
    n, drawn = t.numbers, []

    def like(field: str, ink: str, dash: tuple[int, int]) -> Line:
        name = str(t(f"tokenization.axis.{field}"))
        rows = [(i, r) for i, r in enumerate(tables["merging"]) if r[field] is not None]
        points = [(i, r[field], f"{r['after']} · {name}: {n(r[field])}") for i, r in rows]
        return Line(name, points, ink, dash)

    if tables["merging"]:
        lines = [like("pieces", "accent", (1, 0)), like("alone", "against", (5, 3)), like("others", "soft", (2, 2))]
        drawn.append(Panel(str(t("tokenization.axis.like", whole=visible(merging["whole"]))), [x for x in lines if x.points]))

    def looks(field: str, ink: str) -> Line:
        name = str(t(f"tokenization.axis.{field}"))
        head = {"attention": "", "head_attention": ".attn.H{}"}[field]
        points = [(r["layer"], r[field], f"L{r['layer']}{head.format(r['head'])} · {name}: {n.percent(r[field])}")
                  for r in tables["attention"]]  # fmt: skip
        return Line(name, points, ink, (1, 0) if field == "attention" else (5, 3))

    drawn.append(Panel(str(t("tokenization.axis.looks")), [looks("attention", "accent"), looks("head_attention", "soft")],
                       top=1.0, rule=merging["even"]))  # fmt: skip
    title, below = (str(t(f"tokenization.{key}")) for key in ("figure.merging.title", "axis.layers"))
    return panels(t, "tokenization-merging", title, below, drawn)


def _swap(t: Words, swap: dict[str, Any], rows: list[dict[str, Any]]) -> Markup:
    n = t.numbers
    kl = [(r["layer"], r["kl_nats"], f"L{r['layer']} · KL {n(r['kl_nats'])}") for r in rows]
    lead = [(r["layer"], r["difference_logits"], f"L{r['layer']} · {n.signed(r['difference_logits'])}") for r in rows]
    drawn = [
        Panel(str(t("tokenization.axis.kl")), [Line("KL", kl)], rule=0.1 * rows[0]["kl_nats"]),
        Panel(str(t("tokenization.axis.difference")), [Line(str(t("tokenization.axis.lead")), lead)], rule=swap["was_logits"]),
    ]
    return panels(t, "tokenization-swap", str(t("tokenization.figure.swap.title")), str(t("tokenization.axis.from")), drawn)


def _tokens(t: Words, rows: list[dict[str, Any]]) -> Markup:
    """The prompt's tokens one after the other; those that make a letter only together are held together, with the letter."""
    groups: list[list[dict[str, Any]]] = []
    for row in rows:
        if row["letters"] or not groups:
            groups.append([])
        groups[-1].append(row)
    box = Markup('<span class="tk{}" data-tip="{}">{}</span>')
    made = []
    for group in groups:
        boxes = Markup("").join(
            box.format(" cut" if r["part"] else "", t("tokenization.bytes", bytes=r["bytes"] or "—"), visible(r["text"]))
            for r in group
        )
        letter = Markup("<i>= {}</i>").format(visible(group[0]["letters"])) if len(group) > 1 else ""
        made.append(Markup('<span class="joined">{}{}</span>').format(boxes, letter) if letter else boxes)
    return Markup('<div class="pieces">{}</div>').format(Markup(" ").join(made))


def _writing(t: Words, rows: list[dict[str, Any]]) -> Rows:
    def ratio(a: int, b: int) -> float | None:
        return a / b if b else None

    cells = [
        (t(f"tokenization.text.{r['text']}"), r["words"], r["letters"], r["bytes"], r["tokens"], ratio(r["tokens"], r["words"]),
         ratio(r["tokens"], r["letters"]), ratio(r["bytes"], r["tokens"]), t.numbers.percent(ratio(r["parts"], r["tokens"])))
        for r in rows
    ]  # fmt: skip
    columns = ("text", "words", "letters", "bytes", "tokens", "per_word", "per_letter", "bytes_per", "parts")
    return Rows("writing", columns, cells, frozenset(columns[1:]))


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n, own = lens["numbers"], next(r for r in lens["tables"]["ways"] if r["own"])
    pieces = len(own["tokens"])
    steps = [("bytes", sizes(t, len(n["word"].encode()))), ("ways", sizes(t, n["ways"])), ("tokens", sizes(t, pieces)),
             ("states", sizes(t, pieces, about["width"])), ("last", sizes(t, about["width"]))]  # fmt: skip
    return scheme(t, "tokenization", steps)
