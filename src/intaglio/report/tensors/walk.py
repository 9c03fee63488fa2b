"""The walk to one part as a page: idea, formula, PyTorch, tensors, configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from markupsafe import Markup, escape

from intaglio.report.choice.blocks import Rows, drawn
from intaglio.report.choice.words import part
from intaglio.report.page import asset, environment
from intaglio.report.tensors.diff import css
from intaglio.report.tensors.words import TensorWords

Row = Mapping[str, Any]


def render_walk(walk: Row, places: Sequence[Row], subject: str, *, lang: str = "en") -> str:
    """The page of one walk.

    Args:
        walk: a `Walk` as a dict.
        places: rows of the table `places` for the part.
        subject: what the model is called.
        lang: "en" or "ru".

    Raises:
        InputError: there is no catalogue for `lang`.
    """
    t = TensorWords(lang)
    said = words_of(t, walk)
    tensors = [(part(r["tensor"]), r["role"], _whole(r["shape"]), r["dtype"], r["slice"], _bytes(r), r["runs"])
               for r in place_rows(t, places)]  # fmt: skip
    config = [(_whole(part(r["field"])), _value(r["value"]), r["why"]) for r in config_rows(t, walk)]
    columns = ("tensor", "role", "shape", "dtype", "slice", "bytes", "runs")
    return environment().get_template("tensors_walk.html.jinja").render(
        t=t, lang=lang, walk=walk, subject=subject, address=part(walk["address"]), idea=said["idea"], notes=said["notes"],
        reads=_code(said["reads"]), equal=_code(t("walk.lead.equal")), setup="\n".join(walk["setup"]),
        formula=[_formula(line) for line in walk["formula"]],
        tensors=drawn(t, "walk", Rows("tensors", columns, tensors, frozenset())),
        config=drawn(t, "walk", Rows("config", ("field", "value", "why"), config, frozenset(), shown=40)),
        css=css(), js=Markup(asset("page.js")), version=metadata.version("intaglio"),
    )  # fmt: skip


def words_of(t: TensorWords, walk: Row) -> dict[str, Any]:
    """Idea, input and notes of a walk in words."""
    values = walk["values"]
    sharers = ", ".join(str(h) for h in values["sharers"] if h != values["head"])
    given = {k: "" if v is None else v for k, v in values.items()} | {"sharers": sharers}
    return {
        "idea": t(f"walk.idea.{walk['kind']}", **given), "reads": t(f"walk.input.{walk['reads']}", **given),
        "notes": [_code(t(f"walk.note.{key}", **given)) for key in walk["notes"]],
    }  # fmt: skip


def place_rows(t: TensorWords, places: Sequence[Row]) -> list[dict[str, str]]:
    """Rows of `places` as a reader sees them."""
    return [{
        "tensor": r["tensor"], "role": r["role"], "shape": " × ".join(map(str, r["shape"])) or "1", "dtype": r["dtype"],
        "slice": _slice(t, r), "file": r["file"],
        "bytes": f"{t.numbers.whole(r['start'])}–{t.numbers.whole(r['stop'])}", "runs": _runs(t, r),
    } for r in places]  # fmt: skip


def config_rows(t: TensorWords, walk: Row) -> list[dict[str, str]]:
    """Config fields, their values as JSON, and what they fixed."""
    return [{
        "field": r["field"], "value": json.dumps(r["value"], ensure_ascii=False),
        "why": t(f"walk.why.{r['why']}") + ("" if r["given"] else Markup(" ({})").format(t("walk.default"))),
    } for r in walk["config"]]  # fmt: skip


def _slice(t: TensorWords, row: Row) -> Markup:
    for name in ("rows", "columns"):
        if row[name]:
            first, last = row[name]
            key = name if last - first > 1 else f"one_{name.removesuffix('s')}"
            return t(f"walk.slice.{key}", a=first, b=last - 1)
    return t("walk.slice.all")


def _runs(t: TensorWords, row: Row) -> Markup:
    n = t.numbers
    if row["stride"] is None:
        return t("walk.runs.one", n=n.whole(row["run_bytes"]))
    return t("walk.runs.many", runs=n.whole(row["runs"]), n=n.whole(row["run_bytes"]), stride=n.whole(row["stride"]))


def _code(text: Markup) -> Markup:
    """What stands between backticks as code."""
    pieces = str(text).split("`")
    return Markup("".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces)))


def _whole(text: object) -> Markup:
    return Markup('<span class="nowrap">{}</span>').format(text)


def _bytes(row: Mapping[str, str]) -> Markup:
    return Markup('<span class="nowrap">{}</span><br><small>{}</small>').format(row["bytes"], row["file"])


def _formula(line: str) -> Markup:
    """Indices below and powers above, as mathematics is set."""
    text = re.sub(r"_\{([^}]*)\}|_(\w+)", lambda m: f"<sub>{m[1] or m[2]}</sub>", str(escape(line)))
    return Markup(re.sub(r"\^\(([^)]*)\)", r"<sup>\1</sup>", text))


def _value(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text if len(text) <= 300 else text[:297] + "...") if text else escape("")
