"""The only hooks. They live between `attach` and `detach` and leave nothing behind.  [torch]

A forward pass becomes a `Pass` when its first output gradient arrives: forwards
without a backward (evaluation, generation, a checkpointed segment's first run) leave
no trace. The tap only catches (site, input a, output gradient b); what to do with
them is the sink's business.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from intaglio.errors import UnmeasurableError
from intaglio.example import example_id
from intaglio.model import fused
from intaglio.model.layout import Layout, Site, causal_lm


@dataclass(eq=False)
class Block:
    """Rows and positions that hold one example each: a whole batch, or one segment of a packed row."""

    rows: slice
    span: slice
    slots: slice


@dataclass(eq=False)
class Pass:
    """One forward of the model that received a backward.

    `segment_BT` is the slot (example) of every position within this pass, -1 for padding.
    """

    ids_BT: Tensor
    segment_BT: Tensor
    n_slots: int
    blocks: list[Block]
    labels_BT: Tensor | None
    kept: int | None = None  # logits only for the last `kept` positions
    logits: Tensor | None = None
    extras: dict = field(default_factory=dict)
    live: bool = False
    mixed: bool = False  # packed, but the model lets the examples of a row attend to each other

    @property
    def packed(self) -> bool:
        return len(self.blocks) > 1

    def target_BT(self) -> Tensor:
        """The token each position is trained to predict, -1 where none (or where labels are not known)."""
        target = torch.full_like(self.ids_BT, -1)
        source = self.ids_BT if self.labels_BT is None else self.labels_BT
        same = (self.segment_BT[:, 1:] == self.segment_BT[:, :-1]) & (self.segment_BT[:, :-1] >= 0)
        following = source[:, 1:]
        wanted = same if self.labels_BT is None else (following != -100) & (self.segment_BT[:, :-1] >= 0)
        target[:, :-1] = torch.where(wanted, following, target[:, :-1])
        return target

    def examples(self, trained_BT: Tensor) -> list[tuple[str, list[int], list[bool]]]:
        """Id, unpadded token ids and label mask of every slot.

        Args:
            trained_BT: true where the position predicts a trained target.
        """
        is_label = torch.zeros_like(trained_BT)
        is_label[:, 1:] = trained_BT[:, :-1]
        found = []
        for slot in range(self.n_slots):
            where = self.segment_BT == slot
            ids, mask = self.ids_BT[where].tolist(), is_label[where].tolist()
            mask[:1] = [False] * len(mask[:1])
            found.append((example_id(ids, mask), ids, mask))
        return found


def segments(
    ids_BT: Tensor, mask_BT: Tensor | None, position_ids: Tensor | None
) -> tuple[Tensor, int, list[Block]]:
    """Which example each position belongs to: padding by the mask, packing by positions that restart."""
    rows, length = ids_BT.shape
    valid = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    starts = torch.zeros_like(valid)
    if position_ids is not None and position_ids.ndim == 2:
        positions = position_ids.expand(rows, length)
        starts[:, 1:] = valid[:, 1:] & valid[:, :-1] & (positions[:, 1:] <= positions[:, :-1])
    if not bool(starts.any()):
        whole = torch.arange(rows, device=ids_BT.device)[:, None].expand(rows, length)
        block = Block(slice(0, rows), slice(0, length), slice(0, rows))
        return torch.where(valid, whole, -1), rows, [block]
    segment = torch.full_like(ids_BT, -1)
    blocks: list[Block] = []
    for row in range(rows):
        inside = valid[row].nonzero()[:, 0].tolist()
        if not inside:
            continue
        cuts = [inside[0], *starts[row].nonzero()[:, 0].tolist(), inside[-1] + 1]
        for begin, end in itertools.pairwise(cuts):
            slot = len(blocks)
            segment[row, begin:end] = slot
            blocks.append(Block(slice(row, row + 1), slice(begin, end), slice(slot, slot + 1)))
    return torch.where(valid, segment, -1), len(blocks), blocks


class Tap:
    """Catches every site's writes while training runs.

    Args:
        model: the user's model; it is never wrapped or changed.
        layout: what to tap.
        on_write: called as (site, pass, a, b) in the backward pass.
        on_logits: called as (pass, logits, gradient) when the gradient at the logits is known.
        on_fault: called with the exception when anything here or in a callback fails.
        on_bypass: called with the reason when a forward did not use the head in a way that can be measured.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        *,
        on_write: Callable,
        on_logits: Callable,
        on_pass: Callable,
        on_fault: Callable,
        on_bypass: Callable = lambda reason: None,
    ) -> None:
        self.model, self.layout = causal_lm(model), layout
        self.on_write, self.on_logits, self.on_pass, self.on_fault = on_write, on_logits, on_pass, on_fault
        self.on_bypass = on_bypass
        self.head_form = fused.head_form(getattr(self.model, "config", None))
        self._fused_proved = False
        self._names = list(inspect.signature(self.model.forward).parameters)
        self.enabled = True
        self.seconds = 0.0  # spent in the callbacks since it was last set to 0
        self.current: Pass | None = None
        self._in_backward: Pass | None = None
        self._handles: list = []

    def __reduce__(self) -> tuple:
        """A model that is copied or pickled takes its hooks along: on the copy they do nothing."""
        return _asleep, ()

    def attach(self) -> None:
        add = self._handles.append
        add(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        add(self.model.register_forward_hook(self._end, with_kwargs=True))
        backbone = getattr(self.model, "base_model", self.model)
        if self.layout.head is not None and backbone is not self.model:
            add(backbone.register_forward_hook(self._hidden))
        for site in self.layout.sites:
            add(site.module.register_forward_hook(partial(self._after, site), with_kwargs=True))
            if site.kind == "lora":
                adapter = next(a for a in site.module.active_adapters if a in site.module.lora_A)
                add(site.module.lora_A[adapter].register_forward_hook(partial(self._lora_input, site)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.current = self._in_backward = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the model does inside the block is not caught."""
        enabled, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = enabled

    def _guard(self, function: Callable, *args: object) -> None:
        if not self.enabled:
            return
        start = time.perf_counter()
        try:
            with torch.no_grad(), torch.autocast(device_type=self._device_type, enabled=False):
                function(*args)
        except Exception as error:  # the instrument must never hurt the patient
            self.enabled = False
            self.on_fault(error)
        self.seconds += time.perf_counter() - start

    @property
    def _device_type(self) -> str:
        return next(self.model.parameters()).device.type

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.current = None
        if self.enabled and torch.is_grad_enabled():
            self._guard(self._start_pass, args, kwargs)

    def _start_pass(self, args: tuple, kwargs: dict) -> None:
        kwargs = dict(zip(self._names, args)) | kwargs
        ids = kwargs.get("input_ids")
        if ids is None:
            raise ValueError("the model was called without input_ids")
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape == ids.shape else None
        segment, n_slots, blocks = segments(ids, mask, kwargs.get("position_ids"))
        kept = kwargs.get("logits_to_keep", 0)
        if isinstance(kept, Tensor):
            raise ValueError("logits_to_keep given as indices is not measured")
        labels = kwargs.get("labels")
        shifted = kwargs.get("shift_labels")
        if labels is None and shifted is not None:
            labels = torch.full_like(shifted, -100)
            labels[:, 1:] = shifted[:, :-1]
        self.current = Pass(ids.detach(), segment, n_slots, blocks, labels, int(kept) or None)
        self.current.mixed = len(blocks) > 1 and self._mixes(kwargs.get("attention_mask"), kwargs.get("use_cache"))

    def _mixes(self, mask: object, use_cache: bool | None) -> bool:
        """Whether examples packed by position ids see each other.

        transformers tells them apart only without a 2-D mask and, but for flash attention, without a cache.
        """
        if isinstance(mask, Tensor):
            return mask.ndim == 2
        if mask is not None or "flash" in str(getattr(self.model.config, "_attn_implementation", "")):
            return False
        new, old = "is_activation_checkpointing", "is_gradient_checkpointing"  # renamed; the old name warns
        name = new if hasattr(type(self.model), new) else old
        if self.model.training and getattr(self.model, name, False):
            return False  # the cache is switched off there
        return bool(getattr(self.model.config, "use_cache", False) if use_cache is None else use_cache)

    def _after(self, site: Site, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        current = self._pass_of_call()
        if current is None or not self.enabled or not torch.is_grad_enabled():
            return
        if site.head:
            current.extras["head"] = True
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        if not site.weights and not site.head:
            return  # nothing of it is measured any more
        a = args[0] if args else next(iter(kwargs.values()))
        output.register_hook(partial(self._caught, site, current, a.detach()))

    def _lora_input(self, site: Site, module: nn.Module, args: tuple, output: Tensor) -> None:
        current = self._pass_of_call()
        if current is not None and self.enabled:
            current.extras[site.index] = args[0].detach()

    def _pass_of_call(self) -> Pass | None:
        """The pass a module's call belongs to; inside a backward, a checkpointed segment is run again."""
        if self.current is None and torch._C._current_graph_task_id() != -1:
            return self._in_backward
        return self.current

    def _caught(self, site: Site, current: Pass, a: Tensor, b: Tensor) -> None:
        if not site.weights and not site.head:
            return  # given up while this pass was under way
        self._live(current)
        self._guard(self.on_write, site, current, a, b.detach())

    def _end(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        current, self.current = self.current, None
        if current is None or not self.enabled:
            return
        logits = getattr(output, "logits", output if isinstance(output, Tensor) else None)
        hidden, called = current.extras.pop("hidden", None), current.extras.pop("head", False)
        if isinstance(logits, Tensor) and logits.requires_grad:
            logits.register_hook(partial(self._caught_logits, current, logits.detach()))
        if not called and self.layout.head is not None:
            self._guard(self._headless, current, hidden, output)

    def _hidden(self, module: nn.Module, args: tuple, output: object) -> None:
        states = getattr(output, "last_hidden_state", None)
        if self.current is not None and self.enabled and isinstance(states, Tensor):
            self.current.extras["hidden"] = states.detach()

    def _headless(self, current: Pass, hidden: Tensor | None, output: object) -> None:
        """The head's module did not run: measure it through the fused output, or say that it is not measured."""
        log_probs = getattr(output, "log_probs", None)
        scored = isinstance(log_probs, Tensor) and log_probs.ndim == 2
        if not scored or not log_probs.requires_grad or hidden is None or current.labels_BT is None:
            self.on_bypass("a fused loss bypasses the head")
            return
        if not self._fused_proved:
            head = self.layout.head.module
            if not fused.reproduces(head, hidden, current.target_BT(), log_probs.detach(), self.head_form):
                self.on_bypass("a fused loss bypasses the head and its log-probabilities are not those of the head")
                return
            self._fused_proved = True
        log_probs.register_hook(partial(self._caught_log_probs, current, hidden))
        entropy = getattr(output, "entropy", None)
        if isinstance(entropy, Tensor) and entropy.requires_grad:
            entropy.register_hook(self._caught_entropy)

    def _caught_log_probs(self, current: Pass, hidden: Tensor, gradient: Tensor) -> None:
        self._live(current)
        self._in_backward = current
        self._guard(self._fused_writes, current, hidden, gradient.detach())

    def _fused_writes(self, current: Pass, hidden: Tensor, gradient: Tensor) -> None:
        head = self.layout.head
        logits, at_logits, at_head = fused.head_gradients(
            head.module, hidden, current.target_BT(), gradient, self.head_form
        )
        self.on_logits(current, logits, at_logits)
        if head.weights:
            self.on_write(head, current, hidden, at_head)

    def _caught_entropy(self, gradient: Tensor) -> None:
        if self.enabled and bool(gradient.any()):
            self.enabled = False
            self.on_fault(UnmeasurableError("a loss on the entropy that a fused head reports is not measured"))

    def _caught_logits(self, current: Pass, logits: Tensor, gradient: Tensor) -> None:
        self._live(current)
        self._in_backward = current
        self._guard(self.on_logits, current, logits, gradient.detach())

    def _live(self, current: Pass) -> None:
        if not current.live and self.enabled:
            current.live = True
            self._guard(self.on_pass, current)


def _asleep() -> Tap:
    tap = object.__new__(Tap)
    tap.enabled, tap.current, tap._in_backward, tap._handles = False, None, None, []
    return tap
