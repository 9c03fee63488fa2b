"""The shift study of one run, from its tables to `Findings`: composition only, each idea has its file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from intaglio.analyse import agreement, journey, movement, scan, texts, verdict, volatility, where
from intaglio.analyse.data import RunData, load, read
from intaglio.analyse.stats import mean_interval, number, numbers, ratio_interval, resamples
from intaglio.findings import ExampleFinding, Findings, GroupFinding, Interval, ProbeFinding

_TOLERANCE = 1e-4  # of the closure, in fp32, where the manifest has none


def analyse_run(run: Any, *, texts_for: int = 60, seed: int = 0) -> Findings:
    """Everything a page about the run shows; works on a run that is still going or was killed.

    Args:
        run: an open run: `.manifest`, `.complete`, `.name`, `.table(name)`, `.sql(query)`.
        texts_for: how many examples are given token by token.
        seed: of the bootstrap and of the permutations; the same seed gives the same findings
            (sums over large tables up to rounding, as DuckDB adds in parallel).
    """
    data = load(run)
    manifest = data.manifest
    cols = movement.example_columns(data) | volatility.level_and_dispersion(data)
    credit = movement.credits(data)
    seen = verdict.witnesses(data)
    examples = _examples(data, cols, credit, seen)
    tolerance = float(manifest.get("tolerance") or _TOLERANCE)
    findings = Findings(
        name=run.name, complete=bool(run.complete), manifest=dict(manifest), tolerance=tolerance,
        coverage=number(manifest.get("coverage")), unmeasured_names=tuple(manifest.get("unmeasured") or ()),
        unit_length=number(data.unit_length), shift_scale=data.scale(),
        **journey.books(data, tolerance), **journey.group_carry(data), **journey.path(data), **_together(data, seed=seed),
        imitation_gap=verdict.imitation_gap(data, seen, cols["first_loss"], cols["last_loss"], cols["states"]),
        series=journey.series(data), spikes=journey.spikes(data),
        examples=sorted(examples, key=lambda e: -(e.shift_abs_u or 0.0)),
        groups=_groups(data, cols, credit, seen, examples, seed=seed),
        starved_examples=_starved_share(examples, seed=seed),
        probes=probe_findings(data), **movement.credited(data, credit),
        layer_series=where.layer_series(data), **where.part_totals(data), **where.head_series(data),
        **where.visit_part_totals(data),
        texts=texts.token_texts(data, texts.most_telling(cols, credit), at_most=texts_for),
        token_volatility=volatility.by_token(data), position_volatility=volatility.by_position(data),
        correlations=volatility.correlations(cols),
        confident_conflict=ratio_interval(cols["conflicting"], cols["conflict_of"],
                                          resamples(max(data.n_examples, 1), seed=seed)),
    )  # fmt: skip
    return scan.completed(findings, data, seed=seed) if findings.scanned else findings


def add_texts(findings: Findings, run: Any, examples: Iterable[str]) -> Findings:
    """The same findings with these examples token by token, as far as the run kept their tokens."""
    data = load(run)
    place = {example: i for i, example in enumerate(data.examples["example"])}
    order = [place[e] for e in dict.fromkeys(examples) if e in place]
    return replace(findings, texts=findings.texts | texts.token_texts(data, order, at_most=len(order)))


def _together(data: RunData, *, seed: int) -> dict[str, Any]:
    """Agreement, conflict and near-duplicates."""
    alpha, noise_scale = agreement.agreement(data, seed=seed)
    pairs = agreement.pairs_in_steps(data)
    return {
        "agreement": alpha, "noise_scale": noise_scale,
        **agreement.conflict(data, pairs, seed=seed),
        "pairs": agreement.conflict_pairs(data, pairs),
        "near_duplicates": agreement.near_duplicates(data, pairs),
    }  # fmt: skip


def _anchor_credit(data: RunData, credit: dict[str, np.ndarray]) -> np.ndarray:
    """Each example's credits summed over all anchor probes, in nats; NaN without any."""
    anchors = [values for probe, values in credit.items() if verdict.role_of(data, probe) == "anchor"]
    return np.sum(anchors, axis=0) if anchors else np.full(data.n_examples, np.nan)


def _known_sum(values: np.ndarray) -> float:
    """Sum of those that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.sum()) if known.size else np.nan


def _examples(data: RunData, cols: dict[str, np.ndarray], credit: dict[str, np.ndarray],
              seen: verdict.Witnesses) -> list[ExampleFinding]:  # fmt: skip
    """One finding per example, in the order of `data.examples`."""
    anchor = _anchor_credit(data, credit)
    judged = []
    for i, (fact, group) in enumerate(zip(data.examples["fact"], data.examples["group"])):
        own = verdict.Losses(cols["first_loss"][i], cols["last_loss"][i], int(cols["states"][i]))
        linked = verdict.linked_losses(seen, {fact} - {None}, {group} - {None})
        judged.append(verdict.judge(own, linked, seen, anchor[i]))
    silent = verdict.starved(data, [j.verdict for j in judged])
    return [_example(data, cols, credit, i, judged[i], silent[i]) for i in range(data.n_examples)]


def _example(data: RunData, cols: dict[str, np.ndarray], credit: dict[str, np.ndarray], i: int,
             judged: verdict.Judgement, silent: float) -> ExampleFinding:  # fmt: skip
    text = {name: values[i] for name, values in data.examples.items()}
    value = {name: number(values[i]) for name, values in cols.items()}
    clash, of = cols["conflicting"][i], cols["conflict_of"][i]
    return ExampleFinding(
        example=text["example"], rows=tuple(int(r) for r in text["row"] or ()), group=text["group"] or None,
        fact=text["fact"] or None, preview=text["preview"] or "", tokens=int(np.nan_to_num(text["tokens"])),
        targets=int(np.nan_to_num(text["targets"])), visits=int(cols["visits"][i]),
        shift_abs_u=value["shift_abs"], shift_net_u=value["shift_net"], push_mean=value["push"],
        first_loss_nats=value["first_loss"], last_loss_nats=value["last_loss"], learnt_nats=value["learnt"],
        csl_nats=value["csl"], level=value["level"], level_residual=value["level_residual"],
        dispersion=value["dispersion"], alignment_mean=value["alignment"], against_share=value["against_share"],
        credits_nats={p: float(c[i]) for p, c in credit.items() if np.isfinite(c[i])},
        verdict=judged.verdict, why=judged.why, evidence=judged.evidence, observations=int(cols["states"][i]),
        confident_conflict_share=number(clash / of) if of > 0 else None,
        relative_shift=value["relative_shift"], starved=bool(silent) if np.isfinite(silent) else None,
        shift_half_u=value["shift_half"],
    )  # fmt: skip


def _groups(data: RunData, cols: dict[str, np.ndarray], credit: dict[str, np.ndarray], seen: verdict.Witnesses,
            examples: list[ExampleFinding], *, seed: int) -> list[GroupFinding]:  # fmt: skip
    """The whole data set first, then every group by name."""
    anchor = _anchor_credit(data, credit)
    found = []
    for group, members in movement.group_members(data):
        finding = movement.group_finding(data, cols, credit, group, members, seed=seed)
        facts = {examples[i].fact for i in members} - {None}
        linked = verdict.linked_losses(seen, facts, {group} - {""})
        states = int(cols["states"][members].max()) if len(members) else 0
        first, last = (np.nan if x is None else x for x in (finding.first_loss_nats, finding.last_loss_nats))
        judged = verdict.judge(verdict.Losses(first, last, states), linked, seen, _known_sum(anchor[members]))
        tally: dict[str, int] = {}
        for i in members:
            tally[examples[i].verdict] = tally.get(examples[i].verdict, 0) + 1
        found.append(_with_verdict(finding, judged, tally, _probe_falls(seen, facts, group)))
    return found


def _with_verdict(finding: GroupFinding, judged: verdict.Judgement, tally: dict[str, int],
                  falls: dict[str, float]) -> GroupFinding:  # fmt: skip
    return replace(finding, verdict=judged.verdict, why=judged.why, evidence=judged.evidence, verdicts=tally,
                   probe_fall=falls)  # fmt: skip


def _probe_falls(seen: verdict.Witnesses, facts: set[str | None], group: str) -> dict[str, float]:
    """Each probe's fall of loss as a share of its first, over the texts linked to the group (all for "")."""
    falls = {}
    for probe, items in seen.items.items():
        which = np.array([not group or f in facts or g == group for f, g in zip(items.fact, items.group)], dtype=bool)
        losses = items.losses(which)
        if losses and np.isfinite(losses.fall_share):
            falls[probe] = float(losses.fall_share)
    return falls


def _starved_share(examples: list[ExampleFinding], *, seed: int) -> Interval:
    values = np.array([np.nan if e.starved is None else float(e.starved) for e in examples])
    return mean_interval(values, resamples(len(values), seed=seed)) if len(values) else Interval(None)


def probe_findings(data: RunData) -> list[ProbeFinding]:
    """Each probe over the steps: loss, KL from the start, books of its loss, and drift by layer at the end."""
    probes = read(
        data.run,
        """
        select step, probe, loss_nats, kl_nats, measured_change_nats, residual_nats, seconds from probes
        order by probe, step""",
    )
    drift = read(
        data.run,
        """
        select probe, layer, relative_l2, cosine, cka from drift
        qualify step = max(step) over (partition by probe) order by probe, layer""",
    )
    return [_probe(data, str(p), probes, drift) for p in sorted(set(probes["probe"]))]


def _probe(data: RunData, probe: str, probes: dict[str, np.ndarray], drift: dict[str, np.ndarray]) -> ProbeFinding:
    own = {k: v[probes["probe"] == probe] for k, v in probes.items()}
    at = {k: v[drift["probe"] == probe] for k, v in drift.items()}
    loss, kl = (own[k][np.isfinite(own[k])] for k in ("loss_nats", "kl_nats"))
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(own["residual_nats"] / own["measured_change_nats"])
    off = off[np.isfinite(off)]
    seconds = own["seconds"][np.isfinite(own["seconds"])]
    after = probes["step"] > np.max(data.steps["step"], initial=-1)  # the last measurements lie in no step's time
    whole = float(np.nansum(data.steps["seconds"]) + np.nansum(probes["seconds"][after]))
    return ProbeFinding(
        probe=probe, role=verdict.role_of(data, probe),
        first_loss_nats=number(loss[0]) if len(loss) else None,
        last_loss_nats=number(loss[-1]) if len(loss) else None, kl_last_nats=number(kl[-1]) if len(kl) else None,
        max_abs_residual_share=number(off.max()) if len(off) else None,
        steps=[int(s) for s in own["step"]], loss_nats=numbers(own["loss_nats"]), kl_nats=numbers(own["kl_nats"]),
        drift_layers=[int(layer) for layer in at["layer"]], drift_relative_l2=numbers(at["relative_l2"]),
        drift_cosine=numbers(at["cosine"]), drift_cka=numbers(at["cka"]), measurements=len(own["step"]),
        seconds_each=number(seconds.mean()) if len(seconds) else None,
        run_share=number(min(seconds.sum() / whole, 1.0)) if len(seconds) and len(data.steps["step"]) and whole else None,
    )  # fmt: skip
