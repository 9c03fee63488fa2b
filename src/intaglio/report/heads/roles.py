"""Every role: who has it, what removing its heads did, how it is measured and what that cannot say."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.atlas import ROLES
from intaglio.report.heads.answer import check_sentence
from intaglio.report.heads.seen import Row, Seen, short
from intaglio.report.heads.wall import chip, head_link
from intaglio.report.heads.words import HeadWords, in_order

SHOWN = 5  # heads of a role
SAID = ("formula", "null", "limits", "source")


def role_rows(t: HeadWords, side: Seen) -> list[dict[str, Any]]:
    """One entry per role that was tested, skipped or checked."""
    named = side.holders()
    checks = {r["role"]: r for r in side.of("checks")}
    skipped = {role: why for role, why in (side.about.get("skipped") or {}).items() if role in ROLES}
    rules = side.about.get("rules") or {}
    tested = {r["role"] for r in side.of("scores")} | {r["role"] for r in side.of("history")}
    roles = in_order({*named, *checks, *skipped, *tested})
    return [
        {
            "role": role,
            "chip": chip(t, role),
            "one": t(f"roles.{role}.one") if f"roles.{role}.one" in t else "",
            "n": t.numbers.whole(len(named.get(role, []))),
            "heads": _heads(t, named.get(role, [])),
            "tested": role in tested,
            "check": check_sentence(t, checks[role]) if role in checks else None,
            "skipped": t.said(skipped[role]) if role in skipped else None,
            "rule": _rule(t, rules.get(role)),
            "said": [
                (t(f"page.roles.{what}"), t(f"roles.{role}.{what}")) for what in SAID if f"roles.{role}.{what}" in t
            ],
        }
        for role in roles
    ]


def left_out(t: HeadWords, side: Seen) -> list[tuple[Markup, Markup]]:
    """What else could not be measured, and why."""
    rest = {name: why for name, why in (side.about.get("skipped") or {}).items() if name not in ROLES}
    named = {name: t(f"page.part.{name}") if f"page.part.{name}" in t else Markup.escape(name) for name in rest}
    return [(named[name], t.said(str(why))) for name, why in rest.items()]


def _heads(t: HeadWords, rows: list[Row]) -> Markup:
    shown = Markup(", ").join(
        Markup("{} ({}{})").format(
            head_link(short(r["address"])), t.numbers(r.get("score"), 2), f"; {r['detail']}" if r.get("detail") else ""
        )
        for r in rows[:SHOWN]
    )
    return shown + (f" … +{len(rows) - SHOWN}" if len(rows) > SHOWN else "")


def _rule(t: HeadWords, rule: Any) -> str:
    """The rule by which a role is named, as the atlas gives it: the smallest effect with the level of p, or words."""
    if isinstance(rule, dict) and rule.keys() >= {"smallest", "level"}:
        return str(t("page.roles.least", smallest=t.numbers(rule["smallest"]), level=t.numbers(rule["level"])))
    return str(t.said(rule)) if isinstance(rule, str) else ""
