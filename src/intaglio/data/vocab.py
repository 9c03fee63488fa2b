"""Tokens as bytes and letters, whatever the tokenizer's own notation.

Byte-level BPE writes bytes in an alphabet of its own (GPT-2's: a space is `Ġ`); sentencepiece
writes a space as `▁` and a lone byte as `<0xD0>`; control tokens are written as they are. A token
may be part of one letter, so letters are put together from the bytes of neighbouring tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_BYTE_PIECE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """The bytes a token stands for; empty for an id that the tokenizer does not have."""
    token_id = int(token_id)
    added = _added(tokenizer)
    if token_id in added:
        return added[token_id][0].encode()
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:
        return b""
    if _is_byte_level(tokenizer):
        return _from_alphabet(piece)
    found = _BYTE_PIECE.match(piece)
    return bytes([int(found[1], 16)]) if found else piece.replace("▁", " ").encode()


def vocab_rows(tokenizer: Any, ids: Iterable[int]) -> list[dict[str, Any]]:
    """Rows of the table `vocab` for the distinct `ids`, in their order."""
    added = _added(tokenizer)
    rows = []
    for token_id in sorted({int(i) for i in ids}):
        data = token_bytes(tokenizer, token_id)
        special = token_id in added and added[token_id][1]
        rows.append({"token": token_id, "bytes": data, "text": data.decode("utf-8", "replace"), "special": special})
    return rows


def is_special(tokenizer: Any, token_id: int) -> bool:
    """Whether the id is a control token such as `<|im_end|>`."""
    return _added(tokenizer).get(int(token_id), ("", False))[1]


def letters(pieces: Sequence[bytes]) -> Iterator[tuple[int, int, str]]:
    """Group tokens so that each group holds whole letters: (first, one past the last, text).

    Args:
        pieces: the bytes of consecutive tokens. Bytes that never make a letter become U+FFFD.
    """
    start, pending = 0, b""
    for stop, piece in enumerate(pieces, 1):
        pending += piece
        whole = _is_whole(pending)
        if whole or stop - start >= 4 or stop == len(pieces):  # no letter takes more than four bytes
            yield start, stop, pending.decode("utf-8", "replace")
            start, pending = stop, b""


def _is_whole(data: bytes) -> bool:
    """False only while the bytes could still grow into valid text."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return True


def _added(tokenizer: Any) -> dict[int, tuple[str, bool]]:
    """Added tokens: id -> (content, whether it is a control token); cached on the tokenizer."""
    cached = tokenizer.__dict__.get("_intaglio_added")
    if cached is None or cached[0] != len(tokenizer):
        specials = set(tokenizer.all_special_ids)
        added = {i: (t.content, t.special or i in specials) for i, t in tokenizer.added_tokens_decoder.items()}
        cached = tokenizer.__dict__["_intaglio_added"] = (len(tokenizer), added)
    return cached[1]


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.decoder is not None:
        return "ByteLevel" in repr(backend.decoder)
    return "Ġ" in tokenizer.get_vocab()


@functools.cache
def _alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the rest for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(rest)}


def _from_alphabet(piece: str) -> bytes:
    alphabet = _alphabet()
    return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in piece)


def spelled(data: bytes) -> str:
    """Bytes as letters; those that make no letter as <D0>."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(f"<{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
