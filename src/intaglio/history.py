"""`history_of`: how the heads of a model came to what they do, over the checkpoints of a run or a series of folders.  [torch]

    from intaglio.history import history_of
    atlas = history_of("runs/born")
    atlas.rows["events"]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from intaglio.analyse.heads.history import event_rows, history_rows
from intaglio.analyse.heads.teachers import Window, birth_window, teachers_of
from intaglio.atlas import BASIC, Sampled
from intaglio.errors import InputError, IntaglioError, SubjectError
from intaglio.looking import LENGTH, TEXTS, plain_texts, readable
from intaglio.measure.choice.decision import context_of
from intaglio.measure.heads.reference import TOKENS
from intaglio.measure.heads.series import Series, check_alike, measure_series
from intaglio.measure.heads.tasks import TASKS, run_tasks
from intaglio.model.anatomy import Anatomy
from intaglio.model.proof import prove
from intaglio.model.subject import Subject, fingerprint, load_subject
from intaglio.replaying import replay_tokens
from intaglio.roles import check_settings, heads
from intaglio.store.run import Run, open_run
from intaglio.views import Atlas

TAUGHT_ROLES = ("induction", "previous_token")  # their loss is that of the second copy of random tokens
ROLE_PROBE = "repeat"
TOP = 20
_NUMBER = re.compile(r"(\d+)\D*\Z", re.ASCII)
State = tuple[int, Path | None]
Tell = Callable[[str, int, int], None]


def history_of(
    subjects: str | Path | Sequence[str | Path], *, texts: int = TEXTS, seed: int = 0, progress: Tell | None = None,
    tokens: bool = False, **options: Any,
) -> Atlas:  # fmt: skip
    """The atlas of the last checkpoint, with `history`, `losses` and `events` over all of them.

    Where the run kept its credits by part (`visit_credits`), `teachers` says which texts taught every head that took up
    induction or the previous token.

    Args:
        subjects: a run's folder, or the folders of a series of checkpoints.
        texts: independent texts of repeated random tokens.
        seed: of everything that is drawn.
        progress: told (what, done, total).
        tokens: also replay the first birth of an induction head, for `teacher_tokens`.
        options: handed on to `intaglio.heads`.

    Raises:
        InputError: fewer than two checkpoints, or of different shapes.
        SubjectError: a checkpoint cannot be read, or its family is not known here.
    """
    tell = progress or (lambda what, done, total: None)
    run, states, subject = states_of(subjects)
    looked: list[Atlas] = []

    def look() -> list[Sampled]:
        """The last state is looked at whole, so its scores are not measured for the series, too."""
        now = replace(subject, folder=states[-1][1], fingerprint=fingerprint(subject.model))
        looked.append(heads(now, texts=texts, seed=seed, progress=progress, **options))
        return looked[0].sampled

    series = series_of(subject, states, texts=texts, seed=seed, last=look,
                       progress=lambda n: tell("checkpoints", n, len(states)),
                       **{name: options.get(name) for name in ("roles", "corpus", "winogender")})  # fmt: skip
    history = history_rows(series.steps, series.sampled)
    events = event_rows(series.steps, series.sampled, history=history, seed=seed)
    (found,) = looked
    found.about |= {"subject": run.name if run else subject.name, "steps": series.steps}
    found.rows |= {"history": history, "losses": series.losses, "events": events}
    if run is not None:
        found.rows |= taught_rows(run, found.rows, tokens=tokens, progress=tell)
    return found


def series_of(
    subject: Subject, states: Sequence[State], *, texts: int = TEXTS, seed: int = 0, roles: Sequence[str] | None = None,
    corpus: str | Path | None = None, winogender: str | Path | None = None,
    last: Callable[[], list[Sampled]] | None = None, progress: Callable[[int], None] = lambda done: None,
) -> Series:  # fmt: skip
    """Roles and losses at every state, on one set of texts; roles of tasks where the tokenizer has words for their texts.

    Args:
        last: gives the scores of the last state, where it is looked at with the same settings anyway.
    """
    from intaglio.data.vocab import is_special

    check_settings(roles=roles, texts=texts, seed=seed)
    anatomy, tokenizer = prove(subject.model), subject.tokenizer
    plain, wanted = _readable(tokenizer, anatomy), [role for role in TASKS if role in (roles or TASKS)]

    def more(anatomy: Anatomy) -> list[Sampled]:
        if not plain or not wanted:
            return []
        proved = prove(anatomy.model)  # gains of norms may be kept as copies
        return run_tasks(proved, tokenizer, seed=seed, roles=wanted, corpus=corpus, winogender=winogender).sampled

    rows = anatomy.embed.weight.shape[0]
    ordinary = [i for i in range(min(rows, len(tokenizer))) if not is_special(tokenizer, i)]
    found = measure_series(
        anatomy, states, texts=texts, length=LENGTH, seed=seed, ordinary=ordinary, plain=plain,
        roles=[role for role in BASIC if role in (roles or BASIC)], more=more, last=last, progress=progress,
    )  # fmt: skip
    prove(subject.model)  # with the last state's weights: what is measured next is proved anew
    return found


def _readable(tokenizer: Any, anatomy: Anatomy) -> list[list[int]]:
    """The plain texts, unless the tokenizer has no words for them."""
    texts = plain_texts(tokenizer, min(TOKENS, context_of(anatomy.model)))
    return texts if readable(tokenizer, texts) else []


# --- where the states lie --------------------------------------------------------------------


def states_of(subjects: str | Path | Sequence[str | Path]) -> tuple[Run | None, list[State], Subject]:
    """A run, or None; the states of the series by their steps; and a subject of their shape, at the first.

    Raises:
        InputError: fewer than two checkpoints, one of them twice, a run of adapters, or checkpoints of different shapes.
    """
    paths = [Path(subjects)] if isinstance(subjects, str | Path) else [Path(s) for s in subjects]
    _check_different(paths)
    run = _run(paths[0]) if len(paths) == 1 else None
    states: list[State] = _kept(run) if run else sorted(_numbered(paths), key=lambda state: state[0])
    folders = [folder for _, folder in states if folder is not None]
    if run is not None and run.manifest.get("lora"):
        raise InputError("the run kept adapters, and a history needs whole models", got=str(paths[0]),
                         expected="a run without --lora")  # fmt: skip
    check_alike(folders)
    first = _start(run) if run is not None and states and states[0][0] > 0 else None
    if first is not None:
        states = [(0, None), *states]
    if len(states) < 2:
        raise InputError("a history needs two checkpoints", got=f"{len(states)} of {paths[0]}",
                         expected="a run with --checkpoint-every, or several folders")  # fmt: skip
    return run, states, first or load_subject(folders[0])


def _check_different(paths: Sequence[Path]) -> None:
    """A checkpoint that stands twice in a series would make a role last, or be born, by being counted twice."""
    first: dict[Path, Path] = {}
    for path in paths:
        if (before := first.setdefault(path.resolve(), path)) is not path:
            raise InputError("one checkpoint stands twice in the series", got=f"{before} and {path}", expected="each once")


def _run(path: Path) -> Run | None:
    """The run of this folder; None where it is none, not where it is one that cannot be read."""
    try:
        return open_run(path)
    except IntaglioError:
        if (path / "manifest.json").is_file():
            raise
        return None


def _kept(run: Run) -> list[State]:
    """The states that a run kept, those that are still there."""
    try:
        kept = {int(step): run.folder / path for step, path in (run.manifest.get("checkpoints") or {}).items()}
    except (ValueError, TypeError, AttributeError):
        raise InputError("the manifest does not say where the run's checkpoints are", got=str(run.folder / "manifest.json"),
                         expected="step: folder") from None  # fmt: skip
    return [(step, folder) for step, folder in sorted(kept.items()) if folder.is_dir()]


def _numbered(paths: Sequence[Path]) -> list[State]:
    """Folders with the number at the end of their names, or with their places where some name has none."""
    for path in paths:
        if not path.is_dir():
            raise SubjectError("no such checkpoint", got=str(path), expected="a folder with safetensors, or a run's folder")
    numbers = [_NUMBER.search(path.resolve().name) for path in paths]
    known = [int(found[1]) for found in numbers if found]
    if len(known) == len(paths) == len(set(known)):
        return list(zip(known, paths))
    return list(enumerate(paths))


def _start(run: Run) -> Subject | None:
    """What the run began with, where it can be had and is the same still."""
    told = run.manifest.get("subject") or {}
    try:
        subject = load_subject(told.get("spec", ""))
    except (IntaglioError, OSError):
        return None
    return subject if subject.fingerprint == told.get("fingerprint") else None


# --- who taught the heads --------------------------------------------------------------------


def taught_rows(
    run: Run, rows: dict[str, list[dict[str, Any]]], *, tokens: bool = False, progress: Tell | None = None
) -> dict[str, list[dict[str, Any]]]:
    """`teachers` of every head that took up a role whose loss was a probe of the run; empty where nothing was credited.

    Args:
        rows: with `history` and `events`.
        tokens: also `teacher_tokens` of the first head born, by replaying its birth.
        progress: told (what, done, total).
    """
    if ROLE_PROBE not in (run.manifest.get("probes") or {}) or not run.files("visit_credits"):
        return {}
    windows = windows_of(rows)
    found = [row for address, window in windows.items()
             for row in teachers_of(run, address, probe=ROLE_PROBE, window=window.whole, top=TOP)]  # fmt: skip
    result = {"teachers": found}
    first = next((e["address"] for e in rows["events"] if e["event"] == "birth" and e["role"] == TAUGHT_ROLES[0]), None)
    if tokens and first in windows:
        window = windows[first]
        result["teacher_tokens"] = replay_tokens(
            run, [row for row in found if row["address"] == first], {first: (window.begun, window.end)},
            progress=lambda step: progress and progress("the first birth again", step - window.begun, window.end - window.begun),
        )  # fmt: skip
    return result


def windows_of(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Window]:
    """When each head came to induction, or to the previous token, in the order of their births."""
    born: dict[str, str] = {}
    for event in rows["events"]:
        if event["event"] == "birth" and event["role"] in TAUGHT_ROLES:
            born.setdefault(event["address"], event["role"])
    return {address: birth_window(rows["history"], address, role) for address, role in born.items()}
