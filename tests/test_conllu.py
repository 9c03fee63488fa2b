"""Treebanks: what is read, what is refused, and which tokens stand for a word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import byte_tokenizer
from intaglio.data.align import tokens_of, tokens_of_words
from intaglio.data.conllu import read_conllu
from intaglio.errors import DataError


def rows(*lines: str) -> str:
    """Lines of a sentence; spaces stand for tabs, missing columns are filled."""
    whole = []
    for line in lines:
        fields = line.split(" ")
        whole.append(line if line.startswith("#") else "\t".join([*fields, *["_"] * (10 - len(fields))]))
    return "\n".join(whole) + "\n\n"


FRENCH = rows(
    "# text = Il va au port.", "# newpar", "1 Il il PRON _ _ 2 nsubj:pass _ _", "2 va aller VERB _ _ 0 root _ _",
    "3-4 au _ _ _ _ _ _ _ _",
    "3 à à ADP _ _ 5 case 5:case _", "4 le le DET _ _ 5 det _ _", "4.1 x x X _ _ _ _ 2:dep _",
    "5 port port NOUN _ _ 2 obl _ SpaceAfter=No", "6 . . PUNCT _ _ 2 punct _ X=1",
)  # fmt: skip
ENGLISH = rows("1-2 don't _ _ _ _ _ _ _ SpaceAfter=No", "1 do do AUX _ _ 0 root _ _", "2 n't not PART _ _ 1 advmod _ _",
               "3 ! ! PUNCT _ _ 1 punct _ _")  # fmt: skip


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "trees.conllu"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_words_know_where_they_are_written(tmp_path: Path) -> None:
    first, second = read_conllu(write(tmp_path, "\ufeff" + FRENCH + "\n" + ENGLISH.rstrip("\n")))
    assert first.text == "Il va au port." and second.text == "don't!"
    assert [(w.form, w.head, w.relation) for w in first.words[:4]] == [
        ("Il", 1, "nsubj"), ("va", -1, "root"), ("à", 4, "case"), ("le", 4, "det")]  # fmt: skip
    assert [first.text[w.begin : w.end] for w in first.words] == ["Il", "va", "au", "au", "port", "."]
    assert [second.text[w.begin : w.end] for w in second.words] == ["do", "n't", "!"]


def test_windows_line_ends_and_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path, (FRENCH + ENGLISH).replace("\n", "\r\n"))
    assert len(read_conllu(path)) == 2 and len(read_conllu(path, most=1)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no sentence"),
        (b"1\t\xff\xfe", "not UTF-8; got byte 0xff at 2"),
        ("one two three\n", "line 1: not ten filled columns"),
        (rows("1 a a X _ _ 0 root _ ").replace("_\t_\n", "_\n"), "line 1: not ten filled columns"),
        (rows("# c", "2 a a X _ _ 0 root"), "line 2: words are not numbered 1, 2, 3; got 2"),
        (rows("1 a a X _ _ 0 root", "x b b X _ _ 1 dep"), "line 2: words are not numbered"),
        (rows("1 a a X _ _ 7 dep"), "line 1: a head that is not another of the sentence's 1 words; got 7"),
        (rows("1 a a X _ _ 1 dep"), "a head that is not another"),
        (rows("1 a a X _ _ -1 dep"), "a head that is not another"),
        (rows("1 a a X _ _ 0 root", "2 b b X _ _ 0 root"), "one root; got 2 roots"),
        (rows("1 a a X _ _ 0 root", "2 b b X _ _ 3 dep", "3 c c X _ _ 2 dep"), "heads that run in a circle"),
        (rows("1-3 ab", "1 a a X _ _ 0 root", "2 b b X _ _ 1 dep"), "over words that are not there; got 1-3"),
        (rows("1 a a X _ _ 0 root", "1-2 ab", "2 b b X _ _ 1 dep"), "does not stand before its words"),
        (rows("2-1 ab", "1 a a X _ _ 0 root"), "does not stand before its words"),
        ("# only words about it\n\n", "a sentence without words"),
        (rows("99999999999999999999 a a X _ _ 0 root"), "words are not numbered"),
    ],
)
def test_what_breaks_the_rules_is_one_line_with_its_number(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=re.escape(says)) as refused:
        read_conllu(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.conllu: No such file"):
        read_conllu(tmp_path / "none.conllu")
    with pytest.raises(DataError, match="cannot read"):
        read_conllu(tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text("0123456789-.\t\n#_ aж", max_size=200).map(str.encode)))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp(), data)
    try:
        assert read_conllu(path)
    except DataError as refused:
        assert "\n" not in str(refused)


@pytest.mark.parametrize(("name", "least"), [("en_ewt_200", 200), ("ru_taiga_200", 200)])
def test_real_treebanks_give_back_their_own_text(shared: Path, name: str, least: int) -> None:
    path = shared / "grammar" / "ud" / f"{name}.conllu"
    found = read_conllu(path)
    stated = re.findall(r"^# text = (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) >= least
    assert [s.text.split() for s in found] == [t.split() for t in stated]


def test_tokens_of_words_with_bytes_and_split_letters() -> None:
    text = "Мир! ab"
    ids, spans = tokens_of(byte_tokenizer(), text)
    assert len(ids) == len(text.encode()) == len(spans)
    assert tokens_of_words(text, spans, [(0, 3), (3, 4), (5, 7)]) == [[0, 1, 2, 3, 4, 5], [6], [8, 9]]


class Slow:
    """A tokenizer that gives no offsets, in sentencepiece's notation."""

    is_fast, all_special_ids, added_tokens_decoder, backend_tokenizer = False, [], {}, None
    pieces = ["▁don", "'t", "▁s", "top", "<0xD0>", "<0xB6>", "q"]

    def __len__(self) -> int:
        return len(self.pieces)

    def get_vocab(self) -> dict[str, int]:
        return {p: i for i, p in enumerate(self.pieces)}

    def convert_ids_to_tokens(self, i: int) -> str:
        return self.pieces[i]

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(range(6))}


def test_a_tokenizer_without_offsets_is_laid_along_the_text() -> None:
    text = "don't stopж"
    _, spans = tokens_of(Slow(), text)
    assert [text[b:e] for b, e in spans] == ["don", "'t", " s", "top", "ж", "ж"]
    assert tokens_of_words(text, spans, [(0, 2), (2, 5), (6, 10), (10, 11)]) == [[0], [1], [2, 3], [4, 5]]
    with pytest.raises(DataError, match="the tokenizer changes the text"):
        tokens_of(Slow(), "don't stoop")
