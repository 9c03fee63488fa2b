"""Spectra of matrices: exact through the products of the smaller side, or sampled with its error stated.

A matrix is given by a function that reads some of its rows, so that it need not be held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

EXACT_UP_TO = 1536  # of the smaller side; an eigenvalue problem of it takes about half a second on one core
SKETCH = 40  # directions of the sampled spectrum
POWERS = 2  # times the sample is sharpened
SPAN_BYTES = 8 * 2**20  # of float32 read at a time
Rows = Callable[[int, int], np.ndarray]  # (first, last) -> float32 (last - first, columns)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one matrix.

    Attributes:
        values: all of them (exact) or the largest, falling.
        exact: whether all were found.
        total: sum of the squares of all of them.
        rank_low, rank_high: effective rank, exp(-sum p log p) with p the squares' shares; both the same where exact, else
            what the part that was not sampled leaves open.
        left_RK, right_CK: singular vectors of the largest, as columns; empty unless asked for.
    """

    values: np.ndarray
    exact: bool
    total: float
    rank_low: float
    rank_high: float
    left_RK: np.ndarray
    right_CK: np.ndarray

    @property
    def rank(self) -> float:
        """The effective rank; the middle of what is open, on a logarithmic scale, where it was sampled."""
        return float(np.sqrt(self.rank_low * self.rank_high))

    @property
    def top_share(self) -> float:
        """Share of the squared length in the largest singular value."""
        return float(self.values[0] ** 2 / self.total) if self.total else 0.0

    def gap(self, k: int) -> float | None:
        """(s_k - s_k+1) / s_k: how well the first k directions are set apart from the rest; None where s_k+1 is not known."""
        if len(self.values) <= k or self.values[k - 1] == 0:
            return None
        return float(1 - self.values[k] / self.values[k - 1])


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the shares of the squared values (Roy and Vetterli 2007, on squares); 0 for a zero matrix."""
    shares = np.asarray(values, np.float64) ** 2
    total = shares.sum()
    if not total:
        return 0.0
    shares = shares[shares > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spectrum(
    rows: Rows, shape: tuple[int, int], *, k: int = 0, seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> Spectrum:
    """The spectrum of a matrix.

    Args:
        rows: reads a range of its rows.
        shape: of the matrix.
        k: how many singular vectors to give.
        seed: of the sample, where the smaller side is longer than `exact_up_to`.
    """
    if min(shape) <= exact_up_to:
        return _exact(rows, shape, min(k, *shape))
    return _sampled(rows, shape, k, np.random.default_rng(seed))


def top_subspace(rows: Rows, shape: tuple[int, int], k: int, *, seed: int = 0, exact_up_to: int = EXACT_UP_TO) -> Spectrum:
    """The k largest singular values and vectors, and one value more, without the rest of the spectrum."""
    if min(shape) > exact_up_to:
        return _sampled(rows, shape, k, np.random.default_rng(seed))
    k = min(k, *shape)
    gram, wide = _gram(rows, shape)
    squares, vectors = _largest(gram, min(k + 1, len(gram)))
    return _with_vectors(rows, shape, wide, squares, vectors[:, :k], float(np.trace(gram)), exact=False)


def principal_angles(a_DK: np.ndarray, b_DK: np.ndarray) -> np.ndarray:
    """Angles in degrees between the spans of two sets of orthonormal columns, falling (Bjorck and Golub 1973)."""
    from scipy.linalg import subspace_angles

    return np.degrees(subspace_angles(a_DK, b_DK))


def spans_of(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of at most `SPAN_BYTES` of float32."""
    step = max(1, SPAN_BYTES // (4 * max(1, shape[1])))
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])


def _exact(rows: Rows, shape: tuple[int, int], k: int) -> Spectrum:
    gram, wide = _gram(rows, shape)
    squares = np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None)
    squares[squares < len(gram) * np.finfo(np.float64).eps * squares[0]] = 0  # below what the products can tell from zero
    rank = effective_rank(np.sqrt(squares))
    none = np.empty((shape[0], 0)), np.empty((shape[1], 0))
    if k and squares[0]:
        top, vectors = _largest(gram, k)
        found = _with_vectors(rows, shape, wide, top, vectors, float(squares.sum()), exact=True)
        none = found.left_RK, found.right_CK
    return Spectrum(np.sqrt(squares), True, float(squares.sum()), rank, rank, *none)


def _gram(rows: Rows, shape: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """Products of the smaller side's vectors in float64, and whether that side is the rows (a wide matrix)."""
    if shape[1] <= shape[0]:
        gram = np.zeros((shape[1], shape[1]))
        for span in spans_of(shape):
            x = rows(*span).astype(np.float64)
            gram += x.T @ x
        return gram, False
    gram = np.zeros((shape[0], shape[0]))
    for first in spans_of(shape):
        x = rows(*first).astype(np.float64)
        for second in spans_of(shape):
            if second >= first:
                y = x if second == first else rows(*second).astype(np.float64)
                gram[slice(*first), slice(*second)] = x @ y.T
                gram[slice(*second), slice(*first)] = gram[slice(*first), slice(*second)].T
    return gram, True


def _largest(gram: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues, falling, with their vectors as columns."""
    from scipy.linalg import eigh

    n = len(gram)
    values, vectors = eigh(gram, subset_by_index=[n - k, n - 1])
    return np.clip(values[::-1], 0, None), vectors[:, ::-1]


def _with_vectors(
    rows: Rows, shape: tuple[int, int], wide: bool, squares: np.ndarray, vectors: np.ndarray, total: float, *, exact: bool
) -> Spectrum:  # fmt: skip
    """The other side's vectors from one more pass over the matrix."""
    values = np.sqrt(squares)
    scale = np.maximum(values[: vectors.shape[1]], 1e-300)
    if wide:
        other = np.zeros((shape[1], vectors.shape[1]))
        for first, last in spans_of(shape):
            other += rows(first, last).T.astype(np.float64) @ vectors[first:last]
        left, right = vectors, other / scale
    else:
        left, right = np.concatenate([rows(*s).astype(np.float64) @ vectors for s in spans_of(shape)]) / scale, vectors
    return Spectrum(values, exact, total, np.nan, np.nan, left, right)


def _sampled(rows: Rows, shape: tuple[int, int], k: int, rng: np.random.Generator) -> Spectrum:
    """A randomised range finder with power steps (Halko, Martinsson and Tropp 2011), streamed by rows."""
    size = min(max(SKETCH, k + 16), *shape)
    probe = rng.standard_normal((shape[1], size)).astype(np.float32)
    total = 0.0
    for step in range(POWERS + 1):
        made = np.zeros((shape[1], size), np.float64)
        for span in spans_of(shape):
            x = rows(*span)
            total += float(np.square(x, dtype=np.float64).sum()) if step == 0 else 0.0
            made += x.T @ (x @ probe)
        probe = np.linalg.qr(made)[0].astype(np.float32)
    image = np.concatenate([rows(*span) @ probe for span in spans_of(shape)]).astype(np.float64)
    left, values, mix = np.linalg.svd(image, full_matrices=False)
    low, high = _rank_bounds(values**2, total, min(shape) - size)
    return Spectrum(values, False, total, low, high, left[:, :k], probe.astype(np.float64) @ mix.T[:, :k])


def _rank_bounds(squares: np.ndarray, total: float, others: int) -> tuple[float, float]:
    """Effective rank if the rest of the squared length lies in as few values as it can, and if in all the others alike.

    As few as it can: each as large as the largest found. The last values found would not do as a bound, for a sample takes
    them for smaller than they are where the spectrum is flat.
    """
    if not total:
        return 0.0, 0.0
    rest = max(0.0, total - squares.sum())
    known = squares[squares > 0] / total
    entropy = float(-(known * np.log(known)).sum())
    if rest <= total * 1e-12 or others <= 0:
        return float(np.exp(entropy)), float(np.exp(entropy))
    share = rest / total
    few = min(max(1.0, rest / squares.max()), float(others))
    return tuple(float(np.exp(entropy - share * np.log(share / n))) for n in (few, float(others)))
