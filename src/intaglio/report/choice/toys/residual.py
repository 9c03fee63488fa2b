import torch

writes = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [-1.5, 0.5, 0.5]])   # embedding, attention, MLP
x = writes.sum(0)
share = writes @ x / x.square().sum()                                         # sums to 1
gain, scale = torch.tensor([0.5, 2.0, 1.0]), 1 / x.square().mean().sqrt()     # RMSNorm
asked = torch.tensor([1.0, 1.0, -1.0])                                        # W_U[target] - W_U[against]
votes = writes @ (gain * asked) * scale
print("lengths", *(f"{w.norm():.2f}" for w in writes), f"sum {writes.norm(dim=1).sum():.2f} left {x.norm():.2f}")
print("shares", *(f"{s:+.2f}" for s in share), f"sum {share.sum():.2f}")
print("votes", *(f"{v:+.2f}" for v in votes), f"sum {votes.sum():+.2f} = logit difference {asked @ (scale * gain * x):+.2f}")
print("equal gains", f"{asked @ (scale * (gain * x).norm() / x.norm() * x):+.2f}")
