"""What a scan has and a training has not: credit that is predicted per unit of length, surprise and push by group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from intaglio.analyse.data import RunData, read
from intaglio.analyse.movement import credited, group_members
from intaglio.analyse.stats import mean_interval, ratio_interval, resamples
from intaglio.findings import ExampleFinding, Findings, GroupFinding

# ExampleFinding's and GroupFinding's field -> column of `scan_credits`
_CREDITS = {"credit_rates": "credit_nats", "credit_cosines": "cosine"}


def completed(findings: Findings, data: RunData, *, seed: int) -> Findings:
    """The findings of a scan with its credits and its groups' surprise and push; examples that push hardest first.

    These credits are per unit of length moved along each row's own gradient: unlike those of a training,
    which belong to steps that were taken, they do not add up over rows, so groups get means.
    """
    by_probe = _credits(data)
    by_id = {e.example: e for e in findings.examples}
    in_order = [by_id[e] for e in data.examples["example"]]
    groups = {g.group: g for g in findings.groups}
    examples = [replace(e, **{field: {p: float(v[i]) for p, v in found.items() if np.isfinite(v[i])}
                              for field, found in by_probe.items()}) for i, e in enumerate(in_order)]  # fmt: skip
    return replace(
        findings,
        **credited(data, by_probe["credit_rates"]),
        examples=sorted(examples, key=lambda e: -(e.push_mean or 0.0)),
        groups=[_group(groups[name], in_order, members, by_probe, seed=seed) for name, members in group_members(data)],
    )


def _credits(data: RunData) -> dict[str, dict[str, np.ndarray]]:
    """Field -> probe -> a value per example, NaN where it was not scored against the probe."""
    found = read(data.run, "select distinct on (probe, example) * from scan_credits order by probe, example, step")
    place = {e: i for i, e in enumerate(data.examples["example"])}
    at = np.array([place.get(e, -1) for e in found["example"]], dtype=int)
    out: dict[str, dict[str, np.ndarray]] = {field: {} for field in _CREDITS}
    for probe in sorted(set(found["probe"])):
        mine = (found["probe"] == probe) & (at >= 0)
        for field, column in _CREDITS.items():
            out[field][str(probe)] = values = np.full(data.n_examples, np.nan)
            values[at[mine]] = found[column][mine]
    return out


def _group(finding: GroupFinding, examples: list[ExampleFinding], members: np.ndarray,
           by_probe: dict[str, dict[str, np.ndarray]], *, seed: int) -> GroupFinding:  # fmt: skip
    """The group with the means of a scan; the whole data set is a group, too."""
    counts = resamples(max(len(members), 1), seed=seed)
    own = [examples[i] for i in members]
    targets = np.array([e.targets for e in own], dtype=float)
    loss, push = (np.array([np.nan if v is None else v for v in values], dtype=float)
                  for values in ([e.first_loss_nats for e in own], [e.push_mean for e in own]))  # fmt: skip
    return replace(
        finding, target_tokens=int(targets[np.isfinite(loss)].sum()),
        surprise=ratio_interval(loss * targets, targets, counts), push=mean_interval(push, counts),
        **{field: {p: mean_interval(v[members], counts) for p, v in found.items()} for field, found in by_probe.items()},
    )  # fmt: skip
