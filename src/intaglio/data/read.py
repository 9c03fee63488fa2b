"""Read a data set: a local file or a Hub data set, to rows of a known shape.

    {"text"}                              everything is trained on
    {"prompt", "completion"}              the completion is trained on
    {"instruction", "input", "output"}    the output is trained on; `input` may be absent
    {"messages"}                          a chat; the assistant's answers are trained on

The columns `group` and `fact` are carried along; other columns are kept in `original` and not used.
Local files are read here rather than by `datasets`, for three things it does not give: the row's
number in an error, bytes of an older code page, and rows of mixed columns. Row numbers start at 0.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.cache import cache_folder
from intaglio.data.misread import is_plainly_misread
from intaglio.data.repair import BrokenLine, decode, repair_text
from intaglio.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_SHAPES = {"messages": ("messages",), "completion": ("prompt", "completion"),
           "instruction": ("instruction", "output"), "text": ("text",)}  # fmt: skip
_ANSWERS = {"text": "text", "completion": "completion", "instruction": "output"}
_EXPECTED = "text; prompt and completion; instruction and output; or messages"
_USED = {"messages", "prompt", "completion", "instruction", "input", "output", "text", "group", "fact"}
_TXT_CHARACTERS = 1000  # paragraphs of a .txt are packed up to this; some 250 tokens of English
_ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True, slots=True)
class Row:
    """One row, repaired and checked.

    Attributes:
        number: its place in the data set, from 0.
        kind: text, completion, instruction or messages.
        fields: the texts by column; for a chat `messages`, a list of role and content.
        original: the row as it was read, for writing it back.
        repaired: whether its encoding was put right.
    """

    number: int
    kind: str
    fields: dict[str, Any]
    group: str | None
    fact: str | None
    original: dict[str, Any]
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """A data set that has been read: a sequence of `Row`.

    Attributes:
        repaired: numbers of the rows whose encoding was put right.
        unused: columns that are carried in `original` but not trained on.
    """

    source: str
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @property
    def repaired(self) -> tuple[int, ...]:
        return tuple(row.number for row in self.rows if row.repaired)

    @property
    def unused(self) -> tuple[str, ...]:
        return tuple(sorted({str(name) for row in self.rows for name in row.original} - _USED))


def read_rows(source: str | Path, *, limit: int | None = None, streaming: bool = False) -> Rows:
    """The rows of a file or of a Hub data set (`owner/name`, or `owner/name:configuration`).

    Args:
        source: a .jsonl, .json (an array, or one object that holds one), .csv, .parquet or .txt
            file; of a .txt, paragraphs are packed into rows. Anything else is a Hub id.
        limit: take only the first rows.
        streaming: Hub only: do not download the whole data set first.

    Raises:
        DataError: missing, empty, of no known shape, without text, or of a broken encoding; with
            the row's number.
    """
    path = Path(source).expanduser()
    if path.is_file():
        originals, bad = _read_file(path, limit)
    elif path.suffix in SUFFIXES or path.exists() or str(source).startswith((".", "/", "~")):
        raise DataError("no such data file", got=str(source), expected=f"a {', '.join(SUFFIXES)} file or a Hub id")
    else:
        originals, bad = _read_hub(str(source), limit, streaming=streaming), frozenset()
    if not originals:
        raise DataError(f"{source} is empty", expected="at least one row")
    rows = _repair_short(tuple(_row(n, o, n in bad) for n, o in enumerate(originals)))
    for row in rows:
        _refuse_misread(row)
    return Rows(str(source), rows)


# --- one row -------------------------------------------------------------------------------


def _row(number: int, original: Any, recoded: bool, expect: str | None = None) -> Row:
    if not isinstance(original, Mapping):
        raise DataError(f"row {number} is not an object", got=_short(original), expected=_EXPECTED)
    try:
        json.dumps(original, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise DataError(f"row {number} holds half a character (an unpaired surrogate)", expected="whole text") from None
    kind = _kind(number, original)
    pages: list[str] = []
    fields = _messages(number, original) if kind == "messages" else _texts(number, kind, original)
    fields = _repaired(number, fields, pages, expect)
    labels = _repaired(number, {k: _label(original.get(k)) for k in ("group", "fact")}, pages, expect)
    return Row(number, kind, fields, labels["group"], labels["fact"], dict(original), recoded or bool(pages))


def _kind(number: int, original: Mapping[str, Any]) -> str:
    for kind, columns in _SHAPES.items():
        if all(original.get(column) is not None for column in columns):
            return kind
    empty = [c for columns in _SHAPES.values() for c in columns if c in original and original[c] is None]
    if empty:
        raise DataError(f"row {number} has no text", got=f"an empty {empty[0]}", expected=_EXPECTED)
    names = ", ".join(map(str, original)) or "none"
    raise DataError(f"row {number} has columns of no known shape", got=_short(names), expected=_EXPECTED)


def _texts(number: int, kind: str, original: Mapping[str, Any]) -> dict[str, str]:
    names = (*_SHAPES[kind], "input") if kind == "instruction" else _SHAPES[kind]
    fields = {name: "" if original.get(name) is None else original[name] for name in names}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise DataError(f"row {number}: {name} is not text", got=_short(value), expected="a string")
    needed = {_ANSWERS[kind], "instruction"} & set(fields)
    for name in sorted(needed):
        if not fields[name].strip():
            raise DataError(f"row {number} has no text", got=f"an empty {name}")
    return fields


def _messages(number: int, original: Mapping[str, Any]) -> dict[str, Any]:
    messages = original["messages"]
    if not isinstance(messages, (list, tuple)) or not all(isinstance(m, Mapping) for m in messages):
        raise DataError(f"row {number}: messages is not a list of role and content", got=_short(messages))
    turns = [{"role": m.get("role"), "content": _content(m.get("content"))} for m in messages]
    for turn in turns:
        if turn["role"] not in _ROLES or turn["content"] is None:
            raise DataError(f"row {number}: a message has no role or no text", got=_short(turn),
                            expected=f"content, and a role of {', '.join(_ROLES)}")  # fmt: skip
    if not any(t["role"] == "assistant" and t["content"].strip() for t in turns):
        raise DataError(f"row {number} has no text to train on", got="no answer of the assistant in messages")
    return {"messages": turns}


def _content(content: Any) -> str | None:
    """A message's text; a list of text parts is joined, anything else is no text."""
    if isinstance(content, (list, tuple)) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        content = "".join(str(p.get("text", "")) for p in content)
    return content if isinstance(content, str) else None


def _label(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- encodings -----------------------------------------------------------------------------


def _repaired(number: int, value: Any, pages: list[str], expect: str | None) -> Any:
    """`value` with every text in it put right; the code pages found are added to `pages`."""
    if isinstance(value, dict):
        return {k: _repaired(number, v, pages, expect) for k, v in value.items()}
    if isinstance(value, list):
        return [_repaired(number, v, pages, expect) for v in value]
    if not isinstance(value, str):
        return value
    try:
        repair = repair_text(value, expect=expect)
    except DataError as error:
        raise DataError(f"row {number}: {error}") from None
    if repair.code_page:
        pages.append(repair.code_page)
    return repair.text


def _repair_short(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Put short texts right too, where most rows with letters beyond ASCII had one code page."""
    foreign = [row for row in rows if not json.dumps(row.original, ensure_ascii=False, default=str).isascii()]
    pages: Counter[str] = Counter()
    for row in foreign:
        found: list[str] = []
        if row.repaired:
            _repaired(row.number, row.original, found, None)
        pages.update(set(found))
    if not pages or pages.most_common(1)[0][1] <= len(foreign) / 2:
        return rows
    page = pages.most_common(1)[0][0]
    again = {row.number: _row(row.number, row.original, row.repaired, page) for row in foreign}
    return tuple(again.get(row.number, row) for row in rows)


def _refuse_misread(row: Row) -> None:
    """Refuse what is plainly misread still, after its companions could not say how."""
    texts = (m["content"] for m in row.fields["messages"]) if row.kind == "messages" else row.fields.values()
    for text in texts:
        if is_plainly_misread(text):
            what = f"row {row.number}: broken encoding: an older code page read as Latin-1, and not certain which"
            raise DataError(what, got=_short(text))


# --- files ---------------------------------------------------------------------------------


def _read_file(path: Path, limit: int | None) -> tuple[list[Any], frozenset[int]]:
    """The rows as they stand, and the numbers of those that came from an older code page."""
    if path.suffix == ".parquet":
        return _read_parquet(path, limit), frozenset()
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is of an unknown kind", got=path.suffix or "no suffix", expected=", ".join(SUFFIXES))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    parting = b"\n"
    if path.suffix == ".txt":
        data, parting = data.replace(b"\r\n", b"\n"), b"\n\n"
    try:
        text, bad_lines = decode(data, parting=parting)
    except BrokenLine as error:
        raise DataError(f"{path}: {_place(path, data, parting, error.line)} is {error}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if path.suffix == ".jsonl":
        return _parse_lines(path, text, limit, bad_lines)
    parse = {".json": _parse_json, ".csv": _parse_csv, ".txt": _parse_txt}[path.suffix]
    rows = parse(path, text)[:limit]
    foreign = {n for n, row in enumerate(rows) if not json.dumps(row, ensure_ascii=False, default=str).isascii()}
    return rows, frozenset(foreign if bad_lines else ())


def _place(path: Path, data: bytes, parting: bytes, line: int) -> str:
    """The row that the line stands in, in words; the line itself where the rows cannot be counted up to it."""
    text = parting.join(data.split(parting)[: line + 1]).decode("utf-8", "replace")
    if path.suffix == ".json":
        return f"line {line + 1}"
    if path.suffix == ".jsonl":
        return f"row {sum(bool(t.strip()) for t in text.split(chr(10))) - 1} (line {line + 1})"
    rows = _parse_txt(path, text) if path.suffix == ".txt" else list(csv.reader(io.StringIO(text, newline="")))[1:]
    return f"row {len(rows) - 1}" if rows else "the header"


def _parse_lines(path: Path, text: str, limit: int | None, bad: frozenset[int]) -> tuple[list[Any], frozenset[int]]:
    rows: list[Any] = []
    recoded = set()
    for n, line in enumerate(text.split("\n")):
        if limit is not None and len(rows) >= limit:
            break
        if not line.strip():
            continue
        if n in bad:
            recoded.add(len(rows))
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}: row {len(rows)} (line {n + 1}) is not JSON: {error}", got=_short(line)) from None
    return rows, frozenset(recoded)


def _parse_json(path: Path, text: str) -> list[Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        if "\n{" in text.strip():  # one object a line under the wrong suffix
            return _parse_lines(path, text, None, frozenset())[0]
        raise DataError(f"{path} is not JSON: {error}") from None
    if isinstance(data, dict):
        lists = [v for v in data.values() if isinstance(v, list)]
        data = lists[0] if len(lists) == 1 else data
    if not isinstance(data, list):
        raise DataError(f"{path} holds no list of rows", got=type(data).__name__, expected="an array of objects")
    return data


def _parse_csv(path: Path, text: str) -> list[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV: {error}") from None
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise DataError(f"{path}: row {number} has not as many cells as the header has columns")
    return rows


def _parse_txt(path: Path, text: str) -> list[dict[str, Any]]:
    """Paragraphs, packed into rows of up to `_TXT_CHARACTERS`; a longer one is cut at a line's or sentence's end."""
    paragraphs = [p.strip() for p in text.replace("\r\n", "\n").split("\n\n") if p.strip()]
    pieces = [piece for paragraph in paragraphs for piece in _cut(paragraph)]
    rows: list[str] = []
    for piece in pieces:
        if rows and len(rows[-1]) + 2 + len(piece) <= _TXT_CHARACTERS:
            rows[-1] += "\n\n" + piece
        else:
            rows.append(piece)
    return [{"text": row} for row in rows]


def _cut(paragraph: str) -> Iterator[str]:
    while len(paragraph) > _TXT_CHARACTERS:
        ends = (paragraph.rfind(mark, 1, _TXT_CHARACTERS) for mark in ("\n", ". ", "! ", "? ", " "))
        end = next((e + 1 for e in ends if e > _TXT_CHARACTERS // 2), _TXT_CHARACTERS)
        yield paragraph[:end].strip()
        paragraph = paragraph[end:].strip()
    if paragraph:
        yield paragraph


def _read_parquet(path: Path, limit: int | None) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Any] = []
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                rows += batch.to_pylist()
                if limit is not None and len(rows) >= limit:
                    break
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    return rows[:limit]


def _read_hub(source: str, limit: int | None, *, streaming: bool) -> list[Any]:
    name, _, configuration = source.partition(":")
    _check_hub(name)
    from datasets import load_dataset

    try:
        parts = load_dataset(name, configuration or None, streaming=streaming, cache_dir=str(cache_folder("datasets")))
        part = parts["train"] if "train" in parts else next(iter(parts.values()))
        return list(part if limit is None else part.take(limit))
    except Exception as error:  # gated, a script, an unknown configuration: the library raises a dozen kinds
        raise DataError(f"the hub's data set {source} cannot be read: {_short(str(error.__cause__ or error))}") from None


def _check_hub(name: str) -> None:
    """Ask once, without the minute of retries that `datasets` spends on a hub out of reach."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    expected = f"a {', '.join(SUFFIXES)} file or a Hub id"
    try:
        HfApi().dataset_info(name, timeout=10)
    except OfflineModeIsEnabled:
        return  # then `datasets` looks into its cache at once
    except RepositoryNotFoundError:
        raise DataError("no such data, neither as a file nor on the hub", got=name, expected=expected) from None
    except Exception:  # offline in any of its many ways, or not a well-formed id
        if list(cache_folder("datasets").glob(name.replace("/", "___"))):
            expected = "the hub, or HF_HUB_OFFLINE=1 to take what was fetched before"
        raise DataError(
            "no such data: not a file, and the hub cannot be reached", got=name, expected=expected
        ) from None
