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

    for line in warnings_of(findings):
        console.print(f"\n{line}", style="bold", highlight=False, markup=False)
    if findings.closure_max is not None:
        state = "close" if findings.books_close else "do NOT close"
        if findings.books_close and findings.mostly_unmeasured:
            state = f"add up, but {_percent(findings.fresh_unmeasured)} of what is not momentum or decay is unmeasured"
        console.print(
            f"\nThe books {state}: worst step off by {findings.closure_max:.1e} (tolerance {findings.tolerance:.0e}); "
            f"{_percent(findings.coverage)} of the parameters measured, "
            + (
                f"{_percent(findings.data_share)} of the settled steps came from their own data."
                if findings.data_share is not None else "no step has settled yet."
            ),
            highlight=False,
        )
    table = Table(title="Movement by group (u = one millionth of the initial weights' length)", title_justify="left")
    for name in ("group", "examples", "|shift| in u", "per 1000 tokens", "nats learnt", "verdict"):
        table.add_column(name, justify="left" if name in ("group", "verdict") else "right")
    for group in findings.groups:
        table.add_row(
            group.group or "all", str(group.examples), _sum(group.shift_abs_u, findings),
            _sum(group.shift_abs_u_per_1000_tokens, findings), _number(group.learnt_nats.value), group.verdict,
        )  # fmt: skip
    console.print(table)
    for probe in findings.probes:
        console.print(
            f"probe {probe.probe}: loss {_number(probe.first_loss_nats)} -> {_number(probe.last_loss_nats)} nats/token, "
            f"KL from the start {_number(probe.kl_last_nats)}{_cost(probe)}",
            highlight=False,
        )


def _sum(interval: Any, findings: Any) -> str:
    """A sum over the run; with its 95 % interval where it was scaled up from the steps measured."""
    if findings.shift_scale <= 1.001 or interval.low is None:
        return _number(interval.value)
    return f"{_number(interval.value)} ({_number(interval.low)} to {_number(interval.high)})"


def _cost(probe: Any) -> str:
    """What measuring a probe took, and how much of the run that was."""
    if probe.seconds_each is None:
        return ""
    share = "" if probe.run_share is None else f", {_percent(probe.run_share)} of the run"
    return f"; measured {probe.measurements} times, {_number(probe.seconds_each)} s each{share}"


def warnings_of(findings: Any) -> list[str]:
    """What a reader must know before any number, as the page's notices say."""
    found = []
    if fault := findings.manifest.get("fault"):
        found.append(f"A fault of the instrument: {fault}. Everything below covers the steps before.")
    if findings.nonfinite_step is not None:
        found.append(f"The loss was no finite number at step {findings.nonfinite_step}: sums leave such steps out.")
    if findings.changed:
        found.append(
            f"Gradients were changed coordinate by coordinate before the step (first at step {findings.changed['step']}): "
            f"{_percent(findings.unmeasured_share)} of the steps cannot be split among the examples."
        )
    return found


def print_scan(run: Any, findings: Any, console: Any) -> None:
    """The rows of a scan that would push the model hardest, with their credit at each probe, and each probe's sum."""
    from rich.table import Table

    probes = sorted({p for e in findings.examples for p in e.credit_rates})
    table = Table(title="The ten rows that would push the model hardest", title_justify="left")
    table.add_column("text", min_width=20)
    for name in ("surprise", "push", "agreement\nwith the\nrest", *(f"{p}:\ncredit\n(cosine)" for p in probes)):
        table.add_column(name, justify="right", no_wrap=True)
    for e in findings.examples[:10]:
        table.add_row(
            e.preview[:40], _number(e.first_loss_nats), _number(e.push_mean), _cosine(e.alignment_mean),
            *(f"{signed(e.credit_rates.get(p))}\n({_cosine(e.credit_cosines.get(p))})" for p in probes),
        )  # fmt: skip
    console.print(table)
    if probes:
        console.print(
            "Surprise: nats per token. Credit: predicted fall of the probe's loss, nats per unit of parameter length moved "
            "along the row's own gradient; negative: learning the row costs the probe.",
            highlight=False,
        )
    for probe in probes:
        cosines = [e.credit_cosines[probe] for e in findings.examples if probe in e.credit_cosines]
        helping = sum(c > 0 for c in cosines)
        console.print(
            f"probe {probe}: a small plain step on one row would help it for {helping} of {len(cosines)} rows and harm it "
            f"for {len(cosines) - helping}; mean cosine {sum(cosines) / len(cosines):+.2f}",
            highlight=False, markup=False,
        )  # fmt: skip


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
    return f"{first} | {second}", signed(None if math.isnan(difference) else difference)


def _span(found: Any) -> str:
    if found.value is None:
        return "not measured"
    return signed(found.value) + (f" [{signed(found.low)}, {signed(found.high)}]" if found.low is not None else "")


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def signed(value: float | None) -> str:
    """Three significant digits with a sign, however small; 0 has none."""
    return "-" if value is None else f"{'+' if value > 0 else ''}{_number(value)}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.3g}"  # no minus before a zero


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
