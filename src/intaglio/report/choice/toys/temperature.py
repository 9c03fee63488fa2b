import torch

logits = torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0])
for T in (0.5, 1.0, 2.0, 4.0):
    p = (logits / T).softmax(0)
    print(f"T {T}: first {p[0]:.3f}, second {p[1]:.3f}, rest of all {1 - p[0]:.3f}, entropy {-(p * p.log()).sum():.3f}")
gap = logits[0] - logits[1]
print(f"the second has half of the first's probability at T = {gap / torch.log(torch.tensor(2.0)):.3f}")
