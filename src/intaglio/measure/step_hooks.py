"""Where an optimizer's step begins and ends, through its own hooks.  [torch]"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class StepHooks:
    """Calls `before` when the optimizer is about to move anything, and `after` once it has; until `remove`.

    Under step(closure) it is about to when the closure first returns. A subclass's step calls its parent's, with
    hooks of its own: only the outermost counts.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        self._before, self._after = before, after
        self._depth = 0  # steps under way: one, or two where a subclass's step calls its parent's
        self._handles = [
            optimizer.register_step_pre_hook(self._begins),
            optimizer.register_step_post_hook(self._ends),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def reset(self) -> None:
        """No step is under way: one that raised never ended."""
        self._depth = 0

    def _begins(self, optimizer: object, args: tuple, kwargs: dict) -> tuple | None:
        self._depth += 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._depth > 1 or closure is None:
            if self._depth == 1:
                self._before()
            return None
        waiting = [self._before]

        def measured_closure() -> Any:
            self._depth, depth = 0, self._depth
            found = closure()
            self._depth = depth
            if waiting:
                waiting.pop()()
            return found

        return args[:1], {**kwargs, "closure": measured_closure}

    def _ends(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._after()
