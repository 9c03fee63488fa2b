"""The vote ledger: one logit difference as an exact sum over the model's parts.  [torch]

    logit(target) - logit(against) = embedding + every head + every MLP + biases, on the model's own
    weights, with the final norm's scale as it was. A softcap or a scaling of logits is a line of its own.

B states are taken apart at once, at one position each. Legend: L layers, H heads, d head size, D width,
N neurons, V vocabulary, T source positions, P parts.
Source of the formula: direct logit attribution (Elhage et al. 2021, Wang et al. 2211.00593).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from intaglio.address import Address
from intaglio.model.anatomy import Anatomy, matrix_of
from intaglio.model.capture import Capture
from intaglio.model.proof import raw_logits, shaped


@dataclass(frozen=True, eq=False)
class LayerEnding:
    """One layer at the deciding position; `raw` is before the norm behind the part, if there is one."""

    z_BHd: Tensor
    attn_raw_BD: Tensor
    attn_BD: Tensor
    mlp_raw_BD: Tensor
    mlp_BD: Tensor
    neurons_BN: Tensor | None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All but the neurons."""
        return self.z_BHd, self.attn_raw_BD, self.attn_BD, self.mlp_raw_BD, self.mlp_BD


@dataclass(frozen=True, eq=False)
class Ending:
    """All that is summed at the deciding position, in B states of the run."""

    embed_BD: Tensor
    positions_BD: Tensor | None
    layers: list[LayerEnding]
    final_BD: Tensor
    normed_BD: Tensor
    logits_BV: Tensor


@dataclass(frozen=True, eq=False)
class Question:
    """Why `target` rather than `against`; None stands for the mean over the vocabulary."""

    target: int
    against: int | None = None

    def direction_D(self, anatomy: Anatomy) -> Tensor:
        """The direction in the normed residual that tells the two apart."""
        weight = anatomy.unembed.weight.detach()
        other = weight.mean(0) if self.against is None else weight[self.against]
        return weight[self.target] - other

    def of(self, logits_BV: Tensor) -> Tensor:
        """(B,) the logit difference, in double precision."""
        logits = logits_BV.double()
        return logits[:, self.target] - (logits.mean(-1) if self.against is None else logits[:, self.against])


@dataclass(frozen=True, eq=False)
class Votes:
    """The ledger of B states.

    Attributes:
        addresses: P parts, as data flows.
        votes_BP: what each part put on the scales, logits.
        scale_B: the final norm's scale.
        head_scale_BL: what multiplies a head's reading in each layer: the scales of all norms behind it.
        scaling_B, softcap_B: what the family's own scaling and capping of logits did to the sum.
        difference_B: the logit difference that the model gave.
    """

    addresses: list[Address]
    votes_BP: Tensor
    scale_B: Tensor
    head_scale_BL: Tensor
    scaling_B: Tensor
    softcap_B: Tensor
    difference_B: Tensor

    @property
    def closure_B(self) -> Tensor:
        """abs(sum of all lines - the model's own difference), logits."""
        return (self.votes_BP.sum(1) + self.scaling_B + self.softcap_B - self.difference_B).abs()


def addresses_of(anatomy: Anatomy, layers: int | None = None) -> list[Address]:
    """What writes into the residual (of the first `layers` layers), as data flows; biases where the model has them."""
    found = [Address("embed")] + ([Address("embed.pos")] if anatomy.positions is not None else [])
    for i, block in enumerate(anatomy.blocks[:layers]):
        found += [Address("attn", i, head=h) for h in range(anatomy.n_heads)]
        found += [Address("attn", i, sub="bias")] if _has_bias(block.out, block.attn_post) else []
        found += [Address("mlp", i)]
        found += [Address("mlp", i, sub="bias")] if _has_bias(block.down, block.mlp_post) else []
    return found


def ending_of(seen: Capture, position: int = -1) -> Ending:
    """A capture at one position."""
    at = (slice(None), position)
    return Ending(
        seen.embed_BTD[at] if seen.positions_BTD is None else seen.embed_BTD[at] - seen.positions_BTD[at],
        None if seen.positions_BTD is None else seen.positions_BTD[at],
        [
            LayerEnding(a.z_BTHd[at], a.attn_raw_BTD[at], a.attn_BTD[at], a.mlp_raw_BTD[at], a.mlp_BTD[at],
                        None if a.neurons_BTN is None else a.neurons_BTN[at])
            for a in seen.layers
        ],
        seen.final_BTD[at], seen.normed_BTD[at], seen.logits_BTV[at],
    )  # fmt: skip


class Reader:
    """What every part wrote along one direction of the residual, below a layer or at the end.

    Everything is summed in double precision, for hundreds of terms cancel. What depends on the weights
    alone is worked out once.

    Args:
        direction_D: the direction, in the residual's own coordinates.
        layers: only parts of the first so many layers.
    """

    def __init__(self, anatomy: Anatomy, direction_D: Tensor, layers: int | None = None) -> None:
        self.anatomy, self.direction_D = anatomy, direction_D.double()
        self.blocks = anatomy.blocks[:layers]
        self.addresses = addresses_of(anatomy, layers)
        self.head_LD = [self._pulled(b.attn_post) for b in self.blocks]
        self.mlp_LD = [self._pulled(b.mlp_post) for b in self.blocks]
        outs = (matrix_of(b.out).detach().view(anatomy.width, anatomy.n_heads, -1) for b in self.blocks)
        self.reading_LHd = [torch.einsum("ehd,e->hd", out.double(), to) for out, to in zip(outs, self.head_LD)]

    def read(self, ending: Ending) -> tuple[Tensor, Tensor]:
        """(B, P) what each part wrote along the direction; (B, L) the scale of the norm behind the heads of a layer."""
        residual = self.anatomy.residual_scale
        columns = [ending.embed_BD.double() @ self.direction_D]
        if ending.positions_BD is not None:
            columns.append(ending.positions_BD.double() @ self.direction_D)
        scales = []
        for i, (block, layer) in enumerate(zip(self.blocks, ending.layers)):
            to_heads = residual * self._scale(block.attn_post, layer.attn_raw_BD, layer.attn_BD)
            to_mlp = residual * self._scale(block.mlp_post, layer.mlp_raw_BD, layer.mlp_BD)
            columns += list((torch.einsum("bhd,hd->bh", layer.z_BHd.double(), self.reading_LHd[i]) * to_heads[:, None]).T)
            if _has_bias(block.out, block.attn_post):
                columns.append(to_heads * _along(block.out, self.head_LD[i]) + residual * self._post(block.attn_post))
            constant = to_mlp * _along(block.down, self.mlp_LD[i]) + residual * self._post(block.mlp_post)
            columns.append(residual * (layer.mlp_BD.double() @ self.direction_D) - constant)
            if _has_bias(block.down, block.mlp_post):
                columns.append(constant)
            scales.append(to_heads)
        return torch.stack(columns, 1), torch.stack(scales, 1) if scales else columns[0].new_zeros(len(columns[0]), 0)

    def by_source(self, seen: Capture, scales_BL: Tensor, position: int) -> Tensor:
        """(L, H, T) what each head wrote, by the token it was read from: A[source] v[source] W_O . direction."""
        return torch.stack([
            layer.pattern_BHTT[0, :, position].double()
            * torch.einsum("htd,hd->ht", layer.v_BHTd[0].double(), self.reading_LHd[i]) * scales_BL[0, i]
            for i, layer in enumerate(seen.layers[: len(self.blocks)])
        ])  # fmt: skip

    def by_neuron(self, ending: Ending, layer: int) -> Tensor:
        """(B, N) what each neuron wrote: its activation times its row of the matrix along the direction."""
        block, seen = self.blocks[layer], ending.layers[layer]
        reading_N = self.mlp_LD[layer] @ matrix_of(block.down).detach().double()
        scale_B = self.anatomy.residual_scale * self._scale(block.mlp_post, seen.mlp_raw_BD, seen.mlp_BD)
        return seen.neurons_BN.double() * reading_N * scale_B[:, None]

    def _scale(self, norm: nn.Module | None, x_BD: Tensor, y_BD: Tensor) -> Tensor:
        if norm is None:
            return torch.ones(len(x_BD), dtype=torch.float64, device=x_BD.device)
        return self.anatomy.kinds[norm].scale_of(x_BD, y_BD).double()

    def _pulled(self, norm: nn.Module | None) -> Tensor:
        return self.direction_D if norm is None else self.anatomy.kinds[norm].pull_back(self.direction_D)

    def _post(self, norm: nn.Module | None) -> Tensor | float:
        """What the bias of a norm behind a part says."""
        return 0.0 if norm is None else self.anatomy.kinds[norm].bias_D.double() @ self.direction_D


class Ledger:
    """Reads votes on one question."""

    def __init__(self, anatomy: Anatomy, question: Question) -> None:
        self.anatomy, self.question = anatomy, question
        self._norm = anatomy.kinds[anatomy.norm]
        self._direction_D = question.direction_D(anatomy).double()
        self.reader = Reader(anatomy, self._norm.pull_back(self._direction_D))
        self.addresses = [*self.reader.addresses, Address("norm"), Address("unembed.bias")]

    def votes(self, ending: Ending) -> Votes:
        """Every part's vote in each of B states."""
        anatomy, of = self.anatomy, self.question.of
        scale_B = self._norm.scale_of(ending.final_BD, ending.normed_BD).double()
        parts_BP, scales_BL = self.reader.read(ending)
        behind = torch.stack([self._norm.bias_D.double() @ self._direction_D, self._output_bias()])
        raw = raw_logits(anatomy, ending.normed_BD)
        plain, scaled = of(raw), of(raw * anatomy.logit_scale)
        return Votes(
            self.addresses, torch.cat([parts_BP * scale_B[:, None], behind.expand(len(scale_B), 2)], 1), scale_B,
            scales_BL * scale_B[:, None], scaled - plain, of(shaped(anatomy, raw)) - scaled, of(ending.logits_BV),
        )  # fmt: skip

    def source_votes(self, seen: Capture, votes: Votes, position: int = -1) -> Tensor:
        """(L, H, T) each head's vote split by the token it was read from; sums to the head's vote."""
        return self.reader.by_source(seen, votes.head_scale_BL, position)

    def neuron_votes(self, ending: Ending, votes: Votes, layer: int) -> Tensor:
        """(B, N) each neuron's vote; with the MLP's bias they sum to its vote."""
        return self.reader.by_neuron(ending, layer) * votes.scale_B[:, None]

    def _output_bias(self) -> Tensor:
        bias = getattr(self.anatomy.unembed, "bias", None)
        return self._direction_D.new_zeros(()) if bias is None else self.question.of(bias.detach()[None])[0]


def balance(votes: Tensor) -> dict[str, float]:
    """What many votes put on either side, logits, and how many of them, strongest first, carry half of it all."""
    sizes = votes.abs().flatten().sort(descending=True).values
    return {
        "for_logits": float(votes.clamp_min(0).sum()), "against_logits": float(votes.clamp_max(0).sum()),
        "half": int((sizes.cumsum(0) < sizes.sum() / 2).sum()) + 1,
    }  # fmt: skip


def _has_bias(*modules: nn.Module | None) -> bool:
    return any(getattr(m, "bias", None) is not None for m in modules)


def _along(module: nn.Module | None, direction_D: Tensor) -> Tensor | float:
    bias = getattr(module, "bias", None)
    return 0.0 if bias is None else bias.detach().double() @ direction_D
