"""Pictures of several models before the same bytes: who they are, what surprised each, what each would write next."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, Step, scheme, sizes
from intaglio.report.choice.sides import Side, sides
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData

BYTES = 257  # of the next byte's distribution: every byte, and what is no text
SHOWN = 30  # segments drawn: those on which the models differ most


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    n, tables, names = t.numbers, lens["tables"], lens["numbers"]["names"]
    columns = ("model", "vocabulary", "tokens", "bits_per_byte", "entropy", "first", "letter", "along", "open")
    blocks: list[Block] = [
        Rows("models", columns, [_model(t, r) for r in tables["models"]], frozenset(columns[1:5] + columns[6:])),
        Figure("letters", sides(names, [Side(visible(r["text"]), r["p"], [n.percent(p) for p in r["p"]])
                                        for r in tables["letters"]], top=1.0)),
    ]  # fmt: skip
    if tables["segments"]:
        blocks.append(Figure("segments", sides(names, [_segment(t, s) for s in strongest(tables["segments"])])))
    by_token = [r for r in tables["models"][1:] if r["by_token"] is not None]
    if by_token:
        columns = ("model", "kl", "same_first", "positions")
        blocks.append(Rows("by_token", columns, [_by_token(r) for r in by_token], frozenset(columns[1:])))
    return [*blocks, _scheme(t, lens)]


def _scheme(t: Words, lens: dict[str, Any]) -> Figure:
    n, models = lens["numbers"], lens["tables"]["models"]
    ways: list[list[Step]] = [
        [("tokens", sizes(t, r["tokens"])), ("layers", sizes(t, r["layers"], r["width"])),
         ("logits", sizes(t, r["tokens"], r["vocabulary"]))]
        for r in models
    ]  # fmt: skip
    return scheme(t, "models", [
        Lanes(ways, n["names"]),
        Lanes([[("segments", sizes(t, n["segments"]))], [("following", sizes(t, len(models), n["offsets"], BYTES))]]),
    ])  # fmt: skip


def strongest(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those on which the models differ most, in the text's order."""
    kept = sorted(segments, key=lambda s: min(s["bits"]) - max(s["bits"]))[:SHOWN]
    return sorted(kept, key=lambda s: s["start"])


def _segment(t: Words, row: dict[str, Any]) -> Side:
    tip = t("models.tip", start=t.numbers.whole(row["start"]), stop=t.numbers.whole(row["start"] + row["bytes"]))
    return Side(visible(row["text"]), row["bits"], [t.numbers(b) for b in row["bits"]], tip=str(tip))


def _model(t: Words, row: dict[str, Any]) -> tuple[object, ...]:
    first = Markup("{} {}").format(token(row["first"]), t.numbers.percent(row["p"]))
    return (row["name"], row["vocabulary"], row["tokens"], row["bits_per_byte"], row["entropy_nats"], first,
            row.get("letter_divergence"), row.get("mean_byte_divergence"), t.numbers.percent(row["open"]))  # fmt: skip


def _by_token(row: dict[str, Any]) -> tuple[object, ...]:
    seen = row["by_token"]
    return row["name"], seen["mean_kl_nats"], seen["same_first"], seen["positions"]
