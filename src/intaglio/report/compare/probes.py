"""The probes of both runs: learning, forgetting, drift by layer."""

from __future__ import annotations

from typing import Any

from intaglio.report.charts import examples as example_charts
from intaglio.report.charts import probes as charts
from intaglio.report.compare.two import Two
from intaglio.report.shift import probes as single


def probes(two: Two) -> dict[str, Any]:
    names = list(dict.fromkeys(p.probe for v in two.views for p in v.findings.probes))
    panels = [(name, lambda g, name=name: g.credits_nats.get(name)) for name in names]
    return {
        "any": bool(names),
        "rows": [(side, single.row(two.views[side], p)) for name in names for side in (0, 1)
                 for p in two.views[side].findings.probes if p.probe == name],
        "learning": charts.learning(*two.views),
        "drift": charts.drift(*two.views),
        "credits": example_charts.intervals(two.views, "credits", panels) if two.group_names and names else None,
        "missing": [line for role in ("target", "anchor") for line in two.missing(
            lambda v, role=role: any(p.role == role for p in v.findings.probes), f"compare.no_{role}")],
        "none_of": [two.t(f"probes.no_{role}") for role in ("target", "anchor")
                    if names and not any(p.role == role for v in two.views for p in v.findings.probes)],
        "foreign": not two.same_subject,
    }  # fmt: skip
