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
    "baseline": ("visits.loss_nats",),
    "groups": ("visits.shift", "visits.loss_nats", "visits.alignment"),
    "layers": ("parts.update_l2",),
    "heads": ("parts.update_l2",),
    "groups_by_layers": ("visit_parts.shift",),
    "learning": ("probes.loss_nats", "probes.kl_nats"),
    "drift": ("drift.relative_l2", "drift.cka"),
    "credits": ("credits.credit_nats",),
}
_IN_U = "parameter length"  # pages show lengths in u


def caption(t: Texts, figure: str) -> dict[str, Any]:
    """Title, reading and measured columns of a figure."""
    columns = [(column, t.means(column), _unit(t, column)) for column in MEASURED[figure]]
    return {"title": t(f"figure.{figure}"), "reading": t(f"reading.{figure}"), "columns": columns}


def _unit(t: Texts, column: str) -> str | Markup:
    table, name = column.split(".")
    unit = TABLES[table].column(name).unit
    return "u" if unit == _IN_U else t(f"units.{unit.replace('/', '_per_').replace(' ', '_')}") if unit else ""
