"""`heads`: what every attention head of a model does, from the model to an atlas.  [torch]

    atlas = intaglio.heads("smollm2")
    atlas.table
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intaglio.atlas import ROLES
from intaglio.errors import InputError
from intaglio.looking import TEXTS, Look, Tell
from intaglio.model.anatomy import Anatomy
from intaglio.model.proof import prove
from intaglio.model.subject import Subject, fingerprint, load_subject
from intaglio.views import Atlas

SEEDS = 1 << 63


def heads(
    subject: Any, *, corpus: str | Path | None = None, winogender: str | Path | None = None, versus: Any = None,
    roles: Sequence[str] | None = None, texts: int = TEXTS, seed: int = 0, progress: Tell | None = None,
) -> Atlas:  # fmt: skip
    """What every attention head of a model does, on what evidence, and what it is worth.

    Args:
        subject: what `load_subject` takes, a loaded Subject, or a pair (model, tokenizer).
        corpus: a file of dependency trees (CoNLL-U), for syntax.
        winogender: its table of sentences (`all_sentences.tsv`), for coreference beside our own texts.
        versus: a second model or checkpoint of the same shape, looked at with the same texts.
        roles: only these, by name; all of them if None.
        texts: independent texts of repeated random tokens, on which the basic roles are scored.
        seed: of everything that is drawn.
        progress: told (what, done, total).

    Raises:
        InputError: no such role, or settings that cannot be used.
        SubjectError: a model without attention, or of a family whose parts are not known or not proved.
    """
    check_settings(roles=roles, texts=texts, seed=seed)
    tell = progress or (lambda what, done, total: None)
    asked = {"roles": tuple(roles or ROLES), "corpus": corpus, "winogender": winogender, "texts": texts, "seed": seed}
    sides = [_loaded(one) for one in ([subject] if versus is None else [subject, versus])]
    anatomies = [prove(side.model) for side in sides]
    _check_shapes(anatomies)
    atlases = []
    for i, (side, anatomy) in enumerate(zip(sides, anatomies)):
        start = time.perf_counter()
        look = Look(anatomy, side.tokenizer, tell=_named(tell, side.name) if i else tell, **asked)
        look.all(other=anatomies[1] if len(sides) > 1 and not i else None, folder=side.folder)
        about = {"subject": side.name, "fingerprint": side.fingerprint, **look.about}
        atlases.append(Atlas(about | {"seconds": time.perf_counter() - start}, look.rows, sampled=look.sampled))
    atlases[0].beside = atlases[1:]
    return atlases[0]


def check_settings(*, roles: Sequence[str] | None, texts: int, seed: int) -> None:
    """Refuse settings that cannot be used.

    Raises:
        InputError: what, got, expected.
    """
    for role in roles or ():
        if role not in ROLES:
            raise InputError("no such role", got=role, expected=", ".join(ROLES))
    if not 2 <= texts <= 4096:
        raise InputError("so many texts cannot be used", got=texts, expected="2 to 4096: an interval needs two")
    if not 0 <= seed < SEEDS:
        raise InputError("no such seed", got=seed, expected="0 to 2**63 - 1")


def _check_shapes(anatomies: Sequence[Anatomy]) -> None:
    """Refuse a second model whose heads are not as many.

    Raises:
        InputError: the first size that differs.
    """
    first = anatomies[0]
    for other in anatomies[1:]:
        for size in ("n_layers", "n_heads"):
            if getattr(other, size) != getattr(first, size):
                raise InputError(f"the second model has another shape: {size}", got=getattr(other, size),
                                 expected=str(getattr(first, size)))  # fmt: skip


def _named(tell: Tell, name: str) -> Tell:
    return lambda what, done, total: tell(f"{name}: {what}", done, total)


def _loaded(subject: Any) -> Subject:
    if isinstance(subject, tuple):
        model, tokenizer = subject
        return Subject(model, tokenizer, type(model).__name__, None, fingerprint(model))
    return subject if isinstance(subject, Subject) else load_subject(subject)
