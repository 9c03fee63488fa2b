from itertools import pairwise

import torch

a = [("the", 1.0), (" cat", 2.0), (" sat", 3.0)]               # tokens of one model, bits of each
b = [("t", 1.0), ("he", 0.5), (" c", 2.0), ("at", 1.0), (" sat", 1.5)]
ends = [torch.tensor([len(w) for w, _ in m]).cumsum(0).tolist() for m in (a, b)]
common = [0, *sorted(set(ends[0]) & set(ends[1]))]             # byte offsets where both end a token
for start, stop in pairwise(common):
    bits = [sum(x for e, (_, x) in zip(end, m) if start < e <= stop) for end, m in zip(ends, (a, b))]
    print(f"{'the cat sat'[start:stop]!r}: {bits[0]:.1f} and {bits[1]:.1f} bits")
p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])  # next byte: "s" or "r"
m = (p + q) / 2
js = ((p * (p / m).log2()).sum() + (q * (q / m).log2()).sum()) / 2
print(f"bits per byte {sum(x for _, x in a) / 11:.3f} and {sum(x for _, x in b) / 11:.3f}, divergence {js:.3f} bits")
