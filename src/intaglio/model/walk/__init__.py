"""From a part's idea to its bytes: plain PyTorch on the file's own tensors.

    walk_of(checkpoint, "L18.attn.H6")    what it is, its formula, code that computes it, its tensors, its config fields

Only text is made here, from the headers and the configuration: no torch, no values. A family whose
arithmetic is not written down in `recipes.py` is refused; nothing is guessed.
"""

from __future__ import annotations

from intaglio.model.walk.walk import Walk, walk_of

__all__ = ["Walk", "walk_of"]
