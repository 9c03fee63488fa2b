"""Pictures of continuation: the model beside n-grams, shorter and shorter endings, what heads read from copies."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, Step, scheme, sizes
from intaglio.report.choice.sides import Side, sides
from intaglio.report.choice.words import Words, part, token, visible
from intaglio.trace import TraceData

SHOWN = 10


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    tables, target = lens["tables"], trace.about["target"]["token"]
    blocks: list[Block] = [
        Figure("candidates", _candidates(t, lens["numbers"], tables["candidates"], target)),
        Rows("lengths", ("where", "length", "ending", "times", "distinct", "p_target", "overlap", "followed"),
             [_length(t, r) for r in _telling(tables["lengths"])],
             frozenset({"length", "times", "distinct", "p_target", "overlap"})),
    ]  # fmt: skip
    if tables["matches"]:
        blocks.append(Figure("matches", _matches(t, tables["matches"])))
    blocks.append(Rows("kinds", ("kind", "positions", "attention", "for", "against", "share"),
                       [_kind(t, r) for r in tables["kinds"]],
                       frozenset({"positions", "attention", "for", "against", "share"})))  # fmt: skip
    if tables["heads"]:
        columns = ("head", "read", "vote", "effect", "looks", "induced", "place")
        blocks.append(Rows("heads", columns, [_head(t, r) for r in tables["heads"]], frozenset(columns[1:])))
    return [*blocks, _scheme(t, lens["numbers"], trace.about)]


def _scheme(t: Words, n: dict[str, Any], about: dict[str, Any]) -> Figure:
    ways: list[list[Step]] = [
        [(name, sizes(t, n[name]["tokens"])), ("ending", sizes(t, n[name]["longest"], n[name]["times"])),
         ("shares", sizes(t, about["vocabulary"]))]
        for name in ("context", "corpus") if n[name] is not None
    ]  # fmt: skip
    return scheme(t, "corpus", [Lanes([*ways, [("copies", sizes(t, about["layers"], about["heads"], n["places"]))]])])


def _candidates(t: Words, numbers: dict[str, Any], rows: list[dict[str, Any]], target: int) -> Markup:
    names = ["p", "context", *(["corpus"] if numbers["corpus"] is not None else [])]
    kept = sorted(rows, key=lambda r: r["token"] != target)[: SHOWN + 1]
    drawn = [
        Side(visible(r["text"]), [r["p"], *(r[name] or None for name in names[1:])],
             [t.numbers.percent(r[name]) for name in names], r["token"] == target)
        for r in sorted(kept, key=lambda r: -r["p"])
    ]  # fmt: skip
    return sides([str(t(f"corpus.series.{name}")) for name in names], drawn, top=1.0)


def _telling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The longest endings first; a shorter one that stands in the same places says nothing new."""
    kept: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["source"] != "corpus", -r["length"])):
        if not kept or (row["source"], row["times"]) != (kept[-1]["source"], kept[-1]["times"]):
            kept.append(row)
    return kept


def _length(t: Words, row: dict[str, Any]) -> tuple[object, ...]:
    n = t.numbers
    following = Markup(", ").join(Markup("{} {}").format(token(f["text"]), n.percent(f["p"])) for f in row["followed_by"])
    ending = token(row["ending"]) if row["length"] else t("corpus.any")
    return (t(f"corpus.where.{row['source']}"), row["length"], ending, row["times"], row["distinct"],
            n.percent(row["p_target"]), n.percent(row["overlap"]), following)  # fmt: skip


def _matches(t: Words, rows: list[dict[str, Any]]) -> Markup:
    """Each place with the ending that matched, and what followed it set apart."""
    line = Markup('<li><span class="ctx">{}<u>{}</u><mark>{}</mark>{}</span></li>')
    group = Markup('<div class="fires"><span>{}</span><ul>{}</ul></div>')
    return Markup("").join(
        group.format(t(f"corpus.where.{source}"), Markup("").join(
            line.format("…" + _one_line(r["before"]), _one_line(r["match"]), visible(r["next"]), _one_line(r["after"]) + "…")
            for r in rows if r["source"] == source))
        for source in dict.fromkeys(r["source"] for r in rows)
    )  # fmt: skip


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎")


def _kind(t: Words, row: dict[str, Any]) -> tuple[object, ...]:
    n = t.numbers
    return (t(f"corpus.kind.{row['kind']}"), row["positions"], n.percent(row["attention"]), n.signed(row["for_logits"]),
            n.signed(row["against_logits"]), n.percent(row["share"]))  # fmt: skip


def _head(t: Words, row: dict[str, Any]) -> tuple[object, ...]:
    n, effect = t.numbers, row["effect_logits"]
    return (part(row["address"]), n.signed(row["read_logits"]), n.signed(row["vote_logits"]),
            None if effect is None else n.signed(effect), n.percent(row["attention"]), n.percent(row["induced_attention"]),
            row["place"])  # fmt: skip
