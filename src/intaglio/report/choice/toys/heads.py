import torch

d = 2
query = torch.tensor([2.0, 0.0])                                        # the last token looks for a name
keys = torch.tensor([[2.0, 2.0], [3.0, 0.0], [0.0, 1.0]])               # first, Mary, to
values = torch.tensor([[0.0, 0.1], [2.0, 0.0], [0.0, 1.0]])
attention = (keys @ query / d**0.5).softmax(0)
answer = torch.tensor([1.0, -1.0])                                      # direction "Mary rather than John"
votes = attention * (values @ answer)                                   # one vote per source token
gap = (keys[1] - keys[0]) @ query / d**0.5
print("attention", *(f"{x:.3f}" for x in attention))
print("votes", *(f"{x:+.3f}" for x in votes), f"sum {votes.sum():+.3f}")
print(f"score gap {gap:.3f} = ln ratio {(attention[1] / attention[0]).log():.3f}")
