"""The wall: layers by heads, colour by role, brightness by evidence; and its legend.  Plain data for the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from intaglio.atlas import UNRESOLVED
from intaglio.report.heads.seen import Row, Seen
from intaglio.report.heads.words import HeadWords, colour, in_order

LEVELS = 5  # of brightness


def wall(t: HeadWords, side: Seen) -> dict[str, Any]:
    """Rows of cells, the first layer on top."""
    rows = [
        {
            "layer": layer,
            "cells": [_cell(t, f"{layer}.{head}", side.by_head[f"{layer}.{head}"]) for head in range(side.heads)],
        }
        for layer in range(side.layers)
    ]
    return {"name": side.name, "rows": rows, "heads": side.heads, "layers": side.layers}


def legend(t: HeadWords, sides: Sequence[Seen]) -> list[dict[str, Any]]:
    """Every role that a head of any side has, with how many heads of the first side have it; the unresolved at the end."""
    counts = {role: len(rows) for role, rows in sides[0].holders().items()}
    roles = in_order({role for side in sides for role in side.holders()})
    named = [
        {"role": r, "name": t.role(r), "code": t.code(r), "colour": colour(r), "n": counts.get(r, 0),
         "one": t(f"roles.{r}.one") if f"roles.{r}.one" in t else ""}
        for r in roles
    ]  # fmt: skip
    tip = t("page.wall.unresolved_tip")
    none = {"role": UNRESOLVED, "name": t("page.unresolved"), "code": "", "colour": None, "one": tip}
    return [*named, none | {"n": len(sides[0].by_head) - len(sides[0].named)}]


def _cell(t: HeadWords, name: str, row: Row) -> dict[str, Any]:
    role = row["role"]
    if role == UNRESOLVED:
        return {"name": name, "role": role, "code": "", "class": "none", "label": t("page.cell_none", head=name)}
    paint = colour(role)
    strength = row.get("evidence")
    level = max(1, min(LEVELS, 1 + int(LEVELS * (strength or 0.0))))
    label = t(
        "page.cell",
        head=name,
        role=t.role(role),
        score=t.numbers(row.get("score"), 2),
        null=t.numbers(row.get("null"), 2),
    )
    return {
        "name": name,
        "role": role,
        "code": t.code(role),
        "class": f"c{7 if paint is None else paint} e{level}",
        "label": label,
    }


def chip(t: HeadWords, role: str) -> Markup:
    """A role's name behind its colour."""
    if role == UNRESOLVED:
        return Markup('<span class="role none">{}</span>').format(t("page.unresolved"))
    paint = colour(role)
    return Markup('<span class="role c{}" data-tip="{}">{}</span>').format(
        7 if paint is None else paint, t(f"roles.{role}.one") if f"roles.{role}.one" in t else "", t.role(role)
    )


def head_link(name: str) -> Markup:
    """A head's short name, which opens its card."""
    return Markup('<a class="head" href="#head={0}" data-head="{0}">{0}</a>').format(name)


def head_links(names: list[str], most: int = 8) -> Markup:
    """Names with commas between, the rest as a number."""
    shown = Markup(", ").join(head_link(n) for n in names[:most])
    return shown + (f" … +{len(names) - most}" if len(names) > most else "")
