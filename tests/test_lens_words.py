"""Laws of the lenses of words: embedding space and tokenization."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import DynamicCache

from families import BYPASSING, FAMILIES, family
from intaglio.data.vocab import token_bytes
from intaglio.measure.choice import merging, writing
from intaglio.measure.choice.contexts import repeated, shared, weightiest, words_of
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.lenses import Given, Skip, embedding, tokenization
from intaglio.measure.choice.runs import keys_and_values
from intaglio.measure.choice.segments import fewest, pieces_in, ways
from intaglio.model.capture import capture
from wordy import REFERENCE, ids_of, word_tokenizer, wordy

TEXT = "the cat ran by the river unbanked and"
SOME = ("llama", "gpt2", "gemma2", "mistral", "granite", "opt", "gpt_oss")


def given(**more) -> Given:
    return Given(TEXT, ids_of(REFERENCE), **more)


def spelt(text: list[str]) -> list:
    return words_of(range(len(text)), [t.encode() for t in text])


def states_of(model, ids: list[int]) -> torch.Tensor:
    """(S, T, D) by hooks on the layers of a plain run."""
    from intaglio.model.proof import prove

    anatomy, seen = prove(model), []

    def keep(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    places = (*(b.layer for b in anatomy.blocks), anatomy.norm)
    hooks = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in places]
    try:
        with torch.no_grad():
            model(torch.tensor([ids]), use_cache=False)
    finally:
        [h.remove() for h in hooks]
    return torch.stack(seen)


def logits_of(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


# words and their ways


def test_words_hold_letters_and_leave_marks_at_their_ends():
    words = spelt([" (", "un", "der", ",", " —", " it", "'s", ".", "\n", "4"])
    assert [(w.begin, w.end, w.text) for w in words] == [(1, 3, "under"), (5, 7, " it's")]
    cut = [b" \xd0", b"\xba", "от".encode(), b" \xd0", b"\xb4", b"."]
    assert [(w.begin, w.end, w.text) for w in words_of(range(6), cut)] == [(0, 3, " кот"), (3, 5, " д")]
    assert words_of([0, 1], [b"<s>", b"a"], {0})[0].begin == 1


def test_the_word_followed_is_the_weightiest_that_both_hold_behind_different_beginnings():
    a, b = [9, 1, 2, 3, 4], [8, 3, 5, 1, 3, 2]
    names = {1: " the", 2: " bank", 3: " river", 4: " wooden", 5: " ship", 8: "He", 9: "She"}
    wa, wb = (words_of(x, [names[i].encode() for i in x]) for x in (a, b))
    one, other = shared(wa, wb, a, b)
    assert (one.text, one.begin, other.begin) == (" river", 3, 4), "the last place in each, function words last"
    assert shared(wa, wa, a, a) is None, "the same beginning is one context"
    again, function = (words_of(x, [names[i].encode() for i in x]) for x in ([9, 1, 2, 1, 2, 1, 2], [9, 1, 4, 1]))
    assert [w.begin for w in repeated(again)] == [2, 6]
    assert repeated(function) is None, "a function word is none"
    assert weightiest(wa).text == " wooden" and weightiest(wa, [w for w in wb if w.text == " bank"]).text == " bank"
    assert weightiest(words_of([4], [b" wooden"])) is None, "the first token's state is like no other's"


def every_way(word: bytes, vocabulary: list[tuple[int, bytes]]) -> list[tuple[int, ...]]:
    if not word:
        return [()]
    return [(i, *rest) for i, piece in vocabulary if word.startswith(piece) for rest in every_way(word[len(piece) :], vocabulary)]


@pytest.mark.parametrize("word", [" bank", " river", "banker", "anan", "кото", " unbank", "q€"])
def test_all_ways_are_found_and_the_shortest_come_first(word):
    tokenizer = word_tokenizer()
    vocabulary = [(i, token_bytes(tokenizer, i)) for i in range(1, len(tokenizer))] + [(200, b"an"), (201, b"")]
    all_ways = every_way(word.encode(), [v for v in vocabulary if v[1]])
    size = dict(vocabulary)
    wanted = sorted(all_ways, key=lambda w: (len(w), [-len(size[i]) for i in w], w))
    pieces = pieces_in(word.encode(), vocabulary)
    assert ways(word.encode(), pieces) == len(all_ways)
    for most in (1, 3, 1000):
        assert fewest(word.encode(), pieces, most) == wanted[:most]
    assert (word == "q€") == (not all_ways)


# embedding


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi", "opt"])
def test_neighbours_are_those_of_plain_cosines(name):
    found = wordy(name, TEXT)
    seen = embedding.measure(found, given())
    model, size = found.anatomy.model, len(word_tokenizer())
    both = {"input": model.get_input_embeddings().weight, "output": model.get_output_embeddings().weight}
    tied = both["input"].data_ptr() == both["output"].data_ptr()
    assert seen.numbers["tied"] == tied and (set(seen.numbers["null"]) == {"input"}) == tied
    for asked in seen.tables["asked"]:
        tops = {}
        for matrix in seen.numbers["null"]:
            rows = [r for r in seen.tables["neighbours"] if (r["role"], r["matrix"]) == (asked["role"], matrix)]
            weight = both[matrix][:size].detach().double()
            cosine = cosine_similarity(weight, weight[asked["token"]][None])
            other = [i for i in range(size) if i != asked["token"]]
            assert asked[f"mean_{matrix}"] == pytest.approx(float(cosine[other].mean()), abs=1e-5)
            tops[matrix] = sorted(other, key=lambda i: -cosine[i])[:8]
            assert [r["token"] for r in rows] == tops[matrix]
            assert [r["cosine"] for r in rows] == pytest.approx([float(cosine[i]) for i in tops[matrix]], abs=1e-5)
        assert asked["common"] == (None if tied else len(set(tops["input"]) & set(tops["output"])))


def test_a_twin_lies_nearest_and_a_common_direction_is_seen_in_the_null():
    model = family("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = 3 * model.get_input_embeddings().weight[5]
        model.get_output_embeddings().weight += 50
    found = decide(model, word_tokenizer(), TEXT, target=5, against=7)
    seen = embedding.measure(found, given())
    first = seen.tables["neighbours"][0]
    assert (first["token"], first["matrix"]) == (9, "input") and first["cosine"] == pytest.approx(1, abs=1e-6)
    null = seen.numbers["null"]
    assert null["output"] > 0.99 and abs(null["input"]) < 0.1
    rows = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach()[: len(word_tokenizer())], dim=-1)
    exact = (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)].mean()
    assert null["input"] == pytest.approx(float(exact), abs=0.02)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_words_way_is_that_of_plain_runs(name):
    found, other = wordy(name, "the cat by the river bank and"), wordy(name, "he ran to a bank as")
    seen = embedding.measure(found, given(versus_prompt=other))
    way, rows = seen.numbers["contexts"], seen.tables["path"]
    a, b = (x.ids.index(ids_of(" bank")[0]) for x in (found, other))
    assert (way["kind"], way["a"]["position"], way["b"]["position"]) == ("versus", a, b)
    one, two = (states_of(found.anatomy.model, x.ids).double() for x in (found, other))
    assert [r["cosine"] for r in rows] == pytest.approx(cosine_similarity(one[:, a], two[:, b], dim=-1).tolist(), abs=1e-4)
    for i, row in enumerate(rows):
        points = [(t, s[i, j]) for x, s in ((found, one), (other, two)) for j, t in enumerate(x.ids) if j]
        pairs = [float(cosine_similarity(s, u, dim=0)) for (t, s), (v, u) in itertools.combinations(points, 2) if t != v]
        assert row["null"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)
        assert row["low"] == pytest.approx(float(torch.tensor(pairs).quantile(0.05)), abs=1e-3)
        assert row["likeness"] == pytest.approx((row["cosine"] - row["null"]) / (1 - row["null"]), abs=1e-9)
    likeness = [r["likeness"] for r in rows]
    assert likeness[way["lowest"]] == min(likeness)
    assert way["half"] in (None, 0) or (all(x < 0.5 for x in likeness[way["half"] :]) and likeness[way["half"] - 1] >= 0.5)
    p, q = (logits_of(found.anatomy.model, x.ids)[j].log_softmax(-1) for x, j in ((found, a), (other, b)))
    likelier = (p.exp() * (p - q)).argsort(descending=True)[:6].tolist()
    assert way["goes_on_a"] == [found.written(i) for i in likelier]


def test_a_word_that_reads_nothing_never_parts():
    model = family("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    found, other = (decide(model, word_tokenizer(), t, target=5) for t in ("the river bank and", "he ran to a bank as"))
    seen = embedding.measure(found, given(versus_prompt=other))
    assert all(r["cosine"] == pytest.approx(1, abs=1e-5) for r in seen.tables["path"])
    assert seen.numbers["contexts"]["half"] is None and seen.tables["path"][1]["first_a"] == seen.tables["path"][1]["first_b"]


@pytest.mark.parametrize("prompt, kind, a, b", [
    ("the river and a river by", "repeated", "the", "the river and a"), ("unbanked as", "placed", "", None),
    ("the cat by a bank and", "reference", "the cat by a", None), ("ак кот", "reference", "ак", None),
])  # fmt: skip
def test_the_second_context_is_looked_for_in_order(prompt, kind, a, b):
    way = embedding.measure(wordy("llama", prompt), given()).numbers["contexts"]
    assert way["kind"] == kind and way["a"]["before"].removeprefix("<s>").strip() == a
    assert b is None or way["b"]["before"].removeprefix("<s>").strip() == b
    if kind == "placed":
        assert way["b"]["before"].endswith("bank.") and way["text"] == "unbanked"


def test_nothing_is_followed_where_there_is_no_second_context():
    def kind(prompt, **more):
        found = wordy("llama", prompt)
        seen = embedding.measure(found, Given("", **more))
        assert seen.tables["path"] == [] and seen.tables["neighbours"]
        return seen.numbers["contexts"]["kind"]

    assert kind(". .", reference_ids=ids_of(REFERENCE)) == "nothing"
    assert kind("a bank", reference_ids=[]) == "no_reference"


# tokenization


@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_run_side_by_side_is_a_plain_run(name, monkeypatch):
    monkeypatch.setattr(tokenization, "ROWS", 4)
    found = wordy(name, "the cat by the river bank the unbank")
    seen = tokenization.measure(found, given())
    n, rows, model = seen.numbers, seen.tables["ways"], found.anatomy.model
    assert found.text(found.ids[n["begin"] : n["end"]]) == n["word"] == " unbank", "the several-token word nearest to the end"
    all_ways = every_way(b" unbank", [(i, token_bytes(word_tokenizer(), i)) for i in range(1, len(word_tokenizer()))])
    assert n["ways"] == len(all_ways) == len(rows) > 1
    word = next(w for w in embedding._words(found, found.ids) if w.text == " river")
    kept = fewest(b" river", pieces_in(b" river", tokenization._vocabulary(found)), 40)
    assert len(kept) > tokenization.ROWS
    logits, log_p = tokenization.run_ways(found, word, kept)
    for way, mine, nats in zip(kept, logits, log_p):
        plain = logits_of(model, [*found.ids[: word.begin], *way, *found.ids[word.end :]])
        torch.testing.assert_close(mine, plain[-1], atol=3e-4, rtol=1e-4)
        read = plain.log_softmax(-1)[range(word.begin - 1, word.begin - 1 + len(way)), list(way)]
        assert nats == pytest.approx(float(read.sum()), abs=1e-3)


def test_what_a_way_does_is_said_beside_the_tokenizers_own():
    found = wordy("llama", "the cat by the unbanked the river")
    seen = tokenization.measure(found, given())
    rows, model, n = seen.tables["ways"], found.anatomy.model, seen.numbers
    assert n["word"] == " unbanked" and sum(r["own"] for r in rows) == 1 and len(rows) == n["run"] <= 64
    own = found.logits_V.log_softmax(-1)
    word = ids_of(" unbanked")
    assert next(r for r in rows if r["own"])["tokens"] == [found.written(i) for i in word]
    for row in rows[:6]:
        ids = [next(i for i in range(1, len(word_tokenizer())) if found.written(i) == t) for t in row["tokens"]]
        plain = logits_of(model, [*found.ids[: n["begin"]], *ids, *found.ids[n["end"] :]])[-1]
        log_q = plain.log_softmax(-1)
        assert row["kl_nats"] == pytest.approx(max(0, float((own.exp() * (own - log_q)).sum())), abs=1e-4)
        assert row["p"] == pytest.approx(float(log_q[5].exp()), rel=1e-3) and row["first"] == found.written(int(plain.argmax()))
        assert row["difference_logits"] == pytest.approx(float(plain[5] - plain[7]), abs=1e-3)
    total = math.log(sum(math.exp(r["log_p"]) for r in rows))
    assert n["word_log_p"] == pytest.approx(total, abs=1e-6) and total < 0
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert n["own_rank"] == sorted((r["log_p"] for r in rows), reverse=True).index(n["own_log_p"])


def test_a_word_at_the_very_beginning_has_no_probability():
    found = decide(family("llama"), word_tokenizer(), ids_of("unbanked the"), target=5, against=7)
    n = tokenization.measure(found, given()).numbers
    assert n["begin"] == 0 and not n["before"] and n["own_log_p"] is None and n["run"] > 1


def followed(found: Decision, text: str):
    word = next(w for w in embedding._words(found, found.ids) if w.text == text)
    return word, word.end - 1


@pytest.mark.parametrize("name", SOME)
def test_attention_and_likeness_to_the_whole_word_are_those_of_plain_runs(name):
    found = wordy(name, "the cat bank by unbanked as")
    word, last = followed(found, " unbanked")
    model = found.anatomy.model
    rows = merging._attended(found, found.base, word.begin, last)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        looks = model(found.ids_BT, output_attentions=True).attentions
    model.set_attn_implementation(before)
    for row, pattern in zip(rows, looks):
        share = pattern[0, :, last, word.begin : last].sum(-1)
        assert row["attention"] == pytest.approx(float(share.mean()), abs=1e-5)
        assert row["head_attention"] == pytest.approx(float(share[row["head"]]), abs=1e-5)
        assert row["head_attention"] == pytest.approx(float(share.max()), abs=1e-5)
    whole = ids_of(" bank")[0]
    merged = merging.merged_states(found, found.base, word.begin, word.ids, whole)
    stem = found.ids[: word.begin]
    mine, one, alone = (states_of(model, ids).double() for ids in (found.ids, [*stem, whole], [*stem, word.ids[-1]]))
    for i, row in enumerate(merged):
        cosine = cosine_similarity(mine[i], one[i, -1][None], dim=-1)
        others = [float(c) for j, c in enumerate(cosine) if j and not word.begin <= j <= last]
        assert row["pieces"] == pytest.approx(float(cosine[last]), abs=1e-4)
        assert row["alone"] == pytest.approx(float(cosine_similarity(alone[i, -1], one[i, -1], dim=0)), abs=1e-4)
        assert row["others"] == pytest.approx(sum(others) / len(others), abs=1e-4)


def test_a_word_already_whole_is_itself_in_every_layer():
    found = wordy("qwen2", "the cat by the bank as")
    begin = found.ids.index(ids_of(" bank")[0])
    merged = merging.merged_states(found, found.base, begin, (found.ids[begin],), found.ids[begin])
    assert all(r["pieces"] == pytest.approx(1, abs=1e-5) == r["likeness"] for r in merged)
    seen = tokenization.measure(wordy("qwen2", " the bank"), given()).numbers
    assert seen["merging"]["whole"] == " bank" and not seen["merging"]["own"] and seen["merging"]["same_bytes"]


@pytest.mark.parametrize("name", [n for n in SOME if n != "opt"])
def test_swapped_pieces_are_another_words_keys_and_values(name):
    found = wordy(name, "the cat by unbanked as he")
    word, last = followed(found, " unbanked")
    other = [*found.ids[: word.begin], *ids_of(" the river ran by the bank by")[: last - word.begin]]
    model, layers = found.anatomy.model, list(range(found.anatomy.n_layers))
    theirs = keys_and_values(found.anatomy, capture(found.anatomy, torch.tensor([other])), last)
    swapped = merging.swapped_logits(found, found.base, theirs, word.begin, last, layers)
    own = keys_and_values(found.anatomy, found.base, last)
    same = merging.swapped_logits(found, found.base, own, word.begin, last, layers)
    torch.testing.assert_close(same, found.logits_V.expand_as(same), atol=3e-4, rtol=1e-4)
    assert float((swapped[0] - same[0]).abs().max()) > 1e-3
    for at in layers:
        caches = DynamicCache(), DynamicCache()
        with torch.no_grad():
            for ids, cache in zip((found.ids[:last], other[:last]), caches):
                model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            for mine, new in list(zip(caches[0].layers, caches[1].layers))[at:]:
                mine.keys[:, :, word.begin :] = new.keys[:, :, word.begin :]
                mine.values[:, :, word.begin :] = new.values[:, :, word.begin :]
            wanted = model(torch.tensor([found.ids[last:]]), past_key_values=caches[0], use_cache=True).logits[0, -1].double()
        torch.testing.assert_close(swapped[at], wanted, atol=3e-4, rtol=1e-4)


def test_what_writing_costs_is_counted():
    found = wordy("llama", "the bank Дот")
    rows = {r["text"]: r for r in writing.writing(found, given())}
    assert rows["prompt"] == {"text": "prompt", "tokens": len(found.ids) - 1, "bytes": 15, "letters": 10, "words": 3, "parts": 4}
    assert rows["english"]["words"] == 24 and rows["russian"]["words"] == 16 and rows["english"]["parts"] == 0
    assert rows["english"]["tokens"] + rows["russian"]["tokens"] == len(ids_of(REFERENCE))
    tokens = tokenization.measure(found, given()).tables["tokens"]
    assert [t["part"] for t in tokens[-5:]] == [True, True, False, True, True] and tokens[-5]["bytes"] in ("D0", "20 D0")


def test_the_word_and_its_absence():
    assert tokenization.chosen(wordy("llama", "the bank unbanked the bank."), given()).text == " unbanked"
    assert tokenization.chosen(wordy("llama", " the the river the"), given()).text == " river", "of single tokens the longest"
    chat = Given("my bank", ids_of(REFERENCE), chat=True)
    assert tokenization.chosen(wordy("llama", " the bank unbanked"), chat).text == " bank", "what the user wrote"
    with pytest.raises(Skip, match="no_word"):
        tokenization.measure(wordy("llama", "..."), given())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_served_and_left_as_it_was(name):
    found = wordy(name, TEXT)
    model, ids = found.anatomy.model, found.ids_BT
    with torch.no_grad():
        before = model(ids).logits
    config, state = copy.deepcopy(model.config), torch.get_rng_state()
    for lens in (embedding, tokenization):
        first, second = (lens.measure(found, given()) for _ in range(2))
        assert json.dumps([first.numbers, first.tables], allow_nan=False) == json.dumps([second.numbers, second.tables])
    assert ("why_not" in first.numbers["merging"]["swap"]) == (name in BYPASSING)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    assert model.config.to_dict() == config.to_dict() and torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
