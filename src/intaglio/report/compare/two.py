"""Two findings values seen in one language: what every section of the comparison starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from intaglio.findings import ExampleFinding, Findings
from intaglio.report.view import View

Pair = tuple[ExampleFinding, ExampleFinding]


class Two:
    """Two runs, A and B, with what they share.

    Args:
        a, b: what the analyses found.
        comparison: what `intaglio.analyse.compare` says about the two: `same_subject`, `terms`, `different`,
            `correlations`.
        lang: "en" or "ru".

    Attributes:
        views: A and B; groups have the same colours in both.
        names: of the runs, as headings show them.
        pairs: the examples that stand in both, by id, those of A first in its order.
    """

    def __init__(self, a: Findings, b: Findings, comparison: Mapping[str, Any], lang: str) -> None:
        groups = list(dict.fromkeys(g.group for f in (a, b) for g in f.groups if g.group))
        self.views = (View(a, lang, mark="A", group_names=groups), View(b, lang, mark="B", group_names=groups))
        self.comparison, self.lang = comparison, lang
        self.t, self.n = self.views[0].t, self.views[0].n
        self.names = (a.name, b.name)
        self.pairs: list[Pair] = [(e, self.views[1].by_id[e.example]) for e in a.examples
                                  if e.example in self.views[1].by_id]  # fmt: skip

    @property
    def same_subject(self) -> bool:
        return bool(self.comparison["same_subject"])

    @property
    def same_length(self) -> bool:
        """Whether a step has by construction the same size in both, so that one colour scale serves both."""
        chosen = [self.term(name) for name in ("optimizer", "lr", "schedule")]
        return self.same_subject and all(term is None or term["same"] is not False for term in chosen)

    @property
    def group_names(self) -> list[str]:
        return self.views[0].group_names

    def term(self, name: str) -> dict[str, Any] | None:
        """A term of the comparison, where either run recorded it."""
        return next((term for term in self.comparison["terms"] if term["term"] == name), None)

    def run(self, side: int) -> Markup:
        """How a sentence names a run: its letter, in its colour, and its name."""
        mark = self.views[side].mark
        return Markup('<i class="run-{}">{}</i>').format(mark.lower(), mark)

    def each(self, read: Callable[[View], Any]) -> list[Any]:
        return [read(view) for view in self.views]

    def missing(self, read: Callable[[View], Any], key: str) -> list[Markup]:
        """A sentence per run that lacks something, only where the other run has it."""
        has = [bool(read(view)) for view in self.views]
        if not any(has):
            return []
        return [self.t(key, run=self.run(i), why=self.why_missing(i)) for i in (0, 1) if not has[i]]

    def why_missing(self, side: int) -> Markup | str:
        """Why shifts are missing in a run, where its manifest says so."""
        level = self.views[side].findings.manifest.get("level")
        return " " + self.t("compare.why_level", level=level) if level in ("norms", "none") else ""
