"""The id of an example: a hash of its unpadded token ids and of which of them are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def example_id(token_ids: Sequence[int], target_mask: Sequence[bool]) -> str:
    """16 hex digits, equal for equal texts whatever the padding, batch or collator.

    Args:
        token_ids: the unpadded token ids.
        target_mask: true where the token itself is a label. The first token has no
            prediction before it, so its flag is ignored.
    """
    ids = np.asarray(token_ids, dtype="<i4")
    mask = np.array(target_mask, dtype=np.uint8)
    mask[:1] = 0
    return hashlib.blake2b(ids.tobytes() + b"|" + mask.tobytes(), digest_size=8).hexdigest()
