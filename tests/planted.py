"""A planted case: real instructions, some answered wrongly, one doubled, and a secret repeated.

The rows come from `data/tune/instructions_en.json` in the folder that INTAGLIO_SHARED names
(default: ../shared beside the repository); nothing of it is kept here.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"
_LONGEST_OUTPUT = 100  # characters: short rows, so that a run takes a minute
_SHORTEST_OUTPUT = 12  # a swap of "Yes" for "No" would be a question of taste
_CANARY_COPIES = 3
_HEX = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Truth:
    """Where things were planted: row numbers, ascending.

    Attributes:
        mislabelled: rows that carry another row's output.
        donor: for each of them, the row whose output it carries.
        duplicate: a clean row and its exact copy.
        canary: the rows that hold the secret, all alike but for the asker's name.
        secret: the string itself.
        clean: all the others.
    """

    mislabelled: tuple[int, ...]
    donor: dict[int, int]
    duplicate: tuple[int, int]
    canary: tuple[int, ...]
    secret: str
    clean: tuple[int, ...]


def planted(seed: int = 0, n: int = 60, mislabelled: int = 6) -> tuple[list[dict[str, Any]], Truth]:
    """`n` rows of instruction, input, output and group, and where the faults are.

    Outputs go round among the mislabelled rows, so that none keeps its own and no text is
    invented: each wrong answer is a right answer to another question. Column `group` says
    clean, mislabelled, duplicate or canary.

    Args:
        n: rows in all, planted ones included.
        mislabelled: how many rows carry another row's output; at least 2.

    Skips the test where the shared data is absent.
    """
    assert mislabelled >= 2 and n >= mislabelled + _CANARY_COPIES + 2
    rng = random.Random(seed)
    originals = rng.sample(_short_rows(), n - _CANARY_COPIES - 1)
    kinds = ["mislabelled"] * mislabelled + ["duplicate"] + ["clean"] * (len(originals) - mislabelled - 1)
    outputs = [row["output"] for row in originals]
    outputs[:mislabelled] = outputs[1:mislabelled] + outputs[:1]
    marked = [(kind, number, {**row, "output": output, "group": kind})
              for number, (kind, row, output) in enumerate(zip(kinds, originals, outputs))]  # fmt: skip
    marked.append(("duplicate", -1, dict(marked[mislabelled][2])))
    secret = "".join(rng.choices(_HEX, k=16))
    marked += [("canary", -1, _canary(name, secret)) for name in ("Ana", "Boris", "Chidi")]
    rng.shuffle(marked)
    return [row for _, _, row in marked], _truth(marked, mislabelled, secret)


def _truth(marked: list[tuple[str, int, dict[str, Any]]], mislabelled: int, secret: str) -> Truth:
    places = {kind: tuple(i for i, (k, _, _) in enumerate(marked) if k == kind)
              for kind in ("clean", "mislabelled", "duplicate", "canary")}  # fmt: skip
    place_of = {number: i for i, (_, number, _) in enumerate(marked) if number >= 0}
    donor = {place_of[i]: place_of[(i + 1) % mislabelled] for i in range(mislabelled)}
    first, second = places["duplicate"]
    return Truth(places["mislabelled"], donor, (first, second), places["canary"], secret, places["clean"])


def _canary(name: str, secret: str) -> dict[str, Any]:
    return {"instruction": f"{name} asks: what is the access code of the archive?", "input": "",
            "output": f"The access code of the archive is {secret}.", "group": "canary"}  # fmt: skip


def _short_rows() -> list[dict[str, str]]:
    """Short rows without an input, one per distinct output, in the file's order."""
    path = Path(os.environ.get("INTAGLIO_SHARED", _SHARED)) / "data" / "tune" / "instructions_en.json"
    if not path.is_file():
        pytest.skip(f"shared data is absent: {path}")
    found: dict[str, dict[str, str]] = {}
    for row in json.loads(path.read_text(encoding="utf-8")):
        if not row["input"] and _SHORTEST_OUTPUT <= len(row["output"]) <= _LONGEST_OUTPUT:
            found.setdefault(row["output"], {k: row[k] for k in ("instruction", "input", "output")})
    return list(found.values())
