"""What the docs say is what the code does: reference, commands, examples, links."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from intaglio.cli import COMMANDS, app, function_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
_CODE = re.compile(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SAID = re.compile(r"^\s*(?:\$ )?(intaglio (?:" + "|".join(COMMANDS) + r")\b.*)$", re.MULTILINE)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _commands_in(text: str) -> set[str]:
    return set(re.findall(rf"\bintaglio ({'|'.join(COMMANDS)})\b", text))


def _slugs(text: str) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_reference_is_what_the_code_says():
    found = subprocess.run(
        [sys.executable, str(DOCS / "make_reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, f"run python docs/make_reference.py: {found.stdout}{found.stderr}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented(name: str):
    function = inspect.unwrap(function_of(name))
    doc = inspect.getdoc(function) or ""
    examples = re.search(r"^Examples:\n\n((?: {4}.*\n|\n)+)", doc, re.MULTILINE)
    assert examples and f"    intaglio {name} " in examples[1]
    described = doc.partition("Parameters\n----------\n")[2]
    missing = [p for p in inspect.signature(function).parameters if not re.search(rf"^{p}$", described, re.MULTILINE)]
    assert not missing, f"--help says nothing of {missing}"
    assert name in _commands_in(_read(ROOT / "README.md"))


def test_both_readmes_show_the_same():
    english, russian = _read(ROOT / "README.md"), _read(ROOT / "README.ru.md")
    assert _commands_in(english) == _commands_in(russian) == set(COMMANDS)
    assert len(re.findall(r"^## ", english, re.MULTILINE)) == len(re.findall(r"^## ", russian, re.MULTILINE))
    blocks = [re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for text in (english, russian)]
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page: Path):
    for target in _LINK.findall(_CODE.sub("", _read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor and found.suffix == ".md":
            assert anchor in _slugs(_read(found)), f"{page.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_line_shown_can_be_typed(page: Path):
    for line in _SAID.findall(_read(page)):
        line = line.partition("  #")[0]
        if "MODEL" in line:
            continue
        words = shlex.split(line)[1:]
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert bound.arguments, line


def test_the_index_names_every_page():
    linked = {(DOCS / t.partition("#")[0]).resolve() for t in _LINK.findall(_read(DOCS / "README.md"))}
    missing = [str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md") if p != DOCS / "README.md" and p not in linked]
    assert not missing


def test_the_source_tree_of_the_readme_is_the_source_tree():
    package = ROOT / "src" / "intaglio"
    parts = {p.name for p in package.iterdir() if not p.name.startswith("_") and (p.suffix == ".py" or p.is_dir())}
    for readme in ("README.md", "README.ru.md"):
        named = set(re.findall(r"^ {6}([a-z]+(?:\.py|/))", _read(ROOT / readme), re.MULTILINE))
        assert {n.rstrip("/") for n in named} == parts, readme
