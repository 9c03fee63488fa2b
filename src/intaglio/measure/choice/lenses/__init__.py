"""The lenses: each one measurement on a decision, in the order of the page.  [torch]

A lens is a module with `measure(found, given) -> Measured`. One that does not apply raises `Skip`;
the others still run. One that needs what a user may give has `lacking(given) -> Needs | None` as well.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from intaglio.errors import InputError
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.effects import Means
from intaglio.measure.choice.tuned import TunedLens
from intaglio.trace import LENSES


@dataclass(frozen=True, eq=False)
class Peer:
    """A second model before the same text.

    Attributes:
        name: as the user gave it.
        decision: on the very same ids where the models share a tokenizer, else on the same bytes in its own tokens.
        same_tokenizer: whether ids mean the same in both.
    """

    name: str
    decision: Decision
    same_tokenizer: bool


@dataclass(eq=False)
class Given:
    """What a lens may use beside the decision.

    Attributes:
        prompt: the text as the user gave it; `chat` says whether it went through the template.
        reference_ids: ordinary text, English and Russian.
        ending: what stands right before the decision, as text: the prompt and the answer so far; in a chat the answer alone,
            where it has begun.
        subject: the model's name, as the user gave it.
        corpus: text of a reference corpus, or None.
        peers: other models before the same text.
        versus_prompt: another decision: another prompt in the same model, or None.
        effects: measured effects of replacing parts by their means, where they were run.
        seed: of everything that is drawn.
        tuned: a tuned lens of the model, where one was trained.
        means: mean output of every part over the reference text, where it was run.
    """

    prompt: str
    reference_ids: list[int]
    ending: str = ""
    subject: str = "this model"
    chat: bool = False
    corpus: str | None = None
    peers: Sequence[Peer] = ()
    versus_prompt: Decision | None = None
    effects: Any = None
    seed: int = 0
    tuned: TunedLens | None = None
    means: Means | None = None

    @property
    def versus(self) -> Decision | None:
        """The first other model that shares the tokenizer, on the same ids."""
        return next((p.decision for p in self.peers if p.same_tokenizer), None)


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


class Needs(Skip):
    """The lens needs something that was not given; a lens asked for by name without it is a mistake.

    Args:
        reason: as in `Skip`.
        expected: what to give, such as "--corpus FILE".
    """

    def __init__(self, reason: str, expected: str, **values: Any) -> None:
        super().__init__(reason, **values)
        self.expected = expected


def tokens_run(length: int, layers: int, names: Sequence[str] | None = None) -> dict[str, float]:
    """About how many tokens each lens runs through the whole model, by name; counted on a model of 30 layers.

    Args:
        length: tokens of the prompt.
        names: lenses; all if None.
    """
    found = {
        "embedding": 36, "heads": length, "context": 1.2 * min(length, 100) * length, "position": 18 * length, "neurons": 256,
        "rotary": 13 * length, "sampling": 200 + 2 * length, "architecture": (layers / 2 + 15) * length,
        "tokenization": 600 + 1.5 * length, "reasoning": 17 * length,
    }  # fmt: skip
    return {name: float(count) for name, count in found.items() if names is None or name in names}


def check_names(names: Sequence[str] | None) -> None:
    """Refuse a name that no lens has, before anything is run.

    Raises:
        InputError: no lens of that name.
    """
    for name in names or ():
        if name not in LENSES:
            raise InputError("no such lens", got=name or "an empty name", expected=", ".join(LENSES))


def check_given(names: Sequence[str] | None, given: Given) -> None:
    """Refuse a lens asked for by name that needs what was not given, before anything is run.

    Raises:
        InputError: a lens needs what is not there.
    """
    for name in names or ():
        lacking = getattr(_module(name), "lacking", None)
        if lacking is not None and (needs := lacking(given)) is not None:
            raise InputError(f"lens {name} lacks what it needs", expected=needs.expected)


def _module(name: str) -> Any:
    return importlib.import_module(f"intaglio.measure.choice.lenses.{name}")


def measure_lenses(
    found: Decision, given: Given, names: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Run lenses one after the other: name to its numbers, tables and seconds, or to why it was skipped.

    Raises:
        InputError: no lens of that name, or one asked for by name that needs what was not given.
    """
    check_names(names)
    check_given(names, given)
    done = {}
    for name in sorted(LENSES if names is None else set(names), key=LENSES.index):
        progress(name)
        start = time.perf_counter()
        try:
            seen = _module(name).measure(found, given)
            done[name] = {"numbers": seen.numbers, "tables": seen.tables, "seconds": time.perf_counter() - start}
        except Skip as skip:
            done[name] = {"skipped": {"reason": skip.reason, **skip.values}}
    return done
