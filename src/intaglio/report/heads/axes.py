"""Round values for an axis, and the frame of a drawing.  Pure SVG."""

from __future__ import annotations

import math

from markupsafe import Markup


def round_values(low: float, high: float) -> list[float]:
    """A few round values between two ends."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= 0.8 * rough)
    first = math.ceil(low / step)
    return [round((first + i) * step, 10) for i in range(1 + int((high - first * step) / step))]


def svg(kind: str, width: float, height: float, label: object, drawn: list[Markup]) -> Markup:
    """Drawn marks as one picture; `label` is for those who do not see it."""
    return Markup('<svg class="{}" viewBox="0 0 {:.0f} {:.0f}" role="group" aria-label="{}">{}</svg>').format(
        kind, width, height, label, Markup("").join(drawn)
    )
