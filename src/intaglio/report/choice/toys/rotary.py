import torch

pairs, base = 3, 100.0
f = base ** (-torch.arange(pairs) / pairs)                    # radians per position: fast, middle, slow
q, k = torch.tensor([[1.0, 0.0], [0.8, 0.2], [0.5, 0.5]]), torch.tensor([[1.0, 0.2], [0.9, 0.0], [0.6, 0.6]])
def turn(x, angle):
    c, s = angle.cos(), angle.sin()
    return torch.stack([x[:, 0] * c - x[:, 1] * s, x[:, 0] * s + x[:, 1] * c], 1)
def score(query, key, f=f):                                   # (pairs,) sums to q . k after the turn
    return (turn(q, query * f) * turn(k, key * f)).sum(1)
for d in (0, 2, 8):
    print(f"distance {d}:", " + ".join(f"{s:+.2f}" for s in score(20, 20 - d)), f"= {score(20, 20 - d).sum():+.2f},",
          f"the same further on {score(70, 70 - d).sum():+.2f}")
print(f"positions * 0.5: distance 8 scores {score(10, 6).sum():+.2f}, as 4 did {score(20, 16).sum():+.2f}")
print(f"base * 4:        distance 8 scores {score(20, 12, f * 4.0 ** (-torch.arange(pairs) / pairs)).sum():+.2f}")
