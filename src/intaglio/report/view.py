"""One findings value seen in one language: what every section and chart starts from."""

from __future__ import annotations

from functools import cached_property

from markupsafe import Markup

from intaglio.findings import ExampleFinding, Findings, GroupFinding, Interval
from intaglio.report.charts.base import GROUP_COLOURS
from intaglio.report.texts import Texts


class View:
    """Findings with the words and numbers of a language.

    Args:
        findings: what the analysis found.
        lang: "en" or "ru".
        mark: "A" or "B" where two runs stand on one page, else "".
        group_names: groups in the order of their colours; those of the findings when None.
    """

    def __init__(self, findings: Findings, lang: str, *, mark: str = "", group_names: list[str] | None = None) -> None:
        self.findings, self.lang, self.mark = findings, lang, mark
        self.t = Texts(lang)
        self.n = self.t.numbers
        self.group_names = [g.group for g in self.groups] if group_names is None else group_names

    @property
    def label(self) -> str:
        """How a panel of two runs names this one."""
        return f"{self.mark} · {self.findings.name[:40]}" if self.mark else self.findings.name

    @property
    def ink(self) -> str:
        """The colour of the run's own lines: one of two where two runs are compared."""
        return {"A": "ra", "B": "rb"}.get(self.mark, "ink")

    @cached_property
    def groups(self) -> list[GroupFinding]:
        """The named groups, in the order of the findings; empty where the data has none."""
        return [g for g in self.findings.groups if g.group]

    @cached_property
    def whole(self) -> GroupFinding | None:
        return next((g for g in self.findings.groups if not g.group), None)

    @cached_property
    def by_id(self) -> dict[str, ExampleFinding]:
        return {e.example: e for e in self.findings.examples}

    def group_colour(self, group: str | None) -> int:
        """Index of the group's colour and mark; groups beyond the palette share the last."""
        names = self.group_names
        return min(names.index(group), GROUP_COLOURS - 1) if group in names else GROUP_COLOURS - 1

    def u(self, value: float | None) -> str:
        """A length with its unit: 18,400 u."""
        return self.n.missing if value is None else f"{self.n(value)}\u00a0u"

    def u_within(self, value: float | None, half: float | None) -> str:
        """A length that was scaled up from the steps measured, with half its 95 % interval: 18,400 ± 900 u."""
        if value is None or not half:
            return self.u(value)
        return f"{self.n(value)}\u00a0±\u00a0{self.n(half)}\u00a0u"

    def u_sum(self, interval: Interval) -> str:
        """A sum of lengths over the run; with its 95 % interval where it was scaled up from the steps measured."""
        ends = self.span(interval) if self.findings.shift_scale > 1.001 else ""
        return f"{self.u(interval.value)} ({ends})" if ends else self.u(interval.value)

    def span(self, interval: Interval, *, percent: bool = False) -> str:
        """The ends of a 95 % interval, or nothing where there is none; a noise scale may have no upper one."""
        if interval.low is None:
            return ""
        show = self.n.percent if percent else self.n
        if interval.high is None:
            return f"{show(interval.low)}…∞"
        return f"{show(interval.low)}…{show(interval.high)}"

    def cosine_span(self, interval: Interval) -> str:
        """The ends of a cosine's 95 % interval."""
        if interval.low is None or interval.high is None:
            return ""
        return f"{self.n.cosine(interval.low)}…{self.n.cosine(interval.high)}"

    def strong(self, text: str) -> Markup:
        """A number that the eye should find first."""
        return Markup('<b class="num">{}</b>').format(text)

    def series(self, name: str) -> list[int | float | None]:
        return list(self.findings.series.get(name, []))

    def series_u(self, name: str) -> list[float | None]:
        """A series of parameter lengths, in u; empty where the unit is unknown."""
        unit = self.findings.unit_length
        return [None if v is None else v / unit for v in self.series(name)] if unit else []

    def step(self, place: int) -> int:
        """The step at a place of the series."""
        steps = self.series("step")
        return int(steps[place] or 0) if place < len(steps) else place

    @cached_property
    def never_settled(self) -> bool:
        """Whether the accounts were measured, but at unsettled steps only."""
        data, early = self.series("data_shift"), self.series("unsettled")
        return self.findings.data_share is None and any(d is not None and u for d, u in zip(data, early))

    @cached_property
    def unsettled_steps(self) -> int:
        flags = self.series("unsettled")
        return sum(bool(f) for f in flags) if flags else min(10, self.findings.steps_total)
