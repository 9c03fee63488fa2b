"""`intaglio why`: which votes chose the next token?"""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.commands.options import Lang, Several, check_files, explained, text_of
from intaglio.errors import InputError

if TYPE_CHECKING:
    from intaglio.views import Trace

SHOWN = 12


@explained
def why(
    subject: str,
    prompt: str | None = None,
    *,
    chat: str | None = None,
    prompts: Path | None = None,
    target: str | None = None,
    against: str | None = None,
    at: int = 0,
    versus: Several = None,
    versus_prompt: str | None = None,
    versus_target: str | None = None,
    lens: str | None = None,
    corpus: Path | None = None,
    tuned: Path | None = None,
    effects: bool = True,
    first_piece: bool = False,
    out: Path | None = None,
    json: Path | None = None,
    heads: Path | None = None,
    seed: int = 0,
    plan: bool = False,
    lang: Lang = "en",
) -> None:
    """Take one next-token decision apart: every vote, with measured effects beside direct votes.

    Prints the likeliest tokens and the strongest votes; the votes of all parts sum to the model's own
    logit difference. --out writes the page, --json everything as data.

    Examples:

        intaglio why smollm2 "The capital of France is" --out why.html

        intaglio why smollm2 "When John and Mary went to the store, John gave a drink to" --target " Mary" --against " John"

        intaglio why smollm2 --chat "What is the capital of France?" --at 3

        intaglio why ./tuned --versus ./base "The capital of France is" --out why.html

    Parameters
    ----------
    prompt
        The text before the decision.
    chat
        The user's message, put through the chat template, in place of a prompt.
    prompts
        A .jsonl file of rows with prompt and, if wanted, target and against: votes and effects over all of them.
    target
        The token asked about; the likeliest if not given.
    against
        The token it is weighed against; the mean over the vocabulary if not given.
    at
        Explain the token after so many tokens of the model's own answer (0: its first).
    versus
        A second model before the same text; may be given several times. Where it shares the tokenizer, both see the
        same tokens.
    versus_prompt
        A second prompt for the same model; one of as many tokens also gives its parts for replacement.
    versus_target
        A second token to ask about, beside the first.
    lens
        Only these lenses, by name, with commas between; all that apply if not given.
    corpus
        A text file as reference corpus, for the lenses that look one up.
    tuned
        A tuned lens of this model, made by intaglio lens train, to read the states on the way with.
    effects
        Run the model with each part replaced, and book what that did.
    first_piece
        Where target or against is several tokens, take the first.
    out
        Write the page to this .html file.
    json
        Write everything to this file.
    heads
        A page of this model's heads, made by intaglio heads: each head's card on the page links to its card there.
    seed
        Of everything that is drawn.
    plan
        Print what it will cost, and stop.
    """
    if sum(given is not None for given in (prompt, chat, prompts)) != 1:
        raise InputError("what is asked about must be given once", expected="a prompt, --chat MESSAGE or --prompts FILE")
    check_files(out, json)
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=120)
    given: dict[str, Any] = dict(
        target=target, against=against, at=at, versus=versus, versus_prompt=versus_prompt, versus_target=versus_target,
        first_piece=first_piece, seed=seed, effects=effects, tuned=tuned,
        lenses=None if lens is None else [name.strip() for name in lens.split(",")],
        corpus=None if corpus is None else text_of(corpus, "corpus"),
    )  # fmt: skip
    if prompts is not None:
        alone = {"--out": out, "--lens": lens, "--corpus": corpus, "--tuned": tuned, "--versus": versus,
                 "--versus-prompt": versus_prompt, "--versus-target": versus_target, "--heads": heads,
                 "--plan": plan or None}  # fmt: skip
        if unused := [name for name, value in alone.items() if value is not None]:
            raise InputError(f"{', '.join(unused)} cannot go with --prompts", expected="one prompt, or votes and effects alone")
        _over_set(subject, prompts, given, json, console)
        return
    page = None if heads is None else _link(heads, out)
    given |= {"prompt": prompt if chat is None else chat, "chat": chat is not None}
    if plan:
        _print_plan(subject, given, console)
        return
    trace = _with_bars(subject, given, console)
    if page is not None:
        trace.about["heads_page"] = page
    print_trace(trace, console)
    for path, write in ((out, lambda p: trace.to_html(p, lang=lang)), (json, trace.to_json)):
        if path is not None:
            write(path)
            console.print(f"  written: {path}", highlight=False, soft_wrap=True)


def _link(heads: Path, out: Path | None) -> str:
    """The page of the heads as the page at `out` links to it: relative, so that both may move together.

    Raises:
        InputError: no page is written that could link, or there is no such page.
    """
    from os.path import relpath
    from urllib.parse import quote

    if out is None:
        raise InputError("--heads needs a page to link from", expected="--out PAGE.html")
    if not heads.is_file():
        raise InputError("no such page of heads", got=str(heads), expected="a page made by intaglio heads")
    return "./" + quote(Path(relpath(heads.absolute(), out.absolute().parent)).as_posix())


def _with_bars(subject: Any, given: dict[str, Any], console: Any) -> Trace:
    from intaglio.choice import why as take_apart
    from intaglio.commands.progress import bars

    with bars(console) as tell:
        return take_apart(subject, progress=tell, **given)


def _over_set(subject: str, path: Path, given: dict[str, Any], json: Path | None, console: Any) -> None:
    """Votes and effects over a file of prompts."""
    from intaglio.analyse.choice.sets import over_set
    from intaglio.files import write_text
    from intaglio.model.subject import load_subject

    rows = _read_prompts(path)
    loaded = load_subject(subject)
    traces = []
    for i, row in enumerate(rows):
        own = {k: v for k, v in row.items() if k in ("target", "against")}
        try:
            traces.append(_with_bars(loaded, given | {"lenses": [], "prompt": row["prompt"], "chat": False} | own, console))
        except InputError as error:
            raise InputError(f"row {i} of {path.name}: {error}") from None
        console.print(f"  {i + 1} of {len(rows)}", end="\r")
    found = over_set(traces, seed=given["seed"])
    console.print(_set_table(found, len(rows)))
    if json is not None:
        text = json_module.dumps({"subject": loaded.name, "prompts": rows, "parts": found}, ensure_ascii=False, indent=1)
        write_text(json, text + "\n")
        console.print(f"  written: {json}", highlight=False, soft_wrap=True)


def _read_prompts(path: Path) -> list[dict[str, Any]]:
    rows = []
    for i, line in enumerate(text_of(path, "file of prompts").splitlines()):
        if not line.strip():
            continue
        try:
            row = json_module.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise InputError(f"line {i} of {path.name} is no prompt", got=line[:60], expected='{"prompt": "..."}')
        for name in ("target", "against"):
            if row.get(name) is not None and (isinstance(row[name], bool) or not isinstance(row[name], str | int)):
                raise InputError(f"line {i} of {path.name} names no {name}", got=row[name], expected="a token's text or id")
        rows.append(row)
    if not rows:
        raise InputError("the file holds no prompt", got=str(path))
    return rows


def _set_table(found: list[dict[str, Any]], prompts: int) -> Any:
    from rich.table import Table

    def shown(row: dict[str, Any], name: str) -> str:
        value, low, high = (row[f"{name}_{end}"] for end in ("logits", "low", "high"))
        if value is None:
            return ""
        return f"{value:+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if low is not None else "")

    table = Table("part", "mean vote (95 %)", "mean effect (95 %)", "for the target", box=None, padding=(0, 2))
    for row in found[:SHOWN]:
        table.add_row(row["address"], shown(row, "vote"), shown(row, "effect"), f"{row['for_share']:.0%} of {prompts}")
    return table


def _print_plan(subject: str, given: dict[str, Any], console: Any) -> None:
    """Tokens through the model, and time by one forward that is run for it."""
    import time

    from intaglio.choice import ALL_PRODUCTS, SCREENED, products
    from intaglio.measure.choice.decision import decide
    from intaglio.measure.choice.effects import all_parts
    from intaglio.measure.choice.lenses import check_names, tokens_run
    from intaglio.model.capture import capture
    from intaglio.model.subject import load_subject

    check_names(given["lenses"])
    loaded = load_subject(subject)
    asked = {k: given[k] for k in ("prompt", "target", "against", "chat", "at", "first_piece")}
    found = decide(loaded.model, loaded.tokenizer, **asked)
    start = time.perf_counter()
    capture(found.anatomy, found.ids_BT)
    forward_s, length = time.perf_counter() - start, len(found.ids)
    parts = len(all_parts(found.anatomy))
    run = 0 if not given["effects"] else parts if products(found) <= ALL_PRODUCTS else SCREENED
    run *= 2 if given["versus_prompt"] is not None else 1
    lenses = tokens_run(length, found.anatomy.n_layers, given["lenses"])
    total = run * length / 2 + sum(lenses.values()) + 3 * length
    console.print(
        f"  {length} tokens, {parts} parts; one forward takes {forward_s:.2f} s\n"
        f"  replacing parts: {run} runs of half the layers on average, about {run / 2:,.0f} forwards\n"
        f"  lenses: about {sum(lenses.values()) / length:,.0f} forwards"
        + "".join(f", {name} {count / length:,.0f}" for name, count in sorted(lenses.items(), key=lambda p: -p[1])[:4])
        + f"\n  in all about {total / length * forward_s:,.0f} s; the page about 1 MB",
        highlight=False,
    )  # fmt: skip


def print_trace(trace: Trace, console: Any) -> None:
    """The short answer and the strongest votes."""
    from rich.markup import escape

    about = trace.about
    target, against = about["target"], about["against"]
    console.print()
    for row in trace.rows["candidates"][:5]:
        console.print(f"  {row['probability']:7.2%}  {escape(_shown(row['text']))}", highlight=False)
    other = "the mean over the vocabulary" if against is None else _shown(against["text"])
    console.print(
        f"\n  {escape(_shown(target['text']))} against {escape(other)}: {about['difference_logits']:+.3f} logits; "
        f"all votes sum to it within {about['closure_logits']:.1e}" + ("" if about["closes"] else ", which does NOT close"),
        highlight=False,
    )  # fmt: skip
    console.print(_votes_table(trace))
    console.print(
        "  vote: what the part wrote towards the target, directly. effect: how far the difference falls when the part\n"
        "  is replaced by its mean over ordinary text, through everything downstream. Both in logits.",
        style="dim", highlight=False,
    )  # fmt: skip


def _votes_table(trace: Trace) -> Any:
    from rich.markup import escape
    from rich.table import Table

    parts: dict[str, dict[str, Any]] = {}
    for row in trace.rows["votes"]:
        part = parts.setdefault(row["address"], {**row, "sources": []})
        if row["source"] is not None:
            part["sources"].append(row)
    table = Table("part", "vote", "effect", "read from", box=None, padding=(0, 2))
    for part in sorted(parts.values(), key=lambda p: -abs(p["part_logits"]))[:SHOWN]:
        best = sorted(part["sources"], key=lambda r: -abs(r["vote_logits"]))[:3]
        read = "  ".join(f"{_shown(r['token'])} {r['vote_logits']:+.2f}" for r in best)
        effect = "" if part["effect_logits"] is None else f"{part['effect_logits']:+.2f}"
        table.add_row(part["address"], f"{part['part_logits']:+.2f}", effect, escape(read))
    return table


def _shown(text: str) -> str:
    from intaglio.report.choice.words import visible

    return f"«{visible(text)}»"
