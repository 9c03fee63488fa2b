"""`intaglio compare`: two runs side by side in one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def compare(run_a: Path, run_b: Path, *, out: Path = Path("compare.html"), lang: Literal["en", "ru"] = "en") -> None:
    """Write a page with two runs side by side: movement, learning, verdicts, books, the same examples in both.

    Examples:

        intaglio compare runs/before runs/after
        intaglio compare runs/a runs/b --lang ru --out a-b.html

    Parameters
    ----------
    run_a
        Folder of the first run.
    run_b
        Folder of the second run.
    out
        The file to write.
    lang
        Language of the page: en or ru.
    """
    from intaglio.analyse.shift import analyse_run
    from intaglio.commands.report import write_page
    from intaglio.report import render_compare
    from intaglio.store.run import open_run

    a, b = open_run(run_a), open_run(run_b)
    write_page(out, render_compare(analyse_run(a), analyse_run(b), lang=lang))
    print(out)
