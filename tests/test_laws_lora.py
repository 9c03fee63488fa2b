"""LoRA is measured on the product dW = s B A: its gradient, its books, its heads, against materialised matrices."""

import copy
from collections import defaultdict

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim import SGD, AdamW, RMSprop

from intaglio.errors import UnmeasurableError
from intaglio.measure.ledger import Ledger
from intaglio.store.run import open_run
from study import Truth, mean_weights, train
from tiny import batch, build, micro, micro_packed, texts
from truth.gradients import token_losses
from truth.optimizers import Adam as TrueAdam
from truth.optimizers import Sgd as TrueSgd
from truth.optimizers import Twin

TARGETS = {
    "llama_gqa": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
}
ADAMW = dict(lr=1e-2, weight_decay=0.1, eps=1e-5)
STEPS = [
    [micro(texts((6, 9, 4), seed=1), side="left"), micro_packed([texts((5, 7), seed=2)])],
    [micro(texts((6, 9, 4), seed=3)), micro(texts((8, 5), seed=4))],
    [micro(texts((6, 9, 4, 5, 7), seed=5))],
]


def adapted(family, *, fresh=False, **changes):
    settings = dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS[family], init_lora_weights=True)
    settings["fan_in_fan_out"] = family == "gpt2"
    model = get_peft_model(build(family), LoraConfig(**(settings | changes))).train()
    if not fresh:
        torch.manual_seed(3)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.randn_like(p) * 0.1)
    return model


def adapters(model):
    """Name of every adapted module -> (base weight as (outputs, inputs), A, B, scale)."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in getattr(module, "lora_A", {}):
            w = module.get_base_layer().weight.detach()
            w = w.T if module.fan_in_fan_out else w
            found[name] = (
                w,
                module.lora_A["default"].weight,
                module.lora_B["default"].weight,
                module.scaling["default"],
            )
    return found


def base_gradients(model, text):
    """Gradient at the frozen matrices, unfrozen for the occasion, of the example's own summed loss."""
    twin = copy.deepcopy(model)
    weights = {n: m.get_base_layer().weight for n, m in twin.named_modules() if n in adapters(twin)}
    flip = {n for n, m in twin.named_modules() if n in weights and m.fan_in_fan_out}
    for w in weights.values():
        w.requires_grad_(True)
    gradients = torch.autograd.grad(token_losses(twin, text).sum(), list(weights.values()))
    return {n: (g.T if n in flip else g).double() for n, g in zip(weights, gradients)}


class Product:
    """One step seen at the products: every account as dense matrices."""

    def __init__(self, truth, states, step):
        before, after = states[step], states[step + 1]
        self.u = {n: s * (b1 @ a1 - b0 @ a0) for (n, (a0, b0, s)), (a1, b1, _) in zip(before.items(), after.values())}
        self.size = sum(float(u.square().sum()) for u in self.u.values()) ** 0.5
        self.interaction = self.along({n: s * (after[n][1] - b) @ (after[n][0] - a) for n, (a, b, s) in before.items()})
        self.before, self.accounts = before, truth.accounts
        self.parts = [self.product(lambda x, i=i: x.parts[i]) for i in range(len(truth.shift))]
        self.shift = [self.along(p) for p in self.parts]
        self.carry, self.decay = (
            self.along(self.product(lambda x: x.carry)),
            self.along(self.product(lambda x: x.decay)),
        )

    def product(self, pick):
        """s (c^B A0 + B0 c^A)."""
        both = {n: [self.accounts[f"{n}.lora_{x}.default.weight"] for x in "AB"] for n in self.before}
        find = {n: (pick(a), pick(b)) for n, (a, b) in both.items()}
        return {n: s * (find[n][1] @ a + b @ find[n][0]) for n, (a, b, s) in self.before.items()}

    def along(self, matrices):
        return sum(float((m * self.u[n]).sum()) for n, m in matrices.items()) / self.size


def state(model):
    return {
        n: (a.detach().double().clone(), b.detach().double().clone(), s) for n, (_, a, b, s) in adapters(model).items()
    }


CASES = {
    "adamw": (lambda p: AdamW(p, **ADAMW), lambda n: TrueAdam(**ADAMW, decoupled=True)),
    "nesterov": (lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
                 lambda n: TrueSgd(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)),
}  # fmt: skip


@pytest.fixture(scope="module", params=[(f, c) for f in TARGETS for c in CASES], ids=str)
def study(request, tmp_path_factory):
    family, case = request.param
    model = adapted(family)
    states = [state(model)]
    gradients = [base_gradients(model, e) for m in STEPS[0] for e in m.examples]
    made, true = CASES[case]
    found = train(
        model,
        made([p for p in model.parameters() if p.requires_grad]),
        STEPS,
        tmp_path_factory.mktemp("run") / "run",
        twin=Twin(true),
        clip=1.0,
        level="exact",
        after=lambda: states.append(state(model)),
        probes={"target": batch(texts(seed=9))},
        probe_every=1,
    )
    found.family, found.base, found.model = family, gradients, model
    found.products = [Product(t, states, s) for s, t in enumerate(found.truths)]
    return found


def test_push_is_the_gradient_at_the_frozen_matrix(study):
    truth = [sum(float(g.square().sum()) for g in one.values()) ** 0.5 for one in study.base]
    assert study.column("visits", "push", step=0) == pytest.approx(truth, rel=1e-5)
    assert study.run.manifest["lora"] and study.run.manifest["coverage"] == 1.0


def test_books_close_on_the_product(study):
    assert len(study.products) == len(STEPS)
    for row, product in zip(study.rows("steps"), study.products):
        near = dict(abs=1e-3 * product.size)
        assert row["update_l2"] == pytest.approx(product.size, rel=1e-5)
        assert study.column("visits", "shift", step=row["step"]) == pytest.approx(product.shift, **near)
        assert row["carry_shift"] == pytest.approx(product.carry, **near)
        assert row["decay_shift"] == pytest.approx(product.decay, **near)
        assert row["interaction_shift"] == pytest.approx(product.interaction, **near)
        assert row["closure"] < 1e-4 and row["gradient_match"] < 1e-5
    assert abs(study.rows("steps")[0]["interaction_shift"]) > 1e-5 * product.size


def test_tokens_and_heads_sum_to_the_example(study):
    for table in ("tokens", "visit_parts"):
        total = defaultdict(float)
        for r in study.rows(table):
            total[r["step"], r["slot"]] += r["shift"]
        for visit in study.rows("visits"):
            near = 5e-6 * study.products[visit["step"]].size
            assert total[visit["step"], visit["slot"]] == pytest.approx(visit["shift"], abs=near)
    for row in study.rows("steps"):
        parts = study.rows("parts", step=row["step"])
        assert sum(p["update_l2"] ** 2 for p in parts) == pytest.approx(row["update_l2"] ** 2, rel=1e-6)
        for name in ("data_shift", "carry_shift", "decay_shift"):
            assert sum(p[name] for p in parts) == pytest.approx(row[name], abs=2e-6 * row["update_l2"])


def head_share(family, name, matrix, head):
    """(share, slice) of head `head` (6 wide, 4 heads, two shared) of a product of layer 0, outputs first."""
    q, shared = slice(6 * head, 6 * head + 6), slice(6 * (head // 2), 6 * (head // 2) + 6)
    last = name.rsplit(".", 1)[-1]
    if "mlp" in name:
        return []
    if last == "qkv_proj":
        return [(1, matrix[q]), (0.5, matrix[24:36][shared]), (0.5, matrix[36:][shared])]
    if last == "c_attn":
        return [(1, part[q]) for part in matrix.split(24)]
    if last in ("o_proj", "c_proj"):
        return [(1, matrix[:, q])]
    return [(1, matrix[q])] if last == "q_proj" else [(0.5, matrix[shared])]


@pytest.mark.parametrize("head", [0, 3])
def test_a_heads_slice_of_the_product_is_its_own(study, head):
    product, step = study.products[1], 1
    here = {n: head_share(study.family, n, u, head) for n, u in product.u.items() if ".0." in n}
    update2 = sum(w * float(u.square().sum()) for pieces in here.values() for w, u in pieces)
    weight2 = sum(w * float(x.double().square().sum()) for n in here
                  for w, x in head_share(study.family, n, adapters(study.model)[n][0], head))  # fmt: skip
    part = study.rows("parts", step=step, address=f"L0.attn.H{head}")[0]
    assert part["update_l2"] == pytest.approx(update2**0.5, rel=1e-5)
    assert part["weight_l2"] == pytest.approx(weight2**0.5, rel=1e-5)
    shifts = []
    for c in product.parts:
        shifts.append(sum(w * float((x * u).sum()) for n in here for (w, x), (_, u) in
                          zip(head_share(study.family, n, c[n], head), here[n])) / product.size)  # fmt: skip
    rows = study.rows("visit_parts", step=step, address=f"L0.attn.H{head}")
    assert [r["shift"] for r in rows] == pytest.approx(shifts, abs=1e-3 * product.size)
    if step == 0:
        return
    push2 = [sum(w * float(x.square().sum()) for n in here for w, x in head_share(study.family, n, g[n], head))
             for g in study.base]  # fmt: skip
    found = study.rows("visit_parts", step=0, address=f"L0.attn.H{head}")
    assert [r["push"] for r in found] == pytest.approx(np.sqrt(push2), rel=1e-4)


def test_exact_pairs_and_churn_are_of_the_product(study):
    for row in study.rows("pairs", step=0):
        a, b = study.base[row["slot_a"]], study.base[row["slot_b"]]
        dot = sum(float((a[n] * b[n]).sum()) for n in a)
        size = (
            sum(float(x.square().sum()) for x in a.values()) * sum(float(x.square().sum()) for x in b.values())
        ) ** 0.5
        assert row["dot"] == pytest.approx(dot, abs=1e-4 * size)
    for step, product in enumerate(study.products):
        squared = [sum(float(c.square().sum()) for c in part.values()) for part in product.parts]
        churn = np.sqrt(np.array(squared) - np.array(product.shift) ** 2)
        assert study.column("visits", "churn", step=step) == pytest.approx(churn, rel=1e-3, abs=1e-3 * product.size)


def test_agreement_is_that_of_the_gradients_at_the_frozen_matrices(study):
    weights = np.array(mean_weights(STEPS[0])) * 5
    gram = np.array([[sum(float((a[n] * b[n]).sum()) for n in a) for b in study.base] for a in study.base])
    gram = gram * np.outer(weights, weights)
    row = study.rows("steps")[0]
    assert row["agreement_gg"] == pytest.approx(gram[~np.eye(5, dtype=bool)].mean(), rel=1e-3)
    assert row["agreement_s"] == pytest.approx((np.trace(gram) - gram.sum() / 5) / 4, rel=1e-3)
    assert row["grad_l2"] == pytest.approx(np.sqrt(gram.sum()) / 5, rel=1e-3)


def alphas(study):
    gg, s = study.column("steps", "agreement_gg"), study.column("steps", "agreement_s")
    return gg, s, gg / (gg + s)


@pytest.mark.parametrize("family", TARGETS)
def test_agreement_below_exact_is_an_estimate_whose_error_averages_out(family, tmp_path):
    """Each step draws signs of its own: the ratio stays one of real vectors, and errors do not add up over steps."""
    steps = [[micro(texts((6, 9, 4), seed=s)), micro(texts((8, 5), seed=s + 50))] for s in range(12)]
    found = {}
    for level in ("norms", "full", "exact"):
        model = adapted(family)
        params = [p for p in model.parameters() if p.requires_grad]
        found[level] = train(model, SGD(params, lr=0.0), steps, tmp_path / level, level=level)
    gg, s, alpha = alphas(found["exact"])
    for level in ("norms", "full"):
        near_gg, near_s, near = alphas(found[level])
        assert near.min() >= -1 / 4 and near.max() <= 1
        assert near_gg + near_s == pytest.approx(gg + s, rel=1e-4)  # lengths are exact
        assert near == pytest.approx(alpha, abs=0.05) and (near != alpha).any()
        assert near_gg.sum() / (near_gg + near_s).sum() == pytest.approx(gg.sum() / (gg + s).sum(), abs=0.015)
        lengths = found[level].column("steps", "grad_l2") / found["exact"].column("steps", "grad_l2")
        assert lengths == pytest.approx(np.ones(12), abs=0.1) and lengths.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("changes", [{}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_copies_agree_by_1_under_lora_whatever_the_signs(changes, tmp_path):
    model = adapted("llama_gqa", **changes)
    params = [p for p in model.parameters() if p.requires_grad]
    steps = [[micro(texts((7,)) * 2)] * 2] * 3
    study = train(model, AdamW(params, lr=1e-3), steps, tmp_path / "run", level="full")
    assert alphas(study)[2] == pytest.approx([1] * 3, abs=1e-5)


def test_credits_of_adapters_sum_to_the_change_of_the_probe(study):
    for row in study.rows("probes")[: len(STEPS)]:
        assert abs(row["residual_nats"]) < 0.3 * abs(row["measured_change_nats"]) + 1e-3
        credits = study.column("credits", "credit_nats", step=row["step"])
        assert credits.sum() == pytest.approx(row["credit_sum_nats"], abs=1e-6)


@pytest.mark.parametrize("family", TARGETS)
def test_the_first_step_from_b_zero(family, tmp_path):
    """With B = 0 nothing reaches A, yet the gradient at the frozen matrix is there and the books close."""
    model = adapted(family, fresh=True)
    text = texts((7,))[0]
    truth = sum(float(g.square().sum()) for g in base_gradients(model, text).values()) ** 0.5
    params = [p for p in model.parameters() if p.requires_grad]
    study = train(model, AdamW(params, lr=1e-2), [[micro([text])]] * 2, tmp_path / "run")
    assert study.rows("visits")[0]["push"] == pytest.approx(truth, rel=1e-5)
    for row in study.rows("steps"):
        assert row["closure"] < 1e-4 and row["gradient_match"] < 1e-5


@pytest.mark.parametrize("level", ["full", "exact"])
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_adapters_with_dropout_in_training_mode(family, level, tmp_path):
    """The adapter sees its dropped input, the frozen matrix the whole one: the same mask replayed is the truth."""
    model, text = adapted(family, lora_dropout=0.3), texts((7,))[0]
    torch.manual_seed(11)
    truth = sum(float(g.square().sum()) for g in base_gradients(model, text).values()) ** 0.5

    def loss(model, one, n):
        torch.manual_seed(11)
        return torch.nn.functional.cross_entropy(
            model(input_ids=one.inputs["input_ids"]).logits[0, :-1], one.inputs["labels"][0, 1:]
        )

    params = [p for p in model.parameters() if p.requires_grad]
    study = train(model, AdamW(params, lr=1e-2), [[micro([text])]], tmp_path / "a", loss=loss, level=level)
    assert study.rows("visits")[0]["push"] == pytest.approx(truth, rel=1e-5)
    study = train(model, AdamW(params, lr=1e-2), STEPS, tmp_path / "b", level=level)
    for row in study.rows("steps"):
        assert row["closure"] < 1e-4 and row["gradient_match"] < 1e-5


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"layers_to_transform": [1]}, {"bias": "all"},
                                     {"modules_to_save": ["lm_head"]}])  # fmt: skip
def test_other_ways_to_adapt_close_or_name_what_is_missing(changes, tmp_path):
    model = adapted("llama_gqa", **changes)
    params = [p for p in model.parameters() if p.requires_grad]
    study = train(model, AdamW(params, lr=1e-2), STEPS, tmp_path / "run")
    for row in study.rows("steps"):
        assert row["closure"] < 1e-4 and row["gradient_match"] < 1e-5
    assert study.run.manifest["coverage"] == 1.0 or study.run.manifest["unmeasured"]


def test_adapters_under_checkpointing(tmp_path):
    model = adapted("llama_gqa")
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    params = [p for p in model.parameters() if p.requires_grad]
    study = train(model, AdamW(params, lr=1e-2), STEPS, tmp_path / "run")
    for row in study.rows("steps"):
        assert row["closure"] < 1e-4 and row["gradient_match"] < 1e-5


@pytest.mark.parametrize("level", ["norms", "full", "exact"])
def test_an_optimizer_without_formulas_on_adapters(level, tmp_path):
    model = adapted("llama_gqa")
    params = [p for p in model.parameters() if p.requires_grad]
    study = train(model, RMSprop(params, lr=1e-3), STEPS, tmp_path / "run", level=level)
    assert "fault" not in study.run.manifest
    for row in study.rows("steps"):
        if level != "norms":
            assert row["closure"] < 1e-4
            assert 0.02 * row["update_l2"] < row["data_shift"] < row["update_l2"]
            assert row["unexplained_shift"] > 0


@pytest.mark.parametrize("level", ["full", "exact"])
@pytest.mark.parametrize("which", ["", "lora_A", "layers.0.self_attn.q_proj.lora_B"])
def test_value_clipping_of_adapters_leaves_only_the_products_data_unmeasured(which, level, tmp_path):
    """Where one half's gradient was clipped, what came of both is no example's: the books are of the product."""
    model = adapted("llama_gqa")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer, twin = AdamW(trained.values(), **ADAMW), Twin(lambda n: TrueAdam(**ADAMW, decoupled=True))
    states, accounts = [state(model)], []
    with (
        pytest.warns(RuntimeWarning, match="coordinate by coordinate"),
        Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True, level=level),
    ):
        for s in range(3):
            model(**batch(texts(seed=s))).loss.backward()
            for p in (p for n, p in trained.items() if which in n):
                torch.nn.utils.clip_grad_value_([p], float(p.grad.abs().median()))
            accounts.append(twin.step(trained, [{n: p.grad.clone() for n, p in trained.items()}]))
            optimizer.step()
            optimizer.zero_grad()
            states.append(state(model))
    run = open_run(tmp_path / "run")
    assert "fault" not in run.manifest and run.manifest["gradients_changed"]["step"] == 0
    for step, row in enumerate(run.table("steps").to_pylist()):
        product = Product(Truth(0, [], 0, 0, [], [], [], accounts[step], {}), states, step)
        changed = {n for n in product.u if any(which in t for t in trained if t.startswith(f"{n}."))}
        given, near = product.product(lambda x: x.parts[0]), dict(abs=1e-3 * product.size)

        def along(names, given=given, product=product):
            return sum(float((given[n] * product.u[n]).sum()) for n in names) / product.size

        assert row["update_l2"] == pytest.approx(product.size, rel=1e-5)
        assert row["unmeasured_shift"] == pytest.approx(along(changed), **near)
        assert row["data_shift"] == pytest.approx(along(set(product.u) - changed), **near)
        assert row["carry_shift"] == pytest.approx(product.carry, **near)
        assert row["decay_shift"] == pytest.approx(product.decay, **near)
        assert row["closure"] < 1e-4 and row["agreement_gg"] is not None  # of the writes, which nobody clipped
    shifts = run.table("visits")["shift"].to_pylist()
    assert (set(shifts) == {None}) == (which != "layers.0.self_attn.q_proj.lora_B")


def test_dora_is_refused_by_name(tmp_path):
    model = adapted("llama_gqa", use_dora=True)
    with pytest.raises(UnmeasurableError, match="DoRA"):
        Ledger(model, SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_group_momentum_is_refused_on_adapters(tmp_path):
    model = adapted("llama_gqa")
    params = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(UnmeasurableError, match="group momentum"):
        Ledger(model, SGD(params, lr=0.1), out=tmp_path / "run", group_momentum=True)
    assert not list(tmp_path.iterdir())
