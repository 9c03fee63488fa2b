"""Which parameters are measured, and to which addresses their slices belong.  [torch]

A `Weight` is one parameter; its `units` are equal slices along one axis (a head's
rows of q, a head's columns of o), each belonging to one or more addresses with a
share: under grouped-query attention a k row is shared by n query heads, 1/n each.
A `Site` is one module whose calls are tapped to get at a weight's writes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from intaglio.address import Address
from intaglio.errors import UnmeasurableError
from intaglio.model.families import place

FOUR_BIT = {"Linear4bit", "Linear8bitLt", "Params4bit", "QuantLinear", "HQQLinear", "GPTQLinear", "AwqLinear"}
SCALED_EMBEDDINGS = {"Gemma3TextScaledWordEmbedding", "Gemma3nTextScaledWordEmbedding"}


NOT_CAUSAL = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM",
)  # fmt: skip


@dataclass(eq=False)
class Weight:
    """One measured parameter.

    `side` says which factor of a write the units slice: "out" (b), "in" (a) or "" (not split).
    """

    name: str
    param: nn.Parameter
    kind: str  # linear, conv1d, embedding, gain, bias, lora_a, lora_b
    addresses: list[Address]  # one per pair
    side: str = ""
    unit_of_pair: list[int] = field(default_factory=lambda: [0])
    shares: list[float] = field(default_factory=lambda: [1.0])
    n_units: int = 1
    frozen: bool = False  # half of an adapter whose other half trains: the optimizer does not move it
    address_index: Tensor | None = None  # (pairs,) into Layout.addresses; set by Layout

    def add_units(self, target_XA: Tensor, units_XU: Tensor) -> None:
        """Add values per unit to values per address, by share."""
        pairs = units_XU if self._one_each else units_XU[..., self._units] * self._shares.to(units_XU.dtype)
        target_XA.index_add_(-1, self.address_index, pairs.to(target_XA.dtype))

    def bind(self, index: dict[Address, int], device: torch.device) -> None:
        self.address_index = torch.tensor([index[a] for a in self.addresses], device=device)
        self._units = torch.tensor(self.unit_of_pair, device=device)
        self._shares = torch.tensor(self.shares, dtype=torch.float64, device=device)
        self._one_each = self.unit_of_pair == list(range(self.n_units)) and set(self.shares) == {1.0}

    @property
    def axis(self) -> int:
        """The storage axis that the units slice."""
        return int((self.side == "in") != (self.kind == "conv1d"))


@dataclass(eq=False)
class Site:
    """One tapped module."""

    name: str
    module: nn.Module
    kind: str  # linear, embedding, norm, lora
    weight: Weight | None = None
    bias: Weight | None = None
    scale: float = 1.0  # what the module multiplies its output by (scaled embeddings, LoRA)
    padding_idx: int | None = None
    positions: bool = False  # a table of learnt positions: its batch dimension may be 1
    head: bool = False  # the output head
    lookup: bool = False  # the token embedding
    lora_b: Weight | None = None  # kind lora: weight is A
    rms: bool = True  # kind norm
    eps: float = 1e-6
    index: int = 0

    @property
    def weights(self) -> list[Weight]:
        return [w for w in (self.weight, self.lora_b, self.bias) if w is not None]


@dataclass(eq=False)
class Layout:
    """Everything that is measured in a model, and the names of what is not."""

    sites: list[Site]
    addresses: list[Address]
    unmeasured: dict[str, nn.Parameter]
    tied: bool
    head: Site | None
    lookup: Site | None
    reasons: dict[str, str]
    n_trainable: int
    n_measured: int
    lora: bool

    @property
    def weights(self) -> list[Weight]:
        """Every measured parameter once (a tied matrix stands under the lookup)."""
        seen: dict[int, Weight] = {}
        for site in self.sites:
            for weight in site.weights:
                if not weight.frozen:
                    seen.setdefault(id(weight.param), weight)
        return list(seen.values())

    @property
    def coverage(self) -> float:
        return self.n_measured / self.n_trainable if self.n_trainable else 0.0

    def give_up(self, site: Site, reason: str) -> list[str]:
        """Take a site's parameters out of the books (with every other site of theirs); their names."""
        ids = {id(w.param) for w in site.weights}
        if self.lookup is not None and any(id(w.param) in ids for w in self.lookup.weights):
            ids |= {id(w.param) for s in self.sites if s.positions for w in s.weights}  # told apart through it
        lost = {id(w.param): w for w in self.weights if id(w.param) in ids}
        for other in self.sites:
            for role in ("weight", "lora_b", "bias"):
                held = getattr(other, role)
                if held is not None and id(held.param) in lost:
                    setattr(other, role, None)
        for weight in lost.values():
            self.unmeasured[weight.name], self.reasons[weight.name] = weight.param, reason
            self.n_measured -= weight.param.numel()
        self.tied = self.tied and self.head is not site and self.lookup is not site
        return [w.name for w in lost.values()]


def causal_lm(model: nn.Module) -> nn.Module:
    """The innermost module that maps token ids to logits (inside PEFT, DDP or compile wrappers)."""
    for name in ("_orig_mod", "module"):
        if hasattr(model, name) and isinstance(getattr(model, name), nn.Module):
            return causal_lm(getattr(model, name))
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def build_layout(model: nn.Module, params: set[int] | None = None) -> Layout:
    """What can be measured of `model`.

    Args:
        model: a causal language model, possibly with LoRA adapters.
        params: ids of the parameters that the optimizer moves; None means all that require a gradient.

    Raises:
        UnmeasurableError: 4-bit or 8-bit base weights, DoRA, or a model that does not predict the next token, named.
    """
    model = causal_lm(model)
    _check_causal(model)
    builder = _Builder(model, params)
    for name, module in model.named_modules():
        builder.visit(name, module)
    return builder.layout()


def _check_causal(model: nn.Module) -> None:
    """Labels are read as next tokens, so another task's would be counted at the wrong places and without a word."""
    names = [kind.__name__ for kind in type(model).__mro__]
    other = next((n for n in names if n.endswith(NOT_CAUSAL)), None)
    if other is None and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        other = names[0]
    if other is not None:
        raise UnmeasurableError("not a causal language model", got=other, expected="a model that predicts the next token")


class _Builder:
    def __init__(self, model: nn.Module, params: set[int] | None) -> None:
        self.model, self.sites, self.reasons = model, [], {}
        self.moved = {
            id(p): (n, p)
            for n, p in model.named_parameters()
            if p.requires_grad and (params is None or id(p) in params)
        }
        self.lookup_module = _try(model, "get_input_embeddings")
        self.head_module = _try(model, "get_output_embeddings")
        self.config = getattr(model, "config", None)
        if hasattr(self.config, "get_text_config"):
            self.config = self.config.get_text_config()
        self.sandwich = any(n.endswith("post_feedforward_layernorm") for n, _ in model.named_modules())
        self.inside_lora: set[str] = set()

    def visit(self, name: str, module: nn.Module) -> None:
        kind = type(module).__name__
        if kind in FOUR_BIT:
            raise UnmeasurableError(
                f"{name} holds quantised weights ({kind}), whose books cannot close", expected="weights in float"
            )
        if _is_lora(module):
            self._lora(name, module)
        elif any(name.startswith(prefix) for prefix in self.inside_lora):
            return
        elif type(module) is nn.Linear or type(module) is Conv1D:
            self._linear(name, module)
        elif isinstance(module, nn.Embedding):
            self._embedding(name, module)
        elif _is_norm(module):
            self._norm(name, module)

    def _weight(self, name: str, param: nn.Parameter | None, kind: str, address: Address) -> Weight | None:
        if param is None or id(param) not in self.moved:
            return None
        return Weight(name, param, kind, [address])

    def _linear(self, name: str, module: nn.Module) -> None:
        head = module is self.head_module
        where = place(_plain(name), sandwich=self.sandwich)
        address = Address("unembed") if head else where.address
        kind = "conv1d" if type(module) is Conv1D else "linear"
        weight = self._weight(f"{name}.weight", module.weight, kind, address)
        bias = self._weight(f"{name}.bias", module.bias, "bias", _bias_address(address))
        if weight is not None and where.role:
            self._split(weight, where.role, self._sizes(module))
        if weight is not None or bias is not None or head:
            self.sites.append(Site(name, module, "linear", weight, bias, head=head))

    def _sizes(self, module: nn.Module) -> tuple[int, int]:
        n_out, n_in = (module.nf, module.nx) if type(module) is Conv1D else (module.out_features, module.in_features)
        return n_out, n_in

    def _split(self, weight: Weight, role: str, sizes: tuple[int, int]) -> None:
        """Divide a weight of an attention block among heads; leave it whole where the sizes do not fit."""
        heads = getattr(self.config, "num_attention_heads", None)
        if not heads:
            return
        key_heads = getattr(self.config, "num_key_value_heads", None) or heads
        hidden = self.config.hidden_size
        dim = getattr(self.config, "head_dim", None) or hidden // heads
        n_out, n_in = sizes
        group = heads // key_heads
        query, shared = [[(h, 1.0)] for h in range(heads)], [
            [(j * group + i, 1.0 / group) for i in range(group)] for j in range(key_heads)
        ]
        plan = {
            "q": ("out", query, n_out == heads * dim),
            "k": ("out", shared, n_out == key_heads * dim),
            "v": ("out", shared, n_out == key_heads * dim),
            "o": ("in", query, n_in == heads * dim),
            "qkv": ("out", query + shared + shared, n_out == (heads + 2 * key_heads) * dim),
            "per_head": ("out", query, n_out == 3 * heads * dim and heads == key_heads),
        }
        side, units, fits = plan[role]
        if not fits:
            return
        layer = weight.addresses[0].layer
        weight.side, weight.n_units = side, len(units)
        weight.addresses = [Address("attn", layer, head=h) for unit in units for h, _ in unit]
        weight.unit_of_pair = [j for j, unit in enumerate(units) for _ in unit]
        weight.shares = [share for unit in units for _, share in unit]

    def _embedding(self, name: str, module: nn.Embedding) -> None:
        lookup = module is self.lookup_module
        kind = type(module).__name__
        known = type(module) is nn.Embedding or kind in SCALED_EMBEDDINGS
        address = Address("embed") if lookup else place(_plain(name)).address
        weight = self._weight(f"{name}.weight", module.weight, "embedding", address)
        if weight is None:
            return
        if not known or module.max_norm is not None or module.scale_grad_by_freq:
            self.reasons[weight.name] = f"an embedding of class {kind} is not known here"
            return
        scale = float(module.embed_scale) if kind in SCALED_EMBEDDINGS else 1.0
        self.sites.append(
            Site(name, module, "embedding", weight, scale=scale, padding_idx=module.padding_idx,
                 positions=str(address) == "embed.pos", lookup=lookup)
        )  # fmt: skip

    def _norm(self, name: str, module: nn.Module) -> None:
        address = place(_plain(name), sandwich=self.sandwich).address
        gain = self._weight(f"{name}.weight", getattr(module, "weight", None), "gain", address)
        bias = self._weight(f"{name}.bias", getattr(module, "bias", None), "bias", address)
        eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None) or 1e-6
        if gain is not None or bias is not None:
            rms = not isinstance(module, nn.LayerNorm)
            self.sites.append(Site(name, module, "norm", gain, bias, rms=rms, eps=float(eps)))

    def _lora(self, name: str, module: nn.Module) -> None:
        self.inside_lora.add(name + ".")
        active = [a for a in module.active_adapters if a in module.lora_A]
        if getattr(module, "use_dora", None) and any(module.use_dora.get(a) for a in active):
            raise UnmeasurableError(f"{name} uses DoRA, whose product has no linear books", expected="plain LoRA")
        if len(active) != 1 or type(module.lora_A[active[0]]) is not nn.Linear:
            for adapter in module.lora_A:
                self.reasons[f"{name}.lora_A.{adapter}.weight"] = "only one active linear adapter is measured"
            return
        adapter = active[0]
        down, up = module.lora_A[adapter], module.lora_B[adapter]
        where = place(_plain(name), sandwich=self.sandwich)
        a, b = (
            Weight(f"{name}.{which}.{adapter}.weight", p, kind, [where.address], frozen=id(p) not in self.moved)
            for which, p, kind in (("lora_A", down.weight, "lora_a"), ("lora_B", up.weight, "lora_b"))
        )
        if a.frozen and b.frozen:
            return
        if where.role:
            for weight in (a, b):
                self._split(weight, where.role, (up.out_features, down.in_features))
        site = Site(name, module, "lora", a, scale=float(module.scaling[adapter]), lora_b=b)
        self.sites.append(site)

    def _drop(self, unmeasurable: set[int], reason: str) -> None:
        """Give up the parameters of these ids wherever they stand."""
        for site in self.sites:
            for which in ("weight", "lora_b", "bias"):
                weight = getattr(site, which)
                if weight is not None and id(weight.param) in unmeasurable:
                    setattr(site, which, None)
                    self.reasons[weight.name] = reason
        self.sites = [s for s in self.sites if s.weights or s.head]

    def _check(self) -> None:
        """Drop what the sites would measure only in part."""
        holders = Counter(id(p) for m in self.model.modules() for p in m.parameters(recurse=False))
        claims = Counter(id(w.param) for s in self.sites for w in s.weights)
        self._drop({i for i in claims if claims[i] < holders[i]}, "it is shared with a module that is not known here")
        if not any(s.lookup for s in self.sites):  # the batch's rows share the gradient at the positions
            positions = {id(w.param) for s in self.sites if s.positions for w in s.weights}
            self._drop(positions, "the token embedding does not train, so examples cannot be told apart here")

    def layout(self) -> Layout:
        self._check()
        head = next((s for s in self.sites if s.head), None)
        lookup = next((s for s in self.sites if s.lookup), None)
        tied = bool(head and lookup and head.weight and head.weight.param is lookup.weight.param)
        for i, site in enumerate(self.sites):
            site.index = i
        found = {id(w.param) for s in self.sites for w in s.weights}
        unmeasured = {n: p for i, (n, p) in self.moved.items() if i not in found}
        for name in unmeasured:
            self.reasons.setdefault(name, "no linear, embedding or norm module holds it")
        addresses = sorted({a for s in self.sites for w in s.weights for a in w.addresses})
        index = {a: i for i, a in enumerate(addresses)}
        for site in self.sites:
            for weight in site.weights:
                weight.bind(index, weight.param.device)
        total = sum(p.numel() for _, p in self.moved.values())
        measured = total - sum(p.numel() for p in unmeasured.values())
        return Layout(
            self.sites, addresses, unmeasured, tied, head, lookup, self.reasons, total, measured,
            any(s.kind == "lora" for s in self.sites),
        )  # fmt: skip


def _try(model: nn.Module, method: str) -> nn.Module | None:
    try:
        return getattr(model, method)()
    except (AttributeError, NotImplementedError):
        return None


def _plain(name: str) -> str:
    return name.replace(".base_layer", "")


def _bias_address(address: Address) -> Address:
    if address.layer is not None:
        return Address(address.part, address.layer, sub="bias")
    return Address("unembed.bias") if address.part == "unembed" else address


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__
    return isinstance(module, nn.LayerNorm) or name.endswith("RMSNorm")


def _is_lora(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear" and hasattr(module, "lora_A") and hasattr(module, "base_layer")
