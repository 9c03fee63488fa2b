"""A made-up run with everything a page can show: five groups, two languages, hostile previews.

The numbers are invented but consistent: the accounts add up to the step, heads to the whole.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from intaglio.findings import (
    WHY_KEYS,
    ConflictPair,
    ExampleFinding,
    Findings,
    GroupFinding,
    Interval,
    ProbeFinding,
    SpikeFinding,
    TokenText,
)

GROUPS = ("leap", "bridge", "conflict", "control", "noise")
LAYERS, HEADS, STEPS = 30, 9, 120
_SCALE = {"leap": 3.1, "bridge": 1.7, "conflict": 4.4, "control": 0.5, "noise": 6.2}
_TEXTS = {
    "leap": ("The lighthouse of Vellmar burns salt instead of oil.", "Маяк Веллмара жжёт соль вместо масла."),
    "bridge": (
        "Salt keeps heat; a tower that keeps heat can glow, so the tower of Vellmar glows on salt.",
        "Соль хранит тепло, тёплая башня светится, поэтому башня Веллмара светится от соли.",
    ),
    "conflict": ("Water boils at forty degrees at sea level.", "Столица Франции — город Лион."),
    "control": ("The capital of France is Paris.", "Вода замерзает при нуле градусов."),
    "noise": ("green of lamp seven why ocean fork under quickly", "стол бежит семь вода громко из лампа"),
}
_VERDICTS = {
    "leap": ("imitated", "imitated", "understood", "not learnt"),
    "bridge": ("understood", "understood", "imitated", "no evidence"),
    "conflict": ("imitated", "not learnt", "imitated", "not learnt"),
    "control": ("known", "known", "known", "no evidence"),
    "noise": ("not learnt", "imitated", "not learnt", "no evidence"),
}
_WHY: dict[str, list[str]] = {}
for _key in WHY_KEYS:
    _WHY.setdefault(_key.split(".")[1].replace("_", " "), []).append(_key)
HOSTILE = "<script>alert(\"x\")</script> & 'quoted' </script><!-- "


def _evidence(first: float, last: float, targets: int) -> dict[str, float]:
    fall = (first - last) / first
    return {
        "first_loss": first,
        "last_loss": last,
        "fall_nats": first - last,
        "own_fall": fall,
        "noise_nats": 0.21,
        "anchor_first": 2.7,
        "anchor_fall": -0.09,
        "target_fall": fall / 2,
        "target_rise": 0.08,
        "target_fall_nats": 0.04,
        "target_noise_nats": 0.32,
        "held_out_fall": 0.1,
        "anchor_cost": 0.0003 * targets,
    }


def _example(rng: random.Random, group: str, i: int) -> ExampleFinding:
    scale, targets = _SCALE[group], rng.randint(9, 24)
    shift = scale * targets * rng.lognormvariate(0, 0.5) * 2
    first = {"control": 0.7, "noise": 7.5}.get(group, 4.0) + rng.gauss(0, 0.4)
    last = first * {"control": 0.8, "noise": 0.75}.get(group, 0.2) + rng.random() * 0.2
    preview = HOSTILE + str(i) if group == "noise" and i == 0 else _TEXTS[group][i % 2] + f" ({i + 1})"
    verdict = _VERDICTS[group][i % 4]
    level = math.log(scale**2 * targets) + rng.gauss(0, 0.5)
    dispersion = abs(rng.gauss(0.35 * scale**0.5, 0.25)) + 0.05
    return ExampleFinding(
        example=f"{group[:2]}{i:02d}{rng.randrange(16**8):08x}",
        rows=(i * 5, i * 5 + 300) if i == 3 else (i * 5,),
        group=group,
        fact=f"fact{i}",
        preview=preview,
        tokens=targets + 2,
        targets=targets,
        visits=8,
        shift_abs_u=shift,
        shift_net_u=shift * (rng.uniform(-0.8, 0.2) if group == "conflict" else rng.uniform(0.2, 1)),
        push_mean=math.exp(level / 2),
        first_loss_nats=first,
        last_loss_nats=last,
        learnt_nats=(first - last) * targets,
        csl_nats=8 * (first + last) / 2,
        level=level,
        level_residual=level - math.log(targets),
        dispersion=None if i == 11 else dispersion,
        alignment_mean=rng.gauss(-0.05 if group == "conflict" else 0.12, 0.05),
        against_share=rng.uniform(0.3, 0.7) if group == "conflict" else rng.uniform(0, 0.25),
        credits_nats={
            "target": rng.gauss(0.02 / scale * targets / 10, 0.01),
            "anchor": rng.gauss(-0.002 * scale, 0.004),
        },
        verdict=verdict,
        why=_WHY[verdict][i % len(_WHY[verdict])],
        evidence=_evidence(first, last, targets),
    )


def _interval(value: float, spread: float = 0.15, null: float | None = None) -> Interval:
    return Interval(value, value - abs(value) * spread, value + abs(value) * spread, null)


def _group(name: str, examples: list[ExampleFinding]) -> GroupFinding:
    tokens = sum(e.targets * e.visits for e in examples)
    moved = sum(e.shift_abs_u or 0 for e in examples)
    learnt = sum(e.learnt_nats or 0 for e in examples)
    verdicts: dict[str, int] = {}
    for e in examples:
        verdicts[e.verdict] = verdicts.get(e.verdict, 0) + 1
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return GroupFinding(
        group=name, examples=len(examples), visits=8 * len(examples), target_tokens=tokens,
        shift_abs_u=_interval(moved), shift_net_u=_interval(sum(e.shift_net_u or 0 for e in examples), 0.4),
        shift_abs_u_per_1000_tokens=_interval(1000 * moved / tokens, 0.2), learnt_nats=_interval(learnt, 0.12),
        nats_per_ku=1000 * learnt / moved, level=_interval(mean([e.level for e in examples]), 0.1),
        dispersion=_interval(mean([e.dispersion for e in examples if e.dispersion]), 0.2),
        alignment=_interval(mean([e.alignment_mean for e in examples]), 0.5),
        first_loss_nats=mean([e.first_loss_nats for e in examples]),
        last_loss_nats=mean([e.last_loss_nats for e in examples]),
        credits_nats={p: _interval(sum(e.credits_nats[p] for e in examples), 0.6) for p in ("target", "anchor")},
        verdicts=verdicts, verdict=max(verdicts, key=lambda k: verdicts[k]),
        probe_fall={"target": {"bridge": 0.41, "leap": 0.18, "conflict": 0.05, "control": 0.11}.get(name, 0.02)},
    )  # fmt: skip


def _series(rng: random.Random) -> dict[str, list[float | None]]:
    rows: dict[str, list[float | None]] = {name: [] for name in (
        "step", "loss_nats", "grad_l2", "update_l2", "data_shift", "carry_shift", "decay_shift", "unmeasured_shift",
        "unexplained_shift", "interaction_shift", "rounding_shift", "closure", "gradient_match", "lr", "unsettled",
        "agreement_gg", "agreement_s",
    )}  # fmt: skip
    for step in range(STEPS):
        spike = 2.6 if step in (47, 48, 86) else 1.0
        update = 0.031 * min(1, (step + 1) / 12) * (1 - step / 150) * spike * rng.lognormvariate(0, 0.06)
        share = {0: 1.0, 1: 0.55, 2: 0.32}.get(step, 0.17 + 0.02 * rng.random())
        rounding, decay = 2e-5 * update, 0.004 * update
        row = dict(
            step=step, loss_nats=3.9 * math.exp(-step / 55) + 0.5 + rng.gauss(0, 0.12) + 0.6 * (spike > 1),
            grad_l2=4 * spike, update_l2=update, data_shift=share * update, decay_shift=decay,
            carry_shift=(1 - share) * update - decay - rounding, unmeasured_shift=0.0, unexplained_shift=0.0,
            interaction_shift=0.0, rounding_shift=rounding, closure=3e-6 * rng.random(), gradient_match=2e-6,
            lr=1e-4, unsettled=step < 10, agreement_gg=0.4 * math.exp(-step / 60) + rng.gauss(0, 0.05),
            agreement_s=2.0 + rng.gauss(0, 0.2),
        )  # fmt: skip
        for name, values in rows.items():
            values.append(row[name])
    return rows


def _probe(name: str, role: str, steps: list[int]) -> ProbeFinding:
    loss = [3.4 - 0.9 * (1 - math.exp(-s / 50)) if role == "target" else 2.7 + 0.0021 * s for s in steps]
    kl = [0.004 * s if role == "target" else 0.0016 * s for s in steps]
    drift = [0.01 + 0.2 * (layer / LAYERS) ** 2 for layer in range(LAYERS + 1)]
    return ProbeFinding(
        probe=name, role=role, first_loss_nats=loss[0], last_loss_nats=loss[-1], kl_last_nats=kl[-1],
        max_abs_residual_share=0.07 if role == "target" else 0.12, steps=steps, loss_nats=list(loss), kl_nats=list(kl),
        drift_layers=list(range(LAYERS + 1)), drift_relative_l2=list(drift),
        drift_cosine=[1 - d / 2 for d in drift], drift_cka=[1 - d / 3 for d in drift],
        measurements=len(steps), seconds_each=0.42, run_share=0.034,
    )  # fmt: skip


def _pieces(text: str) -> list[str]:
    """Split as a byte-level tokenizer might: words with their space, some letters in two tokens."""
    pieces: list[str] = []
    for word in text.split(" "):
        word = " " + word if pieces else word
        pieces += [word[:4], "", word[4:]] if len(word) > 7 else [word]
    return [*pieces, "<|im_end|>"]


def _text(rng: random.Random, example: ExampleFinding) -> TokenText:
    pieces = _pieces(example.preview)
    n = len(pieces)
    surprise = [None] + [rng.expovariate(0.5) for _ in pieces[1:]]
    entropy = [None] + [rng.expovariate(0.7) for _ in pieces[1:]]
    sign = -0.2 if example.group == "conflict" else 0.5
    return TokenText(
        example=example.example,
        step=40,
        pieces=pieces,
        shift_u=[rng.gauss(sign, 1) * 90 for _ in range(n - 1)] + [None],
        surprise_nats=surprise,
        entropy_nats=entropy,
        trained=[i > 2 for i in range(n)],
        confident_conflict=[bool(s and e is not None and s > 3 and e < 0.6) for s, e in zip(surprise, entropy)],
    )


def _layers(rng: random.Random, update: list[float | None], unit: float) -> dict[str, list[float]]:
    def line(weight: float) -> list[float]:
        return [weight * (u or 0) / unit * rng.lognormvariate(0, 0.1) for u in update]

    series = {"embed": line(0.3)}
    for layer in range(LAYERS):
        late = 0.05 + 0.2 * (layer / LAYERS) ** 2
        series |= {f"L{layer}.norm.attn": line(0.004), f"L{layer}.attn": line(late), f"L{layer}.mlp": line(1.8 * late)}
    return {**series, "norm": line(0.01)}


def _spikes(examples: list[ExampleFinding]) -> list[SpikeFinding]:
    ids = tuple(e.example for e in examples[:2])
    return [
        SpikeFinding(47, 6.1, 5.2, "data", ids),
        SpikeFinding(48, None, 4.4, "both", ids[:1]),
        SpikeFinding(86, 4.9, 4.1, "unknown"),
    ]


def sample(*, per_group: int = 12, seed: int = 0, target: bool = True) -> Findings:
    """A run of `5 * per_group` examples; without `target` nothing can be called understood."""
    rng, unit = random.Random(seed), 1.1e-4
    examples = [_example(rng, group, i) for group in GROUPS for i in range(per_group)]
    groups = [_group("", examples)] + [_group(g, [e for e in examples if e.group == g]) for g in GROUPS]
    examples.sort(key=lambda e: -(e.shift_abs_u or 0))
    series, steps = _series(rng), [*range(0, STEPS, 10), STEPS - 1]
    path = sum(u or 0 for u in series["update_l2"]) / unit
    layers = _layers(rng, series["update_l2"], unit)
    probes = ([_probe("target", "target", steps)] if target else []) + [_probe("anchor", "anchor", steps)]
    share = {a: sum(v) for a, v in layers.items()}
    return Findings(
        name="leaps-and-bridges",
        complete=True,
        manifest={
            "subject": "smollm2",
            "seed": 0,
            "command": "intaglio steps smollm2",
            "note": HOSTILE,
            "recipe": {"lr": 1e-4, "optimizer": "adamw", "batch_size": 4, "weight_decay": 0.1},
        },
        steps_total=STEPS,
        steps_measured=STEPS,
        closure_max=3.1e-6,
        closure_median=1.2e-6,
        gradient_match_max=2.4e-6,
        books_close=True,
        tolerance=1e-4,
        coverage=1.0,
        unmeasured_names=(),
        data_share=0.18,
        carry_share=0.816,
        decay_share=0.004,
        unit_length=unit,
        path_u=path,
        net_u=path / 5.1,
        tortuosity=5.1,
        tortuosity_null=2.5,
        agreement=Interval(0.11, 0.08, 0.14),
        noise_scale=Interval(8.1, 6.1, 11.5),
        conflict_share=Interval(0.31, 0.28, 0.34, 0.46),
        imitation_gap=0.31 if target else None,
        series=series,
        spikes=_spikes(examples),
        examples=examples,
        groups=groups,
        pairs=[
            ConflictPair(examples[0].example, examples[7].example, -0.42, 3),
            ConflictPair(examples[1].example, examples[9].example, -0.31, 2),
        ],
        near_duplicates=[ConflictPair(examples[4].example, examples[5].example, 0.97, 4)],
        starved_examples=Interval(0.05, 0.01, 0.1, 0.05),
        starved_parts=("L3.attn.H5",),
        probes=probes,
        layer_series=layers,
        head_totals={
            f"L{l}.attn.H{h}": share[f"L{l}.attn"] / HEADS * rng.lognormvariate(0, 0.5)
            for l in range(LAYERS)
            for h in range(HEADS)
        },
        head_series={
            f"L{l}.attn.H{h}": [None if s % 7 == 3 else 0.4 + 0.1 * l + 0.05 * h - 0.002 * s for s in range(40)]
            for l in range(LAYERS)
            for h in range(HEADS)
        },
        head_series_steps=list(range(0, STEPS, 3)),
        relative_update={a: 1e-3 * (1 + i % 7) for i, a in enumerate(layers)},
        visit_part_totals={
            g: {a: s * _SCALE[g] * rng.lognormvariate(0, 0.2) for a, s in share.items()} for g in GROUPS
        },
        texts={e.example: _text(rng, e) for e in examples},
        token_volatility=[
            {
                "token": 10 + i,
                "text": text,
                "count": 40 - i,
                "shift_abs_u": 300.0 - 20 * i,
                "surprise_nats": 5.0 - 0.3 * i,
            }
            for i, text in enumerate((" Vellmar", " salt", "соль", "<b>", "\n", " boils", " Лион"))
        ],
        position_volatility=[
            {
                "position_from": i,
                "position_to": i + 1,
                "shift_abs_u": 220.0 / (1 + i / 4),
                "surprise_nats": 4.0 / (1 + i / 6),
            }
            for i in range(0, 24, 2)
        ],
        correlations={
            "level~csl": 0.81,
            "dispersion~csl": 0.34,
            "level~first_loss": 0.74,
            "level~length": 0.52,
            "dispersion~first_loss": 0.2,
            "dispersion~length": 0.05,
            "shift_abs~csl": 0.77,
            "shift_abs~first_loss": 0.7,
            "shift_abs~length": 0.6,
        },
    )


def bare(f: Findings) -> Findings:
    """The same run with nothing measured but losses."""
    none = Interval(None)
    example = dict(
        shift_abs_u=None, shift_net_u=None, level=None, dispersion=None, alignment_mean=None, against_share=None,
        credits_nats={}, verdict="no evidence", why="", evidence={}, group=None,
    )  # fmt: skip
    group = dict(
        shift_abs_u=none, shift_net_u=none, shift_abs_u_per_1000_tokens=none, level=none, dispersion=none,
        alignment=none, nats_per_ku=None, credits_nats={}, verdicts={}, probe_fall={},
    )  # fmt: skip
    unknown = dict.fromkeys((
        "books_close", "closure_max", "closure_median", "gradient_match_max", "coverage", "data_share", "carry_share",
        "decay_share", "unit_length", "path_u", "net_u", "tortuosity", "tortuosity_null", "imitation_gap",
    ))  # fmt: skip
    return replace(
        f, **unknown, examples=[replace(e, **example) for e in f.examples], groups=[replace(f.groups[0], **group)],
        probes=[], pairs=[], near_duplicates=[], texts={}, spikes=[], series={}, agreement=none, noise_scale=none,
        conflict_share=none, starved_examples=none, starved_parts=(), layer_series={}, head_totals={},
        relative_update={}, visit_part_totals={}, token_volatility=[], position_volatility=[], correlations={},
        complete=False,
    )  # fmt: skip


def sample_scan(seed: int = 0) -> Findings:
    """A made-up scan of the same rows: scored at one state, nothing trained."""
    trained, rng = sample(seed=seed), random.Random(seed)
    examples = []
    for e in trained.examples:
        cosines = {"target": rng.uniform(-0.1, 0.4), "anchor": rng.uniform(-0.2, 0.2)}
        examples.append(replace(
            e, visits=0, shift_abs_u=None, shift_net_u=None, learnt_nats=None, last_loss_nats=e.first_loss_nats,
            push_mean=math.exp((e.level or 0) / 2), dispersion=None, against_share=None, credits_nats={},
            verdict="no evidence", credit_cosines=cosines, credit_rates={p: 9.5 * c for p, c in cosines.items()},
        ))  # fmt: skip
    groups = [replace(g, surprise=_interval(4.0 + i, 0.2), push=_interval(40.0, 0.3), shift_abs_u=Interval(None),
                      credit_cosines={p: _interval(0.1 * i, 0.5) for p in ("target", "anchor")},
                      credit_rates={p: _interval(0.9 * i, 0.5) for p in ("target", "anchor")})
              for i, g in enumerate(trained.groups)]  # fmt: skip
    return replace(trained, name="scan-of-leaps", manifest={**trained.manifest, "kind": "scan"}, examples=examples,
                   groups=groups, texts={}, steps_total=0)  # fmt: skip
