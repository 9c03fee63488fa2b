"""What lenses on one decision say, worked out again from their tables: every number and every name of every sentence."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest

from decisions import MADE, by_head, entropy, logits_of, softmax, traced, whole
from printed import checked, collected, half, num, pct, ranks_agree, settled, signed, tok, toks

CHECKS = {}
lens = collected(CHECKS)


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("name", ["distribution", "embedding", "heads", "context", "position"])
def test_every_sentence(case, name):
    checked(CHECKS[name], traced(case))


@lens
def distribution(trace, n, tables, said):
    p = softmax(logits_of(trace))
    rows, target = trace.rows["candidates"], trace.about["target"]
    own, first = p[target["token"]], rows[0]
    if target["token"] == first["token"]:
        said("{} is the likeliest next token with {}, before {} with {}; {} logits lie between them.", tok(target["text"]),
             pct(own), tok(rows[1]["text"]), pct(rows[1]["probability"]), num(first["logit"] - rows[1]["logit"]))  # fmt: skip
    else:
        said("{} has {} and place {}; {} with {} is likelier.", tok(target["text"]), pct(own), int((p > own).sum()) + 1,
             tok(first["text"]), pct(first["probability"]))  # fmt: skip
    said("Its surprise is {} nats; the whole distribution has an entropy of {} nats, as many as {} equally likely tokens would "
         "have.", num(-math.log(own)), num(entropy(p)), num(math.exp(entropy(p))))  # fmt: skip
    running = np.sort(p)[::-1].cumsum()
    said("Half of the probability lies on {} of {} tokens, nine tenths on {}.", int((running < 0.5).sum()) + 1, len(p),
         int((running < 0.9).sum()) + 1)  # fmt: skip
    known = [r for r in tables.get("company", ()) if r["times"]]
    if known:
        word = known[-1]["followed_by"][0]
        said("In the reference corpus the ending {} is followed by a word (places: {}), most often by {} (in {}).",
             tok(known[-1]["ending"]), known[-1]["times"], tok(word["word"]), word["times"])  # fmt: skip
        assert word["times"] == max(w["times"] for w in known[-1]["followed_by"])
        assert len(known[-1]["ending"]) == max(len(r["ending"]) for r in known)
    elif "company" in tables:
        said("The prompt's last words do not occur in the reference corpus, so how often they go on in this way is not known.",
             mark="unknown")  # fmt: skip
    else:
        said("No reference corpus was given, so how often this ending occurs anywhere is not known.", mark="unknown")


@lens
def embedding(trace, n, tables, said):
    way, path = n["contexts"], tables["path"]
    if path:
        low = min(path, key=lambda r: r["likeness"])
        for row in path:
            assert row["likeness"] == pytest.approx((row["cosine"] - row["null"]) / (1 - row["null"]))
        parted = settled([r["likeness"] < 0.5 for r in path])
        middle = "do not come to stay below a half; they are" if parted is None else "stay below a half after {} and are"
        said("The two states of {} start with a likeness of {}" + (" and " if parted is None else ", ") + middle
             + " least alike after {}: {} (1: same direction, 0: no more alike than two different tokens). The cosine there is "
               "{}, that of different tokens {}.", tok(way["text"].strip()), num(path[0]["likeness"]),
             *([] if parted is None else [path[parted]["after"]]), low["after"], num(low["likeness"]), num(low["cosine"]),
             num(low["null"]))  # fmt: skip
        a, b = ((way[k]["before"] + way[k]["word"]).strip() for k in "ab")
        where = {
            "versus": "this prompt, “{}”, and in the other, “{}”", "reference": "this prompt, “{}”, and in the reference text, "
                                                                                "“{}”",
            "placed": "this prompt, “{}”, and put behind a stretch of the reference text, where it does not belong: “{}”",
        }.get(way["kind"])  # fmt: skip
        said("{} was followed in " + where + "." if where else
             "{} was followed at its first place in this prompt, “{}”, and at its last, “{}”.", tok(way["text"].strip()), a,
             b)  # fmt: skip
        said("At the end the first context makes {} likelier to follow than the second does, the second {}.",
             toks(way["goes_on_a"][:3]), toks(way["goes_on_b"][:3]))  # fmt: skip
        said("States of one layer point into a narrow cone in many models, so a cosine tells something only beside that of "
             "different tokens (Ethayarajh 2019).", mark="known")  # fmt: skip
        said("Whether it is the sense that parts the two states, or merely topic and place, two contexts cannot tell.",
             mark="unknown")
    elif way["kind"] == "no_reference":
        said("No word of this prompt stands in a second context, and there is no reference text to take one from, so nothing was "
             "followed through the layers.", mark="unknown")  # fmt: skip
    else:
        said("This prompt holds no word whose state could be followed in two contexts.", mark="unknown")
    asked = next(r for r in tables["asked"] if r["token"] == trace.about["target"]["token"])
    near = {
        matrix: sorted((r for r in tables["neighbours"] if r["matrix"] == matrix and r["role"] == asked["role"]),
                       key=lambda r: -r["cosine"])
        for matrix in ("input", "output")
    }  # fmt: skip
    token, names = tok(trace.about["target"]["text"]), {k: toks([r["text"] for r in rows[:3]]) for k, rows in near.items()}
    best, mean, null = num(near["input"][0]["cosine"]), num(asked["mean_input"]), num(n["null"]["input"])
    if near["output"]:
        common = {r["token"] for r in near["input"]} & {r["token"] for r in near["output"]}
        said("In the input matrix {} lies nearest to {} (cosine {}; {} with all tokens on average, {} for random pairs), in the "
             "output matrix to {} ({}); {} of the {} nearest are in "
             "both.", token, names["input"], best, mean, null, names["output"],
             num(near["output"][0]["cosine"]), len(common), len(near["input"]))  # fmt: skip
    else:
        said("Input and output matrix are one; in it {} lies nearest to {}, with a cosine of {} to the first. Its mean cosine "
             "with all tokens is {}, that of random pairs {}.", token, names["input"], best, mean, null)  # fmt: skip


@lens
def heads(trace, n, tables, said):
    found = by_head(trace)
    order = sorted(found, key=lambda a: -abs(whole(found[a])))
    best = order[0]
    read = {a: max(rows, key=lambda r: r["vote_logits"] * (1 if whole(rows) > 0 else -1)) for a, rows in found.items()}
    said("The strongest head is {} with a vote of {} logits; {} of it was read from {} at position {}.", best,
         signed(whole(found[best])), signed(read[best]["vote_logits"]), tok(read[best]["token"]),
         read[best]["source"])  # fmt: skip
    sums = [whole(rows) for rows in found.values()]
    said("All heads together put {} and {} on the scales; half of that comes from {} of {} heads.",
         signed(sum(v for v in sums if v > 0)), signed(sum(v for v in sums if v < 0)), half(sums), len(sums))  # fmt: skip
    if tables["matched"]:
        row = tables["matched"][0]
        assert row["address"] == best
        source = read[best]
        rival = max((r for r in found[best] if r["source"] != source["source"]), key=lambda r: r["attention"])
        ratio = source["attention"] / rival["attention"]
        sides = [row[k]["parts"][0] for k in ("query", "key")]
        for k, side in zip(("query", "key"), sides):
            sign = 1 if sum(x["score"] for x in row[k]["parts"]) + row[k]["rest"] + row[k]["bias"] > 0 else -1
            assert sign * side["score"] == max(sign * x["score"] for x in row[k]["parts"])
        names = [x for s in sides for x in (s["address"], signed(s["score"]))]
        places = tok(source["token"]), source["source"], tok(rival["token"]), rival["source"]
        if ratio > 1:
            said("{} gives {} (position {}) {} times the attention of {} (position {}), a score higher by {}: towards that {} "
                 "gives most on the query's side ({}) and {} on the key's ({}).", best, *places[:2], num(ratio), *places[2:],
                 signed(row["difference"]), *names)  # fmt: skip
        else:
            said("{} reads its vote from {} (position {}) although {} (position {}) has {} times its attention; towards the "
                 "score difference of {} {} gives most on the query's side ({}) and {} on the key's ({}).", best, *places,
                 num(1 / ratio), signed(row["difference"]), *names)  # fmt: skip
        assert (row["difference"] > 0) == (ratio > 1)
    else:
        said("This family ({}) does its attention out of sight, so what query and key matched on is not known.",
             trace.about["family"], mark="unknown")  # fmt: skip
    target = trace.about["target"]
    voting = [a for a in order[:12] if whole(found[a]) > 0]
    copying = sum(trace.about["ids"][read[a]["source"]] == target["token"] for a in voting)
    if copying:
        said("{} of the {} strongest heads for the token read their vote from {} itself: here they act as copying heads.",
             copying, len(voting), tok(target["text"]), mark="heuristic")  # fmt: skip
    looked = {a: max(rows, key=lambda r: r["attention"]) for a, rows in found.items()}
    most = sum(r["source"] == 0 for r in looked.values())
    sizes = [abs(r["vote_logits"]) for rows in found.values() for r in rows]
    begun = [r for rows in found.values() for r in rows if r["source"] == 0]
    mean = sum(r["attention"] for r in begun) / len(begun)
    share = pct(sum(abs(r["vote_logits"]) for r in begun) / sum(sizes))
    values = most, len(found), pct(mean), pct(1 / trace.about["tokens"]), share
    if most > len(found) / 2:
        said("The first token is a sink here: {} of {} heads look at it most, {} of all attention goes there where an even "
             "spread would give {}, and {} of what was voted was read from it.", *values)  # fmt: skip
        said("Heads that have nothing to read commonly rest on the first token, whose value adds little (Xiao et al. 2023).",
             mark="known")
    else:
        said("Most heads do not rest on the first token here: {} of {} look at it most, {} of all attention goes there (an even "
             "spread would give {}), and {} of what was voted was read from it.", *values)  # fmt: skip
    other = sum(looked[a]["source"] != max(rows, key=lambda r: abs(r["vote_logits"]))["source"] for a, rows in found.items())
    said("In {} of {} heads the token looked at most is not the one that gave most of the vote.", other, len(found))
    if "GptOss" in trace.about["family"]:
        nowhere = sum(1 - sum(r["attention"] for r in rows) for rows in found.values()) / len(found)
        said("This model's heads may look at nothing: {} of the attention goes to no token.", pct(nowhere))


@lens
def context(trace, n, tables, said):
    rows, now, layers = tables["tokens"], trace.about["difference_logits"], trace.about["layers"]
    top = max(rows, key=lambda r: abs(r["influence_logits"]))
    first = trace.rows["candidates"][0]["token"]
    said("{} (position {}) has the largest influence, {} logits: without it the lead of {} becomes {}; in {} of {} runs without "
         "one token another token becomes the first choice.", tok(top["text"]), top["position"], signed(top["influence_logits"]),
         signed(now), signed(now - top["influence_logits"]), sum(r["first_without"] != first for r in rows),
         len(rows))  # fmt: skip
    if top["influence_logits"] > 0:
        other, turn = min(rows, key=lambda r: r["influence_logits"]), "larger"
    else:
        other, turn = max(rows, key=lambda r: r["influence_logits"]), "smaller"
    if other["influence_logits"] * top["influence_logits"] < 0:
        said("{} (position {}) pulls hardest the other way: {} logits; without it the lead would be " + turn + ".",
             tok(other["text"]), other["position"], signed(other["influence_logits"]))  # fmt: skip
    before = [r for r in tables["sentences"] if r["end"] < trace.about["tokens"]]
    roles: dict[str, list[float]] = defaultdict(list)
    for row in before:
        roles[row["role"]].append(row["influence_logits"])
    if before:
        most = max(before, key=lambda r: abs(r["influence_logits"]))
        singles = {r["position"]: r["influence_logits"] for r in rows}
        begin = "Of the sentences before the last one “{}” has the largest influence, {} logits when left out whole; "
        if most["begin"] in singles:
            parts = sum(singles[i] for i in range(most["begin"], most["end"]))
            said(begin + "its tokens taken out one by one add up to {}; the first choice without it is {}.", most["text"].strip(),
                 signed(most["influence_logits"]), signed(parts), tok(most["first_without"]))  # fmt: skip
        else:
            said(begin + "it begins too far back for its tokens to have been taken out one by one; the first choice without it "
                         "is {}.",
                 most["text"].strip(), signed(most["influence_logits"]), tok(most["first_without"]))  # fmt: skip
    if len(roles) > 1:
        role = max(roles, key=lambda r: abs(sum(roles[r])))
        said(f"By role the {role}s weigh most: {{}} of them, {{}} logits.", len(roles[role]), signed(sum(roles[role])),
             mark="heuristic")
    if tables["needle"]:
        order = sorted(tables["needle"], key=lambda r: r["difference_logits"])
        low, high = order[0], order[-1]
        said("Moved through the {} places before the last sentence, “{}” gives a lead between {} (place {}) and {} (place {}).",
             len(order), most["text"].strip(), signed(low["difference_logits"]), low["place"] + 1,
             signed(high["difference_logits"]), high["place"] + 1)  # fmt: skip
        (own,) = (r for r in order if r["own"])
        assert own["difference_logits"] == pytest.approx(now, abs=1e-4) and before[own["place"]] == most
    sizes = {trace.about["tokens"] - r["position"]: abs(r["influence_logits"]) for r in rows if r["position"]}
    steps, total = tables["distances"], sum(sizes.values())
    if len(steps) > 1:
        half_at = next(r for r in steps if sum(v for d, v in sizes.items() if d <= r["furthest"]) >= total / 2)
        ends = [(steps[i]["nearest"], steps[i]["furthest"]) for i in (0, -1)]
        near, far = ([v for d, v in sizes.items() if a <= d <= b] for a, b in ends)
        said("Tokens up to distance {} from the end, the last token being at 1, carry {} of all influence, the very first token "
             "left out; the nearest ones weigh {} logits each on average, those from distance {} to {} weigh "
             "{}.", half_at["furthest"],
             pct(sum(v for d, v in sizes.items() if d <= half_at["furthest"]) / total), num(sum(near) / len(near)), *ends[1],
             num(sum(far) / len(far)))  # fmt: skip
        assert ends[1][1] == max(sizes)
    column = {k: [r[k] for r in rows] for k in ("loss_nats", "loss_estimate_nats", "grad_times_input", "influence_logits",
                                                "grad_norm")}
    if ranks_agree(column["loss_estimate_nats"], column["loss_nats"]) is not None:
        said("Rank correlation with what really happens: {} for the first-order estimate of the loss, {} for gradient × input "
             "against influence, {} for the gradient's length against the size of the influence.",
             num(ranks_agree(column["loss_estimate_nats"], column["loss_nats"])),
             num(ranks_agree(column["grad_times_input"], column["influence_logits"])),
             num(ranks_agree(column["grad_norm"], [abs(v) for v in column["influence_logits"]])))  # fmt: skip
    moved = [r["moved"][rows.index(top)] for r in tables["layers"]]
    assert [r["layer"] for r in tables["layers"]] == list(range(layers + 1))
    said("Without {} the last token's state first differs by half of its largest change after {} of {} layers, and by {} of its "
         "own length at most, after {}.", tok(top["text"]), next(i for i, x in enumerate(moved) if x >= max(moved) / 2), layers,
         pct(max(moved)), moved.index(max(moved)))  # fmt: skip
    if rows[0]["position"] == 0:
        said("{} is the very first token, on which many heads park attention that they have no other use for: its influence of "
             "{} is partly that, not its meaning.", tok(rows[0]["text"]), signed(rows[0]["influence_logits"]),
             mark="known")  # fmt: skip
    if len(rows) < trace.about["tokens"]:
        said("Only the last {} of {} tokens were taken out; what the earlier ones do is not known.", len(rows),
             trace.about["tokens"], mark="unknown")  # fmt: skip
    said("What several tokens do only together is not known from taking them out one at a time.", mark="unknown")


@lens
def position(trace, n, tables, said):
    rows, now, shifts = tables["swaps"], trace.about["difference_logits"], tables["shifts"]
    for row in [*rows, *shifts]:
        assert row["change_logits"] == pytest.approx(row["difference_logits"] - now, abs=1e-5)
    top = max(rows, key=lambda r: abs(r["change_logits"]))
    said("Of {} swaps of neighbouring words, “{}” ⇄ “{}” changes the lead of {} most, by {} logits; the mean size is {}, and in "
         "{} of the swaps another token becomes the first "
         "choice.", len(rows), top["left"].strip() or "␣", top["right"].strip() or "␣",
         signed(now), signed(top["change_logits"]), num(sum(abs(r["change_logits"]) for r in rows) / len(rows)),
         sum(r["first_changed"] for r in rows))  # fmt: skip
    first = trace.rows["candidates"][0]["text"]
    assert all((r["first"] != first) <= r["first_changed"] for r in rows)
    if n["shuffles"]:
        said("With all words before the last in random order ({} draws) the lead is {} on average instead of {}; in {} of them "
             "another token comes "
             "first.", n["shuffles"], signed(n["shuffled_mean"]), signed(now), n["shuffled_first"])  # fmt: skip
    if n["reversed"] is not None:
        said("With the sentences before the last in reverse order the lead is {} instead of {}, and {} "
             + ("comes first." if n["reversed_first"] != first else "stays first."), signed(n["reversed"]), signed(now),
             tok(n["reversed_first"]))  # fmt: skip
    most = max(shifts, key=lambda r: abs(r["change_logits"]), default=None)
    if n["kind"] == "fixed":
        said("This family takes no positions from outside, so moving them cannot be tried.", mark="unknown")
    elif most is None:
        said("The prompt leaves no room in the context for moving positions on, so that was not tried.", mark="unknown")
    elif abs(most["change_logits"]) < 1e-3:
        said("With every position moved on by up to {} the lead changes by no more than {} logits, which is rounding: absolute "
             "places do not matter here, only "
             "distances.", max(r["shift"] for r in shifts), num(abs(most["change_logits"])))  # fmt: skip
        said("That is what rotary positions promise: a score depends on the difference of two places only.", mark="known")
    else:
        said("With every position moved on by {} the lead changes by {} logits, and {} is first: this model uses absolute "
             "places.", most["shift"], signed(most["change_logits"]), tok(most["first"]))  # fmt: skip
    said("Whether the model lost the sense of a shuffled text, or merely finds it unusual, cannot be told from these numbers.",
         mark="unknown")  # fmt: skip
