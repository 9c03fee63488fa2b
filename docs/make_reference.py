"""Write docs/reference/ from the code, so that it cannot say anything else than the code does.

    python docs/make_reference.py            # write
    python docs/make_reference.py --check    # say which pages differ; exit code 1 if any does
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from pathlib import Path

import intaglio
from intaglio import errors
from intaglio.cli import COMMANDS, function_of
from intaglio.tables import ATLAS_TABLES, SCHEMA_VERSION, TABLES, TRACE_TABLES, Column, Table

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/make_reference.py. Change the code, not this page. -->\n\n"
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns)\b(.*):$")
_NAMES = {Path: "path", str: "text", int: "whole number", float: "number", bool: "switch"}


# -- tables


def tables_page() -> str:
    """Every table with its key, every column with type, unit and meaning."""
    head = (
        "# Tables of a run\n\n"
        f"Schema version {SCHEMA_VERSION}. A run keeps each table as parquet files in a folder of its name; "
        "`intaglio query`, `Run.sql` and `Run.table` read them. **Bold** columns are the key: one row per "
        "combination. What was not measured is null, never 0.\n\n"
        "Lengths are in *parameter length*, the Euclidean length of a change of all weights. Divide by "
        "`unit_length` of the run's `manifest.json` to have u, one millionth of the initial weights' length.\n\n"
    )
    index = "".join(f"- [`{t.name}`](#{t.name}): {t.means}\n" for t in TABLES.values())
    trace = (
        "\n# Tables of a trace\n\nWhat `intaglio why` measured on one decision; `Trace.table` reads them, "
        "`--json` writes them.\n\n"
        + "".join(f"- [`{t.name}`](#{t.name}): {t.means}\n" for t in TRACE_TABLES.values())
    )
    atlas = (
        "\n# Tables of an atlas\n\nWhat `intaglio heads` found about every attention head; `Atlas.rows_of` reads them, "
        "`--json` writes them.\n\n"
        + "".join(f"- [`{t.name}`](#{t.name}): {t.means}\n" for t in ATLAS_TABLES.values())
    )
    parts = ((head + index, TABLES), (trace, TRACE_TABLES), (atlas, ATLAS_TABLES))
    return NOTE + "".join(top + "".join(map(_table, tables.values())) for top, tables in parts)


def _table(table: Table) -> str:
    rows = "".join(_column(column, column.name in table.key) for column in table.columns)
    key = ", ".join(f"`{name}`" for name in table.key)
    return (
        f"\n## {table.name}\n\n{_sentence(table.means)} Key: {key}.\n\n"
        f"| column | type | unit | meaning |\n|---|---|---|---|\n{rows}"
    )


def _column(column: Column, is_key: bool) -> str:
    name = f"**`{column.name}`**" if is_key else f"`{column.name}`"
    return f"| {name} | {_cell(column.type)} | {_cell(column.unit)} | {_cell(column.means)} |\n"


# -- commands


def commands_page() -> str:
    """Every command with its examples and parameters."""
    head = (
        "# Commands\n\n"
        "`intaglio COMMAND --help` says the same in the terminal. A mistake in what was asked is one line and exit "
        "code 2. Exit code 130: interrupted, and what was written is kept.\n\n"
    )
    index = "".join(f"- [`intaglio {c}`](#intaglio-{c.replace(' ', '-')}): {_summary(function_of(c))}\n" for c in COMMANDS)
    return NOTE + head + index + "".join(_command(c, function_of(c)) for c in COMMANDS)


def _command(name: str, function: types.FunctionType) -> str:
    text, meanings = _numpy_sections(inspect.getdoc(function) or "")
    hints = typing.get_type_hints(function)
    rows = "".join(
        f"| `{_flag(p)}` | {_cell(_kind(hints[p.name]))} | {_cell(_default(p))} | {_cell(meanings[p.name])} |\n"
        for p in inspect.signature(function).parameters.values()
    )
    table = f"| parameter | takes | default | meaning |\n|---|---|---|---|\n{rows}"
    return f"\n## intaglio {name}\n\n{text}\n\n{table}"


def _numpy_sections(doc: str) -> tuple[str, dict[str, str]]:
    """The text before `Parameters`, and the meaning of each parameter."""
    text, _, below = doc.partition("Parameters\n----------\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in below.splitlines():
        if line and not line[0].isspace():
            name = line.strip()
            meanings[name] = ""
        elif name:
            meanings[name] = f"{meanings[name]} {line.strip()}".strip()
    return _example_lines(text.rstrip()), meanings


def _example_lines(text: str) -> str:
    """Examples one below the other, without the empty lines that --help needs between them."""
    return re.sub(r"(\n    intaglio [^\n]*)\n(?=\n    intaglio )", r"\1", text)


def _flag(parameter: inspect.Parameter) -> str:
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return parameter.name.upper().replace("_", "-")
    return "--" + parameter.name.replace("_", "-")


def _kind(hint: object) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(str(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _kind(next(a for a in typing.get_args(hint) if a is not type(None)))
    if typing.get_origin(hint) is list:
        return _kind(typing.get_args(hint)[0]) + ", may be repeated"
    return _NAMES[hint]


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return "required"
    if parameter.default is None or parameter.default is False:
        return ""
    return f"`{parameter.default}`"


# -- errors


def errors_page() -> str:
    """The tree of errors, and what each one is."""
    _, _, tree = (errors.__doc__ or "").partition("\n\n")
    tree, _, rest = tree.rstrip().partition("\n\nAnything else")
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__]
    body = "".join(f"\n## {c.__name__}\n\n{_google(inspect.getdoc(c) or '')}\n" for c in classes)
    return (
        NOTE + "# Errors\n\nEvery error that is the user's to mend is an `IntaglioError`, in `intaglio.errors`. Its "
        "text is one line: what went wrong, what was got, what was expected. The command line prints that line and "
        f"ends with exit code 2.\n\n{tree}\n\nAnything else{rest}\n{body}"
    )


# -- python


def python_page() -> str:
    """Everything in `intaglio.__all__`."""
    names = sorted((n for n in intaglio.__all__ if not n.startswith("_")), key=str.lower)
    head = (
        "# Python\n\n`import intaglio` gives the names below and imports neither torch nor transformers until `Ledger` "
        "or `LedgerCallback` is touched. Everything else may change between versions.\n\n"
    )
    index = "".join(f"- [`intaglio.{n}`](#{n.lower()}): {_summary(getattr(intaglio, n))}\n" for n in names)
    return NOTE + head + index + "".join(_public(n, getattr(intaglio, n)) for n in names)


def _public(name: str, thing: object) -> str:
    doc = _google(inspect.getdoc(thing) or "")
    said = f"\n## {name}\n\n```python\nintaglio.{name}{_signature(thing)}\n```\n\n{doc}\n"
    if not inspect.isclass(thing):
        return said
    for member, value in vars(thing).items():
        function = value.fget if isinstance(value, property) else value
        if member.startswith(("_", "on_")) or not inspect.isfunction(function) or not function.__doc__:
            continue
        call = "" if isinstance(value, property) else _signature(function)
        said += f"\n### {name}.{member}{call}\n\n{_google(inspect.getdoc(function) or '')}\n"
    return said


def _signature(thing: object) -> str:
    """The call, with annotations as the source writes them; on several lines where it is long."""
    signature = inspect.signature(thing)
    parts, starred = [], False
    for p in signature.parameters.values():
        if p.name == "self":
            continue
        if p.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        mark = "**" if p.kind is inspect.Parameter.VAR_KEYWORD else ""
        default = "" if p.default is inspect.Parameter.empty else f" = {p.default!r}"
        parts.append(f"{mark}{p.name}: {p.annotation}{default}")
    returned = "" if inspect.isclass(thing) else f" -> {signature.return_annotation}"
    one_line = f"({', '.join(parts)}){returned}"
    return one_line if len(one_line) <= 100 else "(\n" + "".join(f"    {p},\n" for p in parts) + f"){returned}"


# -- text


def _google(doc: str) -> str:
    """A docstring with `Args:` and its like as Markdown lists."""
    lines, section = [], ""
    for line in doc.splitlines():
        found = _SECTION.match(line)
        if found:
            section = found[1]
            lines += [f"**{found[1].replace('Args', 'Parameters')}{found[2]}**", ""]
        elif not section or not line.startswith("    "):
            section = section if not line else ""
            lines.append(line)
        elif line.startswith("        "):
            lines[-1] += " " + line.strip()
        elif section == "Returns":
            lines.append(line.strip())
        else:
            name, colon, meaning = line.strip().partition(": ")
            lines.append(f"- `{name}`: {meaning}" if colon else f"- {line.strip()}")
    return "\n".join(lines)


def _summary(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    pages = {"tables.md": tables_page(), "commands.md": commands_page(), "errors.md": errors_page(),
             "python.md": python_page()}  # fmt: skip
    differ = []
    for name, page in pages.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            differ.append(name)
            if "--check" not in sys.argv[1:]:
                FOLDER.mkdir(exist_ok=True)
                path.write_text(page, encoding="utf-8")
    print(f"{', '.join(differ) or 'no page'} {'differ' if '--check' in sys.argv[1:] else 'written'}")
    return 1 if differ and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    raise SystemExit(main())
