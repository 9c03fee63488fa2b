"""What a click on a part opens: every part of the decision, and of the sides beside it, as data for the page's script.

Pure: no torch, no html.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from intaglio.report.choice.words import Words, visible
from intaglio.trace import TraceData

SOURCES = 8  # tokens a head is shown to read from
WORDS = (
    "layer", "head", "mlp", "neuron", "vote", "effect", "part", "read", "from_token", "others_read", "booked", "own", "others",
    "norm", "shape", "changed", "mean", "resample", "looked", "score", "query", "key", "by", "attention", "neurons", "activation",
    "of_mlp", "close", "up", "absent", "unmeasured", "no_neurons", "no_upstream", "bias", "change", "atlas",
)  # fmt: skip


def opened(t: Words, trace: TraceData) -> dict[str, Any]:
    """The sides, this one first, each with its parts; and the words around them."""
    sides = [_side(side_name(t, side), side) | {"page": _atlas_page(trace, side)} for side in (trace, *trace.beside)]
    metric = trace.about.get("metric")
    words = {name: str(t(f"page.card.{name}")) for name in WORDS}
    return {"words": words, "sides": sides, "metric": metric and str(t("page.ledger.effect_on", metric=metric["name"]))}


def _atlas_page(trace: TraceData, side: TraceData) -> str | None:
    """The page of the heads, for a side of the same model."""
    return None if side.about.get("kind") == "model" else trace.about.get("heads_page")


def side_name(t: Words, side: TraceData) -> str:
    """A side as it is called on the page."""
    kind = side.about.get("kind")
    if kind is None:
        return str(t("page.card.here"))
    name = side.about["name"]
    return str(t(f"page.beside.{kind}", name=visible(name) if kind == "target" else name))


def _side(name: str, trace: TraceData) -> dict[str, Any]:
    rows = trace.rows
    parts: dict[str, list[float | None]] = {}
    reads: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for row in rows["votes"]:
        parts[row["address"]] = [_short(row[name]) for name in ("part_logits", "effect_logits", "effect_metric")]
        if row["source"] is not None:
            reads[row["address"]].append((row["source"], _short(row["vote_logits"]), _short(row["attention"])))
    return {
        "name": name, "sizes": [trace.about[size] for size in ("layers", "heads", "width")],
        "tokens": [visible(r["letters"] or r["text"]) for r in rows["prompt"]], "parts": parts,
        "reads": {head: sorted(read, key=lambda r: -abs(r[1]))[:SOURCES] for head, read in reads.items()},
        "neurons": _neurons(rows["neurons"]), "booked": _booked(rows), "upstream": _upstream(rows["upstream"]),
    }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _neurons(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """Layer to its neurons among the strongest of all."""
    found: dict[str, list] = defaultdict(list)
    for row in rows:
        found[str(row["layer"])].append((row["neuron"], _short(row["activation"]), _short(row["vote_logits"])))
    return found


def _booked(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Part to what replacing it did, for each way it was replaced, with the other votes that changed most."""
    terms: dict[tuple[str, str], list] = defaultdict(list)
    for row in rows.get("effect_terms", []):
        terms[row["address"], row["ablation"]].append((row["part"], _short(row["change_logits"])))
    found: dict[str, list] = defaultdict(list)
    for row in rows.get("effects", []):
        amounts = {name: _short(row[f"{name}_logits"]) for name in ("effect", "own", "others", "norm", "shape")}
        changed = terms[row["address"], row["ablation"]][:6]
        found[row["address"]].append({"how": row["ablation"], **amounts, "changed": changed})
    return found


def _upstream(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        names = ("query", "key", "score", "attention")
        head = found.setdefault(row["head"], {n: _short(row[n]) for n in names} | {"by": {"query": [], "key": []}})
        head["by"][row["side"]].append((row["part"], _short(row["share"]), row["source"]))
    return found
