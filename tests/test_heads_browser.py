"""The page of the heads as it runs: its scripts, and the page driven in a real browser."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import zlib
from importlib import resources
from pathlib import Path

import pytest

import browser
from atlases import TEXT, atlas
from intaglio.analyse.heads.choices import choice_of
from intaglio.report.heads import render_heads
from test_heads_page import trace
from test_pages import WATCH

ASSETS = Path(str(resources.files("intaglio.report"))) / "assets"
DRIVE = "<script>" + (Path(__file__).parent / "drive_heads.js").read_text(encoding="utf-8") + "</script>"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no node")
@pytest.mark.parametrize("name", sorted(p.name for p in (ASSETS / "heads").glob("*.js")))
def test_scripts_are_valid(name):
    done = subprocess.run([NODE, "--check", str(ASSETS / "heads" / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(NODE is None, reason="no node")
def test_inflating_gives_back_what_zlib_deflated():
    rng = random.Random(0)
    cases = [
        b"",
        b"a",
        bytes(5000),
        bytes(rng.randrange(256) for _ in range(3000)),
        bytes(rng.choice((0, 0, 0, 7, 255)) for _ in range(70_000)),
        ("кот " * 900).encode(),
    ]
    packed = [
        (base64.b64encode(zlib.compress(c, level)).decode(), base64.b64encode(c).decode(), len(c))
        for c in cases
        for level in (0, 1, 6, 9)
    ]
    fixed = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_FIXED)
    packed.append(
        (
            base64.b64encode(fixed.compress(cases[4]) + fixed.flush()).decode(),
            base64.b64encode(cases[4]).decode(),
            len(cases[4]),
        )
    )
    code = (ASSETS / "heads" / "inflate.js").read_text(encoding="utf-8") + (
        "const seen = JSON.parse(require('fs').readFileSync(0, 'utf8')).map(([p, c, n]) => "
        "Buffer.from(inflate(new Uint8Array(Buffer.from(p, 'base64')), n)).toString('base64') === c); "
        "console.log(JSON.stringify(seen));"
    )
    done = subprocess.run([NODE, "-e", code], input=json.dumps(packed), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True] * len(packed)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    told = choice_of(trace(layers=12, heads=9), layers=12, heads=9, page="./why.html")
    one, two = atlas(12, 9), atlas(6, 6, beside=2)
    one.about["choices"] = [told]
    cases = {
        "one": one,
        "two": two,
        "past": atlas(3, 4, tables={"history", "losses", "events", "teachers"}),
        "broad": atlas(4, 32),
    }
    return {f"{name}-{lang}": render_heads(a, lang=lang) for name, a in cases.items() for lang in ("en", "ru")}


def visit(page: str, folder: Path, width: int = 1440, place: str = "", wanted: str | None = None) -> dict:
    """What the script of these tests saw on a page."""
    watch = WATCH + (f"<script>window.wanted='{wanted}'</script>" if wanted else "")
    return browser.visit(page, folder, width, watch=watch, drive=DRIVE, place=place)


in_browser = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")


@pytest.mark.page
@in_browser
@pytest.mark.parametrize(
    ("name", "width"), [("one-ru", 1440), ("two-ru", 900), ("two-en", 500), ("past-ru", 900), ("broad-ru", 1440)]
)
def test_nothing_sticks_out(pages, name, width, tmp_path):
    seen = visit(pages[name], tmp_path, width)
    assert seen["faults"] == [] and seen["theme"]
    assert max(seen[k] for k in ("width", "card_width", "pin_width")) <= 0 and seen.get("thumbs_width", 0) <= 0
    assert seen["clipped"] == [] and seen["spilt"] == 0


@pytest.mark.page
@in_browser
def test_a_head_shows_its_pattern_opens_and_is_pinned(pages, tmp_path):
    seen = visit(pages["one-en"], tmp_path, wanted="1.2")
    assert seen["start"] == {"cards": [], "shown": "0", "off": 0, "hash": ""}
    assert "Head 1.2" in seen["peek"] and seen["thumb"] > 8 and seen["gone"] and seen["big"] > 8
    assert seen["open"] == [["1.2"], "#head=1.2"] and seen["pinned"] == [["1.2", "11.8"], "#head=1.2&pin=11.8"]
    for words in (
        "Where it looks",
        "Weights alone",
        "Composition",
        "Its bytes in the file",
        "All roles tested: ",
        "vote +2 logits (place 2 of 2 parts)",
    ):
        assert words in seen["text"], words
    assert (
        seen["looks"].startswith(f"From {TEXT[-1]}")
        and seen["walked"] == "1.3"
        and seen["focus_peek"]
        and seen["spaced"] == "#head=1.2&pin=11.8,1.3"
    )
    role, left, place = seen["role"]
    assert set(left) == {role} and f"role={role}" in place
    assert seen["layer"][0] == [f"1.{h}" for h in range(9)] and "layer=1" in seen["layer"][1] and seen["thumbs"] == 108
    assert seen["closed"] == [["11.8"], "#pin=11.8"] and seen["linked"][0] == seen["linked"][1][0]


@pytest.mark.page
@in_browser
def test_an_address_opens_what_it_names(pages, tmp_path):
    start = visit(pages["two-ru"], tmp_path, place="#head=3.4&pin=0.1,5.5,9.9&role=induction&side=c")["start"]
    assert start["cards"] == ["3.4", "0.1", "5.5"] and start["shown"] == "0,2" and start["off"] > 0
    nothing = visit(pages["one-en"], tmp_path, place="#head=99.1&pin=x&side=z&layer=77")
    assert nothing["faults"] == [] and nothing["start"]["cards"] == []


@pytest.mark.page
@in_browser
def test_two_sides_stand_next_to_each_other_with_one_selection(pages, tmp_path):
    seen = visit(pages["two-en"], tmp_path, wanted="2.3")
    assert seen["start"]["shown"] == "0,1" and seen["open"] == [["2.3"], "#head=2.3&side=b"]
    assert len(seen["both"]) == 2 and set(seen["both"]) == {TEXT[-1]}  # one place in both patterns
    assert [c[0] for c in seen["columns"]] == ["A", "B"] * 2 and seen["alone"] == ["0", 0, "#head=2.3&pin=5.5&side=a"]
