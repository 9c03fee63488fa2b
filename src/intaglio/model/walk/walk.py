"""A walk to one part: what it reads, its formula, its code, its tensors, its config fields; as data, worded elsewhere."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intaglio.address import Address, parse
from intaglio.errors import InputError, SubjectError
from intaglio.model.parts import Parts
from intaglio.model.tensors import Checkpoint
from intaglio.model.walk.code import Code
from intaglio.model.walk.facts import Facts, check_layer, facts_of

_SUBS = ("attn", "mlp", "attn_post", "mlp_post", "q", "k")
EXPECTED = "embed, embed.pos, unembed, norm, L3.norm.attn, L3.attn, L3.attn.H5, L3.mlp or L3.mlp.N120"


@dataclass(frozen=True)
class Walk:
    """From a part's idea to its tensors.

    Attributes:
        address: the part.
        kind: names its idea in the catalogue: embed, positions, unembed, norm, norm_qk, norm_post, attn, head, mlp or neuron.
        family: the config's model_type.
        reads: what `x` or `ids` is in the code: ids, residual, middle, final, normed, query, key or part.
        formula: lines of mathematics.
        setup: code that reads the needed tensors into `w`.
        code: code that makes `out`.
        tensors: names the code uses, in order.
        notes: keys of what a reader must know beside the code.
        config: rows field, value, why (a key), given (false: config.json leaves it to the family's default).
        values: numbers for the texts.
    """

    address: str
    kind: str
    family: str
    reads: str
    formula: list[str]
    setup: list[str]
    code: list[str]
    tensors: list[str]
    notes: list[str]
    config: list[dict[str, Any]]
    values: dict[str, Any]


def walk_of(checkpoint: Checkpoint, address: str) -> Walk:
    """The walk to a part of a model's file, from headers and configuration alone.

    Args:
        checkpoint: an open checkpoint of safetensors, with its config.json.
        address: such as L18.attn.H6.

    Raises:
        InputError: no part of this model, or one that is not walked to.
        SubjectError: a family, a tensor or a setting whose arithmetic is not written here.
    """
    where = parse(address)
    if checkpoint.gguf:
        raise SubjectError("the lines of a walk read safetensors", got=checkpoint.path.name, expected="a folder with safetensors")
    entries = checkpoint.entries
    facts = facts_of(checkpoint.config, {name: tuple(e.shape) for name, e in entries.items()})
    if where.layer is not None:
        check_layer(facts, where.layer)
    if where.part == "attn":
        _check_heads(checkpoint, facts, where.layer)
    code = Code(facts)
    assert facts.width  # the one field that every part's shape rests on: the list of fields begins with it
    kind, reads, lines = _lines(facts, code, where)
    setup = _setup(code.used, {name: entries[name].file for name in code.used})
    config = [{"field": k, "value": v, "why": why, "given": given} for k, (v, why, given) in facts.asked.items()]
    return Walk(
        address, kind, str(facts.family), reads, _formula(facts, code, kind, where), setup, lines, list(code.used),
        _notes(facts, code, kind, where), config, _values(facts, where),
    )  # fmt: skip


def _lines(f: Facts, code: Code, where: Address) -> tuple[str, str, list[str]]:
    """Kind, what is read, and the code."""
    layer = where.layer
    if where.part == "embed":
        return "embed", "ids", code.embed()
    if where.part == "embed.pos":
        return "positions", "ids", code.positions()
    if where.part == "unembed":
        return "unembed", "normed", code.unembed()
    if where.part == "norm" and layer is None:
        return "norm", "final", [f"out = {code.norm(f'{f.prefix}{f.recipe.final}')}"]
    if where.part == "norm" and where.sub in _SUBS:
        return _norm(f, code, layer, where.sub)
    if where.part == "attn" and where.sub is None:
        _check(where, "head", where.head, f.heads)
        return "attn" if where.head is None else "head", "residual", code.attention(layer, where.head)
    if where.part == "mlp" and where.sub is None:
        _check(where, "neuron", where.neuron, code.neurons(layer))
        reads = "residual" if code.parallel() else "middle"
        return "mlp" if where.neuron is None else "neuron", reads, code.mlp(layer, where.neuron)
    raise InputError("there is no walk to this part", got=str(where), expected=EXPECTED)


def _norm(f: Facts, code: Code, layer: int, sub: str) -> tuple[str, str, list[str]]:
    r, prefix = f.recipe, f.layer(layer)
    name = {"attn": r.attn_norm, "mlp": r.mlp_norm, "attn_post": r.attn_post, "mlp_post": r.mlp_post,
            "q": r.qk_norm and f"{r.attn}.q_norm", "k": r.qk_norm and f"{r.attn}.k_norm"}[sub]  # fmt: skip
    if not name or not f.has(f"{prefix}{name}.weight"):
        raise SubjectError("this family has no such norm", got=f"L{layer}.norm.{sub}")
    reads = {"attn": "residual", "mlp": "residual" if code.parallel() else "middle", "q": "query", "k": "key"}.get(sub, "part")
    kind = "norm_qk" if sub in "qk" else "norm_post" if sub.endswith("post") else "norm"
    return kind, reads, [f"out = {code.norm(prefix + name)}"]


def _check_heads(checkpoint: Checkpoint, f: Facts, layer: int) -> None:
    """Refuse a configuration whose heads are not those of the tensors."""
    found = Parts(checkpoint).heads(layer)
    if (found.n_heads, found.n_key_heads, found.head_dim) != (f.heads, f.key_heads, f.head_dim):
        raise SubjectError(
            "the heads of config.json are not those of the tensors", got=f"{f.heads} over {f.key_heads} of {f.head_dim}",
            expected=f"{found.n_heads} over {found.n_key_heads} of {found.head_dim}",
        )  # fmt: skip


def _check(where: Address, what: str, number: int | None, count: int) -> None:
    if number is not None and number >= count:
        raise InputError(f"no such {what}", got=str(where), expected=f"{what}s 0 to {count - 1}")


def _setup(names: list[str], files: Mapping[str, str]) -> list[str]:
    """Code that reads the named tensors, and no others, in float32."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_file[files[name]].append(name)
    lines = ["import torch", "from safetensors import safe_open", "w = {}"]
    for file, held in by_file.items():
        listed = ",\n    ".join(json.dumps(name) for name in held)
        lines += [f'f = safe_open({json.dumps(file)}, "pt")', f"w |= {{n: f.get_tensor(n).float() for n in (\n    {listed},\n)}}"]
    return lines


def _formula(f: Facts, code: Code, kind: str, where: Address) -> list[str]:
    norm = {
        "rms": "norm(x) = x / √(mean(x²) + ε) · g", "rms1": "norm(x) = x / √(mean(x²) + ε) · (1 + g)",
        "layer": "norm(x) = (x − mean(x)) / √(var(x) + ε) · g + b",
    }[f.recipe.norm]  # fmt: skip
    if kind.startswith("norm"):
        return [norm]
    if kind in ("attn", "head"):
        return _attention_formula(f, code, kind, where.layer, norm)
    if kind in ("mlp", "neuron"):
        act = str(f.config.get(f.recipe.field("hidden_act"), "act"))
        source = "h" if code.mlp_norm(where.layer) else "x"
        gated = f.recipe.mlp in ("gated", "fused")
        one = "ᵢ" if kind == "neuron" else ""
        n = f"n{one} = {act}(W_gate{one} {source})" + (f" · (W_up{one} {source})" if gated else "")
        n = n if gated else n.replace("W_gate", "W_up")
        return [*([f"{norm};   h = norm(x)"] if source == "h" else []), n, f"out = n{one} W_down{one}"]
    if kind == "embed":
        return ["e_t = E[x_t]" + (" · scale" if f.recipe.embed_scale else "")]
    if kind == "positions":
        return ["p_t = P[t]"]
    capped = ";   z ← c · tanh(z / c)" if f.config.get("final_logit_softcapping") else ""
    return ["z = h W_Uᵀ" + capped + ";   p = softmax(z)"]


def _attention_formula(f: Facts, code: Code, kind: str, layer: int, norm: str) -> list[str]:
    source = "h" if f.recipe.attn_norm else "x"
    lines = [f"{norm};   h = norm(x)"] if f.recipe.attn_norm else []
    q, k = ("norm(W_Q {0})", "norm(W_K {0})") if f.recipe.qk_norm else ("W_Q {0}", "W_K {0}")
    lines.append(f"q, k, v = {q}, {k}, W_V {{0}}".format(source))
    turned = f.recipe.rotary and code._turns(layer)
    if turned:
        rope = code.rope(layer)
        lines.append(f"(q_t, k_t)[i, i + {rope['pairs']}] ← R(t · θ^(−2i/{rope['size']})) (q_t, k_t)[i, i + {rope['pairs']}]")
    lines.append("A_ts = softmax_{s ≤ t}(q_t · k_s · scale)")
    lines.append("out_t = W_O Σ_s A_ts v_s" if kind == "head" else "out_t = W_O [Σ_s A_ts v_s of each head]")
    return lines


def _notes(f: Facts, code: Code, kind: str, where: Address) -> list[str]:
    notes = []
    if kind in ("attn", "head"):
        attn = f"{f.layer(where.layer)}{f.recipe.attn}."
        if kind == "head" and f.has(f"{attn}{f.recipe.out}.bias"):
            notes.append("bias")
        if kind == "head" and f.recipe.attn_post:
            notes.append("post")
        if kind == "head" and f.key_heads < f.heads:
            notes.append("shared")
        if f.window(where.layer):
            notes.append("window")
        if f.recipe.rotary and not code._turns(where.layer):
            notes.append("no_rope")
    if kind == "neuron":
        if f.has(f"{f.layer(where.layer)}{f.recipe.mlp_name}.{f.recipe.down}.bias"):
            notes.append("neuron_bias")
        if f.recipe.mlp_post:
            notes.append("post")
    if kind in ("attn", "head", "mlp", "neuron") and code.times():
        notes.append("residual")
    if kind == "unembed" and code.tied:
        notes.append("tied")
    return notes


def _values(f: Facts, where: Address) -> dict[str, Any]:
    group = f.heads // f.key_heads
    first = (where.head or 0) // group * group
    return {
        "layer": where.layer, "layers": f.layers, "heads": f.heads, "key_heads": f.key_heads, "head_dim": f.head_dim,
        "width": f.width, "group": group, "head": where.head, "neuron": where.neuron,
        "sharers": [] if where.head is None else list(range(first, first + group)),
        "window": f.window(where.layer) if where.layer is not None else None,
        "times": f.config.get("residual_multiplier"),
    }  # fmt: skip
