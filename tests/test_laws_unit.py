"""The unit of every length on a page: 1 u is one millionth of the initial weights' length."""

import pytest
import torch

import intaglio
from tiny import build


def length_of(tensors) -> float:
    return sum(float(t.detach().double().square().sum()) for t in tensors) ** 0.5


@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_one_u_is_a_millionth_of_the_initial_weights(family, tmp_path):
    model = build(family)
    start = length_of(model.parameters())  # a tied matrix counts once
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(3, 15)[None]
    with intaglio.Ledger(model, optimizer, out=tmp_path / "run", quiet=True):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert length_of(model.parameters()) != pytest.approx(start, rel=1e-4)  # so the test can tell start from end
    unit = intaglio.open_run(tmp_path / "run").manifest["unit_length"]
    assert unit == pytest.approx(1e-6 * start, rel=1e-6)
