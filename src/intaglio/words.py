"""Numbers beside the things they count, as the commands print them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`, `2,550 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
