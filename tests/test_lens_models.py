"""Laws of several models before the same bytes: offsets, bits, next bytes and letters, across tokenizers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as cores
from torch import nn
from transformers import PreTrainedTokenizerFast

from conftest import byte_tokenizer
from families import FAMILIES, family, ids
from intaglio.choice import why
from intaglio.data.vocab import is_special, token_bytes
from intaglio.errors import InputError
from intaglio.measure.choice.decision import Decision, decide
from intaglio.measure.choice.lenses import Given, Needs, Peer, Skip
from intaglio.measure.choice.lenses import models as lens
from intaglio.model.proof import prove
from intaglio.report.choice.words import Words
from lens_checks import check_named, check_said, unfilled
from test_lens_sources import hooks

PROMPT = "the he да then the"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def merged_tokenizer(*, lower: bool = False):
    """Bytes with a few merges, no mark of the beginning; `lower` loses capitals."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ð", "´"), ("Ð´", "Ð")]
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges), "</s>"])}
    core = Tokenizer(cores.BPE(vocab, merges))
    core.normalizer = normalizers.Lowercase() if lower else None
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def sentence_tokenizer():
    """As sentencepiece does it: a space is ▁, one is put before the text, a letter it lacks is written as bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he")]
    for piece in ("▁", *"abcdefghijklmnopqrstuvwxyz", *(a + b for a, b in merges)):
        vocab[piece] = len(vocab)
    core = Tokenizer(cores.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def model_for(tokenizer, *, seed: int = 1, rows: int | None = None, name: str = "llama") -> nn.Module:
    model = family(name, seed=seed)
    model.resize_token_embeddings(rows or len(tokenizer))
    return model


def decision(tokenizer, prompt: str = PROMPT, **how) -> Decision:
    return decide(model_for(tokenizer, **how), tokenizer, prompt)


def given(*peers: Decision, this: Decision, names: tuple[str, ...] = ("b", "c")) -> Given:
    same = [p.tokenizer.get_vocab() == this.tokenizer.get_vocab() for p in peers]
    return Given(PROMPT, [], subject="a", peers=[Peer(n, p, s) for n, p, s in zip(names, peers, same)])


def cumulative(found: Decision) -> dict[int, float]:
    """The plain way: bits of all tokens up to each byte offset, marks not counted."""
    log_p = found.anatomy.model(torch.tensor([found.ids])).logits[0].double().log_softmax(-1)
    bits, offset, seen = 0.0, 0, {}
    for i, token in enumerate(found.ids):
        mark = token in found.tokenizer.all_special_ids
        piece = b"" if mark else token_bytes(found.tokenizer, token)
        bits += 0.0 if i == 0 or mark else -float(log_p[i - 1, token]) / math.log(2)
        offset += len(piece)
        seen[offset] = bits
    return seen


def test_bits_of_segments_are_those_of_the_tokens_between_common_offsets():
    a, b = decision(byte_tokenizer()), decision(merged_tokenizer(), seed=2)
    assert len(b.ids) < len(a.ids) - 1 == len(PROMPT.encode())
    seen = lens.measure(a, given(b, this=a))
    sums = [cumulative(a), cumulative(b)]
    inside = PROMPT.encode()
    for row in seen.tables["segments"]:
        start, stop = row["start"], row["start"] + row["bytes"]
        assert row["text"] == inside[start:stop].decode()
        for bits, own in zip(row["bits"], sums):
            assert bits == pytest.approx(own[stop] - own[start], abs=1e-4)
    texts = [r["text"] for r in seen.tables["segments"]]
    assert "".join(texts) == PROMPT[1:] and " the" in texts and "да" in texts, "а is cut within by the second tokenizer"
    n, (this, other) = seen.numbers, seen.tables["models"]
    assert n["bytes"] == len(inside) - 1 and n["left_at_start"] == 1, "the second model reads no mark"
    assert this["bits_per_byte"] == pytest.approx((sums[0][len(inside)] - sums[0][1]) / n["bytes"], abs=1e-5)
    assert other["bits_per_byte"] == pytest.approx(sums[1][len(inside)] / n["bytes"], abs=1e-5)
    p = b.logits_V.softmax(0)
    assert other["entropy_nats"] == pytest.approx(float(-(p * p.log()).sum())) and other["p"] == pytest.approx(float(p.max()))
    assert (this["tokens"], other["tokens"]) == (len(a.ids), len(b.ids)) and "alike" not in this


def test_next_bytes_are_summed_over_the_tokens_that_begin_with_them():
    a, b = decision(byte_tokenizer()), decision(merged_tokenizer(), seed=2)
    readings = [lens.reading("x", d, lens.pieces_of(d)) for d in (a, b)]
    offsets = lens.common(readings, PROMPT.encode())
    rows = []
    for found, own in zip((a, b), readings):
        p = found.anatomy.model(torch.tensor([found.ids])).logits[0].double().softmax(-1)
        wanted = torch.zeros(len(offsets), 257, dtype=torch.float64)
        for i, offset in enumerate(offsets):
            position = [j for j, end in enumerate(own.ends) if end == offset][-1]
            for token in range(p.shape[1]):
                data = token_bytes(found.tokenizer, token)
                first = 256 if is_special(found.tokenizer, token) or not data else data[0]
                wanted[i, first] += p[position, token]
        torch.testing.assert_close(lens.next_bytes(own, offsets), wanted, atol=1e-6, rtol=1e-4)
        rows.append(wanted)
    m = (rows[0] + rows[1]) / 2
    plain = sum((x * (x / m).log2()).nan_to_num(0).sum(-1) for x in rows) / 2
    row = lens.measure(a, given(b, this=a)).tables["models"][1]
    assert row["byte_divergence"] == pytest.approx(float(plain[-1]), abs=1e-5)
    assert row["mean_byte_divergence"] == pytest.approx(float(plain.mean()), abs=1e-5)


def test_divergence_is_0_for_the_same_and_1_for_nothing_in_common():
    p, q = torch.tensor([1.0, 0.0, 0.0]).double(), torch.tensor([0.0, 0.25, 0.75]).double()
    assert float(lens.divergence_bits(p, q)) == pytest.approx(1) and float(lens.divergence_bits(q, q)) == 0


@pytest.mark.parametrize(("data", "size"), [
    (b"a", 1), (b" a", 2), (b" ", 2), (b"  ", 2), ("да".encode(), 2), (" да".encode(), 3), (b"\xd0", 2), (b" \xd0", 3),
    (b"\xd0a", 1), (b"\xe2\x82", 3), (b"\xe2a", 1), (b"\xf0\x9f\x98\x80x", 4), (b"\xb0a", 1), (b"\xff", 1),
])  # fmt: skip
def test_a_letter_is_as_long_as_its_first_byte_says(data, size):
    assert lens.letter_size(data) == size


def test_a_token_that_ends_within_a_letter_is_run_on(monkeypatch):
    monkeypatch.setattr(lens, "WORTH_A_RUN", 0.0)
    monkeypatch.setattr(lens, "BRANCHES", 70)
    found = decision(byte_tokenizer())
    own = lens.letters(lens.reading("x", found, lens.pieces_of(found)))
    token = {token_bytes(found.tokenizer, t): t for t in range(5, 261)}

    def chain(data: bytes) -> float:
        p, path = 1.0, list(found.ids)
        for byte in data:
            p *= float(found.anatomy.model(torch.tensor([path])).logits[0, -1].double().softmax(-1)[token[bytes([byte])]])
            path.append(token[bytes([byte])])
        return p

    broken = sum(chain(b"\xd0" + data) for data in token if data[0] & 0xC0 != 0x80)
    for text in ("t", " t", "  ", "д", "\xe9"):
        assert own.p[text.encode()] == pytest.approx(chain(text.encode()), rel=1e-4), text
    assert own.p[b"\xd0"] == pytest.approx(broken, rel=1e-4)
    assert sum(own.p.values()) + own.no_text + own.open == pytest.approx(1, abs=1e-6) and 0 < own.open < 0.2
    monkeypatch.setattr(lens, "STEPS", 0)
    closed = lens.letters(lens.reading("x", found, lens.pieces_of(found)))
    assert closed.open > own.open and b" t" not in closed.p
    assert sum(closed.p.values()) + closed.no_text + closed.open == pytest.approx(1)


def test_a_full_context_leaves_letters_open():
    tokenizer = byte_tokenizer()
    found = decide(model_for(tokenizer, name="gpt2"), tokenizer, "x" * 63)
    assert len(found.ids) == 64
    assert lens.letters(lens.reading("x", found, lens.pieces_of(found))).open > 0.02


def test_a_space_that_a_tokenizer_adds_is_not_counted():
    a, b = decision(byte_tokenizer()), decision(sentence_tokenizer(), seed=2)
    seen = lens.measure(a, given(b, this=a))
    assert seen.numbers["left_out"] == [] and seen.numbers["bytes"] == len(PROMPT.encode())
    assert sum(r["bytes"] for r in seen.tables["segments"]) == seen.numbers["bytes"]
    assert seen.numbers["offsets"] == len(seen.tables["segments"]), "at the beginning a model may expect the space it adds"
    assert lens.pieces_of(b)[:2] == [b"", b"the"] and seen.tables["segments"][0]["text"] == "the"
    turned = lens.measure(b, given(a, this=b))
    assert [r["bits"] for r in turned.tables["segments"]] == [r["bits"][::-1] for r in seen.tables["segments"]]
    assert turned.tables["models"][1]["mean_byte_divergence"] == pytest.approx(seen.tables["models"][1]["mean_byte_divergence"])
    assert turned.tables["models"][1]["letter_divergence"] == pytest.approx(seen.tables["models"][1]["letter_divergence"])


def test_a_tokenizer_that_changes_the_text_is_left_out():
    prompt = "The cat"
    a, b, c = (decision(t, prompt) for t in (byte_tokenizer(), merged_tokenizer(lower=True), merged_tokenizer()))
    assert lens.measure(a, given(b, c, this=a)).numbers["left_out"] == ["b"]
    with pytest.raises(Skip, match="other_bytes") as raised:
        lens.measure(a, given(b, this=a))
    assert not isinstance(raised.value, Needs) and raised.value.values == {"names": "b"}


def test_marks_of_a_chat_cost_nothing():
    tokenizer = byte_tokenizer(chat=True)
    model = model_for(tokenizer)
    a = decide(model, tokenizer, "hé", chat=True)
    assert any(i in tokenizer.all_special_ids for i in a.ids[1:])
    seen = lens.measure(a, given(a, this=a, names=("a",)))
    assert seen.numbers["names"] == ["a", "a (2)"] and seen.numbers["bytes"] == 3
    end = cumulative(a)
    assert seen.tables["models"][0]["bits"] == pytest.approx(end[3] - end[0], abs=1e-4)
    assert [r["text"] for r in seen.tables["segments"]] == ["h", "é"]
    own = lens.reading("a", a, lens.pieces_of(a))
    assert a.ids[-1] in tokenizer.all_special_ids and own.last_at(3) == len(a.ids) - 1
    p = a.logits_V.softmax(0)
    assert float(lens.next_bytes(own, [3])[0, ord("h")]) == pytest.approx(float(p[tokenizer.convert_tokens_to_ids("h")]))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_beside_itself_and_beside_another(name):
    model, other = family(name), family(name, seed=2)
    before = model(ids()).logits
    a, b, same = (Decision(prove(m), byte_tokenizer(), ids()[0].tolist(), 5, 7) for m in (model, other, model))
    seen = lens.measure(a, given(b, same, this=a))
    json.dumps([seen.numbers, seen.tables], allow_nan=False)
    apart, equal = seen.tables["models"][1:]
    assert equal["mean_byte_divergence"] == equal["letter_divergence"] == 0 and equal["alike"] == "same"
    assert equal["by_token"] == {"mean_kl_nats": 0, "same_first": 13, "positions": 13}
    p, q = (m(ids()).logits[0].double().log_softmax(-1) for m in (model, other))
    assert apart["by_token"]["mean_kl_nats"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert apart["by_token"]["same_first"] == int((p.argmax(-1) == q.argmax(-1)).sum())
    assert torch.equal(model(ids()).logits, before) and hooks(model) == hooks(other) == 0


def test_padded_rows_of_an_output_matrix_do_not_matter():
    tokenizer = byte_tokenizer()
    a = decision(tokenizer)
    b = decide(model_for(tokenizer, seed=2, rows=300), tokenizer, a.ids)
    row = lens.measure(a, given(b, this=a)).tables["models"][1]
    assert row["vocabulary"] == 300 and math.isfinite(row["by_token"]["mean_kl_nats"]) and row["no_text"] > 0


def test_alike_by_bytes():
    a, b = decision(byte_tokenizer()), decision(merged_tokenizer())
    for mine, theirs, wanted in ((" ", " the", "begins"), ("h", "h", "same"), ("h", " the", "other")):
        for found, text in ((a, mine), (b, theirs)):
            token = next(t for t in range(len(found.logits_V)) if token_bytes(found.tokenizer, t) == text.encode())
            found.__dict__["logits_V"] = torch.eye(len(found.logits_V), dtype=torch.float64)[token]
        assert lens._alike(a, b) == wanted


def test_without_a_second_model_it_is_needed():
    tokenizer = byte_tokenizer()
    with pytest.raises(Needs, match="no_second"):
        lens.measure(decision(tokenizer), Given("", []))
    with pytest.raises(InputError, match="lens models lacks what it needs"):
        why((model_for(tokenizer), tokenizer), "a", effects=False, lenses=["models"])


def variants(found: dict) -> list[dict]:
    """The lens as measured and with numbers that lead to every other sentence."""
    made = [found]
    for alike in ("same", "begins", "other"):
        made.append(json.loads(json.dumps(found)))
        for row in made[-1]["tables"]["models"][1:]:
            row["alike"] = alike
    made[1]["numbers"]["left_out"] = ["x"]
    made[2]["numbers"]["bytes"] = 0
    for row in made[3]["tables"]["models"]:
        row["bits"] = 2.0
    return made


def test_texts_and_pages_in_both_languages():
    one, two, three = byte_tokenizer(), merged_tokenizer(), byte_tokenizer()
    subject = (model_for(one), one)
    trace = why(subject, "да <b>the", versus=[(model_for(two, seed=2), two), (model_for(three, seed=3), three)], effects=False,
                lenses=["models"])  # fmt: skip
    check_said("models", trace, variants(trace.lenses["models"]))
    check_named("models")
    alone = why(subject, "да", effects=False, lenses=["distribution"])
    alone.lenses["models"] = {"skipped": {"reason": "no_second"}}
    for lang in ("en", "ru"):
        page, words = trace.to_html(lang=lang), Words(lang)
        assert not unfilled(page) and "<b>the" not in page and len(page) < 200_000
        for figure in ("models", "letters", "segments", "by_token"):
            assert str(words(f"models.figure.{figure}.title")) in page
        assert str(words("models.skip.no_second")) in alone.to_html(lang=lang)
        assert words.skipped("models", {"reason": "other_bytes", "names": "x"})
    short = why(subject, [9], versus=subject, effects=False, lenses=["models"])
    assert short.lenses["models"]["numbers"]["bytes"] == 0 and "no_bytes" in str([s.key for s in short.lens("models")._found()])
    assert short.to_html()
