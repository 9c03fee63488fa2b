"""What the answer and the lenses that compare say, worked out again from their tables: every number and every name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from decisions import MADE, beside, by_head, logits_of, softmax, traced, whole
from printed import checked, collected, num, pct, ranks_agree, settled, signed, tok

CHECKS = {}
lens = collected(CHECKS)


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("name", ["interference", "architecture", "tokenization", "trajectory"])
def test_every_sentence(case, name):
    checked(CHECKS[name], traced(case))


@lens
def interference(trace, n, tables, said):
    x, y = tok(n["target"]), tok(n["against"])
    orders = {r["run"]: r["difference_logits"] for r in tables["orders"]}
    against = trace.about["against"]
    if against is not None:
        found = by_head(trace)
        votes = {a: whole(rows) for a, rows in found.items()}
        now, parts = trace.about["difference_logits"], [r for r in trace.rows["votes"] if r["source"] is None]
        running, sums = sum(r["vote_logits"] for r in parts if r["address"].startswith("embed")), []
        for i in range(trace.about["layers"]):
            running += sum(r["vote_logits"] for r in trace.rows["votes"] if r["address"].startswith(f"L{i}."))
            sums.append(running)
        assert [r["running_logits"] for r in tables["layers"]] == pytest.approx(sums, abs=1e-6)
    else:
        votes = {r["address"]: r["vote_logits"] for r in tables["heads"]}
        rows, logits = trace.rows["candidates"], logits_of(trace)
        rival = next(r for r in rows if r["token"] != trace.about["target"]["token"])
        assert n["against"] == rival["text"]
        now = float(logits[trace.about["target"]["token"]] - logits[rival["token"]])
        sums = [r["running_logits"] for r in tables["layers"]]
    plus, minus = (sum(v for v in votes.values() if v * sign > 0) for sign in (1, -1))
    layers = [sum(r[k] for r in tables["layers"]) for k in ("heads_for", "heads_against")]
    if against is None:  # the table of heads names six of each side
        plus, minus = layers
    assert [plus, minus] == pytest.approx(layers, abs=1e-6)
    said("All heads together put {} logits on {} and {} on {}: {} of what they say cancels. The lead of {} over {}, with all "
         "other parts, is "
         "{}.", signed(plus), x, signed(minus), y, pct(1 - abs(plus + minus) / (plus - minus)), x, y, signed(now))  # fmt: skip
    best = {side: [r for r in tables["heads"] if r["side"] == side] for side in ("target", "against")}
    shown = {}
    for side, rows in best.items():
        if rows:
            row = max(rows, key=lambda r: abs(r["vote_logits"]))
            assert row["address"] == (max if side == "target" else min)(votes, key=votes.get)
            shown[side] = row["address"], signed(row["vote_logits"]), tok(row["text"]), row["position"]
            if against is not None:
                read = (max if side == "target" else min)(found[row["address"]], key=lambda r: r["vote_logits"])
                assert (row["position"], row["text"]) == (read["source"], read["token"])
    if len(shown) == 2:
        said("The strongest head for {} is {} with {} logits, read mostly from {} (position {}); for {} it is {} with {}, read "
             "mostly from {} (position {}).", x, *shown["target"], y, *shown["against"])  # fmt: skip
    else:
        ((side, values),) = shown.items()
        said("The strongest head is {} with {} logits, read mostly from {} (position {}); no head speaks for {}.", *values,
             y if side == "target" else x)  # fmt: skip
    if not orders:
        late = settled([(s > 0) == (now > 0) for s in sums])
        if late is not None:
            sides = [(r["heads_for"] + max(0, r["mlp"]), r["heads_against"] + min(0, r["mlp"])) for r in tables["layers"]]
            strife = max(range(len(sides)), key=lambda i: min(sides[i][0], -sides[i][1]))
            said("The running sum of votes is on the side of {} from layer {} on; the layer where both sides speak loudest is "
                 "{}, with {} against {}.", x if now > 0 else y, late, strife, *map(signed, sides[strife]))  # fmt: skip
        said("Sentences before the last: {}; only {} is named in {} of them, only {} in {}. There are no two statements whose "
             "order could be tried, so conflict is shown between tokens only.", n["sentences"], x, n["name_target"], y,
             n["name_against"])  # fmt: skip
        assert not n["name_target"] or not n["name_against"]
        said("Whether the model holds the two tokens to be in conflict at all cannot be told from votes that differ.",
             mark="unknown")
        return
    winner = x if orders["as_is"] > 0 else y
    if (orders["as_is"] > 0) == (orders["swapped"] > 0):
        said("With the two statements exchanged {} still wins: the lead of {} over {} is {} as the text stands and {} in the "
             "other order.", winner, x, y, signed(now), signed(orders["swapped"]))  # fmt: skip
    else:
        said("The order decides: as the text stands {} wins with a lead of {} over {} of {}; with the two statements exchanged "
             "it is {}.", winner, x, y, signed(now), signed(orders["swapped"]))  # fmt: skip
    one, other = (n["pair"][f"{k}_text"].strip() for k in ("target", "against"))
    first = trace.about["prompt"].index(one) < trace.about["prompt"].index(other)
    later, earlier = (orders["swapped"], orders["as_is"]) if first else (orders["as_is"], orders["swapped"])
    if abs(later - earlier) < 0.1:
        said("Order does little: {}'s lead differs by {} logits between the two orders; their mean is {}.", x,
             num(abs(later - earlier)), signed((later + earlier) / 2))  # fmt: skip
    else:
        what, where = ("later gains", "later") if later > earlier else ("first gains", "earlier")
        said("What is said " + what + ": {} leads by {} logits more when its statement is the " + where + " one; the mean of "
                                                                                                          "both orders, which "
             "order does not explain, is {}.", x, num(abs(later - earlier)), signed((later + earlier) / 2))  # fmt: skip
    said("Without the statement that names {} the lead is {} instead of {}, without the one that names {} it is {}, and without "
         "both {}.",
         x, signed(orders["no_target"]), signed(now), y, signed(orders["no_against"]), signed(orders["neither"]))  # fmt: skip
    texts = "".join(r["text"] for r in trace.rows["prompt"][1:])
    spans = [range(1 + texts.index(t), 1 + texts.index(t) + len(t)) for t in (one, other)]  # every token is a letter
    read = [sum(r["vote_logits"] for rows in found.values() for r in rows if r["source"] in span) for span in spans]
    blank = [sum(r["vote_logits"] for rows in found.values() for r in rows if r["source"] == s.start - 1) if s.start > 1 else 0.0
             for s in spans]  # fmt: skip
    read = [a + b for a, b in zip(read, blank)]  # the space before a sentence belongs to it
    said("From the statement naming {} the heads read {} logits, from the one naming {} {}, from all other tokens {}; above "
         "zero speaks for {}.", x, signed(read[0]), y, signed(read[1]), signed(plus + minus - sum(read)), x)  # fmt: skip
    shown = tables["heads"]
    pairs = [(r["vote_logits"], r["swapped_logits"]) for r in shown]
    ranks = num(ranks_agree(*zip(*pairs)) if len(shown) == len(votes) else n["pair"]["same_heads"])
    said("Of the {} heads listed, {} vote for the other side once the statements are exchanged; over all heads the votes of the "
         "two orders have a rank correlation of {}.", len(shown), sum((a > 0) != (b > 0) for a, b in pairs), ranks)  # fmt: skip
    said("That “{}” and “{}” contradict each other is read from their words: the first names {}, the second {}.", one, other,
         x, y, mark="heuristic")  # fmt: skip


@lens
def architecture(trace, n, tables, said):
    about, first = trace.about, tok(trace.rows["candidates"][0]["text"])
    (empty,) = (r for r in tables["heads"] if r["order"] == "all")
    lines = {name: sorted((r for r in tables["heads"] if r["order"] == name), key=lambda r: r["removed"]) + [empty]
             for name in {"weak", "strong", *(r["order"] for r in tables["heads"])} - {"all"}}  # fmt: skip
    count = about["layers"] * about["heads"]
    assert empty["removed"] == count
    breaks = {name: next((i for i, r in enumerate(rows) if r["first_changed"]), None) for name, rows in lines.items()}
    if None in (breaks["weak"], breaks["strong"]):
        assert not empty["first_changed"]
        said("Even without any of the {} heads {} stays first: embedding, MLPs and means alone lead to it.", count, first)
    else:
        last, broken = lines["weak"][breaks["weak"]], lines["strong"][breaks["strong"]]
        end = "; strongest first, the loss of {} is enough for {} to come first."
        if not breaks["weak"]:
            said("Even the {} weakest of {} heads gone together turn the choice, to {}" + end, last["removed"], count,
                 tok(last["first"]), broken["removed"], tok(broken["first"]))  # fmt: skip
        else:
            held = lines["weak"][breaks["weak"] - 1]
            said("Weakest first, as many as {} of {} heads can go together and {} stays first, the token asked about then at {} "
                 "(without {} no "
                 "more)" + end, held["removed"], count, first, pct(held["probability"]), last["removed"], broken["removed"],
                 tok(broken["first"]))  # fmt: skip
    held = [
        rows[-1]["removed"] if breaks[name] is None else rows[breaks[name] - 1]["removed"] if breaks[name] else 0
        for name, rows in lines.items() if name.startswith("random")
    ]  # fmt: skip
    if held:
        said("In random order ({} draws) the choice holds without as many as {} heads in the worst draw and {} in the best.",
             len(held), min(held), max(held))  # fmt: skip
    replaced = [r for r in trace.rows.get("effects", ()) if r["ablation"] == "mean"]
    effects = {r["address"]: r["effect_logits"] for r in replaced if ".H" in r["address"]}
    if effects:
        row = lines["strong"][breaks["strong"] or 0]
        row = lines["strong"][1] if row["removed"] == 1 else row
        singles = sum(sorted(effects.values(), key=abs)[-row["removed"] :])
        joint = about["difference_logits"] - row["difference_logits"]
        why = ("while one alone is missing, others cover for it." if abs(joint) > abs(singles) else
               "part of what they say is said twice, or what they do cancels.")  # fmt: skip
        said("Taken out one at a time, the {} strongest heads lower the difference by {} logits in sum, taken out together by "
             "{}: " + why, row["removed"], signed(singles), signed(joint))  # fmt: skip
    else:
        said("Not every head was run alone here, so the order of strength is a first-order estimate, and what the effects alone "
             "sum to is not known.", mark="unknown")  # fmt: skip
    layers, was = tables["layers"], about["target"]["probability"]
    worst = min(layers, key=lambda r: r["probability"])
    said("{} of {} layers can be left out, one at a time, without another first choice; the token asked about is least likely "
         "without {}, {} where it has {}, and the first choice then is "
         "{}.", sum(not r["first_changed"] for r in layers), about["layers"],
         f"L{worst['layer']}", pct(worst["probability"]), pct(was), tok(worst["first"]))  # fmt: skip
    tops = [r["top"] for r in trace.lenses["trajectory"]["tables"]["states"]]
    assert tops[1:] == [r["exit_first"] for r in layers]
    needed = settled([t == trace.rows["candidates"][0]["text"] for t in tops])
    if needed < 2:
        said("{} is first for good after {} of {} layers already.", first, needed, about["layers"])
    elif needed == about["layers"]:
        said("All {} layers are needed for {}: stopped before the last one, the model would say {}.", needed, first,
             tok(tops[-2]))
    else:
        said("The first {} of {} layers are enough for {}: the last {} could be cut off; one layer less, and {} would be "
             "first.", needed, about["layers"], first, about["layers"] - needed, tok(tops[needed - 1]))  # fmt: skip

    def enough(rows: list[dict], most: int) -> int:
        rows = sorted(rows, key=lambda r: r["kept"])
        at = settled([not r["first_changed"] for r in rows])
        return most if at is None else rows[at]["kept"]

    kept = enough([r for r in tables["width"] if r["order"] == "strong"], about["width"])
    text = "Of the coordinates of the normed last state, strongest first, {} of {} are enough for {}"
    if n["neurons"] is None:
        said(text + ".", kept, about["width"], first)
    else:
        said(text + "; of the neurons of every MLP, at the last position, {} of {}.", kept, about["width"], first,
             enough(tables["neurons"], n["neurons"]), n["neurons"])  # fmt: skip
    if not about.get("versus"):
        said("How models of other sizes choose here is not known: --versus MODEL puts them before the same text.", mark="unknown")
        return
    models = tables["models"]
    assert len(models) == len(about["versus"]) + 1 and models[0]["first"] == trace.rows["candidates"][0]["text"]
    likely = max(models, key=lambda m: -1 if m["probability"] is None else m["probability"])
    said("Other models that choose {} too: {} of {}; the token asked about is likeliest in {} with {}.", first,
         sum(m["first"] == models[0]["first"] for m in models[1:]), len(about["versus"]), likely["name"],
         pct(likely["probability"]))  # fmt: skip


@lens
def tokenization(trace, n, tables, said):
    rows, word, token = tables["ways"], tok(n["word"].strip()), tok(trace.about["target"]["text"])
    own = next(r for r in rows if r["own"])
    here = [r["text"] for r in trace.rows["prompt"][n["begin"] : n["end"]]]
    way = "|".join(tok(t) for t in here)
    if len(rows) == 1:
        said("{} stands here as {}, and the vocabulary knows no other way to write it.", word, way)
    else:
        low, high = (f(rows, key=lambda r: r["p"]) for f in (min, max))
        said("{} stands here as {}; the vocabulary can write it in {} ways. As it is, {} has {}; over the {} ways that were "
             "run, from {}, with {}, to {}, with {}. In {} of them another token comes first.", word, way, n["ways"], token,
             pct(trace.about["target"]["probability"]), len(rows), pct(low["p"]), tok("|".join(low["tokens"])), pct(high["p"]),
             tok("|".join(high["tokens"])), sum(r["first_changed"] for r in rows))  # fmt: skip
        if own["log_p"] is None:
            said("Nothing stands before the word, so how likely the model finds each way cannot be told.", mark="unknown")
        else:
            p = softmax(np.array([r["log_p"] for r in rows]))
            share, better = pct(p[rows.index(own)]), sum(r["log_p"] > own["log_p"] for r in rows)
            best = max(rows, key=lambda r: r["log_p"])
            if best is own:
                said("The tokenizer’s own way is also the likeliest to the model: it holds {} of the probability of the {} "
                     "ways.", share, len(rows))  # fmt: skip
            else:
                said("The model itself finds {} likelier: it holds {} of the probability of the ways run, the tokenizer’s own "
                     "{}; ways likelier than that: {}.", tok("|".join(best["tokens"])), pct(p.max()), share, better)  # fmt: skip
    merging(trace, n["merging"], tables, said)
    counts = {r["text"]: r for r in tables["writing"]}
    per = {k: num(r["tokens"] / r["words"]) for k, r in counts.items() if r["words"]}
    split = sum(r["part"] for r in tables["tokens"])
    assert split == counts["prompt"]["parts"]
    text = "ordinary English takes {} here and Russian {}. Only part" if {"english", "russian"} <= set(per) else "only part"
    values = [per.get("prompt", num(None)), *([per["english"], per["russian"]] if "ordinary" in text else [])]
    said("This prompt takes {} tokens per word; " + text + " of a letter is held by {} of its {} tokens.", *values, split,
         counts["prompt"]["tokens"])  # fmt: skip
    said("Models put words together in early and middle layers, at the last token, and the earlier ones are forgotten there "
         "(Feucht et al. 2024; Kaplan et al. 2024).", mark="known")  # fmt: skip


def merging(trace, merged, tables, said):
    if "why_not" in merged:
        said("The word cannot be written in several tokens, so there are no pieces to follow.", mark="unknown")
        return
    pieces = tok("|".join(merged["tokens"]))
    if merged["whole"] is None:
        most = max(tables["attention"], key=lambda r: r["attention"])
        said("No single token writes this word, so its state has nothing to be compared with. The last of {} looks at the "
             "others most in {}: there they get {} of its attention on average over heads; even attention would give {}.", pieces,
             f"L{most['layer']}", pct(most["attention"]), pct(merged["even"]))  # fmt: skip
    else:
        rows = tables["merging"]
        near = max(rows, key=lambda r: r["pieces"])
        likeness = [None if r["likeness"] is None else (r["pieces"] - r["others"]) / (1 - r["others"]) for r in rows]
        at = None if None in likeness else settled([x >= 0.5 for x in likeness])
        end = (" It is nearest after {}, with a cosine of {}; the last piece without the others has {} there.", near["after"],
               num(near["pieces"]), num(near["alone"]))  # fmt: skip
        if at is None:
            said("Written {}, it does not become one word: its last piece’s state never stays more than half way from any other "
                 "token’s to that of {}." + end[0], pieces, tok(merged["whole"]), *end[1:])  # fmt: skip
        else:
            said("Written {}, it has become one word after {}: from there on its last piece’s state is more than half way from "
                 "any other token’s to that of "
                 "{}." + end[0], pieces, rows[at]["after"], tok(merged["whole"]), *end[1:])  # fmt: skip
    if "why_not" in merged["swap"]:
        said({
            "unseen": "This family does its attention out of sight, so keys and values of the pieces cannot be swapped, and "
                      "from which layer on they no longer matter is not known.",
            "no_reference": "There is no other word to put in place of the pieces, so from which layer on they no longer matter "
                            "is not known.",
        }[merged["swap"]["why_not"]], mark="unknown")  # fmt: skip
        return
    kl, earlier = [r["kl_nats"] for r in tables["swap"]], tok("|".join(merged["tokens"][:-1]))
    over = settled([k <= kl[0] / 10 for k in kl])
    if kl[0] < 0.01:
        said("Reading {} as another word’s in all layers moves the choice by only {} nats: it hardly depends on them.",
             earlier, num(kl[0]))
    elif over is None:
        said("Reading {} as another word’s in all layers moves the choice by {} nats, and doing so only from {} on still by "
             "more than a tenth of that: the earlier pieces are read to the end.", earlier, num(kl[0]),
             f"L{tables['swap'][-1]['layer']}")  # fmt: skip
    else:
        said("Reading {} as another word’s in all layers moves the choice by {} nats; doing so only from {} on moves it by at "
             "most a tenth of that: there the earlier pieces have done their work.", earlier, num(kl[0]),
             f"L{tables['swap'][over]['layer']}")  # fmt: skip


def after(row: dict) -> str:
    return "embed" if row["after"] is None else f"L{row['after']}"


@lens
def trajectory(trace, n, tables, said):
    rows, layers, target = tables["states"], trace.about["layers"], trace.about["target"]
    first, chosen = tok(trace.rows["candidates"][0]["text"]), trace.rows["candidates"][0]["token"]
    at = settled([r["token"] == chosen for r in rows])
    if at == layers:
        said("{} becomes first only after the last layer, {}; the state before it would have said {} with {}.", first,
             f"L{layers - 1}", tok(rows[-2]["top"]), pct(rows[-2]["probability"]))  # fmt: skip
    else:
        said("{} is first after {} with {} and stays first; layers after that: {} of {}.", first, after(rows[at]),
             pct(rows[at]["probability"]), layers - at, layers)  # fmt: skip
    if target["token"] != chosen:
        best = min(rows, key=lambda r: r["rank"])
        said("{} was asked about: its best place on the way is {}, after {}; at the end it has place {}.", tok(target["text"]),
             best["rank"] + 1, after(best), target["rank"] + 1)  # fmt: skip
    if "tuned_token" in rows[0]:
        now = settled([r["tuned_token"] == chosen for r in rows])
        said("The tuned lens has {} first from {} on. On text held out it is {} nats from the model's own prediction, mean over "
             "the states on the way; the logit lens is {}.", first, after(rows[now]), num(n["tuned"]["held_out_kl_nats"]),
             num(n["tuned"]["logit_held_out_kl_nats"]))  # fmt: skip
    most, end = max(rows, key=lambda r: r["candidates"]), num(rows[-1]["candidates"])
    few = settled([r["candidates"] < 10 for r in rows])
    begin = "Read by the lens, the state holds as many as {} equally likely candidates (after {})"
    if few:
        said(begin + "; after {} they are fewer than ten and stay so, at the end {}.", num(most["candidates"]), after(most),
             after(rows[few]), end)  # fmt: skip
    else:
        said(begin + " and {} at the end.", num(most["candidates"]), after(most), end)
    far = max(rows[1:], key=lambda r: r["step"])
    said("The longest step is that of {}: {}, {} of the state's length after it, and it turns the state by {} degrees.",
         after(far), num(far["step"]), pct(far["step"] / far["length"]), num(far["turn_degrees"]))  # fmt: skip
    steps = [r["step"] for r in rows[1:]]
    a, b, cos = rows[0]["length"], rows[-1]["length"], math.cos(math.radians(rows[0]["to_end_degrees"]))
    said("All steps together are {} long and carry the state {} away; if no step had anything to do with another it would be "
         "{}, if all went one way "
         "{}.", num(sum(steps)), num((a * a + b * b - 2 * a * b * cos) ** 0.5), num(sum(s * s for s in steps) ** 0.5),
         num(sum(steps)))  # fmt: skip
    swap, swapped = n["swap"], tables["swap"]
    if not swapped:
        said(*{
            "no_versus": ["No second prompt was given, so how much of the decision the state alone carries, without reading on "
                          "in the tokens before it, is not known."],
            "length": ["The second prompt has {} tokens and this one {}; keys and values can be swapped only position by "
                       "position, so how much the state alone carries is not "
                       "known.", trace.about.get("versus_tokens"), trace.about["tokens"]],
            "unseen": ["This family does its attention out of sight, so its keys and values cannot be swapped and how much the "
                       "state alone carries is not known."],
            "same": ["The two prompts differ at the last token only or nowhere, so there is nothing to swap before it."],
        }[swap["why_not"]], mark="unknown")  # fmt: skip
    else:
        was = trace.about["difference_logits"]
        one = max(swapped, key=lambda r: abs(r["only_logits"] - was))
        said("Reading the other prompt's keys and values in one layer changes most in {}: the difference becomes {} logits "
             "where it was {}; in the other prompt it is {}.", f"L{one['layer']}", signed(one["only_logits"]), signed(was),
             signed(beside(trace, "prompt").about["difference_logits"]))  # fmt: skip
        holds = [tok(r["from_top"]) == first for r in swapped]
        at = settled(holds)
        if at == 0:
            said("Even if every layer reads the other prompt's keys and values, the choice stays: the last token alone carries "
                 "it.")
        elif at is None:
            said("If only the last layer, {}, reads the other prompt's keys and values, the choice already turns to {}: the "
                 "state alone does not carry it.", f"L{layers - 1}", tok(swapped[-1]["from_top"]))  # fmt: skip
        else:
            said("From {} on the state carries the choice alone: it stays even if this and all later layers read the other "
                 "prompt's keys and values; from {} on it would become "
                 "{}.", f"L{at}", f"L{at - 1}", tok(swapped[at - 1]["from_top"]))  # fmt: skip
    said("In early layers the lens often reads little of what a state holds, because it was never trained to be read there "
         "(Belrose et al. 2023).", mark="known")  # fmt: skip
