"""What distance does in this choice, and whether it survives other angles."""

from __future__ import annotations

import math
from typing import Any

from intaglio.sentences import Sentence, known, measured, num, part, pct, signed, tok, unknown, whole

Row = dict[str, Any]


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    found = [_scaled(way, [r for r in tables["scales"] if r["way"] == way], n) for way in ("positions", "base")]
    found += [_edge(tables["edges"][0]), *_distance(n), *_kinds(n, tables["kinds"])]
    return [*found, known("slow")]


def held(rows: list[Row]) -> tuple[float, float]:
    """The factors around 1 within which the first choice is what it was, among those tried in rising order."""
    at = next(i for i, r in enumerate(rows) if r["factor"] == 1)
    low = high = at
    while low > 0 and not rows[low - 1]["first_changed"]:
        low -= 1
    while high + 1 < len(rows) and not rows[high + 1]["first_changed"]:
        high += 1
    return rows[low]["factor"], rows[high]["factor"]


def _scaled(way: str, rows: list[Row], n: Row) -> Sentence:
    low, high = held(rows)
    turned = [r for r in rows if r["first_changed"]]
    values = dict(first=tok(n["first"]), low=num(low), high=num(high), was=pct(n["probability"]))
    if not turned:
        apart = max(rows, key=lambda r: abs(r["probability"] - n["probability"]))
        return measured(f"{way}_all", **values, factor=num(apart["factor"]), p=pct(apart["probability"]))
    nearest = min(turned, key=lambda r: abs(math.log(r["factor"])))
    return measured(way, **values, factor=num(nearest["factor"]), other=tok(nearest["first"]), p=pct(nearest["probability"]))


def _edge(edge: Row) -> Sentence:
    values = dict(head=part(edge["address"]), token=tok(edge["token"]), distance=whole(edge["distance"]),
                  over=signed(edge["over"]), fast=signed(edge["fast"]), slow=signed(edge["slow"]))  # fmt: skip
    return measured("edge_part", **values, unturned=signed(edge["unturned"])) if edge["unturned"] else measured("edge", **values)


def _distance(n: Row) -> list[Sentence]:
    found = [measured("near", near=whole(n["near"]), measured=pct(n["near_measured"]), alone=pct(n["near_alone"]))]
    if n["median_correlation"] is None:
        return [*found, unknown("few")]
    return [*found, measured("correlation", median=signed(n["median_correlation"]), head=part(n["best"]),
                             most=signed(n["best_correlation"]))]  # fmt: skip


def _kinds(n: Row, kinds: list[Row]) -> list[Sentence]:
    found = []
    if n["turning"] < n["layers"]:
        found.append(measured("still", still=whole(n["layers"] - n["turning"]), layers=whole(n["layers"])))
    if len(kinds) > 1:
        short, long = (f(kinds, key=lambda k: k["longest_tokens"]) for f in (min, max))
        found.append(measured("bases", count=whole(len(kinds)), few=whole(len(short["layers"])), many=whole(len(long["layers"])),
                              short=num(short["longest_tokens"]), long=num(long["longest_tokens"])))  # fmt: skip
    return found
