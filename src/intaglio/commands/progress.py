"""What is seen of long work while it goes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def bars(console: Any) -> Iterator[Callable[[str, int, int], None]]:
    """A function to be told (what, done, total): one bar for every what, gone at the end."""
    from rich.progress import Progress as Bars

    with Bars(console=console, transient=True) as shown:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total)
            shown.update(tasks[what], completed=done)

        yield tell


class Progress:
    """A bar with the steps done and the time left, and below it loss, shift and agreement.

    Two lines, because a terminal of 80 columns would cut the end off one.
    """

    def __init__(self, console: Any, total: int, first: int) -> None:
        from rich import progress as rich
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

        self.progress = rich.Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self.task = self.progress.add_task("training", total=total, completed=first)
        self.said = Text(overflow="fold")
        self.live = Live(Group(self.progress, self.said), console=console)

    def __enter__(self) -> Progress:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        if not self.live.console.is_interactive:
            self.live.console.print()  # ends the line, which a live display does in a terminal alone

    def step(self, step: int, loss_nats: float, row: dict[str, Any]) -> None:
        said = [f"loss {loss_nats:.3f}"]
        share = row["data_shift"] / row["update_l2"] if row.get("update_l2") else None
        if share is not None and math.isfinite(share):
            said.append(f"shift {row['update_l2']:.3g} ({share:.0%} from this step's data)")
        gg, s = row.get("agreement_gg"), row.get("agreement_s")
        if gg is not None and gg + s and math.isfinite(gg + s):
            said.append(f"agreement {gg / (gg + s):.2f}")
        self.said.plain = "  ".join(said)
        self.progress.update(self.task, completed=step)
