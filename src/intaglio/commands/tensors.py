"""`intaglio tensors`: what a checkpoint's files hold, where each part lies, and one head cut out or put in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.commands.options import Lang, check_files, explained
from intaglio.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from intaglio.model.stored import Checkpoint


@explained
def tensors(
    subject: str, *, address: str | None = None, spectra: bool | None = None, diff: str | None = None, walk: str | None = None,
    head: str | None = None, graft: Path | None = None, into: str | None = None, without_shared: bool = False,
    out: Path | None = None, json: Path | None = None, lang: Lang = "en",
) -> None:  # fmt: skip
    """Show what is in a model's files: parts, tensors, shapes, types, byte ranges, lengths.

    Headers are read strictly and nothing is executed; numbers are streamed, so a file larger than memory works.
    With --head one head is cut out into a file, with --graft it is put into a copy of another checkpoint of the same
    shape, of which every other byte stays. With --diff it is laid beside another checkpoint of its shape, or a LoRA adapter
    on it; with --walk one part is followed from its idea to plain PyTorch and the bytes.

    Examples:

        intaglio tensors smollm2
        intaglio tensors model.safetensors --spectra --json tensors.json
        intaglio tensors smollm2 --address L18.attn.H6
        intaglio tensors smollm2 --head 18.6 --out head.safetensors
        intaglio tensors ./tuned --graft head.safetensors --out ./grafted
        intaglio tensors ./base --diff ./tuned --out moved.html
        intaglio tensors smollm2 --walk L18.attn.H6

    Parameters
    ----------
    subject
        A .safetensors file, a folder (sharded or not), a .gguf file, smollm2 (built in), or a Hugging Face id.
    address
        Only this part: its tensors, rows, columns and byte ranges. L18.attn.H6 (18.6 for short), L3.mlp.N120, L3.attn, embed.
    spectra
        Also the effective rank and the largest singular values of every matrix; --diff gives ranks, directions and turning
        unless --no-spectra.
    diff
        What moved from the subject to this model of the same shape, or by this adapter's folder.
    walk
        From the idea to the bytes of this part: formula, code, tensors, configuration.
    head
        Cut this head (18.6) out into the file --out.
    graft
        A file that --head wrote: put its head into a copy of the subject, written to --out.
    into
        The head to replace, if it is not the one that the file came from.
    without_shared
        Leave rows of k and v alone where other heads use them too.
    out
        The file of --head (.safetensors); the new folder or file of --graft, which must not exist; the page of --diff or
        --walk (.html).
    json
        Write what is shown as JSON.
    """
    mode = only_one({"--address": address, "--head": head, "--graft": graft, "--diff": diff, "--walk": walk})
    _check_options(mode, out=out, into=into, without_shared=without_shared, spectra=spectra, json=json)
    checkpoint = open_named(subject)
    console = make_console()
    if mode == "--address":
        _print_places(checkpoint, address, json, console)
    elif mode == "--head":
        _cut(checkpoint, head, out, json, console)
    elif mode == "--graft":
        _graft(checkpoint, graft, out, into, without_shared, json, console)
    elif mode == "--diff":
        from intaglio.commands.tensors_diff import show_diff

        show_diff((subject, checkpoint), diff, spectra=spectra is not False, out=out, json=json, lang=lang, console=console)
    elif mode == "--walk":
        from intaglio.commands.tensors_walk import show_walk

        show_walk((subject, checkpoint), walk, out=out, json=json, lang=lang, console=console)
    else:
        from intaglio.commands.tensors_list import listing, print_listing

        found = listing(checkpoint, spectra=bool(spectra))
        print_listing(checkpoint, found, console)
        write_json(json, found, console)


def open_named(subject: str | Path) -> Checkpoint:
    """The checkpoint that a user names: a path as it stands, or what `smollm2` or a Hugging Face id resolves to."""
    from intaglio.model.tensors import PICKLES, open_checkpoint

    path = Path(subject).expanduser()
    if path.exists() or path.suffix in {".safetensors", ".gguf", *PICKLES}:
        return open_checkpoint(path)
    from intaglio.model.subject import resolve

    return open_checkpoint(resolve(subject))


def only_one(modes: dict[str, Any]) -> str | None:
    """The one option among these that was given, if any.

    Raises:
        InputError: two were.
    """
    given = [name for name, value in modes.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other", expected="one of them")
    return given[0] if given else None


def make_console() -> Console:
    """Where the answer is printed."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def write_json(path: Path | None, found: dict[str, Any], console: Console) -> None:
    """What was found as JSON, whole or not at all; nothing without a path."""
    if path is None:
        return
    import json

    from intaglio.files import write_text

    write_text(path, json.dumps(found, ensure_ascii=True, indent=1, allow_nan=False) + "\n")
    console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)


def _check_options(mode: str | None, **given: Any) -> None:
    out, json = given["out"], given["json"]
    if mode in ("--head", "--graft") and out is None:
        raise InputError(f"{mode} needs --out", expected="the file or folder to write")
    for name, modes in (("out", ("--head", "--graft", "--diff", "--walk")), ("into", ("--graft",)),
                        ("without_shared", ("--graft",)), ("spectra", (None, "--diff"))):  # fmt: skip
        if given[name] and mode not in modes:
            wanted = " or ".join(m for m in modes if m)
            raise InputError(f"--{name.replace('_', '-')} belongs to {wanted or 'the whole listing'}")
    if mode in ("--diff", "--walk") and out is not None and out.suffix != ".html":
        raise InputError("--out names a page", got=str(out), expected="such as moved.html")
    if mode in ("--head", "--graft"):
        from intaglio.model.surgery import check_new

        check_new(out)
    check_files(out, json)


def _print_places(checkpoint: Checkpoint, text: str, json: Path | None, console: Console) -> None:
    from intaglio.commands.tensors_list import print_places
    from intaglio.model.slices import places_of

    found = places_of(checkpoint, _address(text))
    print_places(checkpoint, found, console)
    write_json(json, {"subject": str(checkpoint.path), "places": found}, console)


def _cut(checkpoint: Checkpoint, text: str, out: Path, json: Path | None, console: Console) -> None:
    from intaglio.address import parse_head
    from intaglio.commands.tensors_list import print_places
    from intaglio.model.surgery import cut_head

    found = cut_head(checkpoint, parse_head(text), out)
    print_places(checkpoint, found, console)
    console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)
    write_json(json, {"subject": str(checkpoint.path), "head": str(out), "places": found}, console)


def _graft(
    checkpoint: Checkpoint, graft: Path, out: Path, into: str | None, without_shared: bool, json: Path | None, console: Console
) -> None:
    from intaglio.address import parse_head
    from intaglio.commands.tensors_list import print_places
    from intaglio.model.surgery import graft_head

    done = graft_head(checkpoint, graft, out, into=None if into is None else parse_head(into), without_shared=without_shared)
    print_places(checkpoint, done.places, console, shared=False)
    if done.shared_with:
        console.print(f"k and v of {done.address} are also those of {', '.join(done.shared_with)}, which changed with it; "
                      "--without-shared leaves them alone", highlight=False, soft_wrap=True)  # fmt: skip
    if done.left:
        others = sorted({a for row in done.left for a in row["shared_with"]}, key=lambda a: parse_head(a))
        console.print(f"left alone: k and v, which {', '.join(others)} use too", highlight=False, soft_wrap=True)
    console.print(f"written: {out}; every other byte is as it was", highlight=False, markup=False, soft_wrap=True)
    write_json(json, {"subject": str(checkpoint.path), "head": str(graft), "into": str(done.address), "out": str(out),
                      "places": done.places, "left": done.left}, console)  # fmt: skip


def _address(text: str) -> object:
    from intaglio.address import parse, parse_head

    return parse_head(text) if text[:1].isdigit() else parse(text)
