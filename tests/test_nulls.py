"""Pure noise, many times over: a null must say so as often as it claims, and an interval must hold the truth."""

from types import SimpleNamespace

import numpy as np
import pytest

from intaglio.analyse import agreement


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
