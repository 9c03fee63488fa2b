"""What is "the next word": the distribution at the decision, and how often the ending goes on that way.  [torch]"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from intaglio.data.suffixes import Suffixes
from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.lenses import Given, Measured
from intaglio.measure.choice.rows import candidate_rows

CONTEXTS = 4  # longest ending of the prompt looked for in a corpus, in words and marks of punctuation
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")


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
        tables["company"] = company(given.ending or given.prompt, given.corpus)
    return Measured(numbers, tables)


def company(ending: str, corpus: str) -> list[dict[str, Any]]:
    """For ever longer endings of the text, in words: how often each stands in the corpus before a word, and which."""
    numbered: dict[str, int] = {}
    text = Suffixes(
        np.fromiter((numbered.setdefault(w[0], len(numbered)) for w in WORD.finditer(corpus)), np.int64), CONTEXTS
    )
    words, said, rows = list(numbered), list(WORD.finditer(ending)), []
    for length in range(1, min(CONTEXTS, len(said)) + 1):
        after = text.following([numbered.get(w[0], -1) for w in said[-length:]])
        following = Counter(words[i].lower() for i in text.ids[after].tolist() if words[i][0].isalnum())
        rows.append({
            "ending": " ".join(ending[said[-length].start() :].split()), "times": following.total(),
            "followed_by": [{"word": w, "times": n} for w, n in following.most_common(5)],
        })  # fmt: skip
    return rows
