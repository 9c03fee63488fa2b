"""What the instruction does: the same question after two prompts, one with it and one without.  [torch]"""

from __future__ import annotations

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured, Needs
from intaglio.measure.choice.pair import compare


def measure(found: Decision, given: Given) -> Measured:
    """KL, entropies, the layer where the two part, the heads and MLPs whose votes changed."""
    if (needs := lacking(given)) is not None:
        raise needs
    return Measured(*compare(found, given.versus_prompt))


def lacking(given: Given) -> Needs | None:
    """What has to be given besides, if anything."""
    return Needs("no_second", "--versus-prompt TEXT") if given.versus_prompt is None else None
