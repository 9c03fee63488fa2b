"""The page of the heads as a reader sees it: sections, sentences, numbers as near as their digits tell."""

from __future__ import annotations

import html
import math
import re
from collections import defaultdict

from atlases import atlas
from intaglio.atlas import UNRESOLVED, AtlasData
from intaglio.report.heads import heads_catalogue, render_heads
from printed import read

MADE = [atlas(6, 5, seed=seed) for seed in range(3)] + [atlas(30, 9, seed=3, beside=1)]
NUMBER = r"[+−]?\d[\d.,]*(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?(?:\s(?:million|billion))?"


def section(found: AtlasData, name: str, lang: str = "en") -> str:
    """The html of one section."""
    (one,) = re.findall(rf'<section id="{name}".*?</section>', render_heads(found, lang=lang), re.DOTALL)
    return one


def flat(markup: str) -> str:
    text = html.unescape(re.sub(r"<[^>]*>", " ", markup))
    return re.sub(r"\s+([:.,;)])", r"\1", re.sub(r"\(\s+", "(", " ".join(text.split())))


def answers(found: AtlasData, lang: str = "en") -> list[str]:
    return [flat(told) for told in re.findall(r"<dd>(.*?)</dd>", section(found, "answer", lang), re.DOTALL)]


def short(address: str) -> str:
    return address.removeprefix("L").replace(".attn.H", ".")


def is_near(text: str, value: float | None, digits: int = 3) -> bool:
    """Is this the number, as near as its digits tell?"""
    if value is None:
        return text == "not measured"
    plain, _, word = text.replace("\xa0", " ").partition(" ")
    size = read(plain) * {"": 1, "million": 1e6, "billion": 1e9}[word]
    digits = 2 if 0 < abs(value) < 1e-3 else digits
    step = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1) if value else 0.0
    return abs(size - value) <= 0.5001 * step


def is_percent(text: str, share: float | None) -> bool:
    if share is None:
        return text == "not measured"
    return text == "<0.1%" if 0 < share < 0.001 else abs(read(text[:-1]) - 100 * share) <= (0.051 if share < 0.1 else 0.51)


def beyond(row: dict) -> float:
    return (row["score"] - row["null"]) / (1 - row["null"])


def held_by_role(found: AtlasData) -> dict[str, list[dict]]:
    """Heads of each role, the most evidence first."""
    held = defaultdict(list)
    for row in found.rows["scores"]:
        if row["named"]:
            held[row["role"]].append(row)
    return {role: sorted(rows, key=beyond, reverse=True) for role, rows in held.items()}


def name_of(role: str, lang: str = "en") -> str:
    return heads_catalogue()[lang][f"roles.{role}.name"]


def born(role: str, head: int, step: int, event: str = "birth", other: str = "") -> dict:
    return {"role": role, "address": f"L0.attn.H{head}", "event": event, "step": step, "after_step": step - 10,
            "low_step": step - 30, "high_step": step + 20, "other": other}  # fmt: skip


def counted(own: int, resting: int, unresolved: int) -> AtlasData:
    """So many heads in one layer."""
    roles = ["induction"] * own + ["first_token"] * resting + [UNRESOLVED] * unresolved
    rows = [{"address": f"L0.attn.H{i}", "layer": 0, "head": i, "role": role, "roles": [role] if role != UNRESOLVED else [],
             "score": 0.5, "null": 0.1, "evidence": 0.4} for i, role in enumerate(roles)]  # fmt: skip
    return AtlasData({"n_layers": 1, "n_heads": len(roles)}, {"heads": rows})
