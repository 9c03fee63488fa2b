"""The answer in three sentences: which data moved the model most, where, and did it understand."""

from __future__ import annotations

from statistics import median
from typing import Any

from markupsafe import Markup

from intaglio.findings import VERDICTS, GroupFinding
from intaglio.report.shift.books import closes
from intaglio.report.view import View


def answer(view: View) -> dict[str, Any]:
    """The three sentences, the bars under them and the figures beside them."""
    return {
        "sentences": [("which", which(view)), ("where", where(view)), ("why", understood(view))],
        "bars": group_bars(view),
        "facts": facts(view),
        "going": not view.findings.complete,
    }


def which(view: View) -> Markup:
    """Which data moved the model most, and by how much."""
    total = view.whole.shift_abs_u.value if view.whole else None
    changed, share = view.findings.changed, view.findings.unmeasured_share
    if total is None:
        if changed and share is not None:
            return view.t("answer.which.changed", step=changed["step"], share=view.strong(view.n.percent(share)))
        return view.t("answer.which.nothing")
    if changed and share is not None:
        return _which(view) + " " + view.t("answer.which.changed_partly", share=view.strong(view.n.percent(share)))
    return _which(view)


def _which(view: View) -> Markup:
    ranked = ranked_groups(view)
    total = view.u_sum(view.whole.shift_abs_u) if view.whole else ""
    if len(ranked) < 2:
        return _which_example(view, total)
    first, last = ranked[0], ranked[-1]
    most, least = first.shift_abs_u_per_1000_tokens, last.shift_abs_u_per_1000_tokens.value
    key = "groups" if least else "groups_without_ratio"
    return view.t(
        "answer.which.alike" if _overlap(first, last) else f"answer.which.{key}",
        total=view.strong(total),
        examples=view.t.count("examples_of", view.whole.examples if view.whole else 0),
        first=view.strong(first.group),
        last=view.strong(last.group),
        most=view.strong(view.u(most.value)),
        least=view.u(least),
        ratio=view.t.amount("times", (most.value or 0) / least) if least else "",
        span=_span(view, most),
    )


def _overlap(first: GroupFinding, last: GroupFinding) -> bool:
    """Whether the intervals of the groups that moved the model most and least overlap."""
    low, high = first.shift_abs_u_per_1000_tokens.low, last.shift_abs_u_per_1000_tokens.high
    return low is not None and high is not None and low <= high


def _span(view: View, interval: Any) -> Markup:
    ends = view.span(interval)
    return view.t("word.interval", ends=ends) if ends else Markup("")


def ranked_groups(view: View) -> list[GroupFinding]:
    """Named groups by movement per thousand target tokens, most first; unmeasured ones left out."""
    measured = [g for g in view.groups if g.shift_abs_u_per_1000_tokens.value is not None]
    return sorted(measured, key=lambda g: -(g.shift_abs_u_per_1000_tokens.value or 0))


def _which_example(view: View, total: str) -> Markup:
    moved = sorted((e.shift_abs_u for e in view.findings.examples if e.shift_abs_u is not None), reverse=True)
    if not moved:
        return view.t("answer.which.nothing")
    tenth = moved[: max(1, len(moved) // 10)]
    return view.t(
        "answer.which.examples", total=view.strong(total), examples=view.t.count("examples_of", len(moved)),
        share=view.strong(view.n.percent(sum(tenth) / sum(moved) if sum(moved) else None)),
        most=view.strong(view.u(moved[0])), middle=view.u(median(moved)),
    )  # fmt: skip


def where(view: View) -> Markup:
    """In which parts of the model that movement lies."""
    parts = _totals(view)
    total, layers = sum(parts.values()), _layers(parts)
    if not total or not layers:
        return view.t("answer.where.nothing")
    numbers, amounts = list(layers), list(layers.values())
    width = max(1, -(-len(layers) // 3))
    start = max(range(len(layers) - width + 1), key=lambda i: sum(amounts[i : i + width]))
    inside = sum(amounts)
    kinds = {kind: sum(v for a, v in parts.items() if a.endswith(f".{kind}")) for kind in ("mlp", "attn")}
    biggest = max(parts, key=lambda a: parts[a])
    return view.t(
        "answer.where.parts",
        mlp=view.strong(view.n.percent(kinds["mlp"] / total)),
        attn=view.strong(view.n.percent(kinds["attn"] / total)),
        place=_place(view, numbers[start], numbers[start + width - 1], len(layers)),
        even=view.n.percent(width / len(layers)),
        share=view.strong(view.n.percent(sum(amounts[start : start + width]) / inside if inside else None)),
        part=biggest,
        part_share=view.n.percent(parts[biggest] / total),
    )


def _place(view: View, start: int, end: int, layers: int) -> Markup:
    if start == end:
        return view.t("answer.where.layer", start=start, layers=layers)
    return view.t("answer.where.layers", start=start, end=end, layers=layers)


def _totals(view: View) -> dict[str, float]:
    """Movement by part over all groups; the whole data set's own entry, if present, is taken alone."""
    by_group = view.findings.visit_part_totals
    chosen = [by_group[""]] if "" in by_group else list(by_group.values())
    totals: dict[str, float] = {}
    for parts in chosen:
        for address, value in parts.items():
            totals[address] = totals.get(address, 0.0) + value
    return totals


def _layers(parts: dict[str, float]) -> dict[int, float]:
    """Movement by layer; layers that were not trained are not there."""
    numbers = sorted({int(a[1:].split(".")[0]) for a in parts if a.startswith("L")})
    return {i: sum(v for a, v in parts.items() if a.startswith(f"L{i}.")) for i in numbers}


def understood(view: View) -> Markup:
    """Did it understand or imitate: counts of verdicts, or why that cannot be said."""
    counts = verdict_counts(view)
    if not any(p.role == "target" for p in view.findings.probes):
        return view.t("answer.why.no_target", learnt=_learnt(view), known=view.strong(view.n.whole(counts["known"])))
    gap = view.findings.imitation_gap
    said = {name.replace(" ", "_"): view.strong(view.n.whole(counts[name])) for name in VERDICTS}
    judged = sum(counts[name] for name in VERDICTS if name != "no evidence")
    text = view.t("answer.why.counts", judged=view.t.count("examples", judged), **said)
    if gap is None:
        return text + " " + view.t("answer.why.gap_unknown")
    if not counts["understood"] + counts["imitated"]:
        return text + " " + view.t("answer.why.gap_empty")
    kind = _gap_kind(gap, proved=counts["understood"] >= counts["imitated"])
    return text + " " + view.t(f"answer.why.{kind}", gap=view.strong(view.n.percent(abs(gap))))


def _gap_kind(gap: float, *, proved: bool) -> str:
    """How the fall of the loss in other words compares with that on the trained wording.

    Two small falls differ by little as well. So without `proved`, that is where fewer examples are understood
    than imitated, a small difference is not called carrying over.
    """
    if abs(gap) < 0.001:  # would print as <0.1%
        return "gap_equal" if proved else "gap_equal_unproved"
    if gap <= 0.1 and not proved:
        return "gap_below_unproved" if gap < 0 else "gap_narrow_unproved"
    return "gap_below" if gap < 0 else "gap_wide" if gap > 0.1 else "gap_narrow"


def _learnt(view: View) -> str:
    learnt = view.whole.learnt_nats.value if view.whole else None
    return view.n.missing if learnt is None else f"{view.n(learnt)} {view.t('unit.nats')}"


def verdict_counts(view: View) -> dict[str, int]:
    return {name: sum(e.verdict == name for e in view.findings.examples) for name in VERDICTS}


def group_bars(view: View) -> list[dict[str, Any]]:
    """Movement per 1000 target tokens, a bar per group, longest first."""
    ranked = ranked_groups(view)
    top = max((g.shift_abs_u_per_1000_tokens.value or 0 for g in ranked), default=0)
    if len(ranked) < 2 or not top:
        return []
    return [
        {
            "group": g.group,
            "colour": view.group_colour(g.group),
            "width": round(100 * (g.shift_abs_u_per_1000_tokens.value or 0) / top, 1),
            "value": view.u(g.shift_abs_u_per_1000_tokens.value),
            "span": view.span(g.shift_abs_u_per_1000_tokens),
            "verdict": view.t("verdict_name." + g.verdict),
            "code": g.verdict.replace(" ", "-"),
        }
        for g in ranked
    ]


def facts(view: View) -> list[dict[str, Any]]:
    """The strip of figures: name, number, what it means."""
    f, whole = view.findings, view.whole
    loss = f"{view.n(whole.first_loss_nats)} → {view.n(whole.last_loss_nats)}" if whole else view.n.missing
    anchor = next((p for p in f.probes if p.role == "anchor"), None)
    books = {True: "yes", False: "no", None: "unmeasured" if f.books_close else "unknown"}[closes(view)]
    numbers = {
        "loss": loss, "books": view.t(f"fact.books.{books}"), "data_share": view.n.percent(f.data_share),
        "noise": view.n(f.noise_scale.value), "kl": view.n(anchor.kl_last_nats if anchor else None),
    }  # fmt: skip
    means = {key: view.t(f"fact.{key}.means") for key in numbers}
    if view.never_settled:
        numbers["data_share"], means["data_share"] = (view.t(f"fact.data_share.{k}") for k in ("unsettled", "unsettled_means"))
    return [{"name": view.t(f"fact.{key}.name"), "number": number, "means": means[key]} for key, number in numbers.items()]
