"""What an analysis of a run found: plain values, the hinge between `analyse` and `report`.

Lengths named `_u` are in u: one millionth of the initial weights' length. Everything
that could not be measured is None, never 0. Pure: no torch, no files, no html.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VERDICTS = ("known", "understood", "imitated", "not learnt", "no evidence")

# Why a verdict was given: the key that stands in `why`, and the English sentence; `{...}` are numbers in `evidence`.
# Shares (`own_fall`, `target_fall`, `anchor_fall`, `held_out_fall`) are falls of loss as a share of the first loss.
WHY_KEYS: dict[str, str] = {
    "verdict.known.likely":
        "Before it was trained on, the model already gave its tokens {first_loss:.2f} nats each: more likely than not.",
    "verdict.known.as_ordinary":
        "When first met it surprised the model no more ({first_loss:.2f} nats) than ordinary text does "
        "({anchor_first:.2f}), and training changed that little ({fall_nats:+.2f} nats).",
    "verdict.understood.linked":
        "Its own loss fell by {own_fall:.0%}, and the loss of the same fact in other words fell by {target_fall:.0%}.",
    "verdict.understood.whole_target":
        "Its own loss fell by {own_fall:.0%}, and that of the whole target probe by {target_fall:.0%}; "
        "no probe text is linked to this one.",
    "verdict.understood.at_a_cost":
        "Its own loss fell by {own_fall:.0%} and that of the target by {target_fall:.0%}, but its part of the "
        "steps is predicted to have raised the anchor's loss by {anchor_cost:.4f} nats.",
    "verdict.imitated.target_stayed":
        "Its own loss fell by {own_fall:.0%}, but in other words nothing beyond noise was learnt "
        "({target_fall_nats:+.2f} nats, noise {target_noise_nats:.2f}).",
    "verdict.imitated.target_rose":
        "Its own loss fell by {own_fall:.0%}, while the loss of the same in other words rose by {target_rise:.0%}.",
    "verdict.imitated.mostly_wording":
        "Its own loss fell by {own_fall:.0%}, in other words only by {target_fall:.0%}: "
        "less than half of it is beyond the wording.",
    "verdict.imitated.held_out_fell_too":
        "Its own loss fell by {own_fall:.0%} and in other words by {target_fall:.0%}, but texts of facts that were "
        "never taught fell by {held_out_fall:.0%} as well.",
    "verdict.not_learnt.stayed":
        "Its loss went from {first_loss:.2f} to {last_loss:.2f} nats: within the noise of {noise_nats:.2f}.",
    "verdict.not_learnt.rose":
        "Its loss rose from {first_loss:.2f} to {last_loss:.2f} nats, beyond the noise of {noise_nats:.2f}.",
    "verdict.no_evidence.one_loss":
        "Its loss was seen at fewer than two states of the model, so no change can be told.",
    "verdict.no_evidence.no_target":
        "Its own loss fell by {own_fall:.0%}, but no text of a target probe is there to tell understanding from imitation.",
}  # fmt: skip


MUCH, MOSTLY = 0.1, 0.5  # shares that are much, and most, to leave unmeasured: of the steps, of their fresh part


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval, and what pure noise would give where that is known."""

    value: float | None
    low: float | None = None
    high: float | None = None
    null: float | None = None


@dataclass(frozen=True, slots=True)
class ExampleFinding:
    """All visits of one distinct training text."""

    example: str
    rows: tuple[int, ...]
    group: str | None
    fact: str | None
    preview: str
    tokens: int
    targets: int
    visits: int
    shift_abs_u: float | None  # sum over visits of |shift|
    shift_net_u: float | None  # sum over visits of shift, signed
    push_mean: float | None
    first_loss_nats: float | None  # per target token
    last_loss_nats: float | None
    learnt_nats: float | None  # (first - last) * targets
    csl_nats: float | None  # sum of losses over visits: the loss-only baseline
    level: float | None  # volatility E: mean over visits of log push^2
    level_residual: float | None  # E with log(targets) regressed out
    dispersion: float | None  # volatility D: None under five visits
    alignment_mean: float | None
    against_share: float | None  # share of visits with negative shift
    credits_nats: dict[str, float] = field(default_factory=dict)  # probe -> sum over measured steps
    verdict: str = "no evidence"
    why: str = ""  # key of the catalogue sentence that says why, e.g. "verdict.imitated.target_rose"
    evidence: dict[str, float] = field(default_factory=dict)  # the numbers that sentence shows
    observations: int = 0  # losses known: visits and scans of distinct states
    confident_conflict_share: float | None = None  # share of trained tokens with low probability and low entropy
    # mean over visits of |shift| / mean |shift| of its step: 1 is like the others; free of momentum and schedule
    relative_shift: float | None = None
    starved: bool | None = None  # left no trace beyond the null; None under five measured visits
    # half width of the 95 % interval of both sums of shift, from the steps whose shift was not measured; 0 if all were
    shift_half_u: float | None = None
    # scans only: predicted fall of each probe's mean loss per unit of parameter length moved along the example's own
    # gradient, and the same without lengths, -1 to 1
    credit_rates: dict[str, float] = field(default_factory=dict)
    credit_cosines: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupFinding:
    """All examples of one group; `group` "" is the whole data set."""

    group: str
    examples: int
    visits: int
    target_tokens: int  # over all visits
    shift_abs_u: Interval
    shift_net_u: Interval
    shift_abs_u_per_1000_tokens: Interval  # at equal tokens: the number that compares groups
    learnt_nats: Interval
    nats_per_ku: float | None  # learnt nats per 1000 u of |shift|
    level: Interval
    dispersion: Interval
    alignment: Interval
    first_loss_nats: float | None
    last_loss_nats: float | None
    credits_nats: dict[str, Interval] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)  # how many examples got each verdict
    verdict: str = "no evidence"
    probe_fall: dict[str, float] = field(default_factory=dict)  # linked probe -> fall of loss, share of its first
    why: str = ""  # key of WHY_KEYS, as for an example
    relative_shift: Interval = Interval(None)  # mean over the examples of theirs
    evidence: dict[str, float] = field(default_factory=dict)
    # scans only
    surprise: Interval = Interval(None)  # nats per target token
    push: Interval = Interval(None)  # mean over the examples
    credit_rates: dict[str, Interval] = field(default_factory=dict)  # means over the examples, as theirs
    credit_cosines: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeFinding:
    probe: str
    role: str  # "target", "anchor" or ""
    first_loss_nats: float | None
    last_loss_nats: float | None
    kl_last_nats: float | None
    max_abs_residual_share: float | None  # max over measured steps of |residual| / |measured change|
    steps: list[int] = field(default_factory=list)
    loss_nats: list[float | None] = field(default_factory=list)
    kl_nats: list[float | None] = field(default_factory=list)
    drift_layers: list[int] = field(default_factory=list)
    drift_relative_l2: list[float | None] = field(default_factory=list)  # at the last measured step, per layer
    drift_cosine: list[float | None] = field(default_factory=list)
    drift_cka: list[float | None] = field(default_factory=list)
    measurements: int = 0
    seconds_each: float | None = None  # mean over its measurements
    run_share: float | None = None  # of the run's time, all of its measurements together


@dataclass(frozen=True, slots=True)
class SpikeFinding:
    step: int
    grad_z: float | None
    update_z: float | None
    verdict: str  # data, state, both, unknown
    examples: tuple[str, ...] = ()  # those with the largest |shift| in that step
    replay_step: int | None = None  # the earlier state, in steps taken, that the verdict comes from
    replay_z: float | None = None  # of the batch among ordinary ones at that state


@dataclass(frozen=True, slots=True)
class ConflictPair:
    example_a: str
    example_b: str
    cosine: float
    times: int  # steps in which both stood; of near duplicates, pairs of their visits, also in different steps


@dataclass(frozen=True, slots=True)
class TokenText:
    """One example at one visit, token by token, for colouring; lists run over positions."""

    example: str
    step: int
    pieces: list[str]  # decoded so that split letters are whole: a continuation byte gives ""
    shift_u: list[float | None]
    surprise_nats: list[float | None]  # of this very token (already moved to the token it belongs to)
    entropy_nats: list[float | None]
    trained: list[bool]
    confident_conflict: list[bool]  # low probability and low entropy


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a page about one run's shift study needs."""

    name: str
    complete: bool
    manifest: dict[str, Any]
    # books
    steps_total: int
    steps_measured: int
    closure_max: float | None
    closure_median: float | None
    gradient_match_max: float | None
    books_close: bool | None
    tolerance: float
    coverage: float | None  # share of trainable parameters measured
    unmeasured_names: tuple[str, ...]
    data_share: float | None  # sum data_shift / sum update_l2 over settled steps
    carry_share: float | None
    decay_share: float | None
    # movement
    unit_length: float | None  # parameter length of 1 u
    path_u: float | None
    net_u: float | None
    tortuosity: float | None
    tortuosity_null: float | None
    agreement: Interval  # alpha
    noise_scale: Interval  # simple gradient noise scale (1 - alpha) / alpha, in examples
    conflict_share: Interval  # share of pairs with negative inner product; null by permutation
    imitation_gap: float | None
    series: dict[str, list[int | float | None]]  # per step, column name -> values; "step" is the axis
    spikes: list[SpikeFinding]
    # data
    examples: list[ExampleFinding]  # by |shift|, largest first
    groups: list[GroupFinding]  # the whole first
    pairs: list[ConflictPair]  # most negative first
    near_duplicates: list[ConflictPair]  # cosine near 1, different texts
    starved_examples: Interval  # share of examples left without a trace beyond the null
    starved_parts: tuple[str, ...]
    probes: list[ProbeFinding]
    # where
    layer_series: dict[str, list[float | None]]  # whole part (embed, L3.attn, L3.mlp, ...) -> update_l2 in u per step
    head_totals: dict[str, float]  # L3.attn.H5 -> sum over steps of update_l2, in u
    relative_update: dict[str, float]  # address -> sum update_l2 / weight_l2
    visit_part_totals: dict[str, dict[str, float]]  # group -> address of layer part -> sum |shift| in u
    # tokens
    texts: dict[str, TokenText]  # example -> its most telling visit, only for examples the page shows
    # keys: token, text, count, shift_abs_u (mean), surprise_nats (mean), level, dispersion (both of log write^2)
    token_volatility: list[dict[str, Any]]
    # keys: position_from, position_to (inclusive), count, shift_abs_u, surprise_nats, level, dispersion
    position_volatility: list[dict[str, Any]]
    correlations: dict[str, float]  # e.g. "level~csl": Spearman of a gradient measure with its loss baseline
    momentum: float | None = None  # b1 of the run's optimizer: Adam's first beta, SGD's momentum; None where unknown
    unmeasured_share: float | None = None  # sum unmeasured_shift / sum update_l2 over all steps measured in full
    fresh_unmeasured: float | None = None  # sum unmeasured_shift / sum (data_shift + unmeasured_shift): what is not carry
    nonfinite_step: int | None = None  # first step whose loss was no finite number; steps_total counts up to the last finite
    # --group-momentum: group -> its earlier gradients' share of the steps' length; "(earlier)": momentum that stood before
    # the run, "(decay)": weight decay inside the momentum, "(changed)": gradients changed before a step
    group_carry: dict[str, float] = field(default_factory=dict)
    group_carry_settled: bool = True  # false: no step had settled, the shares are of all measured steps
    # how much of it was measured
    shift_scale: float = 1.0  # factor from the steps whose shift was measured to all steps; sums above include it
    steps_with_shift: int = 0
    unsettled_shift_share: float | None = None  # how much of the sum of |shift| lies in the first ten steps
    # conflict, further
    conflict_strength: Interval = Interval(None)  # sum max(0, -dot) / sum |dot|; null by random signs
    conflict_p: float | None = None  # two-sided: how often random signs per example are as far from one half
    conflict_source: str = ""  # pairs (exact), sketches (estimated), or "" where neither was recorded
    # credits: probe -> example ids, strongest first
    taught: dict[str, tuple[str, ...]] = field(default_factory=dict)  # largest positive credit
    forgot: dict[str, tuple[str, ...]] = field(default_factory=dict)  # most negative credit
    confident_conflict: Interval = Interval(None)  # share of trained tokens, over all measured visits
    # heads over time: at most 50 equal stretches of steps; address -> mean update_l2 in u per step
    head_series: dict[str, list[float | None]] = field(default_factory=dict)
    head_series_steps: list[int] = field(default_factory=list)  # first step of each stretch
    # half widths of the 95 % intervals of sums that were scaled up, from the steps left out; 0 where none was
    path_half_u: float | None = None
    head_half_u: dict[str, float] = field(default_factory=dict)  # as head_totals
    relative_half: dict[str, float] = field(default_factory=dict)  # as relative_update
    visit_part_half_u: dict[str, dict[str, float]] = field(default_factory=dict)  # as visit_part_totals

    @property
    def scanned(self) -> bool:
        """Whether this is a scan: every example scored at one state, and nothing trained."""
        return self.manifest.get("kind") == "scan"

    @property
    def changed(self) -> dict[str, int] | None:
        """Where gradients were changed coordinate by coordinate before the step: first `step`, `tensors`, `of` how many."""
        return self.manifest.get("gradients_changed")

    @property
    def mostly_unmeasured(self) -> bool:
        """Whether most of what is neither momentum nor decay is charged to nobody, though the books may close."""
        return self.fresh_unmeasured is not None and self.fresh_unmeasured > MOSTLY
