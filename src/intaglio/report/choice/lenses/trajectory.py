"""Pictures of the state's way through the layers, of what it would say on the way, and of the swap."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import scheme, sizes
from intaglio.report.choice.words import Words, part, token, visible
from intaglio.trace import TraceData

SHOWN = 33  # layers before a table folds


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    rows, about = lens["tables"]["states"], trace.about
    blocks: list[Block] = [Figure("lens", _lens(t, rows, about)), Figure("steps", _steps(t, rows)), _table(t, rows)]
    if lens["tables"]["swap"]:
        blocks.append(Figure("swap", _swap(t, lens["tables"]["swap"], lens["numbers"]["swap"])))
    return [*blocks, _scheme(t, about)]


def _name(row: dict[str, Any]) -> str:
    return "embed" if row["after"] is None else f"L{row['after']}"


def _line(t: Words, rows: list[dict[str, Any]], field: str, name: str, ink: str, dash: tuple[int, int] = (1, 0)) -> Line:
    points = [(i, r[field], f"{_name(r)} · {name}: {t.numbers(r[field])}") for i, r in enumerate(rows) if r[field] is not None]
    return Line(name, points, ink, dash)


def _lens(t: Words, rows: list[dict[str, Any]], about: dict[str, Any]) -> Markup:
    places = [{**r, "place": r["rank"] + 1, "other": None if r["against_rank"] is None else r["against_rank"] + 1} for r in rows]
    lines = [_line(t, places, "place", visible(about["target"]["text"]), "accent")]
    if about["against"] is not None:
        lines.append(_line(t, places, "other", visible(about["against"]["text"]), "against", (5, 3)))
    if "tuned_rank" in rows[0]:
        tuned = [{**r, "place": r["tuned_rank"] + 1} for r in rows]
        lines.append(_line(t, tuned, "place", str(t("trajectory.axis.tuned")), "rb", (2, 2)))
    alive = _line(t, rows, "candidates", str(t("trajectory.axis.candidates_short")), "soft")
    drawn = [Panel(str(t("trajectory.axis.place")), lines, log=True),
             Panel(str(t("trajectory.axis.candidates")), [alive], log=True)]  # fmt: skip
    return panels(t, "trajectory-lens", str(t("trajectory.figure.lens.title")), str(t("trajectory.axis.layers")), drawn)


def _steps(t: Words, rows: list[dict[str, Any]]) -> Markup:
    lengths = [_line(t, rows, "length", str(t("trajectory.axis.state")), "soft"),
               _line(t, rows, "step", str(t("trajectory.axis.step")), "accent")]  # fmt: skip
    angles = [_line(t, rows, "to_end_degrees", str(t("trajectory.axis.to_end")), "soft"),
              _line(t, rows, "turn_degrees", str(t("trajectory.axis.turn")), "accent")]  # fmt: skip
    drawn = [Panel(str(t("trajectory.axis.length")), lengths, log=all(p[1] > 0 for line in lengths for p in line.points)),
             Panel(str(t("trajectory.axis.degrees")), angles)]  # fmt: skip
    return panels(t, "trajectory-steps", str(t("trajectory.figure.steps.title")), str(t("trajectory.axis.layers")), drawn)


def _table(t: Words, rows: list[dict[str, Any]]) -> Rows:
    n = t.numbers
    cells = [
        (part(_name(r)), token(r["top"]), n.percent(r["probability"]), n.percent(r["target"]), r["rank"] + 1,
         r["candidates"], r["kl_nats"], r["step"], r["turn_degrees"])
        for r in rows
    ]  # fmt: skip
    columns = ("after", "top", "probability", "target", "rank", "candidates", "kl", "step", "turn")
    if "tuned_rank" in rows[0]:
        columns = (*columns, "tuned_top", "tuned_rank", "tuned_kl")
        cells = [(*c, token(r["tuned_top"]), r["tuned_rank"] + 1, r["tuned_kl_nats"]) for c, r in zip(cells, rows)]
    return Rows("states", columns, cells, frozenset(columns[2:]) - {"tuned_top"}, SHOWN)


def _swap(t: Words, rows: list[dict[str, Any]], swap: dict[str, Any]) -> Markup:
    def line(field: str, ink: str, dash: tuple[int, int]) -> Line:
        name = str(t(f"trajectory.axis.{field}"))
        points = [
            (r["layer"], r[f"{field}_logits"], f"L{r['layer']} · {name}: {t.numbers.signed(r[f'{field}_logits'])} · "
             f"{visible(r[f'{field}_top'])}") for r in rows
        ]  # fmt: skip
        return Line(name, points, ink, dash)

    lines = [line("from", "accent", (1, 0)), line("only", "soft", (5, 3))]
    drawn = [Panel(str(t("trajectory.axis.difference")), lines, rule=swap["was_logits"])]
    return panels(t, "trajectory-swap", str(t("trajectory.figure.swap.title")), str(t("trajectory.axis.swapped")), drawn)


def _scheme(t: Words, about: dict[str, Any]) -> Figure:
    width, layers = about["width"], about["layers"]
    return scheme(t, "trajectory", [
        ("start", sizes(t, width)), ("layers", f"{t.numbers.whole(layers)} × (+ {sizes(t, width)})"), ("state", sizes(t, width)),
        ("norm", sizes(t, width)), ("unembed", sizes(t, about["vocabulary"], width)), ("logits", sizes(t, about["vocabulary"])),
    ])  # fmt: skip
