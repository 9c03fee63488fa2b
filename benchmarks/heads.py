"""What scoring every head costs, beside the plain forward and, where it is installed, TransformerLens's head detector.

    python benchmarks/heads.py
    python benchmarks/heads.py --atlas     # the default atlas too, stage by stage
    python benchmarks/heads.py --peer      # TransformerLens's detector beside it (pip install transformer-lens)

One run, `smollm2`, 4 texts of 101 tokens: a beginning, 50 random tokens, the same again. Ways are run by turns and times are
medians. Aims: six scores of all heads within 1.25 plain forwards; the atlas within 180 s on 2 cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable

import torch

from intaglio.measure.heads.basic import measure_basic
from intaglio.measure.heads.repeats import repeats
from intaglio.model.anatomy import Anatomy
from intaglio.model.proof import prove
from intaglio.model.subject import Subject, ensure_builtin, load_subject

TEXTS = 4
PATTERNS = ("previous_token_head", "duplicate_token_head", "induction_head")  # those that the detector has of its own


def by_turns(times: int, ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each way, one after the other in every round, so that a noisy machine is noisy for all."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in found.items()}  # the first round warms up


@torch.no_grad()
def plain(anatomy: Anatomy, ids_BT: torch.Tensor) -> torch.Tensor:
    return anatomy.model(input_ids=ids_BT, use_cache=False).logits


def peer(subject: Subject, ids_BT: torch.Tensor) -> Callable[[], object] | None:
    """The detector over the same texts, one call for each text and pattern, as it is made to be used; None without it."""
    if importlib.util.find_spec("transformer_lens") is None:
        print("TransformerLens is not installed: its line is left out")
        return None
    from transformer_lens.head_detector import detect_head
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(ensure_builtin()), dtype=torch.float32)
    texts = [subject.tokenizer.decode(ids[1:]) for ids in ids_BT]
    print("its tokens of each text, which it cuts itself:", [model.to_tokens(text).shape[1] for text in texts])

    def work() -> None:
        for text in texts:
            _, cache = model.run_with_cache(text, remove_batch_dim=True)
            for pattern in PATTERNS:
                detect_head(model, text, pattern, cache=cache)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--atlas", action="store_true")
    parser.add_argument("--peer", action="store_true")
    asked = parser.parse_args()
    subject = load_subject("smollm2")
    anatomy = prove(subject.model)
    ids_BT = repeats(anatomy, texts=TEXTS).ids_BT
    ways = {"plain forward": lambda: plain(anatomy, ids_BT), "six scores": lambda: measure_basic(anatomy, texts=TEXTS)}
    if asked.peer and (work := peer(subject, ids_BT)) is not None:
        ways["TransformerLens, three scores"] = work
    print(f"{torch.get_num_threads()} threads, {tuple(ids_BT.shape)} tokens, {anatomy.n_layers * anatomy.n_heads} heads")
    seconds = by_turns(asked.times, ways)
    for name, some in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(some, seconds["plain forward"]))
        print(f"{name:32s} {statistics.median(some):8.3f} s {ratio:8.2f} forwards (median of {len(some)} rounds)")
    if asked.atlas:
        from intaglio.roles import heads

        atlas = heads(subject)
        print(f"default atlas {atlas.about['seconds']:.0f} s:", {k: round(v, 1) for k, v in atlas.about["stages"].items()})
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
