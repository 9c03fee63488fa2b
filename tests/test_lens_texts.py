"""Of all lenses: the toy prints what stands beside it; both languages say the same."""

from __future__ import annotations

import contextlib
import io
import re
from importlib import resources

import pytest
import torch

from intaglio.trace import LENSES
from lens_checks import names_in, texts


@pytest.mark.parametrize("lens", LENSES)
def test_a_toy_prints_what_stands_beside_it(lens):
    folder = resources.files("intaglio.report.choice") / "toys"
    code = (folder / f"{lens}.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 15
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, lens, "exec"), {})
    assert said.getvalue() == (folder / f"{lens}.out").read_text(encoding="utf-8")


@pytest.mark.parametrize("lens", LENSES)
def test_both_languages_say_the_same_things(lens):
    english, russian = texts(lens, "en"), texts(lens, "ru")
    assert english and english.keys() == russian.keys()
    for key, text in english.items():
        assert names_in(text) == names_in(russian[key]), key
        if not key.endswith("sources") and len(text) > 25:
            assert re.search("[а-я]{3}", russian[key]), key
    assert len(re.findall(r"[.?!](?:\s|$)", english["essence"])) <= 5
