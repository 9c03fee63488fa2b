"""What is seen of long work while it goes."""

from __future__ import annotations

import contextlib
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
    """A progress bar with loss, shift, agreement and what is left."""

    def __init__(self, console: Any, total: int, first: int) -> None:
        from rich import progress as rich
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        self.progress = rich.Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.task = self.progress.add_task("training", total=total, completed=first, said="")

    def __enter__(self) -> Progress:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def step(self, step: int, loss_nats: float, row: dict[str, Any]) -> None:
        said = f"loss {loss_nats:.3f}"
        if row.get("update_l2"):
            said += f"  shift {row['update_l2']:.3g} ({row['data_shift'] / row['update_l2']:.0%} from this step's data)"
        gg, s = row.get("agreement_gg"), row.get("agreement_s")
        if gg is not None and gg + s:
            said += f"  agreement {gg / (gg + s):.2f}"
        self.progress.update(self.task, completed=step, said=said)
