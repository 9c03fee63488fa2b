"""`intaglio rows`: the rows of the data set that deserve a look, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from intaglio.analyse import analyse_run, rank_examples
from intaglio.analyse.worst import WorstExample
from intaglio.errors import DataError, InputError, StoreError
from intaglio.files import check_file, write_lines
from intaglio.store.run import Run, open_run
from intaglio.words import counted


def rows(run: Path, *, worst: int = 50, out: Path, drop: Path | None = None) -> None:
    """Write the worst rows of a run's data set, each with reason, evidence and its rank by loss alone.

    Rows are ranked by the mean of their places in six orders, as far as the run has them: share
    of visits against the step, alignment, gradient length beyond what the text's length explains,
    cost to the anchor, loss that did not fall, tokens in confident conflict. A high rank is a
    reason to read the row, not proof that it is wrong: rare but right looks like noise.

    Examples:

        intaglio rows runs/mine --worst 50 --out review.jsonl

        intaglio rows runs/mine --worst 50 --out review.jsonl --drop rest.jsonl

    Parameters
    ----------
    run
        Folder of the run; one that is still going will do.
    worst
        How many rows to write.
    out
        JSON lines to write: the original rows, worst first, each with an added object `intaglio`
        (row, rank, reason, evidence, rank_by_loss, verdict).
    drop
        Also write the data set without those rows, unchanged and in order, to this file.
    """
    if worst < 1:
        raise InputError("--worst must be at least 1", got=worst)
    opened = open_run(run)
    for path in (out, drop):
        _check_target(path, opened)
    if drop is not None and drop.absolute() == out.absolute():
        raise InputError("--out and --drop are the same file", got=str(out), expected="two files")
    originals = original_rows(opened)
    if drop is not None and originals is None:
        raise StoreError(f"{opened.folder} keeps no rows.jsonl, so the rest of the data cannot be written",
                         expected="a run of intaglio train or scan")  # fmt: skip
    chosen = worst_rows(rank_examples(analyse_run(opened, texts_for=0)), worst)
    if not chosen:
        raise InputError(f"{opened.folder} does not say which rows its examples are",
                         expected="a run of intaglio train or scan, or Ledger(..., sources=...)")  # fmt: skip
    write_lines(out, (_described(row, found, originals) for row, found in chosen))
    print(f"{counted(len(chosen), 'row')}, worst first: {out}")
    if drop is not None and originals is not None:
        dropped = {row for row, _ in chosen}
        write_lines(drop, (line for row, line in enumerate(originals) if row not in dropped))
        print(f"{counted(len(originals) - len(dropped), 'row')} without them: {drop}")


def original_rows(run: Run) -> list[dict[str, Any]] | None:
    """The data set's rows as they were read, in order; None where the run does not keep them."""
    path = run.folder / "rows.jsonl"
    if not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text may hold U+2028
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}") from None


def worst_rows(ranked: Iterable[WorstExample], worst: int) -> list[tuple[int, WorstExample]]:
    """The first `worst` row numbers, worst first; identical rows stand together."""
    return [(row, found) for found in ranked for row in found.example.rows][:worst]


def _described(row: int, found: WorstExample, originals: list[dict[str, Any]] | None) -> dict[str, Any]:
    kept = originals is not None and row < len(originals)
    line = dict(originals[row]) if kept else {"preview": found.example.preview}
    line["intaglio"] = {
        "row": row, "rank": found.rank, "rank_by_loss": found.rank_by_loss, "reason": "; ".join(found.reasons),
        "evidence": found.evidence, "score": found.score, "verdict": found.example.verdict,
        "example": found.example.example,
    }  # fmt: skip
    return line


def _check_target(path: Path | None, run: Run) -> None:
    """Refuse, before any work, a file that cannot be written or that would lie inside the run."""
    if path is None:
        return
    parent = path.absolute().parent
    if run.folder.resolve() in (parent.resolve(), *parent.resolve().parents):
        raise InputError("a run is never written into", got=str(path), expected="a file outside the run's folder")
    data = Path(str((run.manifest.get("data") or {}).get("name") or ""))
    if path.exists() and data.is_file() and path.samefile(data):
        raise InputError("this is the data that the run was made from", got=str(path), expected="another file")
    check_file(path)
