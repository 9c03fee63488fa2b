"""What the lenses of words say and show: toys, texts of both languages, pages."""

from __future__ import annotations

import copy

import pytest

from families import family
from intaglio.choice import why
from intaglio.report.choice.words import Words
from intaglio.report.texts import LANGUAGES
from intaglio.views import Trace
from lens_checks import check_said, texts, unfilled
from wordy import word_tokenizer

NAMES = ("embedding", "tokenization")
PROMPTS = {"plain": "the cat by the river unbanked the", "split": "Дот <b>кот</b> к", "none": "...", "whole": " the bank"}


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    made = {}
    for name, case in (*(("llama", case) for case in PROMPTS), ("phi", "whole"), ("bloom", "plain")):
        pair = (family(name), word_tokenizer())
        made[name, case] = why(pair, PROMPTS[case], target=5, against=7, effects=False, lenses=NAMES)
    pair = (family("llama"), word_tokenizer())
    made["llama", "two"] = why(pair, "the river bank", versus_prompt="he ran to a bank", target=5, effects=False, lenses=NAMES)
    return made


@pytest.fixture(scope="module")
def pages(traces) -> dict[tuple[str, str, str], str]:
    return {(*key, lang): trace.to_html(lang=lang) for key, trace in traces.items() for lang in LANGUAGES}


def variants(name: str, traces: dict[str, Trace]) -> list[dict]:
    """The lens as measured, and with numbers that lead to every other sentence."""
    made = [copy.deepcopy(t.lenses[name]) for t in traces.values() if "numbers" in t.lenses[name]]
    lens = copy.deepcopy(traces["llama", "plain"].lenses[name])

    def vary(change):
        other = copy.deepcopy(lens)
        change(other["numbers"], other["tables"])
        made.append(other)

    if name == "embedding":
        for kind in ("versus", "repeated", "reference", "placed"):
            vary(lambda n, t, kind=kind: n["contexts"].update(kind=kind))
        for half in (None, 1):
            vary(lambda n, t, half=half: n["contexts"].update(half=half))
        for kind in ("nothing", "no_reference"):
            vary(lambda n, t, kind=kind: (n.update(contexts={"kind": kind}), t["path"].clear()))
        return made
    rows = [{"after": f"L{i}", "pieces": 0.9, "alone": 0.5, "others": 0.4, "likeness": 0.8} for i in range(4)]
    for one_word in (None, 2):
        vary(lambda n, t, at=one_word: (n["merging"].update(whole=" x", best=3, one_word=at), t.update(merging=rows)))
    vary(lambda n, t: (n.update(merging={"why_not": "one_piece"}), t.update(attention=[], merging=[], swap=[])))
    for why_not in ("unseen", "no_reference"):
        vary(lambda n, t, why_not=why_not: (n["merging"].update(swap={"why_not": why_not}), t.update(swap=[])))
    for kl, over in ((0.0, 1), (1.0, None), (1.0, 1)):
        vary(lambda n, t, kl=kl, over=over: (n["merging"]["swap"].update(over=over), t["swap"][0].update(kl_nats=kl)))
    for rank in (None, 0, 2):
        vary(lambda n, t, rank=rank: n.update(own_rank=rank))
    vary(lambda n, t: t.update(ways=[r for r in t["ways"] if r["own"]]))
    vary(lambda n, t: t.update(writing=t["writing"][:1]))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_reached(name, traces, pages):
    check_said(name, traces["llama", "plain"], variants(name, traces))
    shown = "".join(page for (*_, lang), page in pages.items() if lang == "en").replace("&#39;", "'")
    for key, text in texts(name, "en").items():
        if key.split(".")[0] in ("figure", "column", "scheme", "axis", "matrix", "text") and "{" not in text:
            assert str(Words("en")(f"{name}.{key}")) in shown, key


def test_pages_render_in_both_languages_with_split_letters_and_skips(traces, pages):
    for (name, case), trace in traces.items():
        trace.to_json()
        for lang in LANGUAGES:
            page, words = pages[name, case, lang], Words(lang)
            assert not unfilled(page) and "\ufffd" not in page and "<b>кот" not in page
            assert str(words("embedding.title")) in page and len(page) < 500_000
            assert (str(words("tokenization.skip.no_word")) in page) == (case == "none"), (name, case)
    page = pages["llama", "split", "en"]
    assert '<span class="tk cut" data-tip="bytes D1">&lt;D1&gt;</span>' in page and "<i>= т</i>" in page


def test_two_contexts_are_shown_with_the_word_marked(pages):
    page = pages["llama", "two", "en"]
    assert page.count("<mark> bank</mark>") == 2 and "he ran to a" in page
