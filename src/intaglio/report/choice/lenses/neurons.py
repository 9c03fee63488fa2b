"""Tables and pictures of the strongest neurons: what they vote, what they promote, where they fire."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from markupsafe import Markup

from intaglio.report.choice.bars import Bar, bars
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, part, token, visible
from intaglio.trace import TraceData

WORDS, FIRED = 5, 6  # tokens named for a neuron; neurons whose contexts are shown


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    rows, contexts = lens["tables"]["neurons"], lens["tables"]["contexts"]
    drawn = [
        Bar(r["address"], r["vote_logits"], t.numbers.signed(r["vote_logits"]), strong=True,
            tip=str(t("neurons.tip", activation=t.numbers.signed(r["activation"]))))
        for r in rows
    ]  # fmt: skip
    blocks: list[Block] = [Figure("votes", bars(drawn)), _neurons(t, rows)]
    if contexts:
        blocks.append(Figure("contexts", _contexts(t, rows, contexts)))
    return [*blocks, _scheme(t, trace.about["width"], lens["numbers"]["neurons"] // trace.about["layers"])]


def _neurons(t: Words, rows: list[dict[str, Any]]) -> Rows:
    n = t.numbers

    def words(found: list[dict[str, Any]]) -> Markup:
        return Markup(" ").join(
            Markup('<span data-tip="{}">{}</span>').format(n.signed(x["logits"]), token(x["text"])) for x in found[:WORDS]
        )

    cells = [
        (part(r["address"]), n.signed(r["vote_logits"]), n.signed(r["effect_logits"]), n.signed(r["activation"]),
         n.percent(r["as_strong"]), words(r["promotes"]), words(r["demotes"]))
        for r in rows
    ]  # fmt: skip
    columns = ("neuron", "vote", "effect", "activation", "as_strong", "promotes", "demotes")
    return Rows("neurons", columns, cells, frozenset(columns[1:5]))


def _contexts(t: Words, rows: list[dict[str, Any]], contexts: list[dict[str, Any]]) -> Markup:
    """For each neuron the places where it fires most, the token on which it fires set apart."""
    own = defaultdict(list)
    for c in contexts:
        own[c["address"]].append(c)
    line = Markup('<li><span class="num">{}</span> <span class="ctx">{}<mark>{}</mark>{}</span></li>')
    neuron = Markup('<div class="fires">{}<ul>{}</ul></div>')
    return Markup("").join(
        neuron.format(part(r["address"]), Markup("").join(
            line.format(t.numbers.signed(c["activation"]), "…" + c["before"], visible(c["token"]), c["after"] + "…")
            for c in own[r["address"]]))
        for r in [r for r in rows if own[r["address"]]][:FIRED]
    )  # fmt: skip


def _scheme(t: Words, width: int, neurons: int) -> Figure:
    return scheme(t, "neurons", [
        ("state", sizes(t, width)), ("keys", sizes(t, neurons, width)), ("activations", sizes(t, neurons)),
        ("values", sizes(t, width, neurons)), ("write", sizes(t, width)), ("vote", sizes(t, neurons)),
    ])  # fmt: skip
