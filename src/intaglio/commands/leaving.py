"""Training again without a head's best teachers: does its birth come later than without as many random texts?"""

from __future__ import annotations

import os
from typing import Any

MANY = 19  # draws that must all be beaten for the delay to be unlikely by chance (1 in 20)


def leave_out_best(
    run: Any, address: str, teachers: list[dict[str, Any]], share: float, draws: int, seed: int, console: Any
) -> dict[str, Any]:
    """Does the birth come later without the best texts than without as many random ones?"""
    from rich.table import Table

    from intaglio.commands.progress import bars
    from intaglio.retrain import drawn_like, side_by_side, watch_without

    groups = {row["example"]: row["group"] or "" for row in run.table("examples").select(["example", "group"]).to_pylist()}
    dropped = [row["example"] for row in teachers[: max(1, round(share * len(groups)))]]
    sets = [("all texts", []), (f"without the {len(dropped)} best", dropped)]
    sets += [(f"without {len(dropped)} random, draw {k + 1}", drawn_like(dropped, groups, seed + k)) for k in range(draws)]
    jobs = [(watch_without, (str(run.folder), name, some, seed)) for name, some in sets]
    with bars(console) as tell:
        watched = side_by_side(jobs, min(os.cpu_count() or 1, len(jobs)), lambda done: tell("training again", done, len(jobs)))
    below = (watched[0].losses[0] + watched[0].losses[-1]) / 2
    rows = [w.summary(below) | {"born": w.summary(below)["births"].get(address)} for w in watched]
    names = ("trained on", f"{address} born", "first of its role", f"loss under {below:.2f}", "last loss")
    table = Table(*names, box=None, padding=(0, 1))
    for row in rows:
        first = "never" if row["first_step"] is None else f"{row['first_step']} ({row['first_head']})"
        table.add_row(row["name"], _step(row["born"]), first, _step(row["loss_step"]), f"{row['last_loss_nats']:.3f}")
    console.print(table)
    said = delay_in_words(rows)
    console.print(f"  {said}", highlight=False)
    return {"dropped": len(dropped), "below_nats": below, "rows": rows, "said": said}


def _step(step: int | None) -> str:
    return "never" if step is None else str(step)


def delay_in_words(rows: list[dict[str, Any]]) -> str:
    """What leaving out the best did, beside what leaving out random ones did: by the step at which the loss falls.

    Args:
        rows: summaries of all texts, without the best, and then of each random draw.
    """
    known = [row["loss_step"] for row in rows]
    if known[0] is None or any(step is None for step in known[2:]):
        return "The loss does not fall in every training, so no delay can be told."
    null = sorted(step - known[0] for step in known[2:])
    random = f"without random ones {null[0]:+d} to {null[-1]:+d}"
    if known[1] is None:
        return f"Without the best the loss never falls; {random} steps from where it did."
    delay = known[1] - known[0]
    told = f"Without the best the loss falls {delay:+d} steps from where it did, {random}"
    later = sum(delay > n for n in null)
    if later == len(null) > MANY:
        return f"{told}: later than in all {later} draws."
    return f"{told}: later than in {later} of {len(null)} draws, which is no evidence that just they were needed."
