"""`intaglio report`: one run as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from intaglio.errors import InputError, StoreError
from intaglio.files import check_file, write_text

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

    opened = open_run(run)
    check_page(out or opened.folder / "report.html")
    _, path = write_report(opened, out=out, lang=lang)
    print(path)
    if open_browser:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


def check_page(path: Path) -> None:
    """Refuse, before any work, a place that cannot be written, or one of something else, such as the data or a manifest.

    Raises:
        InputError: it is.
    """
    check_file(path)
    if not path.is_file():
        return  # nothing there yet, or a pipe or a device
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if start and not start.startswith((b"<!doctype html", b"<html")):
        raise InputError("this file is no page, and would be lost", got=str(path), expected="a new file, or a page to replace")


def write_report(run: Run, *, out: Path | None = None, lang: str = "en") -> tuple[Findings, Path]:
    """Analyse a run and write its page; returns both."""
    from intaglio.analyse.shift import analyse_run
    from intaglio.report import render

    findings = analyse_run(run)
    page = render(findings, lang=lang)
    path = out or run.folder / "report.html"
    try:
        write_text(path, page)
    except StoreError:
        if out is not None or run.folder.exists() or not run.final.is_dir():
            raise
        path = run.final / "report.html"  # the run was finished, and renamed, meanwhile
        write_text(path, page)
    return findings, path
