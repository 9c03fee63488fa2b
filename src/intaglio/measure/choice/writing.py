"""What writing costs in tokens: of the prompt, and of ordinary text in two languages; what each token holds.  [torch]"""

from __future__ import annotations

from typing import Any

from intaglio.data.vocab import is_special, letters, token_bytes
from intaglio.measure.choice.contexts import is_cyrillic
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given


def writing(found: Decision, given: Given) -> list[dict[str, Any]]:
    """Tokens, bytes, letters and words of the prompt and of the reference text's halves."""
    ids, cut = given.reference_ids, _first_cyrillic(found, given.reference_ids)
    texts = [("prompt", found.ids), ("english", ids[:cut]), ("russian", ids[cut:])]
    return [{"text": name, **_counted(found, some)} for name, some in texts if some]


def _counted(found: Decision, ids: list[int]) -> dict[str, Any]:
    ids = [i for i in ids if not is_special(found.tokenizer, i)]
    spelt = [token_bytes(found.tokenizer, i) for i in ids]
    text = b"".join(spelt).decode("utf-8", "ignore")
    return {
        "tokens": len(ids), "bytes": sum(map(len, spelt)), "letters": sum(c.isalpha() for c in text),
        "words": sum(any(c.isalpha() for c in w) for w in text.split()), "parts": sum(_is_part(b) for b in spelt),
    }  # fmt: skip


def _is_part(spelt: bytes) -> bool:
    """Whether a token holds a letter only in part."""
    try:
        spelt.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _first_cyrillic(found: Decision, ids: list[int]) -> int:
    for begin, _, text in letters([token_bytes(found.tokenizer, i) for i in ids]):
        if is_cyrillic(text):
            return begin
    return len(ids)


def tokens_spelt(found: Decision) -> list[dict[str, Any]]:
    """Every token of the prompt: its text, the letters it begins, its bytes, whether it holds a letter only in part."""
    rows = []
    for token, shown in zip(found.ids, found.letters()):
        spelt = token_bytes(found.tokenizer, token)
        rows.append({"text": found.written(token), "letters": shown, "bytes": spelt.hex(" ").upper(), "part": _is_part(spelt)})
    return rows
