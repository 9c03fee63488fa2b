"""What stands in a section beside its sentences: pictures and tables, each with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from intaglio.report.choice.words import Words


@dataclass(frozen=True)
class Figure:
    """A picture: `key` names its title and caption, `LENS.figure.KEY.title` and `.reading`."""

    key: str
    drawn: Markup


@dataclass(frozen=True)
class Rows:
    """A table: `key` names its title and caption as a figure's; columns are `LENS.column.NAME`.

    Attributes:
        numeric: names of the columns that are set flush right.
        shown: rows to show at once; the rest unfold.
    """

    key: str
    columns: Sequence[str]
    cells: Sequence[Sequence[object]]
    numeric: frozenset[str] = frozenset()
    shown: int = 12


Block = Figure | Rows


def drawn(t: Words, lens: str, block: Block) -> Markup:
    """A block as it stands on the page."""
    title, reading = (t(f"{lens}.figure.{block.key}.{what}") for what in ("title", "reading"))
    inside = Markup('<div class="chart">{}</div>').format(block.drawn) if isinstance(block, Figure) else _table(t, lens, block)
    return Markup('<figure class="block"><div class="figtitle">{}</div>{}<figcaption>{}</figcaption></figure>').format(
        title, inside, reading
    )


def _table(t: Words, lens: str, table: Rows) -> Markup:
    head = Markup("").join(
        Markup("<th{}>{}</th>").format(_right(name, table), t(f"{lens}.column.{name}")) for name in table.columns
    )
    rows = [
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td{}>{}</td>").format(_right(name, table), _cell(t, cell)) for name, cell in zip(table.columns, row)
            )
        )
        for row in table.cells
    ]
    whole = Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>')
    first = whole.format(head, Markup("").join(rows[: table.shown]))
    if len(rows) <= table.shown:
        return first
    rest = whole.format(head, Markup("").join(rows[table.shown :]))
    more = t("page.more_rows", n=t.numbers.whole(len(rows) - table.shown))
    return Markup('{}<details class="more"><summary>{}</summary>{}</details>').format(first, more, rest)


def _right(name: str, table: Rows) -> Markup:
    return Markup(' class="r"') if name in table.numeric else Markup("")


def _cell(t: Words, cell: object) -> Markup:
    if cell is None:
        return escape("—")
    if isinstance(cell, bool | int):
        return escape(t.numbers.whole(int(cell)))
    if isinstance(cell, float):
        return escape(t.numbers(cell))
    return escape(cell)
