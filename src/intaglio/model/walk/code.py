"""Lines of plain PyTorch that compute one part from the file's own tensors: text, written from a recipe.

In the lines, `w` is the file's tensors by name in float32, `x` (tokens, width) or `ids` (tokens,) what the part reads,
and `out` what it adds or gives. Slices are the part's own rows and columns.
"""

from __future__ import annotations

from typing import Any

from intaglio.errors import SubjectError
from intaglio.model.walk.facts import Facts, number

ACTIVATIONS = {
    "silu": "torch.nn.functional.silu({})", "swish": "torch.nn.functional.silu({})",
    "gelu": "torch.nn.functional.gelu({})", "relu": "torch.nn.functional.relu({})",
    "gelu_new": 'torch.nn.functional.gelu({}, approximate="tanh")',
    "gelu_fast": 'torch.nn.functional.gelu({}, approximate="tanh")',
    "gelu_pytorch_tanh": 'torch.nn.functional.gelu({}, approximate="tanh")',
}  # fmt: skip
Span = tuple[int, int]


class Code:
    """Writes the lines of one part; remembers which tensors it named."""

    def __init__(self, facts: Facts) -> None:
        self.f, self.r = facts, facts.recipe
        self.used: list[str] = []

    def w(self, name: str) -> str:
        """A tensor of the file, which must be there.

        Raises:
            SubjectError: it is not.
        """
        if not self.f.has(name):
            raise SubjectError("the file lacks a tensor that this part needs", got=name)
        if name not in self.used:
            self.used.append(name)
        return f'w["{name}"]'

    # --- norms ---------------------------------------------------------------------------

    def norm(self, name: str, of: str = "x") -> str:
        """One norm, written out."""
        eps = self.f.number("rms_norm_eps", "eps")
        if self.r.norm == "layer":
            bias = self.w(f"{name}.bias") if self.f.has(f"{name}.bias") else "None"
            size = self.f.shapes[f"{name}.weight"][0]
            return f"torch.nn.functional.layer_norm({of}, ({size},), {self.w(f'{name}.weight')}, {bias}, {eps})"
        gain = self.w(f"{name}.weight")
        gain = f"(1 + {gain})" if self.r.norm == "rms1" else gain
        return f"{of} * torch.rsqrt({of}.pow(2).mean(-1, keepdim=True) + {eps}) * {gain}"

    def norm_of(self, *names: str) -> str:
        """A function for several norms of one kind: `norm(y, name)`."""
        eps = self.f.number("rms_norm_eps", "eps")
        for name in names:
            self.w(f"{name}.weight")
        gain = '(1 + w[n + ".weight"])' if self.r.norm == "rms1" else 'w[n + ".weight"]'
        return f"norm = lambda y, n: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + {eps}) * {gain}"

    # --- attention -----------------------------------------------------------------------

    def attention(self, layer: int, head: int | None) -> list[str]:
        """The lines of one head, or of the whole attention of a layer."""
        r, prefix = self.r, self.f.layer(layer)
        attn = f"{prefix}{r.attn}."
        pre, post = (f"{prefix}{n}" if n else "" for n in (r.attn_norm, r.attn_post))
        post = post if head is None else ""
        qk = [f"{attn}{s}_norm" for s in "qk"] if r.qk_norm else []
        named = [*([pre] if pre else []), *qk, *([post] if post else [])]
        lines = [self.norm_of(*named)] if len(named) > 1 else []
        if pre:
            lines.append("h = " + (f'norm(x, "{pre}")' if lines else self.norm(pre)))
        source = "h" if pre else "x"
        value, projected = self._projections(source, attn, head, qk)
        lines += projected
        q, k = ("turn(q)", "turn(k)") if r.rotary and self._turns(layer) else ("q", "k")
        if r.rotary and q != "q":
            lines += self._turn(layer)
        lines.append(self._pattern(layer, q, k))
        lines.append(self._out(attn, head, value, post))
        return lines

    def span(self, role: str, head: int | None) -> Span:
        """Rows (columns, where matrices stand the other way round) of a role's matrix that belong to a head, or to all."""
        f, dim = self.f, self.f.head_dim
        count = f.heads if role in "qo" else f.key_heads
        place = None if head is None else head if role in "qo" else head // (f.heads // f.key_heads)
        if self.r.qkv == "per_head" and role != "o":
            assert place is not None
            start = (3 * place + "qkv".index(role)) * dim
            return start, start + dim
        first = 0
        if self.r.qkv in ("fused", "conv") and role != "o":
            first = {"q": 0, "k": f.heads * dim, "v": (f.heads + f.key_heads) * dim}[role]
        if place is None:
            return first, first + count * dim
        return first + place * dim, first + (place + 1) * dim

    def _linear(self, source: str, name: str, span: Span | None) -> str:
        """source times a matrix of the file, the given outputs of it, plus its bias if it has one."""
        weight = self.w(f"{name}.weight")
        rows = f"[{span[0]}:{span[1]}]" if span else ""
        if self._conv(name):
            made = f"{source} @ {weight}{f'[:, {span[0]}:{span[1]}]' if span else ''}"
        else:
            made = f"{source} @ {weight}{rows}.T"
        return made + (f" + {self.w(f'{name}.bias')}{rows}" if self.f.has(f"{name}.bias") else "")

    def _conv(self, name: str) -> bool:
        return self.r.qkv == "conv" or (self.r.mlp == "conv" and f".{self.r.mlp_name}." in name)

    def _projections(self, source: str, attn: str, head: int | None, qk: list[str]) -> tuple[str, list[str]]:
        """Lines for q and k, and the expression of v."""
        r, f = self.r, self.f
        if r.qkv == "per_head" and head is None:
            made = self._linear(source, attn + r.qkv_name, None)
            split = f"({made}).unflatten(-1, ({f.heads}, {3 * f.head_dim})).transpose(0, 1).split({f.head_dim}, -1)"
            return "v", [f"q, k, v = {split}"]
        found = {role: self._project(source, attn, role, head, qk) for role in "qkv"}
        return found["v"], [f"q = {found['q']}", f"k = {found['k']}"]

    def _project(self, source: str, attn: str, role: str, head: int | None, qk: list[str]) -> str:
        r, f = self.r, self.f
        name = f"{attn}{role}_proj" if r.qkv == "separate" else attn + r.qkv_name
        span = self.span(role, head)
        whole = r.qkv == "separate" and (head is None or (r.qk_norm == "whole" and role in "qk"))
        made = self._linear(source, name, None if whole else span)
        normed = role in "qk" and bool(qk)
        if normed and r.qk_norm == "whole":
            made = f'norm({made}, "{attn}{role}_norm")'
            if head is not None:
                return f"{made}[:, {span[0]}:{span[1]}]"
        if head is not None:
            return f'norm({made}, "{attn}{role}_norm")' if normed and r.qk_norm == "head" else made
        count = f.heads if role == "q" else f.key_heads
        made = f"({made}).unflatten(-1, ({count}, {f.head_dim})).transpose(0, 1)"
        if normed and r.qk_norm == "head":
            made = f'norm({made}, "{attn}{role}_norm")'
        return made + (f".repeat_interleave({f.heads // count}, 0)" if count != f.heads else "")

    def _turns(self, layer: int) -> bool:
        """Whether this layer has rotary positions (SmolLM3 leaves some without)."""
        if self.f.config.get("no_rope_layers"):
            return bool(self.f.of_layer("no_rope_layers", "no_rope", layer))
        return True

    def _turn(self, layer: int) -> list[str]:
        rope = self.rope(layer)
        half, size = rope["pairs"], 2 * rope["pairs"]
        freq = f"{rope['theta']} ** (-torch.arange(0, {rope['size']}, 2) / {rope['size']})"
        lines = []
        if rope["type"] == "llama3":
            low, high, factor, length = (rope[n] for n in ("low", "high", "factor", "length"))
            lines.append(f"f = {freq}")
            smooth = f"(({length} * f / (2 * torch.pi) - {low}) / {high - low}).clamp(0, 1)"
            freq = f"(f / {factor} + (f - f / {factor}) * {smooth})"
        elif rope["type"] == "linear":
            freq = f"{freq} / {rope['factor']}"
        lines.append(f"a = torch.arange(len(x))[:, None] * {freq}")
        rest = f", y[..., {size}:]" if size < self.f.head_dim else ""
        end = size if rest else ""
        first, second = f"y[..., :{half}]", f"y[..., {half}:{end}]"
        lines.append(
            f"turn = lambda y: torch.cat(({first} * a.cos() - {second} * a.sin(), {second} * a.cos() + {first} * a.sin()"
            f"{rest}), -1)"
        )
        return lines

    def rope(self, layer: int) -> dict[str, Any]:
        """Base, turned numbers and pairs per head, and the kind of scaling of a layer's rotary positions.

        Raises:
            SubjectError: a kind of scaling that is not written here.
        """
        f, config = self.f, self.f.config
        given = config.get("rope_parameters")
        if isinstance(given, dict) and "full_attention" in given:
            given = given.get("sliding_attention" if f.sliding(layer) else "full_attention")
        scaling = given or config.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            raise SubjectError("the rotary positions in config.json are not as they should be", got=repr(scaling)[:80])
        local = "rope_local_base_freq" in config and f.sliding(layer)  # older Gemma 3: the window's layers have their own
        if given:
            f.asked["rope_parameters"] = (given, "rope", True)
            theta = number(given.get("rope_theta"), "rope_theta")
        else:
            scaling = {} if local else scaling
            old = "rope_local_base_freq" if local else "rotary_emb_base" if "rotary_emb_base" in config else "rope_theta"
            theta = f.number(old, "rope", 10000.0)
            if scaling:
                f.asked["rope_scaling"] = (scaling, "rope", True)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "linear", "llama3"):
            raise SubjectError("the code of these rotary positions is not known here", got=str(kind),
                               expected="default, linear or llama3")  # fmt: skip
        part = (given or {}).get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct")
        if part is None:
            part = dict(self.r.defaults).get("partial_rotary_factor", 1.0) if not given else 1.0
        size = int(f.head_dim * number(part, "partial_rotary_factor"))
        if not 0 < size <= f.head_dim:
            raise SubjectError("the share of a head that is turned is not between 0 and 1", got=str(part))
        found = {"theta": float(theta), "size": size, "pairs": (size + 1) // 2, "type": kind}
        if kind != "default":
            found["factor"] = float(number(scaling.get("factor"), "factor"))
        if kind == "llama3":
            names = {"low": "low_freq_factor", "high": "high_freq_factor", "length": "original_max_position_embeddings"}
            found |= {short: float(number(scaling.get(name), name)) for short, name in names.items()}
        return found

    def _pattern(self, layer: int, q: str, k: str) -> str:
        f = self.f
        scale = f"{f.head_dim} ** -0.5"
        if f.config.get("query_pre_attn_scalar"):
            scale = f"{f.number('query_pre_attn_scalar', 'scale')} ** -0.5"
        elif self.f.family == "granite":
            scale = str(float(f.number("attention_multiplier", "scale")))
        elif f.config.get("scale_attn_weights") is False:
            f.take("scale_attn_weights", "scale")
            scale = "1"
        if f.config.get("scale_attn_by_inverse_layer_idx"):
            f.take("scale_attn_by_inverse_layer_idx", "scale")
            scale = f"{scale} / {layer + 1}"
        scores = f"{q} @ {k}.mT * {scale}"
        if f.config.get("attn_logit_softcapping"):
            cap = f.number("attn_logit_softcapping", "softcap")
            scores = f"torch.tanh({scores} / {cap}) * {cap}"
        window = f.window(layer)
        hidden = f".tril().triu({1 - window}) == 0" if window else ".triu(1) > 0"
        return f"pattern = ({scores}).masked_fill(torch.ones(len(x), len(x)){hidden}, -torch.inf).softmax(-1)"

    def _out(self, attn: str, head: int | None, value: str, post: str) -> str:
        name = attn + self.r.out
        weight = self.w(f"{name}.weight")
        if head is not None:
            a, b = self.span("o", head)
            out = f"{weight}[{a}:{b}]" if self.r.qkv == "conv" else f"{weight}[:, {a}:{b}].T"
            return f"out = {self.times()}pattern @ ({value}) @ {out}"
        made = self._linear(f"(pattern @ {value}).transpose(0, 1).flatten(1)", name, None)
        return self._added(made, post)

    def times(self) -> str:
        """What a part is multiplied by before it joins the residual stream (Granite), as code; "" for 1."""
        if self.f.config.get("residual_multiplier") in (None, 1.0):
            return ""
        return f"{float(self.f.number('residual_multiplier', 'residual'))} * "

    def _added(self, made: str, post: str) -> str:
        if post:
            return f'out = norm({made}, "{post}")'
        times = self.times()
        return f"out = {times}({made})" if times else f"out = {made}"

    # --- the MLP -------------------------------------------------------------------------

    def mlp(self, layer: int, neuron: int | None) -> list[str]:
        """The lines of a layer's MLP, or of one of its neurons."""
        r, prefix = self.r, self.f.layer(layer)
        name = f"{prefix}{r.mlp_name}."
        pre = self.mlp_norm(layer)
        post = f"{prefix}{r.mlp_post}" if r.mlp_post and neuron is None else ""
        lines = [self.norm_of(*[n for n in (pre, post) if n])] if post else []
        if pre:
            lines.append("h = " + (f'norm(x, "{pre}")' if post else self.norm(pre)))
        source, act = "h" if pre else "x", self._activation()
        size = self.neurons(layer)
        one = None if neuron is None else (neuron, neuron + 1)
        if r.mlp == "gated":
            lines.append(f"n = {act.format(self._linear(source, name + 'gate_proj', one))} * "
                         f"({self._linear(source, name + r.up, one)})")  # fmt: skip
        elif r.mlp == "fused":
            second = (size, 2 * size) if one is None else (size + one[0], size + one[1])
            lines.append(f"n = {act.format(self._linear(source, name + r.up, one or (0, size)))} * "
                         f"({self._linear(source, name + r.up, second)})")  # fmt: skip
        else:
            lines.append(f"n = {act.format(self._linear(source, name + r.up, one))}")
        if neuron is None:
            return [*lines, self._added(self._linear("n", name + r.down, None), post)]
        weight = self.w(f"{name}{r.down}.weight")
        written = f"{weight}[{neuron}]" if r.mlp == "conv" else f"{weight}[:, {neuron}]"
        return [*lines, f"out = {self.times()}n * {written}"]

    def mlp_norm(self, layer: int) -> str:
        """The norm before the MLP; the attention's own where both read the same."""
        name = f"{self.f.layer(layer)}{self.r.mlp_norm}" if self.r.mlp_norm else ""
        if name and not self.f.has(f"{name}.weight") and self.parallel():
            return f"{self.f.layer(layer)}{self.r.attn_norm}"
        return name

    def parallel(self) -> bool:
        """Whether the MLP reads the layer's input and not what attention made of it."""
        if self.r.parallel in ("", "always"):
            return self.r.parallel == "always"
        return bool(self.f.take(self.r.parallel, "parallel", False))

    def neurons(self, layer: int) -> int:
        """How many neurons a layer's MLP has, read from its own matrix."""
        shape = self.f.shapes[f"{self.f.layer(layer)}{self.r.mlp_name}.{self.r.down}.weight"]
        self.f.take("intermediate_size", "neurons", None)
        return int(shape[0] if self.r.mlp == "conv" else shape[1])

    def _activation(self) -> str:
        name = self.f.take("hidden_act", "activation")
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise SubjectError("the code of this activation is not known here", got=str(name), expected=", ".join(ACTIVATIONS))
        return ACTIVATIONS[name]

    # --- the ends ------------------------------------------------------------------------

    def embed(self) -> list[str]:
        """The lines of the token embedding."""
        made = f"{self.w(f'{self.f.prefix}{self.r.embed}.weight')}[ids]"
        self.f.take("vocab_size", "vocabulary")
        scale = self.r.embed_scale
        if scale == "sqrt":
            return [f"out = {made} * {self.f.width} ** 0.5"]
        return [f"out = {made} * {float(self.f.number(scale, 'embed_scale'))}" if scale else f"out = {made}"]

    def positions(self) -> list[str]:
        """The lines of the learnt positions.

        Raises:
            SubjectError: the family has none.
        """
        if not self.r.positions:
            raise SubjectError("this family has no learnt positions", got=str(self.f.family), expected="embed")
        self.f.take("max_position_embeddings", "positions")
        return [f"out = {self.w(f'{self.f.prefix}{self.r.positions}.weight')}[torch.arange(len(ids))]"]

    @property
    def tied(self) -> bool:
        """Whether the file has no output matrix of its own."""
        return not self.f.has(f"{self.r.unembed}.weight")

    def unembed(self) -> list[str]:
        """The lines of the output head."""
        name = f"{self.f.prefix}{self.r.embed}" if self.tied else self.r.unembed
        self.f.take("vocab_size", "vocabulary")
        self.f.take("tie_word_embeddings", "tied", None)
        made = f"x @ {self.w(f'{name}.weight')}.T"
        if not self.tied and self.f.has(f"{name}.bias"):
            made += f" + {self.w(f'{name}.bias')}"
        lines = [f"out = {made}"]
        if self.f.config.get("logits_scaling"):
            lines = [f"out = ({made}) / {float(self.f.number('logits_scaling', 'logit_scale'))}"]
        if self.f.config.get("final_logit_softcapping"):
            cap = self.f.number("final_logit_softcapping", "softcap")
            lines.append(f"out = torch.tanh(out / {cap}) * {cap}")
        return lines
