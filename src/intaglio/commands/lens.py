"""`intaglio lens train`: the tuned lens, for the way of the state through the layers."""

from __future__ import annotations

import sys
from pathlib import Path

from intaglio.commands.options import explained, text_of
from intaglio.errors import InputError
from intaglio.files import check_file


@explained
def train(
    subject: str, text: Path, *, out: Path, tokens: int = 16_000, steps: int = 40, seed: int = 0, force: bool = False
) -> None:
    """Train a tuned lens: maps that read what a state on the way would say in the end.

    The model's weights stay as they are. For every layer an affine map is fitted on ordinary text,
    first by regression, then on the KL to the model's own predictions; text held out decides what is kept.
    `intaglio why --tuned FILE` then reads with it beside the logit lens.

    Examples:

        intaglio lens train smollm2 books.txt --out smollm2.lens.safetensors

    Parameters
    ----------
    text
        A text file, as like what the model was trained on as can be had.
    out
        The .safetensors file to write.
    tokens
        Tokens of the text that are read, from its beginning; a tenth is held out.
    steps
        Of Adam after the regression, 128 tokens each; 0 leaves the regression.
    seed
        Of the order of the steps.
    force
        Replace an existing file at --out.
    """
    _check(out, tokens, steps, force)
    written = text_of(text, "text")
    from rich.console import Console

    from intaglio.commands.progress import bars
    from intaglio.measure.choice.tuned import fit, save_lens
    from intaglio.model.proof import prove
    from intaglio.model.subject import load_subject

    loaded = load_subject(subject)
    anatomy = prove(loaded.model)
    ids = [int(i) for i in loaded.tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"][:tokens]]
    console = Console() if sys.stdout.isatty() else Console(width=120)
    with bars(console) as tell:
        lens = fit(anatomy, ids, steps=steps, seed=seed, progress=tell)
    save_lens(lens, anatomy, out)
    console.print(_table(lens))
    console.print(
        f"  mean KL from the model's own prediction over the text held out, in nats; fitted on {lens.tokens} tokens\n"
        f"  written: {out}", highlight=False, soft_wrap=True,
    )  # fmt: skip


def _check(out: Path, tokens: int, steps: int, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise InputError("--out names a .safetensors file", got=str(out))
    check_file(out)
    if out.exists() and not force:
        raise InputError("--out exists", got=str(out), expected="a new file, or --force")
    if tokens < 1:
        raise InputError("--tokens is a count of tokens", got=tokens, expected="1 or more")
    if steps < 0:
        raise InputError("--steps is a count of steps", got=steps, expected="0 or more")


def _table(lens) -> object:
    from rich.table import Table

    table = Table("state", "logit lens", "tuned lens", box=None, padding=(0, 2))
    for i, (plain, tuned) in enumerate(zip(lens.logit_kl_nats, lens.tuned_kl_nats)):
        table.add_row("into L0" if i == 0 else f"after L{i - 1}", f"{plain:.2f}", f"{tuned:.2f}")
    return table
