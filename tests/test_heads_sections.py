"""The sections on the page of the heads, worked out again from the tables: every number and name in them."""

from __future__ import annotations

import html
import json
import math
import re
from collections import defaultdict

import pytest

from heads_pages import (
    MADE,
    NUMBER,
    answers,
    beyond,
    born,
    counted,
    flat,
    held_by_role,
    is_near,
    is_percent,
    name_of,
    section,
    short,
)  # fmt: skip
from intaglio.atlas import UNRESOLVED, AtlasData
from intaglio.report.heads import render_heads
from printed import read


@pytest.mark.parametrize("found", MADE)
def test_roles_and_their_checks(found):
    held, checks = held_by_role(found), {r["role"]: r for r in found.rows["checks"]}
    articles = dict(re.findall(r'id="role-(\w+)">(.*?)</article>', section(found, "roles"), re.DOTALL))
    assert set(articles) == {r["role"] for r in found.rows["scores"]} | {"retrieval"}
    for role, markup in articles.items():
        text, mine = flat(markup), held.get(role, [])
        if role == "retrieval":
            assert "Not tested: the model never copies the needle by itself." in text and "heads: 0" not in text
            continue
        assert f"heads: {len(mine)} " in text
        told = re.findall(r"([\d.]+) \(([\d.]+)(?:; [^)]*)?\)", text.partition("Heads and scores:")[2].partition("Taken")[0])
        assert [head for head, _ in told] == [short(r["address"]) for r in mine[:5]]
        assert all(is_near(score, r["score"], 2) for (_, score), r in zip(told, mine))
        assert (f"+{len(mine) - 5} " in text) == (len(mine) > 5)
        if role in checks:
            row = checks[role]
            found_numbers = re.search(rf": ({NUMBER}) → ({NUMBER}) nats per token; random heads of the same layers ({NUMBER}) "
                                      rf"\(({NUMBER}) to ({NUMBER}); draws: (\d+)\)", text)  # fmt: skip
            names = ("loss_nats", "ablated_nats", "random_nats", "random_low", "random_high", "draws")
            assert all(is_near(t, row[n]) for t, n in zip(found_numbers.groups(), names, strict=True))
        else:
            assert ("No causal check was made." in text) == bool(mine)
        assert "score at least 0.1 beyond its null, and p below 0.05" in text


@pytest.mark.parametrize("found", MADE)
def test_groups_by_pattern(found):
    rows = re.findall(r"<tr><td>(.*?)</tr>", section(found, "clusters"), re.DOTALL)
    assert len(rows) == len(found.rows["clusters"])
    for markup, row in zip(rows, found.rows["clusters"]):
        group, name, heads, stability, features, members = (flat(cell) for cell in re.split(r"</td>\s*<td[^>]*>", markup))
        mine = [short(r["address"]) for r in found.rows["heads"] if r["cluster"] == row["cluster"]]
        assert (group, heads) == (str(row["cluster"]), str(row["heads"]))
        assert name == ("unresolved" if row["name"] == UNRESOLVED else name_of(row["name"]))
        assert is_near(stability, row["stability"], 2)
        assert features == "spread (share of the widest) 0.6; on the first token 0.5; along one distance 0.3; 1 back 0.2"
        assert members == ", ".join(mine[:10]) + (f" … +{len(mine) - 10}" if len(mine) > 10 else "")


@pytest.mark.parametrize("found", MADE)
def test_levels_of_the_architecture(found):
    articles = re.findall(r'<article class="level">(.*?)</article>', section(found, "levels"), re.DOTALL)
    assert len(articles) == len(found.rows["levels"])
    for markup, row in zip(articles, found.rows["levels"]):
        told = {flat(k): flat(v) for k, v in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", markup, re.DOTALL)}
        size, share = re.fullmatch(r"(.*) \((.*)\)", told["parameters (share of all)"]).groups()
        assert is_near(size, row["parameters"]) and is_percent(share, row["share"]) and is_near(told["length"], row["weight_l2"])
        assert is_percent(told["in the largest direction"], row["top_share"])
        if row["effective_rank"] is None:
            assert told["effective rank"] == "not measured"
        else:
            rank, full, part = re.fullmatch(r"(.*) of (.*) \((.*)\)", told["effective rank"]).groups()
            assert is_near(rank, row["effective_rank"]) and is_near(full, row["full_rank"])
            assert is_percent(part, row["effective_rank"] / row["full_rank"])
        moved, moved_rank = told["moved since the other checkpoint"].split(", effective rank ")
        assert is_percent(moved, row["moved"]) and is_near(moved_rank, row["moved_rank"])
        assert ("the same matrix as" in told) == bool(row["shared_with"])


def tips(markup: str, pattern: str) -> list[tuple[str, ...]]:
    return [found.groups() for tip in re.findall(r'data-tip="([^"]*)"', markup)
            for line in html.unescape(tip).split("\n") if (found := re.fullmatch(pattern, line))]  # fmt: skip


@pytest.mark.parametrize("found", MADE)
def test_weights_alone(found):
    shown = section(found, "weights")
    dots = tips(shown, rf"([\d.]+), .*: ({NUMBER}) by weights, ({NUMBER}) on text")
    weights = {short(r["address"]): r["ov_copying"] for r in found.rows["weights"]}
    seen = {short(r["address"]): r["score"] for r in found.rows["scores"] if r["role"] == "copying"}
    assert {head for head, *_ in dots} == set(weights) and len(dots) == len(weights)
    assert all(is_near(w, weights[head], 2) and is_near(s, seen[head], 2) for head, w, s in dots)
    edges = tips(shown, rf"([\d.]+) → ([\d.]+), enters the (\w+): composition ({NUMBER}), random directions ({NUMBER}), "
                        rf"({NUMBER}) standard deviations beyond")  # fmt: skip
    for side, name in (("q", "query"), ("k", "key"), ("v", "value")):
        best = sorted((r for r in found.rows["composition"] if r["side"] == side), key=lambda r: -r["excess"])[:14]
        mine = [e for e in edges if e[2] == name]
        assert sorted(e[:2] for e in mine) == sorted((short(r["writer"]), short(r["reader"])) for r in best)
        for edge, row in zip(sorted(mine, key=lambda e: -read(e[5])), best):
            assert is_near(edge[5], row["excess"], 2) and is_near(edge[4], row["null"], 2)
            assert any(is_near(edge[3], r["score"], 2) for r in best if short(r["writer"]) == edge[0])


@pytest.mark.parametrize("found", MADE)
def test_history_lines_and_births(found):
    shown = section(found, "history")
    best = {}
    for r in found.rows["history"]:
        if r["role"] == "induction":
            best[short(r["address"]), r["step"]] = r["score"]
    dots = [d for d in tips(shown, rf"([\d.]+), step ([\d,]+): ({NUMBER})") if re.fullmatch(r"\d+\.\d+", d[0])]
    roles = defaultdict(set)
    for r in found.rows["history"]:
        roles[short(r["address"]), r["step"]].add(float(f"{r['score']:.3g}"))
    assert dots and all(any(is_near(v, s) for s in roles[head, int(step.replace(",", ""))]) for head, step, v in dots)
    births = tips(shown, r"(.+) born in ([\d.]+) between steps ([\d,]+) and ([\d,]+) \(95 % interval ([\d,]+) to ([\d,]+)\)")
    wanted = {(name_of(e["role"]), short(e["address"]), *(f"{e[n]:,}" for n in ("after_step", "step", "low_step", "high_step")))
              for e in found.rows["events"] if e["event"] == "birth"}  # fmt: skip
    assert births and set(births) <= wanted


def test_a_line_is_the_best_of_a_heads_offsets():
    rows = [{"step": s, "address": "L0.attn.H0", "role": "fixed_offset", "detail": str(k), "score": v, "null": 0.0, "named": True}
            for s, k, v in ((0, 2, 0.9), (0, 3, 0.4), (10, 2, 0.3), (10, 3, 0.7))]  # fmt: skip
    shown = section(AtlasData({}, {"history": rows}), "history")
    assert tips(shown, rf"(0\.0), step (\d+): ({NUMBER})") == [("0.0", "0", "0.9"), ("0.0", "10", "0.7")]


@pytest.mark.parametrize("found", MADE)
def test_events_in_the_order_of_their_steps(found):
    rows = re.findall(r"<tr><td>(.*?)</tr>", section(found, "history"), re.DOTALL)
    told = [[flat(cell) for cell in re.split(r"</td>\s*<td[^>]*>", row.removesuffix("</td>"))] for row in rows]
    events = sorted(found.rows["events"], key=lambda e: e["step"])[:40]
    names = {"birth": "birth", "death": "death", "handover": "hand-over"}
    assert told == [
        [names[e["event"]], name_of(e["role"]), short(e["address"]), f"{e['after_step']:,}", f"{e['step']:,}",
         f"{e['low_step']:,}–{e['high_step']:,}", short(e["other"])] for e in events
    ]  # fmt: skip


@pytest.mark.parametrize("found", MADE)
def test_teachers_by_rank_starred_where_beyond_other_heads(found):
    by_head = defaultdict(list)
    for r in found.rows.get("teachers", []):
        by_head[short(r["address"])].append(r)
    tables = re.findall(r"<h3>.*?data-head=\"([\d.]+)\".*?</h3>(.*?)</table>", _teachers(found), re.DOTALL)
    assert [head for head, _ in tables] == list(by_head)[:12]
    for head, table in tables:
        rows = re.findall(r"<tr><td(.*?)</tr>", table, re.DOTALL)
        best = sorted(by_head[head], key=lambda r: r["rank"])[:5]
        assert len(rows) == len(best) == 5
        for markup, row in zip(rows, best):
            credit, null, movement, visits, _ = (flat(c) for c in re.split(r"</td>\s*<td[^>]*>", markup.partition(">")[2]))
            assert credit.endswith(" *") == (row["credit_nats"] > row["null_high"])
            assert is_near(credit.removesuffix(" *").lstrip("+"), row["credit_nats"]) and credit[0] in "+−"
            low, high = null.split(" to ")
            assert is_near(low, row["null_low"], 2) and is_near(high, row["null_high"], 2)
            assert is_near(movement, row["movement"]) and visits == str(row["visits"])
            assert f"{row['group']} · {row['example'][:10]}" in flat(markup)


def _teachers(found: AtlasData) -> str:
    return section(found, "teachers") if found.rows.get("teachers") else ""


def test_a_credit_between_its_nulls_ends_or_without_null_has_no_star():
    row = {"address": "L0.attn.H0", "example": "e", "group": "g", "preview": "p", "visits": 1, "movement": 1.0}
    given = [(0.3, 0.1, 0.2), (0.15, 0.1, 0.2), (-0.5, -0.1, 0.2), (9.0, None, None)]
    rows = [row | {"rank": i, "credit_nats": c, "null_low": low, "null_high": high}
            for i, (c, low, high) in enumerate(given)]  # fmt: skip
    tokens = [{"address": "L0.attn.H0", "example": "e", "position": i, "token": t, "shift": s}
              for i, (t, s) in enumerate([("a", 2.0), ("b", -1.0), ("c", 0.1)])]  # fmt: skip
    events = [born("previous_token", 0, 50), born("induction", 0, 60)]
    now = [row | {"role": "self", "detail": "", "score": 0.9, "null": 0.1, "named": True}]
    found = AtlasData({}, {"teachers": rows, "teacher_tokens": tokens, "events": events, "scores": now})
    shown = section(found, "teachers")
    assert re.findall(r"([+−][\d.]+)( \*)?</td>", shown) == [("+0.3", " *"), ("+0.15", ""), ("−0.5", ""), ("+9", "")]
    assert flat(shown).count("not measured") == 1 and "not measured to" not in flat(shown)
    assert re.findall(r'class="tok (\w*)"', shown)[:3] == ["p5", "m2", ""]
    assert name_of("previous_token") in flat(shown) and name_of("self") not in flat(shown)  # whose loss the credit is for


# --- limits ------------------------------------------------------------------------------------------------------------


def test_what_was_skipped_is_said_once_in_its_place():
    found = AtlasData({"skipped": {"syntax": "no treebank was given", "weights": "why"}, "n_layers": 1, "n_heads": 1},
                      {"heads": counted(0, 0, 1).rows["heads"]})  # fmt: skip
    assert "Not tested: no treebank was given." in flat(section(found, "roles"))
    limits = flat(section(found, "limits"))
    assert "weights alone: why" in limits and "treebank" not in limits


def test_the_answer_is_about_the_first_side():
    found = counted(1, 0, 2)
    found.beside = [counted(3, 0, 0)]
    assert answers(found)[0].startswith("1 of 3 heads has a role") and len(answers(found)) == 2


# --- the wall and the cards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", MADE)
def test_a_cell_is_as_bright_as_its_evidence_and_says_score_and_null(found):
    cells = re.findall(r'class="cell ([^"]*)" href="#head=([\d.]+)"[^>]*aria-label="([^"]*)"', section(found, "wall"))
    heads = {short(r["address"]): r for side in (found, *found.beside) for r in side.rows["heads"]}
    own = {short(r["address"]): r for r in found.rows["heads"]}
    assert len(cells) == sum(len(side.rows["heads"]) for side in (found, *found.beside)) and set(own) == set(heads)
    for kind, head, label in cells[: len(own)]:
        row = own[head]
        if row["role"] == UNRESOLVED:
            assert kind == "none" and label == f"head {head}: unresolved"
            continue
        assert kind.split()[1] == f"e{min(5, 1 + math.floor(5 * beyond(row)))}"
        role, score, null = re.fullmatch(rf"head {head}: (.*), score (.*), null (.*)", html.unescape(label)).groups()
        assert role.startswith(name_of(row["role"])) and is_near(score, row["score"], 2) and is_near(null, row["null"], 2)


def test_of_a_role_without_success_a_card_tells_the_one_furthest_beyond_its_null():
    rows = [{"address": "L0.attn.H0", "role": "coreference", "detail": d, "score": s, "null": n, "named": False}
            for d, s, n in (("en", 0.6, 0.55), ("ru", 0.4, 0.1))]  # fmt: skip
    page = render_heads(AtlasData({}, {"scores": rows}))
    side = json.loads(re.search(r'id="heads-data">(.*?)</script>', page, re.DOTALL)[1])["sides"][0]
    assert [s[:3] for s in side["scores"]["0.0"]] == [["coreference", "ru", 0.4]] and side["tested"] == {"0.0": 2}


def test_a_card_says_of_a_check_what_the_section_says():
    for found in MADE:
        for lang in ("en", "ru"):
            page = render_heads(found, lang=lang)
            side = json.loads(re.search(r'id="heads-data">(.*?)</script>', page, re.DOTALL)[1])["sides"][0]
            articles = dict(re.findall(r'id="role-(\w+)">(.*?)</article>', page, re.DOTALL))
            assert set(side["checks"]) == {r["role"] for r in found.rows["checks"]} != set()
            for role, check in side["checks"].items():
                assert flat(articles[role]).count(check["verdict"]) == 1
