"""Statistics without a model: robust scales, bootstrap intervals, nulls. Pure numpy."""

from __future__ import annotations

import numpy as np

from intaglio.findings import Interval

MAD_TO_SD = 1.4826  # makes the MAD of a normal sample estimate its standard deviation
_LOW, _HIGH = 2.5, 97.5  # percentiles of a 95 % interval
_CELLS = 4_000_000  # resampling counts held at once: 32 MB


def number(value: float | np.number | None) -> float | None:
    """A plain float, or None where the value is missing or not finite: unknown is never 0."""
    return float(value) if value is not None and np.isfinite(value) else None


def numbers(values: np.ndarray) -> list[float | None]:
    """`number` of each."""
    return [number(v) for v in values]


def mad(values: np.ndarray) -> float:
    """Median absolute deviation from the median, in the values' own unit; NaNs are left out."""
    values = values[np.isfinite(values)]
    return float(np.median(np.abs(values - np.median(values)))) if values.size else np.nan


def robust_z(values: np.ndarray) -> np.ndarray:
    """(x - median) / (1.4826 MAD): like a z-score, but the outliers sought do not widen the scale.

    NaN where the value is missing, and everywhere when half of the values are equal (no scale).
    """
    values = np.asarray(values, dtype=float)
    finite = values[np.isfinite(values)]
    scale = MAD_TO_SD * mad(finite)
    if not finite.size or not scale > 0:
        return np.full(values.shape, np.nan)
    return (values - np.median(finite)) / scale


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share their mean rank. (scipy's costs a second to import.)"""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation over the pairs in which both are known; None under five pairs or without spread."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 5:
        return None
    rank_x, rank_y = ranks(x[both]), ranks(y[both])
    if np.ptp(rank_x) == 0 or np.ptp(rank_y) == 0:
        return None
    return number(np.corrcoef(rank_x, rank_y)[0, 1])


def residual(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What of y a straight line in x does not explain (least squares); mean 0, uncorrelated with x."""
    y, x = np.asarray(y, dtype=float), np.asarray(x, dtype=float)
    both = np.isfinite(x) & np.isfinite(y)
    out = np.full(y.shape, np.nan)
    if not both.any():
        return out
    centred = x[both] - x[both].mean()
    spread = centred @ centred
    slope = centred @ y[both] / spread if spread > 0 else 0.0
    out[both] = y[both] - y[both].mean() - slope * centred
    return out


def resamples(n: int, *, seed: int, times: int = 1000, drawn: int | None = None) -> np.ndarray:
    """How often each of n units is drawn in each bootstrap resample: [times, n].

    With many units fewer resamples are drawn (never under 100), to bound the memory.

    Args:
        drawn: units per resample where the n are worth no more independent ones than that; n by default.
    """
    times = max(100, min(times, _CELLS // max(n, 1)))
    return np.random.default_rng(seed).multinomial(drawn or n, np.full(n, 1 / n), size=times).astype(float)


def ratio_interval(top: np.ndarray, bottom: np.ndarray | None, counts: np.ndarray) -> Interval:
    """sum(top) / sum(bottom) over units with its percentile bootstrap interval; sum(top) without `bottom`.

    Units whose `top` or `bottom` is NaN are left out. Under two units there is no interval.

    Args:
        counts: resamples over the same units, [times, n].
    """
    known = np.isfinite(top) & (np.isfinite(bottom) if bottom is not None else True)
    if not known.any():
        return Interval(None)
    top = np.where(known, top, 0.0)
    below = np.where(known, bottom, 0.0) if bottom is not None else None
    with np.errstate(all="ignore"):
        value = top.sum() / (below.sum() if below is not None else 1.0)
        draws = counts @ top / (counts @ below if below is not None else 1.0)
    draws = draws[np.isfinite(draws)]
    if known.sum() < 2 or not draws.size:
        return Interval(number(value))
    low, high = np.percentile(draws, [_LOW, _HIGH])
    return Interval(number(value), number(low), number(high))


def mean_interval(values: np.ndarray, counts: np.ndarray) -> Interval:
    """Mean over the known units with its bootstrap interval."""
    return ratio_interval(values, np.ones(len(values)), counts)


def sampling_half_width(measured: np.ndarray, n_total: int) -> float:
    """Half width of the 95 % interval of a total that was scaled up from a sample of steps.

    1.96 N sqrt((1 - n/N) s^2 / n), with the finite-population correction: 0 when every
    step was measured, unknown (NaN) when only one of several was. Cochran, Sampling
    Techniques, section 2.9; conservative for every-Nth-step sampling of a smooth series.

    Args:
        measured: the quantity in each measured step, zero included, [n].
        n_total: N, all steps.
    """
    n = len(measured)
    if n >= n_total:
        return 0.0
    if n < 2:
        return np.nan
    return float(1.96 * n_total * np.sqrt((1 - n / n_total) * measured.var(ddof=1) / n))


def half_width_of_sums(total: np.ndarray, squares: np.ndarray, n: int, n_total: int) -> np.ndarray:
    """`sampling_half_width` of many quantities, from their sums and sums of squares over the measured steps.

    Args:
        n: measured steps, those in which a quantity was 0 included.
        n_total: all steps.
    """
    if n >= n_total:
        return np.zeros(len(total))
    if n < 2:
        return np.full(len(total), np.nan)
    variance = np.maximum(squares - total**2 / n, 0.0) / (n - 1)
    return 1.96 * n_total * np.sqrt((1 - n / n_total) * variance / n)


def widen(interval: Interval, half_width: float) -> Interval:
    """An interval with an independent second source of error added (half widths in quadrature)."""
    if interval.value is None or half_width == 0:
        return interval
    if not np.isfinite(half_width):
        return Interval(interval.value, None, None, interval.null)
    low = interval.low if interval.low is not None else interval.value
    high = interval.high if interval.high is not None else interval.value
    return Interval(
        interval.value,
        interval.value - float(np.hypot(interval.value - low, half_width)),
        interval.value + float(np.hypot(high - interval.value, half_width)),
        interval.null,
    )


def random_signs(n_units: int, *, seed: int, times: int = 200) -> np.ndarray:
    """Sign flips for a null of no common direction: +1 or -1 per unit, [times, n_units]."""
    return np.random.default_rng(seed).integers(0, 2, size=(times, n_units)) * 2.0 - 1.0
