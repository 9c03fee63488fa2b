import torch

E = torch.eye(3)                                          # one direction per word: 0 the rest, 1 box, 2 drawer
def heads(ids):                                           # one likes boxes, one reads what is near, one denies boxes
    x, here = E[ids], torch.arange(len(ids))
    likes, near = (x @ torch.tensor([0.0, 1.5, 1.0])).softmax(0), (0.8 * here).softmax(0)
    return torch.stack([4 * likes @ x, 2 * near @ x, -2 * likes @ x])

lead = {}
for name, ids in {"box, drawer": [0, 1, 0, 2, 0], "drawer, box": [0, 2, 0, 1, 0]}.items():
    votes = heads(torch.tensor(ids)) @ (E[1] - E[2])      # for box, against drawer
    lead[name] = votes.sum()
    conflict = 1 - votes.sum().abs() / votes.abs().sum()
    print(f"{name}:", *(f"{v:+.2f}" for v in votes), f"sum {votes.sum():+.2f} conflict {conflict:.2f}")
print(f"recency {lead['drawer, box'] - lead['box, drawer']:+.2f}")
