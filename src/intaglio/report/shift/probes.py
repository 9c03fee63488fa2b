"""The probes: what was learnt beyond the wording, what was forgotten, and whether the credit books close."""

from __future__ import annotations

from typing import Any

from intaglio.findings import ProbeFinding
from intaglio.report.charts import examples as example_charts
from intaglio.report.charts import probes as charts
from intaglio.report.view import View


def probes(view: View) -> dict[str, Any]:
    found = view.findings.probes
    panels = [(p.probe, lambda g, name=p.probe: g.credits_nats.get(name)) for p in found]
    return {
        "any": bool(found),
        "learning": charts.learning(view),
        "drift": charts.drift(view),
        "credits": example_charts.intervals([view], "credits", panels) if view.groups and found else None,
        "rows": [row(view, p) for p in found],
        "said": [said(view, p) for p in found],
        "no_target": not any(p.role == "target" for p in found),
        "no_anchor": not any(p.role == "anchor" for p in found),
    }


def row(view: View, p: ProbeFinding) -> dict[str, Any]:
    role = view.t(f"role.{p.role}") if p.role else view.t("role.none")
    residual = p.max_abs_residual_share
    return {"name": p.probe, "role": role, "first": view.n(p.first_loss_nats), "last": view.n(p.last_loss_nats),
            "kl": view.n(p.kl_last_nats), "seconds": view.n(p.seconds_each, 2), "share": view.n.percent(p.run_share),
            "residual": view.n.percent(residual),
            "drift": view.n.percent(max((d for d in p.drift_relative_l2 if d is not None), default=None))}  # fmt: skip


def said(view: View, p: ProbeFinding):
    """One sentence on the probe's loss from start to end."""
    if p.first_loss_nats is None or p.last_loss_nats is None or not p.first_loss_nats:
        return view.t("probes.unmeasured", probe=view.strong(p.probe))
    change = (p.last_loss_nats - p.first_loss_nats) / p.first_loss_nats
    key = "probes.fell" if change < 0 else "probes.rose"
    return view.t(
        key,
        probe=view.strong(p.probe),
        share=view.strong(view.n.percent(abs(change))),
        first=view.n(p.first_loss_nats),
        last=view.n(p.last_loss_nats),
    )
