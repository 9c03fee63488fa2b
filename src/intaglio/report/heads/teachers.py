"""Which training texts wrote a head: credit to its role's loss, against its layer's other heads, with movement beside."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.words import visible
from intaglio.report.heads.cards import visible_text
from intaglio.report.heads.seen import Row, Seen, short
from intaglio.report.heads.wall import chip, head_link
from intaglio.report.heads.words import HeadWords

SHOWN = 5  # texts of each head
HEADS = 12
TAUGHT = ("induction", "previous_token")  # roles by whose loss texts are credited


def teacher_tables(t: HeadWords, side: Seen) -> list[dict[str, Any]]:
    """A table per head, in the atlas's order."""
    tokens: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(side.of("teacher_tokens"), key=lambda r: r["position"]):
        tokens.setdefault((short(row["address"]), row["example"]), []).append(row)
    taught: dict[str, str] = {}  # a head may have come to other roles later
    for row in side.of("events"):
        if row["event"] == "birth" and row["role"] in TAUGHT:
            taught.setdefault(short(row["address"]), row["role"])
    tables = []
    for name, rows in list(side.grouped("teachers").items())[:HEADS]:
        best = sorted(rows, key=lambda r: r["rank"])[:SHOWN]
        tables.append(
            {
                "head": head_link(name),
                "role": chip(t, taught.get(name) or side.by_head[name]["role"]),
                "rows": [_row(t, r, tokens.get((name, r["example"]))) for r in best],
            }
        )
    return tables


def _row(t: HeadWords, r: Row, tokens: list[Row] | None) -> dict[str, Any]:
    n = t.numbers
    beyond = r.get("null_high") is not None and r["credit_nats"] > r["null_high"]
    return {
        "credit": n.signed(r["credit_nats"]),
        "null": n.missing
        if r.get("null_high") is None
        else t("page.teachers.span", low=n(r.get("null_low"), 2), high=n(r["null_high"], 2)),
        "beyond": beyond,
        "movement": n(r.get("movement")),
        "visits": n.whole(r["visits"]) if r.get("visits") is not None else n.missing,
        "group": r.get("group") or "",
        "example": r["example"][:10],
        "text": _shaded(t, tokens) if tokens else Markup.escape(visible_text(r.get("preview") or "")),
    }


def _shaded(t: HeadWords, tokens: list[Row]) -> Markup:
    """The text with each token shaded by what was written through it."""
    top = max(abs(r["shift"]) for r in tokens) or 1.0
    spans = []
    for r in tokens:
        level = min(5, round(5 * abs(r["shift"]) / top))
        shade = "" if not level else f"{'p' if r['shift'] > 0 else 'm'}{level}"
        spans.append(
            Markup('<span class="tok {}" data-tip="{}">{}</span>').format(
                shade, t("page.teachers.token", shift=t.numbers.signed(r["shift"])), visible(r["token"])
            )
        )
    return Markup('<span class="shaded">{}</span>').format(Markup("").join(spans))
