"""What a trace says: each lens's numbers to sentences, the votes to an answer."""

from __future__ import annotations

import importlib
from typing import Any

from intaglio.sentences import Sentence
from intaglio.trace import TraceData


def find(name: str, trace: TraceData) -> list[Sentence]:
    """What one lens found, the most telling sentence first; empty where it was not measured or skipped."""
    lens: dict[str, Any] = trace.lenses.get(name) or {}
    if "numbers" not in lens:
        return []
    return importlib.import_module(f"intaglio.analyse.choice.{name}").find(lens, trace.about)
