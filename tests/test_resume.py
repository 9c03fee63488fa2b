"""`intaglio train --resume`: a run that was interrupted is the run that was not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import save_subject, write_jsonl, write_words
from intaglio.commands import train as command
from intaglio.errors import RecipeError
from intaglio.store.run import RunWriter, open_run
from training import LONG_THIRD, Killed, assert_same, interrupted_at, train

pytestmark = pytest.mark.usefixtures("no_page")

CASES = {
    "adamw, probes, rescans": dict(steps=8, checkpoint_every=3, rescan=4, probe_every=2),
    "exact": dict(level="exact", checkpoint_every=2),
    "adam, accumulate": dict(optimizer="adam", accumulate=2, checkpoint_every=4, schedule="cosine"),
    "sgd without momentum": dict(optimizer="sgd", momentum=0.0, checkpoint_every=2),
    "lora": dict(lora=2, layers="0:1", checkpoint_every=2),
    "momentum by group": dict(group_momentum=True, checkpoint_every=4),
    "sgd, momentum by group": dict(group_momentum=True, checkpoint_every=4, optimizer="sgd"),
    "a budget that is passed": dict(memory="200KiB", checkpoint_every=4, batch_size=1, seed=LONG_THIRD, steps=9, longer=True),
    "every third": dict(every=3, checkpoint_every=2),
    "norms": dict(level="norms", checkpoint_every=2),
    "no state was kept": dict(rescan=2),
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_is_uninterrupted(case, tiny, data, longer, probe, tmp_path, monkeypatch):
    options = dict(probe=[probe]) | CASES[case]
    data = longer if options.pop("longer", False) else data
    whole = train(tiny, data, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(Killed):
            train(tiny, data, tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists() and not open_run(tmp_path / "cut").complete
    assert_same(train(tiny, data, tmp_path / "cut", resume=True, **options), whole)


def test_a_step_half_written_down_is_forgotten(tiny, data, tmp_path, monkeypatch):
    """Stopped by hand while the rows of a step are being collected."""
    whole = train(tiny, data, tmp_path / "whole", checkpoint_every=2)
    plain = RunWriter.append_rows

    def stops(self, table, rows):
        if table == "steps" and rows[0]["step"] == 4:
            raise KeyboardInterrupt
        plain(self, table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "append_rows", stops)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, data, tmp_path / "cut", checkpoint_every=2)
    assert_same(train(tiny, data, tmp_path / "cut", checkpoint_every=2, resume=True), whole)


def test_a_model_with_dropout_goes_on_with_the_same_random_numbers(data, tmp_path, monkeypatch):
    subject = save_subject(tmp_path / "dropping", attention_dropout=0.3)
    whole = train(subject, data, tmp_path / "whole", checkpoint_every=2)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(Killed):
            train(subject, data, tmp_path / "cut", checkpoint_every=2)
    assert_same(train(subject, data, tmp_path / "cut", checkpoint_every=2, resume=True), whole)


def test_a_killed_process_goes_on(tiny, data, probe, tmp_path):
    """SIGKILL: no handler, no farewell."""
    options = dict(steps=7, checkpoint_every=2, probe=[probe], batch_size=2, lr=1e-3)
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from intaglio import train as module
        from intaglio.commands import train as command
        plain = module.train
        def train(*args, after_step, **options):
            def after(step, loss):
                after_step(step, loss)
                if step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, after_step=after, **options)
        module.train = train
        command.train({str(tiny)!r}, {str(data)!r}, out=Path({str(tmp_path / "cut")!r}), **{options!r})
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr[-600:]
    cut = open_run(tmp_path / "cut")
    assert not cut.complete and cut.table("steps").num_rows >= 4
    resumed = train(tiny, data, tmp_path / "cut", resume=True, **options)
    assert_same(resumed, train(tiny, data, tmp_path / "whole", **options))


def test_killed_while_finishing(tiny, data, tmp_path, monkeypatch):
    from intaglio.commands import spikes

    whole = train(tiny, data, tmp_path / "whole", checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(spikes, "record_spikes", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(tiny, data, tmp_path / "cut", checkpoint_every=3)
    assert_same(train(tiny, data, tmp_path / "cut", checkpoint_every=3, resume=True), whole)


@pytest.mark.parametrize("change", [
    dict(lr=2e-3), dict(batch_size=3), dict(seed=1), dict(optimizer="sgd"), dict(level="norms"), dict(steps=7),
    dict(every=2), dict(keep_tokens=0.5), dict(rescan=2), dict(probe=None), dict(probe_every=3), dict(lora=2),
    dict(group_momentum=True), dict(memory="64MiB"),
])  # fmt: skip
def test_another_recipe_is_refused_and_nothing_is_lost(change, tiny, cut):
    out, data, probe = cut
    before = {p: p.read_bytes() for p in open_run(out).folder.rglob("*.parquet")}
    with pytest.raises(RecipeError, match="was begun with other"):
        train(tiny, data, out, resume=True, **(dict(probe=[probe], checkpoint_every=2) | change))
    assert before and {p: p.read_bytes() for p in open_run(out).folder.rglob("*.parquet")} == before


def test_other_data_or_another_model_is_refused(tiny, tmp_path, cut):
    out, data, probe = cut
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "something else"}])
    with pytest.raises(RecipeError, match="other data"):
        train(tiny, other, out, resume=True, probe=[probe], checkpoint_every=2)
    subject = save_subject(tmp_path / "tiny", seed=3)
    with pytest.raises(RecipeError, match="other model"):
        train(subject, data, out, resume=True, probe=[probe], checkpoint_every=2)


def test_probes_are_compared_by_what_they_say_and_not_by_their_size(tiny, tmp_path, cut):
    out, data, probe = cut
    other = write_jsonl(tmp_path / "anchor.jsonl", [{"text": "a cat hid"}])  # as many texts, as many tokens
    with pytest.raises(RecipeError, match=r"other probes \(anchor\)"):
        train(tiny, data, out, resume=True, probe=[f"anchor={other}"], checkpoint_every=2)
    same = write_jsonl(tmp_path / "again.jsonl", [{"text": "a cat ran", "group": "of no matter"}])
    ids = {p: command.ready.read_probes({"anchor": str(p)}, _tokenizer(tiny), max_tokens=64, truncate=False)["anchor"]
           for p in (Path(probe.partition("=")[2]), other, same)}  # fmt: skip
    first, changed, equal = (p.fingerprint for p in ids.values())
    assert first == equal != changed


def test_a_probes_fingerprint_is_of_texts_and_labels_whatever_the_batches():
    from intaglio.measure.probes import as_probe
    from tiny import batch, texts

    items = texts()
    one = as_probe("x", batch(items)).fingerprint
    assert as_probe("x", [batch(items[:1], side="left"), batch(items[1:], length=40)]).fingerprint == one
    assert as_probe("x", batch(items[::-1])).fingerprint != one
    unmasked = texts(masked=False)
    assert as_probe("x", batch(unmasked)).fingerprint != one, "the same tokens with other labels"
    bare = {k: v for k, v in batch(unmasked).items() if k != "labels"}
    assert as_probe("x", bare).fingerprint == as_probe("x", batch(unmasked)).fingerprint, "no labels: every token"


def test_training_seconds_are_of_all_parts(tiny, data, tmp_path, monkeypatch):
    """By a clock that only steps move: a part's count until its last kept state, and nothing between parts."""
    from intaglio import train as module
    from intaglio.commands import job

    plain, now = module.train, [0.0]
    monkeypatch.setattr(job, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def part(seconds: float, *, until: int | None) -> None:
        """Go on, `seconds` to a step; killed in step `until`."""

        def slow(*args, after_step, **options):
            def after(done, loss):
                now[0] += seconds
                if done == until:
                    raise Killed
                after_step(done, loss)

            return plain(*args, after_step=after, **options)

        now[0] += 5000.0
        monkeypatch.setattr(module, "train", slow)
        with pytest.raises(Killed) if until else contextlib.nullcontext():
            train(tiny, data, tmp_path / "run", checkpoint_every=2, resume=now[0] > 5000)

    part(1.0, until=3)
    part(10.0, until=5)
    part(100.0, until=None)
    assert open_run(tmp_path / "run").manifest["training_seconds"] == 2 * 1.0 + 2 * 10.0 + 2 * 100.0


def _tokenizer(subject):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(subject)


@pytest.fixture(scope="module")
def cut(tiny, tmp_path_factory) -> tuple[Path, Path, str]:
    """A run that was stopped after five steps, its data and its probe; tests see that it stays as it is."""
    folder = tmp_path_factory.mktemp("cut")
    data = write_words(folder / "data.jsonl")
    probe = f"anchor={write_jsonl(folder / 'anchor.jsonl', [{'text': 'a cat ran'}])}"
    with pytest.MonkeyPatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(Killed):
            train(tiny, data, folder / "run", probe=[probe], checkpoint_every=2)
    return folder / "run", data, probe
