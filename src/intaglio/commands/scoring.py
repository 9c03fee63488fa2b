"""Rows of a scan: scored in batches, written as it goes, taken up again after an interruption, aligned at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from intaglio.commands.resuming import CALLED
from intaglio.errors import RecipeError, TrainingError

FLUSH_SECONDS = 10.0
_KEYS = {"scans": ["example"], "sketches": ["example"], "scan_credits": ["example", "probe"]}
_COMPARED = ("kind", "data", "subject", "probes", "seed", "precision")


def score_rows(
    scorer: Any, data: Sequence[Any], writer: Any, *, step: int, batch_size: int, pad_id: int,
    first_slot: int = 0, progress: Callable[[Iterable], Iterable] = iter,
) -> None:  # fmt: skip
    """Score examples (each distinct one once) in batches of like length, writing as it goes."""
    import torch

    from intaglio.data.encode import collate
    from intaglio.measure.scan import alignments

    items = sorted({i.example: i for i in data}.values(), key=lambda i: len(i.input_ids))
    starts = range(0, len(items), batch_size)
    total, flushed, slot = None, time.perf_counter(), first_slot
    for start in progress(starts):
        chosen = items[start : start + batch_size]
        try:
            with torch.random.fork_rng(devices=[]):
                scored = scorer.score(collate(chosen, pad_id))
        except TrainingError as error:
            listed = ", ".join(str(i.row) for i in chosen)
            raise TrainingError(f"{error} on rows {listed} of the data", expected="a finite loss") from None
        so_far = scored.sketch_NS.sum(0, dtype="float64")
        total = so_far if total is None else total + so_far
        n = len(scored.ids)
        writer.append("scans", {
            "step": [step] * n, "example": scored.ids, "loss_nats": scored.loss_nats, "push": scored.push,
            "push_kind": scored.push_kind, "alignment": alignments(scored.sketch_NS, total),
        })  # fmt: skip
        for name, (credit, cosine) in scored.credits.items():
            writer.append("scan_credits", {
                "step": [step] * n, "example": scored.ids, "probe": [name] * n, "credit_nats": credit, "cosine": cosine,
            })  # fmt: skip
        if (step == 0 and scorer.directions) or writer.manifest.get("kind") == "scan":
            writer.append("sketches", {
                "step": [step] * n, "slot": list(range(slot, slot + n)), "rank": [0] * n, "example": scored.ids,
                "sketch": list(scored.sketch_NS.astype("float32")), "seed": [scorer.collector.projections.seed] * n,
            })  # fmt: skip
        slot += n
        if time.perf_counter() - flushed > FLUSH_SECONDS:
            writer.flush(step)
            flushed = time.perf_counter()


def scored_before(writer: Any, manifest: dict[str, Any]) -> set[str]:
    """Ids that an interrupted scan of the same data has scored; rows of any other example are dropped.

    Raises:
        RecipeError: the scan that was begun there is another one.
    """
    from intaglio.store.run import Run

    if "kind" not in writer.manifest:
        return set()  # nothing was begun
    differs = [k for k in _COMPARED if writer.manifest.get(k) != manifest[k]]
    if differs:
        raise RecipeError(
            f"the unfinished run at {writer.folder} was begun with other {', '.join(CALLED.get(k, k) for k in differs)}",
            expected="the same command line with --resume, or --force to start anew",
        )
    run = Run(writer.folder)
    done = set(run.column("scans", "example")) & set(run.column("sketches", "example"))
    if manifest["probes"]:
        credited = Counter(run.column("scan_credits", "example"))
        done = {e for e in done if credited[e] >= len(manifest["probes"])}
    for table, key in _KEYS.items():  # killed between the tables of one flush, or just before one was forgotten
        seen: set[tuple] = set()
        writer.keep_rows(table, lambda rows, seen=seen: [_once(row, done, seen) for row in _tuples(rows)], key)
    return done


def _tuples(rows: Any) -> Iterable[tuple]:
    return zip(*(column.to_pylist() for column in rows.columns))


def _once(key: tuple, done: set[str], seen: set[tuple]) -> bool:
    fresh = key[0] in done and key not in seen
    seen.add(key)
    return fresh


def align(writer: Any) -> None:
    """Agreement of every example with all others, now that all are scored; sketches are read in pieces."""
    import numpy as np
    import pyarrow as pa

    from intaglio.measure.scan import alignments
    from intaglio.store.run import Run

    def sketches() -> Iterable[tuple[list[str], Any]]:
        for batch in run.batches("sketches", ["example", "sketch"]):
            yield batch.column(0).to_pylist(), np.asarray(batch.column(1).flatten()).reshape(len(batch), -1)

    run = Run(writer.folder)
    total: Any = sum(values.sum(0, dtype="float64") for _, values in sketches())
    by_id = {e: c for ids, values in sketches() for e, c in zip(ids, alignments(values, total).tolist())}
    scans = run.table("scans")
    if not by_id:
        return
    aligned = pa.array([by_id.get(e) for e in scans.column("example").to_pylist()], type=pa.float64(), from_pandas=True)
    index = scans.schema.get_field_index("alignment")
    writer.replace("scans", scans.set_column(index, "alignment", aligned))
