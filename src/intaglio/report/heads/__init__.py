"""What every head does as one self-contained HTML file, in English or Russian.

Never imports torch or the analysis: its input is an `AtlasData`.
"""

from intaglio.report.heads.page import render_heads
from intaglio.report.heads.words import heads_catalogue

__all__ = ["heads_catalogue", "render_heads"]
