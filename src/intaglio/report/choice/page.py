"""The choice page: the answer, the picture, and a folded section for every lens."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from typing import Any

from markupsafe import Markup

from intaglio.report.charts.base import colour_rules
from intaglio.report.choice.beside import beside
from intaglio.report.choice.blocks import drawn
from intaglio.report.choice.opened import opened
from intaglio.report.choice.river import river
from intaglio.report.choice.words import Words, part, token, visible
from intaglio.report.page import asset, environment
from intaglio.sentences import Sentence
from intaglio.trace import LENSES, TraceData

VOTES_SHOWN = 16


def render_choice(
    trace: TraceData, answer: Sequence[Sentence], findings: Mapping[str, Sequence[Sentence]], *, lang: str = "en"
) -> str:
    """The page of one decision.

    Args:
        trace: what was measured.
        answer: the three sentences of the answer.
        findings: lens name to what it found.
        lang: "en" or "ru".

    Raises:
        InputError: there is no catalogue for `lang`.
    """
    t = Words(lang)
    sections = [_section(t, name, trace, findings.get(name, ())) for name in LENSES if name in trace.lenses]
    return environment().get_template("choice.html.jinja").render(
        t=t, n=t.numbers, lang=lang, about=trace.about, answer=[(s.mark, t.sentence("page", s)) for s in answer],
        prompt=_prompt(t, trace), river=river(t, trace.about, trace.rows["prompt"], trace.rows["votes"]),
        votes=_votes(t, trace), beside=beside(t, trace), parts=_as_json(opened(t, trace)),
        sections=[s for s in sections if not s["skipped"]],
        skipped=[s for s in sections if s["skipped"]], data=_data(trace), ids=", ".join(map(str, trace.about["ids"])),
        css=_css(), js=_js(), version=metadata.version("intaglio"), token=token, visible=visible,
    )  # fmt: skip


def render_lens(trace: TraceData, name: str, findings: Sequence[Sentence], *, lang: str = "en", pictures: bool = False) -> str:
    """One lens as a small page of its own, to be set into a notebook.

    Args:
        pictures: only its pictures and tables.

    Raises:
        InputError: there is no catalogue for `lang`.
    """
    t = Words(lang)
    section = _section(t, name, trace, findings)
    return environment().get_template("choice_alone.html.jinja").render(
        t=t, lang=lang, section=section, pictures=pictures, css=_css(), js=_js(),
        data=_data(trace),
    )  # fmt: skip


def _css() -> Markup:
    return Markup(asset("page.css")) + colour_rules() + Markup(asset("choice.css"))


def _js() -> Markup:
    return Markup("\n".join(asset(name) for name in ("page.js", "choice.js", "parts.js")))


def _section(t: Words, name: str, trace: TraceData, found: Sequence[Sentence]) -> dict[str, Any]:
    lens = trace.lenses[name]
    section: dict[str, Any] = {"name": name, "number": LENSES.index(name) + 1, "title": t(f"{name}.title"), "skipped": None}
    if "skipped" in lens:
        return section | {"skipped": t.skipped(name, lens["skipped"])}
    blocks = importlib.import_module(f"intaglio.report.choice.lenses.{name}").show(t, lens, trace)
    said = [(s.mark, t.sentence(name, s)) for s in found]
    return section | {
        "said": said, "blocks": [drawn(t, name, b) for b in blocks], "toy": toy(name),
        "texts": {k: t(f"{name}.{k}") for k in ("essence", "formula", "engineering", "meaning", "limits", "ends", "sources")},
    }  # fmt: skip


@functools.cache
def toy(name: str) -> tuple[str, str]:
    """The toy example of a lens: its code, and what it prints (the tests run it)."""
    folder = resources.files("intaglio.report.choice") / "toys"
    return tuple((folder / f"{name}{end}").read_text(encoding="utf-8").strip() for end in (".py", ".out"))


def _prompt(t: Words, trace: TraceData) -> list[dict[str, Any]]:
    """The prompt's tokens, each with what was read from it in all: signed, as shares of the strongest."""
    totals = [0.0] * len(trace.rows["prompt"])
    for row in trace.rows["votes"]:
        if row["source"] is not None:
            totals[row["source"]] += row["vote_logits"]
    spans: list[dict[str, Any]] = []
    for row, total in zip(trace.rows["prompt"], totals):
        tip = t("page.token_tip", token=visible(row["text"]), id=row["token"], position=row["position"],
                vote=t.numbers.signed(total))  # fmt: skip
        if row["letters"] or not spans:
            spans.append({"text": row["letters"] or row["text"], "total": 0.0, "tip": tip})
        else:
            spans[-1]["tip"] += "\n" + tip
        spans[-1]["total"] += total
    top = max((abs(s["total"]) for s in spans), default=0.0) or 1.0
    return [span | {"class": _shade(span["total"] / top)} for span in spans]


def _shade(share: float) -> str:
    level = min(5, round(abs(share) * 5 + 0.2))
    return "" if not level else f"{'p' if share > 0 else 'm'}{level}"


def _votes(t: Words, trace: TraceData) -> list[dict[str, Any]]:
    """The waterfall: the strongest parts, then all others together; bars run from the running sum."""
    from collections import defaultdict

    sources: dict[str, list[tuple[str, float]]] = defaultdict(list)
    parts: dict[str, dict[str, Any]] = {}
    for row in trace.rows["votes"]:
        parts.setdefault(row["address"], row)
        if row["source"] is not None:
            sources[row["address"]].append((row["token"], row["vote_logits"]))
    ordered = sorted(parts.values(), key=lambda r: -abs(r["part_logits"]))
    shown, rest = ordered[:VOTES_SHOWN], ordered[VOTES_SHOWN:]
    effect = "effect_metric" if "metric" in trace.about else "effect_logits"
    bars = [(r["address"], r["part_logits"], r[effect], sources[r["address"]]) for r in shown]
    if rest:
        bars.append((None, sum(r["part_logits"] for r in rest), None, []))
    ends, running = [0.0], 0.0
    for _, vote, *_ in bars:
        running += vote
        ends.append(running)
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    return [
        {"name": part(a) if a else t("page.other_parts", n=t.numbers.whole(len(rest))), "vote": t.numbers.signed(v),
         "effect": t.numbers.signed(e) if e is not None else "", "sign": "for" if v > 0 else "anti",
         "left": f"{100 * (min(x0, x1) - low) / span:.2f}", "width": f"{100 * abs(v) / span:.2f}",
         "zero": f"{-100 * low / span:.2f}",
         "read": Markup("  ").join(Markup("{} {}").format(token(w), t.numbers.signed(s))
                                   for w, s in sorted(src, key=lambda p: -abs(p[1]))[:3])}
        for (a, v, e, src), x0, x1 in zip(bars, ends, ends[1:])
    ]  # fmt: skip


def _data(trace: TraceData) -> Markup:
    """What the sliders need: the candidates' logits, and the probability that is not stored."""
    rows = trace.rows["candidates"]
    kept = {
        "tokens": [visible(r["text"]) for r in rows], "logits": [round(r["logit"], 4) for r in rows],
        "stored": sum(r["probability"] for r in rows),
    }  # fmt: skip
    return _as_json(kept)


def _as_json(data: object) -> Markup:
    """Data inside a script element: nothing in it ends the element or a line of the script."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", " ").replace("\u2029", " "))
