"""The context coloured by influence, the four metrics, the states by layer, sentences, roles, distance, the needle."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.bars import Bar, bars
from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.scheme import Lanes, Step, scheme, sizes
from intaglio.report.choice.words import Words, token, visible
from intaglio.trace import TraceData

LEVELS, LONGEST = 8, 160


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    tables, n = lens["tables"], t.numbers
    tokens = tables["tokens"]
    metrics = [
        (r["position"], token(r["text"]), n(r["grad_norm"]), n.signed(r["grad_times_input"]), n.signed(r["influence_logits"]),
         n.signed(r["loss_nats"]), n.signed(r["loss_estimate_nats"]), token(r["swapped_for"]), n.percent(r["delta_last"]))
        for r in sorted(tokens, key=lambda r: -abs(r["influence_logits"]))
    ]  # fmt: skip
    columns = ("position", "token", "grad", "times", "influence", "loss", "estimate", "swapped", "moved")
    numeric = frozenset(columns) - {"token", "swapped"}
    blocks: list[Block] = [
        Figure("strip", _strip(t, tokens)), Rows("metrics", columns, metrics, numeric), Figure("layers", _layers(t, tables)),
    ]  # fmt: skip
    if tables["sentences"]:
        rows = [
            (t(f"context.role.{r['role']}"), _short(r["text"]), r["end"] - r["begin"], n.signed(r["influence_logits"]),
             n.signed(r["tokens_one_by_one"]), token(r["first_without"]))
            for r in tables["sentences"]
        ]  # fmt: skip
        names = ("role", "text", "tokens", "influence", "sum", "first")
        blocks.append(Rows("sentences", names, rows, frozenset({"tokens", "influence", "sum"})))
    if len(tables["roles"]) > 1:
        drawn = [
            Bar(t(f"context.role.{r['role']}"), r["influence_logits"], n.signed(r["influence_logits"]), strong=True)
            for r in tables["roles"]
        ]
        blocks += [Figure("roles", bars(drawn)), _by_role(t, tables["roles"])]
    near = [
        Bar(_range(t, r), r["share"], n.percent(r["share"]), strong=True,
            tip=str(t("context.distance_tip", tokens=n.whole(r["tokens"]), mean=n(r["mean_logits"]))))
        for r in tables["distances"]
    ]  # fmt: skip
    if len(near) > 1:
        blocks.append(Figure("distances", bars(near)))
    if tables["needle"]:
        drawn = [
            Bar(n.whole(r["place"] + 1), r["difference_logits"], n.signed(r["difference_logits"]), strong=r["own"])
            for r in tables["needle"]
        ]
        blocks.append(Figure("needle", bars(drawn)))
    return [*blocks, _scheme(t, lens, trace.about)]


def _scheme(t: Words, lens: dict[str, Any], about: dict[str, Any]) -> Figure:
    n, tables, width = lens["numbers"], lens["tables"], about["width"]
    looked, tokens = n["looked_at"], n["tokens"]
    ways = [
        [("gone", sizes(t, looked, tokens - 1)), ("states", sizes(t, looked, n["depths"], width))],
        [("swapped", sizes(t, looked, tokens))], [("slopes", sizes(t, 2, tokens, width))],
    ]  # fmt: skip
    rows: list[list[Step | Lanes]] = [[Lanes(ways), ("metrics", sizes(t, looked, 4))]]
    moved = [("needle", sizes(t, len(tables["needle"])))] if tables["needle"] else []
    rows += [[("sentences", sizes(t, len(tables["sentences"]))), *moved]] if tables["sentences"] else []
    return scheme(t, "context", [("text", sizes(t, tokens)), Lanes(rows)])


def _by_role(t: Words, rows: list[dict[str, Any]]) -> Rows:
    """The metrics of single tokens, mean by role."""
    n, names = t.numbers, ("role", "tokens", "grad", "times", "influence", "loss", "moved")
    shown = [
        (t(f"context.role.{r['role']}"), n.whole(r["looked_at"]), n(r["mean_grad_norm"]), n.signed(r["mean_grad_times_input"]),
         n.signed(r["mean_influence_logits"]), n.signed(r["mean_loss_nats"]), n.percent(r["mean_delta_last"]))
        for r in rows if r["looked_at"]
    ]  # fmt: skip
    return Rows("role_metrics", names, shown, frozenset(names) - {"role"})


def _range(t: Words, row: dict[str, Any]) -> str:
    ends = [t.numbers.whole(row[k]) for k in ("nearest", "furthest")]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _strip(t: Words, tokens: list[dict[str, Any]]) -> Markup:
    n, top = t.numbers, max(abs(r["influence_logits"]) for r in tokens) or 1.0
    one = Markup('<span class="tok {}" data-tip="{}">{}</span>{}')
    return Markup('<p class="tokens">{}</p>').format(Markup("").join(
        one.format(
            _shade(r["influence_logits"] / top),
            t("context.tip", token=visible(r["text"]), position=r["position"], influence=n.signed(r["influence_logits"]),
              grad=n(r["grad_norm"]), times=n.signed(r["grad_times_input"]), loss=n.signed(r["loss_nats"]),
              swapped=visible(r["swapped_for"])),
            r["text"], Markup("<br>") if "\n" in r["text"] else "",
        )
        for r in tokens
    ))  # fmt: skip


def _shade(share: float) -> str:
    level = min(5, round(abs(share) * 5 + 0.2))
    return "" if not level else f"{'p' if share > 0 else 'm'}{level}"


def _layers(t: Words, tables: dict[str, Any]) -> Markup:
    """Tokens to the right, layers upwards; plain cells with a level each, to stay small."""
    tokens = tables["tokens"]
    top = max(max(r["moved"][:-1]) for r in tables["layers"]) or 1.0
    lanes = Markup("").join(
        Markup("<b>{}</b>{}").format(
            t.numbers.whole(r["layer"]),
            Markup("").join(Markup('<i class="h{}"></i>').format(min(LEVELS - 1, int(LEVELS * x / top))) for x in r["moved"]),
        )
        for r in reversed(tables["layers"])
    )
    names = Markup("").join(
        Markup('<span data-tip="{}"><u>{}</u></span>').format(
            t("context.moved_tip", token=visible(r["text"]), position=r["position"], last=t.numbers.percent(r["delta_last"])),
            visible(r["text"]),
        )
        for r in tokens
    )
    scale = Markup("").join(Markup('<i class="h{}"></i>').format(i) for i in range(LEVELS))
    return Markup(
        '<div class="inlinekey"><span class="heatkey">0 {} ≥ {}</span></div><div class="scroll"><div class="moved" '
        'style="grid-template-columns:26px repeat({},minmax(13px,1fr))">{}<b></b>{}</div></div>'
    ).format(scale, t.numbers.percent(top), len(tokens), lanes, names)
