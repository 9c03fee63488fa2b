"""`intaglio tensors MODEL --walk PART`: from the idea to the bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from intaglio.model.stored import Checkpoint


def show_walk(
    subject: tuple[str, Checkpoint], text: str, *, out: Path | None, json: Path | None, lang: str, console: Console
) -> None:
    """Print the walk to a part, write what was asked for."""
    from intaglio.address import parse, parse_head
    from intaglio.commands.tensors import write_json
    from intaglio.files import write_text
    from intaglio.model.slices import places_of
    from intaglio.model.walk import walk_of

    spec, checkpoint = subject
    address = str(parse_head(text) if text[:1].isdigit() else parse(text))
    walk = asdict(walk_of(checkpoint, address))
    places = places_of(checkpoint, address)
    _print(walk, places, lang, console)
    if out is not None:
        from intaglio.report.tensors import render_walk

        name = Path(spec).expanduser().resolve().name if Path(spec).expanduser().exists() else spec
        write_text(out, render_walk(walk, places, name, lang=lang))
        console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)
    write_json(json, {"subject": spec, "walk": walk, "places": places}, console)


def _print(walk: dict[str, Any], places: list[dict[str, Any]], lang: str, console: Console) -> None:
    from intaglio.report.tensors import TensorWords
    from intaglio.report.tensors.walk import config_rows, place_rows, words_of
    from intaglio.report.tensors.words import bare

    t = TensorWords(lang)
    said = words_of(t, walk)

    def head(key: str) -> None:
        console.print(f"\n{t(f'walk.nav.{key}')}", style="bold", highlight=False)

    def say(text: Any) -> None:
        console.print(bare(text), highlight=False, markup=False)

    console.print(f"{walk['address']}  ({walk['family']})", style="bold", highlight=False)
    say(said["idea"])
    for note in said["notes"]:
        say(note)
    head("formula")
    for line in walk["formula"]:
        console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
    head("code")
    for line in (*"\n".join(walk["setup"]).splitlines(), "", f"# {bare(said['reads']).replace('`', '')}", *walk["code"]):
        console.print(f"    {line}" if line else "", highlight=False, markup=False, soft_wrap=True)
    head("tensors")
    rows = place_rows(t, places)
    console.print(_table(t, ("tensor", "role", "shape", "dtype", "slice", "bytes", "runs"), rows))
    say(", ".join(dict.fromkeys(r["file"] for r in rows)))
    head("config")
    console.print(_table(t, ("field", "value", "why"), config_rows(t, walk)))


def _table(t: Any, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from intaglio.report.tensors.words import bare

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(str(t(f"walk.column.{name}")), overflow="fold")
    for row in rows:
        table.add_row(*(Text(bare(row[name])) for name in columns))
    return table
