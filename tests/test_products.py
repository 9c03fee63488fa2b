"""The fast product of matrices against the plain one, and who gets which."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intaglio.measure import products, writes

fast_here = pytest.mark.skipif(not products._has_kernel(), reason="this PyTorch has no such product for this processor")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The shapes that oneDNN was given."""
    seen, kernel = [], products._linear

    def watched(x: Tensor, w: Tensor) -> Tensor:
        seen.append((tuple(x.shape), tuple(w.shape)))
        return kernel(x, w)

    monkeypatch.setattr(products, "_linear", watched)
    return seen


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without the kernel."""
    monkeypatch.setattr(products, "_has_kernel", lambda: False)


def close(found: Tensor, truth: Tensor) -> bool:
    return torch.allclose(found.double(), truth, rtol=0, atol=2e-6 * float(truth.abs().max()))


def pair(x: tuple[int, ...], w: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, w = torch.randn(x), torch.randn(w)
    return x, w, x.double() @ w.double().mT


SHAPES = [((5, 7), (3, 7)), ((2, 9, 33), (40, 33)), ((2, 9, 33), (4, 33)), ((130, 65), (17, 65)), ((2, 3, 1), (1, 1)),
          ((0, 4), (3, 4))]  # fmt: skip


@pytest.mark.parametrize(("x", "w"), SHAPES)
@pytest.mark.parametrize("kernel", ["fast", "plain"])
def test_a_product_is_the_product(x: tuple, w: tuple, kernel: str, request: pytest.FixtureRequest) -> None:
    if kernel == "plain":
        request.getfixturevalue("plain")
    x, w, truth = pair(x, w)
    found = products.times(x, w)
    assert found.shape == truth.shape and found.is_contiguous()
    assert not x.numel() or close(found, truth)


@pytest.mark.parametrize("kernel", ["fast", "plain"])
def test_slices_and_transposes_are_read_as_they_stand(kernel: str, request: pytest.FixtureRequest) -> None:
    if kernel == "plain":
        request.getfixturevalue("plain")
    x, w, _ = pair((6, 8, 40), (50, 40))
    sliced, turned = x[1:5, ::2, 3:33], torch.randn(40, 50).mT[:, 3:33]
    assert close(products.times(sliced, turned), sliced.double() @ turned.double().mT)
    assert close(products.times(x, w), x.double() @ w.double().mT)
    rows = x[:, :, :30].mT
    assert close(products.times_rows(rows, rows), rows.double() @ rows.double().mT)


@fast_here
def test_large_rows_go_one_by_one_and_small_ones_together(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ROW_FROM", 120 * 120 * 400)
    large, small = torch.randn(3, 120, 400), torch.randn(3, 12, 400)
    assert products.pays(large, large) and not products.pays(small, small) and not products.pays(small, large)
    assert close(products.times_rows(large, large), large.double() @ large.double().mT)
    assert calls == [((120, 400), (120, 400))] * 3
    assert close(products.times_rows(small, large), small.double() @ large.double().mT)
    assert len(calls) == 3


@fast_here
def test_what_oneDNN_may_not_have_is_given_to_PyTorch(calls: list) -> None:
    x, w, _ = pair((5, 7), (20, 7))
    truth = x @ w.mT
    products.times(x, w)
    assert len(calls) == 1
    for a, b in ((x.double(), w.double()), (x.bfloat16(), w.bfloat16()), (x.to("meta"), w.to("meta")), (x[:0], w)):
        assert products.times(a, b).shape == (len(a), 20)
    wanted = w.clone().requires_grad_()
    products.times(x, wanted).sum().backward()
    assert torch.allclose(wanted.grad, x.sum(0).expand(20, -1), atol=1e-6) and len(calls) == 1
    with torch.no_grad():
        assert torch.allclose(products.times(x, wanted), truth, atol=1e-5) and len(calls) == 2


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_whoever_turns_oneDNN_off_is_obeyed(calls: list) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        products.times(torch.randn(5, 7), torch.randn(20, 7))
    assert calls == []


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_a_PyTorch_without_the_operator_is_served(error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(x: Tensor, w: Tensor) -> Tensor:
        raise error("no such operator")

    monkeypatch.setattr(products, "_linear", gone)
    monkeypatch.setattr(products, "_has_kernel", products._has_kernel.__wrapped__)
    assert not products._has_kernel()
    x, w, truth = pair((5, 7), (20, 7))
    assert close(products.times(x, w), truth)


def test_a_kernel_that_multiplies_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_linear", lambda x, w: x @ w.mT + 1)
    assert not products._has_kernel.__wrapped__()


@pytest.mark.parametrize("positions", [128, 132, 130, 100, 260])
def test_grams_of_both_ways_meet(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One side wide enough for the fast product and one not, as in a layer with narrow heads."""
    monkeypatch.setattr(products, "ROW_FROM", positions * positions * 700)
    torch.manual_seed(1)
    wide, narrow = torch.randn(2, positions, 700), torch.randn(2, positions, 20)
    assert products.pays(wide, wide) == products._has_kernel() and not products.pays(narrow, narrow)
    wide_gram, narrow_gram = writes.gram(wide), writes.gram(narrow)
    whole = wide.double() @ wide.double().mT
    truth = (whole * (narrow.double() @ narrow.double().mT)).sum((-1, -2))
    assert torch.allclose(writes.gram_dot(wide_gram, narrow_gram).double(), truth, rtol=1e-5)
    assert torch.allclose(writes.gram_lengths(wide_gram).double(), whole.diagonal(dim1=1, dim2=2), rtol=1e-5)
    units = torch.randn(2, positions, 60)
    shared = writes.gram_dot(writes.gram(writes.by_unit(units, 3)), wide_gram.beside_axis())
    each = units.double().view(2, positions, 3, 20).transpose(1, 2)
    assert torch.allclose(shared.double(), (each @ each.mT * whole[:, None]).sum((-1, -2)), rtol=1e-5)
