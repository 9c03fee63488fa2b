"""`intaglio tensors A --diff B`: what moved, in the terminal, as a page, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from intaglio.measure.tensors.diff import Difference
    from intaglio.model.stored import Checkpoint

SHOWN = 12


def show_diff(
    base: tuple[str, Checkpoint], other: str, *, spectra: bool, out: Path | None, json: Path | None, lang: str, console: Console
) -> None:
    """Measure the difference, print it in short, write what was asked for."""
    from intaglio.analyse.tensors.diff import find, levels
    from intaglio.commands.progress import bars
    from intaglio.commands.tensors import open_named, write_json
    from intaglio.files import write_text
    from intaglio.measure.tensors.diff import SCHEMA, diff
    from intaglio.measure.tensors.pair import is_adapter

    name, checkpoint = base
    path = Path(other).expanduser()
    second = path if is_adapter(path) else open_named(other)
    names = (_called(name), _called(other))
    if names[0] == names[1]:
        names = (name, other)
    with bars(console) as tell:
        found = diff(checkpoint, second, spectra=spectra, names=names, progress=tell)
    said = find(found.about, found.rows)
    _print(found, said, lang, console)
    if out is not None:
        from intaglio.report.tensors import render_diff

        write_text(out, render_diff(found.about, found.rows, said, levels, lang=lang))
        console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)
    write_json(json, {"schema": SCHEMA, **found.about, "tables": found.rows}, console)


def _called(spec: str) -> str:
    path = Path(spec).expanduser()
    return path.resolve().name if path.exists() else spec


def _print(found: Difference, said: dict[str, list[Any]], lang: str, console: Console) -> None:
    from intaglio.report.tensors import TensorWords

    t = TensorWords(lang)
    for section in ("answer", "limits"):
        for sentence in said[section]:
            console.print(f"\n{_plain(t.plain('diff', sentence))}", highlight=False, markup=False)
    moved = [r for r in found.rows["tensors"] if r["changed"]]
    if moved:
        console.print()
        console.print(_tensors(t, sorted(moved, key=lambda r: -(r["relative"] or 0))[:SHOWN], found.about["spectra"]))
    heads = sorted((r for r in found.rows["heads"] if r["moved_l2"]), key=lambda r: -(r["relative"] or 0))[:SHOWN]
    if heads:
        console.print(_heads(t, heads, found.about["spectra"]))
    for section in ("rank", "tokens"):
        for sentence in said[section]:
            console.print(f"{_plain(t.plain('diff', sentence))}\n", highlight=False, markup=False)


def _plain(text: Any) -> str:
    """Without signs that steer the terminal; names of tensors are whatever a file says."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def _table(t: Any, columns: tuple[str, ...], left: int) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(str(t(f"diff.column.{name}")), justify="left" if i < left else "right", overflow="fold")
    return table


def _tensors(t: Any, rows: list[dict[str, Any]], spectra: bool) -> Table:
    from rich.text import Text

    from intaglio.report.tensors.diff import rank_text
    from intaglio.report.tensors.words import bare

    n = t.numbers
    more = ("rank", "first", "kept") if spectra else ()
    table = _table(t, ("tensor", "shape", "moved", "changed", *more), 2)
    for r in rows:
        cells = [r["tensor"], "×".join(map(str, r["shape"])), n.fine_percent(r["relative"]),
                 n.fine_percent(r["changed"] / r["numbers"])]  # fmt: skip
        if more and r.get("rank") is not None:
            kept = "" if r.get("shared_left") is None else f"{n(r['shared_left'], 2)} · {n(r['shared_right'], 2)}"
            cells += [bare(rank_text(t, r)), n.percent(r["top_share"]), kept]
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    return table


def _heads(t: Any, rows: list[dict[str, Any]], spectra: bool) -> Table:
    n = t.numbers
    roles = [role for role in ("q", "k", "v", "o") if any(role in r["relative_by"] for r in rows)]
    table = _table(t, ("head", "moved", *roles, *(("rank",) if spectra else ())), 1)
    for r in rows:
        cells = [r["address"], n.fine_percent(r["relative"]), *(n.fine_percent(r["relative_by"].get(x)) for x in roles)]
        table.add_row(*cells, *((n(r.get("rank")),) if spectra else ()))
    return table
