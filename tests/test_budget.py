"""The memory budget: what measuring holds stays below it, and what is given up for that is said in order."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.optim import SGD, AdamW

from conftest import write_jsonl
from intaglio.measure import ledger as module
from intaglio.measure.budget import NTH, SUM_COPIES, TRIES, Budget, kept_bytes
from intaglio.measure.ledger import Ledger, Source
from intaglio.model.layout import build_layout
from study import train
from tiny import batch, build, micro, texts

SHORT, LONG = (6, 9), (14,) * 12


def steps(*lengths):
    return [[micro(texts(n, seed=s))] for s, n in enumerate(lengths)]


def copies(model) -> int:
    return 2 * sum(p.numel() * 4 for p in model.parameters())


def levels(study) -> list[str]:
    return [r["measured"] for r in study.rows("steps")]


def rungs(study) -> dict[str, dict]:
    return {r["name"]: r for r in study.run.manifest["memory"]["order"]}


# -- never passed


def live_bytes(known: set[int]) -> int:
    """Bytes of all tensors alive, each storage once, without those that training itself holds."""
    gc.collect()  # what earlier tests left behind would be counted before and not after
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for pointer, size in storages.items() if pointer not in known)


@pytest.mark.parametrize("roomy", [True, False])
def test_what_is_held_at_the_step_stays_below_the_budget(roomy, tmp_path, monkeypatch):
    """Counted where it is most: when the step is settled, with copies, probe gradients and factors all standing."""
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    probes = {"target": batch(texts(seed=9)), "anchor": batch(texts(seed=8))}
    limit = 4 * copies(model) + (4_000_000 if roomy else 400_000)
    held, plain = [], module.settle

    def settle(*args, **options):
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        known |= {p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None}
        known |= {v.untyped_storage().data_ptr() for s in optimizer.state.values() for v in s.values()}
        held.append(live_bytes(known) - before)
        return plain(*args, **options)

    monkeypatch.setattr(module, "settle", settle)
    before = live_bytes({p.untyped_storage().data_ptr() for p in model.parameters()})
    study = train(model, optimizer, steps(SHORT, LONG, SHORT, SHORT, SHORT), tmp_path / "run", memory=limit,
                  probes=probes, probe_every=1)  # fmt: skip
    assert levels(study) == (["full"] * 5 if roomy else ["full", "norms", "norms", "norms", "full"])
    assert copies(model) < max(held) <= limit
    if roomy:
        assert max(held) > limit - 4_000_000, "the long step really holds its factors"


def test_the_prediction_is_an_upper_bound(tmp_path):
    """Predicted bytes per token against the factors that are kept."""
    from intaglio.measure.collect import factor_bytes

    for family in ("llama_gqa", "llama_tied", "gpt2", "phi3"):
        model = build(family)
        optimizer = SGD(model.parameters(), lr=0.1)
        with Ledger(model, optimizer, out=tmp_path / family, quiet=True, strict=True) as ledger:
            model(**batch(texts((6, 9)))).loss.backward()
            (record,) = ledger.collector.records.values()
            assert 0 < factor_bytes(record.factors) <= ledger.budget.per_token * record.caught.ids_BT.numel(), family
            optimizer.step()


def adapted(family: str = "llama_gqa"):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build(family), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model, AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


@pytest.mark.parametrize("level", ["norms", "full"])
def test_the_sketch_of_the_summed_gradient_is_counted_by_forwards(level, tmp_path):
    """Under LoRA, at every level: what two forwards keep, and what the step makes of it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from intaglio.measure import agreement

    class Sizes(TorchDispatchMode):
        """Bytes of all doubles that are made from other numbers, or joined."""

        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ in ("_to_copy", "cat") and out.dtype == torch.float64:
                self.made += out.numel() * 8
            return out

    for family in ("llama_gqa", "gpt2", "phi3"):
        model, optimizer = adapted(family)
        with Ledger(model, optimizer, out=tmp_path / family, quiet=True, strict=True, level=level) as ledger:
            for seed in range(2):
                model(**batch(texts((6, 9), seed=seed))).loss.backward()
            budget, records = ledger.budget, list(ledger.collector.records.values())
            kept = sum(s.total_KQ.numel() * 4 for r in records for s in r.summed.values())
            assert kept == 2 * budget.summed > 0, family
            with Sizes() as sizes:
                agreement._products2(ledger.layout, records, ledger.ranks)
            assert 0.95 * sizes.made < SUM_COPIES * budget.summed <= budget.always
            optimizer.step()
        assert budget.of_step(0, 2) - budget.of_step(0, 1) == budget.summed
        assert budget.as_dict()["sketch_bytes_per_forward"] == budget.summed
        assert any("per forward for the sketch" in line for line in budget.lines())


def test_a_step_of_adapters_stays_below_the_budget_with_its_sketches(tmp_path, monkeypatch):
    """Many short forwards, whose sketches are much of what is held; with a byte less the factors are given up."""
    each, seen, plain = [micro(texts((3,), seed=s)) for s in range(6)], [], module.agreement_of

    def agreement_of(layout, records, *rest):
        held.append(live_bytes(known()) - before)
        return plain(layout, records, *rest)

    def known() -> set[int]:
        training = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None),
                    *(v for s in optimizer.state.values() for v in s.values())]  # fmt: skip
        return {tensor.untyped_storage().data_ptr() for tensor in training}

    monkeypatch.setattr(module, "agreement_of", agreement_of)
    for name, spare in (("free", None), ("enough", 0), ("short", -1)):
        (model, optimizer), held = adapted(), []
        before = live_bytes(known())
        budget = Budget.parse(None, build_layout(model), model, level="full")
        limit = None if spare is None else budget.of_step(18, 6) + spare
        seen += levels(train(model, optimizer, [each, each], tmp_path / name, memory=limit))
        assert max(held) <= budget.of_step(18, 6)
        without = budget.of_step(18, 6) - (6 + SUM_COPIES) * budget.summed
        assert max(held) > without, "it would be passed, were they not counted"
    assert seen == ["full"] * 4 + ["norms"] * 2


# -- the order


def test_a_step_that_does_not_fit_is_norms_and_full_comes_back_at_a_fixed_distance(tmp_path, capsys):
    model = build("llama_gqa")
    study = train(model, AdamW(model.parameters(), lr=1e-3), steps(SHORT, SHORT, LONG, *[SHORT] * 6, LONG, *[SHORT] * 4),
                  tmp_path / "run", memory=copies(model) + 160_000)  # fmt: skip
    expected = ["full", "full"] + ["full" if s % NTH == 0 else "norms" for s in range(2, 14)]
    assert levels(study) == expected
    assert all((r["closure"] is not None) == (r["measured"] == "full") for r in study.rows("steps"))
    found = rungs(study)
    assert [found[n]["taken"] for n in found] == [False, True, False]
    assert f"full on every {NTH}th step only" in study.run.manifest["memory"]["degraded"]
    assert "does not lower the peak of a step" in found[f"full on every {NTH}th step only"]["why"]
    assert study.run.manifest["memory"]["full_every"] == NTH
    assert capsys.readouterr().out.count("the budget is") == 1, "said once"


def test_where_no_step_fits_the_rest_is_norms_and_the_copies_are_given_back(tmp_path):
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    n = NTH * TRIES + 2
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True, memory=copies(model) + 160_000) as ledger:
        for s in range(n):
            model(**batch(texts(LONG if s else SHORT, seed=s))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not ledger.snapshot.theta and not ledger.snapshot.momentum
        order = ledger.budget.rungs()
    assert [r.taken for r in order] == [False, True, True]
    assert f"{TRIES} measured steps in a row" in order[2].why and "level norms from this step on" in ledger.budget.reason
    from intaglio.store.run import open_run

    assert open_run(tmp_path / "run").table("steps")["measured"].to_pylist() == ["full"] + ["norms"] * (n - 1)


def test_what_every_asks_for_is_thinned_further(tmp_path):
    model = build("llama_gqa")
    study = train(model, AdamW(model.parameters(), lr=1e-3), steps(SHORT, SHORT, LONG, *[SHORT] * 6),
                  tmp_path / "run", memory=copies(model) + 160_000, every=2)  # fmt: skip
    assert levels(study) == ["full"] + ["norms"] * 7 + ["full"]
    assert study.run.manifest["memory"]["full_every"] == 2 * NTH and study.run.manifest["every"] == 2


def test_copies_that_do_not_fit_are_norms_at_once_and_every_rung_says_why(tmp_path, capsys):
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    with Ledger(model, optimizer, out=tmp_path / "run", memory="10kb"):
        pass
    said = capsys.readouterr().out
    assert "1. factors to host memory: not taken, training runs in host memory already" in said
    assert f"2. full on every {NTH}th step only: not taken, it does not lower the peak of a step" in said
    assert "3. level norms: taken, the copies alone do not fit" in said


def test_without_a_limit_nothing_is_given_up_and_nothing_is_listed(tmp_path, capsys):
    model = build("llama_gqa")
    with Ledger(model, SGD(model.parameters(), lr=0.1), out=tmp_path / "run"):
        pass
    assert "given up" not in capsys.readouterr().out


def test_on_a_device_factors_go_to_host_memory_in_the_very_step(tmp_path, monkeypatch):
    """The first rung, on a machine without a device: everything but the copy itself."""
    from intaglio.measure import collect

    moved = []
    plain = collect._to_host
    monkeypatch.setattr(collect, "_to_host", lambda factor: moved.append(factor) or plain(factor))
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True, memory=copies(model) + 160_000) as ledger:
        ledger.budget.on_cpu = False
        kept = []
        for s, lengths in enumerate((SHORT, SHORT, LONG)):
            (model(**batch(texts(lengths, seed=s))).loss / 3).backward()
            kept.append(sum(len(r.factors) for r in ledger.collector.records.values()))
        assert ledger.collector.spill and len(moved) == kept[-1], "those held already went as well"
        optimizer.step()
    assert [r.taken for r in ledger.budget.rungs()] == [True, False, False]
    assert "without factors every step fits" in ledger.budget.rungs()[1].why
    from intaglio.store.run import open_run

    run = open_run(tmp_path / "run")
    assert run.manifest["memory"]["order"][0]["taken"] and run.table("steps")["measured"].to_pylist() == ["full"]
    assert run.table("steps")["closure"].to_pylist()[0] < 1e-4


def test_momentum_by_group_needs_every_step_so_it_falls_to_norms(tmp_path):
    model = build("llama_gqa")
    sources = {"x": Source((0,), "a"), "y": Source((1,), "b")}
    study = train(model, AdamW(model.parameters(), lr=1e-3), steps(SHORT, LONG, *[SHORT] * 4), tmp_path / "run",
                  memory=3 * copies(model) + 160_000, group_momentum=True, sources=sources)  # fmt: skip
    assert levels(study) == ["full"] + ["norms"] * 5
    assert "momentum by group" in study.run.manifest["memory"]["degraded"]
    assert study.run.manifest["memory"]["group_bytes"] == 2 * copies(model)


def test_what_every_level_holds_is_said(tmp_path, capsys):
    model, probes = build("llama_gqa"), {"anchor": batch(texts(seed=8))}
    with Ledger(model, AdamW(model.parameters(), lr=1e-3), out=tmp_path / "run", probes=probes, memory="1kb") as ledger:
        pass
    assert ledger.budget.held == kept_bytes(model, ledger.probes[0]) > 1000
    assert "stay at any level, which is more than the budget" in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 2])
def test_level_norms_copies_nothing(rank, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model = build("llama_gqa")
    if rank:
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with Ledger(model, optimizer, out=tmp_path / "run", level="norms", strict=True) as ledger:
        for _ in range(2):
            model(**batch(texts())).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not ledger.snapshot.theta and not ledger.snapshot.momentum
        assert ledger.latest["step"] == 1 and ledger.latest["net_l2"] > 0
    assert "no copies, no factors are kept" in capsys.readouterr().out


def test_going_on_gives_up_what_was_given_up():
    model = build("llama_gqa")
    layout = build_layout(model)

    def after(*measured) -> Budget:
        budget = Budget.parse(10**9, layout, model, level="full")
        budget.restore(enumerate(measured))
        return budget

    assert after("full", "full").nth == 1 and not after("full").reason
    assert after("full", "norms", "norms", "norms").nth == NTH
    assert not after("norms", *["norms"] * 4, *["full"] * 4).only_norms
    assert after(*["norms"] * (NTH * TRIES)).only_norms
    assert not after("norms", "norms", "norms", "norms", "full", *["norms"] * 8).only_norms, "a step that fits starts anew"


def test_interrupted_is_uninterrupted_through_every_rung(tiny, tmp_path, monkeypatch, intaglio):
    from intaglio.store.run import open_run

    rows = [{"text": t} for t in ("the cat sat", "a dog ran", "one two", "red and blue")] + [{"text": "and so on, " * 8}]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    words = ["train", tiny, data, "--batch-size", 1, "--steps", 14, "--memory", "150KiB", "--checkpoint-every", 5]
    intaglio(*words, "--out", tmp_path / "whole")
    from intaglio import train as loop

    plain = loop.train

    def stops(*args, after_step, **options):
        def after(done, loss):
            after_step(done, loss)
            if done == 11:
                raise KeyboardInterrupt

        return plain(*args, after_step=after, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", stops)
        with pytest.raises(AssertionError):
            intaglio(*words, "--out", tmp_path / "cut")
    intaglio(*words, "--out", tmp_path / "cut", "--resume")
    whole, cut = (open_run(tmp_path / name).table("steps")["measured"].to_pylist() for name in ("whole", "cut"))
    assert whole == cut and {"full", "norms"} == set(whole) and whole.count("full") > 2
