"""Two runs side by side, joined by example id and by group."""

from __future__ import annotations

from typing import Any

import numpy as np

from intaglio.analyse.stats import spearman
from intaglio.findings import ExampleFinding, Findings, GroupFinding, Interval

_NUMBERS = (
    "steps_total", "closure_max", "data_share", "unit_length", "path_u", "net_u", "tortuosity", "tortuosity_null",
    "agreement", "noise_scale", "conflict_share", "imitation_gap", "starved_examples", "confident_conflict",
)  # fmt: skip
_OF_GROUP = (
    "examples", "visits", "shift_abs_u", "shift_net_u", "shift_abs_u_per_1000_tokens", "learnt_nats", "nats_per_ku",
    "level", "dispersion", "alignment", "first_loss_nats", "last_loss_nats", "verdict",
)  # fmt: skip
_OF_EXAMPLE = ("shift_abs_u", "shift_net_u", "learnt_nats", "last_loss_nats", "level", "dispersion", "verdict")


def compare(a: Findings, b: Findings) -> dict[str, Any]:
    """What both runs measured, side by side.

    Path and shift in u are comparable between runs of one subject only (`same_subject`), and path
    mostly says learning rate times steps under Adam: never rank runs by it alone.

    Returns:
        `runs`: both names. `same_subject`. `numbers`: one entry per number of the whole run,
        {name, a, b}. `groups`, `examples`: one entry per group or text that both have, with
        {a: {...}, b: {...}}. `only_a`, `only_b`: how many texts one run alone has.
        `correlations`: Spearman over the shared texts of each measure in a with itself in b.
    """
    shared = _joined({e.example: e for e in a.examples}, {e.example: e for e in b.examples})
    return {
        "runs": [a.name, b.name],
        "same_subject": _fingerprint(a) is not None and _fingerprint(a) == _fingerprint(b),
        "numbers": [{"name": n, "a": _value(a, n), "b": _value(b, n)} for n in _NUMBERS],
        "probes": [
            {"probe": p, "a": _probe(x), "b": _probe(y)}
            for p, x, y in _joined({p.probe: p for p in a.probes}, {p.probe: p for p in b.probes})
        ],
        "groups": [
            {"group": g, "a": _values(x, _OF_GROUP), "b": _values(y, _OF_GROUP)}
            for g, x, y in _joined({g.group: g for g in a.groups}, {g.group: g for g in b.groups})
        ],
        "examples": [
            {"example": e, "rows": list(x.rows), "group": x.group, "preview": x.preview,
             "a": _values(x, _OF_EXAMPLE), "b": _values(y, _OF_EXAMPLE)}
            for e, x, y in shared
        ],
        "only_a": len(a.examples) - len(shared), "only_b": len(b.examples) - len(shared),
        "correlations": _correlations([(x, y) for _, x, y in shared]),
    }  # fmt: skip


def _joined(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Entries under the keys that both have, in the order of `a`."""
    return [(key, a[key], b[key]) for key in a if key in b]


def _fingerprint(findings: Findings) -> Any:
    subject = findings.manifest.get("subject")
    return subject.get("fingerprint") if isinstance(subject, dict) else subject


def _value(finding: Any, name: str) -> Any:
    value = getattr(finding, name)
    if isinstance(value, Interval):
        return {"value": value.value, "low": value.low, "high": value.high, "null": value.null}
    return value


def _values(finding: ExampleFinding | GroupFinding, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _value(finding, name) for name in names}


def _probe(probe: Any) -> dict[str, Any]:
    return {name: getattr(probe, name) for name in ("role", "first_loss_nats", "last_loss_nats", "kl_last_nats")}


def _correlations(pairs: list[tuple[ExampleFinding, ExampleFinding]]) -> dict[str, float]:
    found = {}
    for name in ("shift_abs_u", "shift_net_u", "level", "dispersion", "csl_nats"):
        x, y = (np.array([getattr(e, name) for e in side], dtype=float) for side in ([p[0] for p in pairs],
                                                                                   [p[1] for p in pairs]))
        value = spearman(x, y)
        if value is not None:
            found[name] = value
    return found
