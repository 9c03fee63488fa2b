"""A trace, its lenses and an atlas as a person holds them: tables, findings, pictures; they show themselves in a notebook.

The one place where what was measured, its analysis and its pages meet.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

    from intaglio.sentences import Sentence

from intaglio.address import parse_head
from intaglio.atlas import AtlasData, Sampled, read_atlas
from intaglio.errors import InputError
from intaglio.files import write_text
from intaglio.tables import ATLAS_TABLES
from intaglio.trace import TraceData

HEIGHT = 640


@dataclass(frozen=True, eq=False)
class Picture:
    """An HTML page that a notebook shows in a frame, so that its style stays its own."""

    page: str

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.page)}" style="width:100%;height:{HEIGHT}px;border:0"></iframe>'


@dataclass(frozen=True, eq=False)
class Lens:
    """What one lens measured on a decision.

    Attributes:
        name: of the lens.
        numbers: single numbers, by name.
        skipped: why it does not apply, in English; "" where it does.
    """

    trace: Trace
    name: str

    @property
    def numbers(self) -> dict[str, Any]:
        return self.trace.lenses[self.name].get("numbers", {})

    @property
    def skipped(self) -> str:
        reason = self.trace.lenses[self.name].get("skipped")
        return _plain(self._words("en").skipped(self.name, reason)) if reason else ""

    @property
    def tables(self) -> dict[str, pyarrow.Table]:
        """Every table of the lens, by name."""
        import pyarrow as pa

        return {name: pa.Table.from_pylist(rows) for name, rows in self.trace.lenses[self.name].get("tables", {}).items()}

    @property
    def table(self) -> pyarrow.Table:
        """The lens's main table, its first; empty where it has none."""
        import pyarrow as pa

        return next(iter(self.tables.values()), pa.table({}))

    @property
    def findings(self) -> list[str]:
        """What was found, in English, the most telling sentence first, each behind its mark."""
        return [f"[{s.mark}] {_plain(self._words('en').sentence(self.name, s))}" for s in self._found()]

    def plot(self, *, lang: str = "en") -> Picture:
        """Its pictures and tables alone."""
        return Picture(self._page(lang, pictures=True))

    def to_html(self, *, lang: str = "en") -> str:
        """The lens as a page of its own.

        Raises:
            InputError: there is no catalogue for `lang`.
        """
        return self._page(lang, pictures=False)

    def _repr_html_(self) -> str:
        return Picture(self.to_html())._repr_html_()

    def _page(self, lang: str, *, pictures: bool) -> str:
        from intaglio.report.choice import render_lens

        return render_lens(self.trace, self.name, self._found(), lang=lang, pictures=pictures)

    def _found(self) -> list[Sentence]:
        from intaglio.analyse.choice import find

        return find(self.name, self.trace)

    @staticmethod
    def _words(lang: str) -> Any:
        from intaglio.report.choice import Words

        return Words(lang)


def _plain(text: Any) -> str:
    """Markup without its tags."""
    return text.striptags()


@dataclass(eq=False)
class Trace(TraceData):
    """One decision taken apart: what `intaglio.why` gives back.

    Attributes:
        about: the subject, the prompt as the model saw it, the question, sizes and the ledger's closing.
        rows: table name to its rows; the contract is `tables.TRACE_TABLES`.
        lenses: lens name to its `numbers` and `tables`, or to why it was `skipped`.
        beside: other sides of the same question, each with `kind` (model, prompt or target) and `name` in its `about`.
        decision: the model's run, for arrays and for tracing further; None in a trace that was read from a file.
    """

    decision: Any = field(default=None, repr=False)

    def array(self, name: str, *, kind: str = "numpy") -> Any:
        """An array of the unchanged run, such as `L3.attn.pattern`, or by TransformerLens's hook name.

        Args:
            name: see `measure.choice.arrays`.
            kind: numpy or torch.

        Raises:
            InputError: no such array, or the run is not at hand.
        """
        from intaglio.measure.choice.arrays import array

        if kind not in ("numpy", "torch"):
            raise InputError("unknown kind of array", got=kind, expected="numpy or torch")
        found = array(self._run(), name).detach()
        return found if kind == "torch" else found.float().cpu().numpy()

    def upstream(self, address: str, *, query: int = -1, key: int | None = None, depth: int = 2) -> pyarrow.Table:
        """Which earlier parts made a head look where it looked, recursively.

        Args:
            address: a head, such as L3.attn.H5.
            query, key: the two positions; the decision's, and the one the head attends to most, if not given.
            depth: how many scores deep.

        Raises:
            InputError: not a head, or the run is not at hand.
        """
        import pyarrow as pa

        from intaglio.address import parse
        from intaglio.measure.choice.upstream import trace_tree

        found, place = self._run(), parse(address)
        if place.head is None or place.layer >= found.anatomy.n_layers or place.head >= found.anatomy.n_heads:
            raise InputError("not a head of this model", got=address, expected="such as L3.attn.H5")
        query %= len(found.ids)
        if key is None:
            key = int(found.base.layers[place.layer].pattern_BHTT[0, place.head, query].argmax())
        if not 0 <= key <= query:
            raise InputError("a head looks only back", got=f"key {key}", expected=f"0 to {query}")
        return pa.Table.from_pylist(
            trace_tree(found.anatomy, found.base, place.layer, place.head, query=query, key=key, depth=depth)
        )

    def _run(self) -> Any:
        if self.decision is None:
            raise InputError("the model's run is not at hand", expected="a trace that intaglio.why has just made")
        return self.decision

    def lens(self, name: str) -> Lens:
        """One lens: `.table`, `.plot()`, `.findings`, `.to_html()`; it shows itself in a notebook.

        Raises:
            InputError: no lens of that name was used.
        """
        if name not in self.lenses:
            raise InputError("no such lens in this trace", got=name, expected=", ".join(self.lenses) or "one that was used")
        return Lens(self, name)

    def _repr_html_(self) -> str:
        return Picture(self.to_html())._repr_html_()

    def to_html(self, path: str | Path | None = None, *, lang: str = "en") -> str:
        """The page: one HTML file without any reference to the network; also written to `path` if one is given.

        Raises:
            InputError: there is no catalogue for `lang`.
            StoreError: it cannot be written.
        """
        from intaglio.analyse.choice import find
        from intaglio.analyse.choice.answer import answer
        from intaglio.report.choice import render_choice

        page = render_choice(self, answer(self), {name: find(name, self) for name in self.lenses}, lang=lang)
        if path is not None:
            write_text(Path(path), page)
        return page


def _three(value: float) -> str:
    """Three decimals, and no minus before a zero."""
    return f"{value:.3f}".replace("-0.000", "0.000")


@dataclass(frozen=True, eq=False)
class Card:
    """All that an atlas holds on one head.

    Attributes:
        address: of the head.
        rows: table name to the rows that are about it.
    """

    address: str
    rows: dict[str, list[dict[str, Any]]]

    @property
    def role(self) -> str:
        """Its role with the most evidence, or unresolved."""
        return self.rows["heads"][0]["role"]

    @property
    def scores(self) -> list[dict[str, Any]]:
        """Every role it was tested for, the furthest beyond its null first."""
        return sorted(self.rows.get("scores", []), key=lambda r: r["null"] - r["score"])

    def __getattr__(self, name: str) -> list[dict[str, Any]]:
        if name in ATLAS_TABLES:
            return self.rows.get(name, [])
        raise AttributeError(f"a head's card has no {name!r}")

    def _repr_html_(self) -> str:
        head = self.rows["heads"][0]
        cells = "".join(
            f"<tr><td>{html.escape(r['role'])} {html.escape(r['detail'])}</td><td>{_three(r['score'])}</td>"
            f"<td>{_three(r['null'])}</td>"
            f"<td>{'named' if r['named'] else ''}</td></tr>" for r in self.scores
        )  # fmt: skip
        return (
            f"<b>{html.escape(self.address)}</b>: {html.escape(head['role'])}"
            f"<table><tr><th>role</th><th>score</th><th>null</th><th></th></tr>{cells}</table>"
        )


@dataclass(eq=False)
class Atlas(AtlasData):
    """What every head of a model does: what `intaglio.heads` gives back.

    Attributes:
        about: subject, sizes, the reference texts and the rule by which roles are named.
        rows: table name to its rows; the contract is `tables.ATLAS_TABLES`.
        beside: a second model or checkpoint of the same shape.
        sampled: the scores of every text, of which `rows` tell the means; none in an atlas that was read from a file.
    """

    sampled: list[Sampled] = field(default_factory=list, repr=False)

    def __getitem__(self, head: str) -> Card:
        """The card of one head, such as "18.6" or "L18.attn.H6".

        Raises:
            InputError: not a head of this model.
        """
        address = parse_head(head)
        if address.layer >= self.about["n_layers"] or address.head >= self.about["n_heads"]:
            raise InputError("not a head of this model", got=head,
                             expected=f"0.0 to {self.about['n_layers'] - 1}.{self.about['n_heads'] - 1}")  # fmt: skip
        return Card(str(address), {name: _about(rows, str(address)) for name, rows in self.rows.items()})

    def to_html(self, path: str | Path | None = None, *, lang: str = "en") -> str:
        """The page: one HTML file without any reference to the network; also written to `path` if one is given.

        Raises:
            InputError: there is no catalogue for `lang`.
            StoreError: it cannot be written.
        """
        from intaglio.report.heads import render_heads

        page = render_heads(self, lang=lang)
        if path is not None:
            write_text(Path(path), page)
        return page

    def _repr_html_(self) -> str:
        return Picture(self.to_html())._repr_html_()


_NAMING = ("address", "reader", "writer", "other")  # columns that name a head


def _about(rows: list[dict[str, Any]], address: str) -> list[dict[str, Any]]:
    return [r for r in rows if any(r.get(name) == address for name in _NAMING) or address in (r.get("heads") or ())]


def open_atlas(path: str | Path) -> Atlas:
    """An atlas that `Atlas.to_json` or `intaglio heads --json` wrote.

    Raises:
        InputError: it is not there, or no atlas.
    """
    return Atlas(**vars(read_atlas(path)))
