"""The books: do all accounts add up to the step that was taken, and how much of it is the data's."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.findings import MUCH
from intaglio.report.charts import steps as charts
from intaglio.report.view import View


def books(view: View) -> dict[str, Any]:
    """The ledger's lines, the verdict on it, and the checks beside it."""
    return {
        "lines": lines(view),
        "verdict": verdict(view),
        "closes": closes(view),
        "remarks": remarks(view),
        "checks": checks(view),
        "momentum": momentum(view),
        "chart": charts.books_by_step(view),
        "missing": view.findings.unmeasured_names[:12],
        "missing_more": max(0, len(view.findings.unmeasured_names) - 12),
    }


def momentum(view: View) -> Markup | str:
    """Why the data's own share is small, with the run's own momentum; "" where momentum carries little."""
    b1 = view.findings.momentum
    if (view.findings.carry_share or 0) <= 0.3:
        return ""
    if not b1 or not 0 < b1 < 1:
        return view.t("books.momentum_unknown")
    return view.t("books.momentum", b1=view.n(b1), own=view.n.percent(1 - b1), rest=view.n.percent(b1))


def lines(view: View) -> list[dict[str, Any]]:
    """One line per account that occurs, in u summed over the measured steps, then the sum and the step."""
    update = view.series_u("update_l2")
    sums = {}
    for account in charts.ACCOUNTS:
        values = view.series_u(f"{account}_shift")
        measured = [(v, u) for v, u in zip(values, update) if v is not None and u is not None]
        if measured:
            sums[account] = sum(v for v, _ in measured)
    taken = _taken(view, update)
    if not sums or not taken:
        return []
    kept = [a for a in sums if sums[a] or a in ("data", "carry", "decay", "unmeasured", "rounding")]
    rows = [_line(view, account, sums[account], taken) for account in kept]
    total = sum(sums.values())
    return [
        *rows,
        _line(view, "sum", total, taken),
        _line(view, "step", taken, taken),
        _line(view, "difference", total - taken, taken),
    ]


def _taken(view: View, update: list[float | None]) -> float:
    """Length of all measured steps."""
    data = view.series("data_shift")
    return sum((u for u, d in zip(update, data) if u is not None and d is not None), 0.0)


def _line(view: View, account: str, value: float, taken: float) -> dict[str, Any]:
    kind = account if account in ("sum", "step", "difference") else "account"
    share = value / taken
    return {
        "name": view.t(f"account.{account}"),
        "what": view.t(f"account.{account}_means"),
        "kind": kind,
        "u": view.n(value),
        "share": view.n.percent(share),
        "width": round(min(abs(share), 1) * 100, 2),
        "negative": value < 0,
    }


def closes(view: View) -> bool | None:
    """Whether the books deserve trust; None where that is not known, or where they close over what is not measured."""
    f = view.findings
    return None if f.books_close and f.mostly_unmeasured else f.books_close


def remarks(view: View) -> list[Markup]:
    """What is wrong though the accounts may add up: a large account of the unmeasured, gradients that do not match."""
    f, found = view.findings, []
    if f.unmeasured_share is not None and f.unmeasured_share > MUCH:
        found.append(view.t("books.much_unmeasured", share=view.strong(view.n.percent(f.unmeasured_share))))
    if f.gradient_match_max is not None and f.gradient_match_max > f.tolerance:
        match = view.strong(view.n(f.gradient_match_max))
        found.append(view.t("books.mismatch", match=match, tolerance=view.n(f.tolerance)))
    return found


def verdict(view: View) -> Markup:
    f = view.findings
    if f.books_close is None:
        return view.t("books.unknown")
    key = "books.mostly_unmeasured" if closes(view) is None else "books.close" if f.books_close else "books.open"
    return view.t(
        key,
        share=view.n.percent(f.fresh_unmeasured),
        worst=view.strong(view.n(f.closure_max)),
        tolerance=view.n(f.tolerance),
        steps=view.t.count("steps_of", _in_full(view)),
    )


def _in_full(view: View) -> int:
    """Steps whose accounts were all measured, so that closure is known."""
    return sum(c is not None for c in view.series("closure"))


def checks(view: View) -> list[dict[str, Any]]:
    """Closure, gradient match, coverage and the shares, each with what it means."""
    f = view.findings
    numbers = {
        "closure": _several(view, [view.n(f.closure_median), view.n(f.closure_max)]),
        "gradient_match": view.n(f.gradient_match_max),
        "coverage": view.n.percent(f.coverage),
        "measured": f"{view.n.whole(_in_full(view))} / {view.n.whole(f.steps_total)}",
        "settled": _settled(view),
    }
    return [
        {"name": view.t(f"check.{key}.name"), "number": number, "means": view.t(f"check.{key}.means")}
        for key, number in numbers.items()
    ]


def _settled(view: View) -> str:
    if view.never_settled:
        return view.t("check.settled.unsettled")
    f = view.findings
    return _several(view, [view.n.percent(s) for s in (f.data_share, f.carry_share, f.decay_share)])


def _several(view: View, numbers: list[str]) -> str:
    """Numbers beside each other; said once where none was measured."""
    return view.n.missing if set(numbers) == {view.n.missing} else " / ".join(numbers)
