"""Credits are the gradient of the probe held against each part of the step; what is not first order is the residual."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam, AdamW

from study import train
from tiny import batch, build, micro, texts
from truth.gradients import token_losses
from truth.optimizers import Adam as TrueAdam
from truth.optimizers import Sgd as TrueSgd
from truth.optimizers import Twin

PROBE = texts((8, 5, 11), seed=77)
ADAM = dict(lr=1e-3, weight_decay=0.1, eps=1e-5)
CASES = {
    "sgd": (lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
            lambda n: TrueSgd(lr=0.01, momentum=0.9, weight_decay=0.1)),
    "adamw": (lambda p: AdamW(p, **ADAM), lambda n: TrueAdam(**ADAM, decoupled=True)),
    "adam l2": (lambda p: Adam(p, **ADAM), lambda n: TrueAdam(**ADAM)),
}  # fmt: skip


def mean_loss(model):
    return torch.cat([token_losses(model, t) for t in PROBE]).mean()


def probe_gradient(model):
    params = dict(model.named_parameters())
    return dict(zip(params, torch.autograd.grad(mean_loss(model), list(params.values()), allow_unused=True)))


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma3"])
@pytest.mark.parametrize("name", CASES)
def test_credits_and_accounts_are_the_probes_gradient_held_against_the_step(name, family, tmp_path):
    model = build(family)
    steps = [[micro(texts((6, 9, 4), seed=s)), micro(texts((5, 7), seed=s + 50))] for s in range(3)]
    states = [copy.deepcopy(model)]
    study = train(model, CASES[name][0](model.parameters()), steps, tmp_path / "run", clip=1.0,
                  twin=Twin(CASES[name][1]), probes={"target": batch(PROBE, side="left")}, probe_every=1,
                  after=lambda: states.append(copy.deepcopy(model)))  # fmt: skip
    for s, truth in enumerate(study.truths):
        row = study.rows("probes", step=s)[0]
        gradient = {n: g.double() for n, g in probe_gradient(states[s]).items()}
        before, after = (mean_loss(m).item() for m in states[s : s + 2])
        assert row["loss_nats"] == pytest.approx(before, rel=1e-5)
        assert row["measured_change_nats"] == pytest.approx(before - after, abs=2e-6)

        def fall(pieces, gradient=gradient):
            return -sum(float((gradient[n] * x).sum()) for n, x in pieces.items())

        parts = [{n: a.parts[i] for n, a in truth.accounts.items()} for i in range(5)]
        credit = [fall(p) for p in parts]
        near = dict(abs=5e-4 * sum(map(abs, credit)))
        assert study.column("credits", "credit_nats", step=s) == pytest.approx(credit, **near)
        assert row["credit_sum_nats"] == pytest.approx(sum(credit), **near)
        assert row["carry_nats"] == pytest.approx(fall({n: a.carry for n, a in truth.accounts.items()}), **near)
        assert row["decay_nats"] == pytest.approx(fall({n: a.decay for n, a in truth.accounts.items()}), **near)
        whole = sum(row[k] for k in
                    ("credit_sum_nats", "carry_nats", "decay_nats", "unmeasured_nats", "residual_nats"))  # fmt: skip
        assert whole == pytest.approx(row["measured_change_nats"], abs=1e-12)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_the_residual_falls_with_the_square_of_the_learning_rate(family, tmp_path):
    residual = {}
    for lr in (0.008, 0.004, 0.002):
        model = build(family)
        study = train(model, SGD(model.parameters(), lr=lr, weight_decay=0.1), [[micro(texts())]],
                      tmp_path / str(lr), probes={"target": batch(texts())}, probe_every=1)  # fmt: skip
        row = study.rows("probes", step=0)[0]
        residual[lr] = row["residual_nats"]
        assert row["measured_change_nats"] > 10 * abs(row["residual_nats"]) or lr > 0.002
    assert residual[0.008] / residual[0.004] == pytest.approx(4, rel=0.2)
    assert residual[0.004] / residual[0.002] == pytest.approx(4, rel=0.12)


def test_the_step_that_nobody_measured_has_its_account_in_the_probe_too(tmp_path):
    """A parameter in no known module moves the probe; the account is -<gradient, its step>."""
    model = build("llama_gqa")
    gate = Gate()
    model.model.layers[0].mlp.act_fn = gate
    slope_gradient = torch.autograd.grad(mean_loss(model), gate.slope)[0]
    study = train(model, SGD(model.parameters(), lr=0.005), [[micro(texts())]], tmp_path / "run",
                  probes={"anchor": batch(PROBE)}, probe_every=1)  # fmt: skip
    row = study.rows("probes", step=0)[0]
    expected = -float(slope_gradient @ (gate.slope.detach() - 1.5))
    assert row["unmeasured_nats"] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert abs(expected) > 1e-7
    assert abs(row["residual_nats"]) < 0.2 * abs(row["measured_change_nats"])


class Gate(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.full((40,), 1.5))

    def forward(self, x):
        return F.silu(x) * self.slope


def test_probes_say_how_far_predictions_and_layers_went(tmp_path):
    """KL and drift against the initial model are 0 at the start and then those of a plain recomputation."""
    model = build("llama_gqa")
    start = copy.deepcopy(model)
    steps = [[micro(texts(seed=s))] for s in range(2)]
    study = train(model, AdamW(model.parameters(), lr=0.01), steps, tmp_path / "run",
                  probes={"anchor": batch(PROBE)}, probe_every=1)  # fmt: skip
    first, last = study.rows("probes", step=0)[0], study.rows("probes", step=2)[0]
    assert first["kl_nats"] == 0 and last["kl_nats"] > 1e-3
    kl, items, hidden = [], [], []
    for text in PROBE:
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            old, new = (m(input_ids=ids, output_hidden_states=True) for m in (start, model))
        p, q = (o.logits[0, :-1].log_softmax(-1) for o in (old, new))
        trained = torch.tensor(text.labels[1:])
        kl += (p.exp() * (p - q)).sum(-1)[trained].tolist()
        items.append(token_losses(model, text).mean().item())
        hidden.append((old.hidden_states[1][0, 1:], new.hidden_states[1][0, 1:]))
    assert last["kl_nats"] == pytest.approx(np.mean(kl), rel=1e-3)
    assert study.column("probe_items", "loss_nats", step=2) == pytest.approx(items, rel=1e-5)
    h0, h1 = (torch.cat(h) for h in zip(*hidden))
    relative = float(((h1 - h0).norm(dim=-1) / h0.norm(dim=-1)).median())
    drift = study.rows("drift", step=2, layer=1)[0]
    assert drift["relative_l2"] == pytest.approx(relative, rel=1e-4)
    assert study.column("drift", "relative_l2", step=0).max() == 0
    assert study.column("drift", "cosine", step=0).min() == pytest.approx(1, abs=1e-6)
