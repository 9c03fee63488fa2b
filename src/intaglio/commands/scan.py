"""`intaglio scan`: what would this data do to the model? Every row scored at the starting state, no training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from intaglio.commands import prepare as ready
from intaglio.errors import InputError, RecipeError, TrainingError

FLUSH_SECONDS = 10.0


def scan(
    subject: str,
    data: str,
    *,
    out: Path,
    probe: Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)] = None,
    batch_size: int = 4,
    max_tokens: int | None = None,
    truncate: bool = False,
    seed: int = 0,
    plan: bool = False,
    resume: bool = False,
    force: bool = False,
    lang: Literal["en", "ru"] = "en",
) -> None:
    """Score every row at the model's present state: surprise, push, agreement with the rest, credit at probes.

    It may be interrupted at any time and goes on with --resume.

    Examples:

        intaglio scan smollm2 mine.jsonl --probe anchor=general.txt --out runs/before

    Parameters
    ----------
    subject
        smollm2 (built in), a Hugging Face id, a folder with safetensors, or a .gguf file.
    data
        A .jsonl, .json, .csv, .parquet or .txt file, or a Hub data set.
    out
        Folder of the run; it must not exist (see --force, --resume).
    probe
        NAME=FILE, texts whose predicted gain or loss is shown for every row; may be given again.
    batch_size
        Examples per forward.
    max_tokens
        Longest example (1024, or the model's context); a longer one is refused by its row number.
    truncate
        Cut longer examples instead.
    seed
        Of the sketches.
    plan
        Print time, memory and disk, and stop.
    resume
        Go on with the unfinished scan at --out.
    force
        Replace an existing run at --out.
    lang
        Language of the report: en or ru.
    """
    from rich.console import Console

    from intaglio.model.subject import load_subject
    from intaglio.store.run import RunWriter, check_free

    console = Console(stderr=True)
    if batch_size < 1:
        raise InputError("--batch-size counts examples", got=batch_size, expected="1 or more")
    if seed < 0:
        raise InputError("the seed must not be negative", got=seed)
    if not plan:
        check_free(out, force=force, resume=resume)
    loaded = load_subject(subject)
    limit = ready.token_limit(loaded.context_tokens, max_tokens)
    found = ready.read_data(data, loaded.tokenizer, max_tokens=limit, truncate=truncate)
    probes = ready.read_probes(
        ready.parse_probes(probe or []), loaded.tokenizer, max_tokens=limit, truncate=truncate
    )
    ready.show_data(found, loaded.tokenizer, console)
    model = loaded.model.requires_grad_(True)
    if plan:
        from intaglio.commands.plan import print_scan_plan

        print_scan_plan(loaded, found, probes, batch_size, console)
        return
    scorer = _scorer(model, probes, seed)
    manifest = _manifest(loaded, found, probes, subject, seed, scorer, model)
    writer = RunWriter(out, {}, force=force, resume=resume)
    done = _resumed(writer, manifest) if resume else set()
    ready.write_originals(writer.folder, found.originals)
    writer.write_manifest(**manifest)
    _score_all(scorer, found, writer, done, batch_size, ready.pad_id(loaded.tokenizer), console)
    _note_examples(writer, found, loaded.tokenizer)
    _record_probes(model, probes, writer)
    writer.flush(0)
    _align(writer)
    writer.finish()
    _finish(out, console, lang)


def _scorer(model: Any, probes: dict[str, Any], seed: int) -> Any:
    from intaglio.measure.scan import Scorer

    return Scorer(model, list(probes.values()), seed=seed)


def _resumed(writer: Any, manifest: dict[str, Any]) -> set[str]:
    """Ids that an interrupted scan of the same data has scored; rows of any other example are dropped."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from intaglio.store.run import Run

    if "kind" not in writer.manifest:
        return set()  # nothing was begun
    differs = [k for k in ("kind", "data", "subject", "probes", "seed") if writer.manifest.get(k) != manifest[k]]
    if differs:
        raise RecipeError(
            f"the unfinished run at {writer.folder} has another {', '.join(differs)}",
            expected="the same command line with --resume, or --force to start anew",
        )
    run = Run(writer.folder)
    tables = {name: run.table(name) for name in ("scans", "sketches", *(["scan_credits"] if manifest["probes"] else []))}
    done = set.intersection(*(set(table.column("example").to_pylist()) for table in tables.values()))
    for name, table in tables.items():
        whole = table.filter(pc.is_in(table.column("example"), pa.array(sorted(done), pa.string())))
        if len(whole) < len(table):  # killed between the tables of one flush
            writer.replace(name, whole)
    return done


def _manifest(loaded: Any, found: Any, probes: dict, spec: str, seed: int, scorer: Any, model: Any) -> dict[str, Any]:
    from intaglio import __version__

    layout = scorer.layout
    length = sum(float(p.detach().float().norm().double() ** 2) for p in model.parameters()) ** 0.5
    return {
        "kind": "scan", "package_version": __version__, "command": ["intaglio", *sys.argv[1:]], "seed": seed,
        "subject": {"name": loaded.name, "fingerprint": loaded.fingerprint, "spec": spec},
        "data": {"name": found.name, "rows": len(found.originals), "fingerprint": found.fingerprint},
        "probes": {p.name: {"role": p.role, "items": p.items, "targets": p.targets} for p in probes.values()},
        "parameters_total": layout.n_trainable, "parameters_measured": layout.n_measured,
        "coverage": layout.coverage, "unmeasured": sorted(layout.unmeasured), "unit_length": 1e-6 * length,
        "level": "scan", "tolerance": 1e-4,
    }  # fmt: skip


def _score_all(
    scorer: Any, found: Any, writer: Any, done: set[str], batch_size: int, pad: int, console: Any
) -> None:
    from rich.progress import track

    left = list({item.example: item for item in found.data if item.example not in done}.values())
    if done:
        console.print(f"  {len(done)} examples were scored before the interruption", highlight=False)
    total = -(-len(left) // batch_size)
    try:
        score_rows(
            scorer, left, writer, step=0, batch_size=batch_size, pad_id=pad, first_slot=len(done),
            progress=lambda batches: track(batches, description="scoring", total=total, console=console),
        )  # fmt: skip
    except KeyboardInterrupt:
        writer.flush(0)
        raise


def score_rows(
    scorer: Any, data: Sequence[Any], writer: Any, *, step: int, batch_size: int, pad_id: int,
    first_slot: int = 0, progress: Callable[[Iterable], Iterable] = iter,
) -> None:  # fmt: skip
    """Score examples (each distinct one once) in batches of like length, writing as it goes."""
    import torch

    from intaglio.data.encode import collate
    from intaglio.measure.scan import alignments

    items = sorted({i.example: i for i in data}.values(), key=lambda i: len(i.input_ids))
    device = next(scorer.model.parameters()).device
    starts = range(0, len(items), batch_size)
    total, flushed, slot = None, time.perf_counter(), first_slot
    for start in progress(starts):
        chosen = items[start : start + batch_size]
        batch = {k: v.to(device) for k, v in collate(chosen, pad_id).items()}
        try:
            with torch.random.fork_rng(devices=[]):
                scored = scorer.score(batch)
        except TrainingError as error:
            listed = ", ".join(str(i.row) for i in chosen)
            raise TrainingError(f"{error} on rows {listed} of the data", expected="a finite loss") from None
        so_far = scored.sketch_NS.sum(0, dtype="float64")
        total = so_far if total is None else total + so_far
        n = len(scored.ids)
        writer.append("scans", {
            "step": [step] * n, "example": scored.ids, "loss_nats": scored.loss_nats, "push": scored.push,
            "alignment": alignments(scored.sketch_NS, total),
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


def _note_examples(writer: Any, found: Any, tokenizer: Any) -> None:
    from intaglio.data.vocab import vocab_rows
    from intaglio.store.run import Run

    known = set(Run(writer.folder).table("examples").column("example").to_pylist())
    sources = ready.sources_of(found.data)
    fresh = {i.example: i for i in found.data if i.example not in known}
    writer.append_rows("examples", [
        {"example": e, "row": list(sources[e].rows), "group": i.group, "fact": i.fact, "tokens": len(i.input_ids),
         "targets": i.targets, "preview": i.preview, "token_ids": list(i.input_ids), "target_mask": list(i.target_mask)}
        for e, i in fresh.items()
    ])  # fmt: skip
    writer.append_rows("vocab", vocab_rows(tokenizer, sorted({t for i in fresh.values() for t in i.input_ids})))


def _record_probes(model: Any, probes: dict[str, Any], writer: Any) -> None:
    from intaglio.measure.probes import measure_probe, undisturbed
    from intaglio.store.run import Run

    known = set(Run(writer.folder).table("probes").column("probe").to_pylist())
    for probe in (p for p in probes.values() if p.name not in known):
        with undisturbed(model):
            state = measure_probe(model, probe)
        writer.append_rows("probes", [{"step": 0, "probe": probe.name, "loss_nats": state.loss_nats, "kl_nats": 0.0}])
        writer.append_rows("probe_items", [
            {"step": 0, "probe": probe.name, "item": i, "fact": probe.facts[i], "group": probe.groups[i],
             "loss_nats": loss, "preview": probe.previews[i]}
            for i, loss in enumerate(state.item_losses_nats)
        ])  # fmt: skip


def _align(writer: Any) -> None:
    """Agreement of every example with all others, now that all are scored."""
    import numpy as np
    import pyarrow as pa

    from intaglio.measure.scan import alignments
    from intaglio.store.run import Run

    run = Run(writer.folder)
    sketches, scans = run.table("sketches"), run.table("scans")
    if sketches.num_rows == 0:
        return
    values = np.asarray(sketches.column("sketch").combine_chunks().flatten()).reshape(sketches.num_rows, -1)
    by_id = dict(zip(sketches.column("example").to_pylist(), alignments(values)))
    aligned = pa.array([by_id.get(e) for e in scans.column("example").to_pylist()], type=pa.float64(), from_pandas=True)
    index = scans.schema.get_field_index("alignment")
    for part in (writer.folder / "scans").glob("part-*.parquet"):
        if part.name != "part-00000000-0.parquet":
            part.unlink()
    writer.replace("scans", scans.set_column(index, "alignment", aligned))


def _finish(out: Path, console: Any, lang: str) -> None:
    from rich.table import Table

    from intaglio.commands.report import write_report
    from intaglio.store.run import open_run

    run = open_run(out)
    rows = run.sql(
        """select e.preview, s.loss_nats, s.push, s.alignment
           from scans s join examples e using (example) order by s.push desc limit 10"""
    ).fetchall()
    table = Table(title="The ten rows that would push the model hardest", title_justify="left")
    for name in ("text", "surprise, nats/token", "push", "agreement with the rest"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for preview, loss, push, alignment in rows:
        table.add_row(preview[:60], f"{loss:.2f}", f"{push:.3g}", "-" if alignment is None else f"{alignment:+.2f}")
    console.print(table)
    print(write_report(run, lang=lang)[1])
