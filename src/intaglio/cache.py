"""Where things that are made once and used again are kept.

`INTAGLIO_CACHE` names the folder; without it, `intaglio` in the user's cache folder. Pure.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*below: str) -> Path:
    """The cache folder, or the folder `below` it. Nothing is created."""
    root = os.environ.get("INTAGLIO_CACHE")
    if root:
        return Path(root).expanduser().joinpath(*below)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().joinpath("intaglio", *below)
