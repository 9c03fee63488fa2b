"""Examples as coloured text: which taught, which conflicted, which made forget, token by token."""

from __future__ import annotations

from typing import Any

from intaglio.findings import ExampleFinding, GroupFinding, TokenText
from intaglio.report.shift.data import show_piece
from intaglio.report.view import View

SHOWN, OPEN = 8, 3  # examples per list; the rest of them unfold
MAX_TOKENS, BEFORE = 320, 60  # a longer text is cut to its trained part and what stands just before it
_EVIDENCE = (
    "first_loss",
    "last_loss",
    "fall_nats",
    "own_fall",
    "noise_nats",
    "anchor_first",
    "anchor_fall",
    "target_fall",
    "target_rise",
    "target_fall_nats",
    "target_noise_nats",
    "held_out_fall",
    "anchor_cost",
)


def texts(view: View) -> dict[str, Any]:
    """The four lists; each example's text stands once, in the first list that names it."""
    lists, seen = [_list(view, name, chosen) for name, chosen in ranked(view).items()], set()
    for found in (found for each in lists for found in each["cards"]):
        found["again"] = found["id"] in seen
        seen.add(found["id"])
    return {
        "lists": lists,
        "pairs": _pairs(view, view.findings.pairs),
        "duplicates": _pairs(view, view.findings.near_duplicates),
    }


def ranked(view: View) -> dict[str, list[ExampleFinding]]:
    """List name -> its examples: moved, taught (target credit, else nats learnt), conflicted, forgot."""
    by_role = {p.role: p.probe for p in view.findings.probes}
    examples = view.findings.examples
    credit = lambda role: [e for e in examples if by_role.get(role) in e.credits_nats]  # noqa: E731
    taught = sorted(credit("target"), key=lambda e: -e.credits_nats[by_role["target"]])
    taught = [e for e in taught if e.credits_nats[by_role["target"]] > 0] or sorted(
        (e for e in examples if (e.learnt_nats or 0) > 0), key=lambda e: -(e.learnt_nats or 0))  # fmt: skip
    against = sorted((e for e in examples if (e.shift_net_u or 0) < 0), key=lambda e: e.shift_net_u or 0) or sorted(
        (e for e in examples if (e.against_share or 0) > 0.25), key=lambda e: -(e.against_share or 0))  # fmt: skip
    forgot = sorted(
        (e for e in credit("anchor") if e.credits_nats[by_role["anchor"]] < 0),
        key=lambda e: e.credits_nats[by_role["anchor"]],
    )
    moved = [e for e in examples if e.shift_abs_u]
    found = {"moved": moved, "taught": taught, "conflicted": against, "forgot": forgot}
    return {name: chosen[:SHOWN] for name, chosen in found.items()}


def _list(view: View, name: str, chosen: list[ExampleFinding]) -> dict[str, Any]:
    key = (
        "forgot_no_anchor"
        if name == "forgot" and not any(p.role == "anchor" for p in view.findings.probes)
        else f"{name}_none"
    )
    return {
        "name": name,
        "title": view.t(f"texts.{name}"),
        "note": view.t(f"texts.{name}_note"),
        "empty": view.t(f"texts.{key}"),
        "cards": [_keyed(view, name, e) for e in chosen],
        "open": OPEN,
    }


def _keyed(view: View, name: str, e: ExampleFinding) -> dict[str, Any]:
    """The card with the number that put it into this list taken to its head."""
    found = card(view, e)
    name, number = _key(view, name, e)
    return found | {"key": number, "keyname": name, "numbers": [(k, v) for k, v in found["numbers"] if k != name]}


def _key(view: View, name: str, e: ExampleFinding) -> tuple[str, str]:
    if name == "moved":
        return view.t("word.movement"), view.u_within(e.shift_abs_u, e.shift_half_u)
    if name == "conflicted":
        return view.t("measure.shift_net"), view.u_within(e.shift_net_u, e.shift_half_u)
    probe = {p.role: p.probe for p in view.findings.probes}.get("anchor" if name == "forgot" else "target")
    credit = e.credits_nats.get(probe or "")
    if credit is None or (name == "taught" and credit <= 0):
        return view.t("column.learnt"), view.n.signed(e.learnt_nats)
    return view.t("column.credit", probe=probe), f"{view.n.signed(credit, 2)} {view.t('unit.nats')}"


def card(view: View, e: ExampleFinding) -> dict[str, Any]:
    """One example with its numbers, its verdict and its tokens."""
    text = view.findings.texts.get(e.example)
    numbers = [
        ("word.movement", view.u_within(e.shift_abs_u, e.shift_half_u)),
        ("word.loss", f"{view.n(e.first_loss_nats)} → {view.n(e.last_loss_nats)}"),
        ("word.against", view.n.percent(e.against_share)),
        ("word.rows", ", ".join(map(str, e.rows[:6]))),
    ]
    credits = [(view.t("column.credit", probe=p), view.n.signed(v, 2)) for p, v in e.credits_nats.items()]
    return {
        "id": e.example,
        "group": e.group,
        "colour": view.group_colour(e.group),
        "preview": e.preview,
        "why": why(view, e),
        "verdict": view.t(f"verdict_name.{e.verdict}"),
        "code": e.verdict.replace(" ", "-"),
        "numbers": [(view.t(k), v) for k, v in numbers] + credits,
        "tokens": tokens(view, text) if text else [],
        "cut": left_out(view, text) if text else "",
        "step": view.n.whole(text.step) if text else "",
        "darkest": view.u(strongest(text)) if text else "",
    }


def why(view: View, e: ExampleFinding | GroupFinding) -> str:
    """The sentence behind a verdict, with its numbers; the verdict's general meaning where there is none."""
    if e.why not in view.t:
        return view.t(f"verdict_means.{e.verdict}")
    return view.t(e.why, **{name: _evidence(view, name, e.evidence.get(name)) for name in _EVIDENCE})


def _evidence(view: View, name: str, value: float | None) -> str:
    """A number of the evidence: shares as per cent, changes with their sign."""
    if name.endswith(("_fall", "_rise")):
        return view.n.percent(value)
    return view.n.signed(value, 2) if name in ("fall_nats", "target_fall_nats") else view.n(value, 2)


def strongest(text: TokenText) -> float:
    return max((abs(s) for s in text.shift_u if s is not None), default=0.0)


def tokens(view: View, text: TokenText, top: float | None = None) -> list[dict[str, Any]]:
    """Pieces with a signed shade -5..5, a surprise shade 0..4, and what they say on hover.

    Args:
        view: the run.
        text: the example at one visit.
        top: the shift with the strongest colour, in u; the largest of this text when None.
    """
    top, found = top or strongest(text) or 1.0, []
    start, end = _stretch(text)
    for i, piece in enumerate(text.pieces):
        if not piece or not start <= i < end:
            continue  # the rest of a letter begun by the piece before
        shift, surprise = text.shift_u[i], text.surprise_nats[i]
        shade = 0 if shift is None else round(5 * (abs(shift) / top) ** 0.7) * (1 if shift > 0 else -1)
        classes = [
            f"p{shade}" if shade > 0 else f"m{-shade}" if shade < 0 else "",
            "" if surprise is None else f"q{min(4, int(surprise / 1.5))}",
            "" if text.trained[i] else "untrained",
            "cc" if text.confident_conflict[i] else "",
        ]
        found.append(
            {
                "text": show_token(piece),
                "break": "\n" in piece and text.trained[i],  # a prompt in one piece leaves room for what was learnt
                "class": " ".join(c for c in classes if c),
                "tip": _tip(view, text, i),
            }
        )
    return found


def _stretch(text: TokenText) -> tuple[int, int]:
    """Which positions of a text are shown."""
    if len(text.pieces) <= MAX_TOKENS:
        return 0, len(text.pieces)
    start = max(0, next((i for i, trained in enumerate(text.trained) if trained), 0) - BEFORE)
    return start, start + MAX_TOKENS


def left_out(view: View, text: TokenText) -> str:
    """How much of a long text is not shown; "" where all of it is."""
    start, end = _stretch(text)
    missing = len(text.pieces) - (min(end, len(text.pieces)) - start)
    return view.t("texts.cut", n=view.n.whole(missing)) if missing else ""


def show_token(piece: str) -> str:
    """The token as it reads in running text: spaces stay spaces, line ends become visible."""
    return piece.replace("\n", "↵").replace("\t", "⇥")


def _tip(view: View, text: TokenText, i: int) -> str:
    shift, surprise, entropy = text.shift_u[i], text.surprise_nats[i], text.entropy_nats[i]
    said = f"{view.n.signed(shift)} u" if shift is not None else view.n.missing
    lines = [
        f"«{show_piece(text.pieces[i])}»",
        f"{view.t('word.shift')}: {said}",
        f"{view.t('word.surprise')}: {view.n(surprise)}",
        f"{view.t('word.entropy')}: {view.n(entropy)}",
    ]
    if not text.trained[i]:
        lines.append(str(view.t("word.untrained")))
    if text.confident_conflict[i]:
        lines.append(str(view.t("word.confident_conflict")))
    return "\n".join(lines)


def _pairs(view: View, pairs: list[Any]) -> list[dict[str, Any]]:
    kept = [p for p in pairs if p.example_a in view.by_id and p.example_b in view.by_id][:6]
    return [
        {
            "a": view.by_id[p.example_a],
            "b": view.by_id[p.example_b],
            "cosine": view.n.signed(p.cosine, 2),
            "times": view.n.whole(p.times),
        }
        for p in kept
    ]
