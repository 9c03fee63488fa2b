"""What n-grams of the prompt and of a corpus, and reading from copies, explain of the choice."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, heuristic, measured, part, pct, signed, tok, unknown, whole

FEW = 5  # places; a continuation counted on fewer says little


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, tables = lens["numbers"], lens["tables"]
    given = n["corpus"] is not None
    values = {"context": pct(n["context"]["overlap"]), "copied": pct(n["copied"]), "rest": pct(1 - n["either"])}
    found = [measured("together", **values, corpus=pct(n["corpus"]["overlap"])) if given
             else measured("together_no_corpus", **values)]  # fmt: skip
    target = tok(about["target"]["text"])
    found.append(_longest("context", n["context"], tables["lengths"], target))
    found.append(_longest("corpus", n["corpus"], tables["lengths"], target) if given else unknown("no_corpus"))
    found += _thin(n)
    found += _copies(n, tables["heads"], about, target)
    return [*found[:6], unknown("rest")]


def _longest(source: str, seen: dict[str, Any], lengths: list[dict[str, Any]], target: Any) -> Sentence:
    """What followed the longest ending that occurs; or that not even the last token does."""
    if not seen["longest"]:
        return measured(f"no_{source}_match", tokens=whole(seen["tokens"]))
    row = next(r for r in reversed(lengths) if r["source"] == source)
    most = row["followed_by"][0]
    values = {"length": whole(seen["longest"]), "ending": tok(seen["ending"]), "times": whole(seen["times"]), "token": target,
              "p": pct(seen["p_target"]), "tokens": whole(seen["tokens"])}  # fmt: skip
    if most["p"] == seen["p_target"]:
        return measured(f"{source}_match_target", **values)
    return measured(f"{source}_match", **values, most=tok(most["text"]), p_most=pct(most["p"]))


def _thin(n: dict[str, Any]) -> list[Sentence]:
    """A corpus' longest ending that stands in few places only."""
    seen = n["corpus"]
    if seen is None or not 0 < seen["times"] < FEW:
        return []
    return [heuristic("thin", times=whole(seen["times"]))]


def _copies(n: dict[str, Any], heads: list[dict[str, Any]], about: dict[str, Any], target: Any) -> list[Sentence]:
    if not n["places"]:
        return [measured("alike", token=target, share=pct(n["alike"]))] if n["alike"] else [measured("no_copy", token=target)]
    found = [measured("copied", token=target, places=whole(n["places"]), tokens=whole(about["tokens"]), share=pct(n["copied"]),
                      attention=pct(n["copied_attention"]), induced=pct(n["induced"]))]  # fmt: skip
    if heads:
        found.append(measured("head", address=part(heads[0]["address"]), vote=signed(heads[0]["read_logits"]), token=target,
                              place=whole(heads[0]["place"]), share=pct(heads[0]["attention"])))  # fmt: skip
    return found
