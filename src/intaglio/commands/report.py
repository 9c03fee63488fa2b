"""`intaglio report`: one run as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from intaglio.errors import StoreError


def report(run: Path, *, out: Path | None = None, lang: Literal["en", "ru"] = "en", open_browser: bool = False) -> None:
    """Write a run's page: one HTML file that needs no network.

    Works on a run that is still going; the page then shows what was written so far.

    Examples:

        intaglio report runs/mine
        intaglio report runs/mine --lang ru --out отчёт.html

    Parameters
    ----------
    run
        Folder of the run.
    out
        The file to write; `report.html` in the run's folder by default.
    lang
        Language of the page: en or ru.
    open_browser
        Open the page in the default browser.
    """
    from intaglio.analyse.shift import analyse_run
    from intaglio.report import render
    from intaglio.store.run import open_run

    opened = open_run(run)
    path = out or opened.folder / "report.html"
    write_page(path, render(analyse_run(opened), lang=lang))
    print(path)
    if open_browser:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


def write_page(path: Path, page: str) -> None:
    """Write a page whole or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
