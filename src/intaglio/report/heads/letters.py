"""A text's tokens as letters: bytes of one letter that lie in several tokens are put together where it begins.  Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

GOES_ON = "‥"  # a token that goes on with a letter begun before
_BYTE = re.compile(r"(<[0-9A-F]{2}>)")


def letters(tokens: Sequence[str]) -> list[str]:
    """Each token as it is read: "<D0>", "<97>им" are "З", "им"; a token with no letter of its own is "‥".

    Bytes that make no letter stay as they are.
    """
    found = [""] * len(tokens)
    held: list[tuple[int, int]] = []  # token, byte: of a letter that is not whole yet

    def give_up() -> None:
        for token, byte in held:
            found[token] += f"<{byte:02X}>"
        held.clear()

    for i, text in enumerate(tokens):
        for part in _BYTE.split(text):
            if not _BYTE.fullmatch(part):
                if part:
                    give_up()
                    found[i] += part
                continue
            byte = int(part[1:3], 16)
            if held and not 0x80 <= byte < 0xC0:
                give_up()
            held.append((i, byte))
            letter = _decoded(bytes(b for _, b in held))
            if letter:
                found[held[0][0]] += letter
                held.clear()
            elif letter is None:
                give_up()
    give_up()
    return [text or GOES_ON for text in found]


def _decoded(given: bytes) -> str | None:
    """The letter; "" where more bytes are needed, None where these bytes begin none."""
    size = next((n for n, first in ((2, 0xC2), (3, 0xE0), (4, 0xF0)) if first <= given[0] < (0xE0, 0xF0, 0xF5)[n - 2]), 0)
    if not size:
        return None
    if len(given) < size:
        return ""
    try:
        return given.decode("utf-8")
    except UnicodeDecodeError:
        return None
