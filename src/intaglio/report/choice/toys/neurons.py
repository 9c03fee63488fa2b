import torch

state = torch.tensor([1.0, 2.0, 0.0])
keys = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, -1.0, 0.5]])     # one row per neuron: what it looks for
values = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])    # one row per neuron: what it writes
unembed = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])   # Paris, London, the
activation = (keys @ state).relu()
writes = activation[:, None] * values
votes = writes @ (unembed[0] - unembed[1])                                    # Paris rather than London
promoted = writes @ unembed.T
promoted = promoted - promoted.mean(1, keepdim=True)                          # centred over the vocabulary
print("activations", *(f"{a:.1f}" for a in activation), "votes", *(f"{v:+.1f}" for v in votes))
print("neuron 0 promotes", *(f"{x:+.2f}" for x in promoted[0]))
print(f"sum of votes {votes.sum():+.1f} = difference {(unembed[0] - unembed[1]) @ (activation @ values):+.1f}")
