"""What makes the two runs comparable, and what does not."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.compare.two import Two

# what cannot be set side by side at all, before what only needs care
_GRAVE = ("subject", "parameters", "optimizer", "level")


def limits(two: Two) -> dict[str, Any]:
    """Every term with both values and, where they differ, what follows from that."""
    rows = [_row(two, term) for term in two.comparison["terms"]]
    return {"rows": sorted(rows, key=lambda row: row["order"]), "verdict": verdict(two)}


def verdict(two: Two) -> Markup:
    """Can the movement of these runs be set side by side? In one sentence."""
    differing = [t["term"] for t in two.comparison["terms"] if t["same"] is False]
    trained = [name for name in differing if name not in ("seed", "level", "every", "probes", "tokens")]
    if "subject" in differing:
        return two.t("compare.can.subject")
    if not two.same_subject:
        return two.t("compare.can.unknown")
    if not trained:
        return two.t("compare.can.seed" if "seed" in differing else "compare.can.same")
    return two.t("compare.can.one" if len(trained) == 1 else "compare.can.several",
                 names=_names(two, trained))  # fmt: skip


def in_short(two: Two) -> dict[str, Any]:
    """For the head of the page: what differs, with values, and what is the same."""
    terms = two.comparison["terms"]
    return {
        "differs": [{"name": two.t(f"compare.term.{t['term']}"), "a": value(two, t["term"], t["a"]),
                     "b": value(two, t["term"], t["b"])} for t in terms if t["same"] is False],
        "same": _names(two, [t["term"] for t in terms if t["same"]]),
        "verdict": verdict(two),
    }  # fmt: skip


def _names(two: Two, terms: list[str]) -> Markup:
    return Markup(", ").join(two.t(f"compare.term.{name}") for name in terms)


def _row(two: Two, term: dict[str, Any]) -> dict[str, Any]:
    name, same = term["term"], term["same"]
    state = {True: "same", False: "differs", None: "unknown"}[same]
    order = 3 if same else 2 if same is None else 0 if name in _GRAVE else 1
    said = two.t(f"compare.differs.{name}", **_values(two, term)) if same is False else ""
    return {"name": two.t(f"compare.term.{name}"), "sides": [value(two, name, term[side]) for side in "ab"],
            "state": state, "said": said, "order": order}  # fmt: skip


def _values(two: Two, term: dict[str, Any]) -> dict[str, Any]:
    """What the sentences may name: both values, the ratio of numbers, how many examples are shared."""
    a, b = term["a"], term["b"]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in (a, b))
    ratio = two.t.amount("times", max(a / b, b / a)) if numbers else ""
    return {"a": value(two, term["term"], a), "b": value(two, term["term"], b), "ratio": ratio,
            "shared": two.t.count("examples", len(two.pairs))}  # fmt: skip


def value(two: Two, name: str, found: Any) -> str:
    """A term's value as people read it."""
    if found is None:
        return str(two.t("compare.not_recorded"))
    if isinstance(found, bool):
        return str(two.t("compare.yes" if found else "compare.no"))
    if isinstance(found, int) and name not in ("seed",):
        return two.n.whole(found)
    return two.n(found) if isinstance(found, float) else str(found)
