"""`intaglio taught`: which training texts and tokens wrote a head, before and during its birth."""

from __future__ import annotations

import json as as_json
import re
from pathlib import Path
from typing import Any

from intaglio.commands.options import check_files, check_options, explained
from intaglio.commands.replay import cell, parse_steps, threads_of
from intaglio.commands.summary import signed
from intaglio.errors import InputError

SHOWN_TOKENS = 6
TEACHERS_WITH_TOKENS = 5


@explained
def taught(
    run: Path,
    head: str,
    *,
    probe: str | None = None,
    role: str = "induction",
    window: str | None = None,
    top: int = 20,
    tokens: bool = True,
    leave_out: str | None = None,
    draws: int = 5,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Say which training texts taught a head its role: by credit, not by movement alone.

    A text's credit is the fall of the role's loss that its part of the steps predicts through this head's weights alone,
    summed over the window of the head's birth; beside it stand the same through the layer's other heads (null) and how far
    the text moved the head.

    Examples:

        intaglio taught runs/born L1.attn.H3

        intaglio taught runs/born 1.3 --window 400:500 --json teachers.json

        intaglio taught runs/born 1.3 --leave-out 10%

    Parameters
    ----------
    run
        Folder of a run with credits by part: of intaglio born, of train --credit-parts, or a replay.
    head
        A head, such as L1.attn.H3, or 1.3 for short.
    probe
        The probe whose loss is the role's (repeat, or the run's only one).
    role
        The role whose birth is looked for in the run's checkpoints.
    window
        A:B, steps from A up to B (B not included), in place of the head's birth.
    top
        Texts that are listed.
    tokens
        Replay the window for what was written through each token of the best five texts.
    leave_out
        Such as 10%: train again without so many of the best texts, and without as many random ones of the same groups.
    draws
        Random draws of --leave-out.
    seed
        Of redrawn texts and of the draws.
    json
        Write everything to this file.
    """
    from rich.console import Console

    from intaglio.address import parse_head
    from intaglio.analyse.heads.teachers import groups_of, share_of_top, teachers_of
    from intaglio.atlas import ROLES
    from intaglio.files import write_text
    from intaglio.store.run import open_run

    if top < 1 or draws < 1:
        raise InputError("--top and --draws count", got=min(top, draws), expected="1 or more")
    if role not in ROLES:
        raise InputError("no such role", got=role, expected=", ".join(ROLES))
    check_options(seed=seed)
    check_files(None, json)
    console, opened, address = Console(width=140), open_run(run), str(parse_head(head))
    share = _share(leave_out)
    name = probe or _only_probe(opened)
    (first, last), begun, said = _window(opened, address, role, window, console)
    teachers = teachers_of(opened, address, probe=name, window=(first, last))
    parts = [("before", first, begun), ("during", begun, last)] if begun is not None and first < begun else [("", first, last)]
    groups = [{"when": when, **row} for when, a, b in parts
              for row in groups_of(opened, address, probe=name, window=(a, b), seed=seed)]  # fmt: skip
    best = teachers[:top]
    found: dict[str, Any] = {
        "run": opened.name, "address": address, "probe": name, "window": [first, last], "begun": begun,
        "top_tenth_share": share_of_top(teachers), "examples": len(teachers), "teachers": best, "groups": groups,
    }  # fmt: skip
    title = f"\n  {address}, credited for the loss of the probe {name}, steps {first} to {last}{said}"
    console.print(title, highlight=False, markup=False)
    _print_teachers(found, console)
    _print_groups(groups, console)
    if tokens:
        found["teacher_tokens"] = _tokens(opened, best[:TEACHERS_WITH_TOKENS], address, (first, last), console)
    if share is not None:
        from intaglio.commands.leaving import leave_out_best

        found["leave_out"] = leave_out_best(opened, address, teachers, share, draws, seed, console)
    if json is not None:
        write_text(json, as_json.dumps(found, ensure_ascii=True, indent=1) + "\n")
        console.print(f"  written: {json}", highlight=False, markup=False, soft_wrap=True)


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if not found or not 0 < float(found[1]) <= 90:
        raise InputError("not a share of the texts", got=text, expected="such as 10%, up to 90%")
    return float(found[1]) / 100


def _only_probe(run: Any) -> str:
    from intaglio.history import ROLE_PROBE

    names = list(run.manifest.get("probes") or {})
    if ROLE_PROBE in names or len(names) == 1:
        return ROLE_PROBE if ROLE_PROBE in names else names[0]
    raise InputError("which probe's loss is the role's?", got=", ".join(names) or "a run without probes", expected="--probe NAME")


def _window(run: Any, address: str, role: str, text: str | None, console: Any) -> tuple[tuple[int, int], int | None, str]:
    """The steps to look at, the step at which the birth begins, and what is said of it."""
    if text is not None:
        return _recorded(parse_steps(text, run), text, run), None, ""
    if run.manifest.get("kind") == "replay":
        first, last = run.manifest["steps_replayed"]
        return (int(first), int(last)), None, " (all that were replayed)"
    from intaglio.analyse.heads.history import history_rows
    from intaglio.analyse.heads.teachers import birth_window
    from intaglio.commands.progress import bars
    from intaglio.history import series_of, states_of

    _, states, subject = states_of(run.final if run.complete else run.folder)
    with bars(console) as tell:
        series = series_of(subject, states, progress=lambda done: tell("checkpoints", done, len(states)))
    found = birth_window(history_rows(series.steps, series.sampled), address, role)
    words = role.replace("_", " ")
    return found.whole, found.begun, f": its birth as a head of {words} lies between {found.begun} and {found.end}"


def _recorded(window: tuple[int, int], text: str, run: Any) -> tuple[int, int]:
    """A window, if the run has visits of all its steps: sums over fewer steps than were asked for would look like theirs."""
    first, last = run.sql("select min(step), max(step) + 1 from visits").fetchall()[0]
    if first is None or not first <= window[0] < window[1] <= last:
        raise InputError(f"{run.name} has no such steps", got=f"--window {text}",
                         expected="a run with visits" if first is None else f"within {first}:{last}")  # fmt: skip
    return window


def _print_teachers(found: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    table = Table("", "credit in nats", "other heads", "moved it by", "visits", "group", "text", box=None, padding=(0, 1))
    for row in found["teachers"]:
        beyond = "" if row["null_high"] is None or row["credit_nats"] <= row["null_high"] else "*"
        null = "" if row["null_low"] is None else f"{signed(row['null_low'])} to {signed(row['null_high'])}"
        table.add_row(
            str(row["rank"] + 1), f"{signed(row['credit_nats'])}{beyond}", null, f"{row['movement']:.2e}", str(row["visits"]),
            cell(row["group"] or ""), cell(row["preview"] or ""),
        )  # fmt: skip
    console.print(table)
    share = found["top_tenth_share"]
    console.print(
        "  * more than the 95th percentile of its credit through the layer's other heads.\n"
        + ("" if share is None else f"  The best tenth of {found['examples']} texts gave {share:.0%} of all that taught."),
        style="dim", highlight=False,
    )  # fmt: skip


def _print_groups(groups: list[dict[str, Any]], console: Any) -> None:
    from rich.table import Table

    names = ("when", "group", "texts", "visits", "credit in nats", "of a visit (95 %)", "other heads", "moved it by")
    table = Table(*names, box=None, padding=(0, 1))
    for row in groups:
        other = "" if row["other_nats"] is None else signed(row["other_nats"])
        table.add_row(
            row["when"], cell(row["group"] or "all"), str(row["examples"]), str(row["visits"]), signed(row["credit_nats"]),
            f"{row['per_visit_nats']:+.1e} ({row['low']:+.1e} to {row['high']:+.1e})", other, f"{row['movement']:.3g}",
        )  # fmt: skip
    console.print(table)


def _tokens(
    run: Any, teachers: list[dict[str, Any]], address: str, window: tuple[int, int], console: Any
) -> list[dict[str, Any]]:
    """The tokens through which the best texts wrote the head; nothing where the run cannot be taken again."""
    from intaglio.errors import IntaglioError
    from intaglio.replaying import replay_tokens
    from intaglio.report.choice.words import visible

    try:
        with threads_of(run):
            rows = replay_tokens(run, teachers, {address: window})
    except IntaglioError as error:
        console.print(f"  tokens are not told: {error}", style="dim", highlight=False, markup=False)
        return []
    console.print("  what was written into it through tokens (their places from 0), in millionths:", highlight=False)
    for teacher in teachers:
        mine = sorted((r for r in rows if r["example"] == teacher["example"]), key=lambda r: -abs(r["shift"]))[:SHOWN_TOKENS]
        said = "  ".join(f"{r['position']} {visible(r['token'])} {signed(1e6 * r['shift'])}" for r in mine)
        console.print(f"  {teacher['rank'] + 1:>3}  {said}", highlight=False, markup=False)
    return rows
