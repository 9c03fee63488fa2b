"""What `train`, `scan` and `steps` share: data and probes read, checked and shown before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intaglio.errors import DataError, InputError
from intaglio.files import write_lines

if TYPE_CHECKING:
    from intaglio.data.encode import Encoded
    from intaglio.data.read import Row
    from intaglio.measure.probes import Probe

DEFAULT_MAX_TOKENS = 1024
PROBE_TOKENS = 1024  # padded tokens in one batch of a probe


@dataclass(frozen=True)
class Prepared:
    """A data set as the model will see it.

    Attributes:
        originals: the rows as they were read, for writing them back.
        data: encoded rows that have something to train on.
        lines: what was found, one readable line each.
    """

    name: str
    originals: list[dict[str, Any]]
    data: list[Encoded]
    lines: list[str]
    fingerprint: str


def begin(out: Path, *, plan: bool, force: bool, resume: bool, alone: bool = True) -> Any:
    """The console that a run speaks through; what stands in its way is refused before any work.

    Args:
        alone: no other run goes with it; then there must be one to go on with where `resume` says so.
    """
    from rich.console import Console

    from intaglio.errors import StoreError
    from intaglio.store.run import begun, check_free

    if not plan:
        check_free(out, force=force, resume=resume)
        if resume and alone and not begun(out):
            raise StoreError(f"there is no unfinished run at {out}", expected="the run's --out, or no --resume")
    return Console(stderr=True)


def token_limit(model_limit: int | None, max_tokens: int | None) -> int:
    """The longest text that is allowed: what the user says, within what the model was made for."""
    wanted = max_tokens or DEFAULT_MAX_TOKENS
    if max_tokens is not None and max_tokens < 2:
        raise InputError("--max-tokens is too small", got=max_tokens, expected="2 or more")
    if model_limit and max_tokens and max_tokens > model_limit:
        raise InputError("--max-tokens is beyond the model's context", got=max_tokens, expected=f"up to {model_limit}")
    return min(wanted, model_limit or wanted)


def prepare_data(
    rows: Iterable[Row], tokenizer: Any, *, name: str, max_tokens: int, truncate: bool,
    originals: list[dict[str, Any]], end: bool = True,
) -> Prepared:  # fmt: skip
    """Encode, audit and fingerprint a data set.

    Raises:
        DataError: a row is too long, or no row has anything to train on.
    """
    import hashlib

    from intaglio.data.audit import audit
    from intaglio.data.encode import encode_rows

    encoded = encode_rows(rows, tokenizer, max_tokens=max_tokens, truncate=truncate, end=end)
    data = [item for item in encoded if item.targets]
    found = audit(encoded, tokenizer)
    lines = (found if end else replace(found, missing_end=())).lines()
    if not data:
        raise DataError(f"no row of {name} has anything to train on", expected="answers or texts of two tokens or more")
    if len(data) < len(encoded):
        left_out = len(encoded) - len(data)
        words = "1 row without anything to train on is" if left_out == 1 else f"{left_out} rows without anything to train on are"
        lines.append(f"{words} left out")
    digest = hashlib.blake2b("".join(item.example for item in encoded).encode(), digest_size=16).hexdigest()
    return Prepared(name, originals, data, lines, digest)


def read_data(source: str, tokenizer: Any, *, max_tokens: int, truncate: bool) -> Prepared:
    """Read and prepare a data set from a file or a Hub id."""
    from intaglio.data.read import read_rows

    rows = read_rows(source)
    return prepare_data(
        rows, tokenizer, name=source, max_tokens=max_tokens, truncate=truncate, originals=[r.original for r in rows]
    )


def show_data(prepared: Prepared, tokenizer: Any, console: Any) -> None:
    """One row as the model will see it, and what is wrong with the data."""
    from intaglio.data.audit import show_row

    console.print()
    console.print(show_row(prepared.data[0], tokenizer))
    console.print()
    for line in prepared.lines:
        console.print(f"  {line}", highlight=False, markup=False)
    console.print()


def parse_probes(specs: Sequence[str]) -> dict[str, str]:
    """`name=path` pairs.

    Raises:
        InputError: a spec without `=`, or a name used twice.
    """
    found: dict[str, str] = {}
    for spec in specs:
        name, equals, path = spec.partition("=")
        if not (equals and name and path) or not name.replace("-", "").replace(".", "").replace("_", "").isalnum():
            raise InputError("not a probe", got=spec, expected="NAME=FILE, such as anchor=general.txt")
        if name in found:
            raise InputError("two probes of one name", got=name)
        found[name] = path
    return found


def make_probe(name: str, items: Sequence[Encoded], pad_id: int) -> Probe:
    """A probe from encoded texts, batched by length so that little is padding."""
    from intaglio.data.encode import collate
    from intaglio.measure.probes import Probe

    items = [item for item in items if item.targets]
    if not items:
        raise DataError(f"probe {name!r} is empty", expected="at least one text with a target token")
    order = sorted(range(len(items)), key=lambda i: len(items[i].input_ids))
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(items[i].input_ids) > PROBE_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return Probe(
        name, [collate([items[i] for i in batch], pad_id) for batch in batches],
        [i.fact for i in items], [i.group for i in items], [i.preview for i in items], order,
    )  # fmt: skip


def probe_lines(name: str, encoded: Sequence[Encoded], trained: Set[str]) -> list[str]:
    """What is wrong with a probe, one readable line each.

    Args:
        trained: ids of the examples that are trained on.
    """
    found = (
        ("cut to the longest length allowed", sum(item.truncated for item in encoded)),
        ("of a broken encoding, repaired", sum(item.repaired for item in encoded)),
        ("without a target token, left out", sum(not item.targets for item in encoded)),
        ("trained on too: no evidence of what lies beyond the data", sum(i.example in trained for i in encoded)),
    )
    return [f"probe {name}: {count} of {len(encoded)} texts {words}" for words, count in found if count]


def read_probes(
    specs: Mapping[str, str], tokenizer: Any, *, max_tokens: int, truncate: bool,
    trained: Set[str] = frozenset(), say: Callable[[str], None] = lambda line: None,
) -> dict[str, Probe]:  # fmt: skip
    """Every probe of the command line, read and encoded; `say` is told what is wrong with them."""
    from intaglio.data.encode import encode_rows
    from intaglio.data.read import read_rows

    found = {}
    for name, path in specs.items():
        try:
            encoded = encode_rows(read_rows(path), tokenizer, max_tokens=max_tokens, truncate=truncate)
        except DataError as error:
            raise DataError(f"probe {name!r}: {error}") from None
        found[name] = make_probe(name, encoded, pad_id(tokenizer))
        for line in probe_lines(name, encoded, trained):
            say(line)
    return found


def device() -> str:
    """Where a model is run: the GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision() -> str:
    """What a model is run in there: bfloat16 (under autocast) on a GPU."""
    return "bfloat16" if device() == "cuda" else "float32"


def read_all(
    subject: Any, data: str, probe: Sequence[str] | None, console: Any, *, max_tokens: int | None, truncate: bool
) -> tuple[Prepared, dict[str, Probe]]:
    """The data set and the probes of a command line, for a loaded subject; what was found is shown."""
    limit = token_limit(subject.context_tokens, max_tokens)
    found = read_data(data, subject.tokenizer, max_tokens=limit, truncate=truncate)
    wrong: list[str] = []
    probes = read_probes(
        parse_probes(probe or []), subject.tokenizer, max_tokens=limit, truncate=truncate,
        trained={item.example for item in found.data}, say=wrong.append,
    )  # fmt: skip
    found = replace(found, lines=found.lines + wrong)
    show_data(found, subject.tokenizer, console)
    return found, probes


def pad_id(tokenizer: Any) -> int:
    """A token to pad with; it is masked everywhere, so any will do."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def sources_of(data: Sequence[Encoded]) -> dict[str, Any]:
    """Example id to where it comes from; identical rows share an id."""
    from intaglio.measure.ledger import Source

    grouped: dict[str, list[Encoded]] = {}
    for item in data:
        grouped.setdefault(item.example, []).append(item)
    return {
        example: Source(tuple(i.row for i in items), items[0].group, items[0].fact, items[0].preview)
        for example, items in grouped.items()
    }


def write_originals(folder: Path, originals: Iterable[dict[str, Any]]) -> None:
    """The data set's own rows beside the run's tables, for `intaglio rows`."""
    write_lines(folder / "rows.jsonl", originals)
