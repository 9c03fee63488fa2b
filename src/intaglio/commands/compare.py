"""`intaglio compare`: two runs side by side in one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def compare(run_a: Path, run_b: Path, *, out: Path = Path("compare.html"), lang: Literal["en", "ru"] = "en") -> None:
    """Write a page with two runs side by side, in the order of a run's own page; one HTML file that needs no network.

    Whether the two can be compared, and in what, stands at its top and in its section on limits.
    Texts are joined by example id, the hash of their tokens.

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
    from intaglio.analyse import add_texts, analyse_run
    from intaglio.analyse import compare as compare_findings
    from intaglio.commands.report import check_page
    from intaglio.files import write_text
    from intaglio.report import render_compare
    from intaglio.store.run import open_run

    runs = open_run(run_a), open_run(run_b)
    check_page(out)
    a, b = (analyse_run(run, texts_for=0) for run in runs)
    found = compare_findings(a, b)
    shown = [example for examples in found["different"].values() for example in examples]
    a, b = (add_texts(findings, run, shown) for findings, run in zip((a, b), runs))
    write_text(out, render_compare(a, b, found, lang=lang))
    print(out)
