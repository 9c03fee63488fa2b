"""The difference in three sentences: which run moved the model more, which learnt more for it, which understood."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.findings import VERDICTS, ProbeFinding
from intaglio.report.compare.two import Two
from intaglio.report.shift.answer import facts, verdict_counts
from intaglio.report.view import View


def answer(two: Two) -> dict[str, Any]:
    """The three sentences, the verdicts of both runs and the figures beside them."""
    return {
        "sentences": [("moved", moved(two)), ("learnt", learnt(two)), ("why", understood(two))],
        "verdicts": [_stack(v) for v in two.views],
        "facts": _facts(two),
    }


def _per_1000(view: View) -> float | None:
    return view.whole.shift_abs_u_per_1000_tokens.value if view.whole else None


def moved(two: Two) -> Markup:
    """Which run moved the model further for the same amount of text."""
    t, amounts = two.t, two.each(_per_1000)
    if not all(amounts):
        return t("compare.moved_unknown", run=two.run(0 if not amounts[0] else 1))
    show = [v.strong(v.u(amount)) for v, amount in zip(two.views, amounts)]
    runs = dict(a=two.run(0), b=two.run(1), amount_a=show[0], amount_b=show[1])
    if not two.same_subject:
        return t("compare.moved_foreign", **runs)
    ratio = amounts[0] / amounts[1]
    if 0.95 < ratio < 1.05:
        return t("compare.moved_alike", **runs) + _rates(two)
    high, low = (0, 1) if ratio > 1 else (1, 0)
    times = t.amount("times", max(ratio, 1 / ratio))
    return t("compare.moved", more=two.run(high), less=two.run(low), most=show[high], least=show[low],
             ratio=two.views[0].strong(times)) + _rates(two, high)  # fmt: skip


def _rates(two: Two, high: int = 0) -> Markup:
    """What the learning rate has to do with it: said only where it differs."""
    term = two.term("lr")
    if not term or term["same"] is not False or not term["a"] or not term["b"]:
        return Markup("")
    rates = [term["a"], term["b"]]
    ratio = rates[high] / rates[1 - high]
    key = "compare.rate_higher" if ratio > 1 else "compare.rate_lower"
    return " " + two.t(key, run=two.run(high), ratio=two.t.amount("times", max(ratio, 1 / ratio)))


def learnt(two: Two) -> Markup:
    """What was learnt of the training texts, and for how much movement."""
    n, t = two.n, two.t
    known = two.each(lambda v: v.whole.learnt_nats.value if v.whole else None)
    if None in known:
        return t("compare.learnt_unknown", run=two.run(known.index(None))) + _ends(two)
    falls = two.each(lambda v: v.strong(n(v.whole.learnt_nats.value if v.whole else None)))
    rates = two.each(lambda v: n(v.whole.nats_per_ku if v.whole else None))
    said = t("compare.learnt", a=two.run(0), b=two.run(1), learnt_a=falls[0], learnt_b=falls[1])
    if all(v.whole and v.whole.nats_per_ku is not None for v in two.views):
        said += " " + t("compare.learnt_rate", a=two.run(0), b=two.run(1), rate_a=rates[0], rate_b=rates[1])
    return said + _ends(two)


def _ends(two: Two) -> Markup:
    """The loss of the shared examples at their last visit."""
    ends, n, t = [_mean_last(two, side) for side in (0, 1)], two.n, two.t
    if None in ends:
        return Markup("")
    strong = two.views[0].strong
    return " " + t("compare.learnt_shared", shared=t.count("examples", len(two.pairs)), a=two.run(0),
                          b=two.run(1), end_a=strong(n(ends[0])), end_b=strong(n(ends[1])))  # fmt: skip


def _mean_last(two: Two, side: int) -> float | None:
    """Loss per trained token at the last visit, over the shared examples."""
    known = [pair[side] for pair in two.pairs if all(e.last_loss_nats is not None for e in pair)]
    tokens = sum(e.targets for e in known)
    return sum((e.last_loss_nats or 0) * e.targets for e in known) / tokens if tokens else None


def understood(two: Two) -> Markup:
    """How many examples were understood, and what happened to what should not be forgotten."""
    t = two.t
    if not all(_of_role(v, "target") for v in two.views):
        return t("compare.verdicts_unknown") + " " + _forgot(two)
    counts = two.each(verdict_counts)
    judged = [two.n.whole(sum(c.values()) - c["no evidence"]) for c in counts]
    said = [two.views[0].strong(two.n.whole(c["understood"])) for c in counts]
    return t("compare.verdicts", a=two.run(0), b=two.run(1), understood_a=said[0], understood_b=said[1],
             judged_a=judged[0], judged_b=judged[1]) + _other(two, "target") + " " + _forgot(two)  # fmt: skip


def _of_role(view: View, role: str) -> ProbeFinding | None:
    return next((p for p in view.findings.probes if p.role == role), None)


def _forgot(two: Two) -> Markup:
    changes = [_change(_of_role(v, "anchor")) for v in two.views]
    if None in changes:
        return two.t("compare.forgot_unknown")
    said = [two.views[0].strong(two.n.signed_percent(change)) for change in changes]
    return two.t("compare.forgot", a=two.run(0), b=two.run(1), change_a=said[0], change_b=said[1]) + _other(two, "anchor")


def _other(two: Two, role: str) -> Markup:
    """That a probe is not the same texts in both, where that is known; the numbers beside it speak of each alone."""
    return " " + two.t(f"compare.other_{role}") if role in two.comparison.get("other_texts", ()) else Markup("")


def _change(probe: ProbeFinding | None) -> float | None:
    if probe is None or not probe.first_loss_nats or probe.last_loss_nats is None:
        return None
    return probe.last_loss_nats / probe.first_loss_nats - 1


def _stack(view: View) -> list[dict[str, Any]]:
    counts = verdict_counts(view)
    return [
        {"code": name.replace(" ", "-"), "name": view.t(f"verdict_name.{name}"), "count": view.n.whole(counts[name]),
         "width": counts[name]}
        for name in VERDICTS if counts[name]
    ]  # fmt: skip


def _facts(two: Two) -> list[dict[str, Any]]:
    both = zip(*two.each(facts))
    return [{"name": a["name"], "means": a["means"], "numbers": (a["number"], b["number"])} for a, b in both]
