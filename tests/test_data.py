"""Data: rows are read, repaired, encoded and audited as promised, or refused by row number."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from intaglio.data.audit import audit, show_row
from intaglio.data.encode import Encoded, collate, encode_rows
from intaglio.data.read import Rows, read_rows
from intaglio.data.repair import CODE_PAGES, BrokenLine, _bytes_of, decode, repair_text
from intaglio.data.vocab import letters, token_bytes, vocab_rows
from intaglio.errors import DataError
from intaglio.example import example_id
from intaglio.model.subject import load_tokenizer

SHARED = Path(os.environ.get("INTAGLIO_SHARED", Path(__file__).parents[1].parent / "shared"))
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Earlier turns are written without their thoughts, as Qwen3 does: a rendered prefix is no prefix of the whole.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"},
    {"role": "user", "content": "and a?"}, {"role": "assistant", "content": "Пока!"},
]  # fmt: skip


@pytest.fixture
def shared() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no public data at {SHARED} (set INTAGLIO_SHARED)")
    return SHARED / "data"


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A byte-level BPE tokenizer over a little English and Russian, with ChatML's control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    texts = ["The capital of France is Paris. assistant user", "Столица Франции — Париж."]
    made.train_from_iterator(texts * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=specials[0], eos_token=specials[1],
                                   pad_token=specials[1], chat_template=CHATML)  # fmt: skip


@pytest.fixture
def sentencepiece(shared: Path) -> Any:
    return load_tokenizer(shared / "models" / "stories260k")


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def trained(item: Encoded, tokenizer: Any) -> str:
    return tokenizer.decode([i for i, m in zip(item.input_ids, item.target_mask) if m])


def misread(text: str, code_page: str) -> str:
    """`text` as a program sees it that takes its UTF-8 for another code page."""
    characters = {byte: char for char, byte in _bytes_of(code_page).items()}
    return "".join(chr(b) if b < 128 else characters[b] for b in text.encode())


# --- read ----------------------------------------------------------------------------------

SHAPES = [
    {"text": "Пуля"},
    {"prompt": "p", "completion": "c"},
    {"instruction": "i", "input": "", "output": "o"},
    {"instruction": "i", "output": "o"},
    {"messages": CHAT},
]


def test_every_shape_is_read_with_its_labels_and_original(tmp_path: Path) -> None:
    given_rows = [row | {"group": "g", "fact": 7, "id": n} for n, row in enumerate(SHAPES)]
    rows = read_rows(write(tmp_path, given_rows))
    assert [row.kind for row in rows] == ["text", "completion", "instruction", "instruction", "messages"]
    assert {(row.group, row.fact) for row in rows} == {("g", "7")}
    assert [row.original for row in rows] == given_rows
    assert [row.number for row in rows] == list(range(5)) and rows.unused == ("id",) and rows.repaired == ()


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [
        {"prompt": 'Столица,\n"да"', "completion": " Париж", "group": "x"},
        {"prompt": "b", "completion": "c", "group": "y"},
    ]
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "a.parquet")
    write(tmp_path, data, "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps(data))
    (tmp_path / "b.json").write_text(json.dumps({"data": data}))
    cells = ["prompt,completion,group", '"Столица,\n""да""", Париж,x', "b,c,y"]
    (tmp_path / "a.csv").write_text("\n".join(cells), encoding="utf-8-sig")
    read = [read_rows(p).rows for p in sorted(tmp_path.iterdir())]
    assert len(read) == 5 and all(rows == read[0] for rows in read)
    assert all(len(read_rows(p, limit=1)) == 1 for p in tmp_path.iterdir())


def test_a_text_file_is_packed_by_paragraphs_and_loses_nothing(shared: Path) -> None:
    for name in ("onegin_ru.txt", "tinyshakespeare.txt"):
        path = shared / "text" / name
        rows = read_rows(path)
        assert "".join("".join(r.fields["text"].split()) for r in rows) == "".join(path.read_text().split())
        assert max(len(r.fields["text"]) for r in rows) <= 1000 and not rows.repaired


def test_bad_rows_are_refused_by_number(tmp_path: Path) -> None:
    good = {"text": "fine"}
    for bad, *words in (
        ({"text": "  "}, "no text", "empty text"),
        ({"text": None}, "no text"),
        ({"text": 3}, "text is not text", "3"),
        ({"prompt": "p", "completion": ""}, "no text", "completion"),
        ({"instruction": "", "output": "x"}, "no text", "instruction"),
        ({"question": "q", "answer": "a"}, "columns of no known shape", "question, answer", "prompt and completion"),
        ({"messages": []}, "no text"),
        ({"messages": "hi"}, "not a list of role and content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "no role or no text", "assistant"),
        ({"messages": CHAT[:1]}, "no answer of the assistant"),
        ("just a string", "is not an object"),
        ({"text": "Прив\ufffdт"}, "letters are lost"),
        ({"text": "?????? ??? ??????"}, "letters are lost"),
        ({"text": "РџСЂРё?РІРµС‚ РјРёР?"}, "broken encoding"),
    ):
        refused(write(tmp_path, [good, bad, good]), "row 1", *words)


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    refused(tmp_path / "empty.jsonl", "is empty")
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n\n{"text": ')
    refused(tmp_path / "half.jsonl", "row 1 (line 3) is not JSON")
    (tmp_path / "x.json").write_text("{")
    refused(tmp_path / "x.json", "is not JSON")
    (tmp_path / "x.csv").write_text("text,group\na,b,c\n")
    refused(tmp_path / "x.csv", "row 0", "cells")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    refused(tmp_path / "x.parquet", "cannot read")
    (tmp_path / "x.tsv").touch()
    refused(tmp_path / "x.tsv", ".tsv", ".jsonl")
    refused(tmp_path / "absent.jsonl", "no such data file")


# --- repair --------------------------------------------------------------------------------


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def real_texts(shared: Path) -> list[str]:
    tasks = [json.loads(line) for line in (shared / "tune" / "seed_tasks_ru_en.jsonl").read_text().splitlines()]
    french = json.loads((shared / "facts" / "english-french.json").read_text())
    texts = [*strings(tasks), *strings(french)]
    for name in ("onegin_ru.txt", "tinyshakespeare.txt"):
        texts += (shared / "text" / name).read_text().split("\n\n")
    return texts


def test_legitimate_text_is_never_touched(shared: Path) -> None:
    texts = real_texts(shared)
    assert len(texts) > 10_000
    assert [t for t in texts if repair_text(t).text != t] == []


@pytest.mark.parametrize("text", [
    "L'été à Noël, où l'œuvre coûte 5 € « déjà »… ŒUVRE ÉTÉ", "CAFÉ® Münch™ Ñandú", "Её", "Рё", "Ґанок і її",
    "Ђорђе и Љубица иду у Ћуприју", "日本語。テキスト", "5 °C ±2 ×3 ²", "😀 ❤️", "Žluťoučký kůň", "Tiếng Việt",
    "за́мок", "what???",
])  # fmt: skip
def test_rare_but_right_text_is_never_touched(text: str) -> None:
    assert repair_text(text).text == text and repair_text(text).code_page is None


@pytest.mark.parametrize("code_page", CODE_PAGES)
def test_russian_read_as_another_code_page_is_restored(shared: Path, code_page: str) -> None:
    texts = [t for t in (shared / "text" / "onegin_ru.txt").read_text().split("\n\n") if "а" in t and len(t) > 30]
    assert [t for t in texts if repair_text(misread(t, code_page)).text != t] == []
    assert repair_text(misread(texts[0], code_page)).code_page is not None


def test_misread_twice_in_part_and_in_western_text() -> None:
    assert repair_text(misread(misread("Привет, мир", "cp1251"), "cp1251")).text == "Привет, мир"
    assert repair_text("Он сказал: " + misread("Привет, мир", "cp1251")).text == "Он сказал: Привет, мир"
    assert repair_text("donâ€™t, cafÃ©").text == "don’t, café"


@given(st.text())
def test_repair_never_fails_otherwise_and_is_idempotent(text: str) -> None:
    try:
        once = repair_text(text).text
    except DataError:
        return
    assert repair_text(once).text == once


def test_repaired_rows_are_counted_and_short_ones_follow(tmp_path: Path) -> None:
    texts = ["Мой дядя самых честных правил", "И лучше выдумать не мог", "и"]
    rows = read_rows(write(tmp_path, [{"text": misread(t, "cp1251")} for t in texts] + [{"text": "plain"}]))
    assert [row.fields["text"] for row in rows] == [*texts, "plain"]
    assert rows.repaired == (0, 1, 2)
    assert rows[0].original == {"text": misread(texts[0], "cp1251")}


@pytest.mark.parametrize("read_as", ["latin-1", "cp1252", "cp1251", "koi8-r", "cp866"])
@pytest.mark.parametrize("own", ["cp1251", "koi8-r", "cp866"])
def test_an_older_code_page_that_was_read_as_another_is_restored(shared: Path, own: str, read_as: str) -> None:
    verses = (shared / "text" / "onegin_ru.txt").read_text().split("\n\n")
    pairs = []
    for text in (t for t in verses if "а" in t and len(t) > 100):
        with contextlib.suppress(UnicodeError):  # a byte that this page leaves undefined
            pairs.append((text, text.encode(own).decode(read_as)))
    assert pairs or (own, read_as) == ("cp866", "cp1252")
    refused = 0
    for text, broken in pairs[:60]:
        try:
            assert repair_text(broken).text == text
        except DataError:
            refused += 1
    assert refused <= 2
    assert [text for text, _ in pairs[:60] if repair_text(text).text != text] == []


def test_short_texts_follow_those_of_an_older_code_page_and_what_is_uncertain_is_refused(tmp_path: Path) -> None:
    texts = ["Мой дядя самых честных правил", "Съешь ещё этих мягких французских булок", "И лучше выдумать не мог", "Да",
             "когда не в шутку занемог, он уважать себя заставил"]  # fmt: skip
    broken = [t.encode("cp1251").decode("cp1252") for t in texts]
    rows = read_rows(write(tmp_path, [{"text": t} for t in broken]))
    assert [row.fields["text"] for row in rows] == texts and rows.repaired == (0, 1, 2, 3, 4)
    with pytest.raises(DataError, match="row 1: broken encoding: an older code page read as Latin-1"):
        read_rows(write(tmp_path, [{"text": "Plain"}, {"text": broken[1]}]))


@pytest.mark.parametrize("short", ["Да", "и", "Её", "Он"])
def test_the_short_field_of_a_repaired_row_is_repaired_too(short: str, tmp_path: Path) -> None:
    row = {"prompt": misread(short, "cp1251"), "completion": misread("Мой дядя самых честных правил", "cp1251")}
    rows = read_rows(write(tmp_path, [row, row]))
    assert [r.fields["prompt"] for r in rows] == [short, short]


@pytest.mark.parametrize("code_page", ["cp1251", "koi8-r", "cp866"])
def test_a_file_in_an_older_code_page(shared: Path, code_page: str, tmp_path: Path) -> None:
    text = (shared / "text" / "onegin_ru.txt").read_text()[2000:9000]
    raw = text.encode(code_page, "ignore")
    assert decode(raw)[0] == raw.decode(code_page)
    lines = [
        json.dumps({"text": t}, ensure_ascii=False) for t in ("English", "Мой дядя самых честных правил", "Онегин")
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([lines[0].encode(), lines[1].encode(code_page), lines[2].encode()]))
    rows = read_rows(tmp_path / "x.jsonl")
    assert [r.fields["text"] for r in rows] == ["English", "Мой дядя самых честных правил", "Онегин"]
    assert rows.repaired == (1,)


def test_western_bytes_utf16_and_cut_utf8() -> None:
    french = "L'été à Noël, où l'œuvre coûte déjà cher"
    assert decode(french.encode("cp1252"))[0] == french
    assert decode("Привет".encode("utf-16")) == ("Привет", frozenset())
    with pytest.raises(DataError, match="bytes are missing"):
        decode("Привет, мир".encode()[:-1])


OTHERS = {
    "cp1253": ["Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί", "Καλημέρα, σήμερα θα πάμε στη θάλασσα"],
    "cp1255": ["ברוכים הבאים לספרייה הגדולה של העיר", "מחר נלך לים עם כל החברים שלנו"],
    "cp1254": ["Bugün hava çok güzel, çocuklar dışarıda oynuyor", "Yağmur yağıyor ve şemsiyem yok"],
    "cp1250": ["Żółw idzie powoli przez las, a zając śpi", "Šťastný nový rok všem přátelům", "źdźbło"],
    "cp1252": ["Le garçon a mangé une pêche très mûre", "Über die Brücke läuft ein müder Hund", "un café"],
    "cp1256": ["مرحبا بالعالم هذا نص باللغة العربية"], "gbk": ["今天天气很好，我们去公园散步吧。"],
    "euc-kr": ["안녕하세요 오늘은 날씨가 좋습니다"], "cp874": ["สวัสดีชาวโลก วันนี้อากาศดีมาก"],
    "cp1257": ["Šiandien labai graži diena, vaikai žaidžia kieme"], "mac-roman": ["Le garçon a mangé une pêche"],
}  # fmt: skip


@pytest.mark.parametrize(("code_page", "text"), [(p, t) for p, texts in OTHERS.items() for t in texts])
def test_another_code_page_is_read_rightly_or_refused(code_page: str, text: str) -> None:
    russian = ["Сегодня утром мы долго гуляли по старому парку", "Потом пошёл дождь, и все вернулись домой"]
    raw = text.encode(code_page)
    try:
        assert decode(raw)[0] == text
    except DataError as error:
        assert "no older code page is certain" in str(error)
    if len(raw) > 15:  # among Russian rows it is refused where it stands
        with pytest.raises(BrokenLine) as caught:
            decode(b"\n".join([*(line.encode("cp1251") for line in russian), raw]))
        assert caught.value.line == 2


def test_a_few_odd_bytes_are_refused_by_row_number(tmp_path: Path) -> None:
    rows = [b'{"text": "good"}', b"", b'{"text": "bad \xff\xfe byte"}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(rows))
    refused(tmp_path / "x.jsonl", "row 1 (line 3)", "no older code page is certain")
    (tmp_path / "x.csv").write_bytes(b"text\ngood\nbad \xff\xfe byte\n")
    refused(tmp_path / "x.csv", "row 1 is not UTF-8")
    (tmp_path / "x.txt").write_bytes(b"bad \xff\xfe byte\n")
    refused(tmp_path / "x.txt", "row 0 is not UTF-8")


def test_random_bytes_are_no_code_page() -> None:
    draw = random.Random(0)
    for high in (0x80, 0xC0):
        for _ in range(300):
            noise = bytes(draw.choice([32, *range(high, 256)]) for _ in range(draw.randint(1, 80)))
            if not noise.isascii() and not noise.startswith((b"\xff\xfe", b"\xfe\xff")):
                with pytest.raises(DataError):
                    decode(b"some text " + noise)


@pytest.mark.parametrize("code_page", ["cp1251", "koi8-r", "cp866"])
def test_russian_verse_in_an_older_code_page_is_never_read_as_another(shared: Path, code_page: str) -> None:
    lines = [t for t in (shared / "text" / "onegin_ru.txt").read_text().split("\n") if len(t) > 25]
    raws = [t.encode(code_page, "ignore") for t in lines if not t.encode(code_page, "ignore").isascii()]
    read = refused_lines = 0
    for raw in raws[::7]:
        try:
            read += decode(raw)[0] == raw.decode(code_page)
        except DataError:
            refused_lines += 1
    assert read + refused_lines == len(raws[::7]) and refused_lines < 0.08 * read
    whole = (shared / "text" / "onegin_ru.txt").read_text().encode(code_page, "ignore")
    assert decode(whole, parting=b"\n\n")[0] == whole.decode(code_page)


# --- vocab ---------------------------------------------------------------------------------

TEXTS = ["The capital of France is Paris.", "Привет, мир! Ёлка — 25 ₽.", "tab\tline\nend ", "日本 😀"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_texts_bytes(byte_level: Any, sentencepiece: Any, text: str) -> None:
    ids = byte_level(text).input_ids
    assert b"".join(token_bytes(byte_level, i) for i in ids) == text.encode()
    ids = sentencepiece(text, add_special_tokens=False).input_ids
    assert b"".join(token_bytes(sentencepiece, i) for i in ids) == b" " + text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_letters_split_over_tokens_are_put_together(byte_level: Any, sentencepiece: Any, text: str) -> None:
    for tokenizer in (byte_level, sentencepiece):
        ids = tokenizer(text).input_ids
        groups = list(letters([token_bytes(tokenizer, i) for i in ids]))
        assert [g[0] for g in groups] == [0, *(g[1] for g in groups[:-1])] and groups[-1][1] == len(ids)
        joined = "".join(g[2] for g in groups)
        assert "\ufffd" not in joined and joined.removeprefix("<s>").strip() == text.strip()


def test_broken_bytes_end_and_show_a_replacement() -> None:
    assert list(letters([b"\xd0", b"\xd0\xb0", b"a"])) == [(0, 2, "\ufffdа"), (2, 3, "a")]
    assert list(letters([b"a", b"\xd0"])) == [(0, 1, "a"), (1, 2, "\ufffd")]
    assert list(letters([])) == []


def test_vocab_rows_name_control_tokens(byte_level: Any) -> None:
    rows = vocab_rows(byte_level, [1, 0, 1, *byte_level("Ё").input_ids])
    assert rows[0] == {"token": 0, "bytes": b"<|im_start|>", "text": "<|im_start|>", "special": True}
    assert [row["token"] for row in rows] == sorted({row["token"] for row in rows})
    assert not any(row["special"] for row in rows[2:])
    assert token_bytes(byte_level, 10**6) == b""


# --- encode --------------------------------------------------------------------------------


def encode(folder: Path, rows: list[dict], tokenizer: Any, **options: Any) -> list[Encoded]:
    return encode_rows(read_rows(write(folder, rows)), tokenizer, **({"max_tokens": 500} | options))


def test_what_is_trained_on(tmp_path: Path, byte_level: Any) -> None:
    items = encode(tmp_path, [
        {"text": "The capital"}, {"prompt": "The capital is", "completion": " Paris"},
        {"prompt": "Столица — ", "completion": "Париж"}, {"instruction": "Add", "input": "2+2", "output": "4"},
        {"messages": CHAT, "group": "chats", "fact": "f"},
    ], byte_level)  # fmt: skip
    assert items[0].target_mask == (False, *[True] * (len(items[0].input_ids) - 1))
    assert byte_level.decode(items[0].input_ids) == "The capital<|im_end|>"
    assert [trained(i, byte_level) for i in items[1:]] == [
        " Paris<|im_end|>", " Париж<|im_end|>", "4<|im_end|>", "a<|im_end|>Пока!<|im_end|>",
    ]  # fmt: skip
    turns = [{"role": "user", "content": "Add\n\n2+2"}, {"role": "assistant", "content": "4"}]
    assert items[3].input_ids == tuple(byte_level.apply_chat_template(turns, return_dict=False))
    assert (items[4].group, items[4].fact, items[4].preview) == ("chats", "f", "hi a and a? Пока!")
    assert all(item.example == example_id(item.input_ids, item.target_mask) for item in items)


HEADERS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}{{ eos_token }}"


def test_the_next_turns_header_is_not_trained_on(tmp_path: Path, byte_level: Any) -> None:
    (item,) = encode(tmp_path, [{"messages": CHAT}], byte_level, template=HEADERS)
    assert trained(item, byte_level) == "aПока!<|im_end|>"


@pytest.mark.parametrize("template, expected", [
    (CHATML, "a<|im_end|>Пока!<|im_end|>"),
    (THINKING, "a<|im_end|>Пока!<|im_end|>"),
    (MISTRAL, "a<|im_end|>Пока!<|im_end|>"),
    (CHATML.replace("m['content'] +", "(m['content'] | replace('!', '.')) +"), "a<|im_end|>Пока.<|im_end|>"),
])  # fmt: skip
def test_answers_are_found_under_any_template(tmp_path: Path, byte_level: Any, template: str, expected: str) -> None:
    (item,) = encode(tmp_path, [{"messages": CHAT}], byte_level, template=template)
    assert trained(item, byte_level).replace(" ", "") == expected


def test_a_template_that_refuses_or_hides_an_answer(tmp_path: Path, byte_level: Any, sentencepiece: Any) -> None:
    with pytest.raises(DataError, match="row 0: the chat template refuses the messages: user first"):
        encode(tmp_path, [{"messages": CHAT[1:]}], byte_level, template=MISTRAL)
    with pytest.raises(DataError, match="row 0: the chat template does not show the assistant's answers"):
        encode(tmp_path, [{"messages": CHAT}], byte_level, template="{{ messages[0]['content'] }}")
    with pytest.raises(DataError, match="row 0 is a chat, and the tokenizer has no chat template"):
        encode(tmp_path, [{"messages": CHAT}], sentencepiece)


def test_a_sentencepiece_tokenizer_gets_one_start_and_one_end(tmp_path: Path, sentencepiece: Any) -> None:
    items = encode(tmp_path, [{"text": "Once upon"}, {"prompt": "Once", "completion": " upon"},
                              {"instruction": "Say", "output": "upon"}], sentencepiece)  # fmt: skip
    for item in items:
        assert item.input_ids[0] == 1 and item.input_ids.count(1) == 1
        assert item.input_ids[-1] == 2 and item.input_ids.count(2) == 1 and item.target_mask[-1]
    assert trained(items[1], sentencepiece).strip() == "upon</s>"
    assert "### Instruction:\nSay\n\n### Response:\nupon" in sentencepiece.decode(items[2].input_ids)


def test_long_rows_are_refused_or_cut(tmp_path: Path, byte_level: Any) -> None:
    rows = [{"text": "a"}, {"text": "word " * 50}]
    with pytest.raises(DataError, match=r"row 1 is too long; got [0-9]+ tokens; expected at most 20"):
        encode(tmp_path, rows, byte_level, max_tokens=20)
    items = encode(tmp_path, rows, byte_level, max_tokens=20, truncate=True)
    assert [item.truncated for item in items] == [False, True] and len(items[1].input_ids) == 20


def test_collate_pads_right_and_labels_targets_only(tmp_path: Path, byte_level: Any) -> None:
    items = encode(tmp_path, [{"text": "The"}, {"prompt": "The capital is", "completion": " Paris"}], byte_level)
    batch = collate(items, pad_id=1)
    for n, item in enumerate(items):
        length = len(item.input_ids)
        assert batch["input_ids"][n, :length].tolist() == list(item.input_ids)
        assert batch["attention_mask"][n].sum() == length and batch["attention_mask"][n, :length].all()
        assert (batch["labels"][n, :length] != -100).tolist() == list(item.target_mask)
        assert (batch["labels"][n, length:] == -100).all() and (batch["input_ids"][n, length:] == 1).all()


# --- audit ---------------------------------------------------------------------------------


def test_the_audit_finds_what_was_planted(tmp_path: Path, byte_level: Any) -> None:
    long = "The quick brown fox jumps over the lazy dog while the old farmer watches from his wooden porch"
    texts = [long, long.replace("lazy", "tired"), "Мой дядя самых честных правил", "Something else", long]
    items = encode(tmp_path, [{"text": t} for t in texts], byte_level)
    items[3] = dataclasses.replace(items[3], input_ids=items[3].input_ids[:-1], target_mask=items[3].target_mask[:-1])
    items.append(Encoded(5, (0, 0, 40, 1), (False, False, False, True)))
    items.append(Encoded(6, (0, 40), (False, False), truncated=True, repaired=True))
    found = audit(items, byte_level)
    assert found.missing_end == (3,) and found.doubled_first == (5,) and found.empty_masks == (6,)
    assert found.truncated == found.repaired == (6,)
    assert found.duplicates == ((0, 4),) and found.near_duplicates == ((0, 1),)
    assert (found.rows, found.tokens) == (7, sum(len(i.input_ids) for i in items))
    text = "\n".join(found.lines())
    assert all(words in text for words in ("0 = 4", "0 = 1", "end token: 3", "nothing to train on: 6"))


def test_a_row_of_several_groups_is_said_to_count_for_the_first(tmp_path: Path, byte_level: Any) -> None:
    rows = [{"text": t, "group": g} for t, g in (("same", "a"), ("other", "b"), ("same", "b"), ("same", "a"), ("same", "c"))]
    found = audit(encode(tmp_path, rows, byte_level), byte_level)
    assert found.other_groups == (2, 4)
    assert "2 rows counted for the group of an earlier row of the same text: 2, 4" in found.lines()


def test_a_clean_set_is_called_clean(tmp_path: Path, byte_level: Any) -> None:
    chats = [
        {"instruction": f"Name a {x}", "output": y} for x, y in (("bird", "wren"), ("tree", "oak"), ("fish", "carp"))
    ]
    assert audit(encode(tmp_path, chats, byte_level), byte_level).lines()[1:] == ["nothing wrong was found in them"]


def test_ten_thousand_rows_are_looked_through(shared: Path, byte_level: Any) -> None:
    rows = read_rows(shared / "tune" / "instructions_en.json")
    items = encode_rows(rows, byte_level, max_tokens=2000)
    many = [
        dataclasses.replace(i, row=n, input_ids=(*i.input_ids, n % 300 + 2), target_mask=(*i.target_mask, True))
        for n, i in enumerate((items * 10)[:10_000])
    ]
    assert audit(many, byte_level).rows == 10_000


def test_near_duplicates_of_real_rows(shared: Path, byte_level: Any) -> None:
    items = encode_rows(read_rows(shared / "tune" / "instructions_en.json"), byte_level, max_tokens=2000)
    near = encode_rows(read_rows(shared / "tune" / "near_duplicates_en.json"), byte_level, max_tokens=2000)
    both = audit([*items, *(dataclasses.replace(i, row=i.row + 2000) for i in near)], byte_level)
    across = [g for g in (*both.duplicates, *both.near_duplicates) if g[0] < 2000 <= g[-1]]
    assert len(across) > 150  # of the 200


def test_a_row_is_shown_as_the_model_sees_it(tmp_path: Path, byte_level: Any) -> None:
    (item,) = encode(tmp_path, [{"messages": CHAT}], byte_level)
    console = Console(width=200, record=True, file=open(os.devnull, "w"), force_terminal=True)
    console.print(show_row(item, byte_level))
    plain = console.export_text(clear=False)
    assert "<|im_start|>assistant\n▸Пока!<|im_end|>◂" in plain and "\ufffd" not in plain
    assert "▸a<|im_end|>◂" in plain and f"{item.targets} trained on" in plain
    assert "▸trained on◂" in plain and "\x1b[1;4m" in console.export_text(styles=True)


@pytest.mark.real
def test_the_builtin_models_view_of_a_row(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("smollm2")
    rows: Rows = read_rows(write(tmp_path, [{"messages": CHAT}, {"text": "Привет, мир!"}]))
    chat, text = encode_rows(rows, tokenizer, max_tokens=200)
    assert trained(chat, tokenizer) == "a<|im_end|>Пока!<|im_end|>"
    assert tokenizer.decode(text.input_ids) == "Привет, мир!<|im_end|>"
    groups = letters([token_bytes(tokenizer, i) for i in text.input_ids])
    assert "".join(g[2] for g in groups) == "Привет, мир!<|im_end|>"
    assert audit([chat, text], tokenizer).lines()[1:] == ["nothing wrong was found in them"]
