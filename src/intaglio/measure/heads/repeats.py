"""Random tokens, then the same again: texts on which what a head attends to cannot come from meaning.  [torch]

Source: repeated random tokens as in Olsson et al. 2209.11895.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.model.anatomy import Anatomy

SHORTEST = 4  # tokens in a copy


@dataclass(frozen=True, eq=False)
class Repeats:
    """Texts of one length: the beginning token if the model has one, a copy, and the same copy again.

    Attributes:
        ids_BT: token ids.
        first: position of the first copy's first token: 1 behind a beginning token, else 0.
        length: tokens in one copy; within a copy no token comes twice.
    """

    ids_BT: Tensor
    first: int
    length: int

    @property
    def second(self) -> int:
        """Position of the second copy's first token."""
        return self.first + self.length


def repeats(
    anatomy: Anatomy, *, seed: int = 0, texts: int = 4, length: int = 50, ordinary: Sequence[int] | None = None
) -> Repeats:
    """Texts of repeated random tokens.

    Args:
        length: tokens in a copy; fewer where the model's context or vocabulary is too small for them.
        ordinary: ids to draw from; every id but the model's own special ones if not given.

    Raises:
        InputError: the context or the vocabulary has no room for two copies of four tokens.
    """
    config = anatomy.model.config.get_text_config()
    rows = int(anatomy.embed.weight.shape[0])
    begin = _one(getattr(config, "bos_token_id", None))
    begin = begin if begin is not None and 0 <= begin < rows else None  # GPT-2's default id in a smaller vocabulary
    first = 0 if begin is None else 1
    if ordinary is None:
        special = {_one(getattr(config, name, None)) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ordinary = [i for i in range(rows) if i not in special]
    context = getattr(config, "max_position_embeddings", None) or 2 * length + first
    length = min(length, len(ordinary), (context - first) // 2)
    if length < SHORTEST:
        raise InputError("the model has no room for repeated random tokens", got=f"{length} tokens in a copy",
                         expected=f"at least {SHORTEST}")  # fmt: skip
    drawn = torch.Generator().manual_seed(seed)
    pool = torch.as_tensor(ordinary)
    copies = torch.stack([pool[torch.randperm(len(pool), generator=drawn)[:length]] for _ in range(texts)])
    start = copies.new_full((texts, first), begin or 0)
    return Repeats(torch.cat([start, copies, copies], 1).to(anatomy.embed.weight.device), first, length)


def _one(token: int | list[int] | None) -> int | None:
    return (token[0] if token else None) if isinstance(token, list) else token
