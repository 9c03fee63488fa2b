"""The command line: what it costs to ask for help, what help says, how it refuses; and the package's surface."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import intaglio
from intaglio.cli import COMMANDS, GROUPS, function_of

HEAVY = {"torch", "transformers", "peft", "datasets", "scipy", "altair", "duckdb"}
MOST_SECONDS = 1.5  # of processor time; about 0.4 on an idle machine


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def help_of(*words: str) -> tuple[str, set[str], float]:
    """What help prints, the modules it loaded, and its processor seconds."""
    done = python(
        "import sys, time\n"
        "from intaglio.cli import main\n"
        "try:\n"
        f"    main({[*words]!r})\n"
        "except SystemExit as stopped:\n"
        "    assert not stopped.code, stopped.code\n"
        "print(time.process_time(), *sys.modules, sep='\\n', file=sys.stderr)"
    )
    assert done.returncode == 0, done.stderr[-600:]
    seconds, *modules = done.stderr.splitlines()
    return done.stdout, set(modules), float(seconds)


def first_line(command: str) -> str:
    function = function_of(command)
    return inspect.getdoc(function).splitlines()[0]


def flat(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("words", [("--help",), ("-h",), ()])
def test_help_lists_every_command_with_the_first_line_of_its_documentation(words):
    said, modules, seconds = help_of(*words)
    for command in COMMANDS:
        group, _, _ = command.rpartition(" ")
        assert (f"{group} {GROUPS[group]}" if group else f"{command} {first_line(command)}") in flat(said), command
    assert not HEAVY & modules and seconds < MOST_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example_and_every_option(command):
    said, modules, seconds = help_of(*command.split(), "--help")
    assert f"intaglio {command} " in said.split("Examples:")[1] and first_line(command) in flat(said)
    function = function_of(command)
    for name, parameter in inspect.signature(function).parameters.items():
        option = name.upper() if parameter.kind is parameter.POSITIONAL_ONLY else f"--{name.replace('_', '-')}"
        assert option in said or name.upper() in said, name
        assert f"\n{name}\n" in inspect.getdoc(function), f"{name} is not explained"
    assert not HEAVY & modules and seconds < MOST_SECONDS


def test_what_is_shared_is_explained_once_and_alike():
    """Every option that two commands have under one name says the same, or stands explained in the command itself."""
    from intaglio.commands.options import HELP, explained

    @explained
    def command(subject: str, *, lang: str = "en", seed: int = 0) -> None:
        """A line.

        Parameters
        ----------
        seed
            Of nothing,
            on two lines.
        """

    assert inspect.getdoc(command) == (
        f"A line.\n\nParameters\n----------\nsubject\n    {HELP['subject']}\nlang\n    {HELP['lang']}\n"
        "seed\n    Of nothing,\n    on two lines."
    )
    with pytest.raises(KeyError, match="unheard"):
        explained(lambda unheard: None)
    functions = [function_of(c) for c in COMMANDS]
    docs = [f"\n{inspect.getdoc(f)}\n" for f in functions]
    used = {name for name, text in HELP.items() if any(f"\n{name}\n    {text}\n" in doc for doc in docs)}
    assert used == set(HELP), "help that no command shows"


def test_the_version():
    said, modules, _ = help_of("--version")
    assert said.strip() == intaglio.__version__ and not HEAVY & modules


def test_importing_the_package_loads_nothing():
    done = python("import intaglio, sys; print(*sys.modules)")
    assert not ({"numpy", "pyarrow", "rich", "cyclopts"} | HEAVY) & set(done.stdout.split()), done.stderr


def test_reading_a_run_loads_no_torch():
    done = python("import intaglio, sys; intaglio.open_run, intaglio.Run, intaglio.IntaglioError; print(*sys.modules)")
    assert not {"torch", "transformers"} & set(done.stdout.split()) and done.returncode == 0, done.stderr


def test_the_exports_are_exact_and_each_is_there():
    exported = ["Atlas", "IntaglioError", "Ledger", "LedgerCallback", "Run", "Trace", "__version__", "heads", "open_atlas",
                "open_run", "why"]  # fmt: skip
    assert intaglio.__all__ == exported
    assert dir(intaglio) == sorted(intaglio.__all__)
    for name in intaglio.__all__:
        found = getattr(intaglio, name)
        assert isinstance(found, str) or found.__doc__, name
    assert issubclass(intaglio.Ledger, object) and issubclass(intaglio.IntaglioError, Exception)
    with pytest.raises(AttributeError, match="nothing"):
        intaglio.nothing  # noqa: B018


@pytest.mark.parametrize("words", [
    ("frobnicate",), ("--frobnicate",), ("train",), ("train", "smollm2"), ("train", "smollm2", "d.jsonl"),
    ("train", "smollm2", "d.jsonl", "--out"), ("train", "smollm2", "d.jsonl", "more", "--out", "r"),
    ("train", "smollm2", "d.jsonl", "--out", "r", "--frobnicate", "1"),
    ("train", "smollm2", "d.jsonl", "--out", "r", "--batch-size", "many"),
    ("train", "smollm2", "d.jsonl", "--out", "r", "--level", "all"),
    ("train", "smollm2", "d.jsonl", "--out", "r", "--lang", "de"),
    ("train", "smollm2", "d.jsonl", "--out", "r", "--optimizer", "lion"),
    ("train", "smollm2", "d.jsonl", "--out", "r", "--schedule", "step"),
    ("scan", "smollm2"), ("report",), ("query", "r"), ("rows", "r"), ("compare", "r"), ("doctor",),
    ("query", "r", "select 1", "--format", "xml"), ("steps", "smollm2", "--rotation", "c"),
])  # fmt: skip
def test_a_wrong_command_line_is_one_line(words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(*words)
    named = ("frobnicate", "--frobnicate", "many", "all", "de", "lion", "step", "more", "xml", "c")
    wrong = next((w for w in words if w in named), "")
    assert wrong in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [
    ("train", "m", "d.jsonl", "--out", "r", "--steps", "1.5"), ("train", "m", "d.jsonl", "--out", "r", "--seed", "3.0"),
    ("train", "m", "d.jsonl", "--out", "r", "--lora", "2.5"), ("scan", "m", "d.jsonl", "--out", "r", "--batch-size", "2.5"),
    ("query", "r", "select 1", "--limit", "0.5"), ("rows", "r", "--out", "x", "--worst", "9.9"),
])  # fmt: skip
def test_a_count_is_never_rounded(words, refused):
    said = refused(*words)
    assert words[-1] in said and words[-2] in said and "whole number" in said


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_bar_and_what_is_left_are_seen_on_a_narrow_terminal(columns):
    import io

    from rich.console import Console

    from intaglio.commands.progress import Progress

    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    with Progress(console, 1000, 0) as bar:
        row = {"update_l2": 3.49e-4, "data_shift": 4.9e-5, "agreement_gg": 1.0, "agreement_s": 3.0}
        bar.step(250, 10.123, row)
        bar.live.refresh()
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert any("━" in line and "250/1000" in line and line.endswith(("-:--:--", "0:00:00")) for line in lines), lines
    shown = " ".join(" ".join(lines).split())
    assert "loss 10.123 shift 0.000349 (14% from this step's data) agreement 0.25" in shown and "…" not in shown


def test_a_number_that_is_none_is_not_shown_beside_the_bar():
    import io

    from rich.console import Console

    from intaglio.commands.progress import Progress

    console = Console(file=io.StringIO(), width=80)
    with Progress(console, 10, 0) as bar:
        nan = float("nan")
        bar.step(1, 2.5, {"update_l2": nan, "data_shift": nan, "agreement_gg": nan, "agreement_s": nan})
    assert "loss 2.500" in console.file.getvalue() and "nan" not in console.file.getvalue()


def test_a_warning_of_ours_is_one_line_and_others_stay_as_they_are(tmp_path):
    code = (
        "import warnings\nfrom intaglio.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "warnings.warn('intaglio: the loss is no finite\\nnumber\\x1b', RuntimeWarning)\n"
        "warnings.warn('from elsewhere', UserWarning)\n"
    )
    ours, *others = python(code).stderr.splitlines()
    assert ours == r"intaglio: the loss is no finite number\x1b"
    assert "UserWarning: from elsewhere" in others[0]


def test_interruption_by_hand_is_said_and_is_not_a_fault(monkeypatch, capsys):
    from intaglio.cli import main

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("intaglio.store.run.open_run", stopped)
    with pytest.raises(SystemExit) as found:
        main(["report", "runs/mine"])
    assert found.value.code == 130 and "kept" in capsys.readouterr().err


def test_what_the_machine_refuses_is_one_line_and_a_fault_of_ours_is_not_hidden(monkeypatch, capsys):
    import errno

    from intaglio import cli

    def raises(error):
        def parse_args(*_, **__):
            raise error

        return SimpleNamespace(parse_args=parse_args)

    monkeypatch.setattr(cli, "app", raises(OSError(errno.ENOSPC, "No space left on device", "x/y")))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train"])
    assert stopped.value.code == 2 and capsys.readouterr().err == "intaglio: No space left on device: x/y\n"
    monkeypatch.setattr(cli, "app", raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


@pytest.mark.parametrize("line", [
    "tensors FILE --json FILE", "tensors base --diff FILE --out ./FILE", "compare a FILE --out link",
    "why smollm2 --prompts FILE --json FILE", "train smollm2 mine.jsonl --probe anchor=FILE --out FILE",
    "heads smollm2 --choice FILE --json FILE", "rows FILE --drop FILE --out o",
])  # fmt: skip
def test_a_file_that_is_read_is_never_replaced(line, tmp_path, monkeypatch, capsys):
    from intaglio.cli import main

    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("dear\n")
    Path("link").symlink_to("FILE")
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "a file that is read would be replaced; got --" in said
    assert Path("FILE").read_text() == "dear\n"


def test_a_file_that_was_written_before_may_be_written_again(tmp_path, monkeypatch, capsys):
    from intaglio.cli import main

    monkeypatch.chdir(tmp_path)
    Path("page.html").write_text("old")
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--out", "page.html"])  # a and b are no runs, which is another matter
    assert "replaced" not in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_fault(tmp_path):
    code = "from intaglio import cli; cli.main(['--help'])"
    piped = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    piped.stdout.close()
    said = piped.stderr.read()
    piped.wait()
    assert "Traceback" not in said
