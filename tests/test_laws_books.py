"""The books of every step close, and each account is what a slow, separate oracle says it is."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam, AdamW

import tiny
from intaglio.measure import ledger as ledger_module
from intaglio.measure import settle
from study import mean_weights, model_loss, train
from tiny import BUILDERS, build, micro, micro_packed, texts
from truth.optimizers import Adam as TrueAdam
from truth.optimizers import Sgd as TrueSgd
from truth.optimizers import Twin

CLOSED = 1e-4
ADAMW = dict(lr=3e-3, weight_decay=0.1, eps=1e-5)  # an exactly zero gradient is noise, which a tiny eps magnifies


def adamw_twin(**changes):
    settings = ADAMW | {"decoupled": True} | changes
    return Twin(lambda name: TrueAdam(**settings))


def batches(steps=3, *, micros=1, **how):
    return [[micro(texts((6, 9, 4), seed=10 * s + m), **how) for m in range(micros)] for s in range(steps)]


def check(study, *, closed=CLOSED, match=1e-5, rel=2e-4):
    """Every account of every step against the oracle's, within `rel` of the step's length."""
    steps = study.rows("steps")
    assert len(steps) == len(study.truths) > 0
    for row, truth in zip(steps, study.truths):
        assert row["measured"] in ("full", "exact")
        assert row["update_l2"] == pytest.approx(truth.update_l2, rel=1e-5)
        tolerance = rel * truth.update_l2
        shifts = study.column("visits", "shift", step=row["step"])
        assert shifts == pytest.approx(truth.shift, abs=tolerance)
        assert row["data_shift"] == pytest.approx(sum(truth.shift), abs=tolerance)
        assert row["carry_shift"] == pytest.approx(truth.carry, abs=tolerance)
        assert row["decay_shift"] == pytest.approx(truth.decay, abs=tolerance)
        assert study.column("visits", "push", step=row["step"]) == pytest.approx(truth.push, rel=max(1e-5, match))
        assert row["closure"] < closed
        assert row["gradient_match"] < match


@pytest.mark.parametrize("family", BUILDERS)
def test_books_close_on_every_family(family, tmp_path):
    model = build(family)
    study = train(model, AdamW(model.parameters(), **ADAMW), batches(), tmp_path / "run", twin=adamw_twin())
    check(study)


@pytest.mark.parametrize("family", ["gpt2", "neox", "qwen2", "gemma3"])
def test_books_close_where_noise_is_magnified(family, tmp_path):
    """A key's bias has no gradient but noise, and torch's own eps lets Adam step as far on noise as on anything."""
    model = build(family)
    study = train(model, AdamW(model.parameters(), lr=3e-3), batches(12), tmp_path / "run")
    for row in study.rows("steps"):
        assert row["closure"] < CLOSED and row["gradient_match"] < 1e-5
        assert row["unsettled"] == (row["step"] < 10)


OPTIMIZERS = {
    "sgd": (SGD, TrueSgd, dict(lr=0.05)),
    "sgd decay": (SGD, TrueSgd, dict(lr=0.05, weight_decay=0.1)),
    "momentum": (SGD, TrueSgd, dict(lr=0.05, momentum=0.9, weight_decay=0.1)),
    "dampening": (SGD, TrueSgd, dict(lr=0.05, momentum=0.9, dampening=0.4, weight_decay=0.1)),
    "nesterov": (SGD, TrueSgd, dict(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "sgd maximize": (SGD, TrueSgd, dict(lr=0.02, momentum=0.5, weight_decay=0.1, maximize=True)),
    "adam": (Adam, TrueAdam, dict(lr=3e-3, eps=1e-5)),
    "adam l2": (Adam, TrueAdam, ADAMW),
    "adam decoupled": (Adam, TrueAdam, ADAMW),
    "amsgrad": (AdamW, TrueAdam, dict(lr=3e-3, weight_decay=0.1, eps=1e-5, amsgrad=True, betas=(0.8, 0.9))),
    "adamw maximize": (AdamW, TrueAdam, dict(ADAMW, maximize=True)),
    "adam l2 maximize": (Adam, TrueAdam, dict(ADAMW, maximize=True)),
    "large eps": (AdamW, TrueAdam, dict(lr=3e-3, weight_decay=0.1, eps=1e-2)),
    "betas": (AdamW, TrueAdam, dict(lr=3e-3, eps=1e-5, betas=(0.5, 0.7), weight_decay=0.0)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accounts_are_the_optimizers_own_formulas(name, tmp_path):
    made, true, settings = OPTIMIZERS[name]
    model, extra, known = build("llama_tied"), {}, {}
    if name == "adam decoupled":
        extra = {"decoupled_weight_decay": True}
    if made is AdamW or extra:
        known = {"decoupled": True}
    optimizer = made(model.parameters(), **settings, **extra)
    study = train(model, optimizer, batches(4), tmp_path / "run", twin=Twin(lambda n: true(**settings, **known)))
    check(study)


@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"capturable": False}])
def test_every_implementation_of_adamw(how, tmp_path):
    model = build("llama_gqa")
    study = train(model, AdamW(model.parameters(), **ADAMW, **how), batches(2), tmp_path / "run", twin=adamw_twin())
    check(study)


ARRANGEMENTS = {
    "left": [[micro(texts(seed=s), side="left")] for s in range(2)],
    "longer": [[micro(texts(seed=s), length=20)] for s in range(2)],
    "packed": [[micro_packed([texts((5, 7, 4), seed=s)])] for s in range(2)],
    "packed rows": [[micro_packed([texts((5, 7), seed=s), texts((3, 4, 5), seed=s + 9)])] for s in range(2)],
    "accumulated": batches(2, micros=3),
    "accumulated and packed": [[micro_packed([texts((5, 7))]), micro(texts(seed=3), side="left")]] * 2,
    "one example": [[micro(texts((9,), seed=s))] for s in range(2)],
    "duplicates": [[micro(texts((6, 9)) + texts((6, 9)))]] * 2,
}


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma3"])
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_books_close_however_examples_are_laid_out(name, family, tmp_path):
    model = build(family)
    study = train(model, AdamW(model.parameters(), **ADAMW), ARRANGEMENTS[name], tmp_path / "run", twin=adamw_twin())
    check(study)


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_clipping_is_read_not_guessed(clip, tmp_path):
    model = build("llama_gqa")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    study = train(model, optimizer, batches(3, micros=2), tmp_path / "run", clip=clip,
                  twin=Twin(lambda n: TrueSgd(lr=0.1, momentum=0.9)))  # fmt: skip
    check(study)
    row, truth = study.rows("steps")[0], study.truths[0]
    assert (row["clip_scale"] < 0.9) == (clip == 0.5)
    whole = {
        n: sum(g[n] * w for g, w in zip(truth.gradients, mean_weights(batches(1, micros=2)[0]))) for n in truth.update
    }
    grad_l2 = sum(float(g.double().square().sum()) for g in whole.values()) ** 0.5
    assert row["grad_l2"] == pytest.approx(grad_l2, rel=1e-4)
    assert row["clip_scale"] == pytest.approx(min(1.0, clip / grad_l2), rel=1e-4)


def _outside(reduction):
    def loss(model, one, n):
        logits = model(**{k: v for k, v in one.inputs.items() if k != "labels"}).logits
        target = one.inputs["labels"][:, 1:]
        losses = F.cross_entropy(logits[:, :-1].mT, target, reduction="none")
        if reduction == "sum":
            return losses.sum() * 0.1
        return (losses.sum(1) / (target != -100).sum(1) * torch.tensor([1.0, 3.0, -0.5])).sum()

    return loss


@pytest.mark.parametrize("reduction", ["sum", "per example"])
def test_books_close_under_any_loss_outside_the_model(reduction, tmp_path):
    def weights(micros):
        if reduction == "sum":
            return [0.1 for m in micros for _ in m.examples]
        return [f / e.targets for m in micros for e, f in zip(m.examples, (1.0, 3.0, -0.5))]

    model = build("llama_tied")
    study = train(model, AdamW(model.parameters(), **ADAMW), batches(2), tmp_path / "run",
                  loss=_outside(reduction), weights=weights, twin=adamw_twin())  # fmt: skip
    check(study)


def test_parameter_groups_frozen_parameters_and_a_schedule(tmp_path):
    model = build("llama_bias")
    frozen = ("layers.1.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight")
    matrices, vectors = {}, {}
    for n, p in model.named_parameters():
        p.requires_grad_(not n.endswith(frozen))
        if p.requires_grad:
            (vectors if p.ndim < 2 else matrices)[n] = p
    groups = [
        {"params": list(matrices.values()), "lr": 2e-3, "weight_decay": 0.2},
        {"params": list(vectors.values()), "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0 / (1 + s))
    twin = Twin(lambda n: TrueAdam(lr=2e-3, weight_decay=0.2, decoupled=True) if n in matrices
                else TrueAdam(lr=1e-2, weight_decay=0.0, decoupled=True))  # fmt: skip
    taken = []

    def after():
        scheduler.step()
        taken.append(scheduler.get_last_lr())
        for one in twin.by_name.values():
            one.lr = (2e-3 if one.weight_decay else 1e-2) / (1 + len(taken))

    study = train(model, optimizer, batches(4), tmp_path / "run", twin=twin, after=after)
    check(study)
    assert study.column("steps", "lr") == pytest.approx([2e-3 / (1 + s) for s in range(4)])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_books_close_under_gradient_checkpointing(family, reentrant, tmp_path):
    model = build(family)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    study = train(model, AdamW(model.parameters(), **ADAMW), batches(2, micros=2), tmp_path / "run", twin=adamw_twin())
    check(study)


def test_books_close_under_autocast(tmp_path):
    """The backward runs in bfloat16; the examples' gradients are those of that backward, to 1e-2 of the gradient."""

    def loss(model, one, n):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model_loss(model, one, n)

    model = build("llama_tied")
    study = train(model, AdamW(model.parameters(), **ADAMW), batches(3, micros=2), tmp_path / "run", loss=loss)
    for row in study.rows("steps"):
        assert row["closure"] < 1e-2
        assert row["gradient_match"] < 1e-2
    assert {v["push_kind"] for v in study.rows("visits")} == {"token_sum"}


@pytest.mark.parametrize("lr", [1e-5, 1e-6, 1e-7])
def test_what_the_weights_precision_swallows_has_its_account(lr, tmp_path):
    model = build("llama_gqa")
    study = train(model, AdamW(model.parameters(), lr=lr, weight_decay=0.01), batches(2), tmp_path / "run",
                  twin=adamw_twin(lr=lr, weight_decay=0.01))  # fmt: skip
    for row in study.rows("steps"):
        assert row["closure"] < CLOSED
    if lr < 1e-6:
        assert abs(row["rounding_shift"]) > 1e-3 * row["update_l2"]


def test_weights_in_bfloat16_lose_most_of_a_small_step(tmp_path):
    model = build("llama_gqa").to(torch.bfloat16)
    study = train(model, AdamW(model.parameters(), lr=1e-3, weight_decay=0.0), batches(2), tmp_path / "run")
    for row in study.rows("steps"):
        assert row["closure"] < 1e-2
        assert row["gradient_match"] < 2e-2
        assert abs(row["rounding_shift"]) > 1e-2 * row["update_l2"]
    assert study.run.manifest["tolerance"] == 1e-2


def test_parameters_without_a_gradient_take_no_step(tmp_path):
    model = build("llama_gqa")
    unused = torch.nn.Linear(3, 3)
    start = unused.weight.detach().clone()
    model.add_module("unused", unused)
    optimizer = AdamW(model.parameters(), **ADAMW)
    study = train(model, optimizer, batches(2), tmp_path / "run", twin=None)
    for row in study.rows("steps"):
        assert row["closure"] < CLOSED and row["gradient_match"] < 1e-5
    assert torch.equal(unused.weight, start)


# -- mutations: a wrong map or a wrong formula must show


def without_site(monkeypatch, name):
    whole = ledger_module.build_layout

    def dropped(model, params=None):
        layout = whole(model, params)
        layout.sites = [s for s in layout.sites if s.name != name]
        for i, site in enumerate(layout.sites):
            site.index = i
        return layout

    monkeypatch.setattr(ledger_module, "build_layout", dropped)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.k_proj", "model.norm"])
def test_a_matrix_left_out_of_the_map_breaks_the_books(name, monkeypatch, tmp_path):
    model = build("llama_gqa")
    without_site(monkeypatch, name)
    study = train(model, AdamW(model.parameters(), **ADAMW), batches(2), tmp_path / "run")
    for row in study.rows("steps"):
        assert row["closure"] > 10 * CLOSED


WRONG = {"beta1": {"carry": 1.02}, "data": {"data": 0.98}, "decay": {"decay": 0.0}, "correction": {"correction": 1.01}}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_formula_breaks_the_books_and_rounding_does_not_hide_it(name, monkeypatch, tmp_path):
    true_rule = settle.rule_for

    def wrong(*args, **kw):
        rule = true_rule(*args, **kw)
        return dataclasses.replace(rule, **{k: getattr(rule, k) * f for k, f in WRONG[name].items()})

    monkeypatch.setattr(settle, "rule_for", wrong)
    model = build("llama_gqa")
    study = train(model, AdamW(model.parameters(), **ADAMW), batches(3), tmp_path / "run")
    assert study.rows("steps")[-1]["closure"] > CLOSED


def test_a_gradient_changed_for_some_tokens_only_breaks_the_match(tmp_path):
    """A site whose caught gradient is not what reached the weight shows in gradient_match."""
    model = build("llama_gqa")
    module = model.model.layers[0].mlp.down_proj
    handle = module.weight.register_hook(lambda g: g + 0.5 * g.roll(1, 0))
    study = train(model, SGD(model.parameters(), lr=0.1), batches(1), tmp_path / "run")
    handle.remove()
    assert study.rows("steps")[0]["gradient_match"] > 1e-3
    assert study.rows("steps")[0]["closure"] > CLOSED


@pytest.mark.parametrize("family", ["gpt2", "llama_tied", "phi3"])
def test_parameters_are_settled_in_pieces(family, monkeypatch, tmp_path):
    """Large parameters go piece by piece, each within one head's rows; here every parameter is large."""
    monkeypatch.setattr(settle, "PIECE", 100)
    monkeypatch.setattr(settle, "SMALL_PIECE", 50)
    model = build(family)
    check(train(model, AdamW(model.parameters(), **ADAMW), batches(2), tmp_path / "run", twin=adamw_twin()))


@pytest.mark.parametrize("dtype, lr, closed", [(torch.float32, 1e-6, 1e-4), (torch.bfloat16, 1e-4, 1e-2)])
def test_the_sampled_rounding_of_large_matrices_closes_the_books(dtype, lr, closed, tmp_path):
    config = tiny.LlamaConfig(
        vocab_size=1500, hidden_size=96, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = tiny.LlamaForCausalLM(config).to(dtype)
    study = train(model, AdamW(model.parameters(), lr=lr), batches(3), tmp_path / "run")
    for row in study.rows("steps"):
        assert row["closure"] < closed
    assert (abs(row["rounding_shift"]) > 0.1 * row["update_l2"]) == (dtype == torch.bfloat16)
