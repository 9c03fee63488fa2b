"""Texts in which repetition must be learnt: rows of random words, some of them said again.  (numpy alone)

    repeats      a phrase of 12 to 24 words, said again and again to the end: what follows a word can be looked up
    few repeats  random words in which one short phrase occurs twice
    no repeats   every word of the text is another one

The words are drawn evenly, so nothing but repetition can be predicted, and everything is made from a seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ENGLISH = (
    "bear bird boat bone book bread cat cloud coal cup day dog door dream ear egg eye face field fire fish foot fox "
    "garden glass grass hand hat heart hill honey horse house ice iron island king knife lake lamp leaf milk moon "
    "mouse night oak paper rain river road salt ship sky snow song star stone sun tree wind wolf wood word world"
).split()
RUSSIAN = (
    "берег ветер вечер вода волк волна время глаз голос город гора гость дверь дерево день дождь дом дорога друг "
    "дым жизнь звезда земля зерно зима камень ключ книга конь корень кот край круг лампа лес лето лист луг лёд "
    "масло мать море мост мышь небо ночь огонь окно орёл осень песня птица путь река роза рука рыба сад свет село "
    "сердце снег соль сон"
).split()  # fmt: skip
WORDS = (*ENGLISH, *RUSSIAN)
START = "<s>"
GROUPS = ("repeats", "few repeats", "no repeats")
SHARES = (0.7, 0.15, 0.15)
WORDS_PER_TEXT = 47
PHRASE = (12, 24)  # words in a phrase that is said again, both included
SHORT_PHRASE = (3, 5)


def training_rows(n: int, *, seed: int, words: int = WORDS_PER_TEXT) -> list[dict[str, Any]]:
    """`n` texts, each with its group; row i of a seed is the same whatever `n` is.

    Args:
        words: of one text.
    """
    return [_row(np.random.default_rng([seed, i]), words) for i in range(n)]


def repeat_rows(n: int, *, seed: int, words: int = 23) -> list[dict[str, Any]]:
    """The probe `repeat`: random words and the same again, trained on nowhere; the loss is of the second copy alone."""
    copies = _copies(n, seed, words)
    return [{"prompt": " ".join(copy), "completion": " " + " ".join(copy), "group": "second copy"} for copy in copies]


def first_rows(n: int, *, seed: int, words: int = 23) -> list[dict[str, Any]]:
    """The probe `first`: the first copies of `repeat`, in which nothing can be predicted."""
    return [{"text": " ".join(copy), "group": "first copy"} for copy in _copies(n, seed, words)]


def _copies(n: int, seed: int, words: int) -> list[list[str]]:
    rng = np.random.default_rng([seed, 0, 1])  # rows of the data have two numbers, the probe three
    return [[WORDS[i] for i in rng.choice(len(WORDS), words, replace=False)] for _ in range(n)]


def _row(rng: np.random.Generator, words: int) -> dict[str, Any]:
    group = GROUPS[rng.choice(len(GROUPS), p=SHARES)]
    made = {"repeats": _repeats, "few repeats": _few_repeats, "no repeats": _no_repeats}[group](rng, words)
    return {"text": " ".join(WORDS[i] for i in made), "group": group}


def _repeats(rng: np.random.Generator, words: int) -> np.ndarray:
    """Some words first, so that the distance is not told by the place; then the phrase over and over."""
    low, high = (min(n, max(1, words // 2)) for n in PHRASE)
    phrase = rng.integers(len(WORDS), size=rng.integers(low, high + 1))
    before = rng.integers(len(WORDS), size=rng.integers(words // 4 + 1))
    return np.concatenate([before, np.tile(phrase, words // len(phrase) + 1)])[:words]


def _few_repeats(rng: np.random.Generator, words: int) -> np.ndarray:
    made = rng.choice(len(WORDS), words, replace=False)
    length = min(int(rng.integers(SHORT_PHRASE[0], SHORT_PHRASE[1] + 1)), words // 3)
    first = int(rng.integers(0, words // 2 - length + 1))
    second = int(rng.integers(first + length, words - length + 1))
    made[second : second + length] = made[first : first + length]
    return made


def _no_repeats(rng: np.random.Generator, words: int) -> np.ndarray:
    return rng.choice(len(WORDS), words, replace=False)


def word_tokenizer() -> Any:
    """One token per word of `WORDS`, and one that begins every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({START: 0} | {"▁" + word: i for i, word in enumerate(WORDS, 1)}, unk_token=START))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=START, pad_token=START, unk_token=START)
