"""Role scores over checkpoints as lines, births marked, the losses above on the same axis of steps.  SVG."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from intaglio.report.heads.axes import round_values, svg
from intaglio.report.heads.seen import Row, Seen, short
from intaglio.report.heads.wall import chip, head_link
from intaglio.report.heads.words import HeadWords, in_order

WIDTH, LEFT, RIGHT, HEIGHT, GAP = 960, 48, 100, 150, 34
LINES = 6  # named lines of a role; the rest are thin
THIN = 60
ROLES_SHOWN = 8
UNEVEN = 5  # times the middle gap between checkpoints: then a linear axis would crowd the early ones
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    name: str
    label: str
    points: Points
    ink: str
    head: str = ""


@dataclass(frozen=True)
class Panel:
    title: str
    lines: Sequence[Line]
    births: Sequence[Row] = ()
    bands: bool = True


class Axis:
    """Steps from left to right; by their logarithm where checkpoints lie ever further apart."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = sorted(set(steps))
        above = [s for s in self.steps if s > 0]
        gaps = sorted(b - a for a, b in itertools.pairwise(self.steps))
        self.log = len(above) > 2 and above[-1] / above[0] > 50 and gaps[-1] > UNEVEN * gaps[len(gaps) // 2]
        self.least = above[0] if above else 1
        self.low, self.high = self._there(self.steps[0]), self._there(self.steps[-1])

    def _there(self, step: float) -> float:
        return math.log10(max(step, self.least / 2)) if self.log else float(step)

    def __call__(self, step: float) -> float:
        span = (self.high - self.low) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, (self._there(step) - self.low) / span))

    def ticks(self) -> list[int]:
        """Checkpoints far enough apart to be written out, the last among them."""
        kept: list[int] = []
        for step in reversed(self.steps):
            if not kept or self(kept[-1]) - self(step) > 58:
                kept.append(step)
        return kept[::-1]


def history(t: HeadWords, side: Seen) -> Markup | None:
    """All panels as one picture; None without a history."""
    rows = [r for r in side.of("history") if r.get("score") is not None]
    if not rows:
        return None
    axis = Axis([r["step"] for r in rows] + [r["step"] for r in side.of("losses")])
    births = [r for r in side.of("events") if r["event"] == "birth"]
    panels = _loss_panel(t, side, births) + _role_panels(t, rows, births)
    drawn, top = [], 26
    for panel in panels:
        drawn.append(_panel(t, axis, panel, top))
        top += HEIGHT + GAP + 10
    for step in axis.ticks():
        drawn.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                axis(step), top - GAP + 8, t.numbers.whole(step)
            )
        )
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    name = t("page.history.steps_log" if axis.log else "page.history.steps")
    drawn.append(
        Markup('<text class="axis" x="{:.0f}" y="{}" text-anchor="middle">{}</text>').format(
            middle, top - GAP + 26, name
        )
    )
    return svg("history", WIDTH, top + 2, t("page.history.title"), drawn)


def _loss_panel(t: HeadWords, side: Seen, births: list[Row]) -> list[Panel]:
    by_task: dict[str, Points] = defaultdict(list)
    for r in sorted(side.of("losses"), key=lambda r: r["step"]):
        if r.get("loss_nats") is not None:
            by_task[r["task"]].append((r["step"], r["loss_nats"]))
    names = {
        task: str(t(f"page.history.task_{task}")) if f"page.history.task_{task}" in t else task for task in by_task
    }
    lines = [Line(names[task], names[task], points, f"t{i % 3}") for i, (task, points) in enumerate(by_task.items())]
    return [Panel(str(t("page.history.loss")), lines, births, bands=False)] if lines else []


def _role_panels(t: HeadWords, rows: list[Row], births: list[Row]) -> list[Panel]:
    by_role: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        by_role[r["role"]][r["address"]].append(r)
    shown = [role for role in in_order(by_role) if any(r["named"] for lines in by_role[role].values() for r in lines)]
    shown = sorted(shown, key=lambda role: not any(b["role"] == role for b in births))[:ROLES_SHOWN]
    return [_role_panel(t, role, by_role[role], [b for b in births if b["role"] == role]) for role in shown]


def _role_panel(t: HeadWords, role: str, lines: dict[str, list[Row]], births: list[Row]) -> Panel:
    """A line per head: at every step its highest score, whichever the offset or relation."""
    ranked = sorted(lines.items(), key=lambda p: (-any(r["named"] for r in p[1]), -max(r["score"] for r in p[1])))
    found = []
    for i, (address, rows) in enumerate(ranked[:THIN]):
        loud = i < LINES and any(r["named"] for r in rows)
        best: dict[int, float] = {}
        for r in rows:
            best[r["step"]] = max(r["score"], best.get(r["step"], -math.inf))
        name = short(address)
        found.append(Line(name if loud else "", name, sorted(best.items()), f"l{i}" if loud else "thin", name))
    return Panel(str(t.role(role)), found[::-1], births)


def _panel(t: HeadWords, axis: Axis, panel: Panel, top: int) -> Markup:
    values = [v for line in panel.lines for _, v in line.points]
    low, high = min(0.0, *values), max(values) * 1.04 or 1.0

    def y(value: float) -> float:
        return top + HEIGHT * (high - value) / ((high - low) or 1.0)

    drawn = [Markup('<text class="title" x="{}" y="{}">{}</text>').format(LEFT, top - 10, panel.title)]
    for level in round_values(low, high):
        drawn.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, y(level), y(level), LEFT - 6, y(level) + 4, t.numbers(level, 2))
        )
    by_step: dict[int, list[Row]] = defaultdict(list)
    for row in panel.births:
        by_step[row["step"]].append(row)
    drawn += [_birth(t, axis, step, born, top, bands=panel.bands) for step, born in sorted(by_step.items())]
    drawn += [_line(t, axis, y, line) for line in panel.lines]
    drawn += _names(axis, y, [line for line in panel.lines if line.name])
    return Markup("").join(drawn)


def _line(t: HeadWords, axis: Axis, y: Any, line: Line) -> Markup:
    path = " ".join(f"{axis(s):.1f},{y(v):.1f}" for s, v in line.points)
    drawn = Markup('<polyline class="{}" points="{}"/>').format(line.ink, path)
    if line.ink == "thin":
        return drawn
    dots = Markup("").join(
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6" data-tip="{}"/>').format(
            line.ink,
            axis(s),
            y(v),
            t("page.history.dot", name=line.label, step=t.numbers.whole(s), value=t.numbers(v, 3)),
        )
        for s, v in line.points
    )
    return drawn + dots


def _birth(t: HeadWords, axis: Axis, step: int, rows: list[Row], top: int, *, bands: bool) -> Markup:
    """A line at the births of one step, a band over the stretch of steps that they may lie in."""
    whole = t.numbers.whole
    tip = "\n".join(
        str(
            t(
                "page.history.birth",
                head=short(r["address"]),
                role=t.role(r["role"]),
                step=whole(step),
                after=whole(r["after_step"]),
                low=whole(_end(r, "low_step", "after_step")),
                high=whole(_end(r, "high_step", "step")),
            )
        )
        for r in rows[:8]
    )
    low = axis(min(_end(r, "low_step", "after_step") for r in rows))
    high = axis(max(_end(r, "high_step", "step") for r in rows))
    line = Markup('<line class="born" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" data-tip="{3}"/>').format(
        axis(step), top, top + HEIGHT, tip
    )
    if not bands:
        return line
    return (
        Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="{}" data-tip="{}"/>').format(
            low, top, max(0.0, high - low), HEIGHT, tip
        )
        + line
    )


def _end(row: Row, name: str, otherwise: str) -> int:
    return row[name] if row.get(name) is not None else row[otherwise]


def _names(axis: Axis, y: Any, lines: Sequence[Line]) -> list[Markup]:
    """Names at the ends of their lines, moved apart where they would overlap."""
    ends = sorted(([y(line.points[-1][1]), line] for line in lines), key=lambda e: e[0])
    for above, below in itertools.pairwise(ends):
        below[0] = max(below[0], above[0] + 13)
    if ends:
        over = max(0.0, ends[-1][0] - (y(0.0) + 6))
        for end in ends:
            end[0] -= over
    x = WIDTH - RIGHT + 6
    return [
        Markup('<a href="#head={0}" data-head="{0}"><text class="name {1}" x="{2}" y="{3:.1f}">{4}</text></a>').format(
            line.head, line.ink, x, at + 4, line.name
        )
        if line.head
        else Markup('<text class="name {}" x="{}" y="{:.1f}">{}</text>').format(line.ink, x, at + 4, line.name)
        for at, line in ends
    ]


def event_rows(t: HeadWords, side: Seen) -> list[dict[str, Any]]:
    """Births, deaths and hand-overs in the order of their steps."""
    n = t.numbers.whole
    return [
        {
            "event": t(f"page.history.{r['event']}_name"),
            "role": chip(t, r["role"]),
            "head": head_link(short(r["address"])),
            "other": head_link(short(r["other"])) if r.get("other") else "",
            "after": n(r["after_step"]),
            "step": n(r["step"]),
            "interval": f"{n(r['low_step'])}–{n(r['high_step'])}"
            if r.get("low_step") is not None and r.get("high_step") is not None
            else t.numbers.missing,
        }
        for r in sorted(side.of("events"), key=lambda r: r["step"])
    ]
