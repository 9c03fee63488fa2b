"""What opening a head shows, as data for the page's script: short rows, numbers to four digits.  Pure, no html."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from intaglio.report.choice.words import visible
from intaglio.report.heads.answer import verdict_sentence
from intaglio.report.heads.letters import letters
from intaglio.report.heads.seen import Row, Seen, brief, loosely_tested, short
from intaglio.report.heads.words import HeadWords, colour, in_order

PARTNERS = 5  # strongest compositions of a head, each way
READS = 8  # pairs of tokens per circuit
TEACHERS = 8
LINES = 3  # of a head's history
PROFILE = 129  # distances back


def card_data(t: HeadWords, sides: Sequence[Seen], choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sides, roles and words: all that the script reads.

    Args:
        choices: decisions that heads took part in (`analyse.heads.choices`).
    """
    roles = in_order(
        r["role"] for side in sides for table in ("heads", "scores", "history", "checks") for r in side.of(table)
    )
    words = {key.removeprefix("card."): str(t(key)) for key in t.keys("card.")}
    named = {
        r: {
            "name": str(t.role(r)),
            "colour": colour(r),
            "one": str(t(f"roles.{r}.one")) if f"roles.{r}.one" in t else "",
        }
        for r in roles
    }
    return {
        "words": words,
        "roles": named,
        "sides": [_side(t, side) for side in sides],
        "choices": [_choice(c) for c in choices],
    }


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    """A decision, its tokens visible and its numbers short."""
    heads = {
        name: [brief(vote), brief(effect), place, None if source is None else visible(source)]
        for name, (vote, effect, place, source) in choice["heads"].items()
    }
    against = choice.get("against")
    return {
        "prompt": visible_text(choice["prompt"]),
        "target": visible(choice["target"]),
        "against": against and visible(against),
        "parts": choice["parts"],
        "page": _beside(choice.get("page")),
        "heads": heads,
    }


def _beside(page: str | None) -> str | None:
    """A page's address that no browser takes for anything but a file beside this one."""
    return page if page is None or page.startswith(("./", "../")) else "./" + page


def _side(t: HeadWords, side: Seen) -> dict[str, Any]:
    names = ("score", "low", "high", "null", "evidence")
    more = ("entropy_nats", "distance_tokens", "sink", "template_share", "content_share")
    heads = {
        name: [
            row["role"],
            list(row.get("roles") or []),
            *(brief(row.get(n)) for n in names),
            row.get("cluster"),
            *(brief(row.get(n)) for n in more),
        ]
        for name, row in side.by_head.items()
    }
    texts = [[visible(token) for token in letters(text)] for text in side.about.get("texts", [])]
    return {
        "name": side.name,
        "layers": side.layers,
        "heads": heads,
        "perLayer": side.heads,
        "texts": texts,
        "scores": _scores(side),
        "tested": {head: len(rows) for head, rows in side.grouped("scores").items()},
        "checks": {r["role"]: _check(t, r) for r in side.of("checks")},
        "clusters": {r["cluster"]: [r["name"], r["heads"], brief(r["stability"])] for r in side.of("clusters")},
        "weights": _weights(side),
        "reads": _reads(side),
        "partners": _partners(side),
        "patterns": _patterns(side, len(texts)),
        "places": _places(side),
        "history": _history(side),
        "events": _events(side),
        "teachers": _teachers(side),
    }


def _scores(side: Seen) -> dict[str, list]:
    """Named scores of each head, and of every other role the one furthest beyond its null."""
    names = ("score", "low", "high", "null", "p")
    return {
        head: [
            [r["role"], r.get("detail") or "", *(brief(r.get(n)) for n in names), r.get("samples"), int(bool(r["named"]))]
            for r in _telling(rows)
        ]
        for head, rows in side.grouped("scores").items()
    }


def _telling(rows: list[Row]) -> list[Row]:
    by_role: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_role[row["role"]].append(row)
    kept: list[Row] = []
    for tried in by_role.values():
        named = [r for r in tried if r["named"]]
        kept += named or [max(tried, key=lambda r: (r.get("score") or 0.0) - (r.get("null") or 0.0))]
    return kept


def _check(t: HeadWords, row: Row) -> dict[str, Any]:
    names = ("loss_nats", "ablated_nats", "random_nats", "random_low", "random_high")
    numbers = {n.removesuffix("_nats"): brief(row.get(n)) for n in names}
    return numbers | {
        "heads": [short(a) for a in row["heads"]],
        "task": str(t.said(row["task"])),
        "draws": row.get("draws"),
        "holds": None if loosely_tested(row) else row.get("holds"),
        "verdict": None if (said := verdict_sentence(t, row)) is None else str(said),
    }


def _weights(side: Seen) -> dict[str, dict[str, Any]]:
    names = ("ov_copying", "ov_copying_null", "qk_matching", "qk_matching_null", "ov_rank", "qk_rank", "ov_l2", "qk_l2")
    return {
        short(r["address"]): {n: brief(r.get(n)) for n in names}
        | {"offset": r.get("profile_offset"), "profile": [brief(v, 3) for v in (r.get("profile") or [])[:PROFILE]]}
        for r in side.of("weights")
    }


def _reads(side: Seen) -> dict[str, dict[str, list]]:
    found: dict[str, dict[str, list]] = {}
    for head, rows in side.grouped("reads").items():
        circuits: dict[str, list] = defaultdict(list)
        for r in sorted(rows, key=lambda r: r["rank"]):
            if len(circuits[r["circuit"]]) < READS:
                circuits[r["circuit"]].append([visible(r["source"]), visible(r["token"]), brief(r["value"], 3)])
        found[head] = circuits
    return found


def _partners(side: Seen) -> dict[str, list[list]]:
    """Strongest writers into each head, and strongest readers of it: [other, side, score, null, excess]."""
    found: dict[str, list[list]] = {}
    for i, (own, other) in enumerate((("reader", "writer"), ("writer", "reader"))):
        for head, rows in side.grouped("composition", own).items():
            rows = sorted(rows, key=lambda r: -(r["excess"] if r.get("excess") is not None else r["score"]))[:PARTNERS]
            told = [
                [short(r[other]), r["side"], *(brief(r.get(n), 3) for n in ("score", "null", "excess", "apart"))] for r in rows
            ]
            found.setdefault(head, [[], []])[i] = told
    return found


def _patterns(side: Seen, texts: int) -> dict[str, dict[int, str]]:
    """Packed patterns by text, of the texts whose tokens are told."""
    told = side.grouped("patterns").items()
    return {head: {r["text"]: r["triangle"] for r in rows if r["text"] < texts} for head, rows in told}


def _places(side: Seen) -> dict[str, list[list]]:
    names = ("role", "tensor", "file", "dtype", "shape", "rows", "columns", "start", "stop", "run_bytes", "runs")
    return {
        head: [[r.get(n) for n in names] + [[short(a) for a in r.get("shared_with") or []]] for r in rows]
        for head, rows in side.grouped("places").items()
    }


def _history(side: Seen) -> dict[str, list]:
    """The lines of each head's roles: [role, detail, [[step, score], ...]], the most lasting first."""
    found: dict[str, list] = {}
    for head, rows in side.grouped("history").items():
        lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for r in sorted(rows, key=lambda r: r["step"]):
            if r.get("score") is not None:
                lines[r["role"], r.get("detail") or ""].append(r)
        had = {key: sum(bool(r["named"]) for r in line) for key, line in lines.items()}
        best = sorted((key for key in lines if had[key]), key=lambda key: -had[key])[:LINES]
        found[head] = [[*key, [[r["step"], brief(r["score"], 3)] for r in lines[key]]] for key in best]
    return found


def _events(side: Seen) -> dict[str, list[list]]:
    names = ("event", "role", "step", "after_step", "low_step", "high_step")
    found: dict[str, list[list]] = defaultdict(list)
    for r in side.of("events"):
        other = short(r.get("other") or "")
        found[short(r["address"])].append([*(r.get(n) for n in names), other])
        if other:  # the head that took over tells it too
            found[other].append([*(r.get(n) for n in names), short(r["address"]), 1])
    return found


def _teachers(side: Seen) -> dict[str, list[dict[str, Any]]]:
    tokens: dict[tuple[str, str], list] = defaultdict(list)
    for r in sorted(side.of("teacher_tokens"), key=lambda r: r["position"]):
        tokens[short(r["address"]), r["example"]].append([visible(r["token"]), brief(r["shift"], 3)])
    numbers = ("credit_nats", "movement", "null_low", "null_high")
    found: dict[str, list[dict[str, Any]]] = {}
    for head, rows in side.grouped("teachers").items():
        best = sorted(rows, key=lambda r: r["rank"])[:TEACHERS]
        found[head] = [
            {
                "example": r["example"],
                "group": r.get("group") or "",
                "visits": r.get("visits"),
                "preview": visible_text(r.get("preview") or ""),
                "tokens": tokens.get((head, r["example"]), []),
                **{n: brief(r.get(n), 3) for n in numbers},
            }
            for r in best
        ]
    return found


def visible_text(text: str) -> str:
    """A stretch of text with its breaks visible and its spaces as they are."""
    return " ".join(visible(word) if word else "" for word in text.split(" "))
