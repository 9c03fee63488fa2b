"""Which decisions heads took part in: votes and effects out of traces, for the cards of the heads' page. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.analyse.choice.answer import whole_parts
from intaglio.errors import InputError

_HEAD = re.compile(r"L(\d+)\.attn\.H(\d+)\Z", re.ASCII)
_NEEDED = ("prompt", "target", "layers", "heads", "tables")
PROMPT = 160  # letters of a prompt that are told, its end


def choice_of(
    trace: Mapping[str, Any], *, layers: int, heads: int, page: str | None = None, name: str = "trace",
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """One decision, as a head's card tells it.

    Args:
        trace: what `intaglio why --json` wrote, parsed.
        layers, heads: sizes of the atlas's model, heads in each layer.
        page: address of the decision's page, relative to the page of the heads; None without one.
        name: of the file, for errors.
        fingerprint: of the atlas's model, where it is known.

    Returns:
        prompt, target, against (None: the mean over the vocabulary), difference (logits), parts (how many voted), page, and
        heads: short name ("18.6") to its vote (logits), effect (logits; None where it was not run), place among all
        parts by size of the vote (from 1), and the token most of it was read from.

    Raises:
        InputError: no trace, or one of a model of another shape or with other weights.
    """
    tables = trace.get("tables") if isinstance(trace, Mapping) else None
    if not isinstance(trace, Mapping) or any(key not in trace for key in _NEEDED) or not isinstance(tables, Mapping):
        raise InputError(f"{name} holds no decision", expected="what intaglio why --json writes")
    if (trace["layers"], trace["heads"]) != (layers, heads):
        raise InputError(
            f"{name} is of a model of another shape",
            got=f"{trace['layers']} layers of {trace['heads']} heads",
            expected=f"{layers} of {heads}",
        )
    if fingerprint is not None and trace.get("fingerprint") not in (None, fingerprint):
        raise InputError(f"{name} is of a model with other weights", got=f"{trace.get('subject')} ({trace['fingerprint']})",
                         expected=f"the model of the atlas ({fingerprint})")  # fmt: skip
    try:
        rows = whole_parts(tables["votes"])
        told = {
            found: [_number(row["vote_logits"]), row["effect_logits"] and _number(row["effect_logits"]), place,
                    row["best"] and _text(row["best"]["token"])]
            for place, row in enumerate(rows, 1)
            if (found := _short(row["address"]))
        }
        against = trace.get("against")
        return {
            "prompt": _end(trace["prompt"]),
            "target": _text(trace["target"]["text"]),
            "against": against and _text(against["text"]),
            "difference": _number(trace["difference_logits"]),
            "parts": len(rows),
            "page": page,
            "heads": told,
        }
    except (KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(f"{name} holds no whole decision", expected="what intaglio why --json writes") from None


def paired(names: Sequence[str]) -> list[tuple[str, str | None]]:
    """Traces with their pages: a name that ends in .html belongs to the one before it.

    Raises:
        InputError: a page without a trace before it.
    """
    found: list[tuple[str, str | None]] = []
    for name in names:
        if not name.lower().endswith((".html", ".htm")):
            found.append((name, None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], name)
        else:
            raise InputError("a page of --choices stands behind no trace", got=name, expected="why.json why.html")
    return found


def _short(address: str) -> str | None:
    match = _HEAD.match(address)
    return f"{match[1]}.{match[2]}" if match else None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _end(prompt: str) -> str:
    return prompt if len(_text(prompt)) <= PROMPT else "…" + prompt[-PROMPT:]
