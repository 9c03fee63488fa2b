"""Small texts of our own that ask heads about their roles, in English and in Russian. Standard library only."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from intaglio.data.leaps import anchor_rows


def read(name: str) -> dict[str, Any]:
    """The data of one role, such as `indirect`."""
    return json.loads(files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))


def prose(language: str) -> list[str]:
    """Paragraphs of ordinary prose in `en` or `ru`, in which words come again."""
    ours = [str(row["text"]) for row in anchor_rows() if ("и" in row["text"]) == (language == "ru")]
    return ours + read("prose")[language]
