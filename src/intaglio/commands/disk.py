"""What a run will take on disk, table by table, before any of it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.tables import TABLES

FILE_BYTES_PER_COLUMN = 250  # of a parquet file's own description
PAGE_BYTES, PAGE_BYTES_PER_ROW, PAGE_ROWS = 330_000, 1_800, 2000  # charts keep to a few hundred points; the rows listed
SCAN_PAGE_BYTES, SCAN_PAGE_BYTES_PER_ROW = 80_000, 1_600  # a scan's page draws and lists every row
# Bytes of parquet per row, measured on runs of stories260k and smollm2: what is incompressible in it.
ROW_BYTES = {
    "visits": 75, "parts": 42, "visit_parts": 13, "tokens": 28, "steps": 250, "credits": 35, "probes": 130,
    "probe_items": 20, "drift": 27, "scans": 40, "scan_credits": 25, "vocab": 13, "group_carry": 16, "pairs": 18,
    "checkpoints": 60, "visit_credits": 7,
}  # fmt: skip
EXAMPLE_BYTES, EXAMPLE_BYTES_PER_TOKEN = 90, 1.5
SKETCH_BYTES_PER_NUMBER = {"norms": 3.3, "full": 3.3, "exact": 3.8}  # 16 bits in the place of 32; at level exact all 32
DICTIONARY_NUMBERS, DICTIONARY_BYTES = 2**18, 2.0  # a file's first numbers of 32 bits, and what a dictionary of them costs


def table_bytes(job: Any, layout: Any) -> dict[str, float]:
    """Predicted bytes by table of a run of `intaglio train`; tables without rows are left out."""
    rows = _row_counts(job, layout)
    return _sized(rows, job.data.data, _sketch_bytes(rows["visits"], sketch_width(layout), job.level))


def scan_table_bytes(data: Sequence[Any], probes: Mapping[str, Any], width: int) -> dict[str, float]:
    """The same of a run of `intaglio scan`.

    Args:
        data: encoded rows.
        probes: name to Probe.
        width: numbers in one sketch; a scan keeps all their bits.
    """
    n = len({item.example for item in data})
    rows = {
        "scans": n, "scan_credits": n * len(probes), "probes": len(probes),
        "probe_items": sum(p.items for p in probes.values()), "vocab": len({t for i in data for t in i.input_ids}),
    }  # fmt: skip
    return _sized(rows, data, _sketch_bytes(n, width, "exact"))


def scan_page_bytes(data: Sequence[Any]) -> int:
    """The page of a scan."""
    return SCAN_PAGE_BYTES + SCAN_PAGE_BYTES_PER_ROW * len({item.example for item in data})


def page_bytes(data: Sequence[Any]) -> int:
    """The page of a run of `intaglio train`."""
    return PAGE_BYTES + PAGE_BYTES_PER_ROW * min(len({item.example for item in data}), PAGE_ROWS)


def _sized(rows: Mapping[str, float], data: Sequence[Any], sketches: float) -> dict[str, float]:
    """Bytes by table from its number of rows; those without any are left out."""
    distinct = {item.example: item for item in data}.values()
    found = {name: rows[name] * ROW_BYTES[name] for name in rows}
    found["examples"] = sum(EXAMPLE_BYTES + EXAMPLE_BYTES_PER_TOKEN * len(i.input_ids) for i in distinct)
    found["sketches"] = sketches
    return {name: size + FILE_BYTES_PER_COLUMN * len(TABLES[name].columns) for name, size in found.items() if size}


def _sketch_bytes(n: int, width: int, level: str) -> float:
    dictionary = DICTIONARY_BYTES * min(n * width, DICTIONARY_NUMBERS) if level == "exact" else 0.0
    return n * (60 + width * SKETCH_BYTES_PER_NUMBER[level]) + dictionary


def data_bytes(originals: Sequence[Mapping[str, Any]]) -> int:
    """The data set's own rows, which are kept beside the tables."""
    return sum(len(json.dumps(row, ensure_ascii=False, default=str).encode()) + 1 for row in originals)


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
        "credits": credited * per_step * len(job.probes),
        "visit_credits": credited * per_step * len(job.probes) * len(layout.addresses) if job.credit_parts else 0,
        "probes": probed * len(job.probes),
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
