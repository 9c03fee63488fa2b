"""`why`: from a prompt to a trace, a page and a line of error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch

import intaglio
from conftest import save_subject
from intaglio import choice as wired
from intaglio.commands.why import why as command
from intaglio.errors import InputError
from intaglio.model.subject import load_subject
from intaglio.report.choice import choice_catalogue
from intaglio.report.choice.page import toy
from intaglio.tables import TRACE_TABLES
from intaglio.trace import LENSES
from intaglio.views import Trace
from reader import Reader

PROMPT = "the cat sat on a red"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_subject(tmp_path_factory.mktemp("why") / "subject")


@pytest.fixture(scope="module")
def subject(folder):
    return load_subject(folder)


@pytest.fixture(scope="module")
def trace(subject) -> Trace:
    return wired.why(subject, PROMPT, against="a", lenses=["distribution", "votes"])


def test_votes_sum_to_the_difference_that_plain_transformers_give(subject, trace):
    ids = subject.tokenizer(PROMPT, return_tensors="pt").input_ids
    logits = subject.model(ids).logits[0, -1].double()
    target, against = trace.about["target"]["token"], subject.tokenizer("a").input_ids[-1]
    assert target == int(logits.argmax()) and trace.about["against"]["token"] == against
    difference = float(logits[target] - logits[against])
    assert trace.about["difference_logits"] == pytest.approx(difference, abs=1e-4)
    assert pc.sum(trace.votes["vote_logits"]).as_py() == pytest.approx(difference, abs=1e-3)
    assert trace.about["closes"] and trace.about["ids"] == ids[0].tolist()
    p = logits.softmax(-1)
    for row in trace.rows["candidates"][:5]:
        assert row["probability"] == pytest.approx(float(p[row["token"]]), rel=1e-4)


def test_every_part_is_replaced_and_booked(trace):
    effects = trace.table("effects").to_pylist()
    about = trace.about
    assert len(effects) == about["layers"] * (about["heads"] + 1) == about["replaced"]["mean"]["run"]
    for row in effects:
        terms = row["own_logits"] + row["others_logits"] + row["norm_logits"] + row["shape_logits"]
        assert row["effect_logits"] == pytest.approx(terms, abs=1e-4) and row["closure_logits"] < 1e-4
    by_part = {r["address"]: r["effect_logits"] for r in effects}
    assert all(r["effect_logits"] == by_part.get(r["address"]) for r in trace.votes.to_pylist())
    assert {r["address"] for r in trace.rows["effect_terms"]} <= set(by_part)


def test_tables_are_the_contracts(trace):
    for name, table in TRACE_TABLES.items():
        assert trace.table(name).schema.names == [c.name for c in table.columns]
        for row in trace.rows[name]:
            assert set(row) <= {c.name for c in table.columns}, name
    again = json.loads(trace.to_json())
    assert again["tables"]["votes"] == trace.rows["votes"] and again["target"] == trace.about["target"]
    with pytest.raises(InputError, match="no such table"):
        trace.table("steps")


def test_a_large_model_is_screened_and_says_so(subject, monkeypatch, trace):
    monkeypatch.setattr(wired, "ALL_PRODUCTS", 0)
    monkeypatch.setattr(wired, "SCREENED", 3)
    found = wired.why(subject, PROMPT, against="a", lenses=[])
    assert found.about["replaced"]["mean"] == {"parts": len(trace.rows["effects"]), "run": 3}
    exact = {r["address"]: r["effect_logits"] for r in trace.rows["effects"]}
    for row in found.rows["effects"]:
        assert row["effect_logits"] == pytest.approx(exact[row["address"]], abs=1e-5)
    estimates = {r["address"]: abs(r["estimate_logits"]) for r in trace.rows["effects"]}
    assert {r["address"] for r in found.rows["effects"]} == set(sorted(estimates, key=estimates.get)[-3:])


def test_another_prompt_of_as_many_tokens_is_patched_in(subject):
    other = "the dog sat on a red"
    if len(subject.tokenizer(other).input_ids) != len(subject.tokenizer(PROMPT).input_ids):
        pytest.fail("the two prompts must be equally long")
    found = wired.why(subject, PROMPT, against="a", versus_prompt=other, lenses=[])
    kinds = {r["ablation"] for r in found.rows["effects"]}
    assert kinds == {"mean", "resample"}
    shorter = wired.why(subject, PROMPT, versus_prompt="short", lenses=["instruction"])
    assert {r["ablation"] for r in shorter.rows["effects"]} == {"mean"} and shorter.about["versus_tokens"] == 6


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float(torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum"))


def test_a_second_prompt_beside_the_first(subject):
    found = wired.why(subject, PROMPT, against="a", versus_prompt="Say: the dog ran", effects=False, lenses=["instruction"])
    logits = [subject.model(subject.tokenizer(p, return_tensors="pt").input_ids).logits[0, -1].detach().double()
              for p in (PROMPT, "Say: the dog ran")]  # fmt: skip
    numbers, tables = found.lens("instruction").numbers, found.lenses["instruction"]["tables"]
    assert numbers["kl_nats"] == pytest.approx(kl(*logits), abs=1e-5)
    target, against = found.about["target"]["token"], found.about["against"]["token"]
    assert numbers["difference_b_logits"] == pytest.approx(float(logits[1][target] - logits[1][against]), abs=1e-4)
    assert tables["layers"][-1]["kl_nats"] == pytest.approx(kl(*logits), abs=1e-4)
    change = sum(r["change_logits"] for r in tables["votes"])
    moved = numbers["difference_b_logits"] - numbers["difference_a_logits"]
    assert len(tables["votes"]) < 16 and change == pytest.approx(moved, abs=1e-3)  # all parts are named in so small a model


def test_two_models_token_by_token(subject, tmp_path):
    second = load_subject(save_subject(tmp_path / "second", seed=1))
    found = wired.why(subject, PROMPT, against="a", versus=second, effects=False, lenses=["tuning"])
    ids = subject.tokenizer(PROMPT, return_tensors="pt").input_ids
    both = [m.model(ids).logits[0].detach().double() for m in (subject, second)]
    rows = found.lenses["tuning"]["tables"]["tokens"]
    for i, row in enumerate(rows):
        assert row["kl_nats"] == pytest.approx(kl(both[0][i], both[1][i]), abs=1e-5)
        following = ids[0, i + 1] if i + 1 < len(rows) else found.about["target"]["token"]
        assert row["rank_b"] == int((both[1][i] > both[1][i, following]).sum()) + 1
    for lang in ("en", "ru"):
        assert "<svg" in found.lens("tuning").to_html(lang=lang)
    with pytest.raises(InputError, match="--versus MODEL"):
        wired.why(subject, PROMPT, effects=False, lenses=["tuning"])
    alone = wired.why(subject, PROMPT, effects=False)
    assert "no second model" in alone.lens("tuning").skipped and "no second model" in alone.to_html()
    itself = wired.why(subject, PROMPT, versus=subject, effects=False, lenses=["tuning"])
    assert itself.lens("tuning").numbers["mean_kl_nats"] == 0
    assert any("never part" in said for said in itself.lens("tuning").findings)


def test_output_matrices_of_different_sizes_are_compared_on_the_rows_both_have(subject, tmp_path):
    wide = load_subject(save_subject(tmp_path / "wide"))
    wide.model.resize_token_embeddings(len(wide.tokenizer) + 7)
    found = wired.why(subject, PROMPT, versus=wide, effects=False, lenses=["tuning"]).lens("tuning")
    assert found.numbers["mean_kl_nats"] == pytest.approx(0, abs=1e-9)
    assert found.numbers["p_a"] == pytest.approx(found.numbers["p_b"])


def test_a_model_of_another_tokenizer_is_refused_where_tokens_must_agree(subject, tmp_path):
    other = load_subject(save_subject(tmp_path / "chat", chat=True))
    if other.tokenizer.get_vocab() == subject.tokenizer.get_vocab():
        other.tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(InputError, match="same tokenizer"):
        wired.why(subject, PROMPT, versus=other, effects=False, lenses=["tuning"])
    assert "another tokenizer" in wired.why(subject, PROMPT, versus=other, effects=False).lens("tuning").skipped


def test_a_prompt_of_ids_is_the_text_s_own_decision(subject):
    ids = subject.tokenizer(PROMPT).input_ids
    found, text = wired.why(subject, ids, effects=False, lenses=[]), wired.why(subject, PROMPT, effects=False, lenses=[])
    assert found.about["prompt"] == PROMPT and found.rows == text.rows


def test_a_metric_of_ones_own_takes_the_difference_s_place(subject, monkeypatch):
    def fifth(logits):
        return logits.softmax(-1)[:, 5]

    found = wired.why(subject, PROMPT, against="a", lenses=[], metric=fifth)
    p = float(found.decision.logits_V.softmax(-1)[5])
    assert found.about["metric"] == {"name": "fifth", "value": pytest.approx(p)}
    falls = {r["address"]: r["metric"] for r in found.rows["effects"]}
    assert any(abs(v) > 1e-6 for v in falls.values()) and all(abs(v) <= 1 for v in falls.values())
    assert all(r["effect_metric"] == falls.get(r["address"]) for r in found.rows["votes"])
    strongest = max(falls, key=lambda a: abs(falls[a]))
    for lang, said in (("en", f"{strongest} mattered most to fifth"), ("ru", f"для fifth важнее всех {strongest}")):
        assert said in re.sub(r"\s+", " ", Reader(found.to_html(lang=lang)).text)
    monkeypatch.setattr(wired, "ALL_PRODUCTS", 0.0)  # as on a large model: parts are screened, by the metric too
    monkeypatch.setattr(wired, "SCREENED", 2)
    screened = wired.why(subject, PROMPT, against="a", lenses=[], metric=fifth)
    estimates = {r["address"]: abs(r["estimate_logits"]) for r in found.rows["effects"]}
    assert {r["address"] for r in screened.rows["effects"]} == set(sorted(estimates, key=estimates.get)[-2:])
    for wrong in (lambda logits: logits, lambda logits: 1.0):
        with pytest.raises(InputError, match="one number for each row"):
            wired.why(subject, PROMPT, lenses=[], metric=wrong)


def test_the_nth_token_of_the_answer(subject):
    first = wired.why(subject, PROMPT, effects=False, lenses=[])
    second = wired.why(subject, PROMPT, at=1, effects=False, lenses=[])
    assert second.about["ids"] == [*first.about["ids"], first.about["target"]["token"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"target": "sat on"}, "is not one token; got 'sat on', which splits into"),
        ({"target": 10**6}, "no such token id"),
        ({"target": "a", "against": "a"}, "the same token"),
        ({"at": -1}, "counts tokens"),
        ({"prompt": "cat " * 500}, "longer than the model's context"),
        ({"lenses": ["nope"]}, "no such lens"),
        ({"chat": True}, "no chat template"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(subject, change, said):
    if "chat" in change and getattr(subject.tokenizer, "chat_template", None):
        pytest.skip("this tokenizer has a chat template")
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        wired.why(subject, **({"prompt": PROMPT, "effects": False} | change))
    assert "\n" not in str(refused.value)


def test_the_first_piece_is_taken_only_when_asked(subject):
    found = wired.why(subject, PROMPT, target="sat on", first_piece=True, effects=False, lenses=[])
    assert found.about["target"]["token"] == subject.tokenizer("sat on", add_special_tokens=False).input_ids[0]


def test_nothing_of_the_model_is_changed(subject):
    model = subject.model
    weights = {n: p.clone() for n, p in model.named_parameters()}
    ids = subject.tokenizer(PROMPT, return_tensors="pt").input_ids
    before, attention = model(ids).logits, model.config._attn_implementation
    wired.why(subject, PROMPT, at=1, lenses=None)
    assert torch.equal(model(ids).logits, before) and model.config._attn_implementation == attention
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_the_page_stands_alone_and_says_what_was_measured(trace, lang, tmp_path):
    page = trace.to_html(tmp_path / "why.html", lang=lang)
    assert (tmp_path / "why.html").read_text(encoding="utf-8") == page
    seen = Reader(page)
    for tag, attributes in seen.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttpRequest", page)
    strongest = max(trace.rows["effects"], key=lambda r: abs(r["effect_logits"]))
    assert strongest["address"] in seen.text and str(trace.about["ids"][0]) in seen.text
    assert not re.search(r"\{\w+\}|None|nan", seen.text)


def test_hostile_tokens_are_escaped(trace):
    evil = "<script>alert(1)</script>"
    rows = {**trace.rows, "prompt": [{**r, "text": evil, "letters": evil} for r in trace.rows["prompt"]],
            "candidates": [{**r, "text": evil} for r in trace.rows["candidates"]]}  # fmt: skip
    page = Trace({**trace.about, "target": {**trace.about["target"], "text": evil}}, rows, trace.lenses).to_html()
    assert evil not in page and "&lt;script&gt;" in page


def test_a_lens_shows_itself(trace):
    lens = trace.lens("votes")
    assert lens.table.num_rows == trace.about["layers"] and lens.findings[0].startswith("[measured]")
    assert "<iframe" in lens._repr_html_() and "<svg" in lens.to_html() and "<svg" in lens.plot().page
    with pytest.raises(InputError, match="no such lens"):
        trace.lens("nope")
    assert isinstance(intaglio.Trace, type) and callable(intaglio.why)


def test_arrays_by_both_names(subject, trace):
    ids = subject.tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        out = subject.model(ids, output_hidden_states=True)
    for name, alias, wanted in (
        ("L1.resid", "blocks.1.hook_resid_pre", out.hidden_states[1][0]),
        ("norm", "ln_final.hook_normalized", out.hidden_states[-1][0]),
        ("L0.resid", "hook_embed", out.hidden_states[0][0]),
        ("logits", "logits", out.logits[0]),
    ):
        for spelled in (name, alias):
            torch.testing.assert_close(trace.array(spelled, kind="torch"), wanted, atol=1e-5, rtol=1e-5)
    pattern = trace.array("blocks.1.attn.hook_pattern")
    assert pattern.shape == (2, ids.shape[1], ids.shape[1]) and abs(pattern.sum(-1) - 1).max() < 1e-5
    attn, mlp, before = (trace.array(f"L1.{n}") for n in ("attn", "mlp", "resid"))
    assert abs(before + attn + mlp - trace.array("blocks.1.hook_resid_post")).max() < 1e-4
    with pytest.raises(InputError, match="no such array"):
        trace.array("blocks.9.attn.hook_z")


def test_upstream_of_a_head(trace):
    rows = trace.upstream("L1.attn.H0").to_pylist()
    assert rows[0]["head"] == "L1.attn.H0" and rows[0]["query"] == trace.about["tokens"] - 1
    assert {r["side"] for r in rows} == {"query", "key"}
    for said in ("L1.mlp", "L9.attn.H0"):
        with pytest.raises(InputError, match="not a head"):
            trace.upstream(said)
    with pytest.raises(InputError, match="not at hand"):
        Trace(trace.about, trace.rows, trace.lenses).upstream("L1.attn.H0")


def test_both_languages_have_the_same_texts():
    english, russian = choice_catalogue()["en"], choice_catalogue()["ru"]
    assert english.keys() == russian.keys()
    for key, text in english.items():
        assert set(re.findall(r"{(\w+)}", text)) == set(re.findall(r"{(\w+)}", russian[key])), key
        assert re.search("[а-яё]", russian[key]) or re.fullmatch(r"[^а-яё]*", text), key


@pytest.mark.parametrize("name", LENSES)
def test_every_toy_prints_what_the_page_says(name):
    code, said = toy(name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said and len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_command_writes_what_it_says(folder, tmp_path, capsys):
    command(str(folder), PROMPT, against="a", out=tmp_path / "why.html", json=tmp_path / "why.json", lang="ru", lens="votes")
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "why.json").read_text(encoding="utf-8"))
    assert f"{found['difference_logits']:+.3f} logits" in said and "why.html" in said
    assert list(found["lenses"]) == ["votes"]
    strongest = max(found["tables"]["votes"], key=lambda r: abs(r["part_logits"]))
    assert strongest["address"] in said
    assert 'lang="ru"' in (tmp_path / "why.html").read_text(encoding="utf-8")


def test_votes_over_a_set_of_prompts(folder, tmp_path, capsys):
    rows = [{"prompt": PROMPT, "target": "c", "against": "a"}, {"prompt": "one two", "target": "c", "against": "a"}]
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command(str(folder), prompts=path, json=tmp_path / "set.json")
    found = json.loads((tmp_path / "set.json").read_text(encoding="utf-8"))["parts"]
    single = [wired.why(load_subject(folder), effects=False, lenses=[], **row) for row in rows]
    for part in found[:3]:
        own = [next(r["part_logits"] for r in t.rows["votes"] if r["address"] == part["address"]) for t in single]
        assert part["vote_logits"] == pytest.approx(sum(own) / 2, abs=1e-6)
        assert part["vote_low"] <= part["vote_logits"] <= part["vote_high"] and part["prompts"] == 2
        assert part["for_share"] == sum(v > 0 for v in own) / 2
    path.write_text('{"text": 1}', encoding="utf-8")
    with pytest.raises(InputError, match=r"line 0 of set.jsonl is no prompt"):
        command(str(folder), prompts=path)


def test_a_plan_runs_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr(wired, "why", lambda *a, **k: pytest.fail("it ran"))
    command(str(folder), PROMPT, plan=True)
    said = capsys.readouterr().out
    assert "21 tokens, 6 parts" in said and "replacing parts: 6 runs" in said and "in all about" in said
    command(str(folder), PROMPT, plan=True, effects=False, lens="votes")
    assert "replacing parts: 0 runs" in capsys.readouterr().out


def test_a_plan_counts_what_the_lenses_run(subject):
    """Tokens through the layers, within a factor of three for every lens that runs more than a handful."""
    from intaglio.measure.choice.decision import decide
    from intaglio.measure.choice.lenses import Given, measure_lenses, tokens_run

    found, run = decide(subject.model, subject.tokenizer, PROMPT + ". A dog ran far. It saw a cat and"), [0]
    found.votes  # noqa: B018
    planned = tokens_run(len(found.ids), found.anatomy.n_layers)

    def count(module, args, kwargs):
        run[0] += (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()

    hooks = [b.layer.register_forward_pre_hook(count, with_kwargs=True) for b in found.anatomy.blocks]
    reference = wired.reference_ids(subject.tokenizer)[:256]
    for name in LENSES:
        run[0] = 0
        if name in ("tuning", "instruction", "models"):
            continue
        measure_lenses(found, Given(PROMPT, reference), [name])
        tokens = run[0] / found.anatomy.n_layers
        assert tokens <= max(3 * planned.get(name, 0), 10 * len(found.ids)), name
        assert tokens >= planned.get(name, 0) / 3 or planned[name] < 700, name
    for hook in hooks:
        hook.remove()


@pytest.mark.real
def test_the_built_in_model_knows_paris():
    found = wired.why("smollm2", "The capital of France is", effects=False, lenses=["distribution"])
    assert found.about["target"]["text"] == " Paris" and found.about["target"]["probability"] == pytest.approx(0.7725, abs=1e-3)
    assert found.about["closure_logits"] < 1e-3
    strongest = max(found.rows["votes"], key=lambda r: r["vote_logits"] if r["source"] is not None else -9)
    assert (strongest["address"], strongest["token"]) == ("L23.attn.H4", " France")
