"""What each token and sentence of the context did, and how far a gradient would have foreseen it."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, heuristic, known, measured, num, pct, plain, signed, tok, unknown, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    tokens = tables["tokens"]
    top = tokens[n["top"]]
    lost = [r for r in tokens if r["first_without"] != n["first"]]
    found = [measured("top", token=tok(top["text"]), position=whole(top["position"]), influence=signed(top["influence_logits"]),
                      difference=signed(n["difference_logits"]),
                      after=signed(n["difference_logits"] - top["influence_logits"]), lost=whole(len(lost)),
                      tokens=whole(len(tokens)))]  # fmt: skip
    found += _other_way(top, tokens)
    found += _sentences(tables)
    found += _near(tables["distances"])
    if n["estimate_agrees"] is not None:
        found.append(measured("estimate", loss=num(n["estimate_agrees"]), influence=num(n["gradient_agrees"]),
                              size=num(n["size_agrees"])))  # fmt: skip
    found.append(measured("depth", token=tok(top["text"]), layer=whole(n["top_half_layer"]), most=pct(n["top_moved"]),
                          at=whole(n["top_moved_layer"]), layers=whole(n["depths"] - 1)))  # fmt: skip
    if tokens[0]["position"] == 0:
        found.append(known("sink", token=tok(tokens[0]["text"]), influence=signed(tokens[0]["influence_logits"])))
    if n["looked_at"] < n["tokens"]:
        found.append(unknown("earlier", looked=whole(n["looked_at"]), tokens=whole(n["tokens"])))
    return [*found, unknown("together")]


def _other_way(top: dict[str, Any], tokens: list[dict[str, Any]]) -> list[Sentence]:
    """The strongest token of the side that the strongest of all is not on."""
    side = 1 if top["influence_logits"] > 0 else -1
    other = min(tokens, key=lambda r: side * r["influence_logits"])
    if side * other["influence_logits"] >= 0:
        return []
    return [measured("against" if side > 0 else "towards", token=tok(other["text"]), influence=signed(other["influence_logits"]),
                     position=whole(other["position"]))]  # fmt: skip


def _sentences(tables: dict[str, Any]) -> list[Sentence]:
    rows = [r for r in tables["sentences"] if not r["holds_end"]]
    if not rows:
        return []
    top = max(rows, key=lambda r: abs(r["influence_logits"]))
    values = {"text": plain(top["text"].strip()), "influence": signed(top["influence_logits"]),
              "first": tok(top["first_without"])}  # fmt: skip
    if top["tokens_one_by_one"] is None:
        found = [measured("sentence_far", **values)]
    else:
        found = [measured("sentence", **values, sum=signed(top["tokens_one_by_one"]))]
    if len(tables["roles"]) > 1:
        role = max(tables["roles"], key=lambda r: abs(r["influence_logits"]))
        found.append(heuristic(f"role_{role['role']}", influence=signed(role["influence_logits"]),
                               count=whole(role["sentences"])))  # fmt: skip
    if tables["needle"]:
        best = max(tables["needle"], key=lambda r: r["difference_logits"])
        worst = min(tables["needle"], key=lambda r: r["difference_logits"])
        found.append(measured("needle", text=plain(rows[best["moving"]]["text"].strip()), low=signed(worst["difference_logits"]),
                              high=signed(best["difference_logits"]), worst=whole(worst["place"] + 1),
                              best=whole(best["place"] + 1), places=whole(len(tables["needle"]))))  # fmt: skip
    return found


def _near(rows: list[dict[str, Any]]) -> list[Sentence]:
    if len(rows) < 2:
        return []
    running = 0.0
    for row in rows:
        running += row["share"]
        if running >= 0.5:
            break
    far = rows[-1]
    return [measured("near", half=whole(row["furthest"]), share=pct(running), nearest=num(rows[0]["mean_logits"]),
                     far=num(far["mean_logits"]), begin=whole(far["nearest"]), end=whole(far["furthest"]))]  # fmt: skip
