"""The few lines a run ends with in the terminal."""

from __future__ import annotations

from typing import Any


def print_summary(findings: Any, console: Any) -> None:
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
            f"KL from the start {_number(probe.kl_last_nats)}",
            highlight=False,
        )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
