"""What is said while a run is measured.  [torch]"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from intaglio.errors import IntaglioError
from intaglio.measure.budget import Budget
from intaglio.measure.ranks import Ranks
from intaglio.model.layout import Layout
from intaglio.store.run import RunWriter


class Notices:
    """Warnings, each said by the first process alone; what a reader of the run must know stands in its manifest too."""

    def __init__(self, ranks: Ranks, writer: RunWriter) -> None:
        self.ranks, self.writer = ranks, writer
        self._said_mixed = self._said_changed = self._said_nonfinite = False

    def warn(self, text: str) -> None:
        if self.ranks.first:
            warnings.warn(f"intaglio: {text}", RuntimeWarning, stacklevel=4)

    def stopped(self, step: int, what: str) -> None:
        """A fault of the instrument."""
        text = f"measuring stopped at step {step}: {what}"
        self.warn(f"{text}; what was written is kept, training goes on")
        try:
            self.writer.write_manifest(fault=text, measured_steps=step)
        except IntaglioError:
            pass

    def ends(self, step: int, ends: list[dict[str, Any]]) -> None:
        """What went wrong in the other processes after the last meeting."""
        faults = [f"process {i}: {end['fault']}" for i, end in enumerate(ends) if "fault" in end]
        broken = [str(i) for i, end in enumerate(ends) if not end["whole"]]
        if faults:
            self.stopped(step, "; ".join(faults))
        elif broken:
            self.warn(f"process {', '.join(broken)} did not come to its block's end, so the run stays unfinished")

    def unmeasured(self, layout: Layout, names: list[str]) -> None:
        """Trained parameters that stand in no account but their own."""
        share = sum(layout.unmeasured[n].numel() for n in names) / layout.n_trainable
        shown = ", ".join(f"{n} ({layout.reasons[n]})" for n in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        self.warn(f"{share:.1%} of the trained parameters are not measured and stand under `unmeasured`: {shown}{more}")

    def headless(self, layout: Layout, lost: list[str], reason: str) -> None:
        """The head is used in a way that cannot be measured; `lost` are the parameters that leave the books."""
        if lost:
            self.unmeasured(layout, lost)
        else:
            self.warn(f"{reason}: losses per token are not known")
        self.writer.write_manifest(
            parameters_measured=layout.n_measured, coverage=layout.coverage, unmeasured=sorted(layout.unmeasured),
            unmeasured_reasons=dict(layout.reasons), headless=reason,
        )  # fmt: skip

    def changed(self, step: int, layout: Layout, foreign: set[int]) -> None:
        """Gradients reached the optimizer changed in another way than by a factor; said once."""
        tensors = {id(w.param) for w in layout.weights}
        if self._said_changed or not tensors & foreign:
            return
        self._said_changed = True
        n, all_of_them = len(tensors & foreign), len(tensors)
        self.warn(
            f"at step {step} the gradients of {n} of {all_of_them} measured tensors were changed coordinate by coordinate "
            "between backward and step (as clip_grad_value_ does), not by one factor: what this made of the step cannot be "
            "split among the examples and stands under `unmeasured`; losses, pushes, momentum and decay are measured "
            "(clip_grad_norm_ would leave the split)"
        )
        if "gradients_changed" not in self.writer.manifest:
            self.writer.write_manifest(gradients_changed={"step": step, "tensors": n, "of": all_of_them})

    def nonfinite(self, step: int) -> None:
        """A loss that is no number; said once, for it seldom becomes one again."""
        if self._said_nonfinite:
            return
        self._said_nonfinite = True
        self.warn(f"the loss or its gradient is no finite number at step {step}; the page will cover the steps before it")
        if "nonfinite" not in self.writer.manifest:
            self.writer.write_manifest(nonfinite={"step": step})

    def mixed(self) -> None:
        """Packed examples see each other; said once."""
        if not self._said_mixed:
            self._said_mixed = True
            text = "examples packed into one row attend to each other, so no push is one example's own"
            self.warn(f"{text}; pass use_cache=False and no mask")

    @contextmanager
    def giving_up(self, budget: Budget) -> Iterator[None]:
        """Whatever the memory budget gives up inside the block is said in a line: no warning, since it was asked for."""
        said = budget.reason
        yield
        if budget.reason != said:
            if self.ranks.first:
                print(f"intaglio: {budget.reason}")
            self.writer.write_manifest(memory=budget.as_dict())
