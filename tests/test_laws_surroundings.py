"""What stands around a loop changes nothing that is measured: autocast, another default type of numbers."""

import contextlib

import pytest
import torch
from torch.optim import AdamW

from intaglio.errors import UnmeasurableError
from intaglio.measure.ledger import Ledger
from intaglio.store.run import Run, open_run
from tiny import batch, build, texts

TABLES = ("steps", "visits", "parts", "visit_parts", "tokens", "credits", "probes", "drift", "sketches")
AUTOCAST = torch.autocast("cpu", dtype=torch.bfloat16)


def adapted(family: str):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build(family), LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=family == "gpt2"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.1)
    return model


def rows(run: Run, table: str) -> list[dict]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in run.table(table).to_pylist()]


def measured(model, out, *, whole: bool, **options) -> Run:
    """A loop whose steps stand under autocast as a whole, or with their forward alone."""
    around, inside = AUTOCAST, contextlib.nullcontext()
    if not whole:
        around, inside = inside, around
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with Ledger(model, optimizer, out=out, quiet=True, strict=True,
                probes={"target": batch(texts(seed=9))}, probe_every=1, **options):  # fmt: skip
        for seed in range(3):
            with around:
                with inside:
                    loss = model(**batch(texts(seed=seed))).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return open_run(out)


@pytest.mark.parametrize("level", ["full", "exact"])
@pytest.mark.parametrize("made", [build, adapted], ids=["whole", "adapters"])
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_a_step_under_autocast_as_a_whole_is_measured_in_full_precision(family, made, level, tmp_path):
    """The optimizer's step, and with it the books and the probes, then stand in autocast, too."""
    one, other = (measured(made(family), tmp_path / str(whole), whole=whole, level=level) for whole in (False, True))
    for table in TABLES:
        assert rows(one, table) == rows(other, table), table


@pytest.fixture
def default_of_16_bits():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("level", ["norms", "full", "exact"])
@pytest.mark.parametrize("made", [build, adapted], ids=["whole", "adapters"])
def test_another_default_type_of_numbers_does_not_make_ours_coarse(made, level, tmp_path, request):
    """Who loads a model in bfloat16 often sets the default and leaves it."""
    one, other = made("llama_gqa"), made("llama_gqa")
    plain = measured(one, tmp_path / "plain", whole=False, level=level)
    request.getfixturevalue("default_of_16_bits")
    run = measured(other, tmp_path / "run", whole=False, level=level)
    for table in TABLES:
        assert rows(run, table) == rows(plain, table), table


def another(task: str):
    import transformers as t

    sizes = dict(vocab_size=53, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40)
    if task == "masked":
        return t.BertForMaskedLM(t.BertConfig(**sizes))
    if task == "encoder and decoder":
        return t.T5ForConditionalGeneration(t.T5Config(vocab_size=53, d_model=24, d_kv=6, d_ff=40, num_layers=1, num_heads=4))
    config = t.LlamaConfig(**sizes, num_labels=2, pad_token_id=0)
    if task == "adapters":
        from peft import LoraConfig, get_peft_model

        return get_peft_model(t.LlamaForSequenceClassification(config), LoraConfig(r=2, task_type="SEQ_CLS"))

    class Mine(t.LlamaForTokenClassification):
        """A person's own class."""

    return {"sequence": t.LlamaForSequenceClassification, "token": t.LlamaForTokenClassification, "own": Mine}[task](config)


@pytest.mark.parametrize("task", ["sequence", "token", "own", "masked", "encoder and decoder", "adapters"])
def test_a_model_of_another_task_is_refused_by_name(task, tmp_path):
    """A classifier of tokens would be measured against the labels of its neighbours, and nothing would show it."""
    model = another(task)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.raises(UnmeasurableError, match=r"not a causal language model; got .*(For|T5)"):
        Ledger(model, optimizer, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("all_of_them", [True, False])
def test_the_books_are_held_against_what_their_coarsest_weight_allows(dtype, tolerance, all_of_them, tmp_path):
    model = adapted("llama_gqa")
    for p in [p for p in model.parameters() if p.requires_grad][: None if all_of_them else 2]:
        p.data = p.data.to(dtype)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with Ledger(model, optimizer, out=tmp_path / "run", quiet=True, strict=True,
                probes={"target": batch(texts(seed=9))}, probe_every=1):  # fmt: skip
        for seed in range(3):
            model(**batch(texts(seed=seed))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    run = open_run(tmp_path / "run")
    assert run.manifest["tolerance"] == tolerance and "fault" not in run.manifest
    assert max(row["closure"] for row in run.table("steps").to_pylist()) < tolerance
    for row in run.table("probes").to_pylist()[:3]:
        assert abs(row["residual_nats"]) < 0.5 * abs(row["measured_change_nats"]) + 1e-2
