"""What taking a decision apart costs, beside the plain forward and, where it is installed, TransformerLens.

    python benchmarks/choice.py
    python benchmarks/choice.py --sweeps naive batched prefix   # each way of patching all heads
    python benchmarks/choice.py --peer                          # TransformerLens's sweep beside it (pip install transformer-lens)

One run, `smollm2`, a prompt of 67 tokens; times are medians, and every line is a ratio to the plain forward.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from intaglio.measure.choice.decision import Decision
from intaglio.measure.choice.effects import all_parts, estimate_effects, measure_effects, to_other
from intaglio.measure.choice.rows import neuron_rows, vote_rows
from intaglio.model.capture import capture
from intaglio.model.proof import prove
from intaglio.model.subject import ensure_builtin, load_subject

TOKENS = 67
CLEAN = "When John and Mary went to the store, John gave a drink to"
OTHER = "When John and Mary went to the store, Mary gave a drink to"
BEFORE = (
    "It was a long and quiet afternoon in the village by the river, and nobody expected any news before the evening train. "
    "The baker had closed his shop early, the school was empty, and the road lay dry in the sun. Then, at last, it happened. "
)


def timed(work: Callable[[], object], times: int) -> tuple[float, object]:
    """Median seconds, and what the last call gave."""
    seconds, found = [], None
    for _ in range(times):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def line(what: str, seconds: float, forward: float, note: str = "") -> None:
    print(f"{what:46s} {seconds:8.3f} s {seconds / forward:8.1f} forwards  {note}")


def prompts(tokenizer: object) -> tuple[list[int], list[int]]:
    """Two prompts of 67 tokens that differ in one name."""
    ends = [tokenizer(text)["input_ids"] for text in (CLEAN, OTHER)]
    before = tokenizer(BEFORE)["input_ids"][: TOKENS - len(ends[0])]
    return [before + end for end in ends]


def peer_sweep(
    ids: list[int], other: list[int], target: int, against: int, heads: int
) -> tuple[Callable[[], torch.Tensor], float]:
    """TransformerLens's sweep: one hooked forward per head, all positions of z taken from the other prompt."""
    from transformer_lens.model_bridge import TransformerBridge

    start = time.perf_counter()
    model = TransformerBridge.boot_transformers(str(ensure_builtin()), dtype=torch.float32)
    loaded = time.perf_counter() - start
    given, layers = torch.tensor([ids]), model.cfg.n_layers
    names = [f"blocks.{i}.attn.hook_z" for i in range(layers)]

    @torch.no_grad()
    def sweep() -> torch.Tensor:
        _, cache = model.run_with_cache(torch.tensor([other]), names_filter=lambda n: n in names)
        base = model(given)[0, -1]
        found = []
        for name in names:
            for head in range(heads):
                def patch(z: torch.Tensor, hook: object, head: int = head, other: torch.Tensor = cache[name]) -> torch.Tensor:
                    new = z.clone()
                    new.view(*z.shape[:2], heads, -1)[:, :, head] = other.view(*z.shape[:2], heads, -1)[:, :, head]
                    return new

                logits = model.run_with_hooks(given, fwd_hooks=[(name, patch)])[0, -1]
                found.append((base[target] - base[against]) - (logits[target] - logits[against]))
        return torch.stack(found).double()

    return sweep, loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", default=["prefix"], choices=("naive", "batched", "prefix"))
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    subject = load_subject("smollm2")
    ids, other = prompts(subject.tokenizer)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    target, against = (subject.tokenizer(t)["input_ids"][0] for t in (" Mary", " John"))
    given_ids = torch.tensor([ids])
    with torch.no_grad():
        forward, plain = timed(lambda: subject.model(given_ids, use_cache=False).logits, given.rounds)
    print(f"smollm2, {len(ids)} tokens, {torch.get_num_threads()} threads")
    line("plain forward", forward, forward)
    seconds, anatomy = timed(lambda: prove(subject.model), 1)
    line("proof of the map, once", seconds, forward)

    def ledger() -> Decision:
        found = Decision(anatomy, subject.tokenizer, ids, target, against)
        vote_rows(found, None)
        neuron_rows(found)
        return found

    seconds, found = timed(ledger, given.rounds)
    note = f"off by {float(found.votes.closure_B):.1e} logits (aim 2)"
    line("vote ledger: heads by source, MLPs by neuron", seconds, forward, note)
    with torch.no_grad():
        second = capture(anatomy, torch.tensor([other]))
    heads = [a for a in all_parts(anatomy) if a.head is not None]
    changes = to_other(anatomy, found.base, second, heads)
    seconds, estimates = timed(lambda: estimate_effects(anatomy, found.ids_BT, found.question.of, changes), 3)
    line("attribution patching of all heads", seconds, forward)
    exact = None
    for way in given.sweeps:
        sweep = partial(measure_effects, anatomy, found.base, found.question, changes, way=way)
        seconds, effects = timed(sweep, 1)
        note = "" if exact is None else f"differs by {float((effects.effect_C - exact).abs().max()):.1e}"
        exact = effects.effect_C if exact is None else exact
        line(f"exact patching of all {len(heads)} heads, {way}", seconds, forward, note)
    if given.peer:
        sweep, loading = peer_sweep(ids, other, target, against, anatomy.n_heads)
        line("TransformerLens: load", loading, forward)
        seconds, theirs = timed(sweep, 1)
        off = float((theirs - exact).abs().max())
        line(f"TransformerLens: its sweep over {len(heads)} heads", seconds, forward, f"differs by {off:.1e}")
    correlation = float(torch.corrcoef(torch.stack([estimates, exact]))[0, 1])
    print(f"{'correlation of estimate and exact':46s} {correlation:8.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{'peak memory over the loaded model':46s} {(peak - loaded) / 2**20:8.2f} GiB (aim 1)")
    with torch.no_grad():
        same = torch.equal(subject.model(given_ids, use_cache=False).logits, plain)
    print(f"{'logits after all this':46s} {'the same bits' if same else 'CHANGED'}")


if __name__ == "__main__":
    main()
