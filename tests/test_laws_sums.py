"""Wholes are the sums of their parts: tokens, heads, addresses, groups."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from intaglio.errors import RecipeError
from intaglio.example import example_id
from intaglio.measure.ledger import Ledger, Source
from study import train
from tiny import PAD, build, micro, micro_packed, texts
from truth.gradients import token_losses
from truth.optimizers import Adam as TrueAdam
from truth.optimizers import Twin

ADAMW = dict(lr=3e-3, weight_decay=0.1, eps=1e-5)
STEPS = [
    [micro(texts((6, 9, 4), seed=1), side="left"), micro_packed([texts((5, 7), seed=2)])],
    [micro(texts((6, 9, 4), seed=3)), micro(texts((8,), seed=4))],
]
FAMILIES = ["gpt2", "llama_tied", "llama_bias", "gemma3", "phi3", "neox", "qwen3"]


@pytest.fixture(scope="module", params=FAMILIES)
def study(request, tmp_path_factory):
    model = build(request.param)
    found = train(model, AdamW(model.parameters(), **ADAMW), STEPS, tmp_path_factory.mktemp("run") / "run",
                  twin=Twin(lambda n: TrueAdam(**ADAMW, decoupled=True)))  # fmt: skip
    found.model, found.family = model, request.param
    return found


def by_visit(rows, column):
    total = defaultdict(float)
    for r in rows:
        total[r["step"], r["slot"]] += r[column] or 0.0
    return total


@pytest.mark.parametrize("table", ["tokens", "visit_parts"])
def test_shifts_of_tokens_and_of_parts_sum_to_the_visits(study, table):
    total = by_visit(study.rows(table), "shift")
    assert len(total) == 9
    for visit in study.rows("visits"):
        scale = study.truths[visit["step"]].update_l2
        assert total[visit["step"], visit["slot"]] == pytest.approx(visit["shift"], abs=2e-6 * scale)


def test_parts_sum_to_the_step(study):
    for row in study.rows("steps"):
        parts = study.rows("parts", step=row["step"])
        near = dict(abs=2e-6 * row["update_l2"])
        for name in ("data_shift", "carry_shift", "decay_shift"):
            assert sum(p[name] for p in parts) == pytest.approx(row[name], **near)
        assert sum(p["update_l2"] ** 2 for p in parts) == pytest.approx(row["update_l2"] ** 2, rel=1e-6)
        by_address = defaultdict(float)
        for r in study.rows("visit_parts", step=row["step"]):
            by_address[r["address"]] += r["shift"]
        for p in parts:
            assert by_address[p["address"]] == pytest.approx(p["data_shift"], **near)


def test_squared_pushes_of_parts_sum_to_the_push_but_for_the_tied_cross_term(study):
    squares = defaultdict(float)
    for r in study.rows("visit_parts"):
        squares[r["step"], r["slot"]] += r["push"] ** 2
    tied = study.run.manifest["tied_embeddings"]
    assert tied == (study.family in ("gpt2", "llama_tied", "gemma3"))
    gaps = [abs(squares[v["step"], v["slot"]] / v["push"] ** 2 - 1) for v in study.rows("visits")]
    assert max(gaps) > 1e-3 if tied else max(gaps) < 1e-5


def head_pieces(family, name, tensor, head):
    """(share, slice) pieces of one head in one parameter of layer 0, written out by hand per family."""
    heads, dim = 4, 8 if family in ("gemma3", "qwen3") else 6
    key_heads = {"gpt2": 4, "neox": 4, "llama_bias": 1}.get(family, 2)
    n, q = heads // key_heads, slice(head * dim, (head + 1) * dim)
    j = head // n
    k = slice(j * dim, (j + 1) * dim)
    if name.endswith("qkv_proj.weight"):
        a, b, c = tensor.split([heads * dim, key_heads * dim, key_heads * dim])
        return [(1.0, a[q]), (1.0 / n, b[k]), (1.0 / n, c[k])]
    if name.endswith("q_proj.weight"):
        return [(1.0, tensor[q])]
    if name.endswith(("k_proj.weight", "v_proj.weight")):
        return [(1.0 / n, tensor[k])]
    if name.endswith(("o_proj.weight", "attention.dense.weight")):
        return [(1.0, tensor[:, q])]
    if name.endswith("attn.c_proj.weight"):
        return [(1.0, tensor[q])]
    if name.endswith("c_attn.weight"):
        return [(1.0, part[:, q]) for part in tensor.split(24, dim=1)]
    if name.endswith("query_key_value.weight"):
        return [(1.0, tensor.view(heads, 3 * dim, -1)[head])]
    return []


@pytest.mark.parametrize("head", [0, 3])
def test_a_heads_rows_are_its_own(study, head):
    truth = study.truths[1]
    own = np.zeros(len(truth.shift))
    push2, update2, weights = np.zeros(len(truth.shift)), 0.0, 0
    for name, account in truth.accounts.items():
        if not any(f".{where}.0." in name for where in ("layers", "h")):
            continue
        along = head_pieces(study.family, name, truth.update[name], head)
        weights += bool(along)
        update2 += sum(s * float(u.square().sum()) for s, u in along)
        for i, part in enumerate(account.parts):
            mine = head_pieces(study.family, name, part, head)
            own[i] += sum(s * float((c * u).sum()) for (s, c), (_, u) in zip(mine, along))
            g = head_pieces(study.family, name, truth.gradients[i][name].double(), head)
            push2[i] += sum(s * float(x.square().sum()) for s, x in g)
    assert weights in (2, 4)
    rows = study.rows("visit_parts", step=1, address=f"L0.attn.H{head}")
    assert [r["shift"] for r in rows] == pytest.approx(own / truth.update_l2, abs=1e-4 * truth.update_l2)
    assert [r["push"] for r in rows] == pytest.approx(np.sqrt(push2), rel=1e-4)
    part = study.rows("parts", step=1, address=f"L0.attn.H{head}")[0]
    assert part["update_l2"] == pytest.approx(update2**0.5, rel=1e-4)


# -- tokens


def test_tokens_and_their_surprise_stand_at_their_own_positions(study):
    micros, fresh = STEPS[0], build(study.family)
    slot = 0
    for one in micros:
        for text in one.examples:
            rows = study.rows("tokens", step=0, slot=slot)
            assert [r["position"] for r in rows] == list(range(len(text.ids)))
            assert [r["token"] for r in rows] == list(text.ids)
            target = [y if l else None for y, l in zip(text.ids[1:], text.labels[1:])] + [None]
            assert [r["target"] for r in rows] == target
            surprise = [r["surprise_nats"] for r in rows if r["target"] is not None]
            assert surprise == pytest.approx(token_losses(fresh, text).tolist(), rel=1e-4, abs=1e-5)
            assert all(r["surprise_nats"] is None and r["entropy_nats"] is None for r in rows if r["target"] is None)
            visit = study.rows("visits", step=0, slot=slot)[0]
            assert visit["example"] == example_id(text.ids, text.labels)
            assert visit["targets"] == text.targets
            assert visit["loss_nats"] == pytest.approx(np.mean(surprise), rel=1e-5)
            slot += 1


def test_an_id_does_not_know_the_padding_and_duplicates_share_it(tmp_path):
    model, twice = build("llama_gqa"), texts((6, 9)) + texts((6,))
    steps = [[micro(twice, side=side, length=length)] for side, length in (("left", 9), ("right", 14))]
    study = train(model, SGD(model.parameters(), lr=0.0), [*steps, [micro_packed([twice])]], tmp_path / "run")
    ids = [[v["example"] for v in study.rows("visits", step=s)] for s in range(3)]
    assert ids[0] == ids[1] == ids[2]
    assert ids[0][0] == ids[0][2] != ids[0][1]
    assert len(study.rows("examples")) == 2
    assert PAD in study.rows("examples")[0]["token_ids"]


def test_a_tokens_shift_and_write_are_those_of_its_rank_one_terms(tmp_path):
    """Own hooks catch a and b; V is the plain SGD step's direction, so every term is written out."""
    model, one = build("llama_gqa"), micro(texts((6, 9, 4)))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    caught, lr = {}, 0.05
    names = {m: n for n, m in model.named_modules()}

    def keep(module, args, output):
        a = args[0].detach()
        output.register_hook(lambda b: caught.__setitem__(names[module], (a, b.detach())))

    handles = [m.register_forward_hook(keep) for m in names if list(m.parameters(recurse=False))]
    study = train(model, SGD(model.parameters(), lr=lr), [[one]], tmp_path / "run")
    for handle in handles:
        handle.remove()
    update = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    size = sum(float(u.double().square().sum()) for u in update.values()) ** 0.5
    shift, write2 = torch.zeros(3, 9), torch.zeros(3, 9)
    for name, (a, b) in caught.items():
        v = update[name + ".weight"]
        if "embed" in name:
            shift += -lr * (v[a] * b).sum(-1) / size
            write2 += b.square().sum(-1)
        elif "norm" in name:
            g = b * a * torch.rsqrt(a.square().mean(-1, keepdim=True) + 1e-6)
            shift += -lr * (g @ v) / size
            write2 += g.square().sum(-1)
        else:
            shift += -lr * torch.einsum("btq,qp,btp->bt", b, v, a) / size
            write2 += a.square().sum(-1) * b.square().sum(-1)
    for slot, text in enumerate(one.examples):
        n = len(text.ids)
        assert study.column("tokens", "shift", slot=slot) == pytest.approx(shift[slot, :n].numpy(), abs=1e-5 * size)
        assert study.column("tokens", "write", slot=slot) == pytest.approx(write2[slot, :n].sqrt().numpy(), rel=1e-4)


def test_keep_tokens_keeps_whole_examples(tmp_path):
    model, many = build("llama_gqa"), texts([5] * 24)
    study = train(model, SGD(model.parameters(), lr=0.1), [[micro(many)]], tmp_path / "run", keep_tokens=0.5)
    counts = defaultdict(int)
    for r in study.rows("tokens"):
        counts[r["slot"]] += 1
    assert set(counts.values()) == {5} and 4 < len(counts) < 20
    assert len(study.rows("visits")) == 24


# -- groups


GROUPED = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "sgd decay": lambda p: SGD(p, lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, **ADAMW),
    "adam l2": lambda p: Adam(p, **ADAMW),
    "amsgrad": lambda p: AdamW(p, **ADAMW, amsgrad=True, maximize=True),
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", GROUPED)
def test_carries_of_groups_sum_to_the_carry(name, begun, tmp_path):
    model, steps = build("llama_tied"), [[micro(texts((6, 9, 4), seed=s))] for s in range(5)]
    optimizer = GROUPED[name](model.parameters())
    if begun:  # momentum from before the ledger was opened belongs to no group of this run
        for one in steps[0]:
            model(**one.inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sources = {}
    for s in range(5):
        for i, e in enumerate(texts((6, 9, 4), seed=s)):
            sources[example_id(e.ids, e.labels)] = Source((i,), group=f"g{i}")
    study = train(model, optimizer, steps, tmp_path / "run", clip=1.0, group_momentum=True, sources=sources)
    for row in study.rows("steps"):
        carried = study.rows("group_carry", step=row["step"])
        assert {"g0", "g1", "g2"} <= {c["group"] for c in carried}
        total = sum(c["carry_shift"] for c in carried)
        assert total == pytest.approx(row["carry_shift"], abs=1e-4 * row["update_l2"])
    assert abs(row["carry_shift"]) > 0.1 * row["update_l2"]


@pytest.mark.parametrize("sources", [None, {}, {"x": Source((0,)), "y": Source((1,), "")}])
def test_momentum_is_not_split_by_groups_that_nobody_named(sources, tmp_path):
    model = build("llama_tied")
    with pytest.raises(RecipeError, match="`group` column, and this data has none"):
        Ledger(model, SGD(model.parameters(), lr=0.1), out=tmp_path / "run", group_momentum=True, sources=sources)
    assert not list(tmp_path.iterdir())
