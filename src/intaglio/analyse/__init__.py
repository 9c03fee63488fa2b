"""From a run's tables to findings. Never imports torch, the store or the report."""

from intaglio.analyse.compare import compare
from intaglio.analyse.shift import add_texts, analyse_run
from intaglio.analyse.worst import rank_examples

__all__ = ["add_texts", "analyse_run", "compare", "rank_examples"]
