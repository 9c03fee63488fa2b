"""The tuned lens: a map for every state on the way, fitted until it says what the model says in the end.  [torch]

    tuned(l) = unembed(final norm(h_l + A_l h_l + b_l));  A_l, b_l minimise E KL(model || tuned(l))

Fitted on ordinary text, never on the prompt that is explained. It starts from the ridge regression of the
final state on h_l (Din et al. 2023, arXiv 2303.09435) and goes on by Adam on the KL itself (Belrose et al.
2023, arXiv 2303.08112); a step that does not help on text held out is taken back, layer by layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.files import write_whole
from intaglio.model.anatomy import Anatomy
from intaglio.model.modes import evaluating
from intaglio.model.proof import raw_logits, shaped

LENGTH = 128  # tokens read at a time
HELD_OUT = 0.1  # of the text
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of a state's mean square; the best on held-out text is taken
RATE = 3e-4  # Adam
FORMAT = "intaglio tuned lens 1"


@dataclass(eq=False)
class TunedLens:
    """Maps of a model's states; the last state needs none.

    Attributes:
        weight_LDD, bias_LD: A and b for what enters the first layer and for the state after every layer but the last.
        logit_kl_nats, tuned_kl_nats: mean KL(model || lens) on held-out text by state, without and with the maps.
        tokens: fitted on so many.
        steps: of Adam after the regression.
    """

    weight_LDD: Tensor
    bias_LD: Tensor
    logit_kl_nats: list[float]
    tuned_kl_nats: list[float]
    tokens: int
    steps: int

    def translate(self, states_SD: Tensor) -> Tensor:
        """(S, D) states of one position, from what enters the first layer to the last: as the last would write them."""
        moved_LD = torch.einsum("lij,lj->li", self.weight_LDD, states_SD[:-1]) + self.bias_LD
        return torch.cat([states_SD[:-1] + moved_LD, states_SD[-1:]])


def fit(
    anatomy: Anatomy, ids: list[int], *, steps: int = 40, seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> TunedLens:  # fmt: skip
    """Fit the maps on a text's token ids.

    Args:
        steps: of Adam on the KL, 128 tokens each; 0 leaves the regression.
        progress: told (what, done, total).

    Raises:
        InputError: the text is too short to hold a part of it out.
    """
    pieces = list(_pieces(anatomy, ids))
    if len(pieces) < 2:
        raise InputError("the text is too short for a tuned lens", got=f"{len(ids)} tokens", expected=f"{2 * LENGTH} or more")
    kept = max(1, round(HELD_OUT * len(pieces)))
    train, held = pieces[:-kept], pieces[-kept:]
    weight_LDD, bias_LD = _regressed(anatomy, train, held, progress)
    start = torch.zeros_like(weight_LDD), torch.zeros_like(bias_LD)
    logit_L, best_L = _kl(anatomy, held, *start), _kl(anatomy, held, weight_LDD, bias_LD)
    worse = best_L > logit_L  # where even the regression does not help, start from the state as it is
    weight_LDD[worse], bias_LD[worse] = 0.0, 0.0
    best_L = torch.minimum(best_L, logit_L)
    if steps:
        tried = _descended(anatomy, train, weight_LDD.clone(), bias_LD.clone(), steps, seed, progress)
        after_L = _kl(anatomy, held, *tried)
        better = after_L < best_L
        weight_LDD[better], bias_LD[better] = tried[0][better], tried[1][better]
        best_L = torch.minimum(best_L, after_L)
    return TunedLens(weight_LDD, bias_LD, logit_L.tolist(), best_L.tolist(), sum(len(p) for p in train), steps)


def _pieces(anatomy: Anatomy, ids: list[int]) -> Iterator[Tensor]:
    device = anatomy.unembed.weight.device
    for start in range(0, len(ids) - 1, LENGTH):
        yield torch.tensor(ids[start : start + LENGTH], device=device)


@torch.no_grad()
def _states(anatomy: Anatomy, piece_T: Tensor) -> tuple[Tensor, Tensor]:
    """(L, T, D) states that enter each layer, and (T, D) the last; the first position, where attention sinks, is left out."""
    model, into, final = anatomy.model, [], []
    handles = [
        block.layer.register_forward_pre_hook(
            lambda m, args, kwargs: into.append((args[0] if args else kwargs["hidden_states"])[0].detach()), with_kwargs=True
        )
        for block in anatomy.blocks
    ]
    handles.append(anatomy.norm.register_forward_pre_hook(lambda m, args: final.append(args[0].detach())))
    try:
        with evaluating(model):
            model(piece_T[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    first = 1 if len(piece_T) > 1 else 0
    end_TD = final[0].reshape(len(piece_T), -1)
    return torch.stack([s.reshape(len(piece_T), -1) for s in into])[:, first:].float(), end_TD[first:].float()


def _read(anatomy: Anatomy, states_TD: Tensor) -> Tensor:
    """(T, V) log-probabilities if the model ended in these states."""
    with evaluating(anatomy.model):
        normed_TD = anatomy.norm(states_TD[None].to(anatomy.unembed.weight.dtype))[0]
    return shaped(anatomy, raw_logits(anatomy, normed_TD)).float().log_softmax(-1)


def _regressed(
    anatomy: Anatomy, train: list[Tensor], held: list[Tensor], progress: Callable[[str, int, int], None]
) -> tuple[Tensor, Tensor]:
    """Ridge regression of (final state - h) on [h, 1], every token weighed by 1 / (its final state's mean square)."""
    layers, width = anatomy.n_layers, anatomy.width
    device = anatomy.unembed.weight.device
    sums = [torch.zeros(layers, width + 1, 2 * width + 1, dtype=torch.float64, device=device) for _ in range(2)]
    for i, piece in enumerate((*train, *held)):
        states_LTD, end_TD = _states(anatomy, piece)
        scale_T1 = end_TD.square().mean(-1, keepdim=True).rsqrt()
        total_LXY = sums[0] if i < len(train) else sums[1]
        for layer, state_TD in enumerate(states_LTD):
            x_TX = torch.cat([state_TD, torch.ones_like(scale_T1)], 1) * scale_T1
            both_TY = torch.cat([x_TX, (end_TD - state_TD) * scale_T1], 1)
            total_LXY[layer] += (x_TX.T @ both_TY).double()
        progress("reading", i + 1, len(train) + len(held))
    weight_LDD, bias_LD = [], []
    for layer in range(layers):
        found_XD = _ridge(sums[0][layer], sums[1][layer], width)
        weight_LDD.append(found_XD[:-1].T.float())
        bias_LD.append(found_XD[-1].float())
    return torch.stack(weight_LDD).contiguous(), torch.stack(bias_LD)


def _ridge(fitted_XY: Tensor, held_XY: Tensor, width: int) -> Tensor:
    """(D + 1, D) the solution whose squared error is smallest on held-out text."""
    xx, xy = fitted_XY[:, : width + 1], fitted_XY[:, width + 1 :]
    unit = xx.diagonal()[:-1].mean()
    penalty_X = torch.cat([unit.expand(width), unit.new_zeros(1)])  # the constant is free
    best, least = torch.zeros_like(xy), float("inf")
    for ridge in RIDGES:
        found = torch.linalg.solve(xx + torch.diag(ridge * penalty_X + 1e-12 * unit), xy)
        error = float((found * (held_XY[:, : width + 1] @ found)).sum() - 2 * (found * held_XY[:, width + 1 :]).sum())
        if error < least:
            best, least = found, error
    return best


@torch.no_grad()
def _kl(anatomy: Anatomy, pieces: list[Tensor], weight_LDD: Tensor, bias_LD: Tensor) -> Tensor:
    """(L,) mean KL(model || lens) in nats, by state."""
    total_L, tokens = torch.zeros(len(weight_LDD)), 0
    for piece in pieces:
        states_LTD, end_TD = _states(anatomy, piece)
        wanted_TV = _read(anatomy, end_TD)
        p_TV = wanted_TV.exp()
        for layer, state_TD in enumerate(states_LTD):
            moved_TD = state_TD + state_TD @ weight_LDD[layer].T + bias_LD[layer]
            total_L[layer] += float((p_TV * (wanted_TV - _read(anatomy, moved_TD))).sum())
        tokens += len(end_TD)
    return total_L / tokens


def _descended(
    anatomy: Anatomy, pieces: list[Tensor], weight_LDD: Tensor, bias_LD: Tensor, steps: int, seed: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Adam on the KL, pieces in an order drawn from the seed; the model's own weights get no gradient."""
    weight_LDD.requires_grad_()
    bias_LD.requires_grad_()
    adam = torch.optim.Adam([weight_LDD, bias_LD], lr=RATE)
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed)).tolist()
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        states_LTD, end_TD = _states(anatomy, pieces[order[step % len(order)]])
        with torch.no_grad():
            wanted_TV = _read(anatomy, end_TD)
            p_TV = wanted_TV.exp()
        weight_LDD.grad, bias_LD.grad = torch.zeros_like(weight_LDD), torch.zeros_like(bias_LD)
        for layer, state_TD in enumerate(states_LTD):
            a, b = weight_LDD[layer].detach().requires_grad_(), bias_LD[layer].detach().requires_grad_()
            read_TV = _read(anatomy, state_TD + state_TD @ a.T + b)
            loss = (p_TV * (wanted_TV - read_TV)).sum() / len(end_TD)
            weight_LDD.grad[layer], bias_LD.grad[layer] = torch.autograd.grad(loss, (a, b))
        adam.step()
        progress("fitting", step + 1, steps)
    return weight_LDD.detach(), bias_LD.detach()


def fingerprint(anatomy: Anatomy) -> str:
    """Of the weights that read the final state: a lens fitted on others does not fit here."""
    found = hashlib.sha256()
    for module in (anatomy.norm, anatomy.unembed):
        for name, tensor in sorted(module.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def save_lens(lens: TunedLens, anatomy: Anatomy, path: Path) -> None:
    """Write the maps and what is known of them as safetensors; whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    from safetensors.torch import save

    about = {"logit_kl_nats": lens.logit_kl_nats, "tuned_kl_nats": lens.tuned_kl_nats, "tokens": lens.tokens, "steps": lens.steps}
    metadata = {"format": FORMAT, "model": fingerprint(anatomy), "about": json.dumps(about)}
    tensors = {"weight": lens.weight_LDD.cpu(), "bias": lens.bias_LD.cpu()}
    write_whole(path, lambda aside: aside.write_bytes(save(tensors, metadata)))


def load_lens(path: Path, anatomy: Anatomy) -> TunedLens:
    """Read what `save_lens` wrote.

    Raises:
        InputError: no such file, not a tuned lens, or one of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError("the file is no tuned lens", got=str(path), expected="one that intaglio lens train wrote")
            if metadata.get("model") != fingerprint(anatomy):
                raise InputError("the tuned lens was trained on another model", got=str(path))
            weight_LDD, bias_LD = file.get_tensor("weight"), file.get_tensor("bias")
            about = json.loads(metadata["about"])
    except FileNotFoundError:
        raise InputError("no such tuned lens", got=str(path)) from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError("the tuned lens cannot be read", got=f"{path}: {error}") from None
    wanted = (anatomy.n_layers, anatomy.width, anatomy.width)
    if weight_LDD.shape != wanted or bias_LD.shape != wanted[:2]:
        raise InputError("the tuned lens has other sizes", got=tuple(weight_LDD.shape), expected=wanted)
    device = anatomy.unembed.weight.device
    return TunedLens(weight_LDD.to(device), bias_LD.to(device), **about)
