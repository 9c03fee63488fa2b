"""An instrument must never hurt the patient: training is the same with it, without it, and after its faults."""

import contextlib
import copy
import pickle
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch.optim import SGD, AdamW
from transformers import GPT2Config, GPT2LMHeadModel

from intaglio.errors import InputError, UnmeasurableError
from intaglio.measure.ledger import Ledger, Source
from intaglio.measure.probes import as_probes
from intaglio.store.run import open_run
from study import train
from tiny import batch, build, micro, texts
from truth.optimizers import Adam as TrueAdam
from truth.optimizers import Twin


def dropping_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=53, n_embd=24, n_layer=2, n_head=4, n_positions=64)).train()


def hooks(model, optimizer):
    found = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    for module in model.modules():
        found += [v for k, v in vars(module).items() if k.endswith("_hooks") or k.endswith("_hooks_with_kwargs")]
    count = sum(len(f) for f in found if f is not None)
    return count + sum(
        len(p._post_accumulate_grad_hooks or ()) + len(p._backward_hooks or ()) for p in model.parameters()
    )


def loop(model, optimizer, steps=4, seed=5, between=None):
    torch.manual_seed(seed)
    logits = []
    for s in range(steps):
        for m in range(2):
            out = model(**micro(texts((6, 9), seed=10 * s + m)).inputs)
            logits.append(out.logits.detach().clone())
            (out.loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if between:
            between(model, optimizer, s)
        optimizer.step()
        optimizer.zero_grad()
    return logits, [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for xs, ys in zip(a, b) for x, y in zip(xs, ys))


@pytest.mark.parametrize("options", [
    {"level": "norms"}, {"level": "full"}, {"level": "exact"}, {"every": 2}, {"memory": "1kb"},
    {"group_momentum": True, "sources": {"x": Source((0,), "a")}},
])  # fmt: skip
def test_training_under_dropout_is_bit_identical(options, tmp_path):
    plain_model = dropping_model()
    plain = loop(plain_model, AdamW(plain_model.parameters(), lr=1e-2))
    model = dropping_model()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    start = hooks(model, optimizer)
    probes = {"target": batch(texts(seed=9)), "anchor": batch(texts(seed=8), side="left")}
    with Ledger(
        model, optimizer, out=tmp_path / "run", probes=probes, probe_every=1, quiet=True, strict=True, **options
    ):
        assert hooks(model, optimizer) > start
        watched = loop(model, optimizer)
    assert same(plain, watched)
    assert hooks(model, optimizer) == start
    assert all(m.training for m in model.modules())
    run = open_run(tmp_path / "run")
    assert "fault" not in run.manifest and len(run.table("steps")) == 4
    assert len(run.table("probes")) == 10


def test_hooks_are_gone_after_an_exception_in_the_loop(tmp_path):
    model = build("llama_gqa")
    optimizer = SGD(model.parameters(), lr=0.1)
    start = hooks(model, optimizer)

    def between(model, optimizer, s):
        if s == 2:
            raise RuntimeError("the user's own")

    with (
        pytest.raises(RuntimeError, match="the user's own"),
        Ledger(model, optimizer, out=tmp_path / "run", quiet=True) as ledger,
    ):
        loop(model, optimizer, between=between)
    assert hooks(model, optimizer) == start
    other = "import sys; from intaglio.store.run import RunWriter; RunWriter(sys.argv[1], {}, resume=True)"
    subprocess.run([sys.executable, "-c", other, str(tmp_path / "run")], check=True)  # though the ledger is still held
    assert not ledger._attached
    run = open_run(tmp_path / "run")
    assert not run.complete and run.folder.name == "run.partial"
    assert len(run.table("steps")) == 2


def test_the_users_own_hooks_are_kept_and_called_once(tmp_path):
    calls = {"plain": 0, "watched": 0}

    def count(key):
        def hook(*args):
            calls[key] += 1

        return hook

    for key in calls:
        model = build("qwen3")
        optimizer = SGD(model.parameters(), lr=0.1)
        for module in model.modules():
            module.register_forward_hook(count(key))
        if key == "watched":
            with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
                loop(model, optimizer, steps=2)
        else:
            loop(model, optimizer, steps=2)
    assert calls["plain"] == calls["watched"]


def visits(run):
    return [{k: v for k, v in row.items()} for row in run.table("visits").to_pylist()]


def test_forwards_without_a_backward_do_not_count(tmp_path):
    """Evaluation, generation, and a loss with a graph that nobody goes back through."""

    def between(model, optimizer, s):
        model.eval()
        with torch.no_grad():
            model(**batch(texts(seed=99)))
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False)
        model.train()
        model(**batch(texts(seed=98))).loss.item()

    found = []
    for name, extra in (("a", None), ("b", between)):
        model = build("llama_tied")
        optimizer = AdamW(model.parameters(), lr=1e-2)
        with Ledger(model, optimizer, out=tmp_path / name, quiet=True, strict=True):
            loop(model, optimizer, between=extra)
        found.append(open_run(tmp_path / name))
        assert "fault" not in found[-1].manifest
    assert visits(found[0]) == visits(found[1])
    assert found[0].table("examples").num_rows == found[1].table("examples").num_rows


def test_measuring_is_booked_to_the_step_it_was_done_in(monkeypatch, tmp_path):
    from intaglio.measure import ledger as module

    settle, pauses = module.settle, iter([0.3])

    def slow_once(*args, **how):
        time.sleep(next(pauses, 0.0))
        return settle(*args, **how)

    monkeypatch.setattr(module, "settle", slow_once)
    model = build()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True):
        loop(model, optimizer, steps=3)
    rows = open_run(tmp_path / "run").table("steps").to_pylist()
    assert rows[0]["measure_seconds"] >= 0.3
    for row in rows:  # a share of the step's wall time
        assert 0 < row["measure_seconds"] <= row["seconds"]


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_cleared_without_a_step_are_not_counted(to_none, tmp_path):
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), lr=1e-2)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
        for s in range(3):
            model(**batch(texts(seed=50 + s))).loss.backward()  # thrown away, as after an overflow
            optimizer.zero_grad(set_to_none=to_none)
            model(**batch(texts((6, 9), seed=s))).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
    run = open_run(tmp_path / "run")
    assert run.table("steps")["examples"].to_pylist() == [2, 2, 2]
    assert max(run.table("steps")["closure"].to_pylist()) < 1e-4
    assert max(run.table("steps")["gradient_match"].to_pylist()) < 1e-5


def test_a_step_without_examples_passes_unmeasured(tmp_path):
    model = build("llama_gqa")
    optimizer = SGD(model.parameters(), lr=1e-2)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
        optimizer.step()
        loop(model, optimizer, steps=1)
    assert open_run(tmp_path / "run").table("steps")["step"].to_pylist() == [1]


def test_a_model_copied_or_pickled_inside_the_block_is_free(tmp_path):
    """An exponential average keeps a deep copy: it must not carry a second ledger that writes to the same run."""
    model = build("llama_gqa")
    optimizer = SGD(model.parameters(), lr=1e-2)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
        loop(model, optimizer, steps=1)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                other(**batch(texts())).loss.backward()
        loop(model, optimizer, steps=1)
    run = open_run(tmp_path / "run")
    assert "fault" not in run.manifest
    assert run.table("steps").num_rows == 2 and run.table("visits").num_rows == 8


FAULTS = {
    "in the backward": "intaglio.measure.writes.squared_norms",
    "at the logits": "intaglio.measure.writes.logit_statistics",
    "before the step": "intaglio.measure.settle.Snapshot.take",
    "after the step": "intaglio.measure.ledger.settle",
    "in the rows": "intaglio.measure.rows.visit_columns",
}


@pytest.mark.parametrize("where", FAULTS)
def test_a_fault_of_the_instrument_detaches_it_with_one_warning(where, monkeypatch, tmp_path):
    plain_model = dropping_model()
    plain = loop(plain_model, AdamW(plain_model.parameters(), lr=1e-2))
    model = dropping_model()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    start = hooks(model, optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Ledger(model, optimizer, out=tmp_path / "run", quiet=True):

            def break_it(model, optimizer, s):
                if s == 1:
                    monkeypatch.setattr(FAULTS[where], lambda *a, **k: 1 / 0)

            watched = loop(model, optimizer, between=break_it)
            assert hooks(model, optimizer) == start
    assert same(plain, watched)
    said = [w for w in caught if "measuring stopped" in str(w.message)]
    assert len(said) == 1 and "ZeroDivisionError" in str(said[0].message)
    monkeypatch.undo()
    run = open_run(tmp_path / "run")
    assert "ZeroDivisionError" in run.manifest["fault"]
    assert run.table("steps").num_rows in (1, 2)  # what was measured before the fault is kept


# -- refusals and other optimizers


class AdamW8bit(SGD):
    pass


def test_an_8_bit_optimizer_is_refused_by_name(tmp_path):
    model = build("llama_gqa")
    with pytest.raises(UnmeasurableError, match="AdamW8bit"):
        Ledger(model, AdamW8bit(model.parameters(), lr=0.1), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


BAD = [{"level": "most"}, {"every": 0}, {"memory": "many"}, {"probes": {"a": {}}},
       {"probes": {"a": {"input_ids": [[1, 2]]}}}]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_wrong_arguments_are_refused_before_anything_is_written(bad, tmp_path):
    model = build("llama_gqa")
    with pytest.raises(InputError):
        Ledger(model, SGD(model.parameters(), lr=0.1), out=tmp_path / "run", **bad)
    assert not list(tmp_path.iterdir())


def test_probes_without_names_are_refused():
    with pytest.raises(InputError, match="probes are given by name; got int"):
        as_probes(3)


def test_an_optimizer_of_another_model_and_a_second_entry_are_refused(tmp_path):
    model = build("llama_gqa")
    with pytest.raises(InputError, match="the optimizer moves nothing of the model"):
        Ledger(model, SGD(build("llama_gqa").parameters(), lr=0.1), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    ledger = Ledger(model, SGD(model.parameters(), lr=0.1), out=tmp_path / "run", quiet=True)
    with ledger, pytest.raises(InputError, match="a ledger is entered once"):
        ledger.__enter__()
    with pytest.raises(InputError, match="a ledger is entered once"):
        ledger.__enter__()


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Adamax", "NAdam", "RAdam"])
def test_an_optimizer_without_formulas_is_split_by_projection(name, tmp_path):
    """Per tensor c_i = h_i <U, G>/|G|^2; what the projection does not reach is called unexplained."""
    model = build("llama_tied")
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3)
    steps = [[micro(texts((6, 9, 4), seed=s))] for s in range(3)]
    before = [p.detach().clone() for p in model.parameters()]
    gradients = []
    optimizer.register_step_pre_hook(lambda *_: gradients.append([p.grad.clone() for p in model.parameters()]))
    study = train(model, optimizer, steps[:1], tmp_path / "run", level="exact")
    row = study.rows("steps")[0]
    update = [p.detach() - b for p, b in zip(model.parameters(), before)]
    size = sum(float(u.double().square().sum()) for u in update) ** 0.5
    data = sum(float((u * g).sum()) ** 2 / float(g.square().sum()) for u, g in zip(update, gradients[0])) / size
    assert row["update_l2"] == pytest.approx(size, rel=1e-5)
    assert row["data_shift"] == pytest.approx(data, rel=1e-4)
    assert row["unexplained_shift"] == pytest.approx(size - data, abs=1e-4 * size)
    assert row["closure"] < 1e-4
    assert study.run.manifest["optimizer"]["rule"] == "other"


class Halved(AdamW):
    """A subclass with a formula of its own, whose step calls its parent's (with hooks of its own)."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] /= 2
        found = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 2
        return found


def test_books_do_not_close_on_the_parents_formula_of_a_subclass(tmp_path):
    model = build("llama_gqa")
    study = train(model, Halved(model.parameters(), lr=1e-2), [[micro(texts())]] * 2, tmp_path / "run")
    assert study.column("steps", "step").tolist() == [0, 1]
    assert study.column("steps", "closure").min() > 1e-2


def test_a_step_whose_closure_makes_the_gradient_is_measured(tmp_path):
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), lr=1e-2)

    def closure():
        optimizer.zero_grad()
        loss = model(**batch(texts())).loss
        loss.backward()
        return loss

    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
        losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    rows = open_run(tmp_path / "run").table("steps").to_pylist()
    assert [r["step"] for r in rows] == [0, 1, 2] and [r["examples"] for r in rows] == [4, 4, 4]
    assert max(r["closure"] for r in rows) < 1e-4 and max(r["gradient_match"] for r in rows) < 1e-5
    assert [r["loss_nats"] for r in rows] == pytest.approx(losses, rel=1e-5)


class Failing(SGD):
    calls = 0

    def step(self, closure=None):
        Failing.calls += 1
        if Failing.calls == 2:
            raise FloatingPointError("the optimizer's own")
        return super().step(closure)


def test_a_step_that_raises_is_not_counted(tmp_path):
    model = build("llama_gqa")
    optimizer = Failing(model.parameters(), lr=1e-2)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
        for s in range(3):
            model(**batch(texts(seed=s))).loss.backward()
            with contextlib.suppress(FloatingPointError):
                optimizer.step()
            optimizer.zero_grad()
    rows = open_run(tmp_path / "run").table("steps").to_pylist()
    assert [r["step"] for r in rows] == [0, 1] and [r["examples"] for r in rows] == [4, 4]
    assert max(r["gradient_match"] for r in rows) < 1e-5 and max(r["closure"] for r in rows) < 1e-4


class Gate(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.full((40,), 1.5))

    def forward(self, x):
        return torch.nn.functional.silu(x) * self.slope


@pytest.mark.parametrize("made", [SGD, AdamW])
def test_a_parameter_in_no_known_module_enters_as_unmeasured_by_name(made, tmp_path):
    model = build("llama_gqa")
    gate = model.model.layers[0].mlp.act_fn = Gate()
    with pytest.warns(RuntimeWarning, match="act_fn.slope"):
        study = train(model, made(model.parameters(), lr=1e-2), [[micro(texts())]] * 3, tmp_path / "run")
    assert study.run.manifest["unmeasured"] == ["model.layers.0.mlp.act_fn.slope"]
    assert 0.9 < study.run.manifest["coverage"] < 1
    for row in study.rows("steps"):
        assert row["closure"] < 1e-4 and row["unmeasured_shift"] > 0
    if made is AdamW:
        assert study.rows("steps")[0]["unmeasured_shift"] > 1e-3 * study.rows("steps")[0]["update_l2"]
    assert not torch.equal(gate.slope, torch.full((40,), 1.5))


CHANGED = dict(lr=3e-4, weight_decay=0.1, eps=1e-5)
CHANGES = {  # parameters whose gradients are clipped by value, to a length that cuts many of their coordinates
    "all": lambda name: True,
    "one layer": lambda name: ".layers.0." in name and name.endswith("proj.weight"),
}


def value_clipped(model, optimizer, out, which, *, steps=3, **options):
    """Rows of a run whose gradients `which` were clipped by value, and what the plain optimizers make of each step.

    Per step: length of the step, and along it the part of the clipped gradients, of the others, of momentum, of decay.
    """
    twin, truths = Twin(lambda n: TrueAdam(**CHANGED, decoupled=True)), []
    clipped = {n for n, p in model.named_parameters() if p.requires_grad and which(n)}
    with Ledger(model, optimizer, out=out, quiet=True, strict=True, **options):
        for s in range(steps):
            model(**batch(texts(seed=s))).loss.backward()
            for name, p in model.named_parameters():
                if name in clipped:
                    torch.nn.utils.clip_grad_value_([p], float(p.grad.abs().median()) or 1e-4)
            before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            found = twin.step(before, [{n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}])
            optimizer.step()
            optimizer.zero_grad()
            update = {n: p.detach().double() - before[n].double() for n, p in model.named_parameters() if n in before}
            size = sum(float(u.square().sum()) for u in update.values()) ** 0.5

            def along(pick, names, update=update, found=found, size=size):
                return sum(float((pick(found[n]) * update[n]).sum()) for n in names) / size

            names = set(update)
            truths.append((
                size, along(lambda a: a.parts[0], clipped), along(lambda a: a.parts[0], names - clipped),
                along(lambda a: a.carry, names), along(lambda a: a.decay, names),
            ))  # fmt: skip
    return open_run(out), truths


@pytest.mark.parametrize("level", ["full", "exact"])
@pytest.mark.parametrize("which", CHANGES)
def test_value_clipping_leaves_only_the_data_of_those_parameters_unmeasured(which, level, tmp_path):
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), **CHANGED)
    with pytest.warns(RuntimeWarning, match="coordinate by coordinate") as said:
        run, truths = value_clipped(model, optimizer, tmp_path / "run", CHANGES[which], level=level,
                                    probes={"target": batch(texts(seed=9))}, probe_every=1)  # fmt: skip
    assert len([w for w in said if "coordinate by coordinate" in str(w.message)]) == 1
    seen = run.manifest["gradients_changed"]
    assert seen["step"] == 0 and (seen["tensors"] == seen["of"]) == (which == "all")
    for row, (size, unmeasured, data, carry, decay) in zip(run.table("steps").to_pylist(), truths, strict=True):
        near = dict(abs=2e-4 * size)
        assert row["update_l2"] == pytest.approx(size, rel=1e-5)
        assert row["unmeasured_shift"] == pytest.approx(unmeasured, **near) and unmeasured > 0.01 * size
        assert row["data_shift"] == pytest.approx(data, **near)
        assert row["carry_shift"] == pytest.approx(carry, **near)
        assert row["decay_shift"] == pytest.approx(decay, **near)
        assert row["closure"] < 1e-4 and row["gradient_match"] > 1e-2
        if which == "all":  # nothing is split among the examples, which is not 0 for each of them
            assert row["clip_scale"] is None and row["data_shift"] == 0
        if level == "full":  # autograd's gradient is gone; level exact has the examples'
            assert row["agreement_gg"] is None and row["grad_l2"] is None
        else:
            assert row["agreement_gg"] is not None and row["grad_l2"] > 0
    assert truths[-1][3] > 0.1 * truths[-1][0], "there is momentum to be told apart"
    for table, column in (("visits", "shift"), ("tokens", "shift"), ("visit_parts", "shift"), ("credits", "credit_nats")):
        values = run.table(table)[column].to_pylist()
        assert values and (set(values) == {None}) == (which == "all"), table
    for row in run.table("probes").to_pylist()[:3]:
        assert abs(row["residual_nats"]) < 0.3 * abs(row["measured_change_nats"]) + 1e-3


def test_value_clipping_under_group_momentum_keeps_the_groups_sum(tmp_path):
    model = build("llama_gqa")
    optimizer = AdamW(model.parameters(), **CHANGED)
    with pytest.warns(RuntimeWarning, match="coordinate by coordinate"):
        run, _ = value_clipped(model, optimizer, tmp_path / "run", CHANGES["one layer"], group_momentum=True,
                               sources={"x": Source((0,), "a")})  # fmt: skip
    for row in run.table("steps").to_pylist()[1:]:
        carried = {r["group"]: r["carry_shift"] for r in run.table("group_carry").to_pylist() if r["step"] == row["step"]}
        assert sum(carried.values()) == pytest.approx(row["carry_shift"], abs=1e-4 * row["update_l2"])
        assert carried["(changed)"] > 0


@pytest.mark.filterwarnings("ignore:intaglio. at step 0 the gradients")
def test_value_clipping_of_few_coordinates_shows(tmp_path):
    """Sampled coordinates tell; where they miss the few clipped ones, the gradients no longer match."""
    model = build("llama_gqa")
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
        model(**batch(texts())).loss.backward()
        top = torch.cat([p.grad.abs().flatten() for p in model.parameters()]).sort(descending=True).values
        torch.nn.utils.clip_grad_value_(model.parameters(), float(top[20]))
        optimizer.step()
    row = open_run(tmp_path / "run").table("steps").to_pylist()[0]
    assert row["gradient_match"] > 1e-4 and abs(row["data_shift"]) > 0.5 * row["update_l2"]
    assert row["closure"] > 1e-4 or row["unmeasured_shift"] > 0


# -- the memory budget


def test_a_budget_too_small_falls_to_norms_and_loses_nothing(tmp_path):
    model = build("llama_gqa")
    size = sum(p.numel() * 4 for p in model.parameters())
    steps = [[micro(texts((6, 9), seed=s))] for s in range(2)] + [[micro(texts([14] * 12))] * 4, [micro(texts((6, 9)))]]
    study = train(model, AdamW(model.parameters(), lr=1e-3), steps, tmp_path / "run", memory=2 * size + 160_000)
    assert [r["measured"] for r in study.rows("steps")] == ["full", "full", "norms", "norms"]
    assert [r["examples"] for r in study.rows("steps")] == [2, 2, 48, 2]
    assert study.column("visits", "push").min() > 0
    assert study.rows("visits", step=2)[0]["shift"] is None
    assert study.rows("tokens", step=2)[0]["surprise_nats"] is not None
    assert study.run.manifest["memory"]["degraded"]
    assert study.rows("steps")[2]["gradient_match"] < 1e-5


def test_a_budget_below_the_copies_measures_norms_from_the_start(tmp_path):
    model = build("llama_gqa")
    study = train(model, AdamW(model.parameters(), lr=1e-3), [[micro(texts())]], tmp_path / "run", memory="10kb")
    assert study.rows("steps")[0]["measured"] == "norms"
    assert study.run.manifest["memory"]["degraded"]


def test_every_nth_step_is_full_and_the_others_norms(tmp_path):
    model = build("llama_gqa")
    study = train(model, AdamW(model.parameters(), lr=1e-3), [[micro(texts(seed=s))] for s in range(5)],
                  tmp_path / "run", every=2)  # fmt: skip
    assert [r["measured"] for r in study.rows("steps")] == ["full", "norms"] * 2 + ["full"]
    for row in study.rows("steps"):
        if row["measured"] == "full":
            assert row["closure"] < 1e-4
        else:
            assert row["closure"] is None and row["data_shift"] is None and row["update_l2"] is None
