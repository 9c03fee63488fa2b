"""Charts over optimizer steps: the books, the movement with its spikes, agreement."""

from __future__ import annotations

from typing import Any

import altair as alt
from markupsafe import Markup

from intaglio.report.charts.base import WIDTH, axis, colour, data, svg
from intaglio.report.view import View

ACCOUNTS = ("data", "carry", "decay", "unmeasured", "unexplained", "interaction", "rounding")
_MAX_POINTS = 240
_SHADES = {"data": ("accent", 1.0), "carry": ("soft", 0.45), "decay": ("against", 0.8)}


def bins(n_steps: int, limit: int = _MAX_POINTS) -> list[range]:
    """Steps in at most `limit` runs of equal length, so that a long run does not make a heavy page."""
    width = max(1, -(-n_steps // limit))
    return [range(start, min(start + width, n_steps)) for start in range(0, n_steps, width)]


def mean(values: list[float | None]) -> float | None:
    """Mean of what was measured."""
    kept = [float(v) for v in values if v is not None]
    return sum(kept) / len(kept) if kept else None


def books_by_step(view: View) -> Markup | None:
    """Each account's signed share of the step, stacked, step by step."""
    rows = [row for run in bins(len(view.series("update_l2"))) for row in _stack(view, run)]
    if not rows:
        return None
    shades = [_SHADES.get(a, ("against", 0.4)) for a in ACCOUNTS]
    chart = alt.Chart(data(rows)).mark_rect().encode(
        x=alt.X("x0:Q", axis=_step_axis(view), scale=alt.Scale(nice=False)), x2="x1:Q",
        y=alt.Y("low:Q", axis=_percent_axis(view)), y2="high:Q",
        color=alt.Color("account:N", scale=alt.Scale(domain=list(ACCOUNTS), range=[colour(c) for c, _ in shades])),
        opacity=alt.Opacity("account:N", scale=alt.Scale(domain=list(ACCOUNTS), range=[o for _, o in shades])),
        description="tip:N",
    ).properties(width=WIDTH - 90, height=150)  # fmt: skip
    return svg(chart, name="books", label=str(view.t("figure.books")), lang=view.lang)


def _percent_axis(view: View) -> alt.Axis:
    gap = "'\u00a0%'" if view.lang == "ru" else "'%'"
    return alt.Axis(
        title=str(view.t("axis.share_of_step")), labelExpr=f"format(datum.value*100,'~r')+{gap}", tickCount=5
    )


def _step_axis(view: View) -> alt.Axis:
    return axis(str(view.t("axis.step")), view.lang, grid=False, tickCount=10, labelOverlap="greedy")


def _stack(view: View, run: range):
    """The accounts of some steps on top of each other; negative ones hang below zero."""
    length = mean([view.series("update_l2")[i] for i in run])
    up = down = 0.0
    for account in ACCOUNTS:
        line = view.series(f"{account}_shift")
        value = mean([line[i] for i in run]) if line else None
        if not length or not value:
            continue
        share = value / length
        low = up if share > 0 else down
        up, down = (up + share, down) if share > 0 else (up, down + share)
        tip = f"{view.t('axis.step')} {view.step(run[0])} · {view.t('account.' + account)}: {view.n.percent(share)}"
        yield {
            "x0": view.step(run[0]),
            "x1": view.step(run[-1]) + 1,
            "low": low,
            "high": low + share,
            "account": account,
            "tip": tip,
        }


def movement(view: View) -> Markup | None:
    """Length of the step and the data's part of it, spikes marked; the loss below on the same axis."""
    rows = _movement_rows(view)
    if not any(row["update"] is not None for row in rows):
        return None
    x = alt.X("step:Q", scale=alt.Scale(nice=False), axis=_step_axis(view))
    upper = _shading(view) + _line(rows, "update", "ink", x, view.t("axis.step_u"), view) + _line(
        rows, "data", "accent", x, view.t("axis.step_u"), view)  # fmt: skip
    upper = (upper + _spikes(view) + _hover(rows, x)).properties(width=WIDTH - 90, height=210)
    lower = _shading(view) + _line(rows, "loss", "soft", x, view.t("axis.loss"), view) + _hover(rows, x)
    lower = lower.properties(width=WIDTH - 90, height=110)
    both = alt.vconcat(upper, lower, spacing=18)
    return svg(both, name="movement", label=str(view.t("figure.movement")), lang=view.lang)


def _movement_rows(view: View) -> list[dict[str, Any]]:
    update, ours, loss = view.series_u("update_l2"), view.series_u("data_shift"), view.series("loss_nats")
    rows = []
    for run in bins(max(len(update), len(loss))):
        u, d, nats = (mean([s[i] for i in run if i < len(s)]) for s in (update, ours, loss))
        tip = "\n".join((
            f"{view.t('axis.step')} {view.step(run[0])}", f"{view.t('legend.update')}: {view.u(u)}",
            f"{view.t('legend.data')}: {view.u(d)}", f"{view.t('axis.loss')}: {view.n(nats)}",
        ))  # fmt: skip
        rows.append(
            {"step": view.step(run[0]), "end": view.step(run[-1]) + 1, "update": u, "data": d, "loss": nats, "tip": tip}
        )
    return rows


def _line(rows: list[dict[str, Any]], field: str, ink: str, x: alt.X, title: str, view: View) -> alt.Chart:
    width = 1.8 if ink != "soft" else 1.4
    measured = [row for row in rows if row[field] is not None]  # the line runs on over unmeasured steps
    return (
        alt.Chart(data(measured))
        .mark_line(color=colour(ink), strokeWidth=width, clip=True)
        .encode(
            x=x.copy(),
            y=alt.Y(f"{field}:Q", axis=axis(str(title), view.lang, tickCount=5), scale=alt.Scale(zero=field != "loss")),
        )
    )


def _hover(rows: list[dict[str, Any]], x: alt.X) -> alt.Chart:
    """Invisible columns, one per step, that carry the hover text."""
    return alt.Chart(data(rows)).mark_rect(opacity=0, color=colour("ink")).encode(
        x=x.copy(), x2="end:Q",
        y=alt.value(0), y2=alt.value("height"), description="tip:N")  # fmt: skip


def _shading(view: View) -> alt.Chart:
    """The unsettled first steps, behind everything."""
    rows = [{"a": view.step(0), "b": view.step(0) + view.unsettled_steps}]
    return alt.Chart(data(rows)).mark_rect(color=colour("faint"), opacity=0.35).encode(
        x=alt.X("a:Q", axis=_step_axis(view)), x2="b:Q")  # fmt: skip


def _spikes(view: View) -> alt.LayerChart:
    update = view.series_u("update_l2")
    rows = []
    for spike in view.findings.spikes:
        place = spike.step - view.step(0)
        if 0 <= place < len(update) and update[place] is not None:
            near = bool(rows) and spike.step - rows[-1]["step"] < 0.03 * len(update)  # two labels would overlap
            rows.append({"step": spike.step, "y": update[place], "text": "" if near else f"{spike.step}"})
    base = alt.Chart(data(rows)).encode(x="step:Q", y="y:Q")
    marks = base.mark_point(shape="triangle-down", filled=True, size=70, color=colour("against"), opacity=1, yOffset=-8)
    return marks + base.mark_text(dy=-18, fontSize=11, color=colour("against")).encode(text="text:N")


def agreement(view: View) -> Markup | None:
    """Agreement of gradients within a step, as a moving ratio of averages."""
    gg, s = view.series("agreement_gg"), view.series("agreement_s")
    window = max(10, len(gg) // 12)
    rows = []
    for run in bins(len(gg), 160):
        span = range(max(0, run[-1] - window + 1), run[-1] + 1)
        a, b = mean([gg[i] for i in span]), mean([s[i] for i in span])
        if a is not None and b is not None and a + b > 0 and run[-1] + 1 >= window:
            tip = f"{view.t('axis.step')} {view.step(run[-1])} · {view.t('axis.agreement')}: {view.n(a / (a + b))}"
            rows.append({"step": view.step(run[0]), "end": view.step(run[-1]) + 1, "alpha": a / (a + b), "tip": tip})
    if len(rows) < 3:
        return None
    x = alt.X("step:Q", axis=_step_axis(view), scale=alt.Scale(nice=False))
    y = alt.Y("alpha:Q", axis=axis(str(view.t("axis.agreement")), view.lang, tickCount=4))
    line = alt.Chart(data(rows)).mark_line(color=colour("ink"), strokeWidth=1.8).encode(x=x, y=y)
    zero = alt.Chart(data([{"y": 0}])).mark_rule(color=colour("soft"), strokeDash=[3, 3]).encode(y="y:Q")
    chart = (zero + line + _hover(rows, x)).properties(width=WIDTH - 90, height=110)
    return svg(chart, name="agreement", label=str(view.t("figure.agreement")), lang=view.lang)
