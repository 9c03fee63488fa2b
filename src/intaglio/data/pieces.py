"""A model folder's tokens as letters, from its tokenizer.json alone: fast to open, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intaglio.data.vocab import spelled, token_bytes


class Pieces:
    """Tokens by id, as letters; a byte that makes no letter as <D0>."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend_tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.added_tokens_decoder, self.all_special_ids = added, [i for i, t in added.items() if t.special]

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, token: int) -> str | None:
        """The letters of a token; None where the tokenizer has no such id."""
        data = token_bytes(self, token)
        return spelled(data) if data else None

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.backend_tokenizer.id_to_token(token)

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab()


def open_pieces(folder: Path) -> Pieces | None:
    """The tokens of a model folder; None where it has no tokenizer.json, or one that cannot be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Pieces(Tokenizer.from_file(str(path)))
    except Exception:  # a foreign parser over the user's files; ids stand for themselves then
        return None
