"""Texts and pages of the lenses that look inside: heads, residual stream, neurons, the way of the state."""

from __future__ import annotations

import copy

import pytest

from conftest import byte_tokenizer
from families import family
from intaglio.choice import why
from intaglio.report.choice.words import Words
from intaglio.report.texts import LANGUAGES
from intaglio.views import Trace
from lens_checks import check_named, check_said

TARGET, AGAINST = 5, 7

NAMES = ("heads", "residual", "neurons", "trajectory")


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    """A Cyrillic prompt in models that can do all, hide their attention, or hold experts."""
    made = {}
    for name in ("llama", "bloom", "gpt_oss"):
        model = family(name)
        model.resize_token_embeddings(261)
        made[name] = why((model, byte_tokenizer()), "Да «нет»", against=9, effects=name == "llama", lenses=NAMES)
    return made


def _tuned_beside(tables: dict) -> None:
    for row in tables["states"]:
        row |= {f"tuned_{name}": row[name] for name in ("top", "rank", "kl_nats")}


def variants(name: str, trace: Trace) -> list[dict]:
    """The lens as measured and with numbers that lead to every other sentence."""
    lens = trace.lenses[name]
    found = [lens]

    def vary(table=None, **numbers):
        other = copy.deepcopy(lens)
        other["numbers"] |= numbers
        if table is not None:
            table(other["tables"])
        found.append(other)

    if name == "heads":
        vary(first_most=lens["numbers"]["heads"], copying=2, nowhere_mean=0.1)
        vary(first_most=0)
        for sign in (1, -1):
            vary(lambda t, sign=sign: t["matched"][0].update(difference=sign * 2.0))
        vary(lambda t: t["matched"].clear())
    if name == "residual":
        vary(largest_before=0.5, even_same=False)
        vary(even_same=True)
        for i, top in ((1, 1), (1, 2)):
            vary(lambda t, i=i, top=top: (t["writes"][i].update(length=1e9), t["writes"][top].update(vote_logits=1e9)))
        vary(lambda t: t["writes"][1].update(cos_before=-0.9))
        vary(lambda t: (t["pairs"][0].update(share=0.5), t["pairs"][-1].update(share=-0.5)))
    if name == "neurons":
        vary(lambda t: t["neurons"][0].update(target_rank=0))
        for field in ("token", "next"):
            def alike(t, field=field):
                first = t["neurons"][0]["address"]
                t["contexts"] = [{"address": first, "token": str(i), "next": str(i), field: " x"} for i in range(4)]
            vary(alike)
    if name == "trajectory":
        layers = lens["numbers"]["layers"]
        vary(target_chosen=False, few=1, decided=1)
        vary(few=None, decided=layers)
        vary(_tuned_beside, tuned={"decided": 1, "held_out_kl_nats": 0.5, "logit_held_out_kl_nats": 3.0})
        for swap in ("no_versus", "unseen", "same"):
            vary(swap={"why_not": swap})
        vary(swap={"why_not": "length", "tokens": 3, "others": 4})
        rows = [{"layer": i, "only_logits": 1.0, "from_logits": 2.0, "only_top": "a", "from_top": "b"} for i in range(layers)]
        for at in (0, 1, layers):
            vary(lambda t: t.update(swap=rows), swap={"carries_from": at, "was_logits": 1.0, "other_logits": -1.0})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_reached(name, traces):
    check_said(name, traces["llama"], variants(name, traces["llama"]))
    check_named(name)


def test_pages_render_in_both_languages_with_skips(traces):
    for name, trace in traces.items():
        for lang in LANGUAGES:
            page = trace.to_html(lang=lang)
            words = Words(lang)
            for lens in NAMES:
                assert str(words(f"{lens}.title")) in page
            assert (str(words("neurons.skip.experts")) in page) == (name == "gpt_oss")
            assert "{" not in "".join(part.split("</figcaption>")[0] for part in page.split("<figcaption>")[1:])
    assert len(traces["llama"].to_html()) < 1_000_000


def test_a_swap_is_drawn(traces):
    trace = copy.deepcopy(traces["llama"])
    lens = variants("trajectory", trace)[-1]
    plain = len(trace.to_html())
    trace.lenses["trajectory"] = lens
    assert len(trace.to_html()) > plain + 2000 and str(Words("en")("trajectory.figure.swap.title")) in trace.to_html()


def test_skips_of_single_tokens_and_missing_text_are_worded():
    for lang in LANGUAGES:
        words = Words(lang)
        for name, reason in (("heads", "one_token"), ("neurons", "no_reference"), ("neurons", "experts")):
            assert words.skipped(name, {"reason": reason})
