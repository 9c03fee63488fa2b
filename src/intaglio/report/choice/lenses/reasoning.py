"""The answer's probability along the steps, what each step is worth, and the first words of samples."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import Lanes, Step, scheme, sizes
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData

LONGEST = 160


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    numbers, tables, n = lens["numbers"], lens["tables"], t.numbers
    steps = [
        (r["number"], _short(r["text"]), r["tokens"], n.percent(r["p"]), n.signed(r["gain_nats"])) for r in tables["steps"]
    ]
    columns = ("number", "text", "tokens", "p", "gain")
    changed = [
        (r["number"], *(_change(t, r, way) for way in ("drop", "corrupt", "reword")),
         None if r["corrupt_text"] is None else _short(r["corrupt_text"]))
        for r in tables["changes"]
    ]  # fmt: skip
    ways = ("number", "drop", "corrupt", "reword", "false")
    blocks: list[Block] = [
        Figure("path", _path(t, numbers, tables["path"])), Rows("steps", columns, steps, frozenset(columns) - {"text"}),
        Rows("changes", ways, changed, frozenset({"number"})),
    ]  # fmt: skip
    if numbers["samples"]:
        words = [
            (Markup("<b>{}</b>").format(token(r["word"])) if r["agrees"] else token(r["word"]), r["with_steps"], r["bare"])
            for r in tables["words"]
        ]
        names = ("word", "with_steps", "first_step" if numbers["bare_steps"] else "no_step")
        blocks.append(Rows("words", names, words, frozenset(names[1:])))
    if tables["tools"]:
        marks = [(token(r["mark"]), r["pieces"], n.fine_percent(r["p"]), r["rank"] + 1) for r in tables["tools"]]
        blocks.append(Rows("tools", ("mark", "pieces", "p_mark", "place"), marks, frozenset({"pieces", "p_mark", "place"})))
    return [*blocks, _scheme(t, lens, trace.about)]


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n, tables, vocabulary = lens["numbers"], lens["tables"], about["vocabulary"]
    tried = sum(r[f"{way}_nats"] is not None for r in tables["changes"] for way in ("drop", "corrupt", "reword"))
    ways: list[list[Step]] = [[("points", sizes(t, n["points"], vocabulary))], [("changed", sizes(t, tried, vocabulary))]]
    if n["samples"]:
        ways.append([("samples", sizes(t, 2, n["samples"], n["length"])), ("words", sizes(t, len(tables["words"])))])
    return scheme(t, "reasoning", [
        ("text", sizes(t, about["tokens"])), ("steps", sizes(t, n["steps"])), ("inside", sizes(t, n["tokens"])), Lanes(ways),
    ])  # fmt: skip


def _change(t: Words, row: dict[str, Any], way: str) -> Markup | None:
    """The change in nats and the token that is likeliest then."""
    if row[f"{way}_nats"] is None:
        return None
    return Markup("{} {}").format(t.numbers.signed(row[f"{way}_nats"]), token(row[f"{way}_first"]))


def _path(t: Words, numbers: dict[str, Any], rows: list[dict[str, Any]]) -> Markup:
    def line(field: str, name: str, ink: str, dash: tuple[int, int] = (1, 0)) -> Line:
        return Line(name, [(r["tokens"], r[field], _tip(t, r)) for r in rows], ink, dash)

    lines = [line("first_p", str(t("reasoning.axis.first")), "soft", (5, 3)), line("p", visible(numbers["target"]), "accent")]
    drawn = [Panel(str(t("reasoning.axis.p")), lines, top=1.0)]
    return panels(t, "reasoning-path", str(t("reasoning.figure.path.title")), str(t("reasoning.axis.tokens")), drawn)


def _tip(t: Words, row: dict[str, Any]) -> str:
    end = t("reasoning.tip.end", number=row["end_of"]) if row["end_of"] else ""
    return str(t("reasoning.tip.point", tokens=row["tokens"], token=visible(row["text"]), p=t.numbers.percent(row["p"]),
                 rank=row["rank"] + 1, first=visible(row["first"]), end=end))  # fmt: skip


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
