"""The answer in three sentences: how new the data is, whether it pulls together, what it would teach and cost."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from markupsafe import Markup

from intaglio.findings import GroupFinding, ProbeFinding
from intaglio.report.view import View


def answer(view: View) -> dict[str, Any]:
    """The three sentences and the figures under them."""
    sentences = [("surprise", surprise(view)), ("together", together(view)), ("probes", probes(view))]
    return {"sentences": sentences, "facts": facts(view)}


def surprise(view: View) -> Markup:
    """How new the data is to the model: in nats, as a number of choices, by group; and who pushes hardest."""
    loss = view.whole.surprise if view.whole else None
    if not loss or loss.value is None:
        return view.t("scan.answer.nothing")
    said = [view.t("scan.answer.surprise", examples=view.t.count("examples", len(view.findings.examples)),
                   loss=view.strong(view.n(loss.value)),
                   choices=view.strong(view.n(math.exp(min(loss.value, 50)), 2)))]  # fmt: skip
    ranked = sorted((g for g in view.groups if g.surprise.value is not None), key=lambda g: -(g.surprise.value or 0))
    if len(ranked) > 1:
        said.append(_by_group(view, ranked[0], ranked[-1]))
    pushes = sorted((e.push_mean for e in view.findings.examples if e.push_mean), reverse=True)
    if len(pushes) > 9:
        share = sum(pushes[: len(pushes) // 10]) / sum(pushes)
        said.append(view.t("scan.answer.push", share=view.strong(view.n.percent(share))))
    return Markup(" ").join(said)


def _by_group(view: View, first: GroupFinding, last: GroupFinding) -> Markup:
    low, high = first.surprise.low, last.surprise.high
    alike = low is not None and high is not None and low <= high
    return view.t(
        "scan.answer.groups_alike" if alike else "scan.answer.groups",
        first=view.strong(first.group), most=view.n(first.surprise.value), most_span=view.span(first.surprise),
        last=view.strong(last.group), least=view.n(last.surprise.value), least_span=view.span(last.surprise),
    )  # fmt: skip


def together(view: View) -> Markup:
    """Whether the rows ask for the same change of the weights."""
    known = [e.alignment_mean for e in view.findings.examples if e.alignment_mean is not None]
    mean = view.whole.alignment if view.whole else None
    if not known or not mean or mean.value is None:
        return view.t("scan.answer.alone")
    against = sum(a < 0 for a in known)
    said = [view.t("scan.answer.together", mean=view.strong(view.n.cosine(mean.value)), span=view.cosine_span(mean),
                   against=view.strong(view.n.whole(against)), of=view.n.whole(len(known)))]  # fmt: skip
    ranked = sorted((g for g in view.groups if g.alignment.value is not None), key=lambda g: g.alignment.value or 0)
    if len(ranked) > 1:
        said.append(view.t("scan.answer.together_groups", first=view.strong(ranked[-1].group),
                           most=view.n.cosine(ranked[-1].alignment.value), last=view.strong(ranked[0].group),
                           least=view.n.cosine(ranked[0].alignment.value)))  # fmt: skip
    return Markup(" ").join(said)


def probes(view: View) -> Markup:
    """For each probe: how many rows are predicted to help it, and how many to harm it."""
    said = [_probe(view, p) for p in scored_probes(view)]
    return Markup(" ").join(said) if said else view.t("scan.answer.no_probes")


def _probe(view: View, p: ProbeFinding) -> Markup:
    helping, harming, mean = counts(view, p.probe)
    return view.t(
        f"scan.answer.{p.role or 'watched'}", probe=view.strong(p.probe), helping=view.strong(view.n.whole(helping)),
        harming=view.strong(view.n.whole(harming)), of=view.n.whole(helping + harming),
        mean=view.n.cosine(mean.value if mean else None),
    )  # fmt: skip


def scored_probes(view: View) -> list[ProbeFinding]:
    """The probes that rows were scored against: what should be learnt, then what should be kept, then others."""
    order = {"target": 0, "anchor": 1}
    known = {p for e in view.findings.examples for p in e.credit_cosines}
    return sorted((p for p in view.findings.probes if p.probe in known), key=lambda p: order.get(p.role, 2))


def counts(view: View, probe: str) -> tuple[int, int, Any]:
    """Rows predicted to help the probe, rows predicted to harm it, and the mean cosine with its interval."""
    cosines = [e.credit_cosines[probe] for e in view.findings.examples if probe in e.credit_cosines]
    return sum(c > 0 for c in cosines), sum(c <= 0 for c in cosines), view.whole and view.whole.credit_cosines.get(probe)


def facts(view: View) -> list[dict[str, Any]]:
    """The strip of figures: name, number, what it means."""
    f = view.findings
    pushes = [e.push_mean for e in f.examples if e.push_mean]
    numbers = {"loss": view.n(view.whole.surprise.value if view.whole else None)}
    numbers |= {p.probe: view.n(p.first_loss_nats) for p in scored_probes(view)}
    named = [
        {"name": view.t("scan.fact.probe_loss", probe=name) if name != "loss" else view.t("scan.fact.loss"),
         "number": number, "means": view.t("scan.fact.nats")} for name, number in numbers.items()
    ]  # fmt: skip
    ratio = view.t.amount("times", max(pushes) / median(pushes)) if pushes else view.n.missing
    return [
        *named,
        {"name": view.t("scan.fact.hardest"), "number": ratio, "means": view.t("scan.fact.hardest_means")},
        {"name": view.t("scan.fact.coverage"), "number": view.n.percent(f.coverage),
         "means": view.t("scan.fact.coverage_means")},
    ]  # fmt: skip
