"""`intaglio doctor`: is every parameter measured, do the books close on this model?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from intaglio.commands.options import explained
from intaglio.errors import InputError

if TYPE_CHECKING:
    from intaglio.measure.doctor import Diagnosis


@explained
def doctor(subject: str, *, lora: int | None = None) -> None:
    """Check whether every parameter of a model is measured and its books close.

    Takes three real steps on a few built-in sentences, in memory, and holds what was measured
    against autograd. Exit code 0: the model is supported; 1: something is not measured or does not
    close, and the last line says what.

    Examples:

        intaglio doctor ./my-model

        intaglio doctor smollm2 --lora 8

    Parameters
    ----------
    lora
        Check training with LoRA adapters of this rank in place of full fine-tuning.
    """
    if lora is not None and lora < 1:
        raise InputError("--lora is a rank", got=lora, expected="1 or more")
    from intaglio.measure.doctor import diagnose
    from intaglio.model.subject import load_subject

    loaded = load_subject(subject)
    model = loaded.model if lora is None else _with_adapters(loaded.model, lora)
    found = diagnose(model, loaded.tokenizer)
    print_diagnosis(found, loaded.name)
    if not found.healthy:
        raise SystemExit(1)


def _with_adapters(model: object, rank: int) -> object:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def print_diagnosis(found: Diagnosis, name: str) -> None:
    """The table of parts, the checks, and the verdict as the last line."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=120)
    if found.parts:
        table = Table(title=name, title_justify="left", box=None, header_style="bold", pad_edge=False)
        table.add_column("part")
        for column in ("parameters", "measured share", "gradient match"):
            table.add_column(column, justify="right")
        for part in found.parts:
            table.add_row(part.part + (" (= unembed)" if part.part == "embed" and found.tied else ""),
                          f"{part.parameters:,}", f"{100 * part.share:.4g} %", _small(part.gradient_match))  # fmt: skip
        console.print(table)
        checks = Table(box=None, show_header=False, pad_edge=False)
        checks.add_row("closure of each step", ", ".join(_small(c) for c in found.closures) or "none")
        checks.add_row("push against a backward of its own", f"{_small(found.push_error)} apart")
        checks.add_row("logits with the tap on and off", "identical" if found.logits_identical else "different")
        checks.add_row("hooks afterwards", ", ".join(found.hooks_left) or "none")
        console.print(checks)
    console.print(found.verdict, style="bold green" if found.healthy else "bold red", soft_wrap=True, highlight=False)


def _small(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1e}" if value else "0"
