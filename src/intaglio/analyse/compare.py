"""Two runs side by side, joined by example id and by group; on which terms, and where they differ most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        `runs`: both names. `same_subject`. `terms`: what both were trained and measured on, see
        `terms`. `different`: ids of the shared texts that differ most, see `different`. `other_texts`: roles whose probe is
        not the same texts in both. `numbers`: one
        entry per number of the whole run, {name, a, b}. `groups`, `examples`: one entry per group or text that both have, with
        {a: {...}, b: {...}}. `group_carry`: where both split their momentum by group, one entry {group, a, b}
        per group of either, shares of the steps' length. `only_a`, `only_b`: how many texts one run alone has.
        `correlations`: Spearman over the shared texts of each measure in a with itself in b.
    """
    shared = _joined({e.example: e for e in a.examples}, {e.example: e for e in b.examples})
    return {
        "runs": [a.name, b.name],
        "same_subject": _fingerprint(a) is not None and _fingerprint(a) == _fingerprint(b),
        "terms": terms(a, b),
        "different": different(a, b),
        "other_texts": [role for role in ("target", "anchor") if other_texts(a, b, role)],
        "numbers": [{"name": n, "a": _value(a, n), "b": _value(b, n)} for n in _NUMBERS],
        "probes": [
            {"probe": p, "a": _probe(x), "b": _probe(y)}
            for p, x, y in _joined({p.probe: p for p in a.probes}, {p.probe: p for p in b.probes})
        ],
        "groups": [
            {"group": g, "a": _values(x, _OF_GROUP), "b": _values(y, _OF_GROUP)}
            for g, x, y in _joined({g.group: g for g in a.groups}, {g.group: g for g in b.groups})
        ],
        "group_carry": _carried(a.group_carry, b.group_carry),
        "examples": [
            {"example": e, "rows": list(x.rows), "group": x.group, "preview": x.preview,
             "a": _values(x, _OF_EXAMPLE), "b": _values(y, _OF_EXAMPLE)}
            for e, x, y in shared
        ],
        "only_a": len(a.examples) - len(shared), "only_b": len(b.examples) - len(shared),
        "correlations": _correlations([(x, y) for _, x, y in shared]),
    }  # fmt: skip


# a term of the comparison -> how it is read; what a manifest does not say is None
_TERMS: dict[str, Callable[[Findings], Any]] = {
    "subject": lambda f: _name(f.manifest.get("subject")),
    "parameters": lambda f: f.manifest.get("parameters_total"),
    "lora": lambda f: _recipe(f, "lora_rank") or (False if f.manifest.get("lora") is False else None),
    "data": lambda f: _name(f.manifest.get("data")),
    "steps": lambda f: f.steps_total,
    "tokens": lambda f: next((g.target_tokens for g in f.groups if not g.group), None),
    "batch": lambda f: _batch(f),
    "optimizer": lambda f: _name(f.manifest.get("optimizer")) or _recipe(f, "optimizer"),
    "lr": lambda f: _optimizer(f, "lr"),
    "schedule": lambda f: _recipe(f, "schedule"),
    "momentum": lambda f: _momentum(f),
    "weight_decay": lambda f: _optimizer(f, "weight_decay"),
    "clip": lambda f: _recipe(f, "clip"),
    "precision": lambda f: _recipe(f, "precision") or _listed(f.manifest.get("precision")),
    "seed": lambda f: f.manifest.get("seed"),
    "probes": lambda f: _probes(f),
    "level": lambda f: f.manifest.get("level"),
    "every": lambda f: f.manifest.get("every"),
}


def terms(a: Findings, b: Findings) -> list[dict[str, Any]]:
    """What two runs were trained and measured on, one entry per term: {term, a, b, same}.

    `same` is None where a run did not record it. Subject, data and probes are compared by fingerprint where
    both have one: one name may hide two models or other texts, two names one. Terms that neither run records are left out.
    """
    found = []
    for term, read in _TERMS.items():
        x, y = read(a), read(b)
        if x is None and y is None:
            continue
        same = None if x is None or y is None else x == y
        first, second = _prints(a, term), _prints(b, term)
        if first is not None and second is not None:
            same = first == second
        found.append({"term": term, "a": x, "b": y, "same": same})
    return found


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, Mapping) else value


def _print(value: Any) -> Any:
    return value.get("fingerprint") if isinstance(value, Mapping) else None


def _prints(f: Findings, term: str) -> Any:
    """What a term's texts or weights are known by; None where the manifest does not say it of all of them."""
    if term == "probes":
        found = {name: _print(probe) for name, probe in _mapping(f, "probes").items()}
        return found if found and None not in found.values() else None
    return _print(f.manifest.get(term)) if term in ("subject", "data") else None


def other_texts(a: Findings, b: Findings, role: str) -> bool:
    """Whether both runs have a probe of this role, and it is known not to be the same texts."""
    prints = [
        next((_print(_mapping(f, "probes").get(p.probe)) for p in f.probes if p.role == role), None) for f in (a, b)
    ]
    return None not in prints and prints[0] != prints[1]


def _mapping(f: Findings, key: str) -> Mapping[str, Any]:
    value = f.manifest.get(key)
    return value if isinstance(value, Mapping) else {}


def _recipe(f: Findings, key: str) -> Any:
    return _mapping(f, "recipe").get(key)


def _optimizer(f: Findings, key: str) -> Any:
    """From the recipe, which has the peak; else from the optimizer as it was built."""
    value = _recipe(f, key)
    return _mapping(f, "optimizer").get(key) if value is None else value


def _momentum(f: Findings) -> Any:
    betas = _mapping(f, "optimizer").get("betas")
    return betas[0] if betas else _optimizer(f, "momentum")


def _batch(f: Findings) -> int | None:
    size = _recipe(f, "batch_size")
    return size * (_recipe(f, "accumulate") or 1) if isinstance(size, int) else None


def _listed(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _probes(f: Findings) -> str | None:
    """Names and sizes, as people read them; which texts they are, their fingerprints say."""
    probes = _mapping(f, "probes")
    said = [
        f"{name} ({p['items']})" if isinstance(p, Mapping) and "items" in p else str(name) for name, p in probes.items()
    ]
    return ", ".join(sorted(said)) or ", ".join(sorted(p.probe for p in f.probes)) or None


DIFFERENT = 6  # examples listed per kind of difference
Pair = tuple[ExampleFinding, ExampleFinding]


def different(a: Findings, b: Findings) -> dict[str, list[str]]:
    """Ids of the shared texts that two runs treated most differently, by kind; strongest difference first.

    `moved`: by the share each has in its own run's movement, which a learning rate cannot change by itself.
    `taught`, `forgot`: by credit on the probe of that role, where both runs have one of that name; `taught`
    else by nats learnt. `verdict`: those judged differently, by their last loss. `strongest_a`,
    `strongest_b`: what moved each run most, only where no text is shared.
    """
    other = {e.example: e for e in b.examples}
    pairs = [(e, other[e.example]) for e in a.examples if e.example in other]
    if not pairs:
        return {f"strongest_{side}": [e.example for e in f.examples[:3]] for side, f in (("a", a), ("b", b))}
    taught = _credit_gap(a, b, "target") or (lambda x, y: _gap(x.learnt_nats, y.learnt_nats))
    forgot = _credit_gap(a, b, "anchor") or (lambda x, y: None)
    changed = [(x, y) for x, y in pairs if x.verdict != y.verdict]
    return {
        "moved": _ranked(pairs, _share_gap(pairs)),
        "taught": _ranked(pairs, taught),
        "forgot": _ranked(pairs, forgot),
        "verdict": _ranked(changed, lambda x, y: _gap(x.last_loss_nats, y.last_loss_nats)),
    }


def _gap(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else abs(y - x)


def _share_gap(pairs: list[Pair]) -> Callable[[ExampleFinding, ExampleFinding], float | None]:
    totals = [sum(pair[side].shift_abs_u or 0.0 for pair in pairs) for side in (0, 1)]
    if not all(totals):
        return lambda x, y: None
    share = lambda e, side: None if e.shift_abs_u is None else e.shift_abs_u / totals[side]  # noqa: E731
    return lambda x, y: _gap(share(x, 0), share(y, 1))


def _credit_gap(a: Findings, b: Findings, role: str) -> Callable[[ExampleFinding, ExampleFinding], float | None] | None:
    """The difference of credits on the first probe of that role that both runs have and credited."""
    named = [
        {p.probe for p in f.probes if p.role == role} & {p for e in f.examples for p in e.credits_nats} for f in (a, b)
    ]
    shared = sorted(named[0] & named[1])
    return (lambda x, y: _gap(x.credits_nats.get(shared[0]), y.credits_nats.get(shared[0]))) if shared else None


def _ranked(pairs: list[Pair], gap: Callable[[ExampleFinding, ExampleFinding], float | None]) -> list[str]:
    known = [(x.example, size) for x, y in pairs if (size := gap(x, y))]
    return [example for example, _ in sorted(known, key=lambda item: -item[1])[:DIFFERENT]]


def _joined(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Entries under the keys that both have, in the order of `a`."""
    return [(key, a[key], b[key]) for key in a if key in b]


def _carried(a: Mapping[str, float], b: Mapping[str, float]) -> list[dict[str, Any]]:
    """The groups of both splits, those that carried most in either first; none where one run has no split."""
    if not (a and b):
        return []
    by_most = sorted({**a, **b}, key=lambda g: -max(split[g] for split in (a, b) if g in split))
    return [{"group": g, "a": a.get(g), "b": b.get(g)} for g in by_most]


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
        x, y = (
            np.array([getattr(e, name) for e in side], dtype=float)
            for side in ([p[0] for p in pairs], [p[1] for p in pairs])
        )
        value = spearman(x, y)
        if value is not None:
            found[name] = value
    return found
