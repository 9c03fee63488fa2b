"""Two runs side by side as one self-contained HTML file: what differs, the books, groups, probes, the same examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from intaglio.findings import VERDICTS, ExampleFinding, Findings, GroupFinding
from intaglio.report.page import fill
from intaglio.report.shift.answer import verdict_counts
from intaglio.report.shift.probes import probes
from intaglio.report.view import View

MAX_SHARED = 500
Pair = tuple[ExampleFinding, ExampleFinding]


def render_compare(a: Findings, b: Findings, comparison: Sequence[Pair] | None = None, *, lang: str = "en") -> str:
    """The page of two runs.

    Args:
        a, b: what the analyses found.
        comparison: examples of `a` and `b` that are the same text; joined by id when None.
        lang: "en" or "ru".
    """
    views = View(a, lang), View(b, lang)
    pairs = list(comparison) if comparison is not None else joined(a, b)
    names = _names(a, b)
    return fill(
        "compare.html.jinja",
        views[0],
        title=views[0].t("compare.title", a=names[0], b=names[1]),
        names=names,
        views=views,
        said=headline(views, names),
        rows=measures(views),
        groups=_groups(views),
        verdicts_of=[_verdicts(v) for v in views],
        shared=_shared(views, pairs, names),
        examples=[_example(views[0], pair) for pair in pairs[:MAX_SHARED]],
        probes=[probes(v) for v in views],
    )


def _names(a: Findings, b: Findings) -> tuple[str, str]:
    return (a.name, b.name) if a.name != b.name else (f"{a.name} (A)", f"{b.name} (B)")


def joined(a: Findings, b: Findings) -> list[Pair]:
    """The examples that stand in both runs, those that moved the models most differently first."""
    other = {e.example: e for e in b.examples}
    pairs = [(e, other[e.example]) for e in a.examples if e.example in other]
    return sorted(pairs, key=lambda pair: -abs((pair[0].shift_abs_u or 0) - (pair[1].shift_abs_u or 0)))


def headline(views: tuple[View, View], names: tuple[str, str]) -> list[Markup]:
    """Three sentences: which moved more per token, which learnt more for it, which understood more."""
    return [_moved(views, names), _learnt(views, names), _understood(views, names)]


def _moved(views: tuple[View, View], names: tuple[str, str]) -> Markup:
    view = views[0]
    amounts = [v.whole.shift_abs_u_per_1000_tokens.value if v.whole else None for v in views]
    if not all(amounts):
        return view.t("compare.moved_unknown")
    ratio = amounts[0] / amounts[1]  # type: ignore[operator]
    if 0.95 < ratio < 1.05:
        return view.t(
            "compare.moved_alike",
            a=names[0],
            b=names[1],
            amount_a=view.strong(view.u(amounts[0])),
            amount_b=view.strong(view.u(amounts[1])),
        )
    high, low = (0, 1) if ratio > 1 else (1, 0)
    return view.t(
        "compare.moved",
        more=view.strong(names[high]),
        less=view.strong(names[low]),
        most=view.strong(view.u(amounts[high])),
        least=view.u(amounts[low]),
        ratio=view.t.amount("times", max(ratio, 1 / ratio)),
    )


def _learnt(views: tuple[View, View], names: tuple[str, str]) -> Markup:
    view = views[0]
    learnt = [view.strong(view.n(v.whole.learnt_nats.value if v.whole else None)) for v in views]
    rate = [view.n(v.whole.nats_per_ku if v.whole else None) for v in views]
    return view.t(
        "compare.learnt", a=names[0], b=names[1], learnt_a=learnt[0], learnt_b=learnt[1], rate_a=rate[0], rate_b=rate[1]
    )


def _understood(views: tuple[View, View], names: tuple[str, str]) -> Markup:
    view = views[0]
    if not all(any(p.role == "target" for p in v.findings.probes) for v in views):
        return view.t("compare.verdicts_unknown")
    counts = [verdict_counts(v) for v in views]
    judged = [view.n.whole(sum(c.values()) - c["no evidence"]) for c in counts]
    said = [view.strong(view.n.whole(c["understood"])) for c in counts]
    return view.t(
        "compare.verdicts",
        a=names[0],
        b=names[1],
        understood_a=said[0],
        understood_b=said[1],
        judged_a=judged[0],
        judged_b=judged[1],
    )


def measures(views: tuple[View, View]) -> list[dict[str, Any]]:
    """One row per measure of a whole run: name, both values, difference where it makes sense."""
    n, t = views[0].n, views[0].t
    closes = {True: t("compare.row.yes"), False: t("compare.row.no"), None: n.missing}
    whole = lambda read: lambda f: read(g) if (g := next((g for g in f.groups if not g.group), None)) else None  # noqa: E731
    table: list[tuple[str, Callable[[Findings], Any], Callable[[Any], Any], bool]] = [
        ("books_close", lambda f: f.books_close, closes.__getitem__, False),
        ("closure", lambda f: f.closure_max, n, False),
        ("coverage", lambda f: f.coverage, n.percent, False),
        ("steps", lambda f: f.steps_total, n.whole, False),
        ("data_share", lambda f: f.data_share, n.percent, False),
        ("moved", whole(lambda g: g.shift_abs_u.value), views[0].u, True),
        ("per_1000", whole(lambda g: g.shift_abs_u_per_1000_tokens.value), views[0].u, True),
        ("learnt", whole(lambda g: g.learnt_nats.value), n, True),
        ("path", lambda f: f.path_u, views[0].u, False),
        ("net", lambda f: f.net_u, views[0].u, True),
        ("tortuosity", lambda f: f.tortuosity, n, False),
        ("agreement", lambda f: f.agreement.value, n, True),
        ("noise", lambda f: f.noise_scale.value, n, True),
        ("gap", lambda f: f.imitation_gap, n.percent, False),
        ("spikes", lambda f: len(f.spikes), n.whole, False),
    ]
    return [_measure(views, key, read, show, differ) for key, read, show, differ in table]


def _measure(
    views: tuple[View, View], key: str, read: Callable[[Findings], Any], show: Callable[[Any], Any], differ: bool
) -> dict[str, Any]:
    a, b = (read(v.findings) for v in views)
    change = views[0].n.signed(b - a) if differ and a is not None and b is not None else ""
    return {"name": views[0].t(f"compare.row.{key}"), "a": show(a), "b": show(b), "difference": change}


def _groups(views: tuple[View, View]) -> list[dict[str, Any]]:
    """Every group of either run with the movement, learning and verdict of both."""
    found = [{g.group: g for g in v.groups} for v in views]
    names = list(dict.fromkeys([*found[0], *found[1]]))
    return [{"name": name, "sides": [_group(views[0], side.get(name)) for side in found]} for name in names]


def _group(view: View, g: GroupFinding | None) -> dict[str, Any] | None:
    if g is None:
        return None
    return {
        "per_1000": view.u(g.shift_abs_u_per_1000_tokens.value),
        "span": view.span(g.shift_abs_u_per_1000_tokens),
        "learnt": view.n(g.learnt_nats.value),
        "verdict": view.t(f"verdict_name.{g.verdict}"),
        "code": g.verdict.replace(" ", "-"),
    }


def _verdicts(view: View) -> list[dict[str, Any]]:
    counts = verdict_counts(view)
    return [
        {
            "code": name.replace(" ", "-"),
            "name": view.t(f"verdict_name.{name}"),
            "count": view.n.whole(counts[name]),
            "width": counts[name],
        }
        for name in VERDICTS
        if counts[name]
    ]


def _shared(views: tuple[View, View], pairs: list[Pair], names: tuple[str, str]) -> Markup:
    view = views[0]
    if not pairs:
        return view.t("compare.none_shared")
    only = [view.n.whole(len(v.findings.examples) - len(pairs)) for v in views]
    return view.t(
        "compare.shared",
        shared=view.t.count("examples", len(pairs)),
        a=names[0],
        b=names[1],
        only_a=only[0],
        only_b=only[1],
    )


def _example(view: View, pair: Pair) -> dict[str, Any]:
    sides = [
        {
            "moved": view.u(e.shift_abs_u),
            "loss": f"{view.n(e.first_loss_nats)} → {view.n(e.last_loss_nats)}",
            "verdict": view.t(f"verdict_name.{e.verdict}"),
            "code": e.verdict.replace(" ", "-"),
        }
        for e in pair
    ]
    return {
        "preview": pair[0].preview[:100],
        "group": pair[0].group,
        "colour": view.group_colour(pair[0].group),
        "sides": sides,
    }
