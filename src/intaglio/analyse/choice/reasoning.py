"""What the steps before the answer are worth, by what happens without them."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, heuristic, measured, num, pct, plain, signed, tok, unknown, whole

FELT = 0.1  # nats: a change of ln p that is worth counting
TWICE = 2.0  # content counts where corrupting it does at least twice what rewording does
LONGEST = 90  # letters of a step in a sentence


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    target = tok(n["target"])
    found = [_path(n, tables, target), *_settled(n, tables["path"], target), *_changes(tables["changes"], target)]
    if n["samples"]:
        found.append(measured("samples" if n["bare_steps"] else "samples_none", samples=whole(n["samples"]),
                              agree=whole(n["agree"]), bare=whole(n["agree_bare"]), word=plain(n["word"]), top=plain(n["top"]),
                              count=whole(n["top_count"]), different=whole(n["different"])))  # fmt: skip
    return [*found, _tools(n, tables["tools"]), unknown("inside")]


def _path(n: dict[str, Any], tables: dict[str, Any], target: Any) -> Sentence:
    """From no step to all of them, and the step that adds most."""
    best = max(tables["steps"], key=lambda r: r["gain_nats"])
    values = {"target": target, "none": pct(tables["path"][0]["p"]), "all": pct(n["p"]), "steps": whole(n["steps"])}
    if best["gain_nats"] <= FELT:
        return measured("path_flat", **values)
    return measured("path", **values, number=whole(best["number"]), text=plain(_short(best["text"])),
                    gain=signed(best["gain_nats"]))  # fmt: skip


def _settled(n: dict[str, Any], path: list[dict[str, Any]], target: Any) -> list[Sentence]:
    """From how many tokens on the target is the likeliest at every place that was asked."""
    others = [i for i, r in enumerate(path) if r["rank"]]
    if not others:
        return [measured("always", target=target, points=whole(len(path)))]
    if others[-1] == len(path) - 1:
        return [measured("never", target=target, first=tok(n["first"]), points=whole(len(path)),
                         times=whole(len(path) - len(others)))]  # fmt: skip
    now = path[others[-1] + 1]
    return [measured("settled", target=target, token=tok(now["text"]), count=whole(now["tokens"]), tokens=whole(n["tokens"]))]


def _changes(rows: list[dict[str, Any]], target: Any) -> list[Sentence]:
    """Which steps are needed, and whether by what they say or by their mere wording."""
    worst = min(rows, key=lambda r: r["drop_nats"])
    needed = sum(r["drop_nats"] < -FELT for r in rows)
    found = [measured("needed" if worst["drop_nats"] < -FELT else "not_needed", target=target, number=whole(worst["number"]),
                      text=plain(_short(worst["text"])), change=signed(worst["drop_nats"]), first=tok(worst["drop_first"]),
                      needed=whole(needed), steps=whole(len(rows)))]  # fmt: skip
    false = [r for r in rows if r["corrupt_nats"] is not None]
    if false:
        most = max(false, key=lambda r: abs(r["corrupt_nats"]))
        found.append(measured("corrupt", target=target, number=whole(most["number"]), text=plain(_short(most["corrupt_text"])),
                              change=signed(most["corrupt_nats"]), first=tok(most["corrupt_first"])))  # fmt: skip
    both = [(abs(r["corrupt_nats"]), abs(r["reword_nats"])) for r in false if r["reword_nats"] is not None]
    if both:
        content, wording = (sum(x) / len(both) for x in zip(*both))
        found.append(heuristic("content" if content > TWICE * wording else "wording", corrupt=num(content), reword=num(wording)))
    return found


def _tools(n: dict[str, Any], rows: list[dict[str, Any]]) -> Sentence:
    if rows:
        top = max(rows, key=lambda r: r["p"])
        return measured("tool" if top["pieces"] == 1 else "tool_pieces", mark=plain(top["mark"]), p=pct(top["p"]),
                        place=whole(top["rank"] + 1))  # fmt: skip
    return measured("no_tool" if n["template"] else "no_template")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
