"""Scores on texts of our own equal their slow twins; a model without training earns no role; real files; Russian."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from intaglio.data.conllu import read_conllu
from intaglio.data.heads import prose
from intaglio.errors import DataError
from intaglio.measure.heads.tasks import TASKS, run_tasks
from intaglio.measure.heads.tasks import copying as of_copying
from intaglio.measure.heads.tasks.coreference import PRONOUNS, own_prompts, score_choices, winogender_prompts
from intaglio.measure.heads.tasks.indirect import indirect_prompts
from intaglio.measure.heads.tasks.name_mover import name_movers
from intaglio.measure.heads.tasks.paths import pairs_of, path_shares
from intaglio.measure.heads.tasks.s_inhibition import best_movers, find_s_inhibition
from intaglio.measure.heads.tasks.successor import find_successor, ordered_prompts
from intaglio.measure.heads.tasks.syntax import find_syntax, parse, rival_scores, score_relations
from intaglio.model.proof import prove
from planted_tasks import OneHot, attending, word_tokenizer, words_of
from truth import heads as truth

SIZES = dict(hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
FAMILIES = ("llama", "gpt2", "gemma3")  # grouped; centred norms with biases; norms behind the parts


def words() -> list[str]:
    text = [w for language in ("en", "ru") for t in prose(language) for w in re.findall(r"\w+|[^\w\s]+", t)]
    return words_of("indirect", "successor", "coreference", "temporal", "retrieval", more=text)


def random_model(family: str, size: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=24, n_layer=2, n_head=4, n_positions=512,
                                           bos_token_id=0, eos_token_id=0))
    elif family == "gemma3":
        model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=size, **SIZES, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=size, **SIZES, max_position_embeddings=512))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.15 if p.ndim < 2 else 0.2))
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest):
    """A proved random model with a word as a token, in double precision: a sign or a place that is a tie counts."""
    model = random_model(request.param, len(words())).double()
    return prove(model), word_tokenizer(words())


def each_head(anatomy):
    return itertools.product(range(anatomy.n_layers), range(anatomy.n_heads))


def test_copying_equals_loops(subject, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy, tokenizer = subject
    ids_NT = of_copying.reference_texts(tokenizer, texts=6, tokens=24)
    monkeypatch.setattr(of_copying, "reference_texts", lambda tokenizer, tokens: ids_NT)
    found = {s.role: s.values_NLH for s in of_copying.find_copying(anatomy, tokenizer, np.random.default_rng(0)).sampled}
    for layer, head in ((0, 1), (1, 2)):
        copied, suppressed = truth.copying(anatomy, ids_NT.tolist(), 1, layer, head)
        assert found["copying"][1, layer, head] == pytest.approx(copied, abs=1e-9)
        assert found["copy_suppression"][1, layer, head] == pytest.approx(suppressed, abs=1e-9)


def test_successor_equals_loops(subject) -> None:
    anatomy, tokenizer = subject
    (found,) = [s for s in find_successor(anatomy, tokenizer, np.random.default_rng(5)).sampled if s.detail == "en"]
    prompts, _ = ordered_prompts(tokenizer, "en", np.random.default_rng(5))
    assert len(prompts) == len(found.values_NLH)
    for i, (layer, head) in itertools.product((0, 9), each_head(anatomy)):
        slow = truth.successor(anatomy, prompts[i].ids, prompts[i].facts["sources"], prompts[i].facts["firsts"], layer, head)
        assert found.values_NLH[i, layer, head] == pytest.approx(slow, abs=1e-9)


def test_name_movers_and_what_turns_them_equal_loops(subject) -> None:
    anatomy, tokenizer = subject
    prompts = indirect_prompts(tokenizer, np.random.default_rng(1), texts=8)
    found = name_movers(anatomy, prompts, np.random.default_rng(2))
    for i, (layer, head) in itertools.product((0, 3), each_head(anatomy)):
        p = prompts[i]
        slow = truth.name_mover(anatomy, p.ids, p.spans, p.facts["io"], p.facts["s"], layer, head)
        assert found.values_NLH[i, layer, head] == pytest.approx(slow, abs=1e-9)
    found.values_NLH[:, 1, 2] = 1.0  # call one head a mover
    assert (1, 2) in best_movers(found.values_NLH)
    found.values_NLH[:, :, [0, 1, 3]] = 0.0  # and no other
    turning, movers = find_s_inhibition(anatomy, prompts, found, np.random.default_rng(3))
    assert movers == [(1, 2)] and np.all(turning.values_NLH[:, 1] == 0)  # nothing above the mover's own layer turns it
    for head in range(anatomy.n_heads):
        p = prompts[1]
        e = truth.turned(anatomy, p.ids, p.facts["other"].ids, p.spans, movers, 0, head)
        look = truth.looks(truth.seen(anatomy, p.ids), 0, head, len(p.ids) - 1, range(*p.spans["S2"]))
        assert turning.values_NLH[1, 0, head] == pytest.approx(look * np.tanh(e / 2), rel=2e-2, abs=1e-6)


def test_shares_equal_loops(subject) -> None:
    anatomy, tokenizer = subject
    found = path_shares(anatomy, tokenizer, np.random.default_rng(4))
    pairs = dict(zip(("template", "content"), pairs_of(tokenizer, np.random.default_rng(4))))
    for kind, (layer, head) in itertools.product(pairs, ((1, 3),)):
        assert found[f"{kind}_share"][layer, head] == pytest.approx(truth.stays(anatomy, pairs[kind], layer, head), abs=1e-5)


def test_choices_equal_loops(subject) -> None:
    anatomy, tokenizer = subject
    prompts = own_prompts(tokenizer, "ru")
    assert sum(p.facts["first_is_right"] for p in prompts) * 2 == len(prompts)
    found = score_choices(anatomy, prompts, "ru")
    for i, (layer, head) in itertools.product((0, 5), each_head(anatomy)):
        slow = []
        for p in prompts[2 * i : 2 * i + 2]:
            run = truth.seen(anatomy, p.ids)
            right, wrong = (truth.looks(run, layer, head, p.last("P"), range(*p.spans[m])) for m in ("RIGHT", "WRONG"))
            slow.append(0.5 if right + wrong < 0.05 else float(right > wrong))
        assert found.values_NLH[i, layer, head] == np.mean(slow)
        assert found.null_NLH[i, layer, head] == 0.5


TREES = "".join(
    "\n".join("\t".join((str(i + 1), w, w, "X", "_", "_", str(h), r, "_", "_")) for i, (w, h, r) in enumerate(rows)) + "\n\n"
    for n in range(24)
    for rows in ([
        *[("old", n % 4 + 2, "amod")], *[("red", n % 4 + 2, "amod")] * (n % 4), ("dog", n % 4 + 3, "nsubj"), ("saw", 0, "root"),
        ("cats", n % 4 + 3, "obj"),
    ],)
)  # fmt: skip


def test_a_head_that_follows_a_relation_beats_the_fixed_offset(tmp_path: Path) -> None:
    """Old red red dog: the first adjective stands at changing distances, the subject always one before its verb."""
    (tmp_path / "trees.conllu").write_text(TREES, encoding="utf-8")
    vocabulary = words_of(more=["old red dog saw cats"])
    model = OneHot(vocabulary, layers=1)
    anatomy = prove(model.model)

    def finds_verb(text: list[str]) -> dict[int, dict[int, float]]:
        return {len(text) - 1: {text.index("saw"): 0.4, text.index("dog"): 0.3}}

    def previous(text: list[str]) -> dict[int, dict[int, float]]:
        return {q: {q - 1: 1.0} for q in range(1, len(text))}

    def finds_old(text: list[str]) -> dict[int, dict[int, float]]:
        return {q: {1: 0.2, q: 0.5} for q in range(2, len(text))}  # most on itself, which is no choice

    with attending(anatomy, vocabulary, {(0, 0): finds_verb, (0, 1): previous, (0, 2): finds_old}):
        found = find_syntax(anatomy, word_tokenizer(vocabulary), tmp_path / "trees.conllu", np.random.default_rng(0))
    mean = {s.detail: (s.values_NLH.mean(0)[0], s.null_NLH.mean(0)[0]) for s in found.sampled}
    assert set(mean) == {"amod head->dependent", "nsubj head->dependent", "obj dependent->head"}
    values, null = mean["obj dependent->head"]
    assert values[0] == values[1] == 1 and values[2] == 0 and null[0] == 1  # right, and no better than "the word before"
    values, null = mean["nsubj head->dependent"]
    assert values[1] == 1 and values[0] == 0 and null[1] == 1
    values, null = mean["amod head->dependent"]
    assert values[2] == 1 and values[1] == 1 and null[2] == 1  # any of a word's adjectives will do


@pytest.mark.parametrize("name", ["en_ewt_200", "ru_taiga_200"])
def test_arcs_of_real_trees_equal_loops(shared: Path, name: str) -> None:
    from conftest import byte_tokenizer

    tokenizer = byte_tokenizer()
    anatomy = prove(random_model("llama", len(tokenizer)).double())
    trees = [s for s in read_conllu(shared / "grammar" / "ud" / f"{name}.conllu") if 4 <= len(s.words) <= 12][:12]
    parsed = [parse(tokenizer, s) for s in trees]
    details = sorted({d for p in parsed for d in p.arcs})
    assert {"nsubj head->dependent", "obj dependent->head"} <= set(details)
    found = {s.detail: s.values_NLH for s in score_relations(anatomy, parsed, details)}
    for i, (tree, p) in enumerate(zip(trees, parsed)):
        run = truth.seen(anatomy, p.prompt.ids)
        heads, relations = [w.head for w in tree.words], [w.relation for w in tree.words]
        for detail in details:
            relation, way = detail.split(" ")
            hits = truth.arcs_found(run, p.tokens, heads, relations, relation, way == "head->dependent", 1, 2)
            mean = np.mean(hits) if hits else np.nan
            assert found[detail][i, 1, 2] == pytest.approx(mean, nan_ok=True)


def test_the_plain_rule_is_chosen_on_the_other_half(tmp_path: Path) -> None:
    """Subjects stand two before the verb in even sentences and three before it in odd ones: each half misleads the other."""
    text = ""
    for n in range(8):
        middle = [("dog", 5, "nsubj"), ("not", 5, "advmod")]
        rows = [("old", 5, "advmod"), *(middle if n % 2 else middle[::-1]), ("old", 5, "advmod"), ("saw", 0, "root")]
        text += "".join(f"{i}\t{w}\t{w}\tX\t_\t_\t{h}\t{r}\t_\t_\n" for i, (w, h, r) in enumerate(rows, 1)) + "\n"
    (tmp_path / "trees.conllu").write_text(text, encoding="utf-8")
    tokenizer = word_tokenizer(words_of(more=["old dog not saw"]))
    parsed = [parse(tokenizer, s) for s in read_conllu(tmp_path / "trees.conllu")]
    assert rival_scores(parsed, "nsubj head->dependent").tolist() == [0.0] * 8
    assert rival_scores([parsed[0]] * 4, "nsubj head->dependent").tolist() == [1.0] * 4
    assert np.isnan(rival_scores(parsed[:1], "obj head->dependent")).all()


def test_a_model_without_training_earns_no_role(shared: Path) -> None:
    """With one test per head and role at 1 in 1000, and the smallest effect of a tenth, chance gives none."""
    tokenizer = word_tokenizer(words())
    named = 0
    for seed, family in enumerate(("llama", "gpt2")):
        anatomy = prove(random_model(family, len(tokenizer), seed))
        results = run_tasks(anatomy, tokenizer, seed=seed, corpus=shared / "grammar" / "ud" / "en_ewt_200.conllu",
                            winogender=shared / "grammar" / "winogender.tsv")  # fmt: skip
        assert {"s_inhibition", "retrieval"} <= set(results.skipped)
        assert {s.role for s in results.sampled} == set(TASKS) - {"s_inhibition", "retrieval"}
        for s in results.sampled:
            n_N = np.isfinite(s.values_NLH).all((1, 2))
            more = s.values_NLH[n_N] - s.null_NLH[n_N]
            t = more.mean(0) / (more.std(0, ddof=1) / n_N.sum() ** 0.5 + 1e-12)
            named += int(((t > 4) & (more.mean(0) > 0.1)).sum())
    assert named == 0


def test_level_attention_over_bytes_beats_no_plain_rule(shared: Path) -> None:
    """It chooses the word with most bytes, which leads to verbs far more often than any fixed offset does."""
    from conftest import byte_tokenizer

    tokenizer = byte_tokenizer()
    model = random_model("llama", len(tokenizer))
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight.zero_()
    trees = [s for s in read_conllu(shared / "grammar" / "ud" / "ru_taiga_200.conllu") if len(s.words) <= 14]
    parsed = [parse(tokenizer, s) for s in trees]
    (found,) = score_relations(prove(model), parsed, ["parataxis dependent->head"])
    values, null = np.nanmean(found.values_NLH, 0), np.nanmean(found.null_NLH, 0)
    assert values.min() > 0.3 and (values <= null + 0.05).all()


# --- Winogender ----------------------------------------------------------------------------


def test_winogender_is_read_in_pairs(shared: Path) -> None:
    from conftest import byte_tokenizer

    found = winogender_prompts(byte_tokenizer(), shared / "grammar" / "winogender.tsv", np.random.default_rng(0), texts=20)
    assert len(found) == 20
    for first, second in zip(found[::2], found[1::2]):
        a, b = ({m: p.text.encode()[s - 1 : e - 1].decode() for m, (s, e) in p.spans.items()} for p in (first, second))
        assert (a["RIGHT"], a["WRONG"]) == (b["WRONG"], b["RIGHT"]) and a["P"] in PRONOUNS


HEADER = "sentid\tsentence\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not Winogender's table"),
        ("a\tb\n", "is not Winogender's table; got a"),
        (HEADER, "holds no pair of sentences"),
        (HEADER + "cook.guest.1.male.txt\n", "line 2 is not a sentence of Winogender"),
        (HEADER + "cook.guest.7.male.txt\tThe cook told the guest that he ate.\n", "line 2 is not a sentence"),
        (HEADER + "cook.guest.1.male.txt\tThe cook slept.\n", "line 2: the sentence does not name the guest"),
        (HEADER + "cook.guest.1.male.txt\tThe cook told the guest.\n", "line 2: the sentence has no pronoun"),
    ],
)
def test_a_table_that_is_not_winogenders_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "w.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(says)):
        winogender_prompts(word_tokenizer(words()), path, np.random.default_rng(0))


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.tsv"):
        winogender_prompts(word_tokenizer(words()), tmp_path / "none.tsv", np.random.default_rng(0))


# --- the built-in model --------------------------------------------------------------------


@pytest.mark.real
def test_known_heads_of_the_built_in_model() -> None:
    """Its induction heads retrieve, heads of one late layer move names, and a head below turns them."""
    from intaglio.model.subject import load_subject

    subject = load_subject("smollm2")
    results = run_tasks(prove(subject.model), subject.tokenizer, roles=["retrieval", "name_mover", "s_inhibition"])
    best = {}
    for s in results.sampled:
        mean_LH = np.nanmean(s.values_NLH, 0)
        order = np.argsort(-mean_LH, axis=None)[:5]
        best[s.role, s.detail] = [tuple(int(x) for x in np.unravel_index(i, mean_LH.shape)) for i in order]
        assert mean_LH.flat[order[0]] > np.nanmean(s.null_NLH, 0).max()
    assert best["retrieval", "en"][0] == best["retrieval", "ru"][0] == (18, 6)
    assert {(17, 3), (17, 4)} <= set(best["retrieval", "en"])
    assert best["name_mover", ""][0] == (23, 0) and {layer for layer, _ in best["name_mover", ""][:4]} == {23}
    assert best["s_inhibition", ""][0] == (20, 0)
