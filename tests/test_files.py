"""Files that are asked for are whole under their name, or not there, whoever writes them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import torch

import intaglio
from intaglio.atlas import AtlasData
from intaglio.errors import InputError, StoreError
from intaglio.files import check_file, write_lines, write_text, write_whole
from intaglio.measure.choice.tuned import TunedLens, save_lens
from intaglio.measure.tensors.diff import Difference
from intaglio.model.proof import prove
from intaglio.model.subject import load_subject
from intaglio.trace import TraceData
from intaglio.views import Atlas, Trace
from synthetic import World, write_run

SOURCES = Path(intaglio.__file__).parent
PLAIN = re.compile(r"""\.write_(?:text|bytes)\(|save_file\(|open\([^)]*["'](?:[wxa]b?|r\+b)["']""")
ASIDE = {  # into what is renamed, and the lock of a run, which is empty
    "files.py", "checkpoint.py", "model/header.py", "model/surgery.py", "measure/choice/tuned.py", "store/run.py",
}  # fmt: skip


def lens_of(tiny, path):
    anatomy = prove(load_subject(tiny).model)
    n, d = anatomy.n_layers, anatomy.width
    save_lens(TunedLens(torch.zeros(n, d, d), torch.zeros(n, d), [0.0], [0.0], 1, 0), anatomy, path)


WRITERS = {
    "text": lambda tiny, path: write_text(path, "text"),
    "lines": lambda tiny, path: write_lines(path, [{"a": 1}]),
    "atlas": lambda tiny, path: AtlasData({}).to_json(path),
    "page of heads": lambda tiny, path: Atlas({}).to_html(path),
    "trace": lambda tiny, path: TraceData({}).to_json(str(path)),
    "page of a decision": lambda tiny, path: Trace({}).to_html(str(path)),
    "difference": lambda tiny, path: Difference({}).to_json(path),
    "lens": lens_of,
}
EVERY = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture(autouse=True)
def _pages_without_content(monkeypatch):
    monkeypatch.setattr("intaglio.report.heads.render_heads", lambda *_, **__: "page")
    monkeypatch.setattr("intaglio.report.choice.render_choice", lambda *_, **__: "page")
    monkeypatch.setattr("intaglio.analyse.choice.answer.answer", lambda *_: None)


@pytest.fixture
def full_disk(monkeypatch):
    """The first bytes of every file are written, and then there is no more room."""
    class Short:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:2])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def writelines(self, lines):
            self.write(next(iter(lines)))

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *a, **k: (
        Short(opened(self, mode, *a, **k)) if "w" in mode else opened(self, mode, *a, **k)))  # fmt: skip
    monkeypatch.setattr(Path, "write_text", lambda self, text, **k: self.open("w", encoding="utf-8").write(text))
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: self.open("wb").write(data))


@EVERY
def test_what_is_written_is_there_and_nothing_else(tiny, tmp_path, write):
    write(tiny, tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").stat().st_size


@EVERY
@pytest.mark.parametrize("old", [False, True])
def test_a_disk_that_fills_leaves_what_was_there(tiny, tmp_path, write, old, request):
    if old:
        (tmp_path / "file").write_text("as it was")
    request.getfixturevalue("full_disk")
    with pytest.raises(StoreError, match=r"cannot write .*file: No space left"):
        write(tiny, tmp_path / "file")
    request.getfixturevalue("monkeypatch").undo()
    assert [p.name for p in tmp_path.iterdir()] == ["file"] * old
    assert not old or (tmp_path / "file").read_text() == "as it was"


@EVERY
def test_a_folder_that_is_missing_or_a_folder_in_its_place(tiny, tmp_path, write):
    with pytest.raises(StoreError, match=r"cannot write .*file: No such file or directory"):
        write(tiny, tmp_path / "missing" / "file")
    (tmp_path / "file").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*file: Is a directory"):
        write(tiny, tmp_path / "file")
    assert [p.name for p in tmp_path.rglob("*")] == ["file"]


def test_what_is_interrupted_leaves_nothing(tmp_path):
    def write(place):
        place.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_stays_a_pipe_and_a_link_a_link(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link.html"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "page")
    assert os.read(reader, 10) == b"page" and pipe.is_fifo()
    os.close(reader)
    link.symlink_to(tmp_path / "page.html")
    write_text(link, "page")
    assert link.is_symlink() and (tmp_path / "page.html").read_text() == "page"


def test_a_pipe_without_a_name_is_written_to():
    read, write = os.pipe()
    path = Path(f"/dev/fd/{write}")
    check_file(path)
    write_text(path, "page")
    assert os.read(read, 10) == b"page"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(("name", "said"), [
    ("missing/file", "no such folder"), ("folder", "this is a folder"), ("x" * 241, "File name too long"),
    ("x" * 300, "File name too long"), ("/proc/file", "cannot write"), ("link", "no such folder"),
])  # fmt: skip
def test_what_cannot_be_written_is_known_before(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "file")
    with pytest.raises(InputError, match=said):
        check_file(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link"]


@pytest.mark.parametrize("name", ["ж" * 120, "x" * 240, "一" * 80])
def test_what_may_be_written_can_be(tmp_path, name):
    check_file(tmp_path / name)
    write_text(tmp_path / name, "page")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def begun(*_, **__):
    pytest.fail("the work was begun")


BEFORE = {  # a command's words but for the options that name files, those options, and what it begins its work with
    "heads": (("heads", "TINY"), ("--out", "--json"), "intaglio.roles.heads"),
    "history": (("heads", "TINY", "--history"), ("--out", "--json"), "intaglio.history.history_of"),
    "why": (("why", "TINY", "a"), ("--out", "--json"), "intaglio.choice.why"),
    "why over a set": (("why", "TINY", "--prompts", "TEXT"), ("--json",), "intaglio.model.subject.load_subject"),
    "tensors": (("tensors", "TINY"), ("--json",), "intaglio.model.tensors.open_checkpoint"),
    "address": (("tensors", "TINY", "--address", "0.0"), ("--json",), "intaglio.model.tensors.open_checkpoint"),
    "diff": (("tensors", "TINY", "--diff", "TINY"), ("--out", "--json"), "intaglio.model.tensors.open_checkpoint"),
    "walk": (("tensors", "TINY", "--walk", "0.0"), ("--out", "--json"), "intaglio.model.tensors.open_checkpoint"),
    "head": (("tensors", "TINY", "--head", "0.0"), ("--out", "--json"), "intaglio.model.tensors.open_checkpoint"),
    "graft": (("tensors", "TINY", "--graft", "TEXT"), ("--out",), "intaglio.model.tensors.open_checkpoint"),
    "taught": (("taught", "RUN", "0.0"), ("--json",), "intaglio.analyse.heads.teachers.teachers_of"),
    "replay": (("replay", "RUN", "--tokens", "0.0"), ("--out",), "intaglio.replaying.open_replay"),
    "born": (("born",), ("--out",), "intaglio.born.make_subject"),
    "report": (("report", "RUN"), ("--out",), "intaglio.analyse.shift.analyse_run"),
    "compare": (("compare", "RUN", "RUN"), ("--out",), "intaglio.analyse.analyse_run"),
    "rows": (("rows", "RUN"), ("--out",), "intaglio.commands.rows.analyse_run"),
    "drop": (("rows", "RUN", "--out", "OUT"), ("--drop",), "intaglio.commands.rows.analyse_run"),
    "scan": (("scan", "TINY", "TEXT"), ("--out",), "intaglio.model.subject.load_subject"),
    "train": (("train", "TINY", "TEXT"), ("--out",), "intaglio.model.subject.load_subject"),
    "steps": (("steps", "TINY"), ("--out",), "intaglio.model.subject.load_subject"),
    "both": (("steps", "TINY", "--rotation", "both"), ("--out",), "intaglio.model.subject.load_subject"),
    "lens train": (("lens", "train", "TINY", "TEXT"), ("--out",), "intaglio.model.subject.load_subject"),
}


@pytest.mark.parametrize(("words", "options", "work"), BEFORE.values(), ids=BEFORE)
def test_every_command_refuses_a_bad_place_before_its_work(tiny, tmp_path, refused, monkeypatch, words, options, work):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", World())
    (tmp_path / "text").write_text("text")
    (tmp_path / "in").mkdir()
    before = sorted(tmp_path.rglob("*"))
    named = {"TINY": tiny, "RUN": tmp_path / "run", "TEXT": tmp_path / "text", "OUT": tmp_path / "in" / "out"}
    monkeypatch.setattr(work, begun)
    ending = ".safetensors" if words[0] == "lens" or "--head" in words else ".html"
    for option in options:
        more = ("--out", "new.safetensors") if option == "--json" and "--head" in words else ()
        for place in ("/proc/none", tmp_path / "text" / "under"):
            said = refused(*(named.get(w, w) for w in words), *more, option, f"{place}{ending}")
            assert any(w in said for w in ("cannot write", "no such folder")), said
    assert sorted(tmp_path.rglob("*")) == before


def test_nobody_writes_past_it():
    met = {str(p.relative_to(SOURCES)) for p in SOURCES.rglob("*.py") if PLAIN.search(p.read_text(encoding="utf-8"))}
    assert met == ASIDE
