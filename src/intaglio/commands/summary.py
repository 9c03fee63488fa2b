"""What a run ends with: its page, a few lines in the terminal, and the page's path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intaglio.analyse.pairs import mean_difference


def conclude(out: Path, show: Callable[[Any, Any, Any], None], console: Any, *, lang: str) -> None:
    """Write a finished run's page, show it in short, and print the page's path as the last line.

    Args:
        show: called with the run, its findings and the console.
    """
    from intaglio.commands.report import write_report
    from intaglio.store.run import open_run

    run = open_run(out)
    findings, path = write_report(run, lang=lang)
    show(run, findings, console)
    print(path)


def print_summary(run: Any, findings: Any, console: Any) -> None:
    """Books, movement by group and probes, as one small table each."""
    from rich.table import Table

    if findings.closure_max is not None:
        state = "close" if findings.books_close else "do NOT close"
        console.print(
            f"\nThe books {state}: worst step off by {findings.closure_max:.1e} (tolerance {findings.tolerance:.0e}); "
            f"{_percent(findings.coverage)} of the parameters measured, "
            f"{_percent(findings.data_share)} of the settled steps came from their own data.",
            highlight=False,
        )
    table = Table(title="Movement by group (u = one millionth of the initial weights' length)", title_justify="left")
    for name in ("group", "examples", "|shift| in u", "per 1000 tokens", "nats learnt", "verdict"):
        table.add_column(name, justify="left" if name in ("group", "verdict") else "right")
    for group in findings.groups:
        table.add_row(
            group.group or "all", str(group.examples), _number(group.shift_abs_u.value),
            _number(group.shift_abs_u_per_1000_tokens.value), _number(group.learnt_nats.value), group.verdict,
        )  # fmt: skip
    console.print(table)
    for probe in findings.probes:
        console.print(
            f"probe {probe.probe}: loss {_number(probe.first_loss_nats)} -> {_number(probe.last_loss_nats)} nats/token, "
            f"KL from the start {_number(probe.kl_last_nats)}{_cost(probe)}",
            highlight=False,
        )


def _cost(probe: Any) -> str:
    """What measuring a probe took, and how much of the run that was."""
    if probe.seconds_each is None:
        return ""
    share = "" if probe.run_share is None else f", {_percent(probe.run_share)} of the run"
    return f"; measured {probe.measurements} times, {_number(probe.seconds_each)} s each{share}"


def print_hardest(run: Any, findings: Any, console: Any) -> None:
    """The rows of a scan that would push the model hardest."""
    from rich.table import Table

    rows = run.sql(
        """select e.preview, s.loss_nats, s.push, s.alignment
           from scans s join examples e using (example) order by s.push desc limit 10"""
    ).fetchall()
    table = Table(title="The ten rows that would push the model hardest", title_justify="left")
    for name in ("text", "surprise, nats/token", "push", "agreement with the rest"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for preview, loss, push, alignment in rows:
        table.add_row(preview[:60], f"{loss:.2f}", f"{push:.3g}", "-" if alignment is None else f"{alignment:+.2f}")
    console.print(table)


def print_pairs(pairs: Sequence[Any], console: Any) -> None:
    """Leap and bridge of each fact, and the mean difference within the facts with its interval."""
    from rich.table import Table

    table = Table(title="Each fact with itself: leap | bridge", title_justify="left")
    for name in ("fact", "|shift| in u per 1000 tokens", "difference", "fall in other words, nats/token", "difference"):
        table.add_column(name, justify="left" if name == "fact" else "right")
    for pair in pairs:
        table.add_row(pair.fact, *_both(pair, "moved_u"), *_both(pair, "fell_nats"))
    console.print(table)
    languages = sorted({pair.fact.partition("-")[0] for pair in pairs})
    for name in ("", *(languages if len(languages) > 1 else ())):
        mine = [pair for pair in pairs if pair.fact.startswith(name)]
        moved, fell = (_span(mean_difference(mine, measure)) for measure in ("moved_u", "fell_nats"))
        console.print(
            f"leap less bridge, mean of {len(mine)} facts{f' ({name})' if name else ''}: movement {moved} u per 1000 tokens, "
            f"fall in other words {fell} nats/token",
            highlight=False, markup=False,
        )  # fmt: skip
    console.print(
        "In brackets: 95 % paired bootstrap over the facts. An interval that holds 0 shows no difference. Facts of one "
        "run share a model: repeat with other seeds.",
        highlight=False, markup=False,
    )  # fmt: skip


def _both(pair: Any, measure: str) -> tuple[str, str]:
    first, second = (_number(getattr(way, measure)) for way in pair.ways)
    difference = pair.difference(measure)
    return f"{first} | {second}", _signed(None if math.isnan(difference) else difference)


def _span(found: Any) -> str:
    if found.value is None:
        return "not measured"
    return _signed(found.value) + (f" [{_signed(found.low)}, {_signed(found.high)}]" if found.low is not None else "")


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{'+' if value > 0 else ''}{_number(value)}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
