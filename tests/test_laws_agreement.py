"""How far examples agree: identities, exact forms against plain ones, and sketches that are unbiased."""

import numpy as np
import pytest
from torch.optim import SGD, AdamW

from study import mean_weights, train
from tiny import batch, build, micro, texts
from truth.gradients import dot, example_gradient
from truth.optimizers import Adam as TrueAdam
from truth.optimizers import Twin

ADAMW = dict(lr=3e-3, weight_decay=0.1, eps=1e-5)


def gram(model, examples):
    gradients = [example_gradient(model, e) for e in examples]
    return np.array([[dot(a, b) for b in gradients] for a in gradients])


@pytest.mark.parametrize("level", ["norms", "full", "exact"])
def test_agreement_is_the_mean_inner_product_of_different_examples(level, tmp_path):
    """GG is the mean of <B h_i, B h_j> over i != j, S the unbiased variance: their plain forms."""
    model, micros = build("llama_tied"), [micro(texts()), micro(texts((5, 8), seed=4))]
    examples = [e for m in micros for e in m.examples]
    weights, n = np.array(mean_weights(micros)), len(examples)
    products = gram(model, examples) * np.outer(weights, weights) * n * n
    study = train(model, SGD(model.parameters(), lr=0.0), [micros], tmp_path / "run", level=level)
    row = study.rows("steps")[0]
    off = ~np.eye(n, dtype=bool)
    gg = products[off].mean()
    s = (np.trace(products) - products.sum() / n) / (n - 1)
    assert row["agreement_gg"] == pytest.approx(gg, rel=1e-4)
    assert row["agreement_s"] == pytest.approx(s, rel=1e-4)
    # One number with four names: m-coherence m alpha, diversity 1/(m alpha), noise scale (1 - alpha)/alpha.
    alpha = row["agreement_gg"] / (row["agreement_gg"] + row["agreement_s"])
    assert row["agreement_gg"] + row["agreement_s"] == pytest.approx(np.trace(products) / n, rel=1e-4)
    diversity = np.trace(products) / products.sum()
    assert 1 / diversity == pytest.approx(1 + (n - 1) * alpha, rel=1e-4)


def test_agreement_is_1_for_copies_and_its_least_where_gradients_cancel(tmp_path):
    model, one = build("llama_gqa"), texts((7,))
    study = train(model, SGD(model.parameters(), lr=0.0), [[micro(one * 4)]], tmp_path / "run", level="exact")
    row = study.rows("steps")[0]
    assert row["agreement_gg"] / (row["agreement_gg"] + row["agreement_s"]) == pytest.approx(1, abs=1e-5)
    assert study.column("visits", "alignment") == pytest.approx([1] * 4, abs=1e-5)


@pytest.mark.parametrize("level", ["full", "exact"])
def test_one_example_alone_agrees_with_nobody(level, tmp_path):
    model = build("llama_gqa")
    study = train(model, SGD(model.parameters(), lr=0.1), [[micro(texts((7,)))]], tmp_path / "run", level=level)
    row = study.rows("steps")[0]
    assert row["agreement_gg"] is None and row["agreement_s"] is None
    assert study.rows("visits")[0]["alignment"] is None
    assert study.rows("pairs") == []


@pytest.fixture(scope="module", params=["llama_tied", "gpt2", "phi3", "gemma3"])
def exact(request, tmp_path_factory):
    model = build(request.param)
    steps = [[micro(texts(seed=s), side="left"), micro(texts((5, 8), seed=s + 9))] for s in range(3)]
    return train(model, AdamW(model.parameters(), **ADAMW), steps, tmp_path_factory.mktemp("run") / "run",
                 level="exact", clip=1.0, twin=Twin(lambda n: TrueAdam(**ADAMW, decoupled=True)),
                 probes={"target": batch(texts(seed=5))}, probe_every=1)  # fmt: skip


def test_exact_alignment_leaves_the_example_itself_out(exact):
    for step, truth in enumerate(exact.truths):
        weights = mean_weights([micro(texts()), micro(texts((5, 8)))])
        h = [{n: w * g for n, g in one.items()} for w, one in zip(weights, truth.gradients)]
        for i, found in enumerate(exact.column("visits", "alignment", step=step)):
            others = {n: sum(h[j][n] for j in range(6) if j != i) for n in h[0]}
            cosine = dot(h[i], others) / (dot(h[i], h[i]) * dot(others, others)) ** 0.5
            assert found == pytest.approx(cosine, abs=1e-4)


def test_exact_pairs_are_plain_inner_products(exact):
    for step, truth in enumerate(exact.truths):
        rows = exact.rows("pairs", step=step)
        assert len(rows) == 15
        for row in rows:
            a, b = truth.gradients[row["slot_a"]], truth.gradients[row["slot_b"]]
            scale = (dot(a, a) * dot(b, b)) ** 0.5
            assert row["dot"] == pytest.approx(dot(a, b), abs=1e-4 * scale)
            assert row["cosine"] == pytest.approx(dot(a, b) / scale, abs=1e-4)


def test_churn_is_what_is_left_of_an_examples_part_across_the_step(exact):
    for step, truth in enumerate(exact.truths):
        found = exact.column("visits", "churn", step=step)
        assert found == pytest.approx(truth.churn, rel=2e-3, abs=1e-3 * truth.update_l2)
        shifts = exact.column("visits", "shift", step=step)
        squared = [sum(float(a.parts[i].square().sum()) for a in truth.accounts.values()) for i in range(6)]
        assert found**2 + shifts**2 == pytest.approx(squared, rel=2e-3)


def test_exact_closes_like_full(exact):
    for row in exact.rows("steps"):
        assert row["measured"] == "exact" and row["closure"] < 1e-4 and row["gradient_match"] < 1e-5
        assert exact.rows("probes", step=row["step"])[0]["residual_nats"] is not None


@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_sketches_are_unbiased_within_their_error(family, tmp_path):
    """Over many seeds the mean of <sketch_i, sketch_j> is the true inner product, lengths included."""
    model, examples = build(family), texts((6, 9, 4))
    weights = np.array(mean_weights([micro(examples)]))
    truth = gram(model, examples) * np.outer(weights, weights)
    found, errors = [], []
    for seed in range(40):
        study = train(model, SGD(model.parameters(), lr=0.0), [[micro(examples)]], tmp_path / str(seed),
                      level="norms", seed=seed)  # fmt: skip
        rows = study.rows("sketches")
        sketch = np.array([r["sketch"] for r in rows], dtype=float)
        found.append(sketch @ sketch.T)
        errors.append([r["error"] for r in rows])
        assert [r["error"] for r in rows] == pytest.approx(
            abs(np.sqrt(np.diag(found[-1]) / np.diag(truth)) - 1), abs=2e-3)  # fmt: skip
    mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(40)
    assert (np.abs(mean - truth) < 4 * error + 1e-3 * np.sqrt(np.outer(np.diag(truth), np.diag(truth)))).all()
    assert np.mean(errors) < 0.5
