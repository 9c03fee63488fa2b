"""States of a training run on disk: safetensors and json, written aside and renamed. Never pickle.  [torch]"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from intaglio.errors import StoreError

KEEP_MOMENTS = 2  # optimizer moments are kept for so many of the last states, unless more are asked for


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' own progress bars between ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def save(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, tokenizer: object,
    *, carried: Mapping[str, Mapping[int, torch.Tensor]] | None = None, seconds: float = 0.0,
    keep_moments: int = KEEP_MOMENTS,
) -> Path:  # fmt: skip
    """Write one state; it appears whole or not at all. Older states lose their moments.

    Args:
        carried: momentum by group, then by id of the parameter, where it is split by group.
        seconds: of training so far, over all parts of an interrupted run.
        keep_moments: how many of the last states, this one included, keep the optimizer's moments.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    folder = checkpoint_folder(run, step)
    aside = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with _silent():
            _save_model(model, aside)
        tokenizer.save_pretrained(aside)
        tensors, numbers = _moments(model, optimizer)
        tensors["random_state"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random_state_cuda"] = torch.cuda.get_rng_state()
        names = {id(p): n for n, p in model.named_parameters()}
        groups = sorted(carried or {})
        for place, group in enumerate(groups):
            tensors |= {f"carried.{place}/{names[key]}": b.cpu().contiguous() for key, b in carried[group].items()}
        save_file(tensors, aside / "optimizer.safetensors")
        state = {"step": step, "numbers": numbers, "groups": groups, "seconds": seconds}
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(aside, ignore_errors=True)
        raise StoreError(f"cannot write the state of step {step} to {folder.parent}: {error}") from None
    for old in states(run)[:-keep_moments]:
        (old / "optimizer.safetensors").unlink(missing_ok=True)
    return folder


def states(run: Path) -> list[Path]:
    """Every state of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def resumable(run: Path) -> Path | None:
    """The newest state that training can go on from."""
    whole = [s for s in states(run) if (s / "optimizer.safetensors").exists() and (s / "state.json").exists()]
    return whole[-1] if whole else None


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a state into a model and an optimizer; returns the steps it has taken."""
    load_weights(folder, model)
    tensors = load_file(folder / "optimizer.safetensors")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    torch.set_rng_state(tensors.pop("random_state"))
    cuda = tensors.pop("random_state_cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    tensors = {k: v for k, v in tensors.items() if not k.startswith("carried.")}
    numbers = {k: torch.tensor(v) for k, v in state["numbers"].items()}
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, p in names.items():
        entries = {k.split("/", 1)[0]: v for k, v in tensors.items() if k.split("/", 1)[1] == name}
        entries |= {k.split("/", 1)[0]: v for k, v in numbers.items() if k.split("/", 1)[1] == name}
        if entries:
            optimizer.state[p] = {k: v.to(p.device) if k != "step" else v for k, v in entries.items()}
    return int(state["step"])


def seconds(folder: Path) -> float:
    """Seconds of training that led to a state, over all parts of an interrupted run."""
    return float(json.loads((folder / "state.json").read_text(encoding="utf-8")).get("seconds", 0.0))


def load_carried(folder: Path, model: nn.Module) -> dict[str, dict[int, torch.Tensor]]:
    """A state's momentum by group, then by id of the parameter; empty where it was not split."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    found: dict[str, dict[int, torch.Tensor]] = {group: {} for group in state["groups"]}
    params = dict(model.named_parameters())
    for key, value in load_file(folder / "optimizer.safetensors").items():
        place, _, name = key.partition("/")
        if place.startswith("carried."):
            group = state["groups"][int(place.removeprefix("carried."))]
            found[group][id(params[name])] = value.to(params[name].device)
    return found


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put a state's weights (or LoRA's adapters) into a model of the same shape."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(adapter))
        return
    missing, unexpected = model.load_state_dict(weights_of(folder), strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or {})
    if unexpected or set(missing) - tied:
        raise StoreError(f"{folder} does not fit the model", got=", ".join([*missing, *unexpected][:3]))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """A state's weights, or its adapters', by their names in its files."""
    tensors: dict[str, torch.Tensor] = {}
    for file in (*sorted(folder.glob("model*.safetensors")), *sorted(folder.glob("adapter_model.safetensors"))):
        tensors |= load_file(file)
    return tensors


def _save_model(model: nn.Module, folder: Path) -> None:
    """Save as transformers does, also a model whose own generation settings transformers would refuse to write."""
    settings = getattr(model, "generation_config", None)
    try:
        model.save_pretrained(folder)
    except ValueError:
        if settings is None:
            raise
        model.generation_config = type(settings).from_model_config(model.config)
        try:
            model.save_pretrained(folder)
        finally:
            model.generation_config = settings


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    tensors, numbers = {}, {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            if not isinstance(value, torch.Tensor):
                continue
            if value.ndim:
                tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{key}/{name}"] = float(value)
    return tensors, numbers
