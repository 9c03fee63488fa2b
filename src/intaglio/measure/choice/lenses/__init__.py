"""The lenses: each one measurement on a decision, in the order of the page.  [torch]

A lens is a module with `measure(found, given) -> Measured`. One that does not apply raises `Skip`;
the others still run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from intaglio.errors import InputError
from intaglio.measure.choice.decision import Decision
from intaglio.trace import LENSES


@dataclass(eq=False)
class Given:
    """What a lens may use beside the decision.

    Attributes:
        prompt: the text as the user gave it; `chat` says whether it went through the template.
        reference_ids: ordinary text, English and Russian.
        corpus: text of a reference corpus, or None.
        versus: another decision: the same prompt in another model, or None.
        versus_prompt: another decision: another prompt in the same model, or None.
        effects: measured effects of replacing parts by their means, where they were run.
        seed: of everything that is drawn.
    """

    prompt: str
    reference_ids: list[int]
    chat: bool = False
    corpus: str | None = None
    versus: Decision | None = None
    versus_prompt: Decision | None = None
    effects: Any = None
    seed: int = 0


@dataclass(eq=False)
class Measured:
    """Numbers and tables of a lens: JSON values only."""

    numbers: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


class Skip(Exception):
    """The lens does not apply to this subject or prompt.

    Args:
        reason: key of a text of this lens, below `skip.`.
        values: what the text names.
    """

    def __init__(self, reason: str, **values: Any) -> None:
        super().__init__(reason)
        self.reason, self.values = reason, values


def measure_lenses(
    found: Decision, given: Given, names: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Run lenses one after the other: name to its numbers and tables, or to why it was skipped.

    Raises:
        InputError: no lens of that name.
    """
    chosen = list(LENSES) if names is None else list(names)
    for name in chosen:
        if name not in LENSES:
            raise InputError("no such lens", got=name, expected=", ".join(LENSES))
    done = {}
    for name in sorted(chosen, key=LENSES.index):
        progress(name)
        module = importlib.import_module(f"intaglio.measure.choice.lenses.{name}")
        try:
            seen = module.measure(found, given)
            done[name] = {"numbers": seen.numbers, "tables": seen.tables}
        except Skip as skip:
            done[name] = {"skipped": {"reason": skip.reason, **skip.values}}
    return done
