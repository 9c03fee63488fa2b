"""`why`: one next-token decision taken apart, from the model to a trace.  [torch]

    trace = intaglio.why("smollm2", "The capital of France is", against=" London")
    trace.votes
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from intaglio.errors import InputError
from intaglio.measure.choice import rows
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.effects import (
    Effects,
    Means,
    all_parts,
    estimate_effects,
    means_over,
    measure_effects,
    to_mean,
    to_other,
)  # fmt: skip
from intaglio.measure.choice.lenses import Given, check_given, check_names, measure_lenses
from intaglio.measure.choice.others import peer_of, plain_text, second_prompt, second_target
from intaglio.measure.choice.runs import Change
from intaglio.measure.choice.tuned import load_lens
from intaglio.model.proof import prove
from intaglio.trace import TraceData
from intaglio.views import Trace

CLOSES = 1e-3  # logits: a ledger that is off by more says so
ALL_PRODUCTS = 5e12  # multiplications for running all parts, half the layers each; beyond, a first-order screen picks
SCREENED = 48  # parts verified exactly after a screen
REFERENCE_TOKENS = 256
SEEDS = 1 << 63


def why(
    subject: Any, prompt: str | Sequence[int], *, target: str | int | None = None, against: str | int | None = None,
    chat: bool = False, at: int = 0, versus: Any = None, versus_prompt: str | None = None,
    versus_target: str | int | None = None, lenses: Sequence[str] | None = None, corpus: str | None = None,
    tuned: str | Path | None = None, effects: bool = True, first_piece: bool = False, seed: int = 0,
    metric: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Trace:  # fmt: skip
    """Take one decision apart: every vote between two tokens, and what replacing each part does.

    Args:
        subject: what `load_subject` takes, a loaded Subject, or a pair (model, tokenizer).
        prompt: the text before the decision, or its token ids.
        target: the token asked about; the likeliest if not named.
        against: the token it is weighed against; the mean over the vocabulary if not named.
        chat: put the prompt through the chat template.
        at: explain the token after so many tokens of the model's greedy answer.
        versus: a second model, or a list of several (each as `subject`), before the same text; where it shares the
            tokenizer, before the same tokens.
        versus_prompt: a second prompt for the same model; where it has as many tokens, replaced parts are also taken
            from it (resample ablation).
        versus_target: a second token to ask about, in the same model after the same prompt.
        lenses: which lenses, by name; all of them if None.
        corpus: text of a reference corpus, for the lenses that need one.
        tuned: a tuned lens of this model, as `intaglio lens train` writes it.
        effects: also run the model with each part replaced.
        first_piece: where `target` or `against` is several tokens, take the first.
        seed: of everything that is drawn.
        metric: (B, V) logits to (B,) numbers: effects are then shown, ranked and screened by its fall, and booked in
            logits beside it. Its `__name__` stands on the page. One without a gradient (a rank) leaves out the estimates.
        progress: told (what, done, total) while parts are replaced.

    Raises:
        InputError: a prompt or token that cannot be used.
        SubjectError: a family whose parts are not known or not proved.
    """
    check_names(lenses)
    if not 0 <= seed < SEEDS:
        raise InputError("no such seed", got=seed, expected="0 to 2**63 - 1")
    if corpus is not None and not corpus.strip():
        raise InputError("the corpus is empty", expected="some text")
    subject = subject if isinstance(subject, tuple) else _subject(subject)
    model, tokenizer, name = _loaded(subject)
    start = time.perf_counter()
    reader = None if tuned is None else load_lens(Path(tuned), prove(model))
    found = decide(model, tokenizer, prompt, target=target, against=against, chat=chat, at=at, first_piece=first_piece)
    shown = prompt if isinstance(prompt, str) else plain_text(found)
    trace = Trace({"subject": name, "prompt": shown, "chat": chat, "at": at, **rows.about(found)}, decision=found)
    if not isinstance(subject, tuple):
        trace.about["fingerprint"] = subject.fingerprint
    trace.about["closes"] = trace.about["closure_logits"] < CLOSES
    second = None if versus_prompt is None else second_prompt(found, versus_prompt, chat, at)
    third = None if versus_target is None else second_target(found, versus_target, first_piece)
    answered = found.text(found.ids[len(found.ids) - at :]) if isinstance(prompt, str) else ""  # ids hold it already
    text = plain_text(found) if chat else shown + answered
    if second is not None:
        trace.about |= {"versus_prompt": versus_prompt, "versus_tokens": len(second.ids)}
    peers = [peer_of(found, *_loaded(one), text) for one in _several(versus)]
    if peers:
        trace.about["versus"] = [p.name for p in peers]
    if metric is not None:
        trace.about["metric"] = {"name": getattr(metric, "__name__", "metric"), "value": _value(metric, found)}
    reference = reference_ids(tokenizer, min(REFERENCE_TOKENS, found.context))
    given = Given(
        shown, reference, ending=answered if chat and at else shown + answered, subject=name, chat=chat, corpus=corpus,
        peers=peers, versus_prompt=second, seed=seed, tuned=reader,
    )  # fmt: skip
    check_given(lenses, given)
    if effects:
        given.means = _means(found, reference)
        for ablation, changes in _changes(found, given.means, second):
            measured = _measure(found, changes, ablation, trace, metric, progress)
            given.effects = given.effects or measured  # the lenses go by the mean, which comes first
    trace.rows |= _rows(found, given.effects)
    sides = [("model", peer.name, peer.decision) for peer in peers]
    sides += [] if second is None else [("prompt", versus_prompt, second)]
    sides += [] if third is None else [("target", third.written(third.target), third)]
    trace.beside = [TraceData({"kind": kind, "name": name, **rows.about(side)}, _rows(side, None)) for kind, name, side in sides]
    trace.lenses = measure_lenses(found, given, lenses, lambda name: progress and progress(f"lens {name}", 1, 1))
    trace.about["seconds"] = time.perf_counter() - start
    return trace


def _loaded(subject: Any) -> tuple[Any, Any, str]:
    if isinstance(subject, tuple):
        return *subject, type(subject[0]).__name__
    found = _subject(subject)
    return found.model, found.tokenizer, found.name


def _subject(subject: Any) -> Any:
    from intaglio.model.subject import Subject, load_subject

    return subject if isinstance(subject, Subject) else load_subject(subject)


def reference_ids(tokenizer: Any, tokens: int = REFERENCE_TOKENS) -> list[int]:
    """Ordinary text, half English and half Russian, whose means stand in for a part that is taken out."""
    lines = (resources.files("intaglio.data.leaps") / "anchor.jsonl").read_text(encoding="utf-8").splitlines()
    texts = sorted((json.loads(line) for line in lines), key=lambda r: r["group"] != "en")
    halves = [" ".join(r["text"] for r in texts if (r["group"] == "en") == english) for english in (True, False)]
    return [int(i) for half in halves for i in tokenizer(half)["input_ids"][: tokens // 2]]


def _means(found: Decision, reference: list[int]) -> Means:
    with torch.no_grad():
        return means_over(found.anatomy, torch.tensor([reference], device=found.ids_BT.device))


def _changes(found: Decision, means: Means, second: Decision | None) -> Iterator[tuple[str, list[Change]]]:
    """Every part by its mean over ordinary text; where a second prompt has as many tokens, by what it did there too."""
    parts = all_parts(found.anatomy)
    yield "mean", to_mean(found.anatomy, found.base, means, parts)
    if second is not None and len(second.ids) == len(found.ids):
        yield "resample", to_other(found.anatomy, found.base, second.base, parts)


def _rows(found: Decision, effects: Effects | None) -> dict[str, list[dict[str, Any]]]:
    return {
        "prompt": rows.prompt_rows(found), "candidates": rows.candidate_rows(found), "votes": rows.vote_rows(found, effects),
        "neurons": rows.neuron_rows(found), "upstream": rows.upstream_rows(found),
    }  # fmt: skip


def _value(metric: Callable[[torch.Tensor], torch.Tensor], found: Decision) -> float:
    """The metric of the unchanged run.

    Raises:
        InputError: it does not give one number for each row of logits.
    """
    logits_BV = found.logits_V[None].repeat(2, 1)
    given = metric(logits_BV)
    if not isinstance(given, torch.Tensor) or given.shape != (2,):
        got = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise InputError("the metric must give one number for each row of logits", got=got, expected="shape (B,) for (B, V)")
    if not bool(given.isfinite().all()):
        raise InputError("the metric gives no finite number for the unchanged run", got=float(given[0]))
    return float(given[0])


def _has_gradient(metric: Callable[[torch.Tensor], torch.Tensor], found: Decision) -> bool:
    """Whether the metric can be followed back to the logits; a rank or a comparison cannot."""
    with torch.enable_grad():
        return bool(metric(found.logits_V[None].detach().clone().requires_grad_()).requires_grad)


def _several(versus: Any) -> list[Any]:
    """One model or a list of them; a pair (model, tokenizer) is one."""
    if versus is None:
        return []
    return list(versus) if isinstance(versus, list) else [versus]


def products(found: Decision) -> float:
    """Multiplications that running every part by itself takes: half the layers each, on all tokens."""
    inside = sum(p.numel() for block in found.anatomy.blocks for p in block.layer.parameters())
    return len(all_parts(found.anatomy)) * inside / 2 * len(found.ids)


def _measure(
    found: Decision, changes: list[Change], ablation: str, trace: Trace, metric: Callable | None, progress: Callable | None
) -> Effects:
    """Run all parts, or on a large model those that a first-order screen picks; the trace says which.

    Raises:
        InputError: a screen is needed, and the metric has no gradient.
    """
    estimates, picked = None, list(range(len(changes)))
    if metric is None or _has_gradient(metric, found):
        estimates = estimate_effects(found.anatomy, found.ids_BT, metric or found.question.of, changes)
    if products(found) > ALL_PRODUCTS:
        if estimates is None:
            raise InputError("the metric has no gradient, by which parts of a model of this size are picked",
                             expected="a metric that torch can differentiate")  # fmt: skip
        picked = sorted(estimates.abs().argsort(descending=True)[:SCREENED].tolist())
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(f"replacing parts ({ablation})", done, len(picked))

    some = [changes[i] for i in picked]
    effects = measure_effects(found.anatomy, found.base, found.question, some, metric=metric, progress=tell)
    trace.about.setdefault("replaced", {})[ablation] = {"parts": len(changes), "run": len(picked)}
    estimated = None if estimates is None else estimates[picked]
    trace.rows.setdefault("effects", []).extend(rows.effect_rows(effects, ablation, estimated))
    trace.rows.setdefault("effect_terms", []).extend(rows.term_rows(effects, ablation))
    return effects
