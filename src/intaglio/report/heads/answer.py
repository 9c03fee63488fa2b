"""The answer in a few sentences with numbers: how many heads, which roles, what they are worth, when they were born."""

from __future__ import annotations

from markupsafe import Markup

from intaglio.report.heads.seen import RESTING, Row, Seen, evidence, loosely_tested, short, verdict
from intaglio.report.heads.wall import chip, head_link, head_links
from intaglio.report.heads.words import HeadWords, in_order

ROLES_SHOWN = 10
BIRTHS_SHOWN = 4  # roles


def answer(t: HeadWords, side: Seen) -> list[tuple[Markup, Markup]]:
    """Question and sentence, for what was measured."""
    told = [
        ("how_many", _how_many(t, side)),
        ("who", _who(t, side)),
        ("worth", _worth(t, side)),
        ("when", _when(t, side)),
    ]
    return [(t(f"page.answer.{key}"), sentence) for key, sentence in told if sentence]


def _bold(value: object) -> Markup:
    return Markup('<b class="num">{}</b>').format(value)


def _how_many(t: HeadWords, side: Seen) -> Markup | None:
    if not side.tested:
        return t("page.says.untested", heads=t.count("heads", len(side.by_head))) if side.by_head else None
    every, named = len(side.by_head), len(side.named)
    resting = sum(row["role"] == RESTING for row in side.named.values())
    values = {"every": every, "named": named - resting, "resting": resting, "unresolved": every - named}
    told = {k: _bold(t.count("heads_of", v) if k == "every" else t.numbers.whole(v)) for k, v in values.items()}
    told |= {
        "have": t.count("have", named - resting),
        "rest": t.count("rest", resting),
        "stay": t.count("stay", every - named),
    }
    told["share"] = t.numbers.percent((every - named) / max(every, 1))
    return t("page.says.rests" if resting else "page.says.how_many", **told)


def _who(t: HeadWords, side: Seen) -> Markup | None:
    holders = side.holders()
    if not holders:
        return t("page.says.nobody") if side.tested else None
    strongest = {role: max(evidence(row) or 0.0 for row in rows) for role, rows in holders.items()}
    roles = sorted(in_order(holders), key=lambda r: (r == RESTING, -strongest[r]))
    parts = [_role(t, role, holders[role]) for role in roles[:ROLES_SHOWN]]
    more = t("page.says.more_roles", n=t.numbers.whole(len(roles) - ROLES_SHOWN)) if len(roles) > ROLES_SHOWN else ""
    return t("page.says.who", roles=Markup("; ").join(parts)) + (Markup(" ") + more if more else "")


def _role(t: HeadWords, role: str, rows: list[Row]) -> Markup:
    best = rows[0]
    score = t.numbers(best.get("score"), 2)
    return t("page.says.role", role=chip(t, role), n=_bold(len(rows)), head=head_link(short(best["address"])), score=score)


def _worth(t: HeadWords, side: Seen) -> Markup | None:
    done = [r for r in side.of("checks") if r.get("ablated_nats") is not None and r.get("random_nats") is not None]
    checks = [r for r in done if not loosely_tested(r)]
    if not checks:
        return None
    held = [r for r in checks if r.get("holds")]
    best = max(held or checks, key=lambda r: r["ablated_nats"] - r["random_nats"])
    n = t.numbers
    told = t(
        "page.says.removed",
        heads=t.count("heads_gen", len(best["heads"])),
        role=chip(t, best["role"]),
        task=t.said(best["task"]),
        loss=_bold(n(best["loss_nats"], 3)),
        ablated=_bold(n(best["ablated_nats"], 3)),
        random=_bold(n(best["random_nats"], 3)),
    )
    draws = min(r["draws"] for r in checks)
    said = t(
        "page.says.checks",
        held=n.whole(len(held)),
        hold=t.count("hold", len(held)),
        checks=t.count("checks", len(checks)),
        draws=n.whole(draws),
        cases=n.whole(draws + 1),
    )
    return told + Markup(" ") + said


def _when(t: HeadWords, side: Seen) -> Markup | None:
    births = sorted((r for r in side.of("events") if r["event"] == "birth"), key=lambda r: r["step"])
    steps = {r["step"] for r in side.of("history")}
    if not steps:
        return None
    if not births:
        return t("page.says.no_births", checkpoints=t.count("checkpoints", len(steps)))
    first: dict[str, list[Row]] = {}
    for row in births:
        mine = first.setdefault(row["role"], [row])
        if row is not mine[0] and row["step"] == mine[0]["step"]:
            mine.append(row)
    parts = [
        t(
            "page.says.birth",
            role=chip(t, role),
            head=head_links([short(row["address"]) for row in rows]),
            after=t.numbers.whole(rows[0]["after_step"]),
            step=t.numbers.whole(rows[0]["step"]),
        )
        for role, rows in list(first.items())[:BIRTHS_SHOWN]
    ]
    if len(first) > BIRTHS_SHOWN:
        parts.append(t("page.says.more_births", n=t.numbers.whole(len(first) - BIRTHS_SHOWN)))
    return t(
        "page.says.births",
        births=_bold(t.count("births", len(births))),
        checkpoints=t.count("checkpoints", len(steps)),
        first=Markup("; ").join(parts),
    )


def check_sentence(t: HeadWords, row: Row) -> Markup:
    """What removing a role's heads did, for the table of roles."""
    n = t.numbers
    if row.get("ablated_nats") is None:
        return t("page.roles.unchecked")
    if row.get("random_nats") is None:
        against = t("page.roles.no_random")
    else:
        span = [n(row[k], 3) for k in ("random_nats", "random_low", "random_high")]
        against = t("page.roles.against", random=span[0], low=span[1], high=span[2], draws=n.whole(row["draws"]))
    said = t(
        "page.roles.removed",
        heads=head_links([short(a) for a in row["heads"]]),
        task=t.said(row["task"]),
        loss=n(row["loss_nats"], 3),
        ablated=n(row["ablated_nats"], 3),
        against=against,
    )
    told = verdict_sentence(t, row)
    if told is None or loosely_tested(row):
        return Markup("{} {}").format(said, told) if told else said
    return Markup('{} <b class="{}">{}</b>').format(said, "ok" if row.get("holds") else "bad", told)


def verdict_sentence(t: HeadWords, row: Row) -> Markup | None:
    """What a check says of its role, in words; None where no random heads could be drawn."""
    key = verdict(row)
    return None if key is None else t(f"page.roles.{key}", cases=t.numbers.whole(row["draws"] + 1))
