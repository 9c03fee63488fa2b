"""Push is the length of a separate backward pass per example, whatever shares the batch with it."""

import contextlib

import pytest
import torch

from intaglio.measure import writes
from study import train
from tiny import BUILDERS, Micro, build, micro, micro_packed, texts
from truth.gradients import example_gradient, length

RTOL = 1e-5


def _push(model, micros, out, **how):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return train(model, optimizer, [micros], out, level="norms", **how)


def _truth(model, examples):
    return [length(example_gradient(model, e)) for e in examples]


@pytest.mark.parametrize("family", BUILDERS)
def test_push_equals_a_separate_backward(family, tmp_path):
    model, examples = build(family), texts()
    study = _push(model, [micro(examples)], tmp_path / "run")
    visits = study.rows("visits")
    assert [v["push"] for v in visits] == pytest.approx(_truth(model, examples), rel=RTOL)
    assert {v["push_kind"] for v in visits} == {"token_sum"}
    assert study.rows("steps")[0]["gradient_match"] < 1e-5
    assert study.run.manifest["coverage"] == 1.0


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma3", "phi3", "neox", "qwen3"])
@pytest.mark.parametrize("how", ["left", "packed", "longer", "reversed", "alone", "accumulated"])
def test_push_does_not_depend_on_the_batch(family, how, tmp_path):
    model, examples = build(family), texts((7, 12, 4, 9))
    arrangements = {
        "left": [micro(examples, side="left")],
        "packed": [micro_packed([[*examples]])],
        "longer": [micro(examples, length=20)],
        "reversed": [micro(examples[::-1])],
        "alone": [micro([e]) for e in examples],
        "accumulated": [micro(examples[:1]), micro(examples[1:])],
    }
    micros = arrangements[how]
    study = _push(model, micros, tmp_path / "run")
    order = [e for m in micros for e in m.examples]
    assert study.column("visits", "push") == pytest.approx(_truth(model, order), rel=RTOL)


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
@pytest.mark.parametrize("width", [2, 4])
def test_norms_of_heads_are_summed_over_heads_when_positions_are_as_many(family, width, tmp_path):
    """Four heads (two of them shared) and four or two positions: the axes cannot be told apart by size."""
    model, examples = build(family), texts((width,) * 4)
    study = _push(model, [micro(examples)], tmp_path / "run")
    assert study.column("visits", "push") == pytest.approx(_truth(model, examples), rel=RTOL)
    assert study.rows("steps")[0]["gradient_match"] < 1e-5


def _summed(model, one, n):
    logits = model(**{k: v for k, v in one.inputs.items() if k != "labels"}, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), one.inputs["labels"][:, 1:].flatten(), reduction="sum"
    )


def _per_example_mean(model, one, n):
    logits = model(**{k: v for k, v in one.inputs.items() if k != "labels"}, use_cache=False).logits
    target = one.inputs["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].mT, target, reduction="none")
    return (losses.sum(1) / (target != -100).sum(1)).mean() * 3.0


def _negative(model, one, n):
    return -_summed(model, one, n)


@pytest.mark.parametrize("loss", [_summed, _per_example_mean, _negative])
@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
def test_push_does_not_depend_on_the_reduction(family, loss, tmp_path):
    model, examples = build(family), texts()
    study = _push(model, [micro(examples)], tmp_path / "run", loss=loss)
    assert study.column("visits", "push") == pytest.approx(_truth(model, examples), rel=RTOL)
    assert {v["push_kind"] for v in study.rows("visits")} == {"token_sum"}


def test_a_loss_that_weighs_tokens_differently_is_flagged(tmp_path):
    def smoothed(model, one, n):
        logits = model(**{k: v for k, v in one.inputs.items() if k != "labels"}, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), one.inputs["labels"][:, 1:].flatten(), label_smoothing=0.3
        )

    model, examples = build("llama_gqa"), texts()
    study = _push(model, [micro(examples)], tmp_path / "run", loss=smoothed)
    assert {v["push_kind"] for v in study.rows("visits")} == {"as_weighted"}


@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
@pytest.mark.parametrize("frozen", ["embeddings", "biases", "first layer"])
def test_frozen_parameters_are_not_in_the_push(family, frozen, tmp_path):
    model, examples = build(family), texts()
    for name, p in model.named_parameters():
        where = "embed" in name or "wte" in name or "wpe" in name, p.ndim < 2, ".0." in name
        p.requires_grad_(not where[["embeddings", "biases", "first layer"].index(frozen)])
    study = _push(model, [micro(examples)], tmp_path / "run")
    assert study.column("visits", "push") == pytest.approx(_truth(model, examples), rel=RTOL)
    assert study.rows("steps")[0]["gradient_match"] < 1e-5


def test_keyword_and_positional_arguments_are_the_same(tmp_path):
    model, examples = build("llama_gqa"), texts()
    inputs = micro(examples, side="left").inputs

    def positional(model, one, n):
        logits = model(inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"]).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())

    study = _push(model, [Micro(inputs, examples)], tmp_path / "run", loss=positional)
    assert study.column("visits", "push") == pytest.approx(_truth(model, examples), rel=RTOL)


def test_packed_rows_given_by_position_are_told_apart(tmp_path):
    model, examples = build("llama_gqa"), texts((5, 7, 4))
    one = micro_packed([examples])

    def positional(model, one, n):
        inputs = one.inputs
        logits = model(inputs["input_ids"], None, inputs["position_ids"], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())

    study = _push(model, [one], tmp_path / "run", loss=positional)
    assert study.column("visits", "push") == pytest.approx(_truth(model, examples), rel=RTOL)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("frozen", [False, True])
def test_learnt_positions_that_are_shared_by_the_batch(rows, frozen, tmp_path):
    """Without position ids GPT-2 looks its positions up once for all rows, so the gradient there is summed."""
    model, examples = build("gpt2"), texts((7, 12, 9)[:rows])
    model.transformer.wte.weight.requires_grad_(not frozen)
    one = micro(examples)
    del one.inputs["position_ids"]
    study = _push(model, [one], tmp_path / "run")
    model.transformer.wpe.weight.requires_grad_(not frozen)  # cannot be measured alone, and is named
    assert study.run.manifest["unmeasured"] == (["transformer.wpe.weight"] if frozen else [])
    assert study.column("visits", "push") == pytest.approx(_truth(model, examples), rel=RTOL)
    assert study.rows("steps")[0]["gradient_match"] < 1e-5


def test_a_parameter_used_in_an_unknown_way_too_is_not_called_measured(tmp_path):
    """The head is tied to a lookup of an unknown class: measuring the head alone would be half the truth."""

    class Odd(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 2.0

    model = build("llama_tied")
    odd = Odd(*model.model.embed_tokens.weight.shape)
    odd.weight = model.lm_head.weight
    model.model.embed_tokens = odd
    study = _push(model, [micro(texts())], tmp_path / "run")
    assert study.run.manifest["unmeasured"] == ["model.embed_tokens.weight"]
    assert study.rows("steps")[0]["gradient_match"] < 1e-5


def test_a_label_on_the_first_token_of_a_left_padded_text_is_flagged(tmp_path):
    """The usual collator trains the pad before the text to predict its first token: no loss of the text's own."""
    model, examples = build("llama_tied"), texts((6, 9, 4))
    one = micro(examples, side="left")
    one.inputs["labels"] = torch.where(one.inputs["attention_mask"] == 1, one.inputs["input_ids"], -100)
    study = train(model, torch.optim.SGD(model.parameters(), lr=0.1), [[one]], tmp_path / "run")
    visits = study.rows("visits")
    assert [v["push_kind"] for v in visits] == ["as_weighted", "token_sum", "as_weighted"]
    assert study.rows("steps")[0]["closure"] < 1e-4
    for visit in visits:
        tokens = study.column("tokens", "shift", slot=visit["slot"])
        assert tokens.sum() == pytest.approx(visit["shift"], abs=1e-6)


@pytest.mark.parametrize("how", ["cache", "mask", "block mask", "checkpointing", "neither"])
def test_packed_rows_that_see_each_other_are_flagged(how, tmp_path):
    """With a cache or a 2-D mask transformers does not tell packed examples apart; then no push is one's own."""
    model, examples = build("llama_gqa"), texts((5, 7, 4))
    one = micro_packed([examples])
    truth = _truth(model, examples)
    if how == "mask":
        one.inputs["attention_mask"] = torch.ones_like(one.inputs["input_ids"])
    if how == "block mask":
        parts = [torch.tril(torch.ones(len(e.ids), len(e.ids))) for e in examples]
        one.inputs["attention_mask"] = torch.log(torch.block_diag(*parts))[None, None].clamp_min(-1e30)
    if how == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    cache = {} if how in ("cache", "checkpointing") else {"use_cache": False}

    def loss(model, one, n):
        return model(**one.inputs, **cache).loss

    mixed = how in ("cache", "mask")
    with pytest.warns(RuntimeWarning, match="attend to each other") if mixed else contextlib.nullcontext():
        study = _push(model, [one], tmp_path / "run", loss=loss)
    assert {v["push_kind"] for v in study.rows("visits")} == {"as_weighted" if mixed else "token_sum"}
    if not mixed:
        assert study.column("visits", "push") == pytest.approx(truth, rel=RTOL)


@pytest.mark.parametrize("positions", (1, 5, 63, 64, 65, 128, 130, 132))
@pytest.mark.parametrize(("side", "n_units"), (("", 1), ("in", 3), ("out", 3)))
def test_norms_from_inner_products_equal_those_of_the_built_gradient(positions, side, n_units):
    """Whatever share of the symmetric products is made at a length, the squared norm is the gradient's."""
    torch.manual_seed(positions)
    a = torch.randn(2, positions, 300, dtype=torch.float64)
    b = torch.randn(2, positions, 360, dtype=torch.float64)
    assert writes.ghost_is_cheaper(positions, 300, 360)
    units, lengths = writes.squared_norms(a, b, side=side, n_units=n_units)
    built = b.mT @ a
    by_unit = {"": built[:, None], "in": built.view(2, 360, 3, 100).transpose(1, 2), "out": built.view(2, 3, 120, 300)}
    torch.testing.assert_close(units, by_unit[side].flatten(2).square().sum(-1))
    torch.testing.assert_close(lengths, a.square().sum(-1) * b.square().sum(-1))


def test_statistics_of_logits_do_not_cancel_near_certainty():
    """Surprise, entropy and weight against float64, with targets from hopeless to certain."""
    torch.manual_seed(0)
    logits = torch.randn(7, 50)
    target = torch.arange(7)
    logits[torch.arange(7), target] += torch.tensor([-20.0, 0, 5, 10, 15, 18, 25])
    exact = logits.double()
    p = exact.softmax(-1)
    error = p - torch.nn.functional.one_hot(target, 50)
    found = writes.logit_statistics(logits, (0.25 * error).float(), target, chunk=100)
    reach = error.norm(dim=-1)
    torch.testing.assert_close(found["omega"].double(), torch.full((7,), 0.25, dtype=torch.float64), rtol=1e-4, atol=0)
    torch.testing.assert_close(found["reach"].double(), reach, rtol=1e-4, atol=0)
    torch.testing.assert_close(found["surprise"].double(), -p.log()[torch.arange(7), target], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found["entropy"].double(), -(p * p.log()).sum(-1), rtol=1e-4, atol=4e-6)


def test_tokens_that_are_almost_certain_do_not_hide_the_losss_weight():
    """Where p is near 1, fp32 makes p - 1 with a large relative error: one such token is no sign of another loss."""
    from intaglio.measure.rows import constant_weight

    torch.manual_seed(0)
    logits, targets = torch.randn(60, 5000) * 2 + 60, torch.randint(5000, (60,))
    logits[torch.arange(40), targets[:40]] = logits[:40].logsumexp(1) + torch.linspace(4.5, 6.8, 40)
    logits.requires_grad_(True)
    torch.nn.functional.cross_entropy(logits, targets).backward()
    found = writes.logit_statistics(logits.detach(), logits.grad, targets)
    sure = (found["reach"] > 1e-3) & (found["reach"] < 2e-2)
    off = (found["omega"] * 60 - 1).abs()
    assert int(sure.sum()) >= 30 and float(off[sure].max()) > 1e-3, "the case to be told apart from another loss"
    assert constant_weight(found["omega"], found["reach"], 1e-3) == pytest.approx(1 / 60, rel=1e-5)
    uneven = found["omega"].clone()
    uneven[-1] *= 1.05
    assert constant_weight(uneven, found["reach"], 1e-3) is None
    assert constant_weight(found["omega"][:0], found["reach"][:0], 1e-3) is None
