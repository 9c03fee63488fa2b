"""What a user or a malicious file can do to the commands about heads: one line, nothing half-written, the model as it was."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import intaglio as package
from conftest import byte_tokenizer, save_subject
from intaglio.analyse.heads.choices import choice_of
from intaglio.commands.options import check_files
from intaglio.commands.replay import _show, cell
from intaglio.errors import InputError, SubjectError
from intaglio.measure.heads import circuits
from intaglio.model import attention
from intaglio.model.proof import prove
from intaglio.model.subject import load_subject
from intaglio.store.run import RunWriter, open_run

FEW = ("--texts", 2, "--roles", "self")
HEAD = "L1.attn.H0"
MEAN = "[/red][bold<script>\x1b[31m\u2028\"'"


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch):
    monkeypatch.setattr(circuits, "DRAWS", 10)


def spoilt(tiny, folder, value):
    """A copy of a model with one number that is none."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = value
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no/page.html", "x" * 250 + ".html", "/proc/page.html"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(refused, tiny, tmp_path, monkeypatch, name):
    monkeypatch.setattr("intaglio.roles.heads", lambda *_, **__: pytest.fail("the work was begun"))
    for option in ("--out", "--json"):
        assert "page.html" in refused("heads", tiny, *FEW, option, tmp_path / name) or "x" * 250 in name
    assert list(tmp_path.iterdir()) == []


def test_checking_leaves_nothing_and_touches_nothing(tmp_path):
    old = tmp_path / "old.html"
    old.write_text("old")
    check_files(old, tmp_path / "new.json")
    assert [p.name for p in tmp_path.iterdir()] == ["old.html"] and old.read_text() == "old"


# --- arguments -----------------------------------------------------------------------------------


def test_what_goes_with_no_role_or_is_no_model(refused, tiny, tmp_path):
    said = refused("heads", tiny, *FEW, "--corpus", tmp_path / "none.conllu")
    assert "--corpus is for the role syntax" in said
    assert "--winogender is for the role coreference" in refused("heads", tiny, *FEW, "--winogender", tmp_path / "none.tsv")
    assert "subject is needed" in refused("heads", "")
    assert "two checkpoints" in refused("heads", tiny, "--history", "--plan")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{")
    assert "--history" in refused("heads", tmp_path / "run")
    assert "manifest.json" in refused("heads", tmp_path / "run", "--history")


def test_texts_are_read_before_the_model_runs(refused, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("intaglio.roles.heads", lambda *_, **__: pytest.fail("the work was begun"))
    (tmp_path / "none").write_text("just a text\n")
    assert "CoNLL-U" in refused("heads", tiny, "--texts", 2, "--corpus", tmp_path / "none")
    assert "Winogender" in refused("heads", tiny, "--texts", 2, "--winogender", tmp_path / "none")
    for text in ("[1]", "[" * 100_000, "null", '{"prompt": 1}'):
        (tmp_path / "why.json").write_text(text)
        assert "why --json" in refused("heads", tiny, *FEW, "--choice", tmp_path / "why.json")


def test_winogender_may_begin_with_a_mark(shared, tmp_path):
    from intaglio.measure.heads.tasks.coreference import read_table

    table = shared / "grammar" / "winogender.tsv"
    (tmp_path / "marked.tsv").write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert read_table(tmp_path / "marked.tsv") == read_table(table)


def test_a_model_without_tokenizer_says_so(refused, tiny, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny / name, tmp_path / name)
    assert "has no tokenizer" in refused("heads", tmp_path)


def test_a_decision_of_other_weights_joins_no_head(intaglio, refused, tiny, tmp_path):
    other = save_subject(tmp_path / "other", seed=7)
    intaglio("why", other, "a cat", "--lens", "votes", "--json", tmp_path / "why.json")
    assert "other weights" in refused("heads", tiny, *FEW, "--choice", tmp_path / "why.json", "--out", tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
    intaglio("heads", tiny, other, *FEW, "--choice", tmp_path / "why.json")  # a series ends with the last one's weights


def test_a_decision_of_another_model_is_refused_before_the_work(intaglio, refused, tiny, tmp_path, monkeypatch):
    other, small = save_subject(tmp_path / "other", seed=7), save_subject(tmp_path / "small", num_hidden_layers=1)
    for name, subject in (("other", other), ("small", small)):
        intaglio("why", subject, "a cat", "--lens", "votes", "--json", tmp_path / f"{name}.json")
    for work in ("intaglio.roles.heads", "intaglio.history.history_of"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work was begun"))
    for subjects in ([tiny], [other, tiny]):
        assert "other weights" in refused("heads", *subjects, *FEW, "--choice", tmp_path / "other.json")
        assert "another shape" in refused("heads", *subjects, *FEW, "--choice", tmp_path / "small.json")


def test_a_page_whose_name_is_an_address_is_a_file(intaglio, tiny, tmp_path):
    name = "javascript:alert(1)#?%"
    intaglio("why", tiny, "a cat", "--lens", "votes", "--json", tmp_path / f"{name}.json", "--out", tmp_path / f"{name}.html")
    intaglio("heads", tiny, *FEW, "--choice", tmp_path / f"{name}.json", "--json", tmp_path / "a.json",
             "--out", tmp_path / "a.html")  # fmt: skip
    (choice,) = json.loads((tmp_path / "a.json").read_text())["choices"]
    assert choice["page"] == "./javascript%3Aalert%281%29%23%3F%25.html"


@pytest.mark.parametrize("changes", [
    {"difference_logits": float("nan")}, {"difference_logits": "1"}, {"target": {"text": 5}}, {"prompt": ["a"] * 5},
    {"tables": {"votes": [{"address": "L0.attn.H0", "source": None, "vote_logits": 1, "part_logits": float("inf"),
                           "effect_logits": None}]}},
])  # fmt: skip
def test_a_decision_of_wrong_types_is_none(changes):
    trace = {"prompt": "a", "target": {"text": "b"}, "layers": 1, "heads": 1, "difference_logits": 1.0, "tables": {"votes": []}}
    assert choice_of(trace, layers=1, heads=1)["target"] == "b"
    with pytest.raises(InputError, match="no whole decision"):
        choice_of(trace | changes, layers=1, heads=1)


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(refused, tiny, tmp_path, value):
    bad = spoilt(tiny, tmp_path / "bad", value)
    assert "not finite; got 1 in model.layers.1.self_attn.o_proj.weight" in refused("heads", bad, *FEW)
    assert "not finite" in refused("heads", tiny, *FEW, "--versus", bad)
    last = save_subject(tmp_path / "last", seed=3)
    said = refused("heads", tiny, bad, last, *FEW, "--json", tmp_path / "a.json")
    assert f"{bad}: the weights" in said and not (tmp_path / "a.json").exists()


def test_a_large_sum_of_finite_weights_is_no_fault(tiny):
    model = load_subject(tiny).model
    with torch.no_grad():
        model.model.embed_tokens.weight[:2] = 3e38
    try:
        prove(model)
    except SubjectError as error:
        assert "not finite" not in str(error)


@pytest.mark.parametrize("changes", [
    {"num_attention_heads": 1, "num_key_value_heads": 1}, {"head_dim": 32},
    {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
])  # fmt: skip
def test_heads_as_wide_as_the_residual_stream_or_wider_have_a_null(intaglio, tmp_path, changes, monkeypatch):
    monkeypatch.setattr(circuits, "DRAWS", 400)
    save_subject(tmp_path / "wide", **changes)
    intaglio("heads", tmp_path / "wide", *FEW, "--json", tmp_path / "a.json")
    rows = json.loads((tmp_path / "a.json").read_text())["tables"]["weights"]
    assert all(0 < r["ov_copying_null"] <= 1 and 0 < r["qk_matching_null"] <= 1 for r in rows)


def test_a_difference_from_and_to_nothing(intaglio, tiny, tmp_path, capsys):
    zero = tmp_path / "zero"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    model.save_pretrained(zero)
    for pair in ((tiny, zero), (zero, tiny)):
        intaglio("tensors", pair[0], "--diff", pair[1], "--json", tmp_path / "d.json", "--out", tmp_path / "d.html")
        rows = json.loads((tmp_path / "d.json").read_text())["tables"]["tensors"]
        moved = [r for r in rows if r["changed"] and len(r["shape"]) == 2]
        assert moved and all(r["rank"] > 0 and r.get("shared_left") is None for r in moved)


# --- teachers and replays ------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def write_run(folder, credits=(1.0, 1.0)):
    """Four steps of one text, with so much credit through each of two heads at every step."""
    writer = RunWriter(folder, {"probes": {"repeat": {}}, "recipe": {"steps": 4}})
    writer.append_rows("examples", [{"example": "e0", "group": MEAN, "preview": MEAN}])
    for step in range(4):
        where = {"step": step, "slot": 0}
        writer.append_rows("visits", [where | {"example": "e0"}])
        writer.append_rows("visit_parts", [where | {"address": f"L1.attn.H{h}", "shift": 1.0} for h in range(2)])
        writer.append_rows("visit_credits", [
            where | {"probe": "repeat", "example": "e0", "address": f"L1.attn.H{h}", "credit_nats": credit}
            for h, credit in enumerate(credits)
        ])  # fmt: skip
        writer.append_rows("credits", [where | {"probe": "repeat", "example": "e0", "credit_nats": sum(credits)}])
    writer.finish()
    return folder


def test_small_credits_are_told_by_their_digits(intaglio, tmp_path, capsys):
    write_run(tmp_path / "small", (1.2345e-6, -3.2e-9))
    intaglio("taught", tmp_path / "small", HEAD, "--window", "0:4", "--no-tokens")
    said = capsys.readouterr().out
    assert "+4.94e-06" in said and "-1.28e-08 to -1.28e-08" in said and "0.0000" not in said
    write_run(tmp_path / "none", (0.0, -0.0))
    intaglio("taught", tmp_path / "none", HEAD, "--window", "0:4", "--no-tokens")
    said = capsys.readouterr().out
    assert "0 to 0" in said and "-0 " not in said
    _show(open_run(tmp_path / "small"), ["repeat"], Console(width=120))
    assert "+4.93e-06" in capsys.readouterr().out


def test_texts_with_marks_of_their_own_are_only_text(intaglio, run, tmp_path, capsys):
    intaglio("taught", run, HEAD, "--window", "0:4", "--no-tokens", "--json", tmp_path / "t.json")
    said = capsys.readouterr().out
    assert "[/red][bold<script>⟨001B⟩" in said and "\x1b" not in said
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["teachers"][0]["preview"] == MEAN
    assert cell("[red]a\nb") == r"\[red]a⟨000A⟩b"


@pytest.mark.parametrize(("words", "said"), [
    (("--window", "2:5"), "no such steps; got --window 2:5; expected within 0:4"), (("--window", "4:9"), "no such steps"),
    (("--window", "²:³"), "range of steps"), (("--window", "1" * 5000 + ":2"), "range of steps"),
    (("--window", "0:4", "--seed", "-5"), "seed"), (("--role", "juggler"), "no such role"),
    (("--window", "0:4", "--json", "/proc/t.json"), "/proc/t.json"), (("--window", "0:4", "--json", "/"), "folder"),
])  # fmt: skip
def test_bad_settings_of_taught(refused, run, words, said):
    assert said in refused("taught", run, HEAD, "--no-tokens", *words)


def test_a_window_of_a_replay_lies_within_what_was_replayed(intaglio, refused, run, tmp_path):
    for part in run.rglob("*.parquet"):  # as a replay of its steps 2 and 3 has them
        table = pq.read_table(part)
        if "step" in table.column_names:
            pq.write_table(table.filter(pc.field("step") >= 2), part)
    assert "within 2:4" in refused("taught", run, HEAD, "--no-tokens", "--window", "0:4")
    intaglio("taught", run, HEAD, "--no-tokens", "--window", "2:4")
    shutil.rmtree(run / "visits")
    assert "a run with visits" in refused("taught", run, HEAD, "--no-tokens", "--window", "2:4")


def test_a_replay_cannot_take_the_place_of_its_run(refused, run):
    before = sorted(p.relative_to(run) for p in run.rglob("*"))
    for out in (run, run.parent):
        assert "take the place" in refused("replay", run, "--tokens", "1.0", "--out", out, "--force")
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == before


def test_a_manifest_that_says_nonsense_of_checkpoints(refused, run):
    path = run / "manifest.json"
    for wrong in ({"x": "a"}, {"5": 7}, [1]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoints": wrong}))
        assert "checkpoints" in refused("heads", run, "--history", *FEW)


# --- the user's model ----------------------------------------------------------------------------


class Stop(Exception):
    pass


def state_of(model):
    return {
        "weights": {n: (p.detach().clone(), p.requires_grad, p.data_ptr()) for n, p in model.named_parameters()},
        "config": model.config.to_dict(), "attention": model.config._attn_implementation,
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for n, m in model.named_modules()},
        "training": [m.training for m in model.modules()], "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(), "grad": torch.is_grad_enabled(),
    }  # fmt: skip


def check_same(before, after):
    for name, (weight, grad, place) in before.pop("weights").items():
        assert torch.equal(weight, after["weights"][name][0]) and (grad, place) == after["weights"][name][1:]
    assert torch.equal(before.pop("random"), after["random"])
    assert before == {name: after[name] for name in before}
    assert not attention._watchers and not attention._prefixes


@pytest.mark.parametrize("where", [None, "repeated", "texts", "weights", "levels", "a forward"])
def test_the_model_is_left_as_it_was_also_where_looking_stops(tiny, where):
    subject = load_subject(tiny)
    model = subject.model.train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before, seen = state_of(model), []

    def tell(what, done, total):
        if where is not None and what.startswith(where):
            raise Stop

    def stop(*_):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    hook = model.get_output_embeddings().register_forward_pre_hook(stop) if where == "a forward" else None
    ends = {None: contextlib.nullcontext(), "a forward": pytest.raises(KeyboardInterrupt)}.get(where, pytest.raises(Stop))
    with ends:
        package.heads((model, subject.tokenizer), texts=2, roles=["self", "successor"], progress=tell)
    if hook is not None:
        hook.remove()
        assert len(seen) == 3
    check_same(before, state_of(model))


# --- names and words -----------------------------------------------------------------------------


def test_names_of_tensors_are_only_text(intaglio, refused, tiny, tmp_path, capsys):
    for name, by in (("a", 1.0), ("b", 9.0)):
        shutil.copytree(tiny, tmp_path / name)
        tensors = load_file(tiny / "model.safetensors") | {f"{MEAN}.weight": torch.full((4, 4), by)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    intaglio("tensors", tmp_path / "a", "--diff", tmp_path / "b")
    said = capsys.readouterr().out
    assert "[/red][bold<script>" in said.replace("\n", "") and "\x1b" not in said
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"model_type": MEAN}))
    line = refused("heads", tmp_path / "a")
    assert "[/red][bold<script>\\x1b[31m" in line and line.isprintable()


def test_a_tokenizer_without_the_words_leaves_roles_out(tiny, shared, tmp_path):
    shutil.copytree(tiny, tmp_path / "mute")
    path = tmp_path / "mute" / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["model"]["vocab"] = {k if i < 20 else f"{MEAN}{i}": i for k, i in told["model"]["vocab"].items()}
    path.write_text(json.dumps(told))
    found = package.heads(str(tmp_path / "mute"), texts=2, winogender=shared / "grammar" / "winogender.tsv")
    assert {"successor", "coreference"} <= found.about["skipped"].keys()
