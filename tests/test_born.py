"""The demonstration: its texts, the same numbers from the same seed, the page at the end, and what is asked of it afterwards."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from intaglio.analyse.heads.lottery import births_of, first_below, lottery, some_so_often
from intaglio.atlas import BASIC
from intaglio.data.repeats import GROUPS, WORDS, first_rows, repeat_rows, training_rows, word_tokenizer
from intaglio.looking import UNREAD
from intaglio.measure.heads.losses import REPEAT
from intaglio.store.run import open_run

STEPS = 8


@pytest.fixture(scope="module")
def small():
    """Fewer texts and an earlier first look, so that a few steps are a whole demonstration."""
    from intaglio import born, history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(born, "ROWS", 60)
        patch.setattr(born, "PROBE_TEXTS", 2)
        patch.setattr(born, "CHECKPOINT_EVERY", 4)
        patch.setitem(born.RECIPE, "batch_size", 4)
        patch.setattr(history, "TEXTS", 2)
        yield


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    from intaglio.cli import main

    folder = tmp_path_factory.mktemp("born")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        if name == "a":
            with pytest.raises(SystemExit, match="0"):
                main(["born", "--out", str(folder / name), "--steps", str(STEPS), "--seed", str(seed)])
        else:
            from rich.console import Console

            from intaglio.commands.born import BornJob, one_thread

            with one_thread():
                BornJob.ready(folder / name, seed=seed, steps=STEPS).run(Console(quiet=True))
    return folder


def columns(run, table):
    found = run.table(table)
    return found.drop([c for c in found.column_names if "seconds" in c])


def test_the_same_seed_gives_the_same_tables_to_the_bit_and_another_seed_others(runs):
    a, b, c = (open_run(runs / name) for name in "abc")
    for table in ("visits", "visit_parts", "visit_credits", "credits", "steps", "probes"):
        assert columns(a, table).num_rows > 0, table
        assert columns(a, table).equals(columns(b, table)), table
        assert not columns(a, table).equals(columns(c, table)), table


def test_the_books_close_and_credits_of_parts_sum_up(runs):
    run = open_run(runs / "a")
    assert max(r["closure"] for r in run.table("steps").to_pylist()) < 1e-5
    total = run.sql("select step, slot, probe, sum(credit_nats), sum(abs(credit_nats)) from visit_credits group by all")
    whole = {(r["step"], r["slot"], r["probe"]): r["credit_nats"] for r in run.table("credits").to_pylist()}
    rows = total.fetchall()
    assert len(rows) == len(whole) == STEPS * 4 * 2
    for step, slot, probe, found, size in rows:
        assert found == pytest.approx(whole[step, slot, probe], abs=1e-6 * size)


def test_it_ends_with_a_page_of_the_heads_and_their_history(runs):
    page, data = runs / "a" / "heads.html", json.loads((runs / "a" / "heads.json").read_text(encoding="utf-8"))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    history = data["tables"]["history"]
    assert {r["step"] for r in history} == {0, 4, 8} == {r["step"] for r in data["tables"]["losses"]}
    assert {r["task"] for r in data["tables"]["losses"]} == {"repeat", "first"}  # its words are no ordinary text
    assert len({r["address"] for r in history}) == 8


def test_a_tokenizer_without_words_for_a_text_is_not_asked_with_it(runs):
    """All but the roles on repeated words would be scored on texts of unknown tokens, and so would the losses."""
    found = json.loads((runs / "a" / "heads.json").read_text(encoding="utf-8"))
    assert {found["skipped"][role] for role in ("copying", "coreference", "temporal", "retrieval", "shares")} == {UNREAD}
    assert {row["role"] for row in found["tables"]["scores"]} <= set(BASIC)
    assert {row["task"] for row in found["tables"]["checks"]} <= {REPEAT}


def test_nothing_is_opened_where_nobody_sees_it(monkeypatch, tmp_path):
    import webbrowser

    from intaglio.commands.born import show

    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("a page was opened"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    show(tmp_path / "heads.html")


def test_watching_without_books_trains_the_same_model(runs, small):
    """Nothing dropped: the losses of every step are the recorded ones; something dropped: they are others."""
    from intaglio.retrain import watch_without

    run = open_run(runs / "a")
    recorded = [r["loss_nats"] for r in run.table("steps").sort_by("step").to_pylist()]
    same = watch_without(str(runs / "a"), "all", [], 0)
    assert same.train_losses == pytest.approx(recorded, abs=2e-6)
    assert same.steps == [0, STEPS] and same.excess.shape == (2, 2, 4)
    gone = run.table("visits").to_pylist()[0]["example"]
    other = watch_without(str(runs / "a"), "one less", [gone], 0)
    assert other.train_losses[0] != pytest.approx(recorded[0], abs=1e-5)


def test_taught_tells_texts_groups_and_tokens(runs, intaglio, tmp_path):
    intaglio("taught", runs / "a", "1.2", "--window", "2:7", "--top", "3", "--json", tmp_path / "t.json")
    found = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert found["address"] == "L1.attn.H2" and found["probe"] == "repeat" and len(found["teachers"]) == 3
    credits = [r["credit_nats"] for r in found["teachers"]]
    assert credits == sorted(credits, reverse=True)
    assert {g["group"] for g in found["groups"]} <= set(GROUPS)
    run = open_run(runs / "a")
    whole = run.sql("select sum(credit_nats) from visit_credits where probe = 'repeat' and address = 'L1.attn.H2' "
                    "and step >= 2 and step < 7").fetchall()[0][0]  # fmt: skip
    assert sum(g["credit_nats"] for g in found["groups"]) == pytest.approx(whole)
    for teacher in found["teachers"]:  # what was written through its tokens is what it was moved by, with signs
        written = sum(r["shift"] for r in found["teacher_tokens"] if r["example"] == teacher["example"])
        moved = run.sql("select sum(visit_parts.shift) from visit_parts join visits using (step, slot) "
                        "where address = 'L1.attn.H2' "
                        f"and example = '{teacher['example']}' and step >= 2 and step < 7").fetchall()[0][0]  # fmt: skip
        assert written == pytest.approx(moved, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("words", "said"), [
    (("1.9", "--window", "1:3"), "no credit of L1.attn.H9"),
    (("1.2", "--window", "3:1"), "not a range of steps"),
    (("1.2", "--probe", "nothing"), "no such probe"),
    (("1.2", "--leave-out", "ten"), "not a share"),
    (("L1.mlp", "--window", "1:3"), "not a head"),
])  # fmt: skip
def test_what_taught_cannot_answer(runs, refused, words, said):
    extra = () if "--window" in words or "--leave-out" in words else ("--window", "1:3")
    assert said in refused("taught", runs / "a", *words, *extra)


def test_a_head_that_never_had_the_role_is_refused(runs, refused):
    assert "never has the role" in refused("taught", runs / "a", "1.2")


def test_leaving_out_is_told_beside_random_draws(runs, small, intaglio, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    intaglio("taught", runs / "a", "1.2", "--window", "1:8", "--no-tokens", "--leave-out", "10%", "--draws", "2",
             "--json", tmp_path / "t.json")  # fmt: skip
    found = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["leave_out"]
    assert found["dropped"] == 3  # a tenth of the examples that were visited
    random = [f"without 3 random, draw {k}" for k in (1, 2)]
    assert [r["name"] for r in found["rows"]] == ["all texts", "without the 3 best", *random]


@pytest.mark.parametrize(("steps", "said"), [
    ([100, 150, 110, 120], "later than in 2 of 2 draws, which is no evidence"),
    ([100, 105, 110, 120], "later than in 0 of 2 draws"),
    ([100, None, 110, 90], "never falls; without random ones -10 to +10"),
    ([None, 100, 110, 120], "no delay can be told"),
    ([100, 150, *range(100, 120)], "later than in all 20 draws"),
])  # fmt: skip
def test_a_delay_in_words(steps, said):
    from intaglio.commands.leaving import delay_in_words

    assert said in delay_in_words([{"loss_step": s} for s in steps])


# -- texts


def test_texts_are_what_their_groups_say():
    rows = training_rows(300, seed=3)
    assert {r["group"] for r in rows} == set(GROUPS)
    for row in rows:
        words = row["text"].split()
        assert len(words) == 47 and set(words) <= set(WORDS)
        periods = [p for p in range(12, 25) if words[12 - 1 + p :] == words[12 - 1 : -p]]
        if row["group"] == "repeats":
            assert periods, row  # behind the words that come first it repeats itself to the end
        else:
            assert not periods
            repeated = len(words) - len(set(words))
            assert repeated == 0 if row["group"] == "no repeats" else 3 <= repeated <= 5


def test_a_few_repeats_are_one_phrase_said_twice():
    for row in training_rows(300, seed=4):
        if row["group"] == "few repeats":
            words = row["text"].split()
            twice = [i for i, w in enumerate(words) if w in words[:i]]
            first = [words.index(words[i]) for i in twice]
            assert np.array_equal(np.diff(twice), np.ones(len(twice) - 1))
            assert np.array_equal(np.diff(first), np.ones(len(first) - 1))


def test_a_row_of_a_seed_does_not_depend_on_how_many_are_made():
    assert training_rows(5, seed=1) == training_rows(9, seed=1)[:5]
    assert training_rows(5, seed=1) != training_rows(5, seed=2)


def test_probes_are_a_copy_and_the_same_again():
    for row, first in zip(repeat_rows(4, seed=0), first_rows(4, seed=0)):
        assert row["completion"].split() == row["prompt"].split() == first["text"].split()
        assert len(set(first["text"].split())) == 23


def test_every_word_is_one_readable_token(tmp_path):
    from intaglio.data.vocab import vocab_rows
    from intaglio.model.subject import load_tokenizer

    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for one in (tokenizer, load_from(tmp_path, load_tokenizer)):
        ids = one(" ".join(WORDS))["input_ids"]
        assert ids == list(range(len(WORDS) + 1))
        assert [r["text"] for r in vocab_rows(one, ids)] == ["<s>", *(f" {w}" for w in WORDS)]
    assert len(set(WORDS)) == 128


def load_from(folder: Path, load):
    (folder / "model.safetensors").write_bytes(b"")
    return load(folder)


# -- lots


@pytest.mark.parametrize(("draws", "sides"), [(1, 4), (5, 4), (4, 2), (3, 3), (6, 3)])
def test_the_chance_of_some_side_so_often_is_that_of_all_draws_counted(draws, sides):
    every = [max(draw.count(s) for s in range(sides)) for draw in itertools.product(range(sides), repeat=draws)]
    for count in range(1, draws + 1):
        assert some_so_often(count, draws, sides) == pytest.approx(np.mean([n >= count for n in every]))


def test_the_same_head_every_time_is_told_from_a_lottery():
    heads = [f"L1.attn.H{h}" for h in range(4)]
    assert lottery([heads[2]] * 5, heads)["p"] == pytest.approx(4 * 0.25**5)
    mixed = lottery([heads[0], heads[1], heads[1], None, heads[3]], heads)
    assert mixed["counts"] == dict(zip(heads, (1, 2, 0, 1))) and mixed["seeds"] == 4 and mixed["p"] > 0.5
    assert lottery([None, None], heads)["p"] is None


def test_a_lottery_in_words_with_its_chance_however_small():
    from intaglio.commands.born import lots_in_words

    heads = [f"L1.attn.H{h}" for h in range(4)]
    same, mixed = (lots_in_words(lottery([heads[h] for h in drawn], heads)) for drawn in ([2] * 5, [0, 1, 1, 3]))
    assert same == ("The same head more often than by chance: L1.attn.H0 0, L1.attn.H1 0, L1.attn.H2 5, L1.attn.H3 0; an even "
                    "draw gives some head 5 of 5 or more with probability 0.0039.")  # fmt: skip
    assert mixed.startswith("A lottery, as far as can be told: L1.attn.H0 1, L1.attn.H1 2")
    assert lots_in_words(lottery([None], heads)) == "No start gave an induction head in so many steps."


def test_several_starts_end_with_their_lots(runs, small, monkeypatch, tmp_path):
    from rich.console import Console

    from intaglio.commands.born import draw_lots

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    draw_lots(tmp_path, range(0, 2), STEPS, Console(quiet=True))
    found = json.loads((tmp_path / "lottery.json").read_text(encoding="utf-8"))
    assert [r["name"] for r in found["rows"]] == ["seed 0", "seed 1"]
    assert found["said"]["first induction head"] == "No start gave an induction head in so many steps."
    counts = found["lottery"]["strongest at the end"]["counts"]
    assert sum(counts.values()) == sum(r["strongest"].startswith("L1") for r in found["rows"])


def test_births_and_the_fall_of_the_loss():
    excess = np.zeros((5, 2, 2))
    excess[2:, 1, 0], excess[1, 1, 1], excess[3:, 1, 1], excess[:, 0, 0] = 0.5, 0.9, 0.6, 0.7
    assert [(b.address, b.step) for b in births_of([0, 10, 20, 30, 40], excess)] == [("L1.attn.H0", 20), ("L1.attn.H1", 30)]
    assert first_below([0, 10, 20, 30], [4.0, 1.0, 3.0, 1.0], 2.0) == 30
    assert first_below([0, 10], [4.0, 4.0], 2.0) is None
    assert first_below([0, 10], [1.0, 1.0], 2.0) == 0


def test_who_takes_the_place_of_a_dropped_text():
    from intaglio.retrain import drawn_like, stand_ins

    examples, groups = [f"e{i}" for i in range(20)], ["a" if i < 12 else "b" for i in range(20)]
    dropped = ["e1", "e2", "e15"]
    found = stand_ins(examples, groups, dropped, 0)
    assert set(found) == {1, 2, 15}
    for gone, instead in found.items():
        assert groups[gone] == groups[instead] and examples[instead] not in dropped
    drawn = drawn_like(dropped, dict(zip(examples, groups)), 0)
    assert len(set(drawn)) == 3 and sorted(groups[examples.index(e)] for e in drawn) == ["a", "a", "b"]
    assert drawn != drawn_like(dropped, dict(zip(examples, groups)), 1)
