"""Tensors on disk as self-contained HTML files: what moved between two checkpoints, and the walk to one part.

Never imports torch or the analysis: its input is plain rows and the sentences found in them.
"""

from intaglio.report.tensors.diff import render_diff
from intaglio.report.tensors.walk import render_walk
from intaglio.report.tensors.words import TensorWords, tensors_catalogue

__all__ = ["TensorWords", "render_diff", "render_walk", "tensors_catalogue"]
