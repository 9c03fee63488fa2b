"""What a run will take on disk, table by table, before any of it is written."""

from __future__ import annotations

import json
from typing import Any

from intaglio.tables import TABLES

FILE_BYTES_PER_COLUMN = 250  # of a parquet file's own description
PAGE_BYTES = 270_000  # the page of a small run; its charts keep to a few hundred points
# Bytes of parquet per row, measured on runs of stories260k and smollm2: what is incompressible in it.
ROW_BYTES = {
    "visits": 75, "parts": 42, "visit_parts": 13, "tokens": 28, "steps": 250, "credits": 35, "probes": 130,
    "probe_items": 20, "drift": 27, "scans": 40, "vocab": 13, "group_carry": 16, "pairs": 18, "checkpoints": 60,
}  # fmt: skip
EXAMPLE_BYTES, EXAMPLE_BYTES_PER_TOKEN = 90, 1.5
SKETCH_BYTES_PER_NUMBER = {"norms": 3.3, "full": 3.3, "exact": 3.8}  # 16 bits in the place of 32; at level exact all 32


def table_bytes(job: Any, layout: Any) -> dict[str, float]:
    """Predicted bytes by table of a run of `intaglio train`; tables without rows are left out."""
    rows = _row_counts(job, layout)
    distinct = {item.example: item for item in job.data.data}.values()
    found = {name: rows[name] * ROW_BYTES[name] for name in rows}
    found["examples"] = sum(EXAMPLE_BYTES + EXAMPLE_BYTES_PER_TOKEN * len(i.input_ids) for i in distinct)
    found["sketches"] = rows["visits"] * (60 + sketch_width(layout) * SKETCH_BYTES_PER_NUMBER[job.level])
    return {name: size + FILE_BYTES_PER_COLUMN * len(TABLES[name].columns) for name, size in found.items() if size}


def data_bytes(job: Any) -> int:
    """The data set's own rows, which are kept beside the tables."""
    return sum(len(json.dumps(row, ensure_ascii=False, default=str).encode()) + 1 for row in job.data.originals)


def sketch_width(layout: Any) -> int:
    """Numbers in one sketch."""
    from intaglio.measure.collect import Collector

    return Collector(layout, seed=0).projections.width


def probe_measurements(job: Any) -> int:
    """How often each probe is measured: every so many steps, and once at the end."""
    return -(-job.recipe.steps // job.probe_every) + 1


def _row_counts(job: Any, layout: Any) -> dict[str, float]:
    recipe, data = job.recipe, job.data.data
    per_step = recipe.batch_size * recipe.accumulate
    visits = recipe.steps * per_step
    full_steps = -(-recipe.steps // job.every) if job.level != "norms" else 0
    tokens = sum(len(i.input_ids) for i in data) / len(data)
    probed = probe_measurements(job)
    credited = sum(step % job.every == 0 for step in range(0, recipe.steps, job.probe_every)) if full_steps else 0
    return {
        "visits": visits, "steps": recipe.steps, "parts": full_steps * len(layout.addresses),
        "visit_parts": visits * len(layout.addresses), "tokens": visits * tokens * job.keep_tokens,
        "credits": credited * per_step * len(job.probes), "probes": probed * len(job.probes),
        "probe_items": probed * sum(p.items for p in job.probes.values()),
        "drift": probed * len(job.probes) * (job.model.config.get_text_config().num_hidden_layers + 1),
        "scans": job.rescan * len({i.example for i in data}), "vocab": len({t for i in data for t in i.input_ids}),
        "group_carry": full_steps * (1 + len({i.group for i in data})) if job.group_momentum else 0,
        "pairs": full_steps * per_step * (per_step - 1) / 2 if job.level == "exact" else 0,
        "checkpoints": kept_states(job),
    }  # fmt: skip


def kept_states(job: Any) -> int:
    """States of the model that stay on disk, the last one included."""
    return ((job.recipe.steps - 1) // job.checkpoint_every if job.checkpoint_every else 0) + 1
