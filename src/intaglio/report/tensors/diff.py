"""The page of a difference: the answer, the map, layers and parts, ranks, tokens, what stayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from markupsafe import Markup

from intaglio.report.charts.base import colour_rules
from intaglio.report.choice.blocks import Figure, Rows, drawn
from intaglio.report.choice.words import part, token
from intaglio.report.page import asset, environment
from intaglio.report.tensors.maps import heads_grid, parts_grid, scale_key, treemap
from intaglio.report.tensors.words import TensorWords
from intaglio.sentences import Sentence

Row = Mapping[str, Any]
Scale = Callable[[Sequence[float | None]], tuple[list[int | None], list[float]]]
MOST = 400  # rows of a table on the page; all are in the JSON


def render_diff(
    about: Row, rows: Mapping[str, Sequence[Row]], said: Mapping[str, Sequence[Sentence]], scale: Scale, *, lang: str = "en"
) -> str:
    """The page of one difference.

    Args:
        about, rows: of a `Difference`.
        said: what was found, by section.
        scale: relative movements to steps of colour, with the steps' lower ends.
        lang: "en" or "ru".

    Raises:
        InputError: there is no catalogue for `lang`.
    """
    t = TensorWords(lang)
    cells, ends, highest = _cells(about, rows, scale)
    return environment().get_template("tensors_diff.html.jinja").render(
        t=t, n=t.numbers, lang=lang, about=about, said={k: [(s.mark, t.sentence("diff", s)) for s in v] for k, v in said.items()},
        other=t("diff.adapter", name=about["other"]) if about["adapter"] else about["other"],
        key=scale_key(t, ends, highest, any(c["relative"] is None for c in cells["tensors"].values())) if ends else "",
        treemap=drawn(t, "diff", Figure("treemap", treemap(
            t, rows["tensors"], {name: c["level"] for name, c in cells["tensors"].items()}))),
        grids=_grids(t, about, cells), tables=_tables(t, about, rows), css=css(), js=Markup(asset("page.js")),
        version=metadata.version("intaglio"),
    )  # fmt: skip


def css() -> Markup:
    """The style of the pages about tensors."""
    return Markup(asset("page.css")) + colour_rules() + Markup(asset("choice.css")) + Markup(asset("tensors.css"))


def _cells(about: Row, rows: Mapping[str, Sequence[Row]], scale: Scale) -> tuple[dict[str, dict], list[float], float | None]:
    """Tensors, parts by layer and heads, each with its step on one scale."""
    tensors = {r["tensor"]: {"relative": r["relative"]} for r in rows["tensors"]}
    parts: dict[tuple[int, str], dict[str, Any]] = {}
    for r in rows["tensors"]:
        if r["layer"] is not None and r["moved_l2"] is not None:
            cell = parts.setdefault((r["layer"], r["part"]), {"aa": 0.0, "dd": 0.0})
            cell["aa"] += r["before_l2"] ** 2
            cell["dd"] += r["moved_l2"] ** 2
    for cell in parts.values():
        cell["relative"] = (cell["dd"] / cell["aa"]) ** 0.5 if cell["aa"] else None if cell["dd"] else 0.0
    heads = {(r["layer"], r["head"]): {"relative": r["relative"]} for r in rows["heads"]}
    everything = [*tensors.values(), *parts.values(), *heads.values()]
    steps, ends = scale([c["relative"] for c in everything])
    for cell, level in zip(everything, steps):
        cell["level"] = level
    highest = max((c["relative"] for c in everything if c["relative"]), default=None)
    return {"tensors": tensors, "parts": parts, "heads": heads}, ends, highest


def _grids(t: TensorWords, about: Row, cells: Mapping[str, dict]) -> list[Markup]:
    found = []
    if cells["parts"]:
        found.append(drawn(t, "diff", Figure("parts", parts_grid(t, cells["parts"], about["n_layers"]))))
    if cells["heads"]:
        found.append(drawn(t, "diff", Figure("heads", heads_grid(t, cells["heads"], about["n_layers"], about["n_heads"]))))
    return found


def _tables(t: TensorWords, about: Row, rows: Mapping[str, Sequence[Row]]) -> dict[str, Markup]:
    n = t.numbers
    moved = sorted((r for r in rows["tensors"] if r["changed"]), key=lambda r: -(r["relative"] or 0))[:MOST]
    heads = sorted((r for r in rows["heads"] if r["moved_l2"]), key=lambda r: -(r["relative"] or 0))[:MOST]
    columns = ("tensor", "shape", "moved", "changed", *(("rank", "first", "kept") if about["spectra"] else ()))
    blocks = {}
    if moved:
        blocks["tensors"] = Rows("tensors", columns, [_tensor(t, r, about["spectra"]) for r in moved],
                                 frozenset(columns[2:]))  # fmt: skip
    if heads:
        roles = [role for role in ("q", "k", "v", "o") if any(role in r["relative_by"] for r in heads)]
        more = ("rank",) if about["spectra"] else ()
        blocks["heads"] = Rows("heads_moved", ("head", "moved", *roles, *more), [
            (part(r["address"]), n.fine_percent(r["relative"]), *(n.fine_percent(r["relative_by"].get(x)) for x in roles),
             *((n(r.get("rank")),) if more else ())) for r in heads
        ], frozenset(("moved", *roles, *more)))  # fmt: skip
    named = [r for r in rows.get("directions", ()) if r["towards"] or r["away"]]
    if named:
        blocks["directions"] = Rows("directions", ("tensor", "side", "share", "towards", "away", "chance"), [
            (part(r["tensor"]), t(f"diff.side.{r['side']}"), n.percent(r["share"]), _near(t, r["towards"]), _near(t, r["away"]),
             n(r["null"], 2)) for r in named
        ], frozenset({"share", "chance"}))  # fmt: skip
    if rows["tokens"]:
        blocks["tokens"] = Rows("tokens", ("token", "id", "length", "relative", "tensor"), [
            (token(r["text"]) if r["text"] is not None else t("diff.token_id", id=r["token"]), n.whole(r["token"]),
             n(r["moved_l2"]), n.fine_percent(r["relative"]), part(r["tensor"])) for r in rows["tokens"]
        ], frozenset({"id", "length", "relative"}))  # fmt: skip
    still = [r for r in rows["tensors"] if r["changed"] == 0]
    if still:
        blocks["still"] = Rows("still", ("tensor", "shape", "numbers"), [
            (part(r["tensor"]), _shape(r), n.whole(r["numbers"])) for r in still[:MOST]
        ], frozenset({"numbers"}))  # fmt: skip
    return {name: drawn(t, "diff", block) for name, block in blocks.items()}


def _tensor(t: TensorWords, r: Row, spectra: bool) -> tuple[object, ...]:
    n = t.numbers
    first = (part(r["tensor"]), _shape(r), n.fine_percent(r["relative"]), n.fine_percent(r["changed"] / r["numbers"]))
    if not spectra:
        return first
    if r.get("rank") is None:
        return (*first, "", "", "")
    kept = "" if r.get("shared_left") is None else f"{n(r['shared_left'], 2)} · {n(r['shared_right'], 2)}"
    return (*first, rank_text(t, r), n.percent(r["top_share"]), kept)


def rank_text(t: TensorWords, r: Row) -> Markup:
    """An effective rank out of the largest possible; a range where it was sampled."""
    n, full = t.numbers, t.numbers.whole(min(r["shape"]))
    if r["exact"]:
        return t("diff.rank.exact", rank=n(r["rank"]), full=full)
    return t("diff.rank.range", low=n(r["rank_low"], 2), high=n(r["rank_high"], 2), full=full)


def _shape(r: Row) -> Markup:
    return Markup('<span class="nowrap">{}</span>').format(" × ".join(map(str, r["shape"])) or "1")


def _near(t: TensorWords, found: Sequence[Row]) -> Markup:
    if not found:
        return Markup("—")
    return Markup(" ").join(
        Markup('<span class="nowrap">{} <small>{}</small></span>').format(token(x["text"]), t.numbers.cosine(x["cosine"]))
        for x in found[:5]
    )
