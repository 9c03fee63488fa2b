"""Where in the model, for both runs on the same scales."""

from __future__ import annotations

import math
from typing import Any

from intaglio.report.charts import parts as charts
from intaglio.report.compare.two import Two
from intaglio.report.shift.places import with_scale


def places(two: Two) -> dict[str, Any]:
    """Layers and heads of both; where the model is the same, also which heads had a larger share in which run."""
    a, b = two.views
    drawn = charts.head_differences(a, b) if two.same_subject else None
    return {
        "layers": with_scale(a, charts.layers_by_steps(a, b)),
        "heads": with_scale(a, charts.heads(a, b)),
        "heads_by_steps": with_scale(a, charts.heads_by_steps(a, b)),
        "differences": {"chart": drawn[0], "top": two.n.percent(math.expm1(drawn[1]))} if drawn else None,
        "groups": with_scale(a, charts.groups_by_layers(a, b), percent=True) if two.group_names else None,
        "foreign": not two.same_subject,
        "missing": two.missing(lambda v: v.findings.layer_series, "compare.no_parts"),
    }
