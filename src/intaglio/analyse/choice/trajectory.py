"""What the state's way through the layers says."""

from __future__ import annotations

from typing import Any

from intaglio.sentences import Sentence, known, measured, num, part, pct, signed, tok, unknown, whole


def find(lens: dict[str, Any], about: dict[str, Any]) -> list[Sentence]:
    n, rows = lens["numbers"], lens["tables"]["states"]
    found = [_decided(n, rows)]
    if not n["target_chosen"]:
        best = min(rows, key=lambda r: r["rank"])
        found.append(measured("asked", token=tok(about["target"]["text"]), best=whole(best["rank"] + 1), after=_after(best),
                              rank=whole(rows[-1]["rank"] + 1)))  # fmt: skip
    if n["tuned"] is not None:
        found.append(_tuned(n["tuned"], n["chosen"], rows))
    found.append(_candidates(n, rows))
    far = max(rows[1:], key=lambda r: r["step"])
    found.append(measured("step", after=_after(far), step=num(far["step"]), share=pct(far["step"] / max(far["length"], 1e-30)),
                          turn=num(far["turn_degrees"])))  # fmt: skip
    if n["path"] > 0:
        found.append(measured("path", path=num(n["path"]), distance=num(n["distance"]), square=num(n["square"])))
    found += _swap(n["swap"], lens["tables"]["swap"])
    found.append(known("early"))
    return found


def _after(row: dict[str, Any]):
    return part("embed" if row["after"] is None else f"L{row['after']}")


def _decided(n: dict[str, Any], rows: list[dict[str, Any]]) -> Sentence:
    at = n["decided"]
    if at == len(rows) - 1:
        before = rows[-2]
        return measured("decided_last", token=tok(n["chosen"]), after=_after(rows[-1]), before=tok(before["top"]),
                        p=pct(before["probability"]))  # fmt: skip
    return measured("decided", token=tok(n["chosen"]), after=_after(rows[at]), left=whole(len(rows) - 1 - at),
                    layers=whole(n["layers"]), p=pct(rows[at]["probability"]))  # fmt: skip


def _tuned(tuned: dict[str, Any], chosen: str, rows: list[dict[str, Any]]) -> Sentence:
    return measured("tuned", token=tok(chosen), after=_after(rows[tuned["decided"]]), kl=num(tuned["held_out_kl_nats"]),
                    plain=num(tuned["logit_held_out_kl_nats"]))  # fmt: skip


def _candidates(n: dict[str, Any], rows: list[dict[str, Any]]) -> Sentence:
    most = max(rows, key=lambda r: r["candidates"])
    values = dict(most=num(most["candidates"]), at=_after(most), end=num(rows[-1]["candidates"]))
    if not n["few"]:  # never, or from the embedding on
        return measured("candidates", **values)
    return measured("candidates_few", **values, few=_after(rows[n["few"]]))


def _swap(swap: dict[str, Any], rows: list[dict[str, Any]]) -> list[Sentence]:
    if "why_not" in swap:
        values = {name: whole(swap[name]) for name in ("tokens", "others") if name in swap}
        return [unknown(swap["why_not"], **values)]
    strongest = max(rows, key=lambda r: abs(r["only_logits"] - swap["was_logits"]))
    found = [measured("swap_layer", layer=part(f"L{strongest['layer']}"), now=signed(strongest["only_logits"]),
                      was=signed(swap["was_logits"]), other=signed(swap["other_logits"]))]  # fmt: skip
    at = swap["carries_from"]
    if at == 0:
        found.append(measured("carries_all"))
    elif at == len(rows):
        found.append(measured("carries_none", layer=part(f"L{len(rows) - 1}"), top=tok(rows[-1]["from_top"])))
    else:
        found.append(measured("carries", layer=part(f"L{at}"), before=part(f"L{at - 1}"), top=tok(rows[at - 1]["from_top"])))
    return found
