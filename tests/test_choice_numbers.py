"""The numbers a decision's page prints, worked out again from its tables alone.

Nothing of `analyse` or `report` is used for what is expected. A swapped column, a wrong sign or a sum over the
wrong rows fails here.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import replace

import pytest

from conftest import save_subject
from intaglio.choice import why
from intaglio.model.subject import load_subject
from printed import NUMBER, about, half, printed, read
from reader import Reader

PROMPT = "the cat sat on a red"


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    subject = load_subject(save_subject(tmp_path_factory.mktemp("numbers") / "subject", num_hidden_layers=3))
    return why(subject, PROMPT, against="a", lenses=["votes", "distribution"])


@pytest.fixture(scope="module")
def page(trace) -> str:
    return trace.to_html()


@pytest.fixture(scope="module")
def text(page) -> str:
    return re.sub(r"\s+", " ", Reader(page).text)


@pytest.fixture(scope="module")
def parts(trace) -> dict[str, float]:
    """Each part's vote, summed here over its sources."""
    found: dict[str, float] = defaultdict(float)
    for row in trace.rows["votes"]:
        found[row["address"]] += row["vote_logits"]
    return dict(found)


def test_the_three_sentences(trace, text, parts):
    target, second = trace.rows["candidates"][:2]
    assert printed(text, "a probability of #%")[0] == pytest.approx(100 * target["probability"], abs=0.6)
    assert printed(text, ", gets #%")[0] == pytest.approx(100 * second["probability"], abs=0.6)
    lead = sum(parts.values())
    winning = max((a for a in parts if parts[a] * lead > 0), key=lambda a: abs(parts[a]))
    found = printed(text, "logits; the strongest vote for the winning side is @ with #,")
    assert found == [winning, about(parts[winning])]
    assert printed(text, "The lead over a is # logits")[0] == about(lead)
    assert printed(text, "and # of # parts carry half of everything") == [half(list(parts.values())), len(parts)]
    effects = trace.rows["effects"]
    most = max(effects, key=lambda r: abs(r["effect_logits"]))
    found = printed(text, "Of # parts replaced one by one by their mean over ordinary text, @ mattered most: the difference "
                          "falls by #, # of it by its own vote and # through parts downstream;")  # fmt: skip
    assert found == [len(effects), most["address"], about(most["effect_logits"]), about(most["own_logits"]),
                     about(most["others_logits"])]  # fmt: skip


def test_parts_that_do_more_than_they_say_are_counted(trace, parts):
    """A tiny model's effects are too small to count, so all logits are made larger, and effects more than votes."""
    loud = {name: [{k: v if v is None or not k.endswith("_logits") else 120 * v if k == "effect_logits" else 60 * v
                    for k, v in row.items()} for row in rows] for name, rows in trace.rows.items()}  # fmt: skip
    text = re.sub(r"\s+", " ", Reader(replace(trace, rows=loud).to_html()).text)
    wanted = sum(abs(120 * r["effect_logits"]) > 2 * abs(60 * parts[r["address"]]) + 0.1 for r in trace.rows["effects"])
    assert printed(text, "parts that do more than twice what their own vote says, and by over 0.1 logits: #")[0] == wanted > 0
    assert wanted < sum(abs(120 * r["effect_logits"]) > abs(60 * parts[r["address"]]) + 0.1 for r in trace.rows["effects"])


def test_surprise_and_attention_are_the_models_own(trace):
    for row in trace.rows["candidates"]:
        assert row["surprise_nats"] == pytest.approx(-math.log(row["probability"]), abs=1e-6)
    pattern = {layer: trace.array(f"L{layer}.attn.pattern") for layer in range(trace.about["layers"])}
    for row in trace.rows["votes"]:
        if row["source"] is not None:
            layer, head = map(int, re.findall(r"\d+", row["address"]))
            assert row["attention"] == pytest.approx(float(pattern[layer][head, -1, row["source"]]), abs=1e-6)


def test_the_ledgers_table(trace, text, parts):
    lead = sum(parts.values())
    assert printed(text, "All votes sum to the model's own difference of # logits")[0] == about(lead)
    table = text.split("The vote ledger")[-1].split("sum: the model's own difference")[0]
    effects = {r["address"]: r["effect_logits"] for r in trace.rows["effects"]}
    order = sorted(parts, key=lambda a: -abs(parts[a]))[:16]
    rows = re.findall(rf"(L\d+\.(?:attn\.H\d+|mlp)|embed|norm|unembed\.bias)\s*({NUMBER})\s*({NUMBER})?", table)
    seen = {address: (read(vote), effect) for address, vote, effect in rows}
    for address in order:
        vote, effect = seen[address]
        assert vote == about(parts[address]), address
        if address in effects:
            assert read(effect) == about(effects[address]), address
    rest = sum(v for a, v in parts.items() if a not in order)
    if len(parts) > 16:
        assert printed(table, "other parts together #")[0] == about(rest)


def test_bars_run_from_the_sum_so_far_to_the_next(page, parts):
    bars = re.findall(r'<i class="(for|anti)" style="left:([\d.]+)%;width:([\d.]+)%"></i>', page)
    order = sorted(parts, key=lambda a: -abs(parts[a]))
    votes = [parts[a] for a in order[:16]] + ([sum(parts[a] for a in order[16:])] if len(order) > 16 else [])
    ends = [sum(votes[:i]) for i in range(len(votes) + 1)]
    span = max(ends) - min(ends)
    for (sign, left, width), vote, a, b in zip(bars, votes, ends[:-1], ends[1:], strict=True):
        assert sign == ("for" if vote > 0 else "anti")
        assert float(left) == pytest.approx(100 * (min(a, b) - min(ends)) / span, abs=0.02)
        assert float(width) == pytest.approx(100 * abs(vote) / span, abs=0.02)


def test_lines_of_the_picture_are_sums_over_the_heads_of_a_layer(trace, page):
    sums: dict[tuple[int, int], float] = defaultdict(float)
    stems: dict[int, float] = defaultdict(float)
    for row in trace.rows["votes"]:
        found = re.fullmatch(r"L(\d+)\.(attn\.H\d+|mlp)", row["address"])
        if found and row["source"] is not None:
            sums[int(found[1]), row["source"]] += row["vote_logits"]
        elif found:
            stems[int(found[1])] += row["vote_logits"]
    edges = re.findall(r'class="edge (for|anti)"[^>]*data-v="([\d.]+)" data-layer="(\d+)" data-source="(\d+)"', page)
    assert len(edges) == len(sums)
    for sign, size, layer, source in edges:
        total = sums[int(layer), int(source)]
        assert float(size) == pytest.approx(abs(total), abs=1e-4) and sign == ("for" if total > 0 else "anti")
    squares = re.findall(r'class="stem (for|anti)"[^>]*data-v="([\d.]+)" data-layer="(\d+)"', page)
    assert {int(layer): (sign, float(v)) for sign, v, layer in squares} == {
        layer: ("for" if v > 0 else "anti", pytest.approx(abs(v), abs=1e-4)) for layer, v in stems.items()}  # fmt: skip


def test_every_token_says_what_was_read_from_it(trace, page):
    totals: dict[int, float] = defaultdict(float)
    for row in trace.rows["votes"]:
        if row["source"] is not None:
            totals[row["source"]] += row["vote_logits"]
    tips = re.findall(rf"position (\d+)\): ({NUMBER}) logits were read from it", page)
    assert {int(i): read(v) for i, v in tips} == {i: about(v) for i, v in totals.items()}


def test_the_section_of_votes(trace, text, parts):
    kinds = {"attn": 0.0, "mlp": 0.0, "embed": 0.0, "bias": 0.0}
    for address, vote in parts.items():
        ending = "attn" if ".attn.H" in address else address.split(".")[-1]
        kinds[ending if ending in kinds else "bias"] += vote
    found = printed(text, "logits attention gave #, MLPs #, the embedding # and biases #.")
    assert found == [about(kinds[k]) for k in ("attn", "mlp", "embed", "bias")]
    plus = sum(v for v in parts.values() if v > 0)
    minus = sum(v for v in parts.values() if v < 0)
    found = printed(text, "Votes of # stand against votes of #: #%")
    assert found[:2] == [about(plus), about(minus)]
    assert found[2] == pytest.approx(100 * abs(plus + minus) / (plus - minus), abs=0.6)
    own = [(r["own_logits"], r["others_logits"]) for r in trace.rows["effects"] if r["own_logits"] > 0.05]
    share = -sum(o for _, o in own) / sum(w for w, _ in own)
    words = "make up for #% of the votes lost" if share > 0 else "lose another #% on top"
    assert printed(text, words)[0] == pytest.approx(100 * abs(share), abs=0.6)


def test_the_section_of_the_distribution(trace, text):
    rows, vocabulary = trace.rows["candidates"], trace.about["vocabulary"]
    target = trace.about["target"]
    said = "Its surprise is # nats; the whole distribution has an entropy of # nats, as many as #"
    surprise, entropy, alive = printed(text, said)
    assert surprise == about(-math.log(target["probability"])) and entropy == about(trace.about["entropy_nats"])
    assert alive == about(math.exp(trace.about["entropy_nats"]))
    running, at = 0.0, {}
    for count, row in enumerate(rows, 1):
        running += row["probability"]
        for share in (0.5, 0.9):
            if running >= share:
                at.setdefault(share, count)
    found = printed(text, "Half of the probability lies on # of # tokens, nine tenths on #.")
    assert found[:2] == [at[0.5], vocabulary] and (0.9 not in at or found[2] == at[0.9])
    assert printed(text, "; # logits lie between them")[0] == about(rows[0]["logit"] - rows[1]["logit"])
