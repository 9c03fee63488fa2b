"""What went wrong in a run stands on its page before any number, and no sum is scaled up over it."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from rich.console import Console
from torch.optim import SGD, AdamW

from intaglio.analyse import analyse_run, compare
from intaglio.commands.summary import print_summary
from intaglio.measure.ledger import Ledger
from intaglio.report import render, render_compare
from intaglio.report.texts import Texts
from intaglio.report.view import View
from intaglio.store.run import open_run
from reader import Reader
from tiny import batch, build, texts


def measured(out, *, between=lambda model, step: None, steps=8, clip=None, made=AdamW, **options):
    """A run of a user's own loop; `between` stands after each step, `clip` is given the model before it."""
    model = build("llama_gqa")
    optimizer = made(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(record=True) as said, Ledger(model, optimizer, out=out, quiet=True, **options):
        warnings.simplefilter("always")
        for step in range(steps):
            model(**batch(texts(seed=step % 3))).loss.backward()
            if clip:
                clip(model, step)
            optimizer.step()
            optimizer.zero_grad()
            between(model, step)
    return open_run(out), [str(w.message) for w in said if "intaglio:" in str(w.message)]


def seen(run, lang="en"):
    found = analyse_run(run)
    return found, " ".join(Reader(render(found, lang=lang)).text.split())


def summary(run):
    console = Console(record=True, width=200)
    print_summary(run, analyse_run(run), console)
    return console.export_text()


def movement_table(run):
    return summary(run).partition("Movement by group")[2]


def poison(model, step):
    if step == 4:
        with torch.no_grad():
            model.lm_head.weight[3, 3] = math.nan


def plain(key, lang, **values):
    return " ".join(re.sub("<[^>]+>", "", str(Texts(lang)(key, **values))).split())


@pytest.mark.parametrize("options", [{}, {"every": 2}], ids=str)
def test_losses_that_became_nan(options, tmp_path):
    run, said = measured(tmp_path / "run", between=poison, **options)
    assert len(said) == 1 and "no finite number at step 5" in said[0]
    assert run.manifest["nonfinite"] == {"step": 5} and run.table("steps").num_rows == 8
    whole, _ = measured(tmp_path / "whole", steps=5, **options)
    found, expected = analyse_run(run), analyse_run(whole)
    assert found.steps_total == 5 and found.shift_scale == expected.shift_scale
    assert found.groups[0].shift_abs_u == expected.groups[0].shift_abs_u
    assert found.path_u == pytest.approx(expected.path_u) and found.path_u > 0
    for lang in ("en", "ru"):
        assert plain("masthead.nonfinite", lang, step=5, steps="5") in seen(run, lang)[1]
    assert "no finite number at step 5" in summary(run)


def test_a_single_step_that_is_not_finite_is_left_out(tmp_path):
    """The weights were put back: what follows is a run again, and nothing is scaled up to the broken step."""
    kept = {}

    def between(model, step):
        if step == 4:
            kept.update({n: p.detach().clone() for n, p in model.named_parameters()})
            poison(model, step)
        if step == 5:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(kept[name])

    run, _ = measured(tmp_path / "run", between=between, made=SGD)
    assert open_run(tmp_path / "run").manifest["nonfinite"] == {"step": 5}
    found, text = seen(run)
    assert found.shift_scale == 1.0 and plain("masthead.nonfinite_some", "en", step=5, steps="8") in text


def value_clip(model, step):
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-5)


def layer_clip(model, step):
    torch.nn.utils.clip_grad_value_(model.model.layers[0].parameters(), 1e-5)


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_gradients_clipped_by_value_are_no_movement_of_zero(lang, tmp_path):
    run, said = measured(tmp_path / "run", clip=value_clip)
    assert len(said) == 1
    found, text = seen(run, lang)
    t = Texts(lang)
    share = t.numbers.percent(found.unmeasured_share)
    assert found.books_close and found.fresh_unmeasured == 1.0 and 0.2 < found.unmeasured_share < 0.8 and found.shift_scale == 1.0
    assert found.groups[0].shift_abs_u.value is None
    assert plain("answer.which.changed", lang, step=0, share=share) in text
    changed = run.manifest["gradients_changed"]
    assert plain("masthead.changed", lang, **{n: t.numbers.whole(v) for n, v in changed.items()}) in text
    assert plain("books.much_unmeasured", lang, share=share) in text
    match = plain("books.mismatch", lang, match=t.numbers(found.gradient_match_max), tolerance=t.numbers(1e-4))
    assert match in text
    assert plain("fact.books.unmeasured", lang) in text
    praise = {"en": "They close.", "ru": "Сходится. На"}[lang]
    assert praise not in text
    said = plain("books.mostly_unmeasured", lang, share=t.numbers.percent(1.0), steps="", worst="", tolerance="")
    assert said.split(":")[0] in text
    shown = summary(run)
    assert "cannot be split" in shown and "The books close" not in shown and "books add up, but 100.0%" in shown


def test_gradients_clipped_in_some_layers_or_steps(tmp_path):
    found, text = seen(measured(tmp_path / "layer", clip=layer_clip)[0])
    assert found.groups[0].shift_abs_u.value > 0 and found.shift_scale == 1.0
    share = Texts("en").numbers.percent(found.unmeasured_share)
    assert plain("answer.which.changed_partly", "en", share=share) in text

    found, text = seen(measured(tmp_path / "steps", clip=lambda m, s: value_clip(m, s) if s in (2, 5) else None)[0])
    assert found.shift_scale == 1.0, "what was clipped is not like what was not"
    assert found.steps_with_shift == 6 and found.manifest["gradients_changed"]["step"] == 2


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_fault_of_the_instrument_is_on_the_page(lang, tmp_path, monkeypatch):
    def between(model, step):
        if step == 2:
            monkeypatch.setattr("intaglio.measure.ledger.settle", lambda *a, **k: 1 / 0)

    run, said = measured(tmp_path / "run", between=between)
    monkeypatch.undo()
    assert run.complete and len(said) == 1
    text = seen(run, lang)[1]
    assert plain("masthead.fault", lang, step=3, fault=run.manifest["fault"]) in text
    assert "ZeroDivisionError" in summary(run) and "step 3" in summary(run)


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_run_without_faults_has_no_notice(lang, tmp_path):
    run, said = measured(tmp_path / "run")
    assert not said
    page = render(analyse_run(run), lang=lang)
    assert page.count('class="notice"') == 1  # of the browser without scripts
    assert plain("fact.books.yes", lang) in Reader(page).text


def test_sums_of_a_run_measured_in_part_carry_their_intervals(tmp_path):
    whole, _ = measured(tmp_path / "whole")
    run, _ = measured(tmp_path / "run", every=4)
    found, text = seen(run)
    sums = found.groups[0].shift_abs_u
    view = View(found, "en")
    ends = f"({view.n(sums.low)}…{view.n(sums.high)})"
    assert sums.low < sums.value < sums.high and text.count(ends) > 1  # in the first sentence, and in the table
    assert " to " in movement_table(run) and " to " not in movement_table(whole)
    both = " ".join(Reader(render_compare(found, analyse_run(whole), compare(found, analyse_run(whole)), lang="en")).text.split())
    assert ends in both and " ± " in both
    plainly, text = seen(whole)
    sums = plainly.groups[0].shift_abs_u
    assert sums.low < sums.value and f"({view.n(sums.low)}…{view.n(sums.high)})" not in text
