"""What is "the next word": the distribution at the decision, and how often the ending goes on that way.  [torch]"""

from __future__ import annotations

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured
from intaglio.measure.choice.rows import candidate_rows

CONTEXTS = 4  # longest ending of the prompt looked for in a corpus, in words


def measure(found: Decision, given: Given) -> Measured:
    """Top tokens, surprise, entropy, margin; with a corpus, what follows the prompt's ending there."""
    candidates = candidate_rows(found)
    log_p = found.logits_V.log_softmax(-1)
    p = log_p.exp()
    ordered = p.sort(descending=True).values
    entropy = float(-(p * log_p).sum())
    numbers = {
        "probability": float(p[found.target]), "surprise_nats": -float(log_p[found.target]), "entropy_nats": entropy,
        "rank": int((p > p[found.target]).sum()), "margin_logits": float(found.logits_V.topk(2).values.diff().neg()),
        "candidates_alive": float(2.718281828459045**entropy), "vocabulary": int(p.numel()),
        "half_at": int((ordered.cumsum(0) < 0.5).sum()) + 1, "nine_tenths_at": int((ordered.cumsum(0) < 0.9).sum()) + 1,
        "stored_probability": float(sum(r["probability"] for r in candidates)),
    }  # fmt: skip
    tables = {"candidates": candidates}
    if given.corpus is not None:
        tables["company"] = company(given.prompt, given.corpus)
    return Measured(numbers, tables)


def company(prompt: str, corpus: str) -> list[dict[str, object]]:
    """For ever longer endings of the prompt: how often each stands in the corpus, and the words that follow."""
    import collections
    import re

    words, rows = prompt.split(), []
    for length in range(1, min(CONTEXTS, len(words)) + 1):
        ending = " ".join(words[-length:])
        pattern = re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, words[-length:])) + r"\s+(\w+)")
        following = collections.Counter(m.lower() for m in pattern.findall(corpus))
        rows.append({
            "ending": ending, "times": following.total(),
            "followed_by": [{"word": w, "times": n} for w, n in following.most_common(5)],
        })  # fmt: skip
    return rows
