"""From a run's tables to findings. Never imports torch, the store or the report."""

from intaglio.analyse.shift import analyse_run

__all__ = ["analyse_run"]
