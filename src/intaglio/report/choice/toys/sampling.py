import torch

logits = torch.tensor([3.0, 2.5, 1.0, 0.0, -1.0])
p = logits.softmax(0)                                 # in falling order already
rules = {
    "top-k 2": torch.arange(5) < 2,
    "top-p 0.9": p.cumsum(0) - p < 0.9,               # mass before a token decides
    "min-p 0.1": p >= 0.1 * p.max(),
}
for name, kept in rules.items():
    share = p * kept / p[kept].sum()
    print(f"{name}: keeps {int(kept.sum())}, {p[kept].sum():.3f} of the mass;", *(f"{s:.3f}" for s in share))
again = torch.where(logits > 0, logits / 1.3, logits * 1.3)[0]
print(f"penalty 1.3 on the first: {logits[0]:.2f} -> {again:.2f}, behind the second: {bool(again < logits[1])}")
