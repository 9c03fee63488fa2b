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


def books_by_step(*views: View) -> Markup | None:
    """Each account's signed share of the step, stacked, step by step; runs beside each other on one scale."""
    stacked = [(v, [row for run in bins(len(v.series("update_l2"))) for row in _stack(v, run)]) for v in views]
    drawn = [(v, rows) for v, rows in stacked if rows]
    if not drawn:
        return None
    ends = [row[end] for _, rows in drawn for row in rows for end in ("low", "high")]
    scale = alt.Scale(domain=[min(ends), max(ends)], nice=True) if len(drawn) > 1 else alt.Scale()
    panels = [_books_panel(v, rows, scale, len(views), labels=not i) for i, (v, rows) in enumerate(drawn)]
    chart = alt.hconcat(*panels, spacing=24) if len(panels) > 1 else panels[0]
    return svg(chart, name="books", label=str(views[0].t("figure.books")), lang=views[0].lang)


def _books_panel(view: View, rows: list[dict[str, Any]], scale: alt.Scale, n: int, *, labels: bool) -> alt.Chart:
    shades = [_SHADES.get(a, ("against", 0.4)) for a in ACCOUNTS]
    chart = alt.Chart(data(rows)).mark_rect().encode(
        x=alt.X("x0:Q", axis=_step_axis(view, 10 // n), scale=alt.Scale(nice=False)), x2="x1:Q",
        y=alt.Y("low:Q", axis=_percent_axis(view, labels), scale=scale), y2="high:Q",
        color=alt.Color("account:N", scale=alt.Scale(domain=list(ACCOUNTS), range=[colour(c) for c, _ in shades])),
        opacity=alt.Opacity("shade:Q", scale=None),
        description="tip:N",
    ).properties(width=(WIDTH - 60 - 30 * n) / n, height=150)  # fmt: skip
    return chart.properties(title=view.label) if view.mark else chart


def _percent_axis(view: View, labels: bool) -> alt.Axis:
    gap = "'\u00a0%'" if view.lang == "ru" else "'%'"
    return alt.Axis(
        title=str(view.t("axis.share_of_step")) if labels else None,
        labelExpr=f"format(datum.value*100,'~r')+{gap}",
        tickCount=5,
    )


def _step_axis(view: View, ticks: int = 10) -> alt.Axis:
    return axis(str(view.t("axis.step")), view.lang, grid=False, tickCount=ticks, tickMinStep=1, labelOverlap="greedy")


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
            "shade": _SHADES.get(account, ("against", 0.4))[1],
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


def _line(
    rows: list[dict[str, Any]], field: str, ink: str, x: alt.X, title: str, view: View, dash: tuple[int, ...] = (1, 0)
) -> alt.Chart:
    width = 1.8 if ink != "soft" else 1.4
    measured = [row for row in rows if row[field] is not None]  # the line runs on over unmeasured steps
    return (
        alt.Chart(data(measured))
        .mark_line(color=colour(ink), strokeWidth=width, strokeDash=list(dash), clip=True)
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


def _shading(*views: View) -> alt.Chart:
    """The unsettled first steps, behind everything."""
    view = max(views, key=lambda v: v.unsettled_steps)
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
    base, ink = alt.Chart(data(rows)).encode(x="step:Q", y="y:Q"), colour(view.ink if view.mark else "against")
    marks = base.mark_point(shape="triangle-down", filled=True, size=70, color=ink, opacity=1, yOffset=-8)
    return marks + base.mark_text(dy=-18, fontSize=11, color=ink).encode(text="text:N")


def movement_of_two(*views: View) -> Markup | None:
    """Length of the step, the data's part of it and the loss, a panel each; both runs in every panel."""
    rows = [_movement_rows(v) for v in views]
    ends = [end for own in rows for row in own for end in (row["step"], row["end"])]
    if not ends:
        return None
    t, scale = views[0].t, alt.Scale(domain=[min(ends), max(ends)], nice=False)
    hover = _both_tips(views, rows)
    panels = []
    for field, title in (("update", "axis.step_taken"), ("data", "axis.data_part"), ("loss", "axis.loss")):
        drawn = [(v, own) for v, own in zip(views, rows) if any(row[field] is not None for row in own)]
        if not drawn:
            continue
        x = alt.X("step:Q", scale=scale, axis=_step_axis(views[0]) if field == "loss" else _bare_axis())
        panel = _shading(*views)
        panel = alt.layer(panel, *(_line(own, field, v.ink, x, str(t(title)), v, DASHES[v.mark]) for v, own in drawn))
        if field == "update":
            panel = alt.layer(panel, *(_spikes(v) for v, _ in drawn))
        panels.append((panel + _hover(hover, x)).properties(width=WIDTH - 90, height=150 if field == "update" else 105))
    if not panels:
        return None
    both = alt.vconcat(*panels, spacing=16)
    return svg(both, name="movement", label=str(t("compare.figure.movement")), lang=views[0].lang)


DASHES = {"": (1, 0), "A": (1, 0), "B": (5, 2)}  # on paper and to every eye the two runs stay apart


def _bare_axis() -> alt.Axis:
    return alt.Axis(title=None, labels=False, ticks=False, grid=False)


def _both_tips(views: tuple[View, ...], rows: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One column per step of the longer run, with what each run says at that step."""
    longest = max(rows, key=lambda own: own[-1]["end"] if own else 0)
    tips = [{s: row["tip"] for row in own for s in range(row["step"], row["end"])} for own in rows]
    return [
        {"step": row["step"], "end": row["end"],
         "tip": "\n\n".join(f"{v.mark} · {own[row['step']]}" for v, own in zip(views, tips) if row["step"] in own)}
        for row in longest
    ]  # fmt: skip


def agreement(*views: View) -> Markup | None:
    """Agreement of gradients within a step, as a moving ratio of averages; a line per run."""
    lines = [(v, rows) for v in views if len(rows := _agreement_rows(v)) >= 3]
    if not lines:
        return None
    view = views[0]
    x = alt.X("step:Q", axis=_step_axis(view), scale=alt.Scale(nice=False))
    y = alt.Y("alpha:Q", axis=axis(str(view.t("axis.agreement")), view.lang, tickCount=4))
    drawn = [
        alt.Chart(data(rows)).mark_line(color=colour(v.ink), strokeWidth=1.8, strokeDash=list(DASHES[v.mark]))
        .encode(x=x, y=y) for v, rows in lines
    ]  # fmt: skip
    zero = alt.Chart(data([{"y": 0}])).mark_rule(color=colour("soft"), strokeDash=[3, 3]).encode(y="y:Q")
    longest = max((rows for _, rows in lines), key=lambda rows: rows[-1]["end"])
    tips = [{s: row["tip"] for row in rows for s in range(row["step"], row["end"])} for _, rows in lines]
    hover = [{**row, "tip": "\n".join(f"{v.mark + ' · ' if v.mark else ''}{own[row['step']]}"
                                      for (v, _), own in zip(lines, tips) if row["step"] in own)} for row in longest]  # fmt: skip
    chart = alt.layer(zero, *drawn, _hover(hover, x)).properties(width=WIDTH - 90, height=110)
    return svg(chart, name="agreement", label=str(view.t("figure.agreement")), lang=view.lang)


def _agreement_rows(view: View) -> list[dict[str, Any]]:
    gg, s = view.series("agreement_gg"), view.series("agreement_s")
    window, rows = max(10, len(gg) // 12), []
    for run in bins(len(gg), 160):
        span = range(max(0, run[-1] - window + 1), run[-1] + 1)
        a, b = mean([gg[i] for i in span]), mean([s[i] for i in span])
        if a is not None and b is not None and a + b > 0 and run[-1] + 1 >= window:
            tip = f"{view.t('axis.step')} {view.step(run[-1])} · {view.t('axis.agreement')}: {view.n(a / (a + b))}"
            rows.append({"step": view.step(run[0]), "end": view.step(run[-1]) + 1, "alpha": a / (a + b), "tip": tip})
    return rows
