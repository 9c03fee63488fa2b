"""What a reader must know before any number: faults, a training that broke, steps that were left out."""

from __future__ import annotations

from markupsafe import Markup

from intaglio.report.view import View


def notices(view: View) -> list[Markup]:
    """The notices of one run, gravest first."""
    f, t, n = view.findings, view.t, view.n
    found = []
    if fault := f.manifest.get("fault"):
        found.append(t("masthead.fault", step=f.manifest.get("measured_steps", f.steps_total), fault=fault))
    if f.nonfinite_step is not None:
        after = any(step >= f.nonfinite_step for step in view.series("step"))
        key = "masthead.nonfinite_some" if after else "masthead.nonfinite"
        found.append(t(key, step=f.nonfinite_step, steps=n.whole(f.steps_total)))
    if f.changed:
        found.append(t("masthead.changed", **_changed(view)))
    if not f.complete:
        found.append(t("masthead.going"))
    if f.shift_scale > 1.001:
        measured, total = n.whole(f.steps_with_shift), n.whole(f.steps_total)
        found.append(t("masthead.scaled", measured=measured, total=total, scale=n(f.shift_scale)))
    return found


def _changed(view: View) -> dict[str, str]:
    """First step, and how many of the tensors."""
    return {name: view.n.whole(value) for name, value in (view.findings.changed or {}).items()}
