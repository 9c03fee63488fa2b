"""Adapters are settled together where they are alike: the books are those of one at a time, whatever makes them differ."""

import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim import SGD, Adam, AdamW, RMSprop

from intaglio.errors import UnmeasurableError
from intaglio.measure import lora, writes
from intaglio.measure.ledger import Ledger
from intaglio.store.run import open_run
from tiny import batch, build, texts

TARGETS = {
    "llama_gqa": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
}
ODD = {"llama_gqa": "k_proj", "gpt2": "c_fc", "phi3": "gate_up_proj"}  # of another rank
LOUD = {"llama_gqa": "v_proj", "gpt2": "attn.c_proj", "phi3": "o_proj"}  # in layer 1 of another scale
OPTIMIZERS = {
    "adamw": lambda groups: AdamW(groups, lr=1e-2, weight_decay=0.1, eps=1e-5),
    "amsgrad": lambda groups: Adam(groups, lr=1e-2, weight_decay=0.1, eps=1e-5, amsgrad=True),
    "momentum": lambda groups: SGD(groups, lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.05),
    "sgd": lambda groups: SGD(groups, lr=0.05),
    "rmsprop": lambda groups: RMSprop(groups, lr=1e-3),
}
TABLES = ("steps", "visits", "parts", "visit_parts", "tokens", "credits", "probes")


def adapted(family: str, **changes):
    settings = dict(r=4, lora_alpha=8, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2")
    model = get_peft_model(build(family), LoraConfig(**(settings | changes)))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p) * 0.1)
    return model.train()


def trained(model) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def same(one, other, table: str) -> None:
    """Every column but times and the closure, which is what is left of a difference of alike numbers."""
    one, other = one.table(table), other.table(table)
    assert one.num_rows == other.num_rows > 0, table
    for name in one.column_names:
        if "seconds" in name or name == "closure":
            continue
        a, b = (t[name].to_pylist() for t in (one, other))
        if any(isinstance(x, float) for x in a):
            a, b = (np.array(x, dtype=float) for x in (a, b))  # what is not known becomes NaN
            assert np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True), (table, name)
        else:
            assert a == b, (table, name)


# -- many together, and one at a time


def motley(family: str, optimizer: str, out, *, clip: bool, some: bool, foreign: bool, coarse: bool):
    """Three steps of adapters that differ: in rank, scale, group, age, precision, in how their gradients were clipped and
    in who has one."""
    model = adapted(family, rank_pattern={ODD[family]: 3}, alpha_pattern={rf".*\.1\..*{LOUD[family]}": 2})
    if coarse:  # one adapter in 16 bits among its like
        for name, module in model.named_modules():
            if ".1." in name and name.endswith((LOUD[family], "up_proj")) and hasattr(module, "lora_A"):
                module.lora_A.bfloat16(), module.lora_B.bfloat16()
    params = trained(model)
    groups = [
        {"params": [p for n, p in params.items() if "attn" in n and "lora_A" in n], "lr": 3e-3},
        {"params": [p for n, p in params.items() if "attn" in n and "lora_B" in n], "weight_decay": 0.0},
        {"params": [p for n, p in params.items() if "mlp" in n]},
    ]
    taken = OPTIMIZERS[optimizer](groups)
    with (
        warnings.catch_warnings(),
        Ledger(model, taken, out=out, quiet=True, strict=True, level="exact", probes={"target": batch(texts(seed=9))},
               probe_every=1),
    ):  # fmt: skip
        warnings.filterwarnings("ignore", "intaglio: at step 0 the gradients of")
        for step in range(3):
            model(**batch(texts((6, 9, 4, 5), seed=step))).loss.backward()
            if clip:
                for group in groups:
                    torch.nn.utils.clip_grad_norm_(group["params"], 0.1)
            if foreign:
                one = next(p for n, p in params.items() if "lora_B" in n)
                torch.nn.utils.clip_grad_value_([one], float(one.grad.abs().median()))
            if some:  # an adapter whole, one's half, another set in every step
                for p in list(params.values())[: 3 * step]:
                    p.grad = None
            taken.step()
            taken.zero_grad()
    return open_run(out)


@pytest.mark.parametrize("how", ["coarse", "clip, some", "foreign"])
@pytest.mark.parametrize(
    ("family", "optimizer"), [*(("llama_gqa", o) for o in OPTIMIZERS), ("gpt2", "adamw"), ("phi3", "momentum")]
)
def test_together_is_one_at_a_time(family, optimizer, how, tmp_path, monkeypatch):
    found, calls, plain = [], [], lora._settle
    monkeypatch.setattr(lora, "_settle", lambda *args: calls.append(len(args[1].old)) or plain(*args))
    for together in (1, 300, 1 << 20):  # alone; few of the small ones; all that are alike
        monkeypatch.setattr(lora, "TOGETHER", together)
        calls.append([])
        kinds = {kind: kind in how for kind in ("clip", "some", "foreign", "coarse")}
        found.append(motley(family, optimizer, tmp_path / str(together), **kinds))
    starts = [i for i, c in enumerate(calls) if c == []]
    alone, few, all_alike = calls[1 : starts[1]], calls[starts[1] + 1 : starts[2]], calls[starts[2] + 1 :]
    assert set(alone) == {1} and len(alone) >= len(few) > len(all_alike)
    assert sum(alone) == sum(few) == sum(all_alike) and max(all_alike) > 1
    for table in TABLES:
        for run in found[1:]:
            same(found[0], run, table)
    for run in found:
        assert max(row["closure"] for row in run.table("steps").to_pylist()) < run.manifest["tolerance"]


# -- accounts and signs that nothing else would miss


@pytest.mark.parametrize(("dtype", "lr", "closed"), [(torch.float32, 1e-7, 1e-4), (torch.bfloat16, 1e-3, 1e-2)])
def test_what_precision_swallows_of_an_adapters_step_has_its_account(dtype, lr, closed, tmp_path):
    model = adapted("llama_gqa")
    for p in trained(model).values():
        p.data = p.data.to(dtype)
    optimizer = AdamW(trained(model).values(), lr=lr, weight_decay=0.01)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True):
        for step in range(2):
            model(**batch(texts(seed=step))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = open_run(tmp_path / "run").table("steps").to_pylist()
    assert max(row["closure"] for row in rows) < closed
    assert max(abs(row["rounding_shift"]) / row["update_l2"] for row in rows) > 2 * closed, "open without it"


def test_every_step_and_every_adapter_draws_signs_of_its_own(tmp_path, monkeypatch):
    """One set of signs for all would be as right in the mean, but its errors would add up over steps and layers."""
    keys, plain = [], writes.fresh_projection
    monkeypatch.setattr(writes, "fresh_projection", lambda *args: keys.append(args[2]) or plain(*args))
    model = adapted("llama_gqa")
    optimizer = SGD(trained(model).values(), lr=0.01)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True) as ledger:
        adapters = sum(site.kind == "lora" for site in ledger.layout.sites)
        for step in range(3):
            for forward in range(2):
                model(**batch(texts(seed=2 * step + forward))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert adapters == 12 and len(set(keys)) == 3 * adapters
    assert all(keys.count(key) == 2 for key in keys), "both forwards of a step are summed in the same signs"


# -- one half alone moves


def products(model) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """B, A and the scale of every adapter, in double."""
    found = {}
    for name, module in model.named_modules():
        if "default" in getattr(module, "lora_A", {}):
            halves = (getattr(module, which)["default"].weight.detach().double().clone() for which in ("lora_B", "lora_A"))
            found[name] = (*halves, module.scaling["default"])
    return found


@pytest.mark.parametrize("level", ["full", "exact"])
@pytest.mark.parametrize("still", ["lora_A", "lora_B", "q_proj.lora_A", "layers.1.mlp.up_proj.lora_B"])
@pytest.mark.parametrize("how", ["frozen", "not the optimizer's", "without a gradient", "without one in the second step"])
def test_the_half_of_an_adapter_that_stands_still(how, still, level, tmp_path):
    """As LoRA-FA trains: the product moves by the other half, and the books are of the product."""
    model, lr = adapted("llama_gqa"), 0.005
    params = trained(model)
    quiet = {n: p for n, p in params.items() if still in n}
    assert quiet
    if how == "frozen":
        for p in quiet.values():
            p.requires_grad_(False)
    moving = [p for n, p in params.items() if n not in quiet] if how in ("frozen", "not the optimizer's") else params.values()
    optimizer, truths = SGD(moving, lr=lr), []
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True, level=level,
                probes={"target": batch(texts(seed=9))}, probe_every=1):  # fmt: skip
        for step in range(3):
            model(**batch(texts((9,), seed=step))).loss.backward()  # one text: the data's part is its own
            if how == "without a gradient" or (how.startswith("without one") and step == 1):
                for p in quiet.values():
                    p.grad = None
            stands = how != "without one in the second step" or step == 1
            moves = {n: torch.zeros_like(p) if n in quiet and stands else p.grad.clone() for n, p in params.items()}
            before = products(model)
            optimizer.step()
            truths.append(truth(before, products(model), moves, lr))
            optimizer.zero_grad()
            model.zero_grad()
    run = open_run(tmp_path / "run")
    assert "fault" not in run.manifest and run.manifest["coverage"] == 1.0
    assert not optimizer.state, "an optimizer that keeps nothing is given nothing to keep"
    churns = run.table("visits")["churn"].to_pylist()
    for row, churn, (length, size, data, interaction) in zip(run.table("steps").to_pylist(), churns, truths, strict=True):
        assert level == "full" or churn == pytest.approx((size**2 - data**2) ** 0.5, rel=1e-3, abs=1e-3 * length)
        assert row["update_l2"] == pytest.approx(length, rel=1e-5)
        assert row["data_shift"] == pytest.approx(data, abs=1e-5 * length)
        assert row["interaction_shift"] == pytest.approx(interaction, abs=1e-5 * length)
        assert row["closure"] < 1e-4 and row["gradient_match"] < 1e-5
    for row in run.table("probes").to_pylist()[:3]:  # credits of the data that moved, to first order
        assert abs(row["residual_nats"]) < 0.15 * abs(row["measured_change_nats"]) + 2e-5


def truth(before: dict, after: dict, gradients: dict, lr: float) -> tuple[float, float, float, float]:
    """Lengths of the product's step and of the data's part, and along the step that part and the interaction, from dense
    matrices."""
    u, data, interaction = [], [], []
    for name, (b0, a0, scale) in before.items():
        b1, a1, _ = after[name]
        c_b, c_a = (-lr * gradients[f"{name}.{which}.default.weight"].double() for which in ("lora_B", "lora_A"))
        u.append(scale * (b1 @ a1 - b0 @ a0))
        data.append(scale * (c_b @ a0 + b0 @ c_a))
        interaction.append(scale * (b1 - b0) @ (a1 - a0))
    length, size = (sum(float(x.square().sum()) for x in part) ** 0.5 for part in (u, data))
    along = (sum(float((x * y).sum()) for x, y in zip(u, part)) / length for part in (data, interaction))
    return (length, size, *along)


def test_adapters_that_cannot_be_measured_are_refused_by_name(tmp_path):
    model = adapted("llama_gqa")
    model.add_adapter("second", LoraConfig(r=2, target_modules=TARGETS["llama_gqa"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UnmeasurableError, match="only one active linear adapter"):
        Ledger(model, SGD(trained(model).values(), lr=0.1), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
