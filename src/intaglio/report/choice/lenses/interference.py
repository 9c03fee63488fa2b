"""Both sides layer by layer, the tokens that spoke for either, the heads, and the two statements' order."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from intaglio.report.choice.blocks import Block, Figure, Rows
from intaglio.report.choice.lines import Line, Panel, panels
from intaglio.report.choice.scheme import Lanes, Step, scheme, sizes
from intaglio.report.choice.words import Words, part, token, visible
from intaglio.trace import TraceData

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 230, 54, 24


def show(t: Words, lens: dict[str, Any], trace: TraceData) -> list[Block]:
    numbers, tables, n = lens["numbers"], lens["tables"], t.numbers
    way = "running" if numbers["pair"] is None else "statements"
    blocks: list[Block] = [Figure("sides", sides(t, numbers, tables["layers"])), Figure(way, _running(t, numbers, tables, way)),
                           Figure("tokens", _tokens(t, tables["tokens"], trace))]  # fmt: skip
    if tables["orders"]:
        orders = [
            (t(f"interference.run.{r['run']}", target=token(numbers["target"]), against=token(numbers["against"])),
             n.signed(r["difference_logits"]), n.percent(r["p_target"]), n.percent(r["p_against"]), token(r["first"]))
            for r in tables["orders"]
        ]  # fmt: skip
        columns = ("run", "difference", "p_target", "p_against", "first")
        blocks.append(Rows("orders", columns, orders, frozenset(columns[1:4])))
    blocks.append(_heads(t, numbers, tables["heads"]))
    over = [
        (t(f"interference.over.{r['over']}"), r["count"], n.signed(r["for_logits"]), n.signed(r["against_logits"]),
         n.percent(r["conflict"]))
        for r in tables["conflicts"]
    ]  # fmt: skip
    columns = ("over", "count", "for", "against", "conflict")
    return [*blocks, Rows("conflicts", columns, over, frozenset(columns[1:])), _scheme(t, numbers, tables, trace.about)]


def _scheme(t: Words, n: dict[str, Any], tables: dict[str, Any], about: dict[str, Any]) -> Figure:
    heads = about["layers"], about["heads"]
    read: list[Step] = [("read", sizes(t, *heads, about["tokens"])), ("heads", sizes(t, *heads)),
                        ("grains", sizes(t, len(tables["conflicts"])))]  # fmt: skip
    said: list[Step] = [("sentences", sizes(t, n["sentences"]))]
    if n["pair"] is not None:
        said += [("pair", sizes(t, 2)), ("orders", sizes(t, len(tables["orders"]), about["vocabulary"]))]
    return scheme(t, "interference", [("text", sizes(t, about["tokens"])), Lanes([read, said])])


def _heads(t: Words, numbers: dict[str, Any], heads: list[dict[str, Any]]) -> Rows:
    n, pair = t.numbers, numbers["pair"] is not None
    columns = ("side", "head", "vote", "read", "source", "look", *(("statement", "swapped") if pair else ()))
    rows = []
    for r in heads:
        source = Markup('{}<span class="place">{}</span>').format(token(r["text"]), r["position"])
        more = (token(numbers[r["statement"]]) if r["statement"] else "—", n.signed(r["swapped_logits"])) if pair else ()
        rows.append((token(numbers[r["side"]]), part(r["address"]), n.signed(r["vote_logits"]), source,
                     n.signed(r["source_logits"]), n.percent(r["share"]), *more))  # fmt: skip
    return Rows("heads", columns, rows, frozenset({"vote", "source", "look", "swapped"}))


def sides(t: Words, numbers: dict[str, Any], rows: list[dict[str, Any]]) -> Markup:
    """Per layer: what speaks for the one token above the line, for the other below; heads dark, the MLP pale."""
    stacks = [{"for": (r["heads_for"], max(r["mlp"], 0.0)), "anti": (-r["heads_against"], -min(r["mlp"], 0.0))} for r in rows]
    top = max((sum(s[side]) for s in stacks for side in s), default=0.0) or 1.0
    slot, middle = (WIDTH - LEFT - 8) / len(rows), (HEIGHT - BOTTOM) / 2
    drawn = [Markup('<line class="col" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - 8, middle, middle)]
    for value in (top, -top):
        drawn.append(Markup('<text class="lay" x="{}" y="{:.1f}">{}</text>').format(
            LEFT - 8, middle - value / top * (middle - 8) + 4, t.numbers.signed(value, 2)))  # fmt: skip
    for i, (row, stack) in enumerate(zip(rows, stacks)):
        tip = t("interference.tip.layer", layer=row["layer"], plus=t.numbers.signed(row["heads_for"]),
                minus=t.numbers.signed(row["heads_against"]), mlp=t.numbers.signed(row["mlp"]),
                share=t.numbers.percent(row["conflict"]), running=t.numbers.signed(row["running_logits"]))  # fmt: skip
        inside = Markup("").join(
            _bar(LEFT + slot * (i + 0.12), slot * 0.76, middle, side, kind, start / top * (middle - 8), size / top * (middle - 8))
            for side, sizes in stack.items() for kind, start, size in zip(("heads", "mlp"), (0.0, sizes[0]), sizes) if size
        )  # fmt: skip
        drawn.append(Markup('<g data-tip="{}">{}</g>').format(tip, inside))
        if i % max(1, len(rows) // 10) == 0:
            drawn.append(Markup('<text class="lay s" x="{:.1f}" y="{}">{}</text>').format(
                LEFT + slot * i, HEIGHT - 6, f"L{row['layer']}"))  # fmt: skip
    key = Markup("").join(
        Markup('<span><i class="boxkey {}"></i>{}</span>').format(f"v-{side} v-{kind}", t(
            f"interference.key.{kind}", token=token(numbers["target" if side == "for" else "against"])))
        for side in ("for", "anti") for kind in ("heads", "mlp")
    )  # fmt: skip
    return Markup('<svg class="river twosides" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
                  '<div class="inlinekey twosides">{}</div>').format(
        WIDTH, HEIGHT, t("interference.figure.sides.title"), Markup("").join(drawn), key)  # fmt: skip


def _bar(x: float, width: float, middle: float, side: str, kind: str, start: float, size: float) -> Markup:
    y = middle - start - size if side == "for" else middle + start
    return Markup('<rect class="v-{} v-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        side, kind, x, y, width, max(size, 0.3))  # fmt: skip


def _running(t: Words, numbers: dict[str, Any], tables: dict[str, Any], way: str) -> Markup:
    rows = tables["layers"]

    def line(field: str, name: str, ink: str, dash: tuple[int, int] = (1, 0)) -> Line:
        points = [(r["layer"], r[field], f"L{r['layer']} · {name}: {t.numbers.signed(r[field])}") for r in rows]
        return Line(name, points, ink, dash)

    lead = line("running_logits", str(t("interference.axis.lead")), "ink")
    drawn = [Panel(str(t("interference.axis.running")), [lead], rule=0.0)]
    if numbers["pair"] is not None:
        lines = [line(f"read_{side}", visible(numbers[side]), ink, dash)
                 for side, ink, dash in (("target", "accent", (1, 0)), ("against", "against", (5, 3)))]  # fmt: skip
        drawn.append(Panel(str(t("interference.axis.read")), lines, rule=0.0))
    else:
        share = str(t("interference.axis.share"))
        points = [(r["layer"], r["conflict"], f"L{r['layer']} · {share}: {t.numbers.percent(r['conflict'])}") for r in rows]
        drawn.append(Panel(str(t("interference.axis.conflict")), [Line(share, points, "soft")], top=1.0))
    title = str(t(f"interference.figure.{way}.title"))
    return panels(t, "interference-running", title, str(t("interference.axis.layer")), drawn)


def _tokens(t: Words, tokens: list[dict[str, Any]], trace: TraceData) -> Markup:
    """The text, each token shaded by the votes read from it; a letter split over tokens is shaded by their sum."""
    spans: list[dict[str, Any]] = []
    for row, said in zip(trace.rows["prompt"], tokens):
        tip = t("interference.tip.token", token=visible(row["text"]), position=row["position"],
                vote=t.numbers.signed(said["vote_logits"]))  # fmt: skip
        if row["letters"] or not spans:
            spans.append({"text": row["letters"] or row["text"], "vote": 0.0, "tip": tip})
        else:
            spans[-1]["tip"] += "\n" + tip
        spans[-1]["vote"] += said["vote_logits"]
    top = max(abs(s["vote"]) for s in spans) or 1.0
    one = Markup('<span class="tok {}" data-tip="{}">{}</span>{}')
    return Markup('<p class="tokens">{}</p>').format(Markup("").join(
        one.format(_shade(s["vote"] / top), s["tip"], s["text"], Markup("<br>") if "\n" in s["text"] else "") for s in spans
    ))  # fmt: skip


def _shade(share: float) -> str:
    level = min(5, round(abs(share) * 5 + 0.2))
    return "" if not level else f"{'p' if share > 0 else 'm'}{level}"
