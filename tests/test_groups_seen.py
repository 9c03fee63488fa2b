"""What a group's verdict stands on: members that were seen again, and the credits that are known."""

import pytest
from tests.synthetic import World, write_run

from intaglio.analyse import analyse_run
from intaglio.store.run import RunWriter, open_run


def test_a_text_seen_once_has_no_fall_and_does_not_dilute_its_groups(tmp_path):
    """One epoch and a bit: `again` fell from 4 to 2 nats, `once` was met at 4 and never again."""
    writer = RunWriter(tmp_path / "run", {"probes": {"target": {"role": "target"}}})
    writer.append_rows("examples", [
        {"example": name, "row": [i], "group": "g", "fact": None, "tokens": 11, "targets": 10, "preview": name}
        for i, name in enumerate(("again", "once"))
    ])  # fmt: skip
    writer.append("visits", {"step": [0, 0, 1], "slot": [0, 1, 0], "rank": [0] * 3, "example": ["again", "once", "again"],
                             "targets": [10] * 3, "loss_nats": [4.0, 4.0, 2.0], "push_kind": ["token_sum"] * 3})  # fmt: skip
    writer.append_rows("probes", [{"step": s, "probe": "target", "loss_nats": x} for s, x in ((0, 4.0), (2, 2.0))])
    findings = analyse_run(open_run(writer.finish()))
    for group in findings.groups:
        assert (group.first_loss_nats, group.last_loss_nats) == (4.0, 2.0)
        assert group.evidence["own_fall"] == pytest.approx(0.5)
    assert findings.imitation_gap == pytest.approx(0.0)


def test_a_groups_cost_on_the_anchor_is_of_the_members_whose_credit_is_known(tmp_path):
    """Credits are measured at some steps only, so hardly any group has them for every member."""
    world = World(examples=40, epochs=2, noisy=(0, 2), anchor="rises", tokens=False)
    findings = analyse_run(open_run(write_run(tmp_path / "run", world)))
    known = [e.credits_nats["anchor"] for e in findings.examples if "anchor" in e.credits_nats]
    assert 0 < len(known) < len(findings.examples)
    assert findings.groups[0].evidence["anchor_cost"] == pytest.approx(-sum(known))
