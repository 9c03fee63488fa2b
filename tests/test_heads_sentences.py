"""The answer on the page of the heads, worked out again from the tables: every number, name, form and direction."""

from __future__ import annotations

import re

import pytest

from heads_pages import MADE, answers, beyond, born, counted, flat, held_by_role, name_of, section, short
from intaglio.atlas import ROLES, AtlasData
from intaglio.report.heads import render_heads

NO_LOSS = "ordinary text (no loss is known that this role alone should carry)"


def one_or(n: int, one: str, few: str, many: str) -> str:
    return {1: one, 2: few, 5: many, 11: many, 21: one, 0: many}[n]


@pytest.mark.parametrize("n", [1, 2, 5, 11, 21])
@pytest.mark.parametrize("m", [1, 2, 5, 11, 21])
def test_how_many_heads_in_right_forms(n, m):
    found = counted(n, m, n)
    every = 2 * n + m
    share = f"{100 * n / every:.0f}" if n > 0.1 * every else f"{100 * n / every:.1f}".removesuffix(".0")
    has, rests, stays = ("has" if n == 1 else "have"), ("rests" if m == 1 else "rest"), ("stays" if n == 1 else "stay")
    assert answers(found)[0] == (
        f"{n} of {every} heads {has} a role of their own beyond its null; {m} more only {rests} on the first token; "
        f"{n} ({share}%) {stays} unresolved."
    )
    of = "головы" if every % 10 == 1 and every % 100 != 11 else "голов"
    rests, stays = (one_or(n, a, b, b) for n, a, b in ((m, "покоится", "покоятся"), (n, "не определена", "не определены")))
    assert answers(found, "ru")[0].replace("\xa0", " ") == (
        f"Своя роль выше нулевого уровня есть у {n} из {every} {of}; ещё {m} только {rests} на первом токене; "
        f"{stays} {n} ({share.replace('.', ',')} %)."
    )
    if m == n:
        all_heads = f"{n} of {n} head{'s' * (n > 1)} {has} a role beyond its null; 0 (0%) stay unresolved."
        assert answers(counted(n, 0, 0))[0] == all_heads


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_no_role_at_all_and_one_head(lang):
    said = answers(counted(0, 0, 1), lang)
    assert said == {
        "en": ["0 of 1 head have a role beyond its null; 1 (100%) stays unresolved.",
               "No head is beyond the null of any role that was tested."],
        "ru": ["Роль выше нулевого уровня есть у 0 из 1 головы; не определена 1 (100\xa0%).".replace("\xa0", " "),
               "Ни одна голова не поднялась выше нулевого уровня ни в одной из проверенных ролей."],
    }[lang]  # fmt: skip
    assert "role-" not in render_heads(counted(0, 0, 1), lang=lang).split("<main>")[1].split("<script")[0]


@pytest.mark.parametrize("found", MADE)
def test_who_does_what_most_evidence_first(found):
    held = held_by_role(found)
    order = sorted(held, key=lambda role: (role == "first_token", -beyond(held[role][0])))
    told = "; ".join(f"{name_of(r)} {len(held[r])}: {short(held[r][0]['address'])} ({held[r][0]['score']:.2g})" for r in order)
    assert answers(found)[1] == f"Heads that have each role, and the strongest (a head may have several): {told}."


def test_the_strongest_head_is_the_one_of_most_evidence_not_of_the_highest_score():
    rows = [{"address": f"L0.attn.H{i}", "role": "coreference", "detail": "", "score": s, "null": n, "named": True}
            for i, (s, n) in enumerate([(0.8, 0.7), (0.75, 0.2)])]  # fmt: skip
    found = AtlasData({"n_layers": 1, "n_heads": 2}, {"scores": rows})
    assert "coreference 2: 0.1 (0.75)" in answers(found)[1]
    assert re.findall(r'data-head="([\d.]+)"', section(found, "roles")) == ["0.1", "0.0"]


def test_rest_comes_last_where_only_scores_are_there():
    rows = [{"address": "L0.attn.H0", "role": role, "detail": "", "score": s, "null": 0.0, "named": True}
            for role, s in (("first_token", 0.9), ("induction", 0.5))]  # fmt: skip
    assert 'data-role="induction"' in section(AtlasData({}, {"scores": rows}), "wall").split('id="open"')[0].split("wallrow")[-1]


def check_of(ablated: float, *, task: str = "second copy", holds: bool | None = False, draws: int = 5, **more) -> dict:
    spread = {"random_nats": 3.2, "random_low": 2.8, "random_high": 3.5} if draws else dict.fromkeys(
        ("random_nats", "random_low", "random_high"))  # fmt: skip
    return {"role": "induction", "heads": ["L0.attn.H0", "L0.attn.H2"], "task": task, "loss_nats": 3.0, "ablated_nats": ablated,
            **spread, "draws": draws, "holds": holds, **more}  # fmt: skip


VERDICTS = [
    ("second copy", 4.0, True, 5, "The check holds: this costs more than every random draw (idle heads would in one case of 6)."),
    ("second copy", 4.0, True, 1, "The check holds: this costs more than every random draw (idle heads would in one case of 2)."),
    ("second copy", 3.4, False, 5, "The check does not hold: some random draw costs as much."),
    ("second copy", 2.9, False, 5, "The check does not hold: without these heads the loss does not rise."),
    ("second copy", 3.0, False, 5, "The check does not hold: without these heads the loss does not rise."),
    (NO_LOSS, 3.4, False, 5, "Some random draw costs as much, which is no evidence against the role"),
    (NO_LOSS, 2.9, False, 5, "The loss does not rise, which is no evidence against the role"),
    (NO_LOSS, 4.0, True, 5, "so the heads matter to this text; that they do so by this role is not shown"),
    ("second copy", 4.0, None, 0, "nats per token; no random heads to compare with. No"),
]


@pytest.mark.parametrize(("task", "ablated", "holds", "draws", "said"), VERDICTS)
def test_what_a_check_says(task, ablated, holds, draws, said):
    found = AtlasData({"n_layers": 1, "n_heads": 3}, {"checks": [check_of(ablated, task=task, holds=holds, draws=draws)]})
    text = flat(section(found, "roles"))
    against = f"random heads of the same layers 3.2 (2.8 to 3.5; draws: {draws})" if draws else "no random heads to compare with"
    start = f"Taken out together: 0.0, 0.2. Loss ({task}): 3 → {ablated:.2g} nats per token; {against}."
    assert start in text and said.removesuffix(" No") in text
    bold = re.findall(r'<b class="(ok|bad)">', section(found, "roles"))
    assert bold == ([] if task == NO_LOSS or not draws else ["ok" if holds else "bad"])
    others = {v[-1] for v in VERDICTS} - {said}
    assert not [other for other in others if other in text and other not in said]


def test_what_it_is_worth_is_told_by_the_check_that_holds_and_costs_most():
    loose = check_of(90.0, task=NO_LOSS, holds=True, role="self")
    worse = check_of(9.0, holds=False, role="duplicate_token", random_high=10.0)
    best = check_of(4.5, holds=True, role="copying", draws=3)
    found = AtlasData({"n_layers": 1, "n_heads": 3}, {"checks": [loose, worse, check_of(4.0, holds=True), best]})
    assert answers(found)[-1] == (
        "Replacing the 2 strongest heads of copying by mean outputs takes the loss (second copy) from 3 to 4.5 nats per token; "
        "as many random heads of the same layers, to 3.2. Of 3 such checks, 2 hold: there the role's heads cost more than every "
        "random draw (of 3 at least; idle heads would in one case of 4)."
    )
    assert answers(AtlasData({}, {"checks": [loose, check_of(4.0, holds=None, draws=0)]})) == []  # nothing is told of these


@pytest.mark.parametrize(("checks", "held", "english", "russian"), [
    (1, 1, "Of 1 such check, 1 holds:", "Из 1 такой проверки подтвердилась 1:"),
    (2, 0, "Of 2 such checks, 0 hold:", "Из 2 таких проверок подтвердились 0:"),
    (5, 2, "Of 5 such checks, 2 hold:", "Из 5 таких проверок подтвердились 2:"),
    (11, 1, "Of 11 such checks, 1 holds:", "Из 11 таких проверок подтвердилась 1:"),
])  # fmt: skip
def test_checks_are_counted_in_right_forms(checks, held, english, russian):
    rows = [check_of(4.0 if i < held else 2.0, holds=i < held, role=ROLES[i]) for i in range(checks)]
    found = AtlasData({"n_layers": 1, "n_heads": 3}, {"checks": rows})
    assert english in answers(found)[-1] and russian in answers(found, "ru")[-1]


def test_a_loss_that_falls_is_not_said_to_rise():
    said = answers(AtlasData({}, {"checks": [check_of(2.0, holds=False)]}), "ru")[0]
    assert "потеря (second copy) меняется с 3 на 2 нат на токен" in said and "раст" not in said


def steps_of(*steps: int) -> list[dict]:
    return [{"step": s, "address": "L0.attn.H0", "role": "self", "detail": "", "score": 0.1, "null": 0.1, "named": False}
            for s in steps]  # fmt: skip


def test_births_role_by_role_with_all_who_came_first():
    events = [born("self", 3, 70), born("induction", 2, 50), born("induction", 1, 50), born("induction", 0, 60),
              born("copying", 1, 55, "death"), born("self", 4, 40, "handover", "L0.attn.H3")]  # fmt: skip
    found = AtlasData({"n_layers": 1, "n_heads": 5}, {"events": events, "history": steps_of(40, 50, 60, 70, 2000)})
    assert answers(found)[-1] == (
        "4 births of roles over 5 checkpoints: induction first in 0.2, 0.1, between steps 40 and 50; self first in 0.3, between "
        "steps 60 and 70."
    )
    first = "4 рождения ролей за 5 контрольных точек: индукция — впервые в 0.2, 0.1, между шагами 40 и 50"
    assert answers(found, "ru")[-1].startswith(first)
    many = [born(role, 0, 50 + i) for i, role in enumerate(ROLES[:6])]
    said = answers(AtlasData({}, {"events": many, "history": steps_of(0, 90)}))[-1]
    assert said.count("first in") == 4 and said.endswith("; other roles: 2, further down.")


@pytest.mark.parametrize(("births", "points", "english", "russian"), [
    (1, 2, "1 birth of a role over 2 checkpoints: ", "1 рождение роли за 2 контрольные точки: "),
    (2, 11, "2 births of roles over 11 checkpoints: ", "2 рождения ролей за 11 контрольных точек: "),
    (5, 21, "5 births of roles over 21 checkpoints: ", "5 рождений ролей за 21 контрольную точку: "),
    (11, 5, "11 births of roles over 5 checkpoints: ", "11 рождений ролей за 5 контрольных точек: "),
    (21, 2, "21 births of roles over 2 checkpoints: ", "21 рождение роли за 2 контрольные точки: "),
    (0, 21, "Over 21 checkpoints no role is born for good.", "За 21 контрольную точку ни одна роль не родилась насовсем."),
])  # fmt: skip
def test_births_and_checkpoints_in_right_forms(births, points, english, russian):
    events = [born("self", i, 50) for i in range(births)]
    found = AtlasData({"n_layers": 1, "n_heads": 30}, {"events": events, "history": steps_of(*range(points))})
    assert answers(found)[-1].startswith(english) and answers(found, "ru")[-1].startswith(russian)
