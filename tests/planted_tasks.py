"""Models with heads planted by hand: one-hot embeddings, so that every weight can be read, and attention by rule where asked.

The model is a real GPT-2 without MLPs or positions; a word is a token. Its heads' matrices are zero until they are
planted. A rule replaces what a head looks at, inside the model, so that all that follows sees it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel

from intaglio.model import attention
from intaglio.model.anatomy import Anatomy

START = "<s>"
Rule = Callable[[list[str]], dict[int, dict[int, float]]]  # a text's words to: query to (key to attention)


def words_of(*names: str, more: Iterable[str] = ()) -> list[str]:
    """Every word of some of the built-in data, the start token first."""
    whole = " ".join(files("intaglio.data.heads").joinpath(f"{n}.json").read_text(encoding="utf-8") for n in names)
    found = set(re.findall(r"\w+|[^\w\s]+", re.sub(r"\\[nt\"]", " ", whole))) | {w for m in more for w in m.split()}
    return [START, *sorted(found)]


def word_tokenizer(words: list[str]):
    """One token per word or run of punctuation."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=START))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=START, unk_token=START)


class OneHot:
    """The model, its words, and ways to plant heads.

    Args:
        width: at least as many as there are words; divided by the heads it gives the heads' size.
    """

    def __init__(self, words: list[str], *, layers: int = 2, heads: int = 4, size: int = 48) -> None:
        self.words, self.heads = words, heads
        self.width = max(heads * size, -(-len(words) // heads) * heads)
        self.size = self.width // heads
        config = GPT2Config(
            vocab_size=len(words), n_embd=self.width, n_layer=layers, n_head=heads, n_inner=1, n_positions=512,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.zero_() if "ln_" not in name else None
            self.model.transformer.wte.weight.copy_(torch.eye(len(words), self.width))

    def id(self, word: str) -> int:
        return self.words.index(word)

    @torch.no_grad()
    def plant(self, layer: int, head: int, *, q: Tensor | None = None, q_bias: Tensor | None = None, k: Tensor | None = None,
              v: Tensor | None = None, o: Tensor | None = None) -> None:  # fmt: skip
        """Set matrices of a head: q, k, v (words, size), o (size, words); the rest of the width stays 0."""
        block = self.model.transformer.h[layer].attn
        at = slice(head * self.size, (head + 1) * self.size)
        for i, matrix in enumerate((q, k, v)):
            if matrix is not None:
                block.c_attn.weight[: len(matrix), i * self.width + at.start : i * self.width + at.stop] = matrix
        if q_bias is not None:
            block.c_attn.bias[at] = q_bias
        if o is not None:
            block.c_proj.weight[at, : o.shape[1]] = o

    def plant_map(self, layer: int, head: int, change: dict[str, str] | None = None, *, sign: float = 1.0) -> None:
        """The head writes what it reads (through a random projection), or the word it stands for in `change`; nothing
        from the start token."""
        torch.manual_seed(head)
        n = len(self.words)
        v = torch.randn(n, self.size) / self.size**0.5
        reads = v.clone()
        reads[0] = 0
        target = torch.eye(n)
        for word, other in (change or {}).items():
            target[self.id(word)] = 0
            target[self.id(word), self.id(other)] = 1
        self.plant(layer, head, v=reads, o=sign * v.T @ target)


@contextlib.contextmanager
def attending(anatomy: Anatomy, words: list[str], rules: dict[tuple[int, int], Rule]) -> Iterator[None]:
    """Heads with a rule look where it says, the rest of their attention on the start token; others as they are."""
    layers = {id(block.attn): i for i, block in enumerate(anatomy.blocks)}
    now: dict[str, list[list[str]]] = {}

    def remember(module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        now["texts"] = [[words[i] for i in row] for row in ids.tolist()]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs):
        seen: list[attention.Attention] = []
        real, attention._watchers[:] = attention._watchers[:], [seen.append]
        try:
            attention._attend(module, query, key, value, mask, **kwargs)
        finally:
            attention._watchers[:] = real
        pattern = seen[0].pattern_BHTT.clone()
        for (layer, head), rule in rules.items():
            if layer == layers[id(module)]:
                for row, text in enumerate(now["texts"]):
                    pattern[row, head] = _ruled(rule(text), len(text)).to(pattern)
        seen[0].pattern_BHTT = pattern
        for watch in attention._watchers[-1:]:
            watch(seen[0])
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    handle = anatomy.base.register_forward_pre_hook(remember, with_kwargs=True)
    AttentionInterface.register(attention.NAME, attend)
    try:
        yield
    finally:
        AttentionInterface.register(attention.NAME, attention._attend)
        handle.remove()


def _ruled(looks: dict[int, dict[int, float]], length: int) -> Tensor:
    pattern = torch.zeros(length, length)
    for q in range(length):
        for k, share in looks.get(q, {}).items():
            pattern[q, k] = share
        pattern[q, 0] += 1 - pattern[q].sum()
    return pattern


def members(name: str, language: str = "en") -> dict[str, list[str]]:
    """The built-in data of a role."""
    return json.loads(files("intaglio.data.heads").joinpath(f"{name}.json").read_text(encoding="utf-8"))[language]
