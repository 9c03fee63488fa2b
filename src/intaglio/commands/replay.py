"""`intaglio replay`: probes invented after training are answered by the training itself, taken again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intaglio.commands.options import Probes, Several, explained
from intaglio.commands.summary import signed
from intaglio.errors import InputError


@explained
def replay(
    run: Path,
    *,
    probe: Probes = None,
    steps: str | None = None,
    out: Path | None = None,
    probe_every: int = 1,
    tokens: Several = None,
    max_tokens: int | None = None,
    truncate: bool = False,
    force: bool = False,
) -> None:
    """Train a finished run again, the same to the bit, with probes that were invented since.

    What comes out is a run of its own, with credits by part of the model, in RUN/replays/NAME. The replayed losses and weights
    are held against the recorded ones, and said to be equal to the bit, or by how much they are off.

    Examples:

        intaglio replay runs/mine --probe new.jsonl

        intaglio replay runs/born --probe short=short.jsonl --steps 400:500

        intaglio query runs/born/replays/short "select * from credits order by credit_nats desc limit 10"

    Parameters
    ----------
    run
        Folder of a run of intaglio train, steps or born.
    probe
        FILE or NAME=FILE, a set of texts to watch; may be given again.
    steps
        A:B, only the steps from A up to B (B not included); those before are trained through without measuring,
        from the newest kept state that has the optimizer's moments.
    out
        Folder of the replay (RUN/replays/NAME, by the first probe's name).
    probe_every
        Steps between measurements of the probes.
    tokens
        A head, such as L1.attn.H3 or 1.3, of which the shift through every token is kept; may be given again.
    force
        Replace an existing replay.
    """
    from rich.console import Console

    from intaglio.address import parse_head
    from intaglio.commands import prepare as ready
    from intaglio.replaying import open_replay, replay_measured
    from intaglio.store.run import open_run

    if not probe and not tokens:
        raise InputError("nothing to ask of the replay", expected="--probe FILE, or --tokens HEAD")
    if probe_every < 1:
        raise InputError("--probe-every counts steps", got=probe_every, expected="1 or more")
    console, given = Console(stderr=True), named_probes(probe or [])
    opened = open_run(run)
    first, last = parse_steps(steps, opened)
    tokens = [str(parse_head(one)) for one in tokens or ()]
    folder = out or opened.folder / "replays" / (next(iter(given), None) or "tokens")
    if opened.folder.resolve().is_relative_to(folder.resolve()):
        raise InputError("a replay cannot take the place of its run", got=str(folder), expected="another folder")
    ready.begin(folder, plan=False, force=force, resume=False)
    with threads_of(opened):
        found = open_replay(opened, first=first, last=last)
        limit = ready.token_limit(found.subject.context_tokens, max_tokens)
        probes = ready.read_probes(given, found.subject.tokenizer, max_tokens=limit, truncate=truncate)
        sameness = _with_bar(console, last - found.step, lambda tell: replay_measured(
            found, folder, first=first, last=last, force=force, progress=tell, probes=probes, probe_every=probe_every,
            credit_parts=bool(probes), token_parts=tokens, keep_tokens=1.0,
        ))  # fmt: skip
    console.print(f"\n  steps {first} to {last} of {opened.name} again: {sameness.line()}", highlight=False, markup=False)
    _show(open_run(folder), list(probes), console)
    print(folder)


def cell(text: str, most: int = 60) -> str:
    """Foreign text for a table in the terminal: no markup, no signs that steer the terminal."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else f"⟨{ord(c):04X}⟩" for c in text[:most]))


def named_probes(specs: list[str]) -> dict[str, str]:
    """Probes as NAME=FILE, or FILE alone, which is named by the file.

    Raises:
        InputError: not a probe, or two of one name.
    """
    from intaglio.commands.prepare import parse_probes

    return parse_probes([spec if "=" in spec else f"{Path(spec).stem}={spec}" for spec in specs])


def parse_steps(text: str | None, run: Any) -> tuple[int, int]:
    """(first, one past the last) of "A:B"; all steps of the run if None."""
    last = int((run.manifest.get("recipe") or {}).get("steps", 0))
    if text is None:
        return 0, max(last, 1)
    a, colon, b = text.partition(":")
    digits = all(re.fullmatch(r"\d{1,15}", x, re.ASCII) for x in (a, b))
    if not colon or not digits or not int(a) < int(b):
        raise InputError("not a range of steps", got=text, expected="A:B with A below B, such as 400:500")
    return int(a), int(b)


@contextlib.contextmanager
def threads_of(run: Any) -> Iterator[None]:
    """As many threads as the run had: sums of floats depend on how they are shared out."""
    import torch

    mine = torch.get_num_threads()
    try:
        torch.set_num_threads(int((run.manifest.get("hardware") or {}).get("threads", mine)))
        yield
    finally:
        torch.set_num_threads(mine)


def _with_bar(console: Any, total: int, work: Any) -> Any:
    from intaglio.commands.progress import bars

    done = [0]

    def one(_step: int) -> None:
        done[0] += 1
        tell("replaying", done[0], total)

    with bars(console) as tell:
        return work(one)


def _show(run: Any, probes: list[str], console: Any) -> None:
    """What each group of texts did to each probe, in short."""
    from rich.table import Table

    if not probes:
        return
    rows = run.sql("""
        select probe, coalesce("group", '') as grp, count(*) as visits, sum(credit_nats) as credit from credits
        left join examples using (example) group by all order by probe, credit desc""").fetchall()
    table = Table("probe", "group", "visits", "credit in nats", box=None, padding=(0, 2))
    for name, group, visits, credit in rows:
        table.add_row(cell(name), cell(group or "all"), str(visits), signed(credit))
    console.print(table)
