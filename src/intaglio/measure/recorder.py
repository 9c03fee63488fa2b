"""Rows that go to the run's tables, and which examples and tokens they have named already.  [torch]"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intaglio.measure import rows as make
from intaglio.measure.books import StepBooks
from intaglio.measure.probes import Probe, ProbeState
from intaglio.model.layout import Layout
from intaglio.store.run import RunWriter

ALIKE = {"steps", "parts", "probes", "probe_items", "drift"}  # tables that are the same in every process
SLOTS = ("slot", "slot_a", "slot_b")


@dataclass(frozen=True, slots=True)
class Source:
    """Where an example comes from: what only the data set knows."""

    rows: tuple[int, ...]
    group: str | None = None
    fact: str | None = None
    preview: str = ""


class Recorder:
    """Writes what a step showed; knows the data set's sources and what was named before.

    Attributes:
        first_slot: examples of the step in the processes before this one.
        token_parts: places in the layout's addresses whose `token_parts` are kept.
        token_examples: only of these examples; of all if None.

    Args:
        writer: of the run.
        layout: of the model.
        sources: example id to its Source, where the data set is known.
        tokenizer: for previews and the `vocab` table; None leaves both bare.
        keep_tokens: share of examples whose `tokens` rows are kept.
        seed: of the sketches.
    """

    def __init__(
        self, writer: RunWriter, layout: Layout, *, sources: Mapping[str, Source], tokenizer: Any, keep_tokens: float,
        seed: int,
    ) -> None:  # fmt: skip
        self.writer, self.layout, self.tokenizer = writer, layout, tokenizer
        self.sources, self.keep_tokens, self.seed = dict(sources), keep_tokens, seed
        self.first_slot = 0
        self.token_parts: list[int] = []
        self.token_examples: set[str] | None = None
        self._seen_examples: set[str] = set()
        self._seen_tokens: set[int] = set()

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Rows of this process's examples, whose slots count on; what all processes know, the first one writes."""
        if table in ALIKE and self.writer.rank:
            return
        if self.first_slot:
            columns = dict(columns) | {n: np.asarray(columns[n]) + self.first_slot for n in SLOTS if n in columns}
        self.writer.append(table, columns)

    def append_rows(self, table: str, rows: list[dict[str, Any]]) -> None:
        """The same, from dictionaries."""
        if not (table in ALIKE and self.writer.rank):
            self.writer.append_rows(table, rows)

    def restore(self, examples: list[str], tokens: list[int]) -> None:
        """What a resumed run has named already."""
        self._seen_examples, self._seen_tokens = set(examples), set(tokens)

    def group(self, example: str) -> str:
        """The example's group, "" where it has none."""
        source = self.sources.get(example)
        return (source.group or "") if source else ""

    def sketches(self, step: int, ids: list[str], sketches: torch.Tensor, squared: np.ndarray, *, exact: bool) -> None:
        """Rows of `sketches`, with their measured error; half precision unless `exact`."""
        length2 = sketches.double().square().sum(1).cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.abs(np.sqrt(length2 / squared) - 1)
        values = sketches.cpu().to(torch.float16).float().numpy() if not exact else sketches.cpu().numpy()
        n = len(ids)
        self.append("sketches", {
            "step": [step] * n, "slot": list(range(n)), "rank": [self.writer.rank] * n, "example": ids,
            "sketch": list(values), "seed": [self.seed] * n, "error": error,
        })  # fmt: skip

    def places(self, step: int, records: list, books: StepBooks | None, visits: dict, ids: list[str]) -> None:
        """Rows of `visit_parts`, `tokens` and `parts`."""
        self.append(
            "visit_parts", make.visit_part_columns(step, self.layout, records, books, visits["loss_weight"])
        )
        kept = [int(i[:8], 16) < self.keep_tokens * 0x100000000 for i in ids]
        tokens = make.token_columns(step, records, books, kept)
        if tokens is not None:
            self.append("tokens", tokens)
        if books is not None and self.token_parts:
            asked = [self.token_examples is None or i in self.token_examples for i in ids]
            found = make.token_part_columns(step, self.layout, records, books, asked, self.token_parts)
            if found is not None:
                self.append("token_parts", found)
        if books is not None:
            self.append("parts", make.part_columns(step, self.layout, books))

    def pairs(self, step: int, products: np.ndarray, weights: list[float]) -> None:
        """Rows of `pairs`, from exact inner products of the visits as they were weighted."""
        omega = np.where(np.isnan(weights), 1.0, weights)
        dots = products / np.outer(omega, omega)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = products / np.sqrt(np.outer(np.diag(products), np.diag(products))) * np.sign(np.outer(omega, omega))
        a, b = np.triu_indices(len(products), 1)
        self.append("pairs", {
            "step": np.full(len(a), step), "slot_a": a, "slot_b": b, "dot": dots[a, b], "cosine": cosine[a, b],
        })  # fmt: skip

    def group_carry(self, step: int, carried: Mapping[str, float]) -> None:
        """Rows of `group_carry`."""
        self.append_rows("group_carry", [{"step": step, "group": g, "carry_shift": v} for g, v in carried.items()])

    def examples(self, examples: list[tuple[str, list[int], list[bool]]]) -> None:
        """Rows of `examples` and `vocab` for what was not named before."""
        fresh = []
        for example, token_ids, mask in examples:
            if example in self._seen_examples:
                continue
            self._seen_examples.add(example)
            source = self.sources.get(example, Source(()))
            preview = source.preview or self._preview(token_ids)
            fresh.append({
                "example": example, "row": list(source.rows), "group": source.group, "fact": source.fact,
                "tokens": len(token_ids), "targets": sum(mask), "preview": preview,
                "token_ids": token_ids, "target_mask": mask,
            })  # fmt: skip
        self.append_rows("examples", fresh)
        if self.tokenizer is not None:
            new = {t for row in fresh for t in row["token_ids"]} - self._seen_tokens
            if new:
                from intaglio.data.vocab import vocab_rows

                self._seen_tokens |= new
                self.append_rows("vocab", vocab_rows(self.tokenizer, sorted(new)))

    def _preview(self, token_ids: list[int]) -> str:
        if self.tokenizer is None:
            return " ".join(map(str, token_ids[:24]))
        return self.tokenizer.decode(token_ids[:60], skip_special_tokens=True)[:160]

    def probe_state(self, step: int, probe: Probe, state: ProbeState) -> None:
        """Rows of `probe_items` and `drift`."""

        def at(values: list, i: int) -> Any:
            return values[i] if i < len(values) else None

        self.append_rows("probe_items", [
            {"step": step, "probe": probe.name, "item": i, "fact": at(probe.facts, i), "group": at(probe.groups, i),
             "loss_nats": loss, "preview": at(probe.previews, i)}
            for i, loss in enumerate(state.item_losses_nats)
        ])  # fmt: skip
        self.append_rows("drift", [
            {"step": step, "probe": probe.name, "layer": layer, "relative_l2": r, "cosine": c, "cka": k}
            for layer, r, c, k in state.drift
        ])  # fmt: skip
