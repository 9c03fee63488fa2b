"""What a role's heads are worth: removed together, against random heads of the same layers."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, family
from intaglio.address import Address, parse
from intaglio.measure.choice.effects import Means, means_over, to_mean
from intaglio.measure.choice.runs import run_changes
from intaglio.measure.heads.causal import check_role, loss_of, random_groups, removed, shortened
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.losses import basic_losses
from intaglio.measure.heads.repeats import repeats
from intaglio.model.capture import capture
from intaglio.model.proof import prove
from planted_heads import planted_model


@pytest.fixture(scope="module")
def planted():
    return prove(planted_model())


@pytest.fixture(scope="module")
def losses(planted):
    plain = [torch.randint(1, 40, (30,), generator=torch.Generator().manual_seed(9)).tolist()]
    return {one.role: one for one in basic_losses(planted, repeats(planted, seed=1, length=20), plain)}


@pytest.fixture(scope="module")
def z_LHd(planted):
    ids = torch.randint(1, 40, (1, 40), generator=torch.Generator().manual_seed(3))
    return means_over(planted, ids).z_LHd


def test_without_its_induction_head_a_model_cannot_repeat(planted, losses, z_LHd):
    row = check_role(planted, ["L1.attn.H0"], losses["induction"], z_LHd, draws=5)
    assert row["loss_nats"] < 0.1
    assert row["ablated_nats"] > 3
    assert row["random_high"] < 0.1
    assert row["holds"] and row["draws"] == 5 and row["task"] == "second copy of random tokens"


def test_without_the_head_that_feeds_it_neither(planted, losses, z_LHd):
    row = check_role(planted, ["L0.attn.H0"], losses["previous_token"], z_LHd, draws=5)
    assert row["holds"] and row["ablated_nats"] > 3 and row["random_high"] < 0.1


def test_a_head_that_carries_nothing_does_not_hold(planted, losses, z_LHd):
    row = check_role(planted, ["L0.attn.H4"], losses["self"], z_LHd, draws=5)
    assert row["holds"] is False
    assert row["ablated_nats"] == pytest.approx(row["loss_nats"])


def test_only_the_second_copy_counts_and_not_its_first_token(planted, losses):
    ((ids, mask),) = losses["induction"].batches
    assert mask.sum(1).tolist() == [19] * len(ids)
    assert not mask[:, :22].any()


def test_the_loss_is_the_models_own():
    anatomy = prove(family("llama"))
    ids = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        wanted = anatomy.model(ids, labels=ids).loss
    assert loss_of(anatomy, RoleLoss("self", "", [(ids[:1], mask[:1]), (ids[1:], mask[1:])])) == pytest.approx(float(wanted))


@pytest.mark.parametrize("name", ["granite", "gemma2", "gpt2", "opt"])
def test_logits_of_every_family_are_shaped_as_it_shapes_them(name):
    anatomy = prove(family(name))
    ids = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = anatomy.model(ids).logits[:, :-1]
    wanted = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    assert loss_of(anatomy, RoleLoss("self", "", [(ids, torch.ones_like(ids) > 0)])) == pytest.approx(float(wanted), rel=1e-4)


def test_a_loss_is_shortened_by_whole_texts():
    ids, mask = torch.zeros(6, 10, dtype=torch.long), torch.ones(6, 10, dtype=torch.bool)
    loss = RoleLoss("self", "", [(ids, mask), (ids, mask)])
    assert [len(b[0]) for b in shortened(loss, 45).batches] == [4]
    assert [len(b[0]) for b in shortened(loss, 75).batches] == [6, 1]
    assert [len(b[0]) for b in shortened(loss, 3).batches] == [1]
    assert [len(b[0]) for b in shortened(loss, 999).batches] == [6, 6]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_removed_head_is_one_replaced_by_its_mean(name):
    """The same as the choice study's replacing, in every family."""
    anatomy = prove(family(name))
    ids = torch.randint(3, 97, (1, 9), generator=torch.Generator().manual_seed(0))
    base = capture(anatomy, ids)
    means: Means = means_over(anatomy, torch.randint(3, 97, (1, 12), generator=torch.Generator().manual_seed(1)))
    head = Address("attn", 1, head=2)
    ((_, ended),) = run_changes(anatomy, base, to_mean(anatomy, base, means, [head]), way="naive")
    with torch.no_grad(), removed(anatomy, [head], means.z_LHd):
        logits = anatomy.model(ids).logits[:, -1]
    assert torch.allclose(logits, ended.logits_BV, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(anatomy.model(ids).logits, base.logits_BTV, atol=1e-4)  # and it is back


def test_hooks_go_also_when_something_breaks(planted, z_LHd):
    with pytest.raises(ZeroDivisionError), removed(planted, [Address("attn", 0, head=1)], z_LHd):
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in planted.model.modules())


def test_random_groups_have_as_many_heads_in_each_layer_and_none_with_the_role(planted):
    role = [parse(a) for a in ("L0.attn.H0", "L0.attn.H2", "L1.attn.H5")]
    groups = random_groups(planted, role, draws=12, seed=0, without=[parse("L1.attn.H0")])
    assert len(set(groups)) == 12
    for group in groups:
        assert [a.layer for a in group] == [0, 0, 1]
        assert not set(group) & {*role, parse("L1.attn.H0")}
    assert groups == random_groups(planted, role, draws=12, seed=0, without=[parse("L1.attn.H0")])
    assert groups != random_groups(planted, role, draws=12, seed=1, without=[parse("L1.attn.H0")])


def test_fewer_groups_where_there_are_no_more(planted, losses, z_LHd):
    role = [f"L1.attn.H{h}" for h in range(4)]
    assert len(random_groups(planted, [parse("L1.attn.H0")], draws=9, seed=0)) == 5
    assert random_groups(planted, [parse(a) for a in role], draws=9, seed=0) == []
    row = check_role(planted, role, losses["induction"], z_LHd)
    assert row["draws"] == 0 and row["holds"] is None and row["random_nats"] is None


@pytest.mark.real
def test_smollm2_repeats_by_its_induction_heads(smollm2_anatomy):
    """Known: without the top five the second copy's loss goes from 3.34 to 11.83, without five random heads to 3.55."""
    from intaglio.looking import plain_texts
    from intaglio.model.subject import load_tokenizer

    torch.manual_seed(0)
    copies = torch.randint(0, 49152, (4, 50))
    ids = torch.cat([torch.ones(4, 1, dtype=torch.long), copies, copies], 1)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 51:] = True
    text = torch.tensor([plain_texts(load_tokenizer("smollm2"))[0]])
    heads = ["L18.attn.H6", "L17.attn.H3", "L17.attn.H4", "L17.attn.H5", "L18.attn.H7"]
    row = check_role(smollm2_anatomy, heads, RoleLoss("induction", "", [(ids, mask)]), means_over(smollm2_anatomy, text).z_LHd,
                     draws=1, without=["L18.attn.H8"])  # fmt: skip
    assert row["loss_nats"] == pytest.approx(3.34, abs=0.2)
    assert row["ablated_nats"] == pytest.approx(11.83, abs=0.5)
    assert row["random_high"] < 6
    assert row["holds"]
