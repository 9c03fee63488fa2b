"""Pictures of a choice in a model made smaller: groups of heads, layers, coordinates and neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData, by_order

INKS = {"weak": ("accent", (1, 0)), "strong": ("against", (1, 0)), "random": ("soft", (5, 3)), "kept": ("accent", (1, 0))}
SHOWN = 24
Row = dict[str, Any]


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    n, tables = lens["numbers"], lens["tables"]
    blocks: list[Block] = [Figure("heads", _heads(t, n, tables["heads"])), Figure("layers", _layers(t, n, tables["layers"]))]
    if any(r["kept"] > 1 for r in tables["width"]):
        blocks.append(Figure("width", _width(t, n, tables)))
    blocks.append(_groups(t, tables["heads"]))
    blocks += [_models(t, tables["models"])] if tables["models"] else []
    return [*blocks, _scheme(t, trace.about, n["neurons"])]


def _heads(t: Words, n: Row, rows: list[Row]) -> Markup:
    lines = _merged(by_order(rows))
    one = Panel(str(t("architecture.axis.probability")), _lines(t, lines, "removed", "probability"), top=1.0,
                rule=n["probability"], log_x=True)  # fmt: skip
    two = Panel(str(t("architecture.axis.difference")), _lines(t, lines, "removed", "difference_logits"),
                rule=n["difference_logits"], log_x=True)  # fmt: skip
    label, x = str(t("architecture.figure.heads.title")), str(t("architecture.axis.removed"))
    return panels(t, "architecture-heads", label, x, [one, two])


def _width(t: Words, n: Row, tables: dict[str, list[Row]]) -> Markup:
    lines = _merged(by_order([*tables["width"], {**n, "order": "all", "kept": n["coordinates"]}]))
    lines = {"kept": lines["strong"], **{k: v for k, v in lines.items() if k == "random"}}
    drawn = [Panel(str(t("architecture.axis.coordinates")), _lines(t, lines, "kept", "probability"), top=1.0,
                   rule=n["probability"], log_x=True)]  # fmt: skip
    if tables["neurons"]:
        neurons = {"kept": [*tables["neurons"], {**n, "kept": n["neurons"]}]}
        drawn.append(Panel(str(t("architecture.axis.neurons")), _lines(t, neurons, "kept", "probability"), top=1.0,
                           rule=n["probability"], log_x=True))  # fmt: skip
    label, x = str(t("architecture.figure.width.title")), str(t("architecture.axis.kept"))
    return panels(t, "architecture-width", label, x, drawn)


def _merged(lines: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The random orders as one line: their mean at every size, and every draw's first token."""
    random = [rows for name, rows in lines.items() if name.startswith("random")]
    mean = [
        {**rows[0], "first": None, "firsts": [r["first"] for r in rows],
         **{k: sum(r[k] for r in rows) / len(rows) for k in ("probability", "difference_logits")}}
        for rows in zip(*random)
    ]  # fmt: skip
    return {**{k: v for k, v in lines.items() if not k.startswith("random")}, **({"random": mean} if mean else {})}


def _lines(t: Words, lines: dict[str, list[Row]], x: str, y: str) -> list[Line]:
    return [
        Line(str(t(f"architecture.line.{name}")), [(r[x], r[y], _tip(t, name, r, x)) for r in rows], *INKS[name])
        for name, rows in lines.items()
    ]


def _tip(t: Words, name: str, row: Row, x: str) -> str:
    firsts = row.get("firsts") or [row["first"]]
    return str(t(
        f"architecture.tip.{x}", line=str(t(f"architecture.line.{name}")), count=t.numbers.whole(row[x]),
        p=t.numbers.percent(row["probability"]), difference=t.numbers.signed(row["difference_logits"]),
        first=", ".join(dict.fromkeys(map(visible, firsts))),
    ))  # fmt: skip


def _layers(t: Words, n: Row, layers: list[Row]) -> Markup:
    """Bars: without a layer; line: if the model ended behind it. One axis, the probability of the token."""
    number = t.numbers
    skipped = [
        {"x": r["layer"], "p": r["probability"], "turned": r["first_changed"], "tip": str(t(
            "architecture.tip.skipped", layer=f"L{r['layer']}", p=number.percent(r["probability"]),
            first=visible(r["first"]), difference=number.signed(r["difference_logits"])))}
        for r in layers
    ]  # fmt: skip
    ended = [
        {"x": r["layer"], "p": r["exit_probability"], "tip": str(t(
            "architecture.tip.ended", layer=f"L{r['layer']}", p=number.percent(r["exit_probability"]),
            first=visible(r["exit_first"])))}
        for r in layers
    ]  # fmt: skip
    turned = alt.Color("turned:N", scale=alt.Scale(domain=[False, True], range=[colour("accent"), colour("against")]))
    x = alt.X("x:O", axis=axis(str(t("architecture.axis.layer")), t.lang, labelAngle=0, labelOverlap=True))
    y = alt.Y("p:Q", scale=alt.Scale(domain=[0, 1]), axis=axis(str(t("architecture.axis.probability")), t.lang, tickCount=5))
    line = alt.Chart(data(ended)).encode(x=x, y=y)
    chart = alt.layer(
        alt.Chart(data(skipped)).mark_bar(opacity=0.75).encode(x=x, y=y, color=turned, description="tip:N"),
        alt.Chart(alt.Data(values=[{"p": n["probability"]}])).mark_rule(color=colour("rule")).encode(y="p:Q"),
        line.mark_line(strokeWidth=1.8, color=colour("ink")),
        line.mark_point(filled=True, size=26, opacity=1, color=colour("ink")).encode(description="tip:N"),
    ).properties(width=WIDTH - 90, height=210)
    key = Markup('<div class="inlinekey"><span><i class="boxkey"></i>{}</span><span><i class="boxkey anti"></i>{}</span>'
                 '<span><i class="line" style="border-color:var(--ink)"></i>{}</span></div>').format(
        *(t(f"architecture.key.{k}") for k in ("skipped", "turned", "ended")))  # fmt: skip
    return key + svg(chart, name="architecture-layers", label=str(t("architecture.figure.layers.title")), lang=t.lang)


def _groups(t: Words, rows: list[Row]) -> Rows:
    n = t.numbers
    cells = [
        (t(f"architecture.line.{r['order']}"), r["removed"], n.percent(r["probability"]), n.signed(r["difference_logits"]),
         None if r["singles_logits"] is None else n.signed(r["singles_logits"]), token(r["first"]))
        for r in rows if not r["order"].startswith("random")
    ]  # fmt: skip
    columns = ("order", "removed", "probability", "difference", "singles", "first")
    return Rows("groups", columns, cells, frozenset(columns[1:5]), SHOWN)


def _models(t: Words, models: Sequence[Row]) -> Rows:
    n = t.numbers
    cells = [
        (m["name"], n(m["parameters"]), n.whole(m["layers"]), n.whole(m["heads"]), n.whole(m["width"]), n.whole(m["tokens"]),
         *((None, None) if m["asked"] is None else (token(m["asked"]), n.percent(m["probability"]))), token(m["first"]),
         n.percent(m["first_probability"]), n.whole(m["exit"]))
        for m in models
    ]  # fmt: skip
    columns = ("model", "parameters", "layers", "heads", "width", "tokens", "asked", "probability", "first", "its_p", "exit")
    return Rows("models", columns, cells, frozenset({*columns[1:6], "probability", "its_p", "exit"}))


def _scheme(t: Words, about: Row, neurons: int | None) -> Figure:
    n, width = t.numbers, about["width"]
    mlp = [("neurons", f"{n.whole(about['layers'])} × {n.whole(neurons)}")] if neurons else []
    return scheme(t, "architecture", [
        ("embedding", sizes(t, about["vocabulary"], width)), ("heads", sizes(t, about["layers"], about["heads"])), *mlp,
        ("state", sizes(t, width)), ("logits", sizes(t, about["vocabulary"])),
    ])  # fmt: skip
