"""Findings to pages: one self-contained HTML file per run, in English or Russian.

Never imports torch, the store or the analysis: its input is a `Findings` value.
"""

from intaglio.report.compare import render_compare
from intaglio.report.page import render
from intaglio.report.texts import texts_catalogue

__all__ = ["render", "render_compare", "texts_catalogue"]
