"""Movement over steps: how far, how directly, how much the examples agreed, and the spikes."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.charts import steps as charts
from intaglio.report.view import View


def movement(view: View) -> dict[str, Any]:
    return {
        "chart": charts.movement(view),
        "agreement_chart": charts.agreement(view),
        "path": path(view),
        "agreement": _agreement(view),
        "unsettled": view.t("movement.unsettled", steps=view.t.count("steps", view.unsettled_steps)),
        "spikes": spikes(view),
    }


def path(view: View) -> Markup:
    """How far the weights walked and how far they came."""
    f = view.findings
    if f.path_u is None:
        return view.t("movement.path_unknown")
    if f.net_u is None or f.tortuosity is None:
        return view.t("movement.path_only", path=view.strong(view.u_within(f.path_u, f.path_half_u)))
    values = {
        "path": view.strong(view.u_within(f.path_u, f.path_half_u)),
        "net": view.strong(view.u(f.net_u)),
        "tortuosity": view.strong(view.t.amount("times", f.tortuosity)),
    }
    if f.tortuosity_null is None:
        return view.t("movement.path", **values)
    return view.t("movement.path_null", null=view.n(f.tortuosity_null, 2), **values)


def _agreement(view: View):
    a, noise, conflict = view.findings.agreement, view.findings.noise_scale, view.findings.conflict_share
    said = (
        [view.t("movement.agreement_unknown")]
        if a.value is None
        else [
            view.t(
                "movement.agreement",
                alpha=view.strong(view.n(a.value, 2)),
                span=view.span(a) or view.t("movement.no_interval"),
                noise=view.strong(view.t.amount("examples", noise.value)),
                noise_span=view.span(noise) or view.t("movement.no_interval"),
            )
        ]
    )
    if conflict.value is not None:
        chance = {"null": view.n.percent(conflict.null), "p": view.n.percent(view.findings.conflict_p)}
        null = " " + view.t("movement.conflict_null", **chance) if conflict.null is not None else ""
        said.append(view.t("movement.conflict", share=view.strong(view.n.percent(conflict.value)), null=null))
    return said


def spikes(view: View) -> list[dict[str, Any]]:
    """Each spike with its sizes, the replay's verdict and the examples that moved most in it."""
    return [
        {"step": view.n.whole(s.step), "grad_z": view.n(s.grad_z, 2), "update_z": view.n(s.update_z, 2),
         "verdict": (view.t(f"spike.{s.verdict}") if f"spike.{s.verdict}" in view.t else s.verdict)
         + ("" if s.replay_step is None else " " + view.t("spike.from", step=view.n.whole(s.replay_step))),
         "examples": [view.by_id[e] for e in s.examples if e in view.by_id][:3]}
        for s in view.findings.spikes
    ]  # fmt: skip
