"""One decision as one self-contained HTML file, in English or Russian.

Never imports torch or the analysis: its input is a `Trace` and the sentences found in it.
"""

from intaglio.report.choice.page import render_choice, render_lens
from intaglio.report.choice.words import Words, choice_catalogue

__all__ = ["Words", "choice_catalogue", "render_choice", "render_lens"]
