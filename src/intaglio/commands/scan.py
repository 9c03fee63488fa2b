"""`intaglio scan`: what would this data do to the model? Every row scored at the starting state, no training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from intaglio.commands import prepare as ready
from intaglio.commands import scoring
from intaglio.errors import InputError


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
    model = loaded.model.requires_grad_(True).to(ready.device())
    if plan:
        from intaglio.commands.plan import print_scan_plan

        print_scan_plan(loaded, found, probes, batch_size, console)
        return
    scorer = _scorer(model, probes, seed)
    manifest = _manifest(loaded, found, probes, subject, seed, scorer, model)
    writer = RunWriter(out, {}, force=force, resume=resume)
    done = scoring.scored_before(writer, manifest) if resume else set()
    ready.write_originals(writer.folder, found.originals)
    writer.write_manifest(**manifest)
    _score_all(scorer, found, writer, done, batch_size, ready.pad_id(loaded.tokenizer), console)
    _note_examples(writer, found, loaded.tokenizer)
    _record_probes(model, probes, writer)
    writer.flush(0)
    scoring.align(writer)
    writer.finish()
    _finish(out, console, lang)


def _scorer(model: Any, probes: dict[str, Any], seed: int) -> Any:
    from intaglio.measure.scan import Scorer

    return Scorer(model, list(probes.values()), seed=seed, precision=ready.precision())


def _manifest(loaded: Any, found: Any, probes: dict, spec: str, seed: int, scorer: Any, model: Any) -> dict[str, Any]:
    from intaglio import __version__

    layout = scorer.layout
    length = sum(float(p.detach().float().norm().double() ** 2) for p in model.parameters()) ** 0.5
    return {
        "kind": "scan", "package_version": __version__, "command": ["intaglio", *sys.argv[1:]], "seed": seed,
        "subject": {"name": loaded.name, "fingerprint": loaded.fingerprint, "spec": spec},
        "data": {"name": found.name, "rows": len(found.originals), "fingerprint": found.fingerprint},
        "probes": {p.name: p.as_dict() for p in probes.values()},
        "parameters_total": layout.n_trainable, "parameters_measured": layout.n_measured,
        "coverage": layout.coverage, "unmeasured": sorted(layout.unmeasured), "unit_length": 1e-6 * length,
        "level": "scan", "tolerance": 1e-4, "precision": scorer.precision,
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
        scoring.score_rows(
            scorer, left, writer, step=0, batch_size=batch_size, pad_id=pad, first_slot=len(done),
            progress=lambda batches: track(batches, description="scoring", total=total, console=console),
        )  # fmt: skip
    except KeyboardInterrupt:
        writer.flush(0)
        raise


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
    for probe in (p for p in probes.values() if p.name not in known):  # on the model's device since the scorer has them
        with undisturbed(model):
            state = measure_probe(model, probe)
        writer.append_rows("probes", [{"step": 0, "probe": probe.name, "loss_nats": state.loss_nats, "kl_nats": 0.0}])
        writer.append_rows("probe_items", [
            {"step": 0, "probe": probe.name, "item": i, "fact": probe.facts[i], "group": probe.groups[i],
             "loss_nats": loss, "preview": probe.previews[i]}
            for i, loss in enumerate(state.item_losses_nats)
        ])  # fmt: skip


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
