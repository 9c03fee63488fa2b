"""An atlas of made-up rows, every table filled: what the page of the heads is checked on without a model."""

from __future__ import annotations

import base64
import random
import zlib
from typing import Any

from intaglio.atlas import ROLES, UNRESOLVED, AtlasData
from intaglio.tables import ATLAS_TABLES

TEXT = (
    "<s>",
    "The",
    " cat",
    " sat",
    " on",
    " the",
    " mat",
    ".",
    "\n",
    "К",
    "от",
    " сел",
    " на",
    " стол",
    " и",
    " смот",
    "рит",
    " на",
    " кош",
    "ку",
    ".",
    " </script><img src=x onerror=faults.push(1)>",
    "\\xd0",
    " cat",
    " sat",
    " on",
    " the",
    " mat",
    " again",
    ",",
    " and",
    " then",
    " the",
    " dog",
    " came",
    " in",
    "\t",
    "<b>",
    "&amp;",
    "!",
)
HEADS_OF = {
    "first_token": 0.4,
    "previous_token": 0.05,
    "induction": 0.03,
    "duplicate_token": 0.02,
    "copying": 0.04,
    "syntax": 0.05,
}
STEPS = (0, 100, 200, 400, 800, 1600, 3200)


def address(layer: int, head: int) -> str:
    return f"L{layer}.attn.H{head}"


def triangle(role: str, tokens: int, rng: random.Random) -> str:
    """A pattern that looks as the role's heads do: deflated bytes, row by row, as base64."""
    flat = bytearray()
    for q in range(tokens):
        row = [rng.random() ** 3 * 0.3 for _ in range(q + 1)]
        row[0] += 1.0
        if role == "previous_token" and q:
            row[q - 1] += 6
        elif role == "first_token":
            row[0] += 9
        elif role == "induction" and q > 23:
            row[q - 21] += 5
        elif role == "duplicate_token" and q > 22:
            row[q - 22] += 5
        flat += bytes(int(255 * v / sum(row)) for v in row)
    return base64.b64encode(zlib.compress(bytes(flat), 9)).decode()


def atlas(
    layers: int = 30, heads: int = 9, *, seed: int = 0, beside: int = 0, tables: set[str] | None = None
) -> AtlasData:
    """Made-up rows for every table, or for some.

    Args:
        beside: how many further sides of the same shape.
        tables: only these.
    """
    rng = random.Random(seed)
    names = [(layer, head) for layer in range(layers) for head in range(heads)]
    roles = {address(*n): _role(rng) for n in names}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ATLAS_TABLES}
    for n in names:
        _one_head(rows, n, roles, layers, heads, rng)
    _whole(rows, roles, layers, rng)
    about = {
        "subject": f"made-up-{seed} <b>",
        "fingerprint": "0" * 12,
        "n_layers": layers,
        "n_heads": heads,
        "n_key_heads": max(1, heads // 3),
        "head_dim": 64,
        "width": 64 * heads,
        "seed": seed,
        "texts": [list(TEXT)],
        "text_ids": [list(range(len(TEXT)))],
        "seconds": 12.5,
        "rules": {r: {"smallest": 0.1, "level": 0.05} for r in ROLES},
        "skipped": {"retrieval": "the model never copies the needle by itself", "places": "no file <i>"},
    }
    kept = {k: v for k, v in rows.items() if v and (tables is None or k in tables)}
    return AtlasData(about, kept, [atlas(layers, heads, seed=seed + 1 + i, tables=tables) for i in range(beside)])


def _role(rng: random.Random) -> str:
    return rng.choices([*HEADS_OF, UNRESOLVED], [*HEADS_OF.values(), 0.5])[0]


def _one_head(rows, n: tuple[int, int], roles: dict[str, str], layers: int, heads: int, rng: random.Random) -> None:
    layer, head = n
    own, role = address(*n), roles[address(*n)]
    named = role != UNRESOLVED
    score, null = (
        (rng.uniform(0.3, 0.98), rng.uniform(0.0, 0.08)) if named else (rng.uniform(0, 0.1), rng.uniform(0, 0.1))
    )
    span = {"score": score, "low": score - 0.03, "high": min(1, score + 0.02), "null": null}
    shape = {
        "entropy_nats": rng.uniform(0, 3),
        "distance_tokens": rng.uniform(0, 20),
        "sink": rng.random(),
        "cluster": rng.randrange(5),
        "template_share": rng.random(),
        "content_share": rng.random(),
    }
    rows["heads"].append(
        {
            "address": own,
            "layer": layer,
            "head": head,
            "role": role,
            "roles": [role] if named else [],
            **span,
            "evidence": (score - null) / (1 - null) if named else 0.0,
            **shape,
        }
    )
    for r in ROLES[:-1]:
        mine = r == role
        low = rng.uniform(0, 0.1)
        detail = {"fixed_offset": "-3", "syntax": "nsubj, dependent to head"}.get(r, "")
        values = span if mine else {"score": low, "low": low - 0.02, "high": low + 0.02, "null": rng.uniform(0, 0.1)}
        rows["scores"].append(
            {
                "address": own,
                "role": r,
                "detail": detail,
                **values,
                "p": 1e-6 if mine else rng.random(),
                "samples": 32,
                "named": mine,
            }
        )
    rows["weights"].append(
        {
            "address": own,
            "ov_copying": rng.uniform(-1, 1),
            "ov_copying_null": 0.2,
            "qk_matching": rng.uniform(-1, 1),
            "ov_rank": rng.uniform(5, 60),
            "qk_rank": rng.uniform(5, 60),
            "ov_l2": rng.uniform(1, 9),
            "qk_l2": rng.uniform(1, 9),
            "profile_offset": rng.randrange(4),
            "profile": [rng.gauss(0, 1) for _ in range(32)],
        }
    )
    for circuit in ("ov", "ov_down", "qk"):
        for rank in range(8):
            pair = {
                "source": rng.choice(TEXT),
                "token": rng.choice(TEXT),
                "value": rng.uniform(1, 9) * (-1 if circuit == "ov_down" else 1),
            }
            rows["reads"].append({"address": own, "circuit": circuit, "rank": rank, **pair})
    for side in "qkv":
        for _ in range(3 if layer else 0):
            writer = address(rng.randrange(layer), rng.randrange(heads))
            rows["composition"].append(
                {
                    "reader": own,
                    "writer": writer,
                    "side": side,
                    "score": rng.uniform(0, 0.4),
                    "null": 0.05,
                    "excess": rng.gauss(3, 4),
                }
            )
    rows["patterns"].append({"address": own, "text": 0, "triangle": triangle(role, len(TEXT), rng)})
    for part in "qkvo":
        start = 1000 * (layer * heads + head)
        rows["places"].append(
            {
                "address": own,
                "tensor": f"model.layers.{layer}.self_attn.{part}_proj.weight",
                "role": part,
                "file": "model.safetensors",
                "dtype": "BF16",
                "shape": [64 * heads, 64 * heads],
                "rows": [64 * head, 64 * head + 64] if part != "o" else [],
                "columns": [] if part != "o" else [64 * head, 64 * head + 64],
                "start": start,
                "stop": start + 900,
                "run_bytes": 900 if part != "o" else 128,
                "stride": None if part != "o" else 1152,
                "runs": 1 if part != "o" else 576,
                "shared_with": [address(layer, h) for h in range(heads) if h // 3 == head // 3 and h != head]
                if part in "kv"
                else [],
            }
        )
    _over_time(rows, own, role, layers, rng)


def _over_time(rows, own: str, role: str, layers: int, rng: random.Random) -> None:
    born = rng.choice(STEPS[2:5])
    for r in ("previous_token", "induction", "first_token"):
        for step in STEPS:
            up = r == role and step >= born
            score = rng.uniform(0.5, 0.9) if up else rng.uniform(0, 0.08)
            rows["history"].append(
                {
                    "step": step,
                    "address": own,
                    "role": r,
                    "detail": "",
                    "score": score,
                    "low": score - 0.03,
                    "high": score + 0.03,
                    "null": 0.04,
                    "named": up,
                }
            )
    if role in ("previous_token", "induction"):
        before = STEPS[STEPS.index(born) - 1]
        rows["events"].append(
            {
                "role": role,
                "address": own,
                "event": "birth",
                "step": born,
                "after_step": before,
                "low_step": before,
                "high_step": born,
                "other": "",
            }
        )
    if role == "induction":
        for rank in range(6):
            example = f"{rng.randrange(16**10):010x}"
            rows["teachers"].append(
                {
                    "address": own,
                    "example": example,
                    "rank": rank,
                    "credit_nats": rng.uniform(0.001, 0.1) / (rank + 1),
                    "movement": rng.random(),
                    "null_low": -0.002,
                    "null_high": 0.01,
                    "visits": 3,
                    "group": "repeats",
                    "preview": "кот сел на стол, кот сел <b>",
                }
            )
            if rank < 2:
                rows["teacher_tokens"] += [
                    {"address": own, "example": example, "position": i, "token": token, "shift": rng.gauss(0, 1)}
                    for i, token in enumerate(TEXT[:20])
                ]


def _whole(rows, roles: dict[str, str], layers: int, rng: random.Random) -> None:
    for role in HEADS_OF:
        members = [a for a, r in roles.items() if r == role]
        loss, random_nats = 3.3, 3.5
        ablated = rng.choice([3.45, 6.0, 11.8])
        rows["checks"].append(
            {
                "role": role,
                "heads": members,
                "task": "second copy of random tokens",
                "loss_nats": loss,
                "ablated_nats": ablated,
                "random_nats": random_nats,
                "random_low": 3.4,
                "random_high": 3.7,
                "draws": 20,
                "holds": ablated > 3.7,
            }
        )
    for i in range(5):
        rows["clusters"].append(
            {
                "cluster": i,
                "name": rng.choice([*HEADS_OF, UNRESOLVED]),
                "heads": 60 - 9 * i,
                "stability": rng.random(),
                "features": '{"entropy": 0.6, "first": 0.5, "back_1": 0.2, "diagonal": 0.3}',
            }
        )
    for level in ("embed", "q", "k", "v", "o", "gate", "up", "down", "norm", "unembed"):
        rows["levels"].append(
            {
                "level": level,
                "shared_with": "embed" if level == "unembed" else None,
                "parameters": rng.randrange(10**5, 10**8),
                "share": rng.random() / 5,
                "weight_l2": rng.uniform(10, 900),
                "effective_rank": None if level == "norm" else rng.uniform(100, 500),
                "full_rank": None if level == "norm" else 576.0,
                "top_share": None if level == "norm" else rng.random() / 4,
                "moved": rng.random() / 10,
                "moved_rank": rng.uniform(2, 90),
            }
        )
    for step in STEPS:
        for task, at in (("text", 5.0), ("repeat", 6.0), ("first", 7.0)):
            rows["losses"].append({"step": step, "task": task, "loss_nats": at / (1 + step / 900) + 1})
    births = [e for e in rows["events"] if e["role"] == "induction"]
    if len(births) > 1:
        rows["events"].append(
            {
                "role": "induction",
                "address": births[0]["address"],
                "event": "handover",
                "step": 1600,
                "after_step": 800,
                "low_step": 800,
                "high_step": 3200,
                "other": births[1]["address"],
            }
        )
