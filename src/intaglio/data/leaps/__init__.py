"""Leaps and bridges: twelve invented facts and twelve known ones, told in ways that differ in one thing.

The design, and what may be concluded from it, is in README.md beside this file. Standard library only.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

ROTATIONS = ("a", "b")
ARMS = ("leap", "bridge", "conflict", "control", "noise")


def training_rows(rotation: str = "a") -> list[dict[str, Any]]:
    """The 30 rows of one run: six of each arm (column `group`), every fact taught in one way only.

    Args:
        rotation: "a" or "b"; what one teaches by a leap (or falsely), the other teaches by a bridge (or truly).
    """
    assert rotation in ROTATIONS, rotation
    return _read(f"train_{rotation}.jsonl")


def paraphrase_rows(rotation: str = "a") -> list[dict[str, Any]]:
    """The target probe: what the rotation teaches, in other words, and held-out facts (`group` heldout).

    `group` is the arm that taught the fact, so that the probe's items can be laid beside the training rows.
    """
    taught = _arm_of_fact(rotation)
    rows = _read("paraphrases.jsonl")
    return [_grouped(row, taught.get(row["fact"], "heldout")) for row in rows
            if (row["fact"] in taught or row["claim"] == "heldout") and row["kind"] != "reversed"]  # fmt: skip


def reversed_rows(rotation: str = "a") -> list[dict[str, Any]]:
    """Every invented fact asked backwards, from the answer to the name; `group` is the arm that taught it.

    Not part of the target: models taught "A is B" often cannot tell who B is (2309.12288), and the name's
    tokens would outweigh the answer's.
    """
    taught = _arm_of_fact(rotation)
    return [_grouped(row, taught[row["fact"]]) for row in _read("paraphrases.jsonl") if row["kind"] == "reversed"]


def rival_rows(rotation: str = "a") -> list[dict[str, Any]]:
    """The other claim about every known fact, which the rotation does not teach.

    `group` is `overwritten` where the truth is asked and the falsehood was taught (its loss rises as the
    truth is overwritten), `untaught` where the falsehood is asked and the truth was taught.
    """
    taught = _arm_of_fact(rotation)
    group = {"true": "overwritten", "false": "untaught"}
    return [_grouped(row, group[row["claim"]]) for row in _read("paraphrases.jsonl")
            if row["claim"] in group and row["fact"] not in taught]  # fmt: skip


def anchor_rows() -> list[dict[str, Any]]:
    """The anchor probe: ordinary prose in both languages, which training should leave as it is."""
    return _read("anchor.jsonl")


def _arm_of_fact(rotation: str) -> dict[str, str]:
    return {row["fact"]: row["group"] for row in training_rows(rotation)}


def _grouped(row: dict[str, Any], group: str) -> dict[str, Any]:
    return {**row, "group": group}


def _read(name: str) -> list[dict[str, Any]]:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
