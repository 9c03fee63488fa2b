"""Sliders, survivors, continuations, the beam tree."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, Step, scheme, sizes
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData

WIDTH, COLUMN, LINE, TOP = 900, 108, 44, 26
LETTERS = 10


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    tables, n = lens["tables"], t.numbers
    limits = [
        (token(r["text"]), n.percent(r["probability"]), r["top_k"], n.percent(r["top_p"]), n(r["min_p"]),
         t("sampling.yes" if r["seen"] else "sampling.no"))
        for r in tables["thresholds"]
    ]  # fmt: skip
    columns = ("token", "probability", "top_k", "top_p", "min_p", "seen")
    blocks: list[Block] = [
        Figure("sliders", _sliders(t, lens["numbers"])), Figure("survivors", _survivors(t, tables)),
        Rows("thresholds", columns, limits, frozenset(columns[1:5])),
    ]  # fmt: skip
    if "texts" not in tables:
        return [*blocks, _scheme(t, lens, trace.about)]
    texts = [
        (named(t, r), "" if r["seed"] is None else r["seed"], _text(r["text"]), r["nats_per_token"]) for r in tables["texts"]
    ]
    blocks.append(Rows("texts", ("setting", "seed", "text", "nats"), texts, frozenset({"seed", "nats"})))
    blocks.append(Figure("beams", _tree(t, tables["beams"])))
    ended = [(_text(r["text"]), r["nats"], n.signed(r["score"])) for r in tables["finished"]]
    blocks.append(Rows("finished", ("text", "all_nats", "score"), ended, frozenset({"all_nats", "score"})))
    weighed = [
        (token(r["text"]), n.percent(r["probability"]), r["likeness"], n.signed(r["score"])) for r in tables["contrast"]
    ]
    contrast = ("token", "probability", "likeness", "contrast")
    return [*blocks, Rows("contrast", contrast, weighed, frozenset(contrast[1:])), _scheme(t, lens, trace.about)]


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n, tables, vocabulary = lens["numbers"], lens["tables"], about["vocabulary"]
    ways: list[list[Step]] = [[("settings", sizes(t, len(tables["survivors"]), vocabulary))]]
    if "texts" in tables:
        ways.append([("texts", sizes(t, len(tables["texts"]), n["steps"]))])
        ways.append([("weighed", sizes(t, n["width"], vocabulary)), ("beams", sizes(t, n["width"], n["beam_steps"]))])
        ways.append([("likeness", sizes(t, len(tables["contrast"]), about["tokens"])), ("contrast", sizes(t, n["beam_steps"]))])
    return scheme(t, "sampling", [("text", sizes(t, about["tokens"])), ("logits", sizes(t, vocabulary)), Lanes(ways)])


def _text(written: str) -> Markup:
    """Several tokens as a reader would see them, line breaks as signs."""
    return Markup('<span class="wrote">{}</span>').format(written.replace("\n", "⏎"))


def named(t: Words, setting: dict[str, Any]) -> Markup:
    """A setting in words: "T 0.7, top-p 0.9"."""
    n, bits = t.numbers, []
    if setting["name"] == "shipped":
        bits.append(t("sampling.setting.shipped"))
    if not setting["draw"]:
        bits.append(t("sampling.setting.greedy"))
    for name, neutral in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("penalty", 1.0)):
        if setting[name] != neutral:
            bits.append(t(f"sampling.setting.{name}", value=n(setting[name])))
    return Markup(", ").join(bits or [t("sampling.setting.unchanged")])


def _sliders(t: Words, numbers: dict[str, Any]) -> Markup:
    stops = numbers["slider"]
    step = round(stops[1] - stops[0], 6)
    rows = (("temperature", stops[0], stops[-1], step, 1), ("top_k", 0, 200, 1, 0), ("top_p", 0.05, 1, 0.01, 1),
            ("min_p", 0, 0.5, 0.01, 0))  # fmt: skip
    label = Markup(
        '<label><span>{} <output id="o-{}"></output></span>'
        '<input type="range" id="s-{}" min="{}" max="{}" step="{}" value="{}"></label>'
    )
    rest = json.dumps([None if r is None else round(r, 6) for r in numbers["rest_log"]])
    inside = Markup("").join(label.format(t(f"sampling.slider.{name}"), name, name, *more) for name, *more in rows)
    return Markup(
        '<div id="sampler" hidden data-rest="{}" data-from="{}" data-step="{}" data-vocabulary="{}"><div class="sampler">{}</div>'
        '<p class="note" id="sampled-out" data-text="{}" data-beyond="{}" data-off="{}"></p><div id="sampled"></div></div>'
        "<noscript>{}</noscript>"
    ).format(
        rest, stops[0], step, numbers["vocabulary"], inside, t("sampling.slider.said"), t("sampling.slider.beyond"),
        t("sampling.slider.off"), t("page.noscript"),
    )  # fmt: skip


def _survivors(t: Words, tables: dict[str, Any]) -> Markup:
    n = t.numbers
    head = Markup("<th>{}</th>" + '<th class="r">{}</th>' * 2).format(
        t("sampling.column.setting"), t("sampling.column.kept"), t("sampling.column.mass")
    ) + Markup("").join(Markup('<th class="r">{}</th>').format(token(r["text"])) for r in tables["shown"])
    rows = Markup("").join(
        Markup('<tr><td>{}</td><td class="r">{}</td><td class="r">{}</td>{}</tr>').format(
            named(t, r), n.whole(r["kept"]), n.percent(r["mass"]), Markup("").join(_share(t, s) for s in r["shares"])
        )
        for r in tables["survivors"]
    )
    return Markup('<div class="scroll"><table class="survive"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        head, rows
    )


def _share(t: Words, share: float | None) -> Markup:
    if share is None:
        return Markup('<td class="r gone" data-tip="{}">—</td>').format(t("sampling.cut"))
    return Markup('<td class="r q{}">{}</td>').format(min(5, round(5 * share + 0.2)), t.numbers.percent(share))


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _tree(t: Words, nodes: list[dict[str, Any]]) -> Markup:
    steps = max(r["step"] for r in nodes) + 1
    rows = max(r["place"] for r in nodes) + 1
    column = min(COLUMN, (WIDTH - 30) / steps)
    at = {(r["step"], r["place"]): (26 + r["step"] * column, TOP + r["place"] * LINE) for r in nodes}
    written = {place: _cut(visible(r["text"])) for place, r in zip(at, nodes)}
    ends = {place: (x + 8 * len(written[place]) + 5, y) for place, (x, y) in at.items()}
    lines, labels = [], []
    for r in sorted(nodes, key=lambda r: r["best"]):
        x, y = at[r["step"], r["place"]]
        start, y0 = ends[r["step"] - 1, r["parent"]] if r["step"] else (4, TOP)
        middle = (start + x) / 2
        lines.append(Markup('<path class="branch{}" d="M{:.0f} {:.0f}C{:.0f} {:.0f} {:.0f} {:.0f} {:.0f} {:.0f}"/>').format(
            " best" if r["best"] else "", start, y0, middle, y0, middle, y, x - 3, y))  # fmt: skip
        labels.append(Markup(
            '<g data-tip="{}"><text class="word{}" x="{:.0f}" y="{:.0f}">{}</text><text x="{:.0f}" y="{:.0f}">{}</text></g>'
        ).format(
            t("sampling.node", token=visible(r["text"]), score=t.numbers.signed(r["score"])), " best" if r["best"] else "",
            x, y + 4, written[r["step"], r["place"]] + (" ■" if r["ended"] and r["step"] + 1 < steps else ""),
            x, y + 18, t.numbers.signed(r["score"]),
        ))  # fmt: skip
    return Markup('<div class="scroll"><svg class="tree" role="img" aria-label="{}" viewBox="0 0 {} {}">{}{}</svg></div>').format(
        t("sampling.figure.beams.title"), WIDTH, TOP + rows * LINE - 10, Markup("").join(lines), Markup("").join(labels)
    )
