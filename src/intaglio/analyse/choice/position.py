"""Whether the order of the words matters to this choice, and their absolute places."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, known, measured, num, plain, signed, tok, unknown, whole

STILL = 1e-3  # logits: a shift that changes less is rounding


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, swaps, shifts = lens["numbers"], lens["tables"]["swaps"], lens["tables"]["shifts"]
    top = max(swaps, key=lambda r: abs(r["change_logits"]))
    turned = sum(r["first_changed"] for r in swaps)
    found = [measured("swaps", pairs=whole(n["pairs"]), mean=num(n["mean_change"]), left=plain(_word(top["left"])),
                      right=plain(_word(top["right"])), change=signed(top["change_logits"]), turned=whole(turned),
                      difference=signed(n["difference_logits"]))]  # fmt: skip
    if n["shuffles"]:
        found.append(measured("shuffled", shuffles=whole(n["shuffles"]), mean=signed(n["shuffled_mean"]),
                              difference=signed(n["difference_logits"]), turned=whole(n["shuffled_first"])))  # fmt: skip
    if n["reversed"] is not None:
        key = "reversed_changed" if n["reversed_changed"] else "reversed"
        found.append(measured(key, after=signed(n["reversed"]), difference=signed(n["difference_logits"]),
                              first=tok(n["reversed_first"])))  # fmt: skip
    return [*found, *_shifts(n["kind"], shifts), unknown("meaning")]


def _word(text: str) -> str:
    """A word without the space before it; a space that ends the prompt is a word of its own, and shown."""
    return text.strip() or "␣"


def _shifts(kind: str, shifts: list[dict[str, Any]]) -> list[Sentence]:
    if kind == "fixed":
        return [unknown("no_shift")]
    if not shifts:
        return [unknown("no_room")]
    most = max(shifts, key=lambda r: abs(r["change_logits"]))
    if abs(most["change_logits"]) < STILL:
        return [measured("still", k=whole(shifts[-1]["shift"]), change=num(abs(most["change_logits"]))), known("rotary")]
    return [measured("moves", k=whole(most["shift"]), change=signed(most["change_logits"]), first=tok(most["first"]))]
