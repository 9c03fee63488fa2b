"""The tuned lens: planted maps are found, the KL on held-out text falls, wrong files are refused, the model stays as it is."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import save_subject
from families import FAMILIES, family
from intaglio.choice import why
from intaglio.commands.lens import train as command
from intaglio.errors import InputError
from intaglio.measure.choice import tuned
from intaglio.measure.choice.decision import decide
from intaglio.measure.choice.lenses.trajectory import states
from intaglio.model.proof import prove
from intaglio.model.subject import load_subject

PROMPT = "the cat sat on a red"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_subject(tmp_path_factory.mktemp("tuned") / "subject")


@pytest.fixture(scope="module")
def subject(folder):
    return load_subject(folder)


@pytest.fixture(scope="module")
def lens_file(subject, tmp_path_factory):
    anatomy = prove(subject.model)
    path = tmp_path_factory.mktemp("lens") / "x.safetensors"
    tuned.save_lens(tuned.fit(anatomy, random_ids(1500, len(subject.tokenizer)), steps=3), anatomy, path)
    return path


def random_ids(count: int, vocabulary: int) -> list[int]:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def test_a_planted_map_is_found_by_the_regression(monkeypatch):
    anatomy = prove(family("llama"))
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(anatomy.n_layers, anatomy.width, anatomy.width, generator=draw) * 0.1
    shifts = torch.randn(anatomy.n_layers, anatomy.width, generator=draw)

    def planted(anatomy, piece_T):
        own = torch.Generator().manual_seed(int(piece_T.sum()))
        end_TD = torch.randn(len(piece_T), anatomy.width, generator=own)
        there = [torch.linalg.solve(torch.eye(anatomy.width) + a, (end_TD - b).T).T for a, b in zip(maps, shifts)]
        return torch.stack(there), end_TD

    monkeypatch.setattr(tuned, "_states", planted)
    found = tuned.fit(anatomy, random_ids(2000, 97), steps=0)
    torch.testing.assert_close(found.weight_LDD, maps, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.bias_LD, shifts, atol=2e-3, rtol=0)
    assert max(found.tuned_kl_nats) < 1e-4 < min(found.logit_kl_nats)


@pytest.mark.parametrize("name", FAMILIES)
def test_held_out_text_is_read_no_worse_than_by_the_logit_lens_and_nothing_is_left_behind(name, monkeypatch):
    monkeypatch.setattr(tuned, "LENGTH", 32)  # these models have a context of 64
    anatomy = prove(family(name))
    weights = {n: p.clone() for n, p in anatomy.model.named_parameters()}
    found = tuned.fit(anatomy, random_ids(640, 97), steps=2)
    assert all(t <= p + 1e-6 for t, p in zip(found.tuned_kl_nats, found.logit_kl_nats))
    assert sum(found.tuned_kl_nats) < sum(found.logit_kl_nats)
    assert all(torch.equal(weights[n], p) and p.grad is None for n, p in anatomy.model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in anatomy.model.modules())


def test_the_logit_lens_kl_is_what_plain_transformers_give(subject):
    anatomy, ids = prove(subject.model), random_ids(400, len(subject.tokenizer))
    found = tuned.fit(anatomy, ids, steps=0)
    held = torch.tensor([ids[384:]])
    with torch.no_grad():
        out = subject.model(held, output_hidden_states=True)
        wanted = out.logits[0, 1:].log_softmax(-1)
        for state, kl in zip(out.hidden_states[:-1], found.logit_kl_nats):
            read = subject.model.lm_head(subject.model.model.norm(state))[0, 1:].log_softmax(-1)
            assert kl == pytest.approx(float((wanted.exp() * (wanted - read)).sum(-1).mean()), rel=1e-4)


def test_descent_goes_on_where_the_regression_was_held_back(monkeypatch):
    anatomy, ids = prove(family("llama")), random_ids(1500, 97)
    monkeypatch.setattr(tuned, "RIDGES", (1e9,))
    monkeypatch.setattr(tuned, "RATE", 1e-2)
    monkeypatch.setattr(tuned, "LENGTH", 32)
    before, after = (tuned.fit(anatomy, ids, steps=steps) for steps in (0, 40))
    assert all(a < 0.8 * b for a, b in zip(after.tuned_kl_nats, before.tuned_kl_nats))
    assert tuned.fit(anatomy, ids, steps=40).tuned_kl_nats == after.tuned_kl_nats


def test_written_and_read_back(subject, lens_file):
    anatomy = prove(subject.model)
    found = tuned.load_lens(lens_file, anatomy)
    assert torch.equal(found.weight_LDD, load_file(lens_file)["weight"]) and found.steps == 3
    states_SD = torch.randn(anatomy.n_layers + 1, anatomy.width)
    moved = found.translate(states_SD)
    assert torch.equal(moved[-1], states_SD[-1])
    for i, state in enumerate(states_SD[:-1]):
        torch.testing.assert_close(moved[i], state + found.weight_LDD[i] @ state + found.bias_LD[i])


def test_files_of_others_are_refused(subject, lens_file, tmp_path):
    anatomy = prove(subject.model)
    plain, cut, other = (tmp_path / f"{n}.safetensors" for n in ("plain", "cut", "other"))
    save_file({"weight": torch.zeros(2)}, plain)
    cut.write_bytes(lens_file.read_bytes()[:-10])
    tuned.save_lens(tuned.load_lens(lens_file, anatomy), prove(family("llama")), other)
    for path, said in ((plain, "no tuned lens"), (cut, "cannot be read"), (other, "another model"), (tmp_path / "no", "no such")):
        with pytest.raises(InputError, match=said):
            tuned.load_lens(path, anatomy)


def test_the_way_of_the_state_is_read_with_it(subject, lens_file):
    trace = why(subject, PROMPT, tuned=lens_file, lenses=["trajectory"], effects=False)
    rows, numbers = trace.lenses["trajectory"]["tables"]["states"], trace.lens("trajectory").numbers
    found = decide(subject.model, subject.tokenizer, PROMPT)
    reader = tuned.load_lens(lens_file, found.anatomy)
    with torch.no_grad():
        for i, state_D in enumerate(states(found.base)[:-1]):
            moved_D = state_D + reader.weight_LDD[i] @ state_D + reader.bias_LD[i]
            p_V = subject.model.lm_head(subject.model.model.norm(moved_D)).softmax(-1)
            assert rows[i]["tuned_target"] == pytest.approx(float(p_V[found.target]), rel=1e-4)
            assert rows[i]["tuned_token"] == int(p_V.argmax())
    assert rows[-1]["tuned_kl_nats"] == pytest.approx(0, abs=1e-6) and rows[-1]["tuned_top"] == rows[-1]["top"]
    firsts = [r["tuned_token"] == int(found.logits_V.argmax()) for r in rows]
    at = numbers["tuned"]["decided"]
    assert all(firsts[at:]) and not any(firsts[at - 1 : at])
    assert sum("The tuned lens has" in said for said in trace.lens("trajectory").findings) == 1
    for lang, name in (("en", "tuned lens"), ("ru", "настроенная")):
        assert name in trace.lens("trajectory").to_html(lang=lang)
    without = why(subject, PROMPT, lenses=["trajectory"], effects=False).lenses["trajectory"]
    assert "tuned_rank" not in without["tables"]["states"][0]


def test_the_command_trains_and_why_reads(folder, tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "x.safetensors"
    text.write_text("The cat sat on a red mat. Кошка сидела. " * 40, encoding="utf-8")
    command(str(folder), text, out=out, tokens=600, steps=2)
    said = capsys.readouterr().out
    assert "into L0" in said and "written" in said and out.is_file()
    with pytest.raises(InputError, match="exists"):
        command(str(folder), text, out=out)
    command(str(folder), text, out=out, tokens=600, steps=0, force=True)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for bad, message in (
        ({"text": tmp_path / "none.txt"}, "no such text"), ({"text": tmp_path / "short.txt"}, "too short"),
        ({"text": tmp_path / "binary.txt"}, "UTF-8"), ({"out": tmp_path / "x.bin"}, "safetensors file"),
        ({"out": tmp_path / "no" / "x.safetensors"}, "no such folder"), ({"tokens": 0}, "tokens"), ({"steps": -1}, "steps"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            command(str(folder), **{"text": text, "out": tmp_path / "new.safetensors", **bad})
    assert not (tmp_path / "new.safetensors").exists() and not list(tmp_path.glob(".*"))
