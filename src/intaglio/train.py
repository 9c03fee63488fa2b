"""The training loop, top to bottom, nothing hidden.  [torch]

`train` is the loop; everything above it turns a Recipe into what the loop needs.
The ledger is attached from outside and sees only what any loop shows: forwards,
backwards and optimizer steps.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from intaglio.bounds import BOUNDS, check_bounds
from intaglio.data.encode import Encoded, collate
from intaglio.errors import RecipeError, TrainingError
from intaglio.model.families import LAYER


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run's numbers, resolved; saved in the manifest and replayed by `--resume`."""

    steps: int
    batch_size: int
    accumulate: int
    lr: float
    schedule: str
    warmup_steps: int
    optimizer: str
    weight_decay: float
    momentum: float
    clip: float | None
    seed: int
    lora_rank: int | None
    layers: tuple[int, int] | None
    precision: str  # float32, or bfloat16 under autocast

    def as_dict(self) -> dict:
        found = asdict(self)
        return found | {"layers": list(self.layers) if self.layers else None}


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot be carried out, by `BOUNDS`.

    Raises:
        RecipeError: what, got, expected.
    """
    check_bounds({name: value for name, value in asdict(recipe).items() if name in BOUNDS})


def prepare_model(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with what the recipe trains set to require a gradient; with LoRA, peft's wrapper of it."""
    n_layers = model.config.get_text_config().num_hidden_layers
    first, last = recipe.layers or (0, n_layers)
    if not 0 <= first < last <= n_layers:
        raise RecipeError("no such layers", got=f"{first}:{last}", expected=f"within 0:{n_layers}")
    if recipe.lora_rank:
        return _with_lora(model, recipe, range(first, last))
    for name, p in model.named_parameters():
        found = LAYER.search(name)
        p.requires_grad_(recipe.layers is None or (found is not None and first <= int(found[1]) < last))
    return model


def _with_lora(model: nn.Module, recipe: Recipe, layers: range) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=_linear_in(model, layers) if recipe.layers else "all-linear",
    )  # fmt: skip
    with warnings.catch_warnings():  # peft asks transformers by a name that it is about to drop
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def _linear_in(model: nn.Module, layers: range) -> list[str]:
    """Names of the linear modules of some layers; peft limits layers only for modules named one by one."""
    from transformers.pytorch_utils import Conv1D

    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    return [n for n in linear if (found := LAYER.search(n)) and int(found[1]) in layers]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over everything that requires a gradient; gains and biases do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step: linear warm-up, then constant, or linear or cosine decay to zero."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[recipe.schedule]
    return recipe.lr * factor


def batch_rows(n_rows: int, recipe: Recipe, step: int) -> list[int]:
    """Indices of the rows of one step: epoch after epoch, each shuffled by seed and epoch alone."""
    per_step = recipe.batch_size * recipe.accumulate
    wanted = range(step * per_step, (step + 1) * per_step)
    orders = {e: np.random.default_rng([recipe.seed, e]).permutation(n_rows) for e in {i // n_rows for i in wanted}}
    return [int(orders[i // n_rows][i % n_rows]) for i in wanted]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Sequence[Encoded],
    recipe: Recipe,
    *,
    pad_id: int,
    first_step: int = 0,
    last_step: int | None = None,
    order: Callable[[int], list[int]] | None = None,
    after_step: Callable[[int, float], None] = lambda step, loss_nats: None,
) -> None:
    """Train for `recipe.steps` steps; the loss is the mean over all trained tokens of a step.

    Args:
        first_step: steps taken before; `last_step`: steps taken when it stops, all of them if None.
        order: the rows of a step, where they are not those of `batch_rows`.
        after_step: called with the steps taken and the step's mean loss, nats per token.

    Raises:
        TrainingError: the loss is not a number; the weights are as before that step.
    """
    device = next(model.parameters()).device
    model.train()
    for step in range(first_step, recipe.steps if last_step is None else last_step):
        rows = order(step) if order else batch_rows(len(data), recipe, step)
        targets = sum(data[r].targets for r in rows)
        total = 0.0
        for start in range(0, len(rows), recipe.batch_size):
            micro = rows[start : start + recipe.batch_size]
            batch = {k: v.to(device) for k, v in collate([data[r] for r in micro], pad_id).items()}
            with autocast(recipe, device):
                mean_loss = model(**batch, use_cache=False).loss
            loss = mean_loss * (sum(data[r].targets for r in micro) / targets)
            check_loss(float(mean_loss.detach()), step, [data[r].row for r in micro])
            loss.backward()
            total += float(loss.detach())
        if recipe.clip:
            nn.utils.clip_grad_norm_((p for p in model.parameters() if p.grad is not None), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(step + 1, total)


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 autocast where the recipe asks for it."""
    if recipe.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def check_loss(loss: float, step: int, rows: list[int]) -> None:
    """Stop at a loss that is not a number, and name the batch."""
    if not math.isfinite(loss):
        listed = ", ".join(map(str, rows))
        raise TrainingError(
            f"the loss is {loss} at step {step}, on rows {listed} of the data",
            expected="a finite loss (a smaller --lr, or mended rows)",
        )
