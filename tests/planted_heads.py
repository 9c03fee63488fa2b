"""A small GPT-2 whose heads are set by hand: one for each role of attention, the others attend evenly.

    layer 0   H0 previous token   H1 fixed offset 3   H2 duplicate token   H3 first token   H4 self   H5 even
    layer 1   H0 induction        H1 to H5 even

The residual stream is one-hot: token, position, and the token before, which layer 0's H0 writes and layer 1's H0 reads.
Every state has the same number of ones, so the norm before attention only scales it, and its bias takes the mean off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

HEADS = 6
OFFSET = 3
PLANTED = {
    ("previous_token", ""): "L0.attn.H0", ("fixed_offset", str(OFFSET)): "L0.attn.H1", ("duplicate_token", ""): "L0.attn.H2",
    ("first_token", ""): "L0.attn.H3", ("self", ""): "L0.attn.H4", ("induction", ""): "L1.attn.H0",
}  # fmt: skip
SHARP = 60.0  # nats between the target and everything else
WRITES = 8.0  # how loud the induction head says what followed


def planted_model(vocabulary: int = 40, positions: int = 42) -> GPT2LMHeadModel:
    """The model, in eval mode. Token 0 begins a text.

    Args:
        vocabulary, positions: V and P; a head is V + P wide.
    """
    size = vocabulary + positions
    width = HEADS * size
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=2, n_head=HEADS, n_inner=4, bos_token_id=0,
        eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        token, place, before = (torch.arange(n) + at for n, at in
                                ((vocabulary, 0), (positions, vocabulary), (vocabulary, size)))  # fmt: skip
        model.transformer.wte.weight[:, token] = torch.eye(vocabulary)
        model.transformer.wpe.weight[:, place] = torch.eye(positions)
        first, second = model.transformer.h
        _plain_norm(first.ln_1, ones=2)
        _plain_norm(second.ln_1, ones=3)
        for norm in (first.ln_2, second.ln_2, model.transformer.ln_f):
            norm.weight.fill_(1.0)
        eye = torch.eye(positions)
        _attend(first.attn, 0, size, {place: torch.roll(eye, -1, 1)}, {place: eye})
        _attend(first.attn, 1, size, {place: torch.roll(eye, -OFFSET, 1)}, {place: eye})
        _attend(first.attn, 2, size, {token: torch.eye(vocabulary), place: -2 * eye},
                {token: torch.eye(vocabulary), place: eye})  # fmt: skip
        _attend(first.attn, 3, size, {place: torch.ones(positions, 1)}, {place: eye[:, :1]})
        _attend(first.attn, 4, size, {place: eye}, {place: eye})
        _carry(first.attn, 0, size, token, before, 1.0)
        _attend(second.attn, 0, size, {token: torch.eye(vocabulary)}, {before: torch.eye(vocabulary)})
        _carry(second.attn, 0, size, token, token, WRITES)
    return model


def planted_tokenizer(vocabulary: int = 40):
    """Words w1, w2, ... behind the token that begins a text; every other word is the last one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    last = f"w{vocabulary - 1}"
    core = Tokenizer(models.WordLevel({"<s>": 0} | {f"w{i}": i for i in range(1, vocabulary)}, unk_token=last))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def _plain_norm(norm: nn.LayerNorm, ones: int) -> None:
    """A state of so many ones among zeros comes out as it went in."""
    width = norm.weight.shape[0]
    share = ones / width
    deviation = (share - share**2 + norm.eps) ** 0.5
    norm.weight.fill_(deviation)
    norm.bias.fill_(share)


class _Columns:
    """q, k and v of a head in GPT-2's fused matrix, which is (inputs, outputs)."""

    def __init__(self, attn: nn.Module, head: int, size: int) -> None:
        width = attn.c_attn.weight.shape[0]
        self.q, self.k, self.v = (slice(part * width + head * size, part * width + (head + 1) * size) for part in range(3))


def _attend(attn: nn.Module, head: int, size: int, query: dict[Tensor, Tensor], key: dict[Tensor, Tensor]) -> None:
    """Scores are the sum over parts of the residual of query_part . key_part, times `SHARP`."""
    columns = _Columns(attn, head, size)
    for parts, where, factor in ((query, columns.q, SHARP * size**0.5), (key, columns.k, 1.0)):
        at = where.start
        for rows, matrix in parts.items():
            attn.c_attn.weight[rows, at : at + matrix.shape[1]] = factor * matrix
            at += matrix.shape[1]


def _carry(attn: nn.Module, head: int, size: int, source: Tensor, target: Tensor, loud: float) -> None:
    """The head writes what stands at `source` where it looks to `target` where it is."""
    columns = _Columns(attn, head, size)
    eye = torch.eye(len(source))
    attn.c_attn.weight[source, columns.v.start : columns.v.start + len(source)] = eye
    rows = head * size + torch.arange(len(source))
    attn.c_proj.weight[rows[:, None], target[None, :]] = loud * eye
