"""Laws of the lens that makes a model smaller: groups of heads, layers, coordinates, neurons, other models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from conftest import byte_tokenizer
from families import FAMILIES, family, ids
from intaglio.analyse.choice.architecture import broken_at, enough_from
from intaglio.choice import why
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.effects import all_parts, means_over, measure_effects, to_mean
from intaglio.measure.choice.lenses import Given, Peer, Skip, architecture
from intaglio.measure.choice.removal import Removal, run_narrow, run_removals
from intaglio.model.anatomy import matrix_of
from intaglio.model.proof import prove
from intaglio.report.choice.words import Words
from intaglio.report.texts import LANGUAGES
from intaglio.views import Trace
from lens_checks import check_named, check_said

TARGET, AGAINST = 5, 7
REFERENCE = ids(40, seed=9)[0].tolist()
ATTENTION = {"llama": "model.layers.{}.self_attn.o_proj", "gpt2": "transformer.h.{}.attn.c_proj",
             "gemma2": "model.layers.{}.self_attn.o_proj", "bloom": "transformer.h.{}.self_attention.dense"}  # fmt: skip


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def decision(name_or_model, length: int = 13) -> Decision:
    model = family(name_or_model) if isinstance(name_or_model, str) else name_or_model
    return Decision(prove(model), byte_tokenizer(), ids(length)[0].tolist(), TARGET, AGAINST)


def given(**more) -> Given:
    return Given("a prompt", REFERENCE, **more)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_it_measures_every_family_and_leaves_it_as_it_was(name):
    model = family(name)
    before, weights = model(ids()).logits, {k: v.clone() for k, v in model.state_dict().items()}
    seen, again = (architecture.measure(decision(model), given()) for _ in range(2))
    assert seen.numbers == again.numbers and seen.tables == again.tables
    Trace({}, {}, {"architecture": {"numbers": seen.numbers, "tables": seen.tables}}).to_json()  # finite JSON values only
    assert torch.equal(model(ids()).logits, before) and hooks(model) == 0
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert (seen.numbers["neurons"] is None) == (name == "gpt_oss")
    layers = seen.tables["layers"]
    last, cut = layers[-1], layers[-2]  # to leave the last layer out is to end before it
    assert last["difference_logits"] == pytest.approx(cut["exit_difference_logits"], abs=2e-4)
    assert last["exit_probability"] == pytest.approx(seen.numbers["probability"], rel=1e-4)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_group_of_heads_is_what_plain_hooks_replace(name):
    model = family(name)
    found, reference = decision(model), torch.tensor([REFERENCE])
    gone = {0: [1, 3], 2: [0]}
    outs = {i: model.get_submodule(ATTENTION[name].format(i)) for i in gone}
    means, handles = {}, []
    for i, out in outs.items():
        handles.append(out.register_forward_pre_hook(lambda m, a, i=i: means.__setitem__(i, a[0][0, 1:].mean(0))))
    model(reference)
    for handle in handles:
        handle.remove()
    size = 16 if name == "gemma2" else 12

    def replace(i):
        def hook(module, args):
            z = args[0].clone()
            for h in gone[i]:
                z[0, 1:, size * h : size * h + size] = means[i][size * h : size * h + size]
            return (z,)
        return hook

    handles = [out.register_forward_pre_hook(replace(i)) for i, out in outs.items()]
    wanted = model(ids()).logits[0, -1]
    for handle in handles:
        handle.remove()
    removal = Removal(heads=frozenset((i, h) for i, hs in gone.items() for h in hs))
    others = [Removal(heads=frozenset([(1, 2)])), removal, Removal(layers=frozenset([1]))]
    logits = run_removals(found.anatomy, found.base, others, means_over(found.anatomy, reference).z_LHd)
    torch.testing.assert_close(logits[1].float(), wanted, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(logits[1], found.logits_V, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_head_alone_is_its_measured_effect_and_nothing_gone_is_the_model(name):
    found = decision(name)
    means = means_over(found.anatomy, torch.tensor([REFERENCE]))
    parts = [a for a in all_parts(found.anatomy) if a.head is not None][::3]
    effects = measure_effects(found.anatomy, found.base, found.question, to_mean(found.anatomy, found.base, means, parts))
    alone = [Removal(heads=frozenset([(a.layer, a.head)])) for a in effects.addresses]
    logits = run_removals(found.anatomy, found.base, [*alone, Removal()], means.z_LHd)
    now = found.question.of(found.logits_V[None])[0]
    torch.testing.assert_close(now - found.question.of(logits[:-1]), effects.effect_C, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(logits[-1].float(), found.logits_V.float(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "olmo2", "gpt2", "granite"])
def test_a_layer_left_out_is_a_model_without_it(name):
    model = family(name)
    found = decision(model)
    logits = run_removals(found.anatomy, found.base, [Removal(layers=frozenset([1]))])[0].float()
    short = copy.deepcopy(model)
    layers = short.transformer.h if name == "gpt2" else short.model.layers
    del layers[1]
    torch.testing.assert_close(logits, short(ids(), use_cache=False).logits[0, -1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_a_narrowed_mlp_keeps_the_neurons_that_write_most(name):
    model = family(name)
    found = decision(model)

    def narrow(lengths, keep):
        def hook(module, args):
            x = args[0].clone()
            last = x.view(-1, x.shape[-1])[-1]
            last[(last.abs() * lengths).argsort(descending=True)[keep:]] = 0
            return (x,)
        return hook

    for keep, logits in zip((5, 96), run_narrow(found.anatomy, found.base, [5, 96])):
        blocks = [b.down for b in found.anatomy.blocks]
        handles = [d.register_forward_pre_hook(narrow(matrix_of(d).norm(dim=0), keep)) for d in blocks]
        wanted = model(ids()).logits[0, -1]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(logits.float(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_coordinates_are_taken_by_their_share_of_the_difference(name):
    model = family(name)
    found = decision(model)
    state = model(ids(), output_hidden_states=True).hidden_states[-1][0, -1]  # after the final norm
    weight = model.lm_head.weight
    order = (state * (weight[TARGET] - weight[AGAINST])).abs().argsort(descending=True)
    for row in (r for r in architecture.measure(found, given()).tables["width"] if r["order"] == "strong"):
        kept = torch.zeros_like(state)
        kept[order[: row["kept"]]] = state[order[: row["kept"]]]
        raw = model.lm_head(kept)
        cap = model.config.final_logit_softcapping if name == "gemma2" else None
        logits = torch.tanh(raw / cap) * cap if cap else raw * (model.logit_scale if name == "cohere" else 1)
        assert row["difference_logits"] == pytest.approx(float(logits[TARGET] - logits[AGAINST]), abs=1e-4)
        assert row["probability"] == pytest.approx(float(logits.softmax(-1)[TARGET]), rel=1e-3)


def test_orders_follow_the_size_of_the_effect_and_every_head_is_in_each():
    singles = {(0, 0): -3.0, (0, 1): 0.1, (1, 0): 1.0, (1, 1): -0.2}
    orders = architecture.orders_of(singles, 0)
    assert orders["weak"] == [(0, 1), (1, 1), (1, 0), (0, 0)] and orders["strong"] == orders["weak"][::-1]
    assert all(sorted(o) == sorted(singles) for o in orders.values()) and len(orders) == 2 + architecture.DRAWS
    assert orders == architecture.orders_of(singles, 0) and orders["random0"] != architecture.orders_of(singles, 1)["random0"]
    assert architecture.sizes_of(270, 4) == [1, 4, 16, 64, 270] and architecture.sizes_of(12, 2) == [1, 2, 4, 12]
    assert architecture.sizes_of(1, 2) == [1]
    many = {(i, h): float(i + h) for i in range(30) for h in range(9)}
    for ratio in architecture.RATIOS:  # the coarser, the cheaper; every order is run, one group holds all heads
        groups = architecture.groups_of(many, 0, ratio)
        assert {name for name, _ in groups} == {*orders, "all"} and len(groups[-1][1]) == 270
        assert all(len(set(group)) == len(group) for _, group in groups)
    assert [len(architecture.groups_of(many, 0, r)) for r in architecture.RATIOS] == [37, 14, 9]


def test_measured_effects_are_reused_and_sum_over_the_group():
    found = decision("llama")
    means = means_over(found.anatomy, torch.tensor([REFERENCE]))
    effects = measure_effects(found.anatomy, found.base, found.question,
                              to_mean(found.anatomy, found.base, means, all_parts(found.anatomy)))  # fmt: skip
    seen = architecture.measure(found, given(effects=effects, means=means))
    known = sorted((abs(e), e) for a, e in zip(effects.addresses, effects.effect_C.tolist()) if a.head is not None)
    rows = {(r["order"], r["removed"]): r for r in seen.tables["heads"]}
    assert seen.numbers["order_by"] == "measured"
    assert rows["strong", 2]["singles_logits"] == pytest.approx(known[-1][1] + known[-2][1])
    assert rows["weak", 4]["singles_logits"] == pytest.approx(sum(e for _, e in known[:4]))
    assert rows["strong", 1]["difference_logits"] == pytest.approx(seen.numbers["difference_logits"] - known[-1][1], abs=1e-4)
    fewer = architecture.measure(found, given()).numbers
    assert fewer["order_by"] == "estimated"


def test_where_a_choice_turns_is_read_from_the_rows():
    rows = [{"first_changed": c, "i": i} for i, c in enumerate((True, False, True, False, False))]
    assert broken_at(rows) == 0 and broken_at(rows[3:]) is None
    assert enough_from(rows)["i"] == 3 and enough_from(rows[:3]) is None


def test_several_models_stand_beside_each_other():
    found, other = decision("llama"), decision("gpt2")
    peers = [Peer("twin", decision("llama"), True), Peer("other", other, False)]
    own, twin, last = architecture.measure(found, given(peers=peers)).tables["models"]
    assert {k: v for k, v in own.items() if k != "name"} == {k: v for k, v in twin.items() if k != "name"}
    model = other.anatomy.model
    assert last["parameters"] == sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
    assert last["first_probability"] == pytest.approx(float(model(ids()).logits[0, -1].softmax(-1).max()), rel=1e-4)
    assert last["probability"] == pytest.approx(float(other.logits_V.softmax(-1)[TARGET]), rel=1e-6)  # the same bytes


def test_the_same_bytes_in_another_tokenizer():
    assert architecture.beginning(byte_tokenizer(), "да".encode()) == 145  # <D0>
    assert architecture.beginning(byte_tokenizer(), b"\xd0") is None and architecture.beginning(byte_tokenizer(), b"") is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_one_token_is_enough(name):
    seen = architecture.measure(decision(name, 1), given())
    assert seen.tables["heads"][-1]["difference_logits"] != seen.numbers["difference_logits"]


def test_without_a_reference_text_it_is_left_out():
    with pytest.raises(Skip, match="no_reference"):
        architecture.measure(decision("llama"), Given("a", []))


# toys, texts, pages


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    """A Cyrillic prompt in models that can do all, bypass the interface, or hold experts."""
    made = {}
    for name in ("llama", "bloom", "gpt_oss"):
        model, second = family(name), family("gpt2")
        for one in (model, second):
            one.resize_token_embeddings(261)
        versus = [(second, byte_tokenizer())] if name == "llama" else None
        made[name] = why((model, byte_tokenizer()), "Да «нет»", against=9, effects=name == "llama", versus=versus,
                         lenses=("architecture",))  # fmt: skip
    return made


def variants(trace: Trace) -> list[dict]:
    """The lens as measured and with numbers that lead to every other sentence."""
    found = [trace.lenses["architecture"]]

    def vary(turned: dict | None = None, table=None, **numbers):
        other = copy.deepcopy(found[0])
        other["numbers"] |= numbers
        for row in other["tables"]["heads"]:
            if turned is not None:
                row["first_changed"] = row["removed"] >= turned.get(row["order"], 1)
        if table is not None:
            table(other["tables"])
        found.append(other)

    vary({"weak": 4, "strong": 4})
    vary({"weak": 2})
    vary({name: 10**6 for name in ("weak", "strong", "random0", "random1", "random2", "all")})
    vary(order_by="estimated", neurons=None, exit=3)
    vary(exit=0)
    vary(exit=2)
    for sum_alone in (0.0, 1e6):
        vary(None, lambda t, s=sum_alone: [r.update(singles_logits=s) for r in t["heads"]])
    vary(None, lambda t: t["models"].clear())
    return found


def test_every_text_is_reached(traces):
    check_said("architecture", traces["llama"], variants(traces["llama"]))
    check_named("architecture")


def test_pages_render_in_both_languages(traces):
    for name, trace in traces.items():
        for lang in LANGUAGES:
            page, words = trace.to_html(lang=lang), Words(lang)
            assert str(words("architecture.title")) in page
            assert (str(words("architecture.figure.models.title")) in page) == (name == "llama")
            assert "{" not in "".join(part.split("</figcaption>")[0] for part in page.split("<figcaption>")[1:])
            assert words.skipped("architecture", {"reason": "no_reference"})
        assert len(trace.to_html()) < 500_000
