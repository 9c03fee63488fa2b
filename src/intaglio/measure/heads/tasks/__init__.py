"""Roles that show on texts made for them: one file per role.  [torch]

Every role gives its score by text, layer and head with a null of its own, and, where it
has one, the loss that its heads should carry.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.atlas import ROLES, Sampled
from intaglio.errors import InputError
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.seeing import TooLong
from intaglio.measure.heads.tasks.copying import find_copying
from intaglio.measure.heads.tasks.coreference import find_coreference
from intaglio.measure.heads.tasks.found import Found
from intaglio.measure.heads.tasks.indirect import indirect_loss, indirect_prompts
from intaglio.measure.heads.tasks.name_mover import name_movers
from intaglio.measure.heads.tasks.paths import path_shares
from intaglio.measure.heads.tasks.prompts import Untested, longest
from intaglio.measure.heads.tasks.retrieval import find_retrieval
from intaglio.measure.heads.tasks.s_inhibition import find_s_inhibition
from intaglio.measure.heads.tasks.successor import find_successor
from intaglio.measure.heads.tasks.syntax import find_syntax
from intaglio.measure.heads.tasks.temporal import find_temporal
from intaglio.model.anatomy import Anatomy

TASKS = ("copying", "copy_suppression", "successor", "name_mover", "s_inhibition", "coreference", "syntax", "temporal",
         "retrieval")  # fmt: skip
SHARES = "shares"  # false attention paths: not a role, but skipped and reported like one


@dataclass(eq=False)
class TaskResults:
    """What the tasks found.

    Attributes:
        sampled: scores by role, detail, text, layer and head.
        losses: the losses that roles should carry.
        shares: (L, H) each: `template_share`, `content_share`, and `template_null`, `content_null`.
        skipped: role (or `shares`) to the reason why it was not tested.
        notes: task to what was left out and how often.
        seconds: task to what it took.
    """

    sampled: list[Sampled] = field(default_factory=list)
    losses: list[RoleLoss] = field(default_factory=list)
    shares: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, dict[str, object]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def trying(self, roles: Collection[str]):
        """What cannot be tested is written down with its reason."""
        began = time.perf_counter()
        try:
            yield
        except (Untested, TooLong) as why:
            self.skipped |= {role: str(why) for role in roles if role not in {s.role for s in self.sampled}}
        self.seconds["+".join(roles)] = time.perf_counter() - began

    def take(self, name: str, found: Found, roles: Collection[str]) -> None:
        """Keep what was asked for."""
        self.sampled += [s for s in found.sampled if s.role in roles]
        self.losses += [x for x in found.losses if x.role in roles]
        self.notes |= {name: found.notes} if found.notes else {}


def run_tasks(
    anatomy: Anatomy, tokenizer: Any, *, seed: int = 0, roles: Collection[str] | None = None,
    corpus: str | Path | None = None, winogender: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> TaskResults:  # fmt: skip
    """Scores of every head on every role that is asked with texts of our own.

    Args:
        anatomy: a proved one (`proof.prove`).
        seed: of all that is drawn; each task draws for itself, so leaving one out changes no other.
        roles: of `TASKS`, and `shares`; None for all.
        corpus: a treebank in CoNLL-U; without one, syntax is skipped.
        winogender: its table of sentences, beside our own.
        progress: is told each task's name before it runs.

    Raises:
        InputError: a role that is none of the tasks.
        DataError: a file is not what it must be.
    """
    wanted = {*TASKS, SHARES} if roles is None else set(roles)
    if unknown := wanted - {*TASKS, SHARES}:
        raise InputError("no such task", got=", ".join(sorted(unknown)), expected=", ".join((*TASKS, SHARES)))
    results = TaskResults()

    def start(*names: str) -> np.random.Generator | None:
        if not wanted & set(names):
            return None
        if progress is not None:
            progress(names[0])
        return np.random.default_rng([seed, ROLES.index(names[0]) if names[0] in ROLES else len(ROLES)])

    simple = {"successor": find_successor, "temporal": find_temporal, "retrieval": find_retrieval,
              "coreference": lambda a, t, rng: find_coreference(a, t, rng, winogender)}  # fmt: skip
    if (rng := start("copying", "copy_suppression")) is not None:
        with results.trying([r for r in ("copying", "copy_suppression") if r in wanted]):
            results.take("copying", find_copying(anatomy, tokenizer, rng), wanted)
    for name, measure in simple.items():
        if (rng := start(name)) is not None:
            with results.trying([name]):
                results.take(name, measure(anatomy, tokenizer, rng), wanted)
    if (rng := start("name_mover", "s_inhibition")) is not None:
        _indirect(anatomy, tokenizer, rng, wanted, results)
    if (rng := start("syntax")) is not None:
        with results.trying(["syntax"]):
            if corpus is None:
                raise Untested("no treebank was given")
            results.take("syntax", find_syntax(anatomy, tokenizer, corpus, rng), wanted)
    if (rng := start(SHARES)) is not None:
        with results.trying([SHARES]):
            results.shares = path_shares(anatomy, tokenizer, rng)
    return results


def _indirect(anatomy: Anatomy, tokenizer: Any, rng: np.random.Generator, wanted: set[str], results: TaskResults) -> None:
    """Name movers, and the heads that turn them, on the same prompts."""
    roles = [r for r in ("name_mover", "s_inhibition") if r in wanted]
    with results.trying(roles):
        prompts = indirect_prompts(tokenizer, rng, most=longest(anatomy))
        losses = [indirect_loss(role, prompts, anatomy.unembed.weight.device) for role in roles]
        movers = name_movers(anatomy, prompts, rng)
        results.take("name_mover", Found([movers], losses), wanted)
        if "s_inhibition" in wanted:
            turning, used = find_s_inhibition(anatomy, prompts, movers, rng)
            results.take("s_inhibition", Found([turning], [], {"movers": [f"{l}.{h}" for l, h in used]}), wanted)
