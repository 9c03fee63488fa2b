"""What `intaglio heads` prints: each head once, in the order of evidence, no minus before a zero, checks in true words."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from intaglio.commands.heads import print_atlas
from intaglio.views import Atlas


def score(head: int, value: float, *, role: str = "retrieval", detail: str = "en", null: float = 0.0, named: bool = True) -> dict:
    return {"address": f"L0.attn.H{head}", "role": role, "detail": detail, "score": value, "null": null, "named": named}


def printed(scores: list[dict], checks: list[dict] = (), heads: list[dict] = (), events: list[dict] = ()) -> str:
    out = io.StringIO()
    rows = {"heads": list(heads), "scores": scores, "checks": list(checks), "events": list(events)}
    print_atlas(Atlas({"skipped": {"syntax": "no [b]treebank"}}, rows), Console(file=out, width=300))
    return out.getvalue()


def row_of(text: str, role: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(role)]
    return re.split(r"\s{2,}", line.strip())


def test_a_head_of_two_languages_is_printed_once_with_its_better_one():
    twice = [score(6, 0.9, detail="ru"), score(6, 1.0), score(3, 0.95), score(3, 0.5, detail="ru")]
    text = printed([*twice, score(1, 0.99, named=False)])
    assert row_of(text, "retrieval")[:3] == ["retrieval", "2", "0.6 1.00 (0.00) en, 0.3 0.95 (0.00) en"]


def test_no_minus_before_a_zero_and_more_evidence_first():
    text = printed([score(0, 0.28, role="name_mover", detail="", null=-0.004), score(1, -0.0, role="self", detail="", null=-0.5),
                    score(2, 0.8, role="coreference", null=0.7), score(3, 0.75, role="coreference", null=0.2)])  # fmt: skip
    assert row_of(text, "name mover")[2] == "0.0 0.28 (0.00)" and row_of(text, "self")[2] == "0.1 0.00 (-0.50)"
    assert row_of(text, "coreference")[2] == "0.3 0.75 (0.20) en, 0.2 0.80 (0.70) en"
    assert "-0.00" not in text


@pytest.mark.parametrize(("ablated", "holds", "draws", "said"), [
    (5.0, True, 5, "3.00 to 5.00; 2.50 to 4.00"), (3.5, False, 5, "3.00 to 3.50; 2.50 to 4.00: some draw costs as much"),
    (2.9, False, 5, "3.00 to 2.90; 2.50 to 4.00: no rise"), (5.0, None, 0, "3.00 to 5.00; no other heads to compare"),
])  # fmt: skip
def test_a_check_says_what_happened(ablated, holds, draws, said):
    spread = {"random_nats": 3.2, "random_low": 2.5, "random_high": 4.0} if draws else dict.fromkeys(
        ("random_nats", "random_low", "random_high"))  # fmt: skip
    check = {"role": "self", "loss_nats": 3.0, "ablated_nats": ablated, **spread, "draws": draws, "holds": holds}
    for task, more in (("second copy", ""), ("ordinary text (no loss is known that this role alone should carry)",
                                             " (no loss of its own)" if draws else "")):  # fmt: skip
        text = printed([score(0, 0.5, role="self", detail="")], [check | {"task": task}])
        assert row_of(text, "self")[3] == said + more


def test_a_card_in_a_notebook_has_no_minus_before_a_zero_and_the_furthest_beyond_first():
    scores = [score(0, 0.8, role="coreference", null=0.7), score(0, 0.28, role="self", detail="", null=-0.0004)]
    heads = [{"address": "L0.attn.H0", "role": "self"}]
    card = Atlas({"n_layers": 1, "n_heads": 1}, {"heads": heads, "scores": scores})["0.0"]
    cells = re.findall(r"<td>([^<]*)</td>", card._repr_html_())
    assert cells == ["self ", "0.280", "0.000", "named", "coreference en", "0.800", "0.700", "named"]


def test_heads_are_counted_and_what_was_not_measured_is_said():
    roles = [["induction", "first_token"], ["first_token"], ["first_token"], [], [], []]
    heads = [{"address": f"L0.attn.H{i}", "role": r[0] if r else "unresolved", "roles": r} for i, r in enumerate(roles)]
    event = {"event": "handover", "role": "first_token", "address": "L0.attn.H1", "other": "L0.attn.H2", "after_step": 900,
             "step": 1000}  # fmt: skip
    text = printed([], heads=heads, events=[event])
    assert "6 heads: 1 with a role, 2 that only rest on the first token, 3 unresolved" in text
    assert "handover of first token: 0.1 to 0.2, between steps 900 and 1,000" in text
    assert "not measured: syntax (no [b]treebank)" in text
