"""Pictures of temperature: probabilities over T, the temperatures of given odds."""

from __future__ import annotations

from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, scheme, sizes
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    tables, n = lens["tables"], t.numbers
    odds = [
        (token(r["behind"]), token(r["ahead"]), r["gap_logits"], n.percent(r["odds"]),
         *(n(v["temperature"]) for v in r["levels"]))
        for r in tables["odds"]
    ]  # fmt: skip
    grid = [
        (n(r["temperature"]), n.percent(r["first"]), n.percent(r["target"]), n(r["entropy_nats"]), n(r["alive"]),
         r["nine_tenths_at"])
        for r in tables["grid"]
    ]  # fmt: skip
    columns = ("behind", "ahead", "gap", "odds", *(f"at{round(100 * v['level'])}" for v in tables["odds"][0]["levels"]))
    over = ("temperature", "first", "target", "entropy", "alive", "nine")
    return [
        Figure("curves", _curves(t, tables)),
        Rows("odds", columns, odds, frozenset(columns[2:])),
        Rows("grid", over, grid, frozenset(over)),
        _scheme(t, tables, trace.about),
    ]


def _scheme(t: Words, tables: dict[str, Any], about: dict[str, Any]) -> Figure:
    steps, odds = len(tables["grid"]), tables["odds"]
    return scheme(t, "temperature", [
        ("run", sizes(t, about["tokens"])), ("logits", sizes(t, about["vocabulary"])), Lanes([
            [("divided", sizes(t, steps, about["vocabulary"])), ("lines", sizes(t, len(tables["curves"]), steps))],
            [("pairs", sizes(t, len(odds))), ("levels", sizes(t, len(odds), len(odds[0]["levels"])))],
        ]),
    ])  # fmt: skip


def _curves(t: Words, tables: dict[str, Any]) -> Markup:
    names = [t("temperature.all_others") if c["token"] is None else visible(c["text"]) for c in tables["curves"]]
    inks = [f"g{i}" for i in range(len(names) - 1)] + ["soft"]
    rows = [
        {"line": str(i), "t": g["temperature"], "p": p, "kind": "rest" if c["token"] is None else "token",
         "tip": f"{name}, T {t.numbers(g['temperature'])}: {t.numbers.percent(p)}"}
        for i, (c, name) in enumerate(zip(tables["curves"], names)) for g, p in zip(tables["grid"], c["p"])
    ]  # fmt: skip
    at = alt.X(
        "t:Q", scale=alt.Scale(type="log", domain=[rows[0]["t"], tables["grid"][-1]["temperature"]]),
        axis=axis(str(t("temperature.axis.t")), t.lang, values=[g["temperature"] for g in tables["grid"]], grid=False),
    )  # fmt: skip
    up = alt.Y("p:Q", scale=alt.Scale(domain=[0, 1]), axis=axis(str(t("temperature.axis.p")), t.lang, tickCount=5))
    ink = alt.Color("line:N", scale=alt.Scale(domain=[str(i) for i in range(len(inks))], range=[colour(i) for i in inks]))
    dash = alt.StrokeDash("kind:N", scale=alt.Scale(domain=["token", "rest"], range=[[1, 0], [5, 4]]))
    base = alt.Chart(data(rows), width=WIDTH - 90, height=260).encode(x=at, y=up, color=ink)
    one = alt.Chart(alt.Data(values=[{"t": 1.0}])).mark_rule(color=colour("rule"), strokeDash=[2, 3]).encode(x="t:Q")
    chart = one + base.mark_line(strokeWidth=2).encode(strokeDash=dash) + base.mark_circle(size=45, opacity=1).encode(
        description="tip:N"
    )
    picture = svg(chart, name="temperature", label=str(t("temperature.figure.curves.title")), lang=t.lang)
    keys = Markup("").join(
        Markup('<span><i class="line{}" style="border-color:var(--{})"></i>{}</span>').format(
            "" if c["token"] is not None else " dashed", ink, token(c["text"]) if c["token"] is not None else name
        )
        for c, name, ink in zip(tables["curves"], names, inks)
    )
    return Markup('<div class="inlinekey">{}</div>{}').format(keys, picture)
