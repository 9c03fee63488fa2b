"""Do examples pull together? Agreement over steps, conflict within steps, near-duplicates by direction."""

from __future__ import annotations

from typing import Any

import numpy as np

from intaglio.analyse.data import RunData, read
from intaglio.analyse.stats import number, random_signs, ratio_interval, resamples
from intaglio.findings import ConflictPair, Interval

DUPLICATE_COSINE = 0.9  # gradient directions closer than this: in practice the same text with small edits
_PAIRS_LISTED = 50
_BLOCK_VISITS = 1024  # "nearby": within so many visits of each other, over which the model changes little
_MOST_PAIRS = 2_000_000  # pairs that a permutation null is computed on; beyond, a seeded sample of steps


def agreement(data: RunData, *, seed: int) -> tuple[Interval, Interval]:
    """alpha = GG / (GG + S) and the simple noise scale (1 - alpha) / alpha, in examples.

    GG and S are averaged over steps first, then divided, and GG is never clamped: single
    steps give negative estimates, and clamping them would bias alpha upwards (McCandlish
    1812.06162; m-coherence, Chatterjee 2008.01217, is m * alpha). Steps of one example say
    nothing. Interval: bootstrap over steps, see `_over_steps`. Null: examples that agree by chance only, 0.
    """
    steps = data.steps
    gg, s = steps["agreement_gg"], steps["agreement_s"]
    use = np.isfinite(gg) & np.isfinite(s) & (steps["examples"] != 1)
    if not use.any():
        return Interval(None), Interval(None)
    found = _over_steps(data, gg[use], (gg + s)[use], seed=seed)
    alpha = Interval(found.value, found.low, found.high, 0.0)
    # the noise scale falls as alpha rises; without agreement it is infinite, which is shown as unknown
    return alpha, Interval(_noise(alpha.value), _noise(alpha.high), _noise(alpha.low))


def _noise(alpha: float | None) -> float | None:
    return (1 - alpha) / alpha if alpha is not None and alpha > 0 else None


def _over_steps(data: RunData, top: np.ndarray, bottom: np.ndarray, *, seed: int) -> Interval:
    """sum(top) / sum(bottom) over steps, with a bootstrap that draws no more steps than one pass over the texts has.

    A text met again has nearly its old direction, so later epochs are no new evidence about the data: drawing all
    steps of six epochs held the truth in 60 % of trials, not 95 (tests/test_nulls.py). No interval where one pass
    is under two steps.
    """
    texts = len(np.unique(data.visits["code"]))
    batch = len(data.visits["code"]) / max(len(np.unique(data.visits["step"])), 1)
    drawn = min(len(top), round(texts / batch)) if texts else len(top)
    found = ratio_interval(top, bottom, resamples(len(top), seed=seed, drawn=max(drawn, 1)))
    return found if drawn >= 2 else Interval(found.value)


class Pairs:
    """Pairs of different examples that stood in the same step.

    Attributes:
        a, b: visit numbers (places in `data.visits`).
        dot: inner product of their gradients.
        cosine: the same over both lengths.
        noise: standard error of one cosine: 0 when exact, that of `_sketch_noise` from sketches.
        source: "pairs", "sketches" or "".
    """

    def __init__(self, a: Any, b: Any, dot: Any, cosine: Any, noise: float, source: str) -> None:
        self.a, self.b = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
        self.dot, self.cosine = np.asarray(dot, dtype=float), np.asarray(cosine, dtype=float)
        self.noise, self.source = noise, source


def pairs_in_steps(data: RunData) -> Pairs:
    """All pairs within steps: exact where recorded (level exact), else from sketches, else none."""
    exact = read(data.run, "select step, slot_a, slot_b, dot, cosine from pairs where dot is not null")
    if len(exact["step"]):
        place = {key: i for i, key in enumerate(zip(data.visits["step"], data.visits["slot"]))}
        a = np.array([place.get(key, -1) for key in zip(exact["step"], exact["slot_a"])])
        b = np.array([place.get(key, -1) for key in zip(exact["step"], exact["slot_b"])])
        keep = (a >= 0) & (b >= 0)
        keep[keep] = data.visits["code"][a[keep]] != data.visits["code"][b[keep]]
        return Pairs(a[keep], b[keep], exact["dot"][keep], exact["cosine"][keep], 0.0, "pairs")
    return _sketched_pairs(data)


def sketches(data: RunData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Visit number, sketch [n, k] and projection seed of every visit with a sketch of the usual length."""
    table = data.run.sql("select step, slot, sketch, seed from sketches where sketch is not null order by step, slot")
    table = table.to_arrow_table()
    place = {key: i for i, key in enumerate(zip(data.visits["step"], data.visits["slot"]))}
    keys = list(zip(table.column("step").to_pylist(), table.column("slot").to_pylist()))
    column = table.column("sketch").combine_chunks()
    lengths = np.diff(column.offsets.to_numpy()) if len(column) else np.zeros(0, dtype=int)
    usual = int(np.median(lengths)) if len(lengths) else 0
    keep = np.array([n == usual and usual > 0 and key in place for n, key in zip(lengths, keys)], dtype=bool)
    rows = np.flatnonzero(keep)
    flat = column.values.to_numpy(zero_copy_only=False) if len(column) else np.zeros(0, np.float32)
    starts = column.offsets.to_numpy()[:-1][rows] if len(column) else np.zeros(0, int)
    values = flat[starts[:, None] + np.arange(usual)[None, :]] if len(rows) else np.zeros((0, 1), np.float32)
    seeds = np.nan_to_num(np.array(table.column("seed").to_pylist(), dtype=float))[rows]
    return np.array([place[keys[r]] for r in rows], dtype=int), values.astype(np.float32), seeds


def _sketched_pairs(data: RunData) -> Pairs:
    """Inner products of sketches of the same step, divided by the weights (with their sign) the loss gave."""
    visit, values, seeds = sketches(data)
    if not len(visit):
        return Pairs([], [], [], [], 0.0, "")
    weight = data.visits["loss_weight"][visit]
    values = values / np.where(np.isfinite(weight) & (weight != 0), weight, 1.0)[:, None].astype(np.float32)
    length = np.linalg.norm(values, axis=1)
    step, code = data.visits["step"][visit], data.visits["code"][visit]
    firsts, seconds, dots = [], [], []
    for own in np.split(np.arange(len(visit)), np.flatnonzero(np.diff(step)) + 1):
        i, j = np.triu_indices(len(own), 1)
        use = (code[own[i]] != code[own[j]]) & (seeds[own[i]] == seeds[own[j]])
        firsts.append(own[i[use]])
        seconds.append(own[j[use]])
        dots.append((values[own] @ values[own].T)[i[use], j[use]])
    i, j, dot = np.concatenate(firsts), np.concatenate(seconds), np.concatenate(dots).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = dot / (length[i] * length[j])
    known = np.isfinite(cosine)
    noise = _sketch_noise(data, values.shape[1])
    return Pairs(visit[i[known]], visit[j[known]], dot[known], cosine[known], noise, "sketches")


def _sketch_noise(data: RunData, k: int) -> float:
    """Standard error of a cosine from sketches of k numbers: sqrt(2) times that of their lengths, which was measured.

    A dense projection gives cosines off by 1/sqrt(k) and lengths by 1/sqrt(2k). A factored one is noisier, as positions
    share activations (measured on a small Llama, k = 752: 0.062 where 1/sqrt(k) is 0.036).
    """
    mean2 = read(data.run, "select avg(error * error) as mean2 from sketches where isfinite(error)")["mean2"][0]
    return float(max(k**-0.5, np.sqrt(2 * np.nan_to_num(mean2))))


def conflict(data: RunData, pairs: Pairs, *, seed: int) -> dict[str, Any]:
    """Share of pairs with a negative product, and the strength sum max(0, -dot) / sum |dot|, each with its null.

    Null: random signs. Every example's gradients are multiplied by +1 or -1 at random, so
    dot_ij becomes s_i s_j dot_ij. That is the right null for "no common direction": it keeps
    every length and every |cosine|, also the strong ones of a low effective dimension.
    One sign per example, not per visit: a text keeps its direction from epoch to epoch, so two texts
    that met six times are one piece of evidence, and signs per visit would count it as six.
    Shuffling coordinates would destroy those and make any conflict look large; shuffling visits
    across steps would keep the direction all data share and only ask whether batches are special.
    Interval: bootstrap over steps, see `_over_steps`. Sketched cosines carry an error each
    (`Pairs.noise`), which draws the share towards one half.
    """
    if not len(pairs.dot):
        return {"conflict_share": Interval(None), "conflict_strength": Interval(None), "conflict_p": None,
                "conflict_source": ""}  # fmt: skip
    pairs = _sampled(data, pairs, seed=seed)
    _, step = np.unique(data.visits["step"][pairs.a], return_inverse=True)
    against = np.maximum(0, -pairs.dot)
    sums = [np.bincount(step, w) for w in ((pairs.dot < 0).astype(float), None, against, np.abs(pairs.dot))]
    share, strength = (_over_steps(data, top, of, seed=seed) for top, of in (sums[:2], sums[2:]))
    null_share, null_strength = _sign_null(data.visits["code"], pairs, seed=seed)
    extreme = np.abs(null_share - 0.5) >= abs(share.value - 0.5) - 1e-12
    return {
        "conflict_share": Interval(share.value, share.low, share.high, number(null_share.mean())),
        "conflict_strength": Interval(strength.value, strength.low, strength.high, number(null_strength.mean())),
        "conflict_p": number((1 + extreme.sum()) / (1 + len(extreme))),
        "conflict_source": pairs.source,
    }


def _sampled(data: RunData, pairs: Pairs, *, seed: int) -> Pairs:
    """All pairs, or those of a seeded sample of steps where there are too many to permute."""
    if len(pairs.dot) <= _MOST_PAIRS:
        return pairs
    step = data.visits["step"][pairs.a]
    every = np.random.default_rng(seed).permutation(np.unique(step))
    keep = np.isin(step, every[: max(2, int(len(every) * _MOST_PAIRS / len(step)))])
    return Pairs(pairs.a[keep], pairs.b[keep], pairs.dot[keep], pairs.cosine[keep], pairs.noise, pairs.source)


def _sign_null(code: np.ndarray, pairs: Pairs, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Share and strength of conflict under random signs of the examples, one entry per permutation.

    Args:
        code: the example of each visit.
    """
    units, place = np.unique(code[np.concatenate([pairs.a, pairs.b])], return_inverse=True)
    a, b = place[: len(pairs.a)], place[len(pairs.a) :]
    total = max(np.abs(pairs.dot).sum(), np.finfo(float).tiny)
    times = 200 if len(a) < 200_000 else 40
    shares, strengths = [], []
    for signs in random_signs(len(units), seed=seed, times=times):
        dot = signs[a] * signs[b] * pairs.dot
        shares.append((dot < 0).mean())
        strengths.append(np.maximum(0, -dot).sum() / total)
    return np.array(shares), np.array(strengths)


def conflict_pairs(data: RunData, pairs: Pairs) -> list[ConflictPair]:
    """Pairs of examples that pull apart most, by mean cosine over the steps they shared.

    From sketches only pairs beyond what the most extreme of so many noisy cosines would show:
    cosine < -noise sqrt(2 ln(M / 0.1)), M pairs, passed by any of M unrelated ones in one run of twenty at most.
    Meeting often does not lower the bar: the projection is one for the whole run, and its error with it.
    """
    a, b, cosine, times = _by_example(data, pairs)
    bar = -np.sqrt(2 * np.log(max(len(a), 1) / 0.1)) * pairs.noise
    keep = np.flatnonzero((cosine < bar) & (cosine < 0))
    return _listed(data, a, b, cosine, times, keep[np.argsort(cosine[keep], kind="stable")])


def _by_example(data: RunData, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unordered pairs of examples: both codes, mean cosine, how often they met."""
    first, second = data.visits["code"][pairs.a], data.visits["code"][pairs.b]
    key = np.minimum(first, second) * max(data.n_examples, 1) + np.maximum(first, second)
    key, place, times = np.unique(key, return_inverse=True, return_counts=True)
    mean = np.bincount(place, pairs.cosine, minlength=len(key)) / np.maximum(times, 1)
    return key // max(data.n_examples, 1), key % max(data.n_examples, 1), mean, times


def near_duplicates(data: RunData, pairs: Pairs) -> list[ConflictPair]:
    """Different texts whose gradients point the same way: cosine above `DUPLICATE_COSINE`.

    Exact: on average over the steps that both stood in. From sketches: at any two nearby visits (the same
    projection only), and the mean is over those: as texts are learnt, gradients of twins, too, go their own ways.
    """
    if pairs.source != "pairs":
        pairs = _nearby_pairs(data)
    a, b, cosine, times = _by_example(data, pairs)
    keep = np.flatnonzero(cosine > DUPLICATE_COSINE)
    return _listed(data, a, b, cosine, times, keep[np.argsort(-cosine[keep], kind="stable")])


def _nearby_pairs(data: RunData) -> Pairs:
    """Pairs of visits in overlapping blocks whose sketches nearly coincide."""
    visit, values, seeds = sketches(data)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = np.nan_to_num(values / np.linalg.norm(values, axis=1, keepdims=True))
    code = data.visits["code"][visit]
    found = [np.zeros((3, 0))]
    for start in range(0, len(visit), _BLOCK_VISITS // 2):
        own = slice(start, start + _BLOCK_VISITS)
        cosine = np.triu(unit[own] @ unit[own].T, 1)
        i, j = np.nonzero(cosine > DUPLICATE_COSINE)
        use = (code[own][i] != code[own][j]) & (seeds[own][i] == seeds[own][j])
        i, j = i[use], j[use]
        found.append(np.stack([i + start, j + start, cosine[i, j]]))
    i, j, cosine = np.unique(np.concatenate(found, axis=1), axis=1)  # blocks overlap by half
    a, b = visit[i.astype(int)], visit[j.astype(int)]
    return Pairs(a, b, cosine, cosine, 0.0, "sketches")


def _listed(data: RunData, a: np.ndarray, b: np.ndarray, cosine: np.ndarray, times: np.ndarray,
            order: np.ndarray) -> list[ConflictPair]:  # fmt: skip
    ids = data.examples["example"]
    return [ConflictPair(ids[a[i]], ids[b[i]], float(cosine[i]), int(times[i])) for i in order[:_PAIRS_LISTED]]
