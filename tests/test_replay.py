"""A run taken again is the same to the bit, so new probes are answered as if they had been there."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import save_subject, write_jsonl, write_words
from intaglio.errors import StoreError
from intaglio.replaying import Sameness, open_replay, replay_measured
from intaglio.store.run import open_run

STEPS = 9


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of `intaglio train` with kept states, its moments in the last two only; its subject and its probe."""
    from intaglio.cli import main

    folder = tmp_path_factory.mktemp("replay")
    subject = save_subject(folder / "tiny", attention_dropout=0.2)  # so that the random state counts, too
    data = write_words(folder / "data.jsonl")
    probe = write_jsonl(folder / "anchor.jsonl", [{"text": "a cat ran"}, {"text": "two"}])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="0"):
        from intaglio.commands import summary

        patch.setattr(summary, "conclude", lambda *_, **__: None)
        main([
            "train", str(subject), str(data), "--out", str(folder / "run"), "--steps", str(STEPS), "--batch-size", "2",
            "--accumulate", "2", "--lr", "1e-3", "--checkpoint-every", "2", "--probe", f"anchor={probe}", "--probe-every", "1",
            "--credit-parts",
        ])  # fmt: skip
    return folder


@pytest.fixture
def run(made):
    return open_run(made / "run")


def without_time(table):
    return table.drop([c for c in table.column_names if "seconds" in c])


@pytest.mark.parametrize(("first", "from_state"), [(0, 0), (3, 0), (8, 8)])
def test_a_replay_is_the_run_to_the_bit(made, run, tmp_path, first, from_state):
    """From the start, through unmeasured steps, and from states that kept their moments."""
    with_moments = sorted(p.parent.name for p in run.folder.glob("checkpoints/*/optimizer.safetensors"))
    assert with_moments == ["step-00000008", "step-00000009"]
    found = open_replay(run, first=first, last=STEPS)
    assert found.step == from_state
    sameness = replay_measured(found, tmp_path / "again", first=first, last=STEPS, credit_parts=True,
                               probes=anchor(made, found), probe_every=1)  # fmt: skip
    assert sameness.exact and sameness.losses == STEPS - first and sameness.states > 0, sameness.line()
    again = open_run(tmp_path / "again")
    assert again.manifest["sameness"]["exact"] and again.manifest["replay_of"] == "run"
    for table in ("visits", "visit_parts", "tokens", "credits", "visit_credits"):
        recorded = [r for r in run.table(table).to_pylist() if r["step"] >= first]
        assert recorded and again.table(table).to_pylist() == recorded, table


def anchor(made, found):
    from intaglio.commands.prepare import read_probes

    return read_probes({"anchor": str(made / "anchor.jsonl")}, found.subject.tokenizer, max_tokens=64, truncate=False)


def test_a_state_without_moments_is_passed_over(run):
    assert open_replay(run, first=6, last=STEPS).step == 0


def test_a_change_in_the_recipe_is_seen(made, run, tmp_path):
    """The comparison can fail: another learning rate is not the same run."""
    from dataclasses import replace

    found = open_replay(run, first=0, last=4)
    found.recipe = replace(found.recipe, lr=2e-3)
    sameness = replay_measured(found, tmp_path / "again", first=0, last=4)
    assert not sameness.exact and sameness.loss_off > 0 and sameness.weight_off > 0
    assert sameness.line().startswith("not the same: losses off by")


def test_new_probes_through_the_command_line(made, intaglio, tmp_path, capsys):
    shutil.copytree(made / "run", tmp_path / "run")
    new = write_jsonl(tmp_path / "new.jsonl", [{"text": "the cat sat far"}])
    capsys.readouterr()
    intaglio("replay", tmp_path / "run", "--probe", new, "--steps", "2:6", "--tokens", "L1.attn.H0")
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "run" / "replays" / "new")
    assert "the same to the bit" in said.err
    again = open_run(tmp_path / "run" / "replays" / "new")
    assert again.complete and {r["step"] for r in again.table("credits").to_pylist()} == {2, 3, 4, 5}
    assert {r["probe"] for r in again.table("visit_credits").to_pylist()} == {"new"}
    assert {r["address"] for r in again.table("token_parts").to_pylist()} == {"L1.attn.H0"}
    intaglio("taught", tmp_path / "run" / "replays" / "new", "1.0", "--no-tokens", "--json", tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["window"] == [2, 6]


def test_lora_is_replayed_from_its_fresh_adapters(made, tmp_path, no_page, intaglio):
    intaglio("train", made / "tiny", made / "data.jsonl", "--out", tmp_path / "run", "--steps", 4, "--lora", 2,
             "--checkpoint-every", 2)  # fmt: skip
    run = open_run(tmp_path / "run")
    sameness = replay_measured(open_replay(run, first=0, last=4), tmp_path / "again", first=0, last=4)
    assert sameness.exact and sameness.losses == 4 and sameness.states == 2, sameness.line()


@pytest.mark.parametrize(("words", "said"), [
    ((), "nothing to ask"),
    (("--probe", "new.jsonl", "--steps", "5:99"), "has no such steps"),
    (("--probe", "new.jsonl", "--steps", "5"), "not a range of steps"),
    (("--tokens", "L9.attn.H0"), "not a measured part"),
    (("--probe", "nowhere.jsonl"), "nowhere"),
    (("--tokens", "L0.attn.H0", "--probe-every", "0"), "counts steps"),
])  # fmt: skip
def test_what_cannot_be_replayed(made, refused, tmp_path, words, said):
    write_jsonl(tmp_path / "new.jsonl", [{"text": "a"}])
    words = [str(tmp_path / w) if w.endswith(".jsonl") else w for w in words]
    assert said in refused("replay", made / "run", *words, "--out", tmp_path / "again")
    assert [p.name for p in tmp_path.iterdir()] == ["new.jsonl"]  # nothing is begun


def test_a_subject_that_is_gone_or_another_one_is_said(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))

    def with_subject(**changes):
        told = manifest | {"subject": manifest["subject"] | changes}
        (folder / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
        return open_run(folder)

    with pytest.raises(StoreError, match="cannot be had"):
        open_replay(with_subject(spec=str(tmp_path / "gone")), first=0, last=3)
    with pytest.raises(StoreError, match="has changed since"):
        open_replay(with_subject(fingerprint="0" * 32), first=0, last=3)


def test_other_weights_are_off_by_how_much(made, run):
    from intaglio.replaying import _hold_weights

    found = open_replay(run, first=8, last=STEPS)
    sameness, state = Sameness(), next(s for s in Path(run.folder).glob("checkpoints/step-00000008"))
    _hold_weights(found.model, state, sameness)
    assert sameness.exact and sameness.states == 1
    with torch.no_grad():
        next(found.model.parameters())[0, 0] += 0.25
    _hold_weights(found.model, state, sameness)
    assert sameness.weight_off == pytest.approx(0.25) and not sameness.exact
