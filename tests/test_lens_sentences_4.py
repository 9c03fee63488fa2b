"""What the answer and the lenses with a second side say, worked out again from their tables: every number and every name."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from decisions import MADE, beside, by_head, traced, whole
from printed import Said, checked, collected, half, num, pct, settled, signed, tok

CHECKS = {}
lens = collected(CHECKS)


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("name", ["tuning", "instruction", "reasoning", "corpus", "models"])
def test_every_sentence(case, name):
    checked(CHECKS[name], traced(case))


@pytest.mark.parametrize("case", MADE)
def test_the_answer(case):
    trace = traced(case)
    said, about, rows = Said(trace, "answer"), trace.about, trace.rows["candidates"]
    target, against = about["target"], about["against"]
    token, p = tok(target["text"]), pct(target["probability"])
    if target["token"] == rows[0]["token"]:
        said("The model gives {} a probability of {}; the next best, {}, gets {}.", token, p, tok(rows[1]["text"]),
             pct(rows[1]["probability"]))  # fmt: skip
    else:
        place = next((i for i, r in enumerate(rows) if r["token"] == target["token"]), target["rank"]) + 1
        said("The model gives {} a probability of {}, place {}; its first choice is {} with {}.", token, p, place,
             tok(rows[0]["text"]), pct(rows[0]["probability"]))  # fmt: skip
    parts = Counter()
    for row in trace.rows["votes"]:
        parts[row["address"]] += row["vote_logits"]
    lead = sum(parts.values())
    winner = max((a for a in parts if parts[a] * lead > 0), key=lambda a: abs(parts[a]))
    values = [] if against is None else [tok(against["text"])]
    values += [signed(lead), winner, signed(parts[winner])]
    text = "Its logit stands {} above the mean over the vocabulary" if against is None else "The lead over {} is {} logits"
    text += "; the strongest vote for the winning side is {} with {}"
    if winner in by_head(trace):
        text += ", most of it read from {}"
        values.append(tok(max(by_head(trace)[winner], key=lambda r: abs(r["vote_logits"]))["token"]))
    said(text + ", and {} of {} parts carry half of everything that was put on the scales.", *values, half(list(parts.values())),
         len(parts))  # fmt: skip
    effects = [r for r in trace.rows.get("effects", ()) if r["ablation"] == "mean"]
    if not effects:
        said("No part was replaced in this run, so what each would cost is not known; votes alone do not tell.", mark="unknown")
    elif "metric" in about:
        most = max(effects, key=lambda r: abs(r["metric"]))
        said("Of {} parts replaced one by one by their mean over ordinary text, {} mattered most to {}: it falls by {} from {}, "
             "and the logit difference by {}.", len(effects), most["address"], about["metric"]["name"], signed(most["metric"]),
             signed(about["metric"]["value"]), signed(most["effect_logits"]))  # fmt: skip
    else:
        most = max(effects, key=lambda r: abs(r["effect_logits"]))
        loud = sum(abs(r["effect_logits"]) > 2 * abs(parts[r["address"]]) + 0.1 for r in effects)
        said("Of {} parts replaced one by one by their mean over ordinary text, {} mattered most: the difference falls by {}, "
             "{} of it by its own vote and {} through parts downstream; parts that do more than twice what their own vote says, "
             "and by over 0.1 logits: "
             "{}.", len(effects), most["address"], *(signed(most[f"{k}_logits"]) for k in ("effect", "own", "others")),
             loud)  # fmt: skip
    said.end()


def pair(trace, n, tables, other, said, words: dict[str, str]):
    """What both lenses of pairs say; `other` is the second side's trace."""
    firsts = [t.rows["candidates"][0] for t in (trace, other)]
    target = trace.about["target"]
    there = other.about["target"]
    assert there["token"] == target["token"]
    kl = num(tables["layers"][-1]["kl_nats"] if "layers" in tables else n["kl_nats"])
    values = kl, tok(target["text"]), pct(target["probability"]), pct(there["probability"])
    if firsts[0]["token"] == firsts[1]["token"]:
        said(words["same"], tok(firsts[0]["text"]), *values)
    else:
        said(words["other"], *(tok(r["text"]) for r in firsts), *values)
    said(words["entropies"], *(num(t.about["entropy_nats"]) for t in (trace, other)),
         *(signed(t.about["difference_logits"]) for t in (trace, other)))  # fmt: skip
    if "layers" in tables:
        parted = settled([r["kl_nats"] >= 0.1 for r in tables["layers"]])
        if parted is None:
            said("By the logit lens the two never part for good.", mark="heuristic")
        else:
            said("By the logit lens the two ways part for good where as many layers have passed: {}.",
                 tables["layers"][parted]["layer"], mark="heuristic")  # fmt: skip
    sides = []
    for side in (trace, other):
        parts = Counter()
        for row in side.rows["votes"]:
            parts[row["address"]] += row["vote_logits"]
        sides.append(parts)
    if set(sides[0]) != set(sides[1]):
        said(words["parts"], mark="unknown")
        return
    change = {a: sides[1][a] - sides[0][a] for a in sides[0]}
    most = max(change, key=lambda a: abs(change[a]))
    if not any(change.values()):
        said("Every part votes the same on both sides.")
        return
    said(words["vote"], most, signed(sides[0][most]), signed(sides[1][most]),
         pct(abs(change[most]) / sum(map(abs, change.values()))))


@lens
def instruction(trace, n, tables, said):
    pair(trace, n, tables, beside(trace, "prompt"), said, {
        "same": "Both prompts lead to {}; the distributions are {} nats apart, and {} goes from {} to {}.",
        "other": "The second prompt turns the choice from {} to {}: the distributions are {} nats apart, and {} goes from {} to "
                 "{}.",
        "entropies": "Entropy goes from {} to {} nats; the difference of logits asked about from {} to {}.",
        "vote": "The vote that changed most is that of {}, from {} to {} logits: {} of all changes of votes, whichever way.",
        "parts": "Both sides do not have the same parts, so votes are not compared.",
    })  # fmt: skip


@lens
def tuning(trace, n, tables, said):
    pair(trace, n, tables, beside(trace, "model"), said, {
        "same": "Both models choose {}; their distributions are {} nats apart, and {} has {} here and {} there.",
        "other": "This model chooses {}, the other {}: their distributions are {} nats apart, and {} has {} here and {} there.",
        "entropies": "Entropy is {} nats here and {} there; the difference of logits asked about {} and {}.",
        "vote": "The vote that differs most is that of {}: {} logits here, {} there; that is {} of all differences of votes, "
                "whichever way.",
        "parts": "The models do not have the same parts, so votes are not compared.",
    })  # fmt: skip
    rows, prompt = tables["tokens"], trace.rows["prompt"]
    assert [r["text"] for r in rows] == [r["text"] for r in prompt]
    assert [r["next"] for r in rows] == [*(r["text"] for r in prompt[1:]), trace.about["target"]["text"]]
    most = max(rows, key=lambda r: r["kl_nats"])
    said("Over {} tokens of the prompt the two models' predictions are {} nats apart on average, most after {}: {}.", len(prompt),
         num(sum(r["kl_nats"] for r in rows) / len(rows)), tok(most["text"]), num(most["kl_nats"]))  # fmt: skip
    moved = max(rows, key=lambda r: abs(r["rank_a"] - r["rank_b"]))
    if moved["rank_a"] != moved["rank_b"]:
        said("The rank that moved most is that of {} after {}: place {} in this model, {} in the other.", tok(moved["next"]),
             tok(moved["text"]), moved["rank_a"], moved["rank_b"])  # fmt: skip


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else text[:89] + "…"


@lens
def reasoning(trace, n, tables, said):
    target, path, steps = tok(trace.about["target"]["text"]), tables["path"], tables["steps"]
    assert path[0]["tokens"] == 0 and path[-1]["p"] == pytest.approx(trace.about["target"]["probability"], rel=1e-4)
    ends = [r for r in path if r["end_of"] is not None]
    gains = [b["log_p"] - a["log_p"] for a, b in pairwise(ends)]
    best = max(range(len(gains)), key=lambda i: gains[i])
    begin = "With all steps ({}) cut away {} has a probability of {}, with them {}; "
    values = len(steps), target, pct(path[0]["p"]), pct(path[-1]["p"])
    if gains[best] > 0.1:
        said(begin + "step {}, “{}”, adds most: {} nats.", *values, best + 1, short(steps[best]["text"]), signed(gains[best]))
    else:
        said(begin + "no step adds to it by more than 0.1 nats.", *values)
    first = [r["rank"] == 0 for r in path]
    at = settled(first)
    if at == 0:
        said("{} is the likeliest token at all {} places that were asked, also without any step.", target, len(path))
    elif at is None:
        said("With all steps the likeliest token is {}, not {}; at {} of {} places along the steps {} was the likeliest.",
             tok(trace.rows["candidates"][0]["text"]), target, sum(first), len(path), target)  # fmt: skip
    else:
        said("From {} on, after {} of {} tokens of the steps, {} is the likeliest token at every place that was asked.",
             tok(path[at]["text"]), path[at]["tokens"], path[-1]["tokens"], target)  # fmt: skip
    rows = tables["changes"]
    for row in rows:
        assert row["text"] == steps[row["number"] - 1]["text"]
    worst = min(rows, key=lambda r: r["drop_nats"])
    if worst["drop_nats"] < -0.1:
        said("Most needed is step {}, “{}”: left out, ln p of {} changes by {} nats and the likeliest token is {}; steps that "
             "cost more than 0.1 nats: {} of {}.", worst["number"], short(worst["text"]), target, signed(worst["drop_nats"]),
             tok(worst["drop_first"]), sum(r["drop_nats"] < -0.1 for r in rows), len(rows))  # fmt: skip
    else:
        said("No step ({}) costs more than 0.1 nats when it is left out; step {}, “{}”, comes nearest with {} nats of ln p of "
             "{}, and the likeliest token then is "
             "{}.", len(rows), worst["number"], short(worst["text"]), signed(worst["drop_nats"]), target,
             tok(worst["drop_first"]))  # fmt: skip
    false = [r for r in rows if r["corrupt_nats"] is not None]
    if false:
        most = max(false, key=lambda r: abs(r["corrupt_nats"]))
        said("False content moves the answer most in step {}: with “{}” instead, ln p of {} changes by {} nats and the "
             "likeliest token is {}.", most["number"], short(most["corrupt_text"]), target, signed(most["corrupt_nats"]),
             tok(most["corrupt_first"]))  # fmt: skip
    both = [r for r in false if r["reword_nats"] is not None]
    if both:
        means = [sum(abs(r[f"{k}_nats"]) for r in both) / len(both) for k in ("corrupt", "reword")]
        said("What the steps say counts more than how: false content changes ln p by {} nats on average (sizes), other wording "
             "by {}."
             if means[0] > 2 * means[1] else
             "That the answer follows from what the steps say is not shown: false content changes ln p by {} nats on average "
             "(sizes), a mere “That is,” by {}.", *map(num, means), mark="heuristic")  # fmt: skip
    words = tables["words"]
    if words:
        own, top = [r for r in words if r["agrees"]], max(words, key=lambda r: r["with_steps"])
        top = min((r for r in words if r["with_steps"] == top["with_steps"]), key=lambda r: r["word"])
        begin, bare = ("with all steps", ", with the first step alone") if len(steps) > 1 else ("with the step", ", without it")
        said("Of {} samples " + begin + " {} begin with the target's word “{}”" + bare + " {}; most often comes “{}” (in {}; "
                                                                                         "different first words: "
             "{}).", sum(r["with_steps"] for r in words), sum(r["with_steps"] for r in own), n["word"],
             sum(r["bare"] for r in own), top["word"], top["with_steps"], sum(r["with_steps"] > 0 for r in words))  # fmt: skip
        assert sum(r["bare"] for r in words) == sum(r["with_steps"] for r in words) and all(r["word"] == n["word"] for r in own)
    marks = tables["tools"]
    if marks:
        top = max(marks, key=lambda r: r["p"])
        said(("The token that opens a tool call, “{}”, has" if top["pieces"] == 1 else
              "The mark of a tool call, “{}”, is several tokens; the first of them has") + " a probability of {} here, place "
                                                                                           "{}.", top["mark"],
             pct(top["p"]), top["rank"] + 1)  # fmt: skip
    else:
        said("Neither the chat template nor the added tokens of this tokenizer hold a mark for tool calls." if n["template"] else
             "This tokenizer has no chat template and no token for tool calls.")  # fmt: skip
    said("Whether the model worked out a step inside without reading it cannot be told from these runs.", mark="unknown")


@lens
def corpus(trace, n, tables, said):
    token, ids = tok(trace.about["target"]["text"]), trace.about["ids"]
    found = {name: [r for r in tables["lengths"] if r["source"] == name] for name in ("context", "corpus")}
    last = {name: rows[-1] if rows and rows[-1]["length"] else None for name, rows in found.items()}
    given = n["corpus"] is not None
    kinds = {r["kind"]: r for r in tables["kinds"]}
    votes = [(ids[r["source"]], r) for rows in by_head(trace).values() for r in rows]
    copies = [r for t, r in votes if t == trace.about["target"]["token"]]
    plus = sum(r["vote_logits"] for _, r in votes if r["vote_logits"] > 0)
    copied = sum(r["vote_logits"] for r in copies if r["vote_logits"] > 0) / plus
    overlap = {name: 0.0 if row is None else row["overlap"] for name, row in last.items()}
    assert max(overlap.values()) - 1e-9 <= n["either"] <= sum(overlap.values()) + 1e-9
    end = " Of all positive votes that heads read, {} come from copies of the token. These overlap and do not add up."
    if given:
        said("The longest n-gram of the prompt shares {} of the model's probability mass, that of the corpus {}; {} is given by "
             "neither." + end, pct(overlap["context"]), pct(overlap["corpus"]), pct(1 - n["either"]), pct(copied))  # fmt: skip
    else:
        said("The longest n-gram of the prompt shares {} of the model's probability mass; {} is not given by it." + end,
             pct(overlap["context"]), pct(1 - overlap["context"]), pct(copied))  # fmt: skip
    for name, where in (("context", "earlier in the prompt"), ("corpus", "in the corpus of {} tokens"))[: 1 + given]:
        size, row = ([n["corpus"]["tokens"]] if name == "corpus" else []), last[name]
        if row is None:
            if size:
                said("The prompt's last token does not occur in the corpus of {} tokens, so no n-gram of it says anything.",
                     *size)
            else:
                said("The prompt's last token does not occur earlier in it, so no n-gram of its {} tokens says anything.",
                     len(ids))
            continue
        most = max(row["followed_by"], key=lambda r: r["p"])
        begin = "The longest ending that stands " + where + " is {} (length in tokens: {}, places: {}); there "
        values = *size, tok(row["ending"]), row["length"], row["times"]
        if most["p"] == row["p_target"]:
            said(begin + "{} follows in {} of cases, as often as any token.", *values, token, pct(most["p"]))
        else:
            said(begin + "it goes on with {} in {} of cases, and with {} in {}.", *values, tok(most["text"]), pct(most["p"]),
                 token, pct(row["p_target"]))  # fmt: skip
    if not given:
        said("No reference corpus was given, so what its n-grams would say is not known; --corpus FILE adds it.", mark="unknown")
    elif last["corpus"] is not None and last["corpus"]["times"] < 5:
        said("The longest ending in the corpus was counted in few places ({}): shorter endings, in the table, rest on more.",
             last["corpus"]["times"], mark="heuristic")  # fmt: skip
    if copies:
        heads = len(by_head(trace))
        behind = [r for t, r in votes if t == trace.about["target"]["token"] and r["source"] and ids[r["source"] - 1] == ids[-1]]
        induced = sum(r["vote_logits"] for r in behind if r["vote_logits"] > 0) / plus
        said("{} stands at {} of {} positions; heads pay {} of their attention to it there and read {} of all their positive "
             "votes from it, {} where it follows an earlier occurrence of the prompt's last token.", token,
             ids.count(trace.about["target"]["token"]),
             len(ids), pct(sum(r["attention"] for r in copies) / heads), pct(copied), pct(induced))  # fmt: skip
        read = {a: [r for r in rows if ids[r["source"]] == trace.about["target"]["token"]] for a, rows in by_head(trace).items()}
        best = max(read, key=lambda a: whole(read[a]))
        if whole(read[best]) > 0:
            (place,) = (r["place"] for r in tables["heads"] if r["address"] == best)
            said("{} reads most from it: {} logits, with {} of its attention; of all tokens that this reading promotes, {} "
                 "takes place {}.",
                 best, signed(whole(read[best])), pct(sum(r["attention"] for r in read[best])), token, place)  # fmt: skip
    elif "alike" in kinds and kinds["alike"]["share"]:
        said("{} itself does not stand in the prompt; {} of the heads' positive votes are read from the same word in another "
             "spelling.", token, pct(kinds["alike"]["share"]))  # fmt: skip
    else:
        said("{} does not stand in the prompt, in this or another spelling, so no head could copy it.", token)
    said("What made the rest is not told by any of these counts.", mark="unknown")


@lens
def models(trace, n, tables, said):
    this, *others = tables["models"]
    segments, size = tables["segments"], sum(s["bytes"] for s in tables["segments"])
    first = trace.rows["candidates"][0]
    assert this["first"] == first["text"] and this["p"] == pytest.approx(first["probability"])
    far = max(others, key=lambda r: r["letter_divergence"])
    apart = num(far["letter_divergence"])
    firsts = tok(this["first"]), pct(this["p"]), tok(far["first"]), pct(far["p"])
    if far["alike"] == "same":
        said("{} and {} have the same first choice, {}: {} and {}; their next letters are {} bits apart, of at most 1.",
             this["name"], far["name"], firsts[0], firsts[1], firsts[3], apart)  # fmt: skip
    elif far["alike"] == "begins":
        said("The first choices of {} ({}, {}) and {} ({}, {}) begin alike; their next letters are {} bits apart, of at most 1.",
             this["name"], *firsts[:2], far["name"], *firsts[2:], apart)  # fmt: skip
    else:
        said("{} would go on with {} ({}), {} with {} ({}); their next letters are {} bits apart, of at most 1.", this["name"],
             *firsts[:2], far["name"], *firsts[2:], apart)  # fmt: skip
    bits = [sum(s["bits"][i] for s in segments) for i in range(len(others) + 1)]
    best, worst = (f(range(len(bits)), key=lambda i: bits[i]) for f in (min, max))
    names = [r["name"] for r in tables["models"]]
    if not size:
        said("There are no bytes that all of them predict, so bits per byte are not known.", mark="unknown")
    elif bits[worst] - bits[best] < 1e-6 * bits[worst]:
        said("All need the same for the same {} bytes: {} bits per byte.", size, num(bits[0] / size))
    else:
        said("For the same {} bytes {} needs fewest bits per byte, {}; {} needs most, {}.", size, names[best],
             num(bits[best] / size), names[worst], num(bits[worst] / size))  # fmt: skip
        wide = max(segments, key=lambda s: abs(s["bits"][best] - s["bits"][worst]))
        said("They part most over {}: {} bits for {}, {} for {}.", tok(wide["text"]), num(wide["bits"][best]), names[best],
             num(wide["bits"][worst]), names[worst])  # fmt: skip
    ends = {segments[0]["start"], *(s["start"] + s["bytes"] for s in segments)} if segments else set()
    places = len(ends - {0}) if segments else n["offsets"]
    said("Over {} places where all end a token, the next byte expected by {} is {} bits apart on average.", places, far["name"],
         num(far["mean_byte_divergence"]))  # fmt: skip
    if len(others) > 1:
        said("Of {} other models, {} have the same first choice {}.", len(others), sum(r["alike"] == "same" for r in others),
             firsts[0])
    same = next((r for r in others if r["by_token"]), None)
    if same:
        said("{} has the same tokenizer: over {} positions the predictions are {} nats apart (KL) on average, and the first "
             "choice is the same at {}.", same["name"], trace.about["tokens"], num(same["by_token"]["mean_kl_nats"]),
             same["by_token"]["same_first"])  # fmt: skip
        if same is others[0]:
            assert same["by_token"]["mean_kl_nats"] == pytest.approx(trace.lenses["tuning"]["numbers"]["mean_kl_nats"])
    if n["left_out"]:
        said("Left out, because their tokenizer changes the text and its bytes do not add up: {}.", ", ".join(n["left_out"]))
    assert len(others) + len(n["left_out"]) == len(trace.about["versus"])
    said("Which difference between the models shows here (size, training text, tokenizer) is not known.", mark="unknown")
