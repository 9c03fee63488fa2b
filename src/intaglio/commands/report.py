"""`intaglio report`: one run as one self-contained HTML file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from intaglio.errors import StoreError

if TYPE_CHECKING:
    from intaglio.findings import Findings
    from intaglio.store.run import Run


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
    from intaglio.store.run import open_run

    _, path = write_report(open_run(run), out=out, lang=lang)
    print(path)
    if open_browser:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


def write_report(run: Run, *, out: Path | None = None, lang: str = "en") -> tuple[Findings, Path]:
    """Analyse a run and write its page; returns both."""
    from intaglio.analyse.shift import analyse_run
    from intaglio.report import render

    findings = analyse_run(run)
    page = render(findings, lang=lang)
    path = out or run.folder / "report.html"
    try:
        write_page(path, page)
    except StoreError:
        if out is not None or run.folder.exists() or not run.final.is_dir():
            raise
        path = run.final / "report.html"  # the run was finished, and renamed, meanwhile
        write_page(path, page)
    return findings, path


def write_page(path: Path, page: str) -> None:
    """Write a page whole or not at all; what is no plain file (a pipe, /dev/null) is written to and stays what it is.

    Raises:
        StoreError: it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing where it did
    aside = path.with_name(f".{path.name}.tmp")
    try:
        if path.exists() and not path.is_file():
            path.write_text(page, encoding="utf-8")
            return
        aside.write_text(page, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
