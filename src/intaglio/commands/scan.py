"""`intaglio scan`: what would this data do to the model? Every row scored at the starting state, no training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from intaglio.commands import prepare as ready
from intaglio.commands import scoring
from intaglio.commands.options import Lang, Probes, check_options, explained
from intaglio.words import counted


@explained
def scan(
    subject: str,
    data: str,
    *,
    out: Path,
    probe: Probes = None,
    batch_size: int = 4,
    max_tokens: int | None = None,
    truncate: bool = False,
    seed: int = 0,
    plan: bool = False,
    resume: bool = False,
    force: bool = False,
    lang: Lang = "en",
) -> None:
    """Score every row at the model's present state: surprise, push, agreement with the rest, credit at probes.

    It may be interrupted at any time and goes on with --resume.

    Examples:

        intaglio scan smollm2 mine.jsonl --probe anchor=general.txt --out runs/before

    Parameters
    ----------
    probe
        NAME=FILE, texts whose predicted gain or loss is shown for every row; may be given again.
    seed
        Of the sketches.
    resume
        Go on with the unfinished scan at --out.
    """
    from intaglio.commands.summary import conclude, print_scan
    from intaglio.model.subject import load_subject
    from intaglio.store.run import RunWriter

    check_options(batch_size=batch_size, seed=seed)
    ready.token_limit(None, max_tokens)
    console = ready.begin(out, plan=plan, force=force, resume=resume)
    loaded = load_subject(subject)
    found, probes = ready.read_all(loaded, data, probe, console, max_tokens=max_tokens, truncate=truncate)
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
    conclude(out, print_scan, console, lang=lang)


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
        console.print(f"  scored before the interruption: {counted(len(done), 'example')}", highlight=False)
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
