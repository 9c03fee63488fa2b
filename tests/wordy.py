"""A tokenizer of fewer than 97 tokens, for the models of families.py: bytes, a few words, split Cyrillic letters."""

from __future__ import annotations

import functools

from families import family
from intaglio.measure.choice.decision import Decision, decide

WORDS = ("Ġbank", "Ġriver", "Ġthe", "Ġran", "er", "an", "nk", "Ð¾")  # each with all its beginnings; the last is a whole letter
REFERENCE = " the river ran by the bank." * 4 + " кот ток кот Дата." * 4


@functools.cache
def word_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", ".", "Ð", "Ñ", "º", "¾", "Ĥ", "°", "Ķ"]  # bytes of к о т а Д
    merges = [(word[:i], word[i]) for word in WORDS for i in range(1, len(word))]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(["<s>", *letters, *(a + b for a, b in merges)]))}
    core = Tokenizer(models.BPE(vocab, list(dict.fromkeys(merges))))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def ids_of(text: str) -> list[int]:
    """The text's tokens, without a beginning."""
    return word_tokenizer()(text, add_special_tokens=False)["input_ids"]


def wordy(name: str, prompt: str, *, target: int = 5, against: int | None = 7, seed: int = 1) -> Decision:
    return decide(family(name, seed=seed), word_tokenizer(), prompt, target=target, against=against)
