"""Pure noise, many times over: a null must say so as often as it claims, and an interval must hold the truth."""

from types import SimpleNamespace

import numpy as np
import pytest

from intaglio.analyse import agreement
from intaglio.analyse.data import load
from intaglio.analyse.stats import mean_interval, resamples
from intaglio.store.run import RunWriter, open_run


def epochs_of_noise(*, examples: int, batch: int, epochs: int, seed: int) -> tuple[SimpleNamespace, agreement.Pairs]:
    """Texts of unrelated directions that keep them from epoch to epoch, as texts do; all pairs within steps."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(examples, 300))
    code = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    step = np.arange(len(code)) // batch
    a, b = np.nonzero(np.triu(step[:, None] == step[None, :], 1))
    dot = np.einsum("nd,nd->n", direction[code[a]], direction[code[b]])
    data = SimpleNamespace(visits={"code": code, "step": step}, n_examples=examples)
    return data, agreement.Pairs(a, b, dot, dot, 0.0, "pairs")


@pytest.mark.parametrize(("examples", "batch", "epochs"), [(8, 8, 12), (16, 8, 10), (24, 4, 6)])
def test_conflict_of_noise_is_rarely_beyond_its_null_though_the_same_pairs_meet_again(examples, batch, epochs):
    p = []
    for seed in range(100):
        data, pairs = epochs_of_noise(examples=examples, batch=batch, epochs=epochs, seed=seed)
        p.append(agreement.conflict(data, pairs, seed=0)["conflict_p"])
    assert np.mean(np.array(p) <= 0.05) <= 0.12  # with a sign per visit: 0.62, 0.49 and 0.14


def agreement_steps(*, examples: int, batch: int, epochs: int, common: float, seed: int) -> SimpleNamespace:
    """The steps' own estimates of agreement, of texts that share a direction of this length and keep their own."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(examples, 300)) / np.sqrt(300) + common * np.eye(1, 300)
    code = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    g = direction[code].reshape(-1, batch, 300)
    norm2, mean2 = (g**2).sum(2).mean(1), (g.mean(1) ** 2).sum(1)
    steps = {"agreement_gg": (batch * mean2 - norm2) / (batch - 1), "agreement_s": (norm2 - mean2) / (1 - 1 / batch),
             "examples": np.full(len(g), batch)}  # fmt: skip
    return SimpleNamespace(steps=steps, visits={"code": code, "step": np.arange(len(code)) // batch}, n_examples=examples)


@pytest.mark.parametrize(("examples", "batch", "epochs"), [(24, 4, 6), (30, 6, 30), (75, 5, 6), (100, 4, 3)])
@pytest.mark.parametrize("common", [0.0, 0.6])
def test_the_interval_of_agreement_holds_the_truth_over_several_epochs(examples, batch, epochs, common):
    truth, held = common**2 / (common**2 + 1), 0
    for seed in range(100):
        data = agreement_steps(examples=examples, batch=batch, epochs=epochs, common=common, seed=seed)
        alpha, _ = agreement.agreement(data, seed=0)
        held += alpha.low <= truth <= alpha.high
    assert held >= 88  # all steps drawn as if each were new: 28 to 80 where texts share a direction


def test_one_batch_seen_again_and_again_has_no_interval():
    alpha, noise = agreement.agreement(agreement_steps(examples=8, batch=8, epochs=12, common=0.6, seed=0), seed=0)
    assert alpha.value is not None and alpha.low is None and alpha.high is None
    assert noise.value is not None and noise.low is None


@pytest.mark.parametrize(("examples", "batch", "epochs"), [(8, 8, 12), (24, 4, 6), (100, 8, 5)])
def test_unrelated_texts_are_rarely_named_as_a_conflict_though_they_meet_often(examples, batch, epochs):
    """Sketches of 300 numbers under one projection: two texts have the same error at every meeting."""
    false = 0
    for seed in range(60):
        data, pairs = epochs_of_noise(examples=examples, batch=batch, epochs=epochs, seed=seed)
        length = np.sqrt(300)
        pairs.cosine, pairs.noise, pairs.source = pairs.dot / length**2, 1 / length, "sketches"
        data.examples = {"example": np.array([f"e{i}" for i in range(examples)], dtype=object)}
        false += bool(agreement.conflict_pairs(data, pairs))
    assert false <= 8  # of 60; 20 to 60 where meeting often lowers the bar


def test_the_noise_of_sketched_cosines_is_the_one_that_was_measured(tmp_path):
    """The sketches' lengths are off by a tenth where their size promises a fortieth."""
    rng = np.random.default_rng(0)
    writer = RunWriter(tmp_path / "run", {})
    writer.append("visits", {"step": [0] * 40, "slot": list(range(40)), "example": [f"e{i}" for i in range(40)],
                             "loss_weight": [1.0] * 40})  # fmt: skip
    writer.append("sketches", {"step": [0] * 40, "slot": list(range(40)), "example": [f"e{i}" for i in range(40)],
                               "sketch": list(rng.normal(size=(40, 800)).astype(np.float32)), "seed": [1] * 40,
                               "error": 0.1 * rng.choice([-1, 1], size=40)})  # fmt: skip
    assert agreement.pairs_in_steps(load(open_run(writer.finish()))).noise == pytest.approx(np.sqrt(2) * 0.1)


@pytest.mark.parametrize(("examples", "least", "most"), [(2, 0.42, 0.58), (6, 0.78, 0.91), (20, 0.88, 0.96)])
def test_intervals_of_few_examples_are_as_narrow_as_the_docs_say(examples, least, most):
    rng, counts = np.random.default_rng(0), resamples(examples, seed=0)
    found = [mean_interval(rng.normal(size=examples), counts) for _ in range(400)]
    assert least <= np.mean([f.low <= 0 <= f.high for f in found]) <= most
