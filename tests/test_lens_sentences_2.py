"""What lenses on the parts and on the setting say, worked out again from their tables: every number and every name."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest

from decisions import MADE, entropy, logits_of, softmax, traced, whole
from printed import checked, collected, half, num, pct, ranks_agree, signed, tok, toks

CHECKS = {}
lens = collected(CHECKS)


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("name", ["votes", "residual", "neurons", "rotary", "temperature", "sampling"])
def test_every_sentence(case, name):
    checked(CHECKS[name], traced(case))


def by_part(trace) -> dict[str, float]:
    return {a: whole([r for r in trace.rows["votes"] if r["address"] == a]) for a in {r["address"] for r in trace.rows["votes"]}}


@lens
def votes(trace, n, tables, said):
    parts, about = by_part(trace), trace.about
    lead, target, against = sum(parts.values()), about["target"], about["against"]
    kinds = [
        sum(v for a, v in parts.items() if ".attn.H" in a), sum(v for a, v in parts.items() if re.fullmatch(r"L\d+\.mlp", a)),
        sum(v for a, v in parts.items() if a.startswith("embed")),
    ]  # fmt: skip
    said("Of the difference of {} logits attention gave {}, MLPs {}, the embedding {} and biases {}.", signed(lead),
         *map(signed, kinds), signed(round(lead - sum(kinds), 9)))  # fmt: skip
    plus, minus = (sum(v for v in parts.values() if v * sign > 0) for sign in (1, -1))
    said("Votes of {} stand against votes of {}: {} of what was put on the scales is left.", signed(plus), signed(minus),
         pct(abs(lead) / (plus - minus)))  # fmt: skip
    if against is not None:
        sides = sorted((target, against), key=lambda t: -t["probability"])
        said("In odds: {} is {} times as likely as {}.", tok(sides[0]["text"]),
             num(sides[0]["probability"] / sides[1]["probability"]), tok(sides[1]["text"]))  # fmt: skip
    moved = [sum(v for a, v in parts.items() if a.startswith(f"L{i}.")) for i in range(about["layers"])]
    most = max(range(len(moved)), key=lambda i: abs(moved[i]))
    said("Layer {} moved the difference most, by {}.", most, signed(moved[most]))
    effects = [r for r in trace.rows.get("effects", ()) if r["ablation"] == "mean"]
    if not effects:
        said("No part was replaced in this run, so how far votes and effects agree is not known.", mark="unknown")
        return
    said("Over {} parts that were replaced, the rank correlation between direct vote and measured effect is {}.", len(effects),
         num(ranks_agree([parts[r["address"]] for r in effects], [r["effect_logits"] for r in effects])))  # fmt: skip
    working = [r for r in effects if r["own_logits"] > 0.05]
    if working:
        share = sum(r["others_logits"] for r in working) / sum(r["own_logits"] for r in working)
        said("When parts that vote for the token are taken out one by one, parts after them " +
             ("lose another {} on top of the votes lost: votes alone understate them." if share > 0 else
              "make up for {} of the votes lost: votes alone overstate them."), pct(abs(share)), mark="heuristic")  # fmt: skip
    top = max(effects, key=lambda r: abs(r["effect_logits"]))
    terms = [r for r in trace.rows["effect_terms"] if r["ablation"] == "mean" and r["address"] == top["address"]]
    term = max(terms, key=lambda r: abs(r["change_logits"]))
    said("The strongest effect is that of {}; the vote it changed most is that of {}, which fell by {}.", top["address"],
         term["part"], signed(term["change_logits"]))  # fmt: skip


@lens
def residual(trace, n, tables, said):
    rows, pairs = tables["writes"], tables["pairs"]
    plus, minus = (sum(r["vote_logits"] for r in rows if r["vote_logits"] * sign > 0) for sign in (1, -1))
    said("The embedding, attention and MLPs put {} and {} logits on the scales; what they cancel among themselves leaves {} of "
         "the whole.", signed(plus), signed(minus), pct(abs(plus + minus) / (plus - minus)))  # fmt: skip
    longest, loudest = max(rows, key=lambda r: r["length"]), max(rows, key=lambda r: abs(r["vote_logits"]))
    if longest is loudest:
        said("The longest write is also the loudest vote: {}, {} long, {} of the final state lies along it, and it votes {}.",
             longest["address"], num(longest["length"]), pct(longest["share"]), signed(longest["vote_logits"]))  # fmt: skip
    else:
        said("The longest write is that of {}, {} long: {} of the final state lies along it and it votes {}; the loudest vote "
             "is that of {}, {}, with a length of {}.", longest["address"], num(longest["length"]), pct(longest["share"]),
             signed(longest["vote_logits"]), loudest["address"], signed(loudest["vote_logits"]),
             num(loudest["length"]))  # fmt: skip
    long = max(rows, key=lambda r: abs(r["share"]))
    length = long["length"] * long["cos_end"] / long["share"]  # both are w . x, over |w| |x| and over |x|^2
    said("All writes together are {} long, their sum {}; writes that have nothing to do with each other would leave {}.",
         num(sum(r["length"] for r in rows)), num(length), num(math.sqrt(sum(r["length"] ** 2 for r in rows))))  # fmt: skip
    sizes = {r["address"]: r["length"] for r in rows}
    for pair in pairs:
        both = 2 * sizes[pair["first"]] * sizes[pair["second"]] * pair["cosine"] / length**2
        assert pair["share"] == pytest.approx(both, abs=1e-4)
    pairs = sorted(pairs, key=lambda p: p["share"])
    if pairs[-1]["share"] > 0:
        said("{} and {} reinforce each other most (cosine {}): their agreement makes {} of the state's squared length.",
             pairs[-1]["first"], pairs[-1]["second"], signed(pairs[-1]["cosine"]), pct(pairs[-1]["share"]))  # fmt: skip
    if pairs[0]["share"] < 0:
        said("{} and {} cancel most (cosine {}): their opposition takes {} off the state's squared length.", pairs[0]["first"],
             pairs[0]["second"], signed(pairs[0]["cosine"]), pct(-pairs[0]["share"]))  # fmt: skip
    erasers = sorted((r for r in rows if r["address"] != "embed" and r["cos_before"] < -0.3), key=lambda r: r["cos_before"])
    if erasers:
        said("Writes that point against what stands there (cosine below −0.3): {} of {}, {} most with {}; they take back part "
             "of it.",
             len(erasers), 2 * trace.about["layers"], erasers[0]["address"], signed(erasers[0]["cos_before"]))  # fmt: skip
    least, median, most = (n[f"gain_{k}"] for k in ("least", "median", "most"))
    for row in tables["coordinates"]:
        assert least - 1e-6 <= abs(row["gain"]) <= most + 1e-6
    said("The final norm's gain runs from {} to {} with a median of {}, by size; {} of {} are below zero; it turns the state by "
         "{} degrees.", num(least), num(most), num(median), n["gain_negative"], trace.about["width"],
         num(n["turn_degrees"]))  # fmt: skip
    same = n["even_top"] == trace.rows["candidates"][0]["text"]
    would = "choice would still be" if same else "first token would be"
    said(f"With all gains equal (and the state as long as before) the {would} {{}}; the difference asked about would be {{}} "
         f"where it is "
         "{}.", tok(n["even_top"]), signed(n["even_difference"]), signed(trace.about["difference_logits"]))  # fmt: skip
    said("Half of what all coordinates put on the scales comes from {} of {}.", n["half"], trace.about["width"])
    shown = [abs(r["vote_logits"]) for r in tables["coordinates"]]
    rest = trace.about["width"] - len(shown)  # none of these has more than the last one shown
    assert n["half"] > len(shown) or half(shown, sum(shown)) <= n["half"] <= half([*shown, *[shown[-1]] * rest])
    if n["largest_before"] > 0.05:
        known = [r for r in tables["coordinates"] if r["coordinate"] == n["largest"]]
        assert not known or known[0]["gain"] == n["largest_gain"]
        said("One coordinate, number {}, holds {} of the state's squared length before the gain and {} after it; its gain is {}.",
             n["largest"], pct(n["largest_before"]), pct(n["largest_after"]), signed(n["largest_gain"]))  # fmt: skip
        said("Coordinates that outweigh all others are common in language models (Dettmers et al. 2022, Sun et al. 2024).",
             mark="known")


@lens
def neurons(trace, n, tables, said):
    rows, token = tables["neurons"], tok(trace.about["target"]["text"])
    first = max(rows, key=lambda r: abs(r["vote_logits"]))
    kept = trace.rows["neurons"]
    assert f"L{kept[0]['layer']}.mlp.N{kept[0]['neuron']}" == first["address"]
    up, down = (toks([x["text"] for x in first[k][:3]]) for k in ("promotes", "demotes"))
    said("The strongest neuron is {} with a vote of {} logits; it promotes {} most and demotes {}.", first["address"],
         signed(kept[0]["vote_logits"]), up, down)  # fmt: skip
    assert first["promotes"][0]["logits"] > 0 > first["demotes"][0]["logits"]
    total = n["for_logits"] - n["against_logits"]
    sizes = [r["vote_logits"] for r in kept]
    carried = half(sizes, total) if sum(map(abs, sizes)) >= total / 2 else n["half"]
    said("All neurons together put {} and {} on the scales; half of that comes from {} of {}, and {} from the strongest alone.",
         signed(n["for_logits"]), signed(n["against_logits"]), carried, n["neurons"], pct(abs(sizes[0]) / total))  # fmt: skip
    said("With {} silenced at the last position alone, the difference falls by {}; its own vote was {}, the rest is what later "
         "parts and the final norm made of it.", first["address"], signed(first["effect_logits"]),
         signed(first["vote_logits"]))  # fmt: skip
    named = sum(r["target_rank"] < 10 for r in rows)
    for row in rows:
        assert [x["text"] for x in row["promotes"]].count(trace.about["target"]["text"]) == (row["target_rank"] < 6)
    if named:
        said("Of the {} strongest neurons, those that hold {} among the ten tokens they promote most: {}.", len(rows), token,
             named)
    rare = sum(r["as_strong"] <= 0.02 for r in rows)
    said("Of the {} strongest neurons, those that fire as strongly as here on at most 2% of the {} tokens of the reference "
         "text: {}.", len(rows), n["reference"], rare)  # fmt: skip
    patterns = []
    for row in rows:
        own = [c for c in tables["contexts"] if c["address"] == row["address"]]
        for field, where, what in (("token", "on", "be a detector of"), ("next", "before", "predict")):
            for word, times in Counter(c[field].strip().lower() for c in own).most_common(1):
                if times > 2 and re.search(r"[^\W\d_]", word) and not re.fullmatch("(<[0-9a-f]{2}>)+", word):
                    patterns.append((f"{{}} fires most {where} {{}} ({{}} of its {{}} strongest places), so it may {what} that "
                                     f"word.", row["address"], tok(word), times, len(own)))  # fmt: skip
    if patterns:
        said(*patterns[0], mark="heuristic")
    said("In language models, early MLP neurons tend to answer to surface patterns and late ones to meanings, and their values "
         "promote tokens that fit (Geva et al. 2021, 2022).", mark="known")  # fmt: skip
    said("What else fires these neurons is not known: the reference text has {} tokens.", n["reference"], mark="unknown")


@lens
def rotary(trace, n, tables, said):
    first, was = trace.rows["candidates"][0], trace.about["target"]["probability"]
    for way, what in (("positions", "all positions"), ("base", "the base of the angles")):
        rows = {r["factor"]: r for r in tables["scales"] if r["way"] == way}
        assert rows[1]["probability"] == pytest.approx(was, rel=1e-4)
        turned = sorted((f for f, r in rows.items() if r["first_changed"]), key=lambda f: abs(math.log(f)))
        low = min(f for f in rows if not any(f <= x < 1 for x in turned))
        high = max(f for f in rows if not any(1 < x <= f for x in turned))
        if turned:
            one = rows[turned[0]]
            said("{} stays first while " + what + (" are" if way == "positions" else " is") + " multiplied by {} to {} (of the "
                                                                                              "factors tried); at × {} {} comes "
                 "first and the token asked about has {} instead of {}.", tok(first["text"]), num(low), num(high),
                 num(turned[0]), tok(one["first"]), pct(one["probability"]), pct(was))  # fmt: skip
        else:
            one = max(rows.values(), key=lambda r: abs(r["probability"] - was))
            said("With " + what + " multiplied by {} to {} {} stays first; the token asked about moves most at × {}, to {} from "
                                  "{}.",
                 num(low), num(high), tok(first["text"]), num(one["factor"]), pct(one["probability"]), pct(was))  # fmt: skip
    votes = {r["address"]: [v for v in trace.rows["votes"] if v["address"] == r["address"]] for r in tables["edges"]}
    edge = max(tables["edges"], key=lambda r: abs(whole(votes[r["address"]])))
    read = max(votes[edge["address"]], key=lambda r: abs(r["vote_logits"]))
    letters = trace.rows["prompt"][read["source"]]["letters"] or read["token"]
    assert edge["over"] == pytest.approx(edge["fast"] + edge["slow"] + edge["unturned"], abs=1e-6)
    turn = [(math.inf if p["tokens_per_turn"] is None else p["tokens_per_turn"], p["over"]) for p in edge["pairs"]]
    fast, slow = (sum(v for t, v in turn if (t <= trace.about["tokens"]) == quick) for quick in (True, False))
    text = ("{} takes its vote mostly from {}, distance {}: its score there differs by {} from the mean of the other tokens, {} "
            "of it from pairs that turn full circle within this text")  # fmt: skip
    values = (edge["address"], tok(letters), trace.about["tokens"] - 1 - read["source"], signed(edge["over"]), signed(fast),
              signed(slow))
    if edge["unturned"]:
        said(text + ", {} from slower ones and {} from coordinates that are not turned.", *values,
             signed(edge["over"] - fast - slow))
    else:
        said(text + " and {} from slower ones.", *values)
    near = [r for r in tables["distances"] if r["distance"] < 4]
    said("Of the attention that the deciding token pays to tokens other than the first, the nearest 4 get {} in the mean over "
         "heads; by distance alone it would be "
         "{}.", pct(sum(r["measured"] for r in near)), pct(sum(r["alone"] for r in near)))  # fmt: skip
    known = {r["address"]: r["correlation"] for r in tables["profiles"] if r["correlation"] is not None}
    if known:
        assert n["best_correlation"] >= max(known.values())
        assert known.get(n["best"], n["best_correlation"]) == n["best_correlation"]
        assert n["median_correlation"] <= n["best_correlation"]
        said("Across distances, the scores expected from distance alone and the real ones have a correlation of {} in the "
             "median head and of {} in "
             "{}.", signed(n["median_correlation"]), signed(n["best_correlation"]), n["best"])  # fmt: skip
    else:
        said("The prompt is too short to tell how far scores follow distance.", mark="unknown")
    kinds, layers = tables["kinds"], trace.about["layers"]
    turning = sum(len(k["layers"]) for k in kinds)
    if turning < layers:
        said("Layers that turn nothing: {} of {}; there only the mask tells what comes before what.", layers - turning, layers)
    if len(kinds) > 1:
        order = sorted(kinds, key=lambda k: k["longest_tokens"])
        said("The layers do not all turn alike ({} kinds): in {} the slowest pair takes {} tokens for a full turn, in {} {}.",
             len(kinds), len(order[0]["layers"]), num(order[0]["longest_tokens"]), len(order[-1]["layers"]),
             num(order[-1]["longest_tokens"]))  # fmt: skip
    said("In trained models fast pairs serve heads that look at fixed distances, while most of a score's size sits in the "
         "slowest pairs, which hardly feel distance and so can carry content (Barbero et al. 2024).", mark="known")  # fmt: skip


def crossing(rises) -> float:
    """Where a rising function of T passes 0."""
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rises(middle) >= 0 else (middle, high)
    return high


@lens
def temperature(trace, n, tables, said):
    logits = np.sort(logits_of(trace))[::-1]
    rows, about = trace.rows["candidates"], trace.about
    first, second = tok(rows[0]["text"]), tok(rows[1]["text"])
    if softmax(logits, 1e-3)[0] <= 0.5:
        said("{} and {} are tied at the top, so at no temperature does the first hold more than half.", first, second)
    else:
        at = crossing(lambda t: 0.5 - softmax(logits, t)[0])
        said("{} stays the likeliest token at every temperature" + ("; from T = {} on" if at >= 1 else ", but already from T = "
                                                                                                       "{} on, below "
             "1,") + " all other tokens together are likelier than it.", first, num(at))  # fmt: skip
    pairs = [(rows[0], rows[1])]
    if about["against"] is not None:
        pairs.append(tuple(sorted((about["target"], about["against"]), key=lambda r: -r["logit"])))
    elif about["target"]["rank"] > 1:
        pairs.append((rows[0], about["target"]))
    for ahead, behind in {(a["token"], b["token"]): (a, b) for a, b in pairs}.values():
        gap = ahead["logit"] - behind["logit"]
        if not gap:
            said("{} and {} have the same logit, so they are equally likely at every temperature.", tok(behind["text"]),
                 tok(ahead["text"]))  # fmt: skip
            continue
        said("{} has {} of the probability of {} at T = 1; it would have a tenth at T = {} and half at T = {}, and it would "
             "never reach all of it.", tok(behind["text"]), pct(behind["probability"] / ahead["probability"]), tok(ahead["text"]),
             num(gap / math.log(10)), num(gap / math.log(2)))  # fmt: skip
    said("Over all temperatures of the table no token of the whole vocabulary passed another.")
    if about["target"]["rank"]:
        said("{} lies behind {}, so no temperature makes it the first; a cut, a penalty or a draw can.",
             tok(about["target"]["text"]), first, mark="known")  # fmt: skip
    said("Entropy is {} nats at T = 1, {} at T = 0.1 and {} at T = 5; all tokens equal would be {}.",
         num(entropy(softmax(logits))),
         num(entropy(softmax(logits, 0.1))), num(entropy(softmax(logits, 5))), num(math.log(len(logits))))  # fmt: skip
    rises = {}
    for t in (math.exp(k / 20) for k in range(-70, 71)):
        p = softmax(logits, t)
        rises[t] = (p * (logits - p @ logits) ** 2).sum() / t**3  # dH/dT
        if 0.1 < t < 10:
            slope = (entropy(softmax(logits, t * 1.001)) - entropy(softmax(logits, t / 1.001))) / (0.002 * t)
            assert rises[t] == pytest.approx(slope, rel=1e-2, abs=1e-6)
    said("Entropy rises fastest near T = {}: around it a small change of the setting changes most.",
         num(max(rises, key=rises.get)))
    few = min(10, len(logits) - 1)
    said("From T = {} on the tokens after the first {} hold more than half of the probability.",
         num(crossing(lambda t: 0.5 - softmax(logits, t)[:few].sum())), few)  # fmt: skip
    said("Which temperature gives true frequencies for this text is not known from one decision: it takes a test set with known "
         "answers.", mark="unknown")  # fmt: skip


def shown(text: str) -> str:
    return text.strip().replace("\n", "⏎")


@lens
def sampling(trace, n, tables, said):
    logits, rows, about = logits_of(trace), trace.rows["candidates"], trace.about
    p, target, first = softmax(logits), about["target"], rows[0]
    order = np.sort(p)[::-1]
    said("Top-p 0.9 leaves {} of {} tokens in the draw here, min-p 0.1 leaves {}; top-k 50 keeps {} of the probability.",
         int((order.cumsum() - order < 0.9).sum()), len(p), int((p >= 0.1 * p.max()).sum()), pct(order[:50].sum()))  # fmt: skip
    own = p[target["token"]]
    ahead = p[p > own].sum()
    if own == p.max():
        said("{} is the likeliest token and survives every cut.", tok(target["text"]))
    elif ahead > 0.99:
        said("{} can be drawn only with top-k of {} or more, a top-p less than {} below 1 and min-p up to {}.",
             tok(target["text"]), int((p > own).sum()) + 1, num(1 - ahead), num(own / p.max()))  # fmt: skip
    else:
        said("{} can be drawn only with top-k of {} or more, top-p above {} and min-p up to {}.", tok(target["text"]),
             int((p > own).sum()) + 1, num(ahead), num(own / p.max()))  # fmt: skip
    new = max((i for i in range(len(logits)) if i not in about["ids"]), key=lambda i: logits[i])
    best, other = first["logit"], logits[new]
    if first["token"] not in about["ids"]:
        said("{} does not stand in the text before, so a repetition penalty does not touch it.", tok(first["text"]))
    elif best * other <= 0:
        said("{} stands in the text before, but no repetition penalty takes the first place from it.", tok(first["text"]))
    else:
        said("{} stands in the text before: from a repetition penalty of {} on {} comes first instead.", tok(first["text"]),
             num(max(best / other, other / best)), tok(trace.decision.written(new)))  # fmt: skip
        said("A repetition penalty divides positive logits and multiplies negative ones, though a model's logits have no zero "
             "of their own: how hard it hits depends on an offset that changes no probability.", mark="known")  # fmt: skip
    if "texts" not in tables:
        said("The prompt fills the context, so nothing could be written after it.", mark="unknown")
        return
    texts = tables["texts"]
    drawn = [tuple(r["tokens"]) for r in texts if r["draw"]]
    said("Of {} continuations of {} tokens drawn with various settings and seeds, {} begin with {}, and {} differ from each "
         "other.",
         len(drawn), max(len(r["tokens"]) for r in texts), sum(t[0] == target["token"] for t in drawn), tok(target["text"]),
         len(set(drawn)))  # fmt: skip
    finished, steps = max(tables["finished"], key=lambda r: r["score"]), min(8, n["steps"])
    greedy, beam = texts[0]["tokens"][:steps], [r["token"] for r in tables["beams"] if r["best"]]
    written = shown(trace.decision.text(greedy))
    assert finished["text"] == trace.decision.text(beam)
    if beam == greedy:
        said("A beam of 4 over {} tokens finds the same text as greedy search: “{}”, {} nats.", steps, written,
             num(finished["nats"]))
    else:
        said("A beam of 4 over {} tokens writes “{}” with a surprise of {} nats in all; greedy search writes “{}” with {}.",
             steps, shown(finished["text"]), num(finished["nats"]), written, num(n["greedy_nats"]))  # fmt: skip
    picked = max(tables["contrast"], key=lambda r: r["score"])
    text = shown(n["contrast_text"])
    if picked["token"] == first["token"]:
        said("Contrastive search (k 4, α 0.6) also begins with the likeliest token {}, and writes “{}”.", tok(picked["text"]),
             text)
    else:
        said("Contrastive search (k 4, α 0.6) begins with {}, not with {}, whose state is too much like the text before; it "
             "writes “{}”.", tok(picked["text"]), tok(first["text"]), text)  # fmt: skip
        assert next(r for r in tables["contrast"] if r["token"] == first["token"])["likeness"] > picked["likeness"]
    for row in (r for r in tables["survivors"] if r["name"] == "shipped"):
        said("The setting shipped with this model leaves {} tokens in the draw, {} first.", row["kept"], tok(row["first_text"]))
    said("Which setting writes the better text is not known from probabilities: people have to judge it.", mark="unknown")
