"""`intaglio tensors --diff` and `--walk` as they are typed: what is printed, what is written, what is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import byte_tokenizer
from families import family
from intaglio.cli import main


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    family("llama").save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    shutil.copytree(folder / "base", folder / "tuned")
    weights = {n: w.copy() for n, w in load_file(folder / "base/model.safetensors").items()}
    weights["model.layers.1.self_attn.o_proj.weight"][:, :12] += 0.1
    weights["model.embed_tokens.weight"][70] += 0.1
    save_file(weights, folder / "tuned/model.safetensors")
    return folder / "base", folder / "tuned"


def _run(capsys: pytest.CaptureFixture, *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["tensors", *map(str, words)])
    assert not stopped.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_difference_is_printed_and_written(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, lang: str):
    out, data = tmp_path / "moved.html", tmp_path / "moved.json"
    said = _run(capsys, pair[0], "--diff", pair[1], "--out", out, "--json", data, "--lang", lang)
    assert "model.layers.1.self_attn.o_proj.weight" in said and "L1.attn.H0" in said and str(out) in said
    held = json.loads(data.read_text())
    assert held["changed"] == 48 * 12 + 48 and len(held["tables"]["heads"]) == 12 and held["base"] == "base"
    assert {r["token"] for r in held["tables"]["tokens"]} == {70}
    page = out.read_text()
    assert f'lang="{lang}"' in page and page.count("<svg") == 3 and "L1.attn.H0" in page
    assert "rank_by" not in page and "None" not in page


def test_lengths_alone(pair: tuple[Path, Path], capsys: pytest.CaptureFixture):
    said = _run(capsys, pair[0], "--diff", pair[1], "--no-spectra")
    assert "were not asked for" in said and "rank" not in said.partition("Ranks")[0]


def test_a_checkpoint_and_itself(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    said = _run(capsys, pair[0], "--diff", pair[0], "--out", tmp_path / "same.html")
    assert "Nothing moved" in said and (tmp_path / "same.html").stat().st_size > 10_000


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_a_walk_is_printed_and_written(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, lang: str):
    out, data = tmp_path / "walk.html", tmp_path / "walk.json"
    said = _run(capsys, pair[0], "--walk", "1.2", "--out", out, "--json", data, "--lang", lang)
    held = json.loads(data.read_text())
    assert held["walk"]["address"] == "L1.attn.H2" and len(held["places"]) == 4
    for line in held["walk"]["code"]:
        assert line in said  # whole, however long: it is there to be copied
    page = out.read_text()
    assert "pattern = (turn(q)" in page and page.count("<pre") == 2 and f'lang="{lang}"' in page


@pytest.mark.parametrize(("words", "says"), [
    (("--diff", "NONE"), "no such"),
    (("--diff", "TUNED", "--walk", "L1.mlp"), "exclude each other"),
    (("--diff", "TUNED", "--out", "moved.txt"), "--out names a page"),
    (("--diff", "TUNED", "--out", "nowhere/moved.html"), "no such folder"),
    (("--walk", "L9.mlp"), "no such layer"), (("--walk", "L1.attn.H9"), "no such head"),
    (("--walk", "nothing"), "not an address"),
    (("--walk", "L1.mlp", "--spectra"), "--spectra belongs to"),
    (("--diff", "SMALL"), "not of one shape"), (("--diff", "ADAPTER"), "does not say lora_alpha"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, words: tuple[str, ...], says: str
):
    small, adapter = tmp_path / "small", tmp_path / "adapter"
    small.mkdir()
    adapter.mkdir()
    save_file({"model.norm.weight": np.ones(3, np.float32)}, small / "model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({f"base_model.model.model.layers.1.self_attn.q_proj.lora_{x}.weight": np.ones(shape, np.float32)
               for x, shape in (("A", (2, 48)), ("B", (48, 2)))}, adapter / "adapter_model.safetensors")  # fmt: skip
    named = {"TUNED": pair[1], "NONE": tmp_path / "none", "SMALL": small, "ADAPTER": adapter}
    with pytest.raises(SystemExit) as stopped:
        main(["tensors", str(pair[0]), *(str(named.get(w, w)) for w in words)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and says in error and error.count("\n") == 1 and "Traceback" not in error


def test_neither_imports_torch(pair: tuple[Path, Path], tmp_path: Path):
    """A header and some numbers do not need it, and it takes seconds."""
    import subprocess
    import sys

    code = (
        "import sys; from intaglio.cli import main\n"
        f"for more in (['--diff', {str(pair[1])!r}, '--out', {str(tmp_path / 'd.html')!r}], ['--walk', 'L1.attn.H0']):\n"
        f"    try: main(['tensors', {str(pair[0])!r}, *more])\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
