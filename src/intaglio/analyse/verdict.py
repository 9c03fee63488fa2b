"""Did the model know it, understand it, imitate it or not learn it? Said only as far as the losses carry.

The evidence is three losses: of the example itself, of the target probe (the same in
other words), of the anchor (what must not be forgotten). Movement is no evidence for or
against understanding (2506.14681 against; 1802.07044 for), so it is shown beside, not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intaglio.analyse.data import RunData, read
from intaglio.analyse.stats import MAD_TO_SD, mad, number

KNOWN_NATS = float(np.log(2))  # each token given one half or more (geometric mean): likelier than not
LEAST_FALL = 0.1  # a change under a tenth of the first loss is not worth a name, however certain
CHANCE_SHARE = 0.5  # an anchor that costs more of a blind guess's nats than this is no sign of knowing anything
UNDERSTOOD_SHARE = 0.5  # at least half of the fall must hold in other words
NOISE_SDS = 2.0  # about a 95 % bound
_SIGNS_Z, _LEAST_VISITS = 1.96, 5  # fewer visits cannot be told from random signs


@dataclass(frozen=True)
class Losses:
    """First and last loss in nats per token, NaN where unknown; `states`: how many were seen."""

    first: float
    last: float
    states: int = 2

    @property
    def fall(self) -> float:
        return self.first - self.last

    @property
    def fall_share(self) -> float:
        return self.fall / self.first if self.first > 0 else np.nan


@dataclass(frozen=True)
class Items:
    """First and last losses of a probe's texts (arrays), with what links them to training rows."""

    fact: np.ndarray
    group: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def losses(self, which: np.ndarray) -> Losses | None:
        """Mean losses of some of the texts; None where there are none."""
        if not which.any():
            return None
        return Losses(float(self.first[which].mean()), float(self.last[which].mean()))


@dataclass(frozen=True)
class Witnesses:
    """What an example's own loss is held against. Losses are None where there is no such probe."""

    items: dict[str, Items]  # per target probe and every other; texts seen at two states or more
    target: Losses | None  # all target probes together
    held_out: Losses | None  # target texts of facts that no training row teaches
    anchor: Losses | None
    noise_nats: float  # how far a loss moves without being taught, two standard deviations
    target_items: Items | None
    facts: frozenset[str]
    chance_nats: float = np.nan  # a blind guess among all tokens; NaN where the run does not say how many there are

    @property
    def ordinary_is_known(self) -> bool:
        """Whether the model foresees ordinary text at all, so that being like it says something."""
        return self.anchor is not None and not self.anchor.first > CHANCE_SHARE * self.chance_nats

    @property
    def joined(self) -> bool:
        """Whether facts join target texts to training rows; then a row that is not joined has no evidence."""
        return self.target_items is not None and any(f in self.facts for f in self.target_items.fact)


@dataclass(frozen=True)
class Judgement:
    verdict: str
    why: str
    evidence: dict[str, float]


def role_of(data: RunData, probe: str) -> str:
    """The probe's role by the manifest; a probe named after a role has that role."""
    told = (data.manifest.get("probes") or {}).get(probe) or {}
    role = told.get("role") if isinstance(told, dict) else None
    return role or (probe if probe in ("target", "anchor") else "")


def witnesses(data: RunData) -> Witnesses:
    """Read the probes' losses at the first and the last measured state."""
    items = _items(data)
    whole = _whole_probes(data)
    roles = {probe: role_of(data, probe) for probe in {*items, *whole}}
    facts = frozenset(f for f in data.examples["fact"] if f)
    targets = [items[p] for p in sorted(items) if roles[p] == "target"]
    joined = Items(*(np.concatenate([getattr(t, k) for t in targets]) for k in ("fact", "group", "first", "last"))) \
        if targets else None  # fmt: skip
    held_out = None
    if joined is not None and any(f in facts for f in joined.fact):
        held_out = joined.losses(np.array([bool(f) and f not in facts for f in joined.fact]))
    anchors = [items[p] for p in items if roles[p] == "anchor"]
    return Witnesses(
        items, _mean_losses([whole[p] for p in whole if roles[p] == "target"]), held_out,
        _mean_losses([whole[p] for p in whole if roles[p] == "anchor"]),
        _noise(data, anchors), joined, facts, float(np.log(data.manifest.get("vocab_size") or np.nan)),
    )  # fmt: skip


def _items(data: RunData) -> dict[str, Items]:
    found = read(data.run, """
        select probe, item, any_value(fact) as fact, any_value("group") as grp, arg_min(loss_nats, step) as first,
               arg_max(loss_nats, step) as last
        from probe_items where loss_nats is not null group by probe, item
        having count(distinct step) > 1 order by probe, item""")
    return {
        str(p): Items(*(found[k][found["probe"] == p] for k in ("fact", "grp", "first", "last")))
        for p in sorted(set(found["probe"]))
    }


def _whole_probes(data: RunData) -> dict[str, Losses]:
    found = read(data.run, """
        select probe, arg_min(loss_nats, step) as first, arg_max(loss_nats, step) as last,
               count(distinct step) as states from probes where loss_nats is not null group by probe order by probe""")
    rows = zip(found["probe"], found["first"], found["last"], found["states"])
    return {p: Losses(first, last, int(n)) for p, first, last, n in rows if n > 1}


def _mean_losses(several: list[Losses]) -> Losses | None:
    if not several:
        return None
    return Losses(float(np.mean([x.first for x in several])), float(np.mean([x.last for x in several])))


def _noise(data: RunData, anchors: list[Items]) -> float:
    """Two standard deviations of how a loss moves without being taught, in nats per token.

    From the falls of the anchor's texts, which nobody taught (spread about their median, so
    that forgetting all of them alike is no noise). Without five of them, from the rises between
    an example's own consecutive visits: what goes up was not learning.
    """
    falls = np.concatenate([a.first - a.last for a in anchors]) if anchors else np.zeros(0)
    if len(falls) >= 5:
        return NOISE_SDS * MAD_TO_SD * mad(falls)
    order = np.lexsort((data.visits["step"], data.visits["code"]))
    change = np.diff(data.visits["loss_nats"][order])
    rises = change[(np.diff(data.visits["code"][order]) == 0) & (change > 0)]
    return NOISE_SDS * MAD_TO_SD * float(np.median(rises)) if len(rises) >= 5 else 0.0


def linked_losses(seen: Witnesses, facts: set[str], groups: set[str]) -> Losses | None:
    """Target texts of the same facts, else of the same group; None where nothing is linked."""
    items = seen.target_items
    if items is None:
        return None
    by_fact = items.losses(np.array([f in facts for f in items.fact], dtype=bool))
    return by_fact or items.losses(np.array([g in groups for g in items.group], dtype=bool))


def judge(own: Losses, linked: Losses | None, seen: Witnesses, anchor_credit: float = np.nan) -> Judgement:
    """The verdict on one example or group, the key of its sentence and the sentence's numbers.

    Args:
        own: its own first and last loss.
        linked: losses of the target texts linked to it; when None, the whole target probe stands in,
            unless facts link its texts to other rows.
        seen: the probes.
        anchor_credit: sum of its credits on the anchor, in nats; NaN where not measured.
    """
    noise = max(seen.noise_nats, LEAST_FALL * own.first) if np.isfinite(own.first) else seen.noise_nats
    evidence = {"first_loss": own.first, "last_loss": own.last, "fall_nats": own.fall, "own_fall": own.fall_share,
                "noise_nats": noise}  # fmt: skip
    if seen.anchor:
        evidence |= {"anchor_first": seen.anchor.first, "anchor_fall": seen.anchor.fall_share}
    target = linked or (None if seen.joined else seen.target)
    if target:
        evidence |= {"target_fall": target.fall_share, "target_rise": -target.fall_share,
                     "target_fall_nats": target.fall, "target_noise_nats": _target_noise(target, seen),
                     "linked": float(linked is not None)}  # fmt: skip
    if linked and seen.held_out:
        evidence["held_out_fall"] = seen.held_out.fall_share
    if np.isfinite(anchor_credit):
        evidence["anchor_cost"] = -anchor_credit
    verdict, why = _own(own, noise, seen) or _beyond_wording(own, target, linked, seen, anchor_credit)
    return Judgement(verdict, f"verdict.{why}", {k: float(v) for k, v in evidence.items() if np.isfinite(v)})


def _own(own: Losses, noise: float, seen: Witnesses) -> tuple[str, str] | None:
    """What the example's own loss settles; None where it was learnt and other words must tell."""
    if not np.isfinite(own.first):
        return "no evidence", "no_evidence.one_loss"
    if own.states >= 2 and own.fall < -noise:
        return "not learnt", "not_learnt.rose"
    if own.first <= KNOWN_NATS:
        return "known", "known.likely"
    if own.states < 2:
        return "no evidence", "no_evidence.one_loss"
    if own.fall > noise:
        return None
    if seen.ordinary_is_known and own.first <= seen.anchor.first:
        return "known", "known.as_ordinary"
    return "not learnt", "not_learnt.stayed"


def _target_noise(target: Losses, seen: Witnesses) -> float:
    """The least fall in other words that is worth a name, in nats per token."""
    return max(seen.noise_nats, LEAST_FALL * target.first)


def _beyond_wording(own: Losses, target: Losses | None, linked: Losses | None, seen: Witnesses,
                    anchor_credit: float) -> tuple[str, str]:  # fmt: skip
    if target is None or not np.isfinite(target.fall):
        return "no evidence", "no_evidence.no_target"
    noise = _target_noise(target, seen)
    if target.fall < -noise:
        return "imitated", "imitated.target_rose"
    if target.fall <= noise:
        return "imitated", "imitated.target_stayed"
    untaught = max(seen.held_out.fall_share, 0.0) if linked and seen.held_out else 0.0
    if target.fall_share < UNDERSTOOD_SHARE * own.fall_share:
        return "imitated", "imitated.mostly_wording"
    if target.fall_share - untaught < UNDERSTOOD_SHARE * own.fall_share:
        return "imitated", "imitated.held_out_fell_too"
    if seen.anchor and seen.anchor.fall_share < -LEAST_FALL and anchor_credit < 0:
        return "understood", "understood.at_a_cost"
    return "understood", "understood.linked" if linked else "understood.whole_target"


def imitation_gap(data: RunData, seen: Witnesses, first: np.ndarray, last: np.ndarray,
                  states: np.ndarray) -> float | None:  # fmt: skip
    """Fall on the trained wording less fall in other words, each as a share of its first loss.

    Less the same for held-out facts where the probe has some: their fall in other words is
    not learning of a fact, so it does not count as such. 0 where learning is fully general.

    Args:
        first, last: losses per example, nats per token.
        states: at how many states each was seen; a fall of one seen once is unknown.
    """
    if seen.target is None:
        return None
    taught = {f for f in (seen.target_items.fact if seen.target_items is not None else ()) if f in seen.facts}
    use = np.isfinite(first) & np.isfinite(last) & (states >= 2)
    if taught:
        use &= np.array([f in taught for f in data.examples["fact"]], dtype=bool)
    weight = np.nan_to_num(data.examples["targets"]) * use
    if not weight.sum() > 0:
        return None
    own = Losses(*(float(np.nansum(x * weight) / weight.sum()) for x in (first, last)))
    target = (linked_losses(seen, taught, set()) if taught else None) or seen.target
    untaught = seen.held_out.fall_share if taught and seen.held_out else 0.0
    return number(own.fall_share - (target.fall_share - untaught))


def starved(data: RunData, verdicts: list[str]) -> np.ndarray:
    """Per example, 1 where it left no trace, 0 where it did, NaN under five measured visits.

    No trace: its loss did not fall beyond noise (verdict `not learnt`), and its shift went with
    and against the steps about equally often, as random signs do: |with - against| <= 1.96
    sqrt(visits) (cf. gradient starvation, 2011.09468).
    """
    shift = data.visits["shift"]
    majority = np.abs(data.per_example(np.sign(shift)))
    count = np.nan_to_num(data.per_example(np.where(np.isfinite(shift), 1.0, np.nan)))
    silent = (majority <= _SIGNS_Z * np.sqrt(count)) & (np.array(verdicts) == "not learnt")
    return np.where(count >= _LEAST_VISITS, silent.astype(float), np.nan)
