"""What every figure says under itself: a title, how to read it, and what is measured in which unit."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.texts import Texts
from intaglio.tables import TABLES

# figure -> the columns of the contract it draws
MEASURED: dict[str, tuple[str, ...]] = {
    "books": ("steps.data_shift", "steps.carry_shift", "steps.decay_shift"),
    "movement": ("steps.update_l2", "steps.data_shift", "steps.loss_nats"),
    "agreement": ("steps.agreement_gg", "steps.agreement_s"),
    "volatility": ("visits.push",),
    "volatility_moved": ("visits.push", "visits.shift"),
    "volatility_learnt": ("visits.push", "visits.loss_nats"),
    "volatility_loss": ("visits.push", "visits.loss_nats"),
    "baseline": ("visits.loss_nats",),
    "groups": ("visits.shift", "visits.loss_nats", "visits.alignment"),
    "layers": ("parts.update_l2",),
    "heads": ("parts.update_l2",),
    "heads_by_steps": ("parts.update_l2",),
    "groups_by_layers": ("visit_parts.shift",),
    "learning": ("probes.loss_nats", "probes.kl_nats"),
    "drift": ("drift.relative_l2", "drift.cka"),
    "credits": ("credits.credit_nats",),
}
# the same for the page of two runs; where a figure is that of the single page, so are its columns
MEASURED_OF_TWO: dict[str, tuple[str, ...]] = {
    **{k: v for k, v in MEASURED.items() if k != "baseline"},
    "same": ("visits.shift", "visits.loss_nats"),
    "head_differences": ("parts.update_l2",),
}
# and for the page of a scan
MEASURED_OF_SCAN: dict[str, tuple[str, ...]] = {
    "map": ("scans.loss_nats", "scans.push"),
    "agreement": ("scans.alignment",),
    "cosines": ("scan_credits.cosine",),
    "groups": ("scans.loss_nats", "scans.alignment", "scan_credits.cosine"),
}
_OF = {"": MEASURED, "compare.": MEASURED_OF_TWO, "scan.": MEASURED_OF_SCAN}
_IN_U = "parameter length"  # pages show lengths in u


def caption(t: Texts, figure: str, *, of: str = "") -> dict[str, Any]:
    """Title, reading and measured columns of a figure; `of` is "compare." on the page of two runs, "scan." on a scan's."""
    columns = [(column, t.means(column), _unit(t, column)) for column in _OF[of][figure]]
    return {"title": t(f"{of}figure.{figure}"), "reading": t(f"{of}reading.{figure}"), "columns": columns}


def _unit(t: Texts, column: str) -> str | Markup:
    table, name = column.split(".")
    unit = TABLES[table].column(name).unit
    return "u" if unit == _IN_U else t(f"units.{unit.replace('/', '_per_').replace(' ', '_')}") if unit else ""
