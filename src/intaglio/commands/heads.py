"""`intaglio heads`: what does every attention head do, and on what evidence?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.commands.options import Lang, Several, check_files, explained
from intaglio.errors import InputError

if TYPE_CHECKING:
    from intaglio.views import Atlas

SHOWN = 4  # heads named for each role
TASK_TEXTS, REMOVAL_TEXTS, WEIGHT_TEXTS = 150, 280, 110  # what stages take, in texts of repeated tokens; measured, for --plan


@explained
def heads(
    *subjects: str,
    history: bool = False,
    out: Path | None = None,
    json: Path | None = None,
    corpus: Path | None = None,
    winogender: Path | None = None,
    versus: str | None = None,
    roles: str | None = None,
    choice: Several = None,
    texts: int = 16,
    seed: int = 0,
    plan: bool = False,
    lang: Lang = "en",
) -> None:
    """Say what every attention head does: roles with null, interval and causal check, or unresolved.

    Prints the roles with their heads and what removing these heads costs. --out writes the page, --json everything as data.

    Examples:

        intaglio heads smollm2 --out heads.html

        intaglio heads smollm2 --corpus trees.conllu --json heads.json

        intaglio heads ./tuned --versus ./base --out heads.html

        intaglio heads runs/born --history --out heads.html

        intaglio heads ckpt-100 ckpt-1000 ckpt-10000 --out heads.html

    Parameters
    ----------
    subjects
        smollm2 (built in), a Hugging Face id, a folder with safetensors, or a .gguf file; several folders are a series of
        checkpoints.
    history
        The subject is a run: look at its checkpoints, for births, hand-overs and deaths of roles.
    out
        Write the page to this .html file.
    json
        Write everything to this file.
    corpus
        A .conllu file of dependency trees (Universal Dependencies, any language), for syntax.
    winogender
        Its table of sentences (all_sentences.tsv), for coreference beside our own texts.
    versus
        A second model or checkpoint of the same shape, looked at with the same texts.
    roles
        Only these roles, with commas between; all of them if not given.
    choice
        A .json file that intaglio why wrote for this model: heads' cards tell of the decision. May be given several times.
    texts
        Independent texts of repeated random tokens, on which the basic roles are scored.
    seed
        Of everything that is drawn.
    plan
        Print what it will cost, and stop.
    """
    if not subjects or not all(subjects):
        raise InputError("a subject is needed", expected="such as smollm2")
    series = history or len(subjects) > 1
    if series and versus is not None:
        raise InputError("--versus cannot go with a series of checkpoints", expected="one subject")
    check_files(out, json)
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=120)
    given: dict[str, Any] = dict(
        corpus=corpus, winogender=winogender, versus=versus, texts=texts, seed=seed,
        roles=None if roles is None else [name.strip() for name in roles.split(",")],
    )  # fmt: skip
    if not series:
        _check_no_run(subjects[0])
    _check_texts(corpus, winogender, given["roles"])
    if plan:
        _print_plan(subjects, series, given, console)
        return
    from intaglio.commands.heads_choices import choices_of

    choices, loaded = choices_of([Path(one) for one in choice or ()], subjects, series, out)
    atlas = _with_bars(subjects if loaded is None else (loaded,), series, given, console)
    if choices:
        atlas.about["choices"] = choices
    print_atlas(atlas, console)
    for path, write in ((out, lambda p: atlas.to_html(p, lang=lang)), (json, atlas.to_json)):
        if path is not None:
            write(path)
            console.print(f"  written: {path}", highlight=False, markup=False, soft_wrap=True)


def _check_texts(corpus: Path | None, winogender: Path | None, roles: list[str] | None) -> None:
    """Files that are read for a role: refused before the work, and where the role is not asked for."""
    for option, path, role in (("--corpus", corpus, "syntax"), ("--winogender", winogender, "coreference")):
        if path is not None and roles is not None and role not in roles:
            raise InputError(f"{option} is for the role {role}", got=f"--roles {','.join(roles)}", expected=f"{role} among them")
    if corpus is not None:
        from intaglio.data.conllu import read_conllu

        read_conllu(corpus)
    if winogender is not None:
        from intaglio.measure.heads.tasks.coreference import read_table

        read_table(winogender)


def _check_no_run(subject: str) -> None:
    folder = Path(subject).expanduser()
    if (folder / "manifest.json").is_file() and not any(folder.glob("*.safetensors")):
        raise InputError("this is the folder of a run, not of a model", got=subject,
                         expected="--history, or one of its checkpoints")  # fmt: skip


def _with_bars(subjects: tuple[Any, ...], series: bool, given: dict[str, Any], console: Any) -> Atlas:
    from intaglio.commands.progress import bars

    with bars(console) as tell:
        if series:
            from intaglio.history import history_of

            return history_of(subjects[0] if len(subjects) == 1 else subjects, progress=tell, **given)
        from intaglio.roles import heads as look

        return look(subjects[0], progress=tell, **given)


def _print_plan(subjects: tuple[str, ...], series: bool, given: dict[str, Any], console: Any) -> None:
    """Time by one forward that is run for it."""
    import time

    from intaglio.looking import LENGTH
    from intaglio.measure.heads.basic import measure_basic
    from intaglio.model.proof import prove
    from intaglio.model.subject import load_subject
    from intaglio.roles import check_settings

    check_settings(**{name: given[name] for name in ("roles", "texts", "seed")})
    if series:
        from intaglio.history import states_of

        anatomy = prove(states_of(subjects)[2].model)
    else:
        anatomy = prove(load_subject(subjects[0]).model)
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        measure_basic(anatomy, texts=4, length=LENGTH)
        one = (time.perf_counter() - start) / 4
    runs = given["texts"] + TASK_TEXTS + REMOVAL_TEXTS + WEIGHT_TEXTS
    console.print(
        f"  {anatomy.n_layers * anatomy.n_heads} heads; a text of {2 * LENGTH + 1} tokens takes {one:.2f} s\n"
        f"  repeated random tokens: {given['texts']} texts; as long as so many take: texts made for roles {TASK_TEXTS}, removing "
        f"heads {REMOVAL_TEXTS}, weights {WEIGHT_TEXTS}\n"
        f"  in all about {one * runs * (1 + (given['versus'] is not None)):,.0f} s, and "
        f"{one * (given['texts'] * 1.5 + TASK_TEXTS):,.0f} s for each checkpoint of a series",
        highlight=False,
    )  # fmt: skip


def print_atlas(atlas: Atlas, console: Any) -> None:
    """Roles with their heads, strongest first, what removing them costs, and how many heads have none."""
    from rich.table import Table

    from intaglio.atlas import ROLES, UNRESOLVED

    found = atlas.rows["heads"]
    checks = {row["role"]: row for row in atlas.rows.get("checks", [])}
    table = Table("role", "heads", "the strongest: score (null)", "removed: loss, random heads", box=None, padding=(0, 2))
    for role in ROLES:
        mine = _named(atlas, role)
        if mine:
            strongest = ", ".join(f"{_short(r['address'])} {_score(r)}" for r in mine[:SHOWN])
            table.add_row(role.replace("_", " "), str(len(mine)), strongest, _cost(checks.get(role)))
    console.print()
    console.print(table)
    unresolved = sum(row["role"] == UNRESOLVED for row in found)
    resting = sum(row["roles"] == ["first_token"] for row in found)
    console.print(
        f"\n  {len(found)} heads: {len(found) - unresolved - resting} with a role, {resting} that only rest on the first token, "
        f"{unresolved} unresolved (no role beyond its null by the rule).\n"
        "  score: by the role's own measure (a share of attention for the basic six); null: the same with its targets shuffled.\n"
        "  removed: the loss of the whole model, then without the strongest heads; the least and the most without random heads.",
        style="dim", highlight=False,
    )  # fmt: skip
    _print_events(atlas, console)
    for role, why in atlas.about["skipped"].items():
        console.print(f"  not measured: {role.replace('_', ' ')} ({why})", style="dim", highlight=False, markup=False)


def _print_events(atlas: Atlas, console: Any) -> None:
    """Births, deaths and hand-overs of roles, where there is a history."""
    for row in atlas.rows.get("events", []):
        other = f" to {_short(row['other'])}" if row["other"] else ""
        console.print(
            f"  {row['event']} of {row['role'].replace('_', ' ')}: {_short(row['address'])}{other}, between steps "
            f"{row['after_step']:,} and {row['step']:,}",
            highlight=False,
        )  # fmt: skip


def _named(atlas: Atlas, role: str) -> list[dict[str, Any]]:
    """A row for every head that has the role, the most evidence first; of its offsets or relations the best."""
    from intaglio.analyse.heads.naming import evidence

    rows = [r for r in atlas.rows["scores"] if r["role"] == role and r["named"]]
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=evidence, reverse=True):
        found.setdefault(row["address"], row)
    return list(found.values())


def _score(row: dict[str, Any]) -> str:
    detail = f" {row['detail']}" if row["detail"] else ""
    return f"{_two(row['score'])} ({_two(row['null'])}){detail}"


def _two(value: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{value:.2f}".replace("-0.00", "0.00")


def _short(address: str) -> str:
    from intaglio.address import parse

    place = parse(address)
    return f"{place.layer}.{place.head}"


def _cost(check: dict[str, Any] | None) -> str:
    """What removing the strongest heads did to the loss, and removing random ones; in words where it is no evidence."""
    from intaglio.report.heads.seen import loosely_tested, verdict

    if check is None:
        return ""
    cost = f"{check['loss_nats']:.2f} to {check['ablated_nats']:.2f}"
    if not check["draws"]:
        return f"{cost}; no other heads to compare"
    spread = f"{check['random_low']:.2f} to {check['random_high']:.2f}"
    said = {"holds": "", "idle": ": no rise", "fails": ": some draw costs as much"}[str(verdict(check)).removeprefix("loose_")]
    return f"{cost}; {spread}{said}{' (no loss of its own)' if loosely_tested(check) else ''}"
