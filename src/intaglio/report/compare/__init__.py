"""Two runs side by side: the sections of a run's page, each seen for both."""

from intaglio.report.compare.page import render_compare

__all__ = ["render_compare"]
