"""The atlas as a person holds it, and the command line that makes one."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

import intaglio as package
from conftest import byte_tokenizer, save_subject
from intaglio.atlas import BASIC, UNRESOLVED
from intaglio.errors import InputError
from intaglio.looking import plain_texts
from intaglio.measure.heads import circuits
from intaglio.measure.heads.seeing import see_attention
from intaglio.model.proof import prove
from intaglio.roles import heads
from intaglio.tables import ATLAS_TABLES
from intaglio.views import Atlas, open_atlas
from planted_heads import PLANTED, planted_model, planted_tokenizer


@pytest.fixture(scope="module", autouse=True)
def _fewer_draws():
    """The nulls of weights have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuits, "DRAWS", 10)
        yield


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return planted_model(), planted_tokenizer()


@pytest.fixture(scope="module")
def atlas(pair) -> Atlas:
    return package.heads(pair, texts=4, seed=3)


def test_every_planted_head_has_its_role(atlas):
    for (role, _), address in PLANTED.items():
        assert atlas[address].role == role
        assert atlas[address].scores[0]["role"] == role
    others = {r["address"] for r in atlas.rows["heads"]} - set(PLANTED.values())
    assert len(others) == 6
    assert {atlas[a].role for a in others} == {UNRESOLVED}


def test_removing_the_induction_head_is_what_breaks_repeating(atlas):
    checks = {r["role"]: r for r in atlas.rows["checks"]}
    assert checks["induction"]["heads"] == ["L1.attn.H0"] and checks["induction"]["holds"]
    assert checks["previous_token"]["holds"]
    assert not checks["self"]["holds"] and not checks["duplicate_token"]["holds"]


def test_tables_are_those_of_the_contract(atlas):
    for name, rows in atlas.rows.items():
        known = {c.name for c in ATLAS_TABLES[name].columns}
        assert all(set(row) <= known for row in rows), name
        keys = [tuple(row[k] for k in ATLAS_TABLES[name].key) for row in rows]
        assert len(set(keys)) == len(keys), name
        assert atlas.rows_of(name).num_rows == len(rows)
    assert atlas.table.num_rows == 12
    needed = ("heads", "scores", "checks", "weights", "reads", "composition", "levels", "patterns")
    assert all(atlas.rows[name] for name in needed)


def test_patterns_are_the_models_own(atlas, pair):
    kept: dict[int, torch.Tensor] = {}
    ids = atlas.about["text_ids"][0]
    see_attention(prove(pair[0]), torch.tensor([ids]), lambda layer, pattern: kept.__setitem__(layer, pattern[0]))
    (row,) = [r for r in atlas["0.0"].patterns if r["text"] == 0]
    triangle = np.frombuffer(zlib.decompress(base64.b64decode(row["triangle"])), np.uint8)
    rows, columns = np.tril_indices(len(ids))
    assert len(triangle) == len(rows)
    assert np.abs(triangle / 255 - kept[0][0].numpy()[rows, columns]).max() <= 0.5 / 255 + 1e-6


def test_the_numbers_of_a_pattern_are_what_their_columns_say(atlas, pair):
    """Entropy, distance and sink, query by query, over the two ordinary texts."""
    entropy, far, elsewhere, first, queries = 0.0, 0.0, 0.0, 0.0, 0
    for ids in plain_texts(pair[1], 42):
        kept: dict[int, np.ndarray] = {}
        see_attention(prove(pair[0]), torch.tensor([ids]), lambda layer, pattern, kept=kept: kept.__setitem__(
            layer, pattern[0].double().numpy()))  # fmt: skip
        for q in range(1, len(ids)):
            p = kept[0][5, q, : q + 1]
            entropy -= sum(x * np.log(x) for x in p if x > 0)
            far += sum(p[k] * (q - k) for k in range(1, q + 1))
            elsewhere, first, queries = elsewhere + p[1:].sum(), first + p[0], queries + 1
    (row,) = atlas["0.5"].rows["heads"]
    assert row["entropy_nats"] == pytest.approx(entropy / queries, abs=1e-5)
    assert row["distance_tokens"] == pytest.approx(far / elsewhere, abs=1e-5)
    assert row["sink"] == pytest.approx(first / queries, abs=1e-5)


def test_the_same_seed_gives_the_same_atlas(atlas, pair):
    again = heads(pair, texts=4, seed=3)
    assert again.rows == atlas.rows
    assert heads(pair, texts=4, seed=4, roles=["induction"]).rows["scores"] != atlas.rows["scores"]


def test_a_card_holds_what_is_about_its_head(atlas):
    card = atlas["L1.attn.H0"]
    assert card.address == atlas["1.0"].address == "L1.attn.H0"
    assert {r["address"] for r in card.rows["scores"]} == {"L1.attn.H0"}
    assert [r["role"] for r in card.checks] == ["induction"]
    assert all("L1.attn.H0" in (r["reader"], r["writer"]) for r in card.composition)
    assert "induction" in card._repr_html_()
    with pytest.raises(AttributeError):
        _ = card.nothing


@pytest.mark.parametrize("name", ["2.0", "0.6", "L0.mlp", "x", "18.6.1"])
def test_what_is_no_head_is_refused(atlas, name):
    with pytest.raises(InputError):
        atlas[name]


def test_an_atlas_comes_back_from_its_file(atlas, tmp_path):
    atlas.to_json(tmp_path / "a.json")
    again = open_atlas(tmp_path / "a.json")
    assert again.rows == atlas.rows and again["1.0"].role == "induction"
    assert json.loads(json.dumps(atlas.about)) == again.about


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9, "tables": {}}', "[" * 100_000, '{"schema": 1, "tables": 3}'])
def test_what_is_no_atlas_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError):
        open_atlas(tmp_path / "a.json")
    with pytest.raises(InputError):
        open_atlas(tmp_path / "none.json")


def test_only_the_roles_that_were_asked_for(pair):
    found = heads(pair, texts=3, roles=["induction", "syntax"])
    assert {r["role"] for r in found.rows["scores"]} == {"induction"}
    assert "syntax" in found.about["skipped"]
    assert set(found.about["rules"]) == {"induction", "syntax"}


def test_two_checkpoints_are_looked_at_with_the_same_texts(pair, atlas):
    other = planted_model()
    with torch.no_grad():
        other.transformer.h[1].attn.c_proj.weight.zero_()
        other.transformer.h[1].attn.c_attn.weight.zero_()
    found = heads(pair, versus=(other, pair[1]), texts=4, seed=3)
    assert found.rows["scores"] == atlas.rows["scores"]
    (side,) = found.beside
    assert side.about["text_ids"] == found.about["text_ids"]
    assert {r["address"]: r["role"] for r in side.rows["heads"]}["L1.attn.H0"] == UNRESOLVED
    assert any(r["moved"] for r in found.rows["levels"])
    with pytest.raises(InputError, match="another shape"):
        heads(pair, versus=(GPT2LMHeadModel(_narrow()), pair[1]))


def _narrow():
    return GPT2Config(vocab_size=40, n_positions=42, n_embd=12, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)


# --- the command line ------------------------------------------------------------------------


def test_the_command_prints_and_writes(intaglio, tiny, tmp_path, capsys):
    intaglio("heads", tiny, "--texts", 3, "--json", tmp_path / "a.json", "--out", tmp_path / "a.html")
    said = capsys.readouterr().out
    assert "unresolved" in said and "a.html" in said
    found = open_atlas(tmp_path / "a.json")
    assert {r["role"] for r in found.rows["scores"]} >= set(BASIC)
    assert found.about["subject"] == tiny.name and len(found.rows["places"]) >= 4 * 4
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.startswith("<!") and "http://" not in page.replace("http://www.w3.org", "")


def test_a_series_of_checkpoints_tells_when_a_role_was_born(intaglio, pair, tmp_path, capsys):
    for step in (100, 1000, 10000):
        model = planted_model()
        if step == 100:
            with torch.no_grad():
                model.transformer.h[1].attn.c_attn.weight.zero_()
        model.save_pretrained(tmp_path / f"ckpt-{step}")
        pair[1].save_pretrained(tmp_path / f"ckpt-{step}")
    series = [tmp_path / f"ckpt-{step}" for step in (10000, 100, 1000)]  # in any order
    intaglio("heads", *series, "--texts", 4, "--roles", "induction,self", "--json", tmp_path / "a.json")
    said = capsys.readouterr().out
    assert "birth of induction: 1.0, between steps 100 and 1,000" in said
    found = open_atlas(tmp_path / "a.json")
    (birth,) = [r for r in found.rows["events"] if r["role"] == "induction"]
    assert (birth["address"], birth["after_step"], birth["step"]) == ("L1.attn.H0", 100, 1000)
    losses = {r["step"]: r["loss_nats"] for r in found.rows["losses"] if r["task"] == "repeat"}
    assert losses[100] > 3 > 0.1 > losses[1000]


def test_a_plan_measures_nothing(intaglio, tiny, capsys):
    intaglio("heads", tiny, "--plan")
    assert "in all about" in capsys.readouterr().out


def test_a_choice_joins_its_heads(intaglio, refused, tiny, tmp_path):
    intaglio("why", tiny, "a cat", "--lens", "votes", "--json", tmp_path / "why.json", "--out", tmp_path / "why.html")
    intaglio("heads", tiny, "--texts", 2, "--roles", "self", "--choice", tmp_path / "why.json", "--json", tmp_path / "a.json",
             "--out", tmp_path / "a.html")  # fmt: skip
    (choice,) = open_atlas(tmp_path / "a.json").about["choices"]
    assert choice["page"] == "./why.html" and set(choice["heads"]) == {"0.0", "0.1", "1.0", "1.1"}
    (tmp_path / "bad.json").write_text("{")
    assert "no JSON" in refused("heads", tiny, "--texts", 2, "--roles", "self", "--choice", tmp_path / "bad.json")


def test_a_model_without_attention_is_refused_in_one_line(refused, tmp_path):
    model = MambaForCausalLM(MambaConfig(vocab_size=261, hidden_size=16, num_hidden_layers=1, state_size=4))
    model.save_pretrained(tmp_path / "mamba")
    byte_tokenizer().save_pretrained(tmp_path / "mamba")
    assert "attention" in refused("heads", tmp_path / "mamba")


def test_bad_settings_are_refused_in_one_line(refused, tiny, tmp_path):
    assert "subject" in refused("heads")
    assert "no such role" in refused("heads", tiny, "--roles", "knight")
    assert "texts" in refused("heads", tiny, "--texts", 1)
    assert "seed" in refused("heads", tiny, "--seed", -1)
    assert "no such model" in refused("heads", tmp_path / "nothing")
    assert "folder" in refused("heads", tiny, "--out", tmp_path)
    assert "same file" in refused("heads", tiny, "--out", tmp_path / "a", "--json", tmp_path / "a")
    assert refused("heads", tiny, "--corpus", tmp_path / "none.conllu")
    assert "--versus" in refused("heads", tiny, tiny, "--versus", tiny)
    other = save_subject(tmp_path / "other", num_hidden_layers=1)
    assert "another shape" in refused("heads", tiny, "--versus", other, "--texts", 2, "--roles", "self")
